"""The conventional way, written out as published training scripts have it: nothing here is used by the project.

Every sequence is padded to the full length, the teacher runs again in every step, both models give logits at every
position, each loss makes its own softmax over all of them in float32, and masks take away what should not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.lengths import MAX_LENGTH, MAX_PROMPT

IGNORED = -100


def pad_batch(rows: Sequence[dict[str, Any]], pad_id: int, length: int = MAX_LENGTH) -> dict[str, Tensor]:
    """Prompt and response of each row, filled up to the full length; labels count the response only."""
    shape = (len(rows), length)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for number, row in enumerate(rows):
        tokens = row["prompt_ids"] + row["response_ids"]
        start, end = len(row["prompt_ids"]), len(tokens)
        batch["input_ids"][number, :end] = torch.tensor(tokens)
        batch["attention_mask"][number, :end] = 1
        # Position i predicts token i + 1.
        batch["labels"][number, start - 1 : end - 1] = torch.tensor(row["response_ids"])
    return batch


def cross_entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the positions that count, worked out at all of them."""
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def forward_kl_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Forward KL up to the teacher's entropy, which has no gradient; a mask multiplies the padding away."""
    teacher_probabilities = functional.softmax(teacher_logits / temperature, dim=-1, dtype=torch.float32)
    student_log_probabilities = functional.log_softmax(student_logits / temperature, dim=-1, dtype=torch.float32)
    impossible = torch.isinf(student_logits)
    products = torch.masked_fill(teacher_probabilities * student_log_probabilities, impossible, 0)
    per_token = products.sum(dim=-1).flatten()
    mask = (labels != IGNORED).int().flatten()
    return -(per_token * mask).sum() / mask.sum() * temperature**2


def train(
    student: Any,
    teacher: Any,
    steps: Sequence[Sequence[dict[str, Any]]],
    pad_id: int,
    weight: float,
    temperature: float,
    *,
    learning_rate: float = 1e-4,
    length: int = MAX_LENGTH,
    ended: Callable[[int], None] = lambda step: None,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Train over these steps and return the mean seconds of one; the first warms up and does not count.

    The learning rate falls to 0 as a cosine does; ``ended`` is told of each step, and 0 before the first. Models are
    read within ``precision()``, entered anew in every step: autocast keeps its copies of the weights until it is left.
    """
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    device = next(student.parameters()).device
    student.train()
    teacher.eval()
    ends = []
    ended(0)
    for number, rows in enumerate(steps, start=1):
        batch = {name: tensor.to(device) for name, tensor in pad_batch(rows, pad_id, length).items()}
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with precision():
            student_logits = student(**inputs, use_cache=False).logits
            with torch.no_grad():
                teacher_logits = teacher(**inputs, use_cache=False).logits
        language_loss = cross_entropy_loss(student_logits, batch["labels"])
        distillation_loss = forward_kl_loss(student_logits, teacher_logits, batch["labels"], temperature)
        loss = (1 - weight) * language_loss + weight * distillation_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
        ends.append(time.perf_counter())
        ended(number)
    return (ends[-1] - ends[0]) / max(1, len(ends) - 1)


@torch.no_grad()
def reflect(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], max_new_tokens: int, batch_size: int
) -> tuple[list[str], list[float]]:
    """Answers and cross-entropies of the references: two passes, in the order in which the examples come."""
    from transformers import GenerationConfig

    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad_id,
        eos_token_id=model.generation_config.eos_token_id,
        output_scores=True,
        return_dict_in_generate=True,
    )
    answers: list[str] = []
    losses: list[float] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        ids = torch.full((len(part), MAX_PROMPT), pad_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(part):
            ids[number, MAX_PROMPT - len(row["prompt_ids"]) :] = torch.tensor(row["prompt_ids"])
            mask[number, MAX_PROMPT - len(row["prompt_ids"]) :] = 1
        written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        answers += tokenizer.batch_decode(written.sequences[:, MAX_PROMPT:], skip_special_tokens=True)
    for start in range(0, len(rows), batch_size):
        batch = pad_batch(rows[start : start + batch_size], pad_id)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        flat = functional.cross_entropy(
            logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="none"
        )
        per_token = flat.view(batch["labels"].shape)
        losses += (per_token.sum(1) / (batch["labels"] != IGNORED).sum(1)).tolist()
    return answers, losses
