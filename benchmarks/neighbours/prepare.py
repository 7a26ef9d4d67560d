"""What the checks of the neighbours start from: a tiny run whose student knows its rows, exported in every form.

python -m benchmarks.neighbours.prepare WORK    # five minutes on two cores
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tests.runs import TinyRun
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWER = 16  # tokens of a greedy answer


def recipe(work: Path) -> Path:
    """A recipe of tiny models that train until the student answers well: greedy answers that are worth comparing."""
    tiny = TinyRun(work)
    training = {"epochs": 12, "learning_rate": 3e-3, "select_by": "last", "curriculum": {"select": 1.0, "weight": 0.2}}
    tiny.set(generation__max_new_tokens=ANSWER, data__max_length=160, data__max_prompt_length=112, data__test_size=8)
    tiny.set(evaluation__temperature=0, evaluation__seeds=[1], training={**tiny.recipe["training"], **training})
    tiny.set(student__warm_start={"epochs": 6, "learning_rate": 3e-3, "batch_size": 8})
    return tiny.write_recipe()


def srd(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "srd", *map(str, arguments)], check=True)


@torch.no_grad()
def write_greedy(work: Path, student: Path) -> None:
    """What transformers answers greedily."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student).eval(), AutoTokenizer.from_pretrained(student)
    rows = [json.loads(line) for line in (work / "lmeval" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    with open(work / "greedy.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            ids = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
            made = model.generate(torch.tensor([ids]), max_new_tokens=ANSWER, do_sample=False)[0, len(ids) :].tolist()
            answer = made[: made.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in made else made
            line = {"prompt": row["prompt"], "prompt_ids": ids, "answer_ids": answer}
            file.write(json.dumps(line) + "\n")


def main() -> None:
    work = Path(sys.argv[1]).resolve()
    work.mkdir(parents=True, exist_ok=True)
    path, run = recipe(work), work / "run"
    srd("run", path, "--run-dir", run)
    for trainer in ("trl", "axolotl", "llamafactory", "litgpt"):
        srd("curate", path, "--run-dir", run, "--for", trainer, "-o", work / trainer)
    for to, folder in (("lm-eval", "lmeval"), ("distillkit", "distillkit"), ("axolotl-kd", "axolotl-kd")):
        srd("export", run, "--to", to, "-o", work / folder)
    srd("export", run, "--to", "gguf", "--type", "f32", "-o", work / "gguf")
    write_greedy(work, run / "student")


if __name__ == "__main__":
    main()
