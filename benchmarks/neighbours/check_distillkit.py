"""TRL as DistillKit pins it loads `distillkit` with the teacher's columns, whose bytes are the teacher's log-softmax.

DistillKit is not on PyPI. Here stand what of it decides: a collator that stacks every column, and its decoding.

python -m benchmarks.neighbours.check_distillkit WORK    # WORK/distillkit, WORK/teacher, WORK/run
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer


def stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def decoded(batch: dict[str, torch.Tensor], k: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and log-probabilities, ``[B, T, k]``: indices of some bits, the highest first, and float32 values."""
    values = batch["compressed_logprobs"].to(torch.uint8).contiguous().view(torch.float32)
    width = int(torch.log2(torch.tensor(vocabulary, dtype=torch.float32)).ceil())
    bits = (batch["bytepacked_indices"][..., None] >> torch.arange(7, -1, -1)) & 1
    numbers = bits.flatten(-2)[..., : k * width].unflatten(-1, (k, width))
    return (numbers * 2 ** torch.arange(width - 1, -1, -1)).sum(-1), values


def batch_of(work: Path, settings: dict[str, Any], rows: Any) -> dict[str, torch.Tensor]:
    """The first batch of TRL's loader."""
    args = SFTConfig(
        **settings["training_args"], max_length=settings["sequence_length"], output_dir=str(work / "distillkit-out"),
        dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=True, bf16=False,
    )  # fmt: skip
    student = AutoModelForCausalLM.from_pretrained(work / "run" / "student")
    return dict(
        next(iter(SFTTrainer(student, args=args, train_dataset=rows, data_collator=stacked).get_train_dataloader()))
    )


@torch.no_grad()
def main() -> None:
    work = Path(sys.argv[1])
    settings = yaml.safe_load((work / "distillkit" / "distillkit_stage_1.yaml").read_text(encoding="utf-8"))
    rows = load_dataset(str(work / "distillkit" / "stage_1"), split="train")
    batch = batch_of(work, settings, rows)
    assert sorted(batch) == sorted(rows.column_names), sorted(batch)
    compressor = settings["teacher"]["logprob_compressor"]
    tokens, values = decoded(batch, compressor["k"], compressor["d"])
    teacher = AutoModelForCausalLM.from_pretrained(work / "teacher", dtype=torch.float32).eval()
    exact = teacher(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)[:, :-1]
    learnt = batch["labels"][:, 1:] >= 0  # row i is for the token behind it
    worst = (exact.gather(-1, tokens[:, :-1]) - values[:, :-1])[learnt].abs().max()
    assert worst < 5e-3, worst  # the cache keeps states in half precision
    told = {"columns": len(batch), "largest difference of log-probabilities": float(worst), "of": int(learnt.sum())}
    print(json.dumps({"trl": metadata.version("trl"), **told}))


if __name__ == "__main__":
    main()
