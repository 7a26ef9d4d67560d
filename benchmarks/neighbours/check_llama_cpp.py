"""llama.cpp reads the exported GGUF file: the same tokens, and the same greedy answers as transformers gives.

    python -m benchmarks.neighbours.check_llama_cpp WORK    # needs llama-cpp-python alone

WORK/greedy.jsonl has what transformers answered: ``prompt``, ``prompt_ids``, ``answer_ids``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp


def main() -> None:
    work = Path(sys.argv[1]).resolve()
    (path,) = (work / "gguf").glob("*-f32.gguf")
    model = llama_cpp.Llama(str(path), n_ctx=512, verbose=False, logits_all=True)
    tokens = answers = 0
    rows = [json.loads(line) for line in (work / "greedy.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        tokens += model.tokenize(row["prompt"].encode(), add_bos=False, special=True) == row["prompt_ids"]
        model.reset()
        written: list[int] = []
        for token in model.generate(row["prompt_ids"], temp=0.0, repeat_penalty=1.0):
            if token == model.token_eos() or len(written) == len(row["answer_ids"]):
                break
            written.append(token)
        answers += written == row["answer_ids"]
    found = {"llama-cpp-python": llama_cpp.__version__, "same prompt ids": tokens, "same greedy answers": answers}
    print(json.dumps({**found, "of": len(rows)}))
    assert answers == len(rows), found


if __name__ == "__main__":
    main()
