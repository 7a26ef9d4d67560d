"""Several teachers: the log-mean of all, and of each row its own, against references in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srd.base.errors import UserError
from srd.data.batching import EncodedExamples
from srd.models.head import head_weights, response_hidden, response_logits
from srd.training.batches import make_collator
from srd.training.cache.building import build_cache
from srd.training.cache.several import SeveralCaches
from srd.training.cache.teacher_cache import TeacherCache, example_key
from srd.training.loss.divergence import divergence
from srd.training.loss.response_loss import head_loss
from srd.training.loss.settings import LossSettings
from srd.training.teachers.cache import CachedTeacher
from srd.training.tiers.base import make_tier
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_trainer import encoded

TEMPERATURE, WEIGHT = 1.7, 0.7
TOKENIZER = tiny_tokenizer("llama")


def caches(folder: Path, teachers: list[Any], examples: EncodedExamples, **tier: Any) -> list[TeacherCache]:
    made = make_tier(**{"name": "exact", "dtype": "float32", **tier})

    def build(number: int, teacher: Any) -> TeacherCache:
        return build_cache(
            folder / str(number), lambda: teacher, examples, make_collator(teacher, TOKENIZER), tier=made
        )

    return [build(number, teacher) for number, teacher in enumerate(teachers)]


def examples_of(count: int = 6) -> EncodedExamples:
    return encoded(count, TOKENIZER)


@pytest.fixture(scope="module")
def teachers() -> list[Any]:
    """Of one vocabulary and different width; the second with a bias on its head, as GPT-J has one."""
    made = [tiny_model("llama", seed=1), tiny_model("llama", seed=2, hidden=48)]
    made[1].lm_head.bias = torch.nn.Parameter(torch.randn(made[1].lm_head.weight.shape[0]))
    return made


def fused(cache: SeveralCaches, examples: EncodedExamples) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Loss and gradient as training has them, and the batch."""
    student = tiny_model("llama", seed=3)
    batch = make_collator(student, TOKENIZER)(list(_with(examples, cache)))
    hidden = response_hidden(student, batch).detach().requires_grad_()
    teacher = CachedTeacher(cache.head())
    loss, _ = head_loss(
        hidden, head_weights(student), batch["targets"], LossSettings("jsd", {}, TEMPERATURE, WEIGHT),
        torch.tensor(40), teacher_hidden=teacher.hidden(batch), teacher_head=teacher.head,
    )  # fmt: skip
    loss.backward()
    assert hidden.grad is not None
    return loss.detach(), hidden.grad, batch


def _with(examples: EncodedExamples, cache: Any) -> EncodedExamples:
    rows = {name: [row[name] for row in examples] for name in ("id", "prompt_ids", "response_ids")}
    return EncodedExamples(rows, cache)


def by_hand(log_p: torch.Tensor, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from the teacher's log-probabilities ``[N, V]``, by autograd in float64."""
    student = tiny_model("llama", seed=3)
    hidden = response_hidden(student, batch).detach().double().requires_grad_()
    logits = hidden @ student.lm_head.weight.double().T
    ce = torch.nn.functional.cross_entropy(logits, batch["targets"], reduction="sum")
    kd = divergence("jsd", logits, log_p, temperature=TEMPERATURE).sum() * TEMPERATURE**2
    loss = ((1 - WEIGHT) * ce + WEIGHT * kd) / 40
    (gradient,) = torch.autograd.grad(loss, hidden)
    return loss.detach(), gradient


@pytest.mark.parametrize("tier", ["exact", "int8"])
def test_the_mean_of_all_is_the_mean_of_their_log_probabilities(tier: str, teachers: list[Any], tmp_path: Path) -> None:
    examples = examples_of()
    several = SeveralCaches(caches(tmp_path, teachers, examples, name=tier), [1.0, 3.0])
    assert several.holds(examples)
    loss, gradient, batch = fused(several, examples)
    each = [torch.log_softmax(response_logits(teacher, batch).double(), -1) for teacher in teachers]
    wanted, slope = by_hand(torch.log_softmax(0.25 * each[0] + 0.75 * each[1], -1), batch)
    close = {"rtol": 1e-5, "atol": 1e-6} if tier == "exact" else {"rtol": 2e-2, "atol": 2e-4}
    torch.testing.assert_close(loss.double(), wanted, **close)
    torch.testing.assert_close(gradient.double(), slope, **close)


@pytest.mark.parametrize("tier", ["exact", "topk"])
def test_each_row_is_taught_by_its_own(tier: str, teachers: list[Any], tmp_path: Path) -> None:
    examples = examples_of()
    whole = {"name": tier, "top_k": 400, "temperatures": (TEMPERATURE,)}  # topk of all tokens is the whole
    made = caches(tmp_path, teachers, examples, **(whole if tier == "topk" else {}))
    keys = [example_key(*examples.tokens(i).values()) for i in range(len(examples))]
    several = SeveralCaches(made, owners={key: i % 2 for i, key in enumerate(keys)})
    assert several.holds(examples)
    loss, gradient, batch = fused(several, examples)
    each = [torch.log_softmax(response_logits(teacher, batch).double(), -1) for teacher in teachers]
    owner = torch.cat([torch.full((len(row["response_ids"]),), i % 2) for i, row in enumerate(examples)])
    wanted, slope = by_hand(torch.where(owner[:, None] == 0, each[0], each[1]), batch)
    close = {"rtol": 1e-5, "atol": 1e-6} if tier == "exact" else {"rtol": 5e-3, "atol": 1e-4}
    torch.testing.assert_close(loss.double(), wanted, **close)
    torch.testing.assert_close(gradient.double(), slope, **close)
    losses = torch.cat([several.losses(several.head(), *examples.tokens(i).values()) for i in range(len(examples))])
    mine = torch.where(owner[:, None] == 0, each[0], each[1]).gather(1, batch["targets"][:, None])[:, 0]
    torch.testing.assert_close(losses.double(), -mine, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_one_head_is_refused(teachers: list[Any], tmp_path: Path) -> None:
    examples = examples_of(2)
    listed = caches(tmp_path / "topk", teachers, examples, name="topk", top_k=8)
    with pytest.raises(UserError, match=r"cache.tier is topk. Set cache.tier=exact or int8"):
        SeveralCaches(listed, [1.0, 1.0])
    capped = tiny_model("gemma2", seed=1)
    tokenizer = tiny_tokenizer("gemma2")
    rows = encoded(2, tokenizer)
    made = [build_cache(tmp_path / "gemma", lambda: capped, rows, make_collator(capped, tokenizer))] * 2
    with pytest.raises(UserError, match="soft-caps its logits"):
        SeveralCaches(made, [1.0, 1.0])
    key = example_key(*rows.tokens(0).values())
    assert SeveralCaches(made, owners={key: 1}).head().softcap == made[0].head().softcap
