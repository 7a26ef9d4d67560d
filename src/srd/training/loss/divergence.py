"""A divergence of two models' logits, with its gradient in closed form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from srd.base.errors import UserError
from srd.base.limits import temperature_problem
from srd.training.divergences.base import DIVERGENCES, check_parameters

ValueAndSlope = tuple[Tensor, Tensor]
SlopeFunction = Callable[..., ValueAndSlope]
SLACK = 0.01  # nats below 0 that rounding may leave


def slope_function(name: str) -> SlopeFunction:
    """What gives a divergence and its slope of log-probabilities."""
    known = DIVERGENCES.get(name)
    return known.function if known.gives_slope else partial(_by_autograd, known.function)


def evaluate(function: SlopeFunction, log_p: Tensor, log_q: Tensor, given: dict[str, Any]) -> ValueAndSlope:
    """A divergence ``[N]`` of log-probabilities ``[N, V]`` and its slope; masked ids (-inf in both) contribute nothing.

    ``given`` are its parameters: numbers, or what differs from row to row ``[N, 1]``.

    0 · (−∞ − (−∞)) is NaN in floating point where the divergence's limit is 0. Masks are rare, so the plain form is
    evaluated first and the few rows' NaN, if any, lead to the careful form. Compiled, the careful form costs nothing,
    and to ask would: what is below 0 is then left so, for `check_compiled`.
    """
    compiled = torch.compiler.is_compiling()
    value, slope = (log_p, log_p) if compiled else _two(function, function(log_p, log_q, **given), log_p)
    if compiled or not ((value > -SLACK) & (value < torch.inf)).all():  # nor NaN
        lowest = _lowest(log_p)
        value, slope = function(log_p.clamp(min=lowest), log_q.clamp(min=lowest), **given)
        if not compiled:
            _check_sound(function, value, log_p, log_q)
        value = value.masked_fill(value > 1e12, float("inf"))  # mass where the other has none
    return value if compiled else value.clamp_(min=0), slope


def check_compiled(function: SlopeFunction, value: Tensor) -> Tensor:
    """What a compiled divergence has given, at least 0.

    Raises:
        UserError: it is negative. One that gives its own slope, as ours do, is trusted: to look makes a GPU wait.
    """
    if isinstance(function, partial):
        _check_not_negative(function, value)
    return value.clamp_(min=0)


def _lowest(like: Tensor) -> float:
    """What stands for minus infinity where a number is needed."""
    return torch.finfo(like.dtype).min / 1e6


def _by_autograd(function: Callable[..., Tensor], log_p: Tensor, log_q: Tensor, **parameters: float) -> ValueAndSlope:
    with torch.enable_grad():
        variable = log_q.detach().requires_grad_()
        value = function(log_p, variable, **parameters)
        if not isinstance(value, Tensor) or value.shape != log_p.shape[:-1] or not value.requires_grad:
            found = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"the divergence {getattr(function, '__name__', function)!r} gives {found} for logits "
                f"{list(log_p.shape)}: expected a tensor {list(log_p.shape[:-1])} that follows from log_q, its second "
                "argument, so that it has a gradient."
            )
        (slope,) = torch.autograd.grad(value.sum(), variable)
    slope = slope.masked_fill((log_p <= _lowest(log_p)) & (log_q <= _lowest(log_p)), 0.0)  # ids that both mask
    unsound = ~slope.isfinite().all(-1)  # as the square root at 0: its value is sound, and its slope is not
    return value.detach().masked_fill(unsound, torch.nan), slope


def _two(function: SlopeFunction, found: Any, log_p: Tensor) -> ValueAndSlope:
    """What a divergence has given, where it is a value and a slope."""
    wanted = [log_p.shape[:-1], log_p.shape]
    if not isinstance(found, tuple) or [getattr(each, "shape", None) for each in found] != wanted:
        raise UserError(
            f"the divergence {_title(function)!r} has gives_slope=True: it must give a value {list(wanted[0])} "
            f"and a slope {list(wanted[1])}, as a pair. Leave gives_slope out where it gives the value alone."
        )
    return found[0], found[1]


def _title(function: SlopeFunction) -> str:
    written = function.args[0] if isinstance(function, partial) else function
    return str(getattr(written, "__name__", written))


def _check_sound(function: SlopeFunction, value: Tensor, log_p: Tensor, log_q: Tensor) -> None:
    """Refuse NaN that the divergence itself has made of sound distributions, and values below 0."""
    _check_not_negative(function, value)
    bad = value.isnan() & ~log_p.isnan().any(-1) & ~log_q.isnan().any(-1)
    if bool(bad.any()):
        raise UserError(
            f"the divergence {_title(function)!r} gives NaN, or a gradient that is not finite, at {int(bad.sum())} of "
            f"{len(bad)} positions, where teacher and student are sound. A root or a logarithm of 0 does that, also "
            "behind a clamp at 0: add a small number under it, as in (x.clamp(min=0) + 1e-12).sqrt()."
        )


def _check_not_negative(function: SlopeFunction, value: Tensor) -> None:
    negative = value <= -SLACK
    if bool(negative.any()):
        raise UserError(
            f"the divergence {_title(function)!r} is negative at {int(negative.sum())} of {len(value)} positions (down "
            f"to {float(value.min()):.3g}). It must be 0 where teacher and student agree, and more elsewhere: its loss "
            "would be shown as 0. Look at its sign, or add a constant."
        )


class _DivergenceFunction(torch.autograd.Function):
    """`divergence` with its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, name: str, temperature: float, parameters: Any) -> Tensor:
        log_q = torch.log_softmax(student / temperature, -1)
        log_p = torch.log_softmax(teacher / temperature, -1)
        value, slope = evaluate(slope_function(name), log_p, log_q, parameters)
        ctx.save_for_backward(log_q, slope)
        ctx.temperature = temperature
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        log_q, slope = ctx.saved_tensors
        gradient = (slope - log_q.exp() * slope.sum(-1, keepdim=True)) / ctx.temperature
        return gradient * grad_outputs[0].unsqueeze(-1), None, None, None, None


def divergence(
    name: str, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, **parameters: float
) -> Tensor:
    """Divergence of two next-token distributions, row by row, without reduction and without T squared.

    Args:
        name: ``fkl``, ``rkl``, ``jsd``, ``tvd``, ``sfkl``, ``srkl``, ``ab``, ``akl``, one that you registered, or a
            name of the paper's scripts (method: arXiv 2508.06135; see `srd.training.divergences` for each formula and
            its source).
        student_logits: ``[N, V]``, differentiable.
        teacher_logits: ``[N, V]``, taken as a constant.
        temperature: Both logits are divided by it.
        **parameters: ``lam`` of jsd (0.9), ``alpha`` of sfkl and srkl (0.1), ``alpha`` and ``beta`` of ab (0.2, 0.7),
            ``mu`` of akl (0.5).

    Returns:
        ``[N]`` in nats, at least 0; float64 for float64 logits, else float32.

    Raises:
        UserError: unknown name or parameter, a temperature out of range, logits of another kind, NaN, or shapes
            that differ.

    >>> logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    >>> divergence("srkl", logits, logits).tolist()
    [0.0, 0.0]
    """
    name = DIVERGENCES.name_of(name)
    check_parameters(name, parameters)
    if problem := temperature_problem(temperature):
        raise UserError(f"temperature is {temperature}, but it {problem}")
    for owner, logits in (("student", student_logits), ("teacher", teacher_logits)):
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.is_complex():
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"the {owner}'s logits are {found}; expected a torch tensor [N, V] of real numbers.")
        if bool((logits.isnan() | logits.isposinf()).any()):
            raise UserError(f"the {owner}'s logits hold NaN or infinity, which no distribution has.")
    if student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"student logits {list(student_logits.shape)} and teacher logits {list(teacher_logits.shape)} differ in "
            "shape. Where the vocabularies differ by padding rows, cut both to the shared ids first."
        )
    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    return _DivergenceFunction.apply(student, teacher, name, temperature, parameters)
