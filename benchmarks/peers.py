"""TRL's distillation trainers as they come from PyPI, on the same token sequences."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from transformers import TrainerCallback

from benchmarks.conventional import IGNORED
from benchmarks.workload import StepClock
from srd.data.batching import pad_left

COMMON: dict[str, Any] = {
    "learning_rate": 1e-4,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "logging_strategy": "no",
    "dataloader_pin_memory": False,
}


class TokenCollator:
    """TRL's own collator starts from chat messages; this one gives the same tensors from token ids."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sequences = [row["prompt_ids"] + row["response_ids"] for row in rows]
        ids, mask = pad_left(sequences, self.pad_id)
        labels, _ = pad_left([[IGNORED] * len(row["prompt_ids"]) + row["response_ids"] for row in rows], IGNORED)
        prompts, prompt_mask = pad_left([row["prompt_ids"] for row in rows], self.pad_id)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "prompts": prompts,
            "prompt_attention_mask": prompt_mask,
        }


def _in_order(trainer: Any) -> None:
    """Take the rows in the order given: they were shuffled already, the same for all systems."""
    trainer._get_train_sampler = lambda *unused: torch.utils.data.SequentialSampler(trainer.train_dataset)


def off_policy_gkd(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    steps: Sequence[Sequence[dict[str, Any]]],
    pad_id: int,
    *,
    warm_up: int = 1,
    cpu: bool = True,
) -> float:
    """GKDTrainer with ``lmbda=0`` (the references are trained on) and ``beta=0`` (forward KL); seconds a step.

    On a GPU it computes in bfloat16 where it can; the first ``warm_up`` steps do not count.
    """
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    clock = StepClock(warm_up)
    rows = [{key: row[key] for key in ("prompt_ids", "response_ids")} for step in steps for row in step]
    with tempfile.TemporaryDirectory() as folder:
        arguments = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            per_device_train_batch_size=len(steps[0]),
            max_steps=len(steps),
            **{**COMMON, "use_cpu": cpu, "bf16": not cpu},
        )
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=arguments,
            data_collator=TokenCollator(pad_id),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        _in_order(trainer)
        trainer.train()
    return clock.seconds


def on_policy_distillation(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    steps: Sequence[Sequence[dict[str, Any]]],
    max_new_tokens: int,
) -> float:
    """DistillationTrainer, which lets the student write every batch; seconds a step."""
    from trl import DistillationConfig, DistillationTrainer

    clock = StepClock()
    prompts = [{"prompt": tokenizer.decode(row["prompt_ids"])} for step in steps for row in step]
    with tempfile.TemporaryDirectory() as folder:
        arguments = DistillationConfig(
            output_dir=folder,
            beta=0.0,
            max_completion_length=max_new_tokens,
            per_device_train_batch_size=len(steps[0]),
            max_steps=len(steps),
            **COMMON,
        )
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(prompts),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds


# --------------------------------------------------------------------------- whole trainings, for benchmarks.quality


class _Ended(TrainerCallback):
    """Tells of the steps of a training: 0 as it begins."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self.ended = ended

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended(state.global_step)


def import_trl() -> None:
    """What takes seconds, done beforehand."""
    from trl import DistillationTrainer  # noqa: F401
    from trl.experimental.gkd import GKDTrainer  # noqa: F401


def train_gkd(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    ended: Callable[[int], None],
    **settings: Any,
) -> None:
    """GKDTrainer over all rows, with its own defaults (beta 0.5, temperature 0.9) but for ``settings``."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    taken = [{key: row[key] for key in ("prompt_ids", "response_ids")} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(output_dir=folder, **{**COMMON, **settings}),
            data_collator=TokenCollator(pad),
            train_dataset=datasets.Dataset.from_list(taken),
            processing_class=tokenizer,
            callbacks=[_Ended(ended)],
        )
        trainer.train()


def train_distillation(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    ended: Callable[[int], None],
    **settings: Any,
) -> None:
    """DistillationTrainer over all prompts, with its own defaults (beta 1, temperature 1) but for ``settings``."""
    from trl import DistillationConfig, DistillationTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=DistillationConfig(output_dir=folder, **{**COMMON, **settings}),
            train_dataset=datasets.Dataset.from_list([{"prompt": tokenizer.decode(row["prompt_ids"])} for row in rows]),
            processing_class=tokenizer,
            callbacks=[_Ended(ended)],
        )
        trainer.train()
