"""The divergence at some positions only: which, how it is divided, what the head is asked, and what changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from srd.base.errors import UserError
from srd.models.head import HeadWeights
from srd.recipe.reading import load_recipe
from srd.training.loss import chunks, positions
from srd.training.loss.outcomes import OutcomeHead, log1mexp, outcome_rows
from srd.training.loss.positions import choose_positions, entropies, gaps_of, random_scores
from srd.training.loss.response_loss import head_loss, logits_loss
from srd.training.loss.settings import LossSettings, TokenChoice
from srd.training.settings import TrainingConfig
from tests.runs import TinyRun
from tests.training.test_divergences import naive
from tests.training.test_loss import Problem, leaves, make_problem, plain_logits, relative_error, with_gradient
from tests.training.test_trainer import run

WAYS = ("student_entropy", "teacher_gap", "random")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.5, 1.0])
def test_the_highest_of_each_example(share: float) -> None:
    """Among equal ones the earlier, rounded up, in the order of the positions; examples may have none."""
    random, choice = np.random.default_rng(1), TokenChoice(share, "random")
    counts = [7, 0, 1, 30, 10, 0]
    scores = random.integers(0, 5, sum(counts)) / 4
    expected, start = [], 0
    for count in counts:
        best = sorted(range(count), key=lambda place, start=start: (-scores[start + place], place))  # type: ignore[misc]
        expected += sorted(start + place for place in best[: math.ceil(round(share * count, 6))])
        start += count
    assert choose_positions(torch.tensor(scores), counts, choice).tolist() == expected
    assert choose_positions(torch.zeros(0), [], choice).tolist() == []


def test_random_scores_follow_from_seed_step_and_example_alone() -> None:
    def scores(names: list[str], seed: int = 1, step: int = 2) -> dict[str, list[float]]:
        drawn = random_scores(names, [4] * len(names), seed, step).view(-1, 4).tolist()
        return dict(zip(names, drawn, strict=True))

    assert scores(["a", "b", "c"]) == {**scores(["c", "a"]), **scores(["b"])}
    others = [scores(["a"], seed=3)["a"], scores(["a"], step=3)["a"], scores(["b"])["b"]]
    assert scores(["a"])["a"] not in others


def chosen_loss(problem: Problem, settings: LossSettings, chosen: Tensor, logits: Tensor | None = None) -> Any:
    extra: Any = {
        "teacher_hidden": problem.teacher_hidden, "teacher_head": problem.teacher_head,
        "reference": problem.reference, "chosen": chosen, "chosen_items": torch.tensor(2 * len(chosen) + 1),
    }  # fmt: skip
    if logits is not None:
        return logits_loss(logits, 37, problem.targets, settings, problem.items, **extra)
    return head_loss(problem.hidden, problem.head, problem.targets, settings, problem.items, **extra)


def plain_chosen_loss(logits: Tensor, problem: Problem, settings: LossSettings, chosen: Tensor) -> Tensor:
    """Cross-entropy of all positions by their number, the divergence of the chosen ones by theirs."""
    ce = -torch.log_softmax(logits, -1).gather(-1, problem.targets[:, None])[:, 0] * problem.reference.double()
    teacher = plain_logits(problem.teacher_hidden, problem.teacher_head)
    assert settings.objective is not None
    kd = naive(settings.objective, logits, teacher, settings.temperature)[chosen].sum() / (2 * len(chosen) + 1)
    return (1 - settings.weight) * ce.sum() / problem.items + settings.kd_factor * kd


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.6, 2.0), (0.7, 1.0)])
def test_value_and_gradients(weight: float, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the head loss and of the logits loss, over several chunks, against the plain formula."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 37 * 3)
    settings = LossSettings("srkl", {}, temperature, weight)
    chosen = torch.tensor([0, 2, 3, 7, 9])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        problem = make_problem(bias=True)
        problem.reference[::3] = 0
        one, two = with_gradient(problem.in_dtype(dtype)), with_gradient(problem)
        value, parts = chosen_loss(one, settings, chosen)
        expected = plain_chosen_loss(plain_logits(two.hidden, two.head), two, settings, chosen)
        assert value.dtype == dtype and float(value.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)
        assert [place for place, kd in enumerate(parts.kd.tolist()) if kd] == chosen.tolist()
        (2 * value).backward()
        (2 * expected).backward()
        for mine, theirs in zip(leaves(one), leaves(two), strict=True):
            assert relative_error(mine.grad, theirs.grad) < tolerance
        logits = plain_logits(problem.hidden, problem.head).to(dtype).requires_grad_()
        exact = logits.detach().double().requires_grad_()
        value, _ = chosen_loss(problem.in_dtype(dtype), settings, chosen, logits)
        value.backward()
        plain_chosen_loss(exact, problem, settings, chosen).backward()
        assert relative_error(logits.grad, exact.grad) < tolerance


@pytest.mark.parametrize(("weight", "asked"), [(1.0, 3), (0.5, 11)])
def test_the_head_is_asked_where_it_must(weight: float, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"student": 0, "teacher": 0}
    original = chunks.workspace.logits

    def counting(name: str, head: HeadWeights, hidden: Tensor) -> Tensor:
        rows[name] += len(hidden)
        return original(name, head, hidden)

    monkeypatch.setattr(chunks.workspace, "logits", counting)
    problem = with_gradient(make_problem().in_dtype(torch.float32))
    chosen_loss(problem, LossSettings("fkl", {}, 1.0, weight), torch.tensor([1, 4, 5]))[0].backward()
    assert rows == {"student": asked, "teacher": 3}


def test_what_is_asked_of_all_positions_is_asked_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, sizes = make_problem(), []
    original = HeadWeights.logits

    def watched(self: HeadWeights, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        sizes.append(len(hidden))
        assert not torch.is_grad_enabled()
        return original(self, hidden, out)

    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 37 * 3)
    monkeypatch.setattr(HeadWeights, "logits", watched)
    hidden = problem.hidden.requires_grad_()
    student, teacher = plain_logits(hidden, problem.head), plain_logits(problem.teacher_hidden, problem.teacher_head)
    q = torch.softmax(student / 1.5, -1)
    found = entropies(hidden, problem.head, 1.5)
    torch.testing.assert_close(found, -(q * q.log()).sum(-1), rtol=1e-9, atol=1e-12)
    found = gaps_of(
        lambda rows: problem.head.logits(hidden[rows]), problem.teacher_hidden, problem.teacher_head, 37, 1.5
    )  # fmt: skip
    torch.testing.assert_close(found, naive("jsd", student, teacher, 1.5, share=0.5), rtol=1e-9, atol=1e-12)
    assert sizes and max(sizes) <= 3


def test_the_gap_to_a_teacher_of_whom_a_part_is_known() -> None:
    """Five tokens and a rest: the gap of these six outcomes."""
    problem = make_problem()
    student, teacher = (torch.log_softmax(plain_logits(*each), -1) for each in (
        (problem.hidden, problem.head), (problem.teacher_hidden, problem.teacher_head)))  # fmt: skip
    log_p, ids = teacher.topk(5, -1)
    rest = log1mexp(log_p.logsumexp(-1, keepdim=True))
    head = OutcomeHead(torch.empty(37, 0), width=37, listed=5)
    found = gaps_of(lambda rows: student[rows], outcome_rows(ids, log_p, rest, log_p[:, 0]), head, 37, 1.0)
    own = student.gather(-1, ids)
    others = log1mexp(own.logsumexp(-1, keepdim=True))
    expected = naive("jsd", torch.cat([own, others], -1), torch.cat([log_p, rest], -1), share=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("by", WAYS)
def test_how_a_step_is_cut_changes_nothing(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LossSettings("jsd", {}, 2.0, 0.6, tokens=TokenChoice(0.3, by))
    seen: list[list[int]] = []

    def spy(scores: Tensor, counts: list[int], choice: TokenChoice) -> Tensor:
        chosen = choose_positions(scores, counts, choice)
        seen.append([len(chosen), sum(choice.count(count) for count in counts), sum(counts)])
        return chosen

    monkeypatch.setattr(positions, "choose_positions", spy)
    whole, one, _ = run("llama", tmp_path / "a", micro=8, settings=settings, cached=True, num_train_epochs=2)
    cut, two, _ = run("llama", tmp_path / "b", micro=2, accumulation=4, settings=settings, num_train_epochs=2)
    assert all(chosen == wanted < every for chosen, wanted, every in seen)
    for before, after in zip(one, two, strict=True):
        for name, gradient in before.items():
            torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6)
    for row, other in zip(whole, cut, strict=True):
        for name in ("loss", "ce_loss", "kd_loss"):
            assert other[name] == pytest.approx(row[name], rel=1e-5)
        assert row["loss"] == pytest.approx(0.4 * row["ce_loss"] + 0.6 * 4 * row["kd_loss"], rel=1e-4)


def test_all_positions_are_what_no_choice_is(tiny_run: TinyRun) -> None:
    """A share of 1 is trained as if there were no choice; a run made before there was one keeps its name."""
    config = TrainingConfig(tokens={"share": 1.0})  # type: ignore[arg-type]
    assert "tokens" not in TrainingConfig().decides() and config.decides()["tokens"]["share"] == 1.0
    tiny_run.set(training__curriculum=None, data__train_limit=16, training__tokens={"share": 0.2, "by": "teacher_gap"})
    run = tiny_run.train()
    assert (run.folder / "student/model.safetensors").is_file() and (run.folder / "cache").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.method=sft", "training.tokens={share: 0.2}"], "the method sft has none. Set tokens to null"),
        (["training.tokens={share: 0}"], "training.tokens.share: input should be greater than 0"),
        (["training.tokens={share: 0.2, by: entropy}"], "training.tokens.by"),
        (["training.tokens=0.2"], "training.tokens"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("demo-tiny", changes)
    assert load_recipe("demo-tiny", [*changes, "training.tokens=null"]).training.tokens is None
