"""The loss of two tokenizers: a divergence of classes, the likelihoods of chunks, and their gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from srd.models.head import HeadWeights, cross_entropy
from srd.models.tokenizers.alignment import NONE
from srd.training.loss.aligned_loss import EPSILON, TAU, Alignment, ClassMaps, chunk_divergence
from srd.training.loss.divergence import divergence
from srd.training.loss.response_loss import head_loss, logits_loss
from srd.training.loss.settings import LossSettings
from srd.training.tiers.base import make_tier

N, M, D = 7, 9, 5
TEACHER, STUDENT, COUNT = 13, 11, 6  # ids of each, and classes; number 6 is none of them


def maps() -> ClassMaps:
    teacher = torch.tensor([6, 0, 0, 1, 2, 2, 3, 4, 4, 4, 5, 6, 1])
    student = torch.tensor([0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 0])
    return ClassMaps(COUNT, teacher, student, (teacher == 4).double())


def given(seed: int = 0) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    alignment = Alignment(
        maps(),
        position=torch.tensor([0, NONE, 2, 5, NONE, 8, 7]),
        student_chunk=torch.tensor([NONE, 0, 0, NONE, 1, NONE, 2]),
        teacher_chunk=torch.tensor([NONE, 0, 0, 0, 1, 1, NONE, 2, NONE]),
        teacher_targets=torch.randint(TEACHER, (M,), generator=random),
    )
    return {
        "hidden": normal(N, D).requires_grad_(),
        "head": HeadWeights(normal(STUDENT, D).requires_grad_(), normal(STUDENT).requires_grad_(), 1.5, 3.0),
        "targets": torch.randint(STUDENT, (N,), generator=random),
        "reference": torch.tensor([1.0, 1, 0, 1, 0, 1, 1], dtype=torch.float64),
        "teacher_hidden": normal(M, D),
        "teacher_head": HeadWeights(normal(TEACHER, D)),
        "alignment": alignment,
    }


def by_hand(settings: LossSettings, made: dict[str, Any]) -> Tensor:
    """The whole loss by autograd, in plain words."""
    alignment = made["alignment"]
    head = made["head"]
    logits = 1.5 * (made["hidden"] @ head.weight.T + head.bias)
    logits = 3.0 * torch.tanh(logits / 3.0)
    log_q = logits.log_softmax(-1)
    log_p = (made["teacher_hidden"] @ made["teacher_head"].weight.T).log_softmax(-1)
    nats = -log_q.gather(-1, made["targets"][:, None])[:, 0]
    total = settings.ce_factor * (nats * made["reference"]).sum()
    own, other = (
        torch.stack([values[:, of == number].exp().sum(-1) for number in range(COUNT)], -1).log()
        for values, of in ((log_q, alignment.maps.student), (log_p, alignment.maps.teacher))
    )
    for place, position in enumerate(alignment.position.tolist()):
        if position != NONE:
            value = divergence(
                str(settings.objective), own[[place]], other[[position]],
                temperature=settings.temperature, **settings.parameters,
            )  # fmt: skip
            total = total + settings.kd_factor * value.sum()
    told = -log_p.gather(-1, alignment.teacher_targets[:, None])[:, 0]
    for number in range(alignment.chunks):
        a = -told[alignment.teacher_chunk == number].sum() / TAU - EPSILON
        b = -nats[alignment.student_chunk == number].sum() / TAU - EPSILON
        binary = a.exp() * (a - b) + (1 - a.exp()) * ((1 - a.exp()).log() - (1 - b.exp()).log())
        total = total + settings.weight * TAU * binary
    return total / 10


SETTINGS = [
    LossSettings("fkl"),
    LossSettings("srkl", {"alpha": 0.3}, temperature=2.0, weight=0.7),
    LossSettings("jsd", temperature=0.5, weight=0.25, scaling="all"),
    LossSettings("tvd", weight=0.5),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.objective)
@pytest.mark.parametrize("path", ["head", "logits"])
def test_value_and_gradient_are_autograds(settings: LossSettings, path: str) -> None:
    made, items = given(), torch.tensor(10.0, dtype=torch.float64)
    wanted = (made["hidden"], made["head"].weight, made["head"].bias)
    expected = by_hand(settings, made)
    gradients = torch.autograd.grad(expected, wanted)
    targets, hidden, head = made.pop("targets"), made.pop("hidden"), made.pop("head")
    if path == "head":
        loss, parts = head_loss(hidden, head, targets, settings, items, **made)
    else:
        logits = 3.0 * torch.tanh(1.5 * (hidden @ head.weight.T + head.bias) / 3.0)
        loss, parts = logits_loss(logits, STUDENT, targets, settings, items, **made)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(torch.autograd.grad(loss, wanted), gradients, rtol=1e-9, atol=1e-12)
    assert (parts.kd >= 0).all()
    assert parts.mass is not None and ((parts.mass >= 0) & (parts.mass <= 1)).all()


def test_rows_in_pieces_add_up() -> None:
    made, settings = given(), SETTINGS[1]
    everything, _ = head_loss(
        made["hidden"], made["head"], made["targets"], settings, torch.tensor(10.0),
        **{name: made[name] for name in ("teacher_hidden", "teacher_head", "reference", "alignment")},
    )  # fmt: skip
    total = torch.zeros((), dtype=torch.float64)
    for own, other in ((slice(0, 3), slice(0, 4)), (slice(3, 7), slice(4, 9))):  # two answers
        whole = made["alignment"]
        position = whole.position[own].clone()
        position[(position < other.start) | (position >= other.stop)] = NONE
        chunks = [chunk[rows] for chunk, rows in ((whole.student_chunk, own), (whole.teacher_chunk, other))]
        first = min(int(chunk[chunk != NONE].min()) for chunk in chunks)
        part = replace(
            whole, position=torch.where(position == NONE, NONE, position - other.start),
            student_chunk=torch.where(chunks[0] == NONE, NONE, chunks[0] - first),
            teacher_chunk=torch.where(chunks[1] == NONE, NONE, chunks[1] - first),
            teacher_targets=whole.teacher_targets[other],
        )  # fmt: skip
        loss, _ = head_loss(
            made["hidden"][own], made["head"], made["targets"][own], settings, torch.tensor(10.0),
            teacher_hidden=made["teacher_hidden"][other], teacher_head=made["teacher_head"],
            reference=made["reference"][own], alignment=part,
        )  # fmt: skip
        total = total + loss
    torch.testing.assert_close(total, everything)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.objective)
def test_classes_of_one_vocabulary_give_the_usual_loss(settings: LossSettings) -> None:
    made = given()
    same = torch.arange(STUDENT)
    made["teacher_head"] = HeadWeights(made["teacher_head"].weight[:STUDENT])
    made["teacher_hidden"] = made["teacher_hidden"][:N]
    made["alignment"] = Alignment(
        ClassMaps(STUDENT, same, same, torch.ones(STUDENT, dtype=torch.float64)),
        torch.arange(N), torch.full((N,), NONE), torch.full((N,), NONE), made["targets"],
    )  # fmt: skip
    wanted = (made["hidden"], made["head"].weight)
    first = [made.pop(name) for name in ("hidden", "head", "targets")]
    losses = []
    for alignment in (made.pop("alignment"), None):
        loss, parts = head_loss(*first, settings, torch.tensor(10.0), **made, alignment=alignment)
        losses.append((loss, parts.kd, *torch.autograd.grad(loss, wanted)))
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.objective)
def test_it_is_zero_where_the_classes_are_equal_and_only_there(settings: LossSettings) -> None:
    made = given()
    # The student says of each class what the teacher says, spread over other tokens.
    own = maps()
    log_p = (made["teacher_hidden"] @ made["teacher_head"].weight.T).log_softmax(-1)
    sums = torch.stack([log_p[:, own.teacher == number].exp().sum(-1) for number in range(COUNT)], -1)
    shares = torch.rand(STUDENT, dtype=torch.float64)
    totals = torch.zeros(COUNT + 1, dtype=torch.float64).index_add_(0, own.student, shares)
    logits = sums @ torch.eye(COUNT, COUNT + 1, dtype=torch.float64)[:, own.student] * shares / totals[own.student]
    logits = logits.clamp(min=1e-9).log()[made["alignment"].position.clamp(min=0)]
    alignment = replace(made["alignment"], student_chunk=torch.full((N,), NONE), teacher_chunk=torch.full((M,), NONE))
    made = {**made, "alignment": alignment}
    only = replace(settings, weight=1.0)
    for shift, equal in ((0.0, True), (0.3, False)):
        logits[:, 3] += shift
        _, parts = logits_loss(logits, STUDENT, made["targets"], only, torch.tensor(1.0), **{
            name: made[name] for name in ("teacher_hidden", "teacher_head", "alignment")})  # fmt: skip
        used = alignment.position != NONE
        assert (parts.kd[~used] == 0).all()
        assert bool((parts.kd[used] < 1e-9).all()) == equal
        assert bool((parts.kd[used] > 1e-6).all()) != equal


def test_likelihoods_of_chunks_are_equal_or_cost_something() -> None:
    own = torch.tensor([-0.0, -1e-4, -2.0, -30.0, -500.0], dtype=torch.float64)
    value, slope = chunk_divergence(own, own)
    torch.testing.assert_close(value, torch.zeros_like(own), rtol=0, atol=1e-9)
    torch.testing.assert_close(slope, torch.zeros_like(own), rtol=0, atol=1e-9)
    for step in (-0.5, -2.0):
        value, slope = chunk_divergence(own, own + step)
        assert (value > 0).all() and (slope < 0).all()  # a likelier chunk lowers it
    value, _ = chunk_divergence(own[2:3], own[2:3] - 1)
    assert abs(float(value) - (2 * torch.log(torch.tensor(2 / 3)).item() + 1)) < 0.02  # in nats, like its tokens


@pytest.mark.parametrize("path", ["head", "logits"])
def test_likelihoods_that_were_told_serve_chunks_as_states_do(path: str) -> None:
    """Of a teacher that is known by the log-probability of each token of the text alone."""
    made = given()
    made["alignment"] = replace(made["alignment"], position=torch.full((N,), NONE))
    targets, items = made.pop("targets"), torch.tensor(10.0, dtype=torch.float64)
    own = cross_entropy(made["teacher_hidden"], made["teacher_head"], made["alignment"].teacher_targets)
    tier = make_tier("likelihood")
    rows = tier.unpack({"target": -own}, made["alignment"].teacher_targets.tolist(), {})
    wanted, found = (made["hidden"], made["head"].weight), []
    for hidden, head in ((made["teacher_hidden"], made["teacher_head"]), (rows, tier.head(None, TEACHER))):
        told = {**made, "teacher_hidden": hidden, "teacher_head": head}
        student, own_head = told.pop("hidden"), told.pop("head")
        settings = LossSettings("fkl", weight=0.7)
        if path == "head":
            loss, parts = head_loss(student, own_head, targets, settings, items, **told)
        else:
            logits = 3.0 * torch.tanh(1.5 * (student @ own_head.weight.T + own_head.bias) / 3.0)
            loss, parts = logits_loss(logits, STUDENT, targets, settings, items, **told)
        found.append((loss, parts.ce, parts.kd, *torch.autograd.grad(loss, wanted)))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)  # they are kept in float32
    assert (found[0][2] > 0).sum() == 4


def test_a_batch_without_positions_can_still_be_differentiated() -> None:
    made = given()
    nothing = torch.zeros(0, dtype=torch.long)
    alignment = Alignment(maps(), nothing, nothing, nothing, nothing)
    loss, _ = head_loss(
        made["hidden"][:0], made["head"], nothing, SETTINGS[0], torch.tensor(1.0),
        teacher_hidden=made["teacher_hidden"][:0], teacher_head=made["teacher_head"], alignment=alignment,
    )  # fmt: skip
    loss.backward()
    assert float(loss.detach()) == 0
