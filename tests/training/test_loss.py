"""The fused loss against plain float64 formulas: value, gradient, masks, chunks, padding rows, memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import srd
from srd.base.errors import RunError, UserError
from srd.models.head import HeadWeights
from srd.training.divergences.base import loss_scale
from srd.training.loss import chunks, row_losses
from srd.training.loss.response_loss import head_loss, logits_loss
from srd.training.loss.settings import LossSettings
from tests.runs import in_turn
from tests.training.test_divergences import NAMES, naive

CONVENTIONS = ("paper", "all", "none")


@dataclass
class Problem:
    """Random hidden states, heads and targets, in float64."""

    hidden: Tensor
    head: HeadWeights
    targets: Tensor
    teacher_hidden: Tensor
    teacher_head: HeadWeights
    reference: Tensor
    items: Tensor

    def in_dtype(self, dtype: torch.dtype) -> Problem:
        """The same numbers, rounded."""

        def cast(head: HeadWeights) -> HeadWeights:
            bias = None if head.bias is None else head.bias.to(dtype)
            return replace(head, weight=head.weight.to(dtype), bias=bias)

        return replace(
            self, hidden=self.hidden.to(dtype), head=cast(self.head), teacher_hidden=self.teacher_hidden.to(dtype),
            teacher_head=cast(self.teacher_head), reference=self.reference.to(dtype),
        )  # fmt: skip


def make_problem(
    tokens: int = 11, *, vocabulary: int = 37, rows: int | None = None, teacher_rows: int | None = None, seed: int = 0,
    bias: bool = False, scale: float = 1.0, softcap: float | None = None,
) -> Problem:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student_rows, teacher_rows = rows or vocabulary, teacher_rows or vocabulary
    head = HeadWeights(normal(student_rows, 8), normal(student_rows) if bias else None, scale, softcap, vocabulary)
    teacher_head = HeadWeights(normal(teacher_rows, 12) * 0.7, None, 1.0, softcap, vocabulary)
    return Problem(
        hidden=normal(tokens, 8),
        head=head,
        targets=torch.randint(vocabulary, (tokens,), generator=generator),
        teacher_hidden=normal(tokens, 12),
        teacher_head=teacher_head,
        reference=torch.ones(tokens, dtype=torch.float64),
        items=torch.tensor(2 * tokens + 1),
    )


def plain_logits(hidden: Tensor, head: HeadWeights) -> Tensor:
    """Logits of the ids that count, by the definition of a head."""
    weight, bias = head.weight.double(), None if head.bias is None else head.bias.double()
    logits = hidden.double() @ weight.T
    logits = head.scale * (logits if bias is None else logits + bias)
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits[:, : head.width]


def plain_loss(logits: Tensor, problem: Problem, settings: LossSettings) -> Tensor:
    """(1-w)·CE·c + w·s·D summed over tokens, divided by the items, in float64 with autograd."""
    logits = logits.double()
    ce = -torch.log_softmax(logits, -1).gather(-1, problem.targets[:, None])[:, 0] * problem.reference.double()
    if settings.objective is None:
        return ce.sum() / problem.items
    teacher = plain_logits(problem.teacher_hidden, problem.teacher_head)
    teacher = settings.teacher_share * teacher + (1 - settings.teacher_share) * logits.detach()
    share = next(iter(settings.parameters.values()), None)
    kd = naive(settings.objective, logits, teacher, settings.temperature, share)
    scale = loss_scale(settings.objective, settings.temperature, settings.scaling)
    return ((1 - settings.weight) * ce + settings.weight * scale * kd).sum() / problem.items


def leaves(problem: Problem) -> list[Tensor]:
    """What gets a gradient."""
    tensors = [problem.hidden, problem.head.weight, problem.head.bias]
    return [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]


def with_gradient(problem: Problem) -> Problem:
    """Fresh leaves that want gradients."""
    head = problem.head
    bias = None if head.bias is None else head.bias.detach().clone().requires_grad_()
    return replace(
        problem,
        hidden=problem.hidden.detach().clone().requires_grad_(),
        head=replace(head, weight=head.weight.detach().clone().requires_grad_(), bias=bias),
    )


def ours(problem: Problem, settings: LossSettings) -> tuple[Tensor, Any]:
    return head_loss(
        problem.hidden, problem.head, problem.targets, settings, problem.items,
        teacher_hidden=problem.teacher_hidden, teacher_head=problem.teacher_head, reference=problem.reference,
    )  # fmt: skip


def relative_error(value: Tensor | None, expected: Tensor | None) -> float:
    assert value is not None and expected is not None
    return float((value.double() - expected).norm() / expected.norm().clamp(min=1e-12))


def compare(problem: Problem, settings: LossSettings, tolerance: float, upstream: float = 1.0) -> None:
    """Value and every gradient, of the head loss and of the logits loss, against the plain formula."""
    one, two = with_gradient(problem), with_gradient(problem.in_dtype(torch.float64))
    value, _ = ours(one, settings)
    expected = plain_loss(plain_logits(two.hidden, two.head), two, settings)
    assert abs(float(value.detach()) - float(expected.detach())) <= tolerance * max(abs(float(expected.detach())), 1e-3)
    (value * upstream).backward()
    (expected * upstream).backward()
    for mine, theirs in zip(leaves(one), leaves(two), strict=True):
        assert relative_error(mine.grad, theirs.grad) < tolerance
        assert mine.grad is not None and mine.grad.dtype == mine.dtype


def settings_of(
    name: str | None, temperature: float = 1.0, weight: float = 1.0, scaling: str = "paper"
) -> LossSettings:
    return LossSettings(name, {}, temperature, weight, scaling)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient(name: str, temperature: float) -> None:
    """All weights and conventions, in float32 (1e-5) and float64 (1e-9), some tokens without cross-entropy."""
    problem = make_problem()
    problem.reference[::3] = 0
    for weight, scaling in itertools.product((0.0, 0.5, 0.8, 1.0), CONVENTIONS):
        settings = settings_of(name, temperature, weight, scaling)
        compare(problem.in_dtype(torch.float32), settings, 1e-5)
        compare(problem, settings, 1e-9)


@pytest.mark.parametrize(("name", "share"), [("jsd", 0.1), ("sfkl", 0.5), ("srkl", 0.0), ("srkl", 0.7)])
def test_parameters_reach_the_divergence(name: str, share: float) -> None:
    settings = LossSettings(name, {"lam" if name == "jsd" else "alpha": share}, 2.0, 0.7)
    compare(make_problem().in_dtype(torch.float32), settings, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_between_the_two(name: str) -> None:
    """The student within the target is a constant; the target at share 0 is the student itself."""
    for share, weight, temperature in ((0.4, 1.0, 1.0), (0.8, 0.6, 2.0)):
        settings = LossSettings(name, {}, temperature, weight, teacher_share=share)
        compare(make_problem(), settings, 1e-9)
    itself = make_problem().in_dtype(torch.float32)
    assert ours(itself, LossSettings(name, teacher_share=0.0))[0].abs() < 1e-6


@pytest.mark.parametrize("name", [None, "fkl", "srkl"])
@pytest.mark.parametrize(
    "head",
    [{"bias": True}, {"softcap": 2.5}, {"scale": 0.3}, {"bias": True, "scale": 0.4, "softcap": 4.0}],
    ids=["bias", "softcap", "scale", "all"],
)
def test_what_heads_do_after_the_product(name: str | None, head: dict[str, Any]) -> None:
    problem = make_problem(**head)
    compare(problem, settings_of(name, 1.5, 0.6), 1e-9)
    compare(problem.in_dtype(torch.float32), settings_of(name, 1.5, 0.6), 1e-5)


def test_cross_entropy_equals_torchs_own() -> None:
    problem = make_problem().in_dtype(torch.float32)
    value, parts = ours(problem, LossSettings())
    logits = plain_logits(problem.hidden, problem.head).float()
    expected = torch.nn.functional.cross_entropy(logits, problem.targets, reduction="none")
    torch.testing.assert_close(parts.ce, expected)
    torch.testing.assert_close(value, expected.sum() / problem.items)
    assert (parts.kd == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_rows_neither_receive_nor_send(name: str) -> None:
    """Surplus rows of either head get exactly no gradient, and whatever is in them changes nothing."""
    problem = make_problem(rows=45, teacher_rows=41, bias=True).in_dtype(torch.float32)
    wild = replace(
        problem,
        head=replace(problem.head, weight=problem.head.weight.clone(), bias=problem.head.bias),
        teacher_head=replace(problem.teacher_head, weight=problem.teacher_head.weight.clone()),
    )
    wild.head.weight[37:] = 1e4
    wild.teacher_head.weight[37:] = torch.nan
    one, two = with_gradient(problem), with_gradient(wild)
    values = [ours(item, settings_of(name, 2.0, 0.7))[0] for item in (one, two)]
    assert values[0] == values[1]
    for value in values:
        value.backward()
    for mine, theirs in zip(leaves(one), leaves(two), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
    assert one.head.weight.grad is not None and one.head.bias is not None and one.head.bias.grad is not None
    assert (one.head.weight.grad[37:] == 0).all() and (one.head.bias.grad[37:] == 0).all()
    narrow = replace(problem, head=replace(problem.head, weight=problem.head.weight[:37], bias=problem.head.bias[:37]))
    assert ours(narrow, settings_of(name, 2.0, 0.7))[0] == values[0]


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_is_the_same_loss(name: str) -> None:
    """Where the head is out of reach: the same value, and the gradient of the logits of the ids that count."""
    problem = make_problem(rows=45)
    problem.reference[::4] = 0
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        logits = (problem.hidden @ problem.head.weight.T).to(dtype).requires_grad_()
        exact = logits.detach().double().requires_grad_()
        settings = settings_of(name, 2.0, 0.6)
        cast = problem.in_dtype(dtype)
        value, parts = logits_loss(
            logits, 37, problem.targets, settings, problem.items,
            teacher_hidden=cast.teacher_hidden, teacher_head=cast.teacher_head, reference=cast.reference,
        )  # fmt: skip
        expected = plain_loss(exact[:, :37], cast, settings)
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        assert len(parts.ce) == len(parts.kd) == 11
        (3 * value).backward()
        (3 * expected).backward()
        assert relative_error(logits.grad, exact.grad) < tolerance
        assert logits.grad is not None and (logits.grad[:, 37:] == 0).all()


@pytest.mark.parametrize("name", [None, "fkl", "srkl"])
def test_positions_count_what_they_are_told(name: str | None) -> None:
    """Value and gradient are those of a sum of the losses of the single positions, each times its weight."""
    problem, settings = make_problem(bias=True), settings_of(name, 2.0, 0.6)
    problem.reference[::3] = 0
    weights = torch.linspace(0, 2, 11, dtype=torch.float64)

    def alone(made: Problem, at: int) -> Tensor:
        rows = slice(at, at + 1)
        one = replace(made, hidden=made.hidden[rows], targets=made.targets[rows], reference=made.reference[rows],
                      teacher_hidden=made.teacher_hidden[rows])  # fmt: skip
        return plain_loss(plain_logits(one.hidden, one.head), one, settings)

    mine, theirs = with_gradient(problem), with_gradient(problem)
    given = {"teacher_hidden": problem.teacher_hidden, "teacher_head": problem.teacher_head, "weights": weights,
             "reference": problem.reference}  # fmt: skip
    value, _ = head_loss(mine.hidden, mine.head, problem.targets, settings, problem.items, **given)
    expected = sum((weights[at] * alone(theirs, at) for at in range(11)), torch.zeros((), dtype=torch.float64))
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    value.backward()
    expected.backward()
    for one, two in zip(leaves(mine), leaves(theirs), strict=True):
        assert relative_error(one.grad, two.grad) < 1e-9
    logits = plain_logits(problem.hidden, problem.head).requires_grad_()
    again, _ = logits_loss(logits, 37, problem.targets, settings, problem.items, **given)
    assert float(again.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize("name", [None, "fkl"])
def test_no_tokens_give_a_differentiable_zero(name: str | None) -> None:
    problem = with_gradient(make_problem(tokens=0, bias=True).in_dtype(torch.float32))
    value, parts = ours(problem, settings_of(name, weight=0.5))
    value.backward()
    assert value == 0 and len(parts.ce) == len(parts.kd) == 0
    for leaf in leaves(problem):
        assert leaf.grad is not None and (leaf.grad == 0).all()
    logits = torch.zeros(0, 37, requires_grad=True)
    value, _ = logits_loss(
        logits, 37, problem.targets, settings_of(name), problem.items,
        teacher_hidden=problem.teacher_hidden, teacher_head=problem.teacher_head,
    )  # fmt: skip
    value.backward()
    assert value == 0 and logits.grad is not None and logits.grad.shape == (0, 37)


@pytest.mark.parametrize("reference", [0.0, 1.0])
def test_student_text_has_no_cross_entropy(reference: float) -> None:
    problem = make_problem().in_dtype(torch.float32)
    problem = with_gradient(replace(problem, reference=torch.full_like(problem.reference, reference)))
    value, parts = ours(problem, settings_of("fkl", weight=0.4))
    only_kd = 0.4 * parts.kd.sum() / problem.items
    assert (parts.ce == 0).all() == (reference == 0)
    assert torch.isclose(value, only_kd) == (reference == 0)
    compare(problem, settings_of("fkl", weight=0.4), 1e-5)


def test_a_fully_masked_batch_without_divergence_has_no_gradient() -> None:
    problem = make_problem().in_dtype(torch.float32)
    problem = with_gradient(replace(problem, reference=torch.zeros(11)))
    value, _ = ours(problem, LossSettings())
    value.backward()
    assert value == 0
    assert all((leaf.grad == 0).all() for leaf in leaves(problem) if leaf.grad is not None)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 11, 100])
def test_chunks_and_blocks_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(softcap=3.0, bias=True)
    for block in (1, 2, rows):
        monkeypatch.setattr(chunks, "CHUNK_BYTES", rows * 37 * 4)
        monkeypatch.setattr(row_losses, "BLOCK_BYTES", block * 37 * 8)
        for name in (None, "jsd"):
            compare(problem, settings_of(name, 2.0, 0.5), 1e-9)


def test_chunks_are_of_equal_size_and_within_the_limit() -> None:
    for tokens, vocabulary in itertools.product((1, 7, 250, 251, 10_000), (100, 50_000, 256_000)):
        rows = chunks.chunk_rows(vocabulary, tokens)
        parts = -(-tokens // rows)
        assert rows == 1 or rows * vocabulary * 4 <= chunks.CHUNK_BYTES
        assert parts * rows - tokens < parts


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What traces and writes graphs, without the kernels, which take long to make."""
    make = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: make(function, backend="aot_eager"))
    row_losses.compiled_losses.cache_clear()
    yield
    row_losses.compiled_losses.cache_clear()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "settings",
    [LossSettings("srkl", temperature=2.0, weight=0.6), pytest.param(LossSettings(), marks=pytest.mark.slow)],
)
def test_compiled_it_is_the_same_loss(settings: LossSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem().in_dtype(torch.float32)
    monkeypatch.setattr(row_losses, "BLOCK_BYTES", 5 * 37 * 4)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compare(problem, replace(settings, compiled=True), 1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert 1 <= graphs <= 2, "one for a single row, and one for any other number: none was broken in two"
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.usefixtures("compiler")
def test_which_number_of_rows_comes_first_changes_no_graph() -> None:
    """A training that goes on after a kill meets other batches first, and must round as one that was not stopped."""
    stats = torch._dynamo.utils.counters["stats"]
    before, found = stats["unique_graphs"], []
    for count in (7, 5, 9):
        problem = make_problem(count).in_dtype(torch.float32)
        found.append(ours(problem, LossSettings("rkl", weight=0.6, compiled=True)))
    assert stats["unique_graphs"] == before + 1 and len(found) == 3


@pytest.mark.usefixtures("compiler")
def test_a_divergence_below_0_is_told_of_when_it_is_compiled_too() -> None:
    def negative(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        return (log_p.exp() * (log_q - log_p)).sum(-1)

    srd.register_divergence("below_0_of_a_test")(negative)
    problem = make_problem().in_dtype(torch.float32)
    for compiled in (False, True):
        with pytest.raises(UserError, match=r"'negative' is negative at \d+ of \d+ positions"):
            ours(problem, LossSettings("below_0_of_a_test", weight=0.6, compiled=compiled))


def test_a_machine_that_cannot_compile_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler was found\nmore")

    monkeypatch.setattr(torch, "compile", lambda function: fails)
    row_losses.compiled_losses.cache_clear()
    with pytest.raises(RunError, match=r"fails on this machine \(no C\+\+ compiler was found\).*training.compile=off"):
        ours(make_problem(), LossSettings("fkl", compiled=True))
    row_losses.compiled_losses.cache_clear()


@pytest.mark.slow
def test_kernels_give_the_same_loss() -> None:
    compare(make_problem().in_dtype(torch.float32), LossSettings("fkl", weight=0.6, compiled=True), 1e-5)


@pytest.mark.parametrize("upstream", [2.0, 0.25, -1.0])
def test_upstream_gradients_multiply(upstream: float) -> None:
    compare(make_problem(bias=True), settings_of("rkl", weight=0.5), 1e-9, upstream)


def test_a_second_backward_pass_is_refused_rather_than_wrong() -> None:
    """Gradients are scaled where they lie, to save a copy of the head, so a graph serves once."""
    problem = with_gradient(make_problem())
    value, _ = ours(problem, settings_of("fkl"))
    torch.autograd.grad(3 * value, leaves(problem), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(3 * value, leaves(problem))


def test_a_frozen_head_gets_no_gradient() -> None:
    """LoRA trains neither head nor embedding: only hidden states carry a gradient."""
    problem = make_problem().in_dtype(torch.float32)
    full, frozen = with_gradient(problem), replace(problem, hidden=problem.hidden.clone().requires_grad_())
    for item in (full, frozen):
        ours(item, settings_of("fkl", weight=0.5))[0].backward()
    assert frozen.head.weight.grad is None
    assert torch.equal(frozen.hidden.grad, full.hidden.grad)  # type: ignore[arg-type]


def test_frozen_hidden_states_get_no_gradient() -> None:
    problem = make_problem().in_dtype(torch.float32)
    weight = problem.head.weight.clone().requires_grad_()
    ours(replace(problem, head=replace(problem.head, weight=weight)), settings_of("fkl"))[0].backward()
    assert weight.grad is not None and problem.hidden.grad is None


def test_without_gradients_nothing_is_kept() -> None:
    problem = with_gradient(make_problem().in_dtype(torch.float32))
    before = problem.hidden.detach().clone(), problem.teacher_hidden.clone()
    with torch.no_grad():
        value, _ = ours(problem, settings_of("jsd", 2.0, 0.5))
    assert not value.requires_grad
    torch.testing.assert_close(value, ours(problem, settings_of("jsd", 2.0, 0.5))[0].detach())
    assert torch.equal(problem.hidden.detach(), before[0]) and torch.equal(problem.teacher_hidden, before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [None, "fkl", "rkl", "srkl"])
def test_half_precision(name: str | None, dtype: torch.dtype) -> None:
    """Weights and states in half precision: the product rounds, softmax and divergence are float32."""
    problem = with_gradient(make_problem().in_dtype(dtype))
    exact = with_gradient(problem.in_dtype(torch.float64))
    settings = settings_of(name, 2.0, 0.7)
    value, _ = ours(problem, settings)
    expected = plain_loss(plain_logits(exact.hidden, exact.head), exact, settings)
    assert value.dtype == torch.float32
    tolerance = 4 * torch.finfo(dtype).eps
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    value.backward()
    expected.backward()
    for mine, theirs in zip(leaves(problem), leaves(exact), strict=True):
        assert mine.grad is not None and mine.grad.dtype == dtype
        assert relative_error(mine.grad, theirs.grad) < 2 * tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_logits_in_half_precision_lose_nothing_more(name: str, dtype: torch.dtype) -> None:
    """From half-precision logits on, value and gradient are those of the float64 formula."""
    problem = make_problem().in_dtype(torch.float32)
    logits = (problem.hidden @ problem.head.weight.T).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    value, _ = logits_loss(
        logits, 37, problem.targets, settings_of(name, 2.0, 0.7), problem.items,
        teacher_hidden=problem.teacher_hidden, teacher_head=problem.teacher_head,
    )  # fmt: skip
    expected = plain_loss(exact, problem, settings_of(name, 2.0, 0.7))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    value.backward()
    expected.backward()
    assert relative_error(logits.grad, exact.grad) < torch.finfo(dtype).eps  # its own rounding


def flat_problem() -> Problem:
    """Near-uniform distributions over a wide vocabulary and many tokens, as large steps of a young student have."""
    problem = make_problem(512, vocabulary=8000, seed=4)
    heads = [replace(head, weight=0.02 * head.weight) for head in (problem.head, problem.teacher_head)]
    return replace(problem, head=heads[0], teacher_head=heads[1], items=torch.tensor(16_384))


@pytest.mark.parametrize("way", ["head", "autocast states", "within autocast", "logits"])
@pytest.mark.parametrize("dtype", in_turn([torch.float16, torch.bfloat16], torch.float16))
def test_half_precision_keeps_the_scale_of_gradients(dtype: torch.dtype, way: str) -> None:
    """Norm and direction are float32's, also where an entry of the gradient is below float16's smallest number."""
    problem, settings = flat_problem().in_dtype(torch.float32), settings_of("fkl", 2.0)
    exact = with_gradient(problem)
    ours(exact, settings)[0].backward()
    rounded = problem.in_dtype(dtype)
    problem = {
        "head": rounded, "logits": rounded, "autocast states": replace(problem, hidden=rounded.hidden)
    }.get(way, problem)  # fmt: skip
    problem = with_gradient(problem)
    with torch.autocast("cpu", dtype, enabled=way == "within autocast"):
        if way == "logits":
            logits = problem.hidden @ problem.head.weight.T
            value, _ = logits_loss(
                logits, 8000, problem.targets, settings, problem.items,
                teacher_hidden=problem.teacher_hidden, teacher_head=problem.teacher_head,
            )  # fmt: skip
        else:
            value, _ = ours(problem, settings)
    (value * 65_536).backward()  # GradScaler's first factor
    for mine, theirs in zip(leaves(problem), leaves(exact), strict=True):
        assert mine.grad is not None and theirs.grad is not None and mine.grad.dtype == mine.dtype
        found, wanted = mine.grad.double().flatten() / 65_536, theirs.grad.double().flatten()
        assert float(found.norm() / wanted.norm()) == pytest.approx(1, abs=0.01)
        assert torch.cosine_similarity(found, wanted, 0) > 0.999


def test_autocast_states_with_float32_weights() -> None:
    """Under autocast hidden states are bfloat16 and weights float32: the gradient of the weights stays float32."""
    problem = make_problem().in_dtype(torch.float32)
    problem = with_gradient(replace(problem, hidden=problem.hidden.bfloat16()))
    exact = with_gradient(problem.in_dtype(torch.float64))
    value, _ = ours(problem, settings_of("fkl", weight=0.5))
    expected = plain_loss(plain_logits(exact.hidden, exact.head), exact, settings_of("fkl", weight=0.5))
    assert float(value) == pytest.approx(float(expected), rel=0.02)
    value.backward()
    expected.backward()
    assert problem.head.weight.grad is not None and problem.head.weight.grad.dtype == torch.float32
    assert relative_error(problem.head.weight.grad, exact.head.weight.grad) < 0.03
    assert relative_error(problem.hidden.grad, exact.hidden.grad) < 0.03


def test_teacher_and_student_may_differ_in_precision() -> None:
    problem = make_problem().in_dtype(torch.float32)
    rounded = problem.in_dtype(torch.bfloat16)
    mixed = replace(problem, teacher_hidden=rounded.teacher_hidden, teacher_head=rounded.teacher_head)
    value, _ = ours(mixed, settings_of("fkl"))
    assert float(value) == pytest.approx(float(ours(problem, settings_of("fkl"))[0]), rel=0.05)


@pytest.mark.parametrize("kind", ["order", "split"])
def test_sums_over_tokens_do_not_depend_on_order_or_split(kind: str) -> None:
    problem = make_problem(tokens=12)
    whole = with_gradient(problem)
    ours(whole, settings_of("jsd", 2.0, 0.5))[0].backward()
    groups = torch.randperm(12, generator=torch.Generator().manual_seed(1)).split(12 if kind == "order" else 5)
    parts = with_gradient(problem)
    for rows in groups:
        chosen = replace(
            parts, hidden=parts.hidden[rows], targets=parts.targets[rows],
            teacher_hidden=parts.teacher_hidden[rows], reference=parts.reference[rows],
        )  # fmt: skip
        ours(chosen, settings_of("jsd", 2.0, 0.5))[0].backward()
    for one, two in zip(leaves(whole), leaves(parts), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-10, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest float tensor that any operation returned, and how many of that size lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("name", [None, *NAMES])
def test_memory_does_not_grow_with_tokens_times_vocabulary(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocabulary, rows = 96, 501, 8  # as many rows in a chunk as hidden states are wide
    monkeypatch.setattr(chunks, "CHUNK_BYTES", rows * vocabulary * 4)
    problem = with_gradient(make_problem(tokens, vocabulary=vocabulary, softcap=5.0).in_dtype(torch.float32))
    with LargestTensor() as seen:
        ours(problem, settings_of(name, 2.0, 0.5))[0].backward()
    assert seen.elements == vocabulary * (12 if name else rows)  # the teacher's head itself, or one chunk
    assert seen.elements < tokens * vocabulary / 7


def test_the_logits_loss_adds_no_float32_copy_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocabulary, rows = 96, 501, 8
    monkeypatch.setattr(chunks, "CHUNK_BYTES", rows * vocabulary * 4)
    problem = make_problem(tokens, vocabulary=vocabulary).in_dtype(torch.float32)
    logits = (problem.hidden @ problem.head.weight.T).bfloat16().requires_grad_()

    class LargestFloat32(LargestTensor):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                self.elements = max(self.elements, result.numel())
            return result

    with LargestFloat32() as seen:
        logits_loss(
            logits, vocabulary, problem.targets, settings_of("fkl"), problem.items,
            teacher_hidden=problem.teacher_hidden, teacher_head=problem.teacher_head,
        )[0].backward()  # fmt: skip
    assert seen.elements <= max(rows * vocabulary, vocabulary * 12)
