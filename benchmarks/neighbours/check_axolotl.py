"""Axolotl makes the recipe's tokens of curated rows, and its distillation takes the teacher's top tokens.

python -m benchmarks.neighbours.check_axolotl WORK    # WORK/trl, WORK/axolotl, WORK/axolotl-kd; WORK/student, teacher
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"

import torch
import yaml
from axolotl.integrations.kd.collator import DataCollatorForKD
from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss
from axolotl.prompt_strategies.input_output import RawInputOutputPrompter, RawInputOutputStrategy
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

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


def check_loss(work: Path, tokenizer: Any) -> dict[str, float]:
    """Its own loss, a mean over targets: of the teacher, of its targets one row off, and of a student that learns."""
    settings = yaml.safe_load((work / "axolotl-kd" / "axolotl_kd_stage_1.yaml").read_text(encoding="utf-8"))
    loss = LigerFusedLinearKLTopKLogprobLoss(
        0.0, 1.0, settings["kd_temperature"], settings["kd_beta"], compiled=False, compute_ce_loss=False,
        normalize_topk=settings["kd_normalize_topk"],
    )  # fmt: skip
    rows = load_dataset("parquet", data_files=str(work / "axolotl-kd" / "stage_1.parquet"), split="train")
    batch = DataCollatorForKD(tokenizer)([rows[number] for number in range(8)])
    targets = [batch[name] for name in ("target_token_ids", "target_logprobs", "target_mask")]

    def of(model: Any, *given: torch.Tensor) -> torch.Tensor:
        hidden = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
        total = loss(model.lm_head.weight, hidden.hidden_states[-1], *given, true_labels=batch["labels"])
        return torch.as_tensor(total / batch["target_mask"][..., 0].sum())

    teacher, student = (
        AutoModelForCausalLM.from_pretrained(work / name, dtype=torch.float32) for name in ("teacher", "student")
    )
    with torch.no_grad():
        found = {"teacher": float(of(teacher, *targets))}
        found["one row off"] = float(of(teacher, *(torch.roll(target, 1, 1) for target in targets)))
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings["learning_rate"])
    steps = []
    for _ in range(20):
        step = of(student, *targets)
        step.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(float(step.detach()))
    assert abs(found["teacher"]) < 1e-4 < 0.1 < found["one row off"], found
    assert steps[-1] < 0.9 * steps[0], steps
    return {**found, "student at first": steps[0], "after 20 steps": steps[-1]}


def main() -> None:
    work = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(work / "student")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    found = {
        "same tokens and labels": check_text(work, tokenizer),
        "distillation": check_distillation(work, tokenizer),
        "loss": check_loss(work, tokenizer),
    }
    print(json.dumps({"version": metadata.version("axolotl"), **found}))


if __name__ == "__main__":
    main()
