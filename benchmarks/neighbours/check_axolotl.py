"""Axolotl makes the recipe's tokens of curated rows, and its distillation's collator takes the teacher's top tokens.

python -m benchmarks.neighbours.check_axolotl WORK    # WORK/trl, WORK/axolotl, WORK/axolotl-kd; WORK/student
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"

from axolotl.integrations.kd.collator import DataCollatorForKD
from axolotl.prompt_strategies.input_output import RawInputOutputPrompter, RawInputOutputStrategy
from datasets import load_dataset
from transformers import AutoTokenizer

from benchmarks.neighbours.rows import LENGTH, compare, stages_of


def check_text(work: Path, tokenizer: Any) -> dict[str, str]:
    """What `type: input_output` makes of ``segments``."""
    strategy, found = RawInputOutputStrategy(RawInputOutputPrompter(), tokenizer, False, LENGTH), {}
    for stage in stages_of(work):
        lines = (work / "axolotl" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [strategy.tokenize_prompt(json.loads(line)) for line in lines]
        found[stage] = compare(work, stage, ((row["input_ids"], row["labels"]) for row in rows))
    return found


def check_distillation(work: Path, tokenizer: Any) -> str:
    """A batch of targets: marked one place before each learnt token, and each a distribution."""
    rows = load_dataset("parquet", data_files=str(work / "axolotl-kd" / "stage_0.parquet"), split="train")
    batch = DataCollatorForKD(tokenizer)([rows[number] for number in range(4)])
    learnt = batch["labels"][:, 1:] != -100
    assert bool((batch["target_mask"][:, :-1, 0].bool() == learnt).all())
    sums = batch["target_logprobs"].exp().sum(-1)[:, :-1][learnt]
    assert float((sums - 1).abs().max()) < 1e-4, sums
    return f"{int(learnt.sum())} targets, each before the token that it is of"


def main() -> None:
    work = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(work / "student")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    found = {"same tokens and labels": check_text(work, tokenizer), "distillation": check_distillation(work, tokenizer)}
    print(json.dumps({"version": metadata.version("axolotl"), **found}))


if __name__ == "__main__":
    main()
