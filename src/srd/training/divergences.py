"""Divergences between the teacher's and the student's next-token distribution, and the registry of them.

``p`` is the teacher's distribution, ``q`` the student's, both at one temperature. A divergence is written on
log-probabilities. For training it gives, beside its value, its slope ``∂D/∂log q``; the gradient with respect to the
student's logits is then ``(slope - q · Σ slope) / T`` for every divergence (chain rule through log-softmax). A
multiple of ``q`` in the slope vanishes there, and is left out where the rest is more exact without it.

To add one, register a pure function; its slope comes from autograd::

    @srd.register_divergence("hellinger")
    def hellinger(log_p, log_q):
        return 1 - ((log_p + log_q) / 2).exp().sum(-1)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from srd.base.errors import UserError, nearest

ValueAndSlope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Divergence:
    """A registered divergence.

    Attributes:
        name: Its name in recipes.
        function: ``(log_p [N, V], log_q [N, V], **parameters) -> (value [N], slope [N, V])``.
        defaults: Its parameters and their defaults.
        squared: Whether the paper's scripts multiply it by T squared.
    """

    name: str
    function: Callable[..., ValueAndSlope]
    defaults: dict[str, float]
    squared: bool


DIVERGENCES: dict[str, Divergence] = {}
LARGEST_GAP = 80.0  # between log-probabilities: e to the power of it is near float32's end

# The type names of the paper's scripts. A leading t marks the types that use a temperature there; here the
# temperature is a setting of its own, so that both mean the same divergence.
ALIASES = {
    "kd": "fkl",
    "kld": "fkl",
    "rkld": "rkl",
    "tfkl": "fkl",
    "tkd": "fkl",
    "trkl": "rkl",
    "tjsd": "jsd",
    "ttvd": "tvd",
    "tsfkl": "sfkl",
    "tsrkl": "srkl",
}


def _parameters_of(function: Callable[..., Any]) -> dict[str, float]:
    parameters = list(inspect.signature(function).parameters.values())[2:]
    missing = [item.name for item in parameters if item.default is inspect.Parameter.empty]
    if missing:
        raise UserError(f"the divergence {function.__name__} needs a default for its parameters {missing}")
    return {item.name: item.default for item in parameters}


def register_divergence(name: str, *, squared: bool = True) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register ``function(log_p, log_q, **parameters) -> value`` under ``name``.

    ``log_p`` (teacher) and ``log_q`` (student) are log-probabilities ``[N, V]``; the function returns the divergence
    ``[N]``, differentiable in ``log_q``. Its further parameters need defaults and become recipe fields.

    Args:
        name: The name in recipes and for `srd.divergence`.
        squared: Multiply by T squared where ``temperature_scaling`` is ``paper``.

    Raises:
        UserError: the name is taken by another function.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def with_slope(log_p: Tensor, log_q: Tensor, **parameters: float) -> ValueAndSlope:
            with torch.enable_grad():
                variable = log_q.detach().requires_grad_()
                value = function(log_p, variable, **parameters)
                (slope,) = torch.autograd.grad(value.sum(), variable)
            return value.detach(), slope

        _add(Divergence(name, with_slope, _parameters_of(function), squared))
        return function

    return decorate


def _add(divergence: Divergence) -> None:
    name = divergence.name
    if name in DIVERGENCES or name in ALIASES:
        raise UserError(f"there is a divergence '{name}' already: register yours under another name")
    DIVERGENCES[name] = divergence


def _fused(name: str, *, squared: bool) -> Callable[[Callable[..., ValueAndSlope]], Callable[..., ValueAndSlope]]:
    """Register a divergence that gives its own slope: no autograd graph over [N, V] tensors."""

    def decorate(function: Callable[..., ValueAndSlope]) -> Callable[..., ValueAndSlope]:
        _add(Divergence(name, function, _parameters_of(function), squared))
        return function

    return decorate


@_fused("fkl", squared=True)
def forward_kl(log_p: Tensor, log_q: Tensor) -> ValueAndSlope:
    """KL(p ‖ q), the classic of Hinton et al. 2015."""
    p, gap = log_p.exp(), log_q - log_p
    value = _kl(p, gap, torch.expm1(gap))
    return value, p.neg_()


@_fused("rkl", squared=False)
def reverse_kl(log_p: Tensor, log_q: Tensor) -> ValueAndSlope:
    """KL(q ‖ p), MiniLLM's (arXiv 2306.08543)."""
    q, gap = log_q.exp(), log_p - log_q
    value = _kl(q, gap, torch.expm1(gap))
    return value, gap.neg_().mul_(q)  # the slope's other term, q itself, vanishes in the chain rule


@_fused("jsd", squared=True)
def jensen_shannon(log_p: Tensor, log_q: Tensor, lam: float = 0.9) -> ValueAndSlope:
    """λ KL(q ‖ m) + (1-λ) KL(p ‖ m) with m = (1-λ) p + λ q: generalised JSD, GKD's with β = 1-λ (arXiv 2306.13649)."""
    _check_share("jsd", "lam", lam)
    if lam in (0, 1):
        return _nowhere(log_q)
    gap, q = (log_p - log_q).clamp_(max=LARGEST_GAP), log_q.exp()
    # log m - log q, less log λ, whose part in the slope vanishes in the chain rule
    slope = softplus(gap + _log_odds(1 - lam)).mul_(q).mul_(-lam)
    above = _excess(gap, 1 - lam).log1p_()  # log m - log q
    # Token by token, as the two sums are large and opposite where p is near q.
    p_part = gap.sub_(above).mul_(log_p.exp()).mul_(1 - lam)  # of p (log p - log m)
    return p_part.addcmul_(above, q, value=-lam).sum(-1), slope


@_fused("tvd", squared=False)
def total_variation(log_p: Tensor, log_q: Tensor) -> ValueAndSlope:
    """½ Σ |p - q|."""
    q = log_q.exp()
    difference = q - log_p.exp()
    # ½ sign(q - p) q less ½ q, which vanishes in the chain rule: exact where q and p hardly overlap.
    slope = q.mul_(difference.sign().sub_(1).mul_(0.5))
    return difference.abs_().sum(-1).mul_(0.5), slope


@_fused("sfkl", squared=False)
def skew_forward_kl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> ValueAndSlope:
    """KL(p ‖ α p + (1-α) q), DistiLLM's skew KL (arXiv 2402.03898)."""
    _check_share("sfkl", "alpha", alpha)
    if alpha == 1:
        return _nowhere(log_q)
    if alpha == 0:
        return forward_kl(log_p, log_q)
    p, gap = log_p.exp(), log_q - log_p
    excess = _excess(gap, 1 - alpha)
    value = _kl(p, _log_ratio(excess), excess)
    return value, gap.add_(_log_odds(1 - alpha)).sigmoid_().mul_(p).neg_()


@_fused("srkl", squared=True)
def skew_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> ValueAndSlope:
    """KL(q ‖ (1-α) p + α q), DistiLLM's skew reverse KL (arXiv 2402.03898)."""
    _check_share("srkl", "alpha", alpha)
    if alpha == 1:
        return _nowhere(log_q)
    if alpha == 0:
        return reverse_kl(log_p, log_q)
    q, gap = log_q.exp(), log_p - log_q
    excess = _excess(gap, 1 - alpha)
    value = _kl(q, _log_ratio(excess), excess)
    odds = gap.add_(_log_odds(1 - alpha))
    above = softplus(odds).mul_(q)  # q (log m - log q), less a multiple of q
    return value, odds.sigmoid_().mul_(q).sub_(above)


# The mixture m = share · a + (1-share) · b of two distributions, in terms of gap = log a - log b: no mixture that could
# underflow, and no difference of nearly equal logarithms.


def _excess(gap: Tensor, share: float) -> Tensor:
    """The quotient m / b less 1, exact also where a and b are nearly equal."""
    return torch.expm1(gap).mul_(share)


def _log_ratio(excess: Tensor) -> Tensor:
    """The difference log m - log b; where m / b overflows, b is too small for it to matter."""
    return excess.clamp(max=math.exp(LARGEST_GAP)).log1p_()


def _log_odds(share: float) -> float:
    """What is added to the gap so that its sigmoid is share · a / m."""
    return math.log(share / (1 - share))


def _kl(b: Tensor, above: Tensor, excess: Tensor) -> Tensor:
    """KL(b ‖ m) = -Σ b · above, where ``above`` is log m - log b and ``excess`` m / b - 1.

    Σ b · excess is 0 but for the rounding of the two normalisers. Where the divergence is as small as that, taking it
    in makes each term of the sum of second order in the distance, and its rounding of third. It is left out where an
    excess overflows.
    """
    value = torch.linalg.vecdot(b, above).neg_()
    rounding = torch.linalg.vecdot(b, excess)
    return value.add_(rounding.masked_fill_(~(rounding.abs() < 1e-4), 0))


def _nowhere(log_q: Tensor) -> ValueAndSlope:
    """The divergence of a distribution from itself."""
    return log_q.new_zeros(len(log_q)), torch.zeros_like(log_q)


def _check_share(divergence: str, parameter: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{divergence}: {parameter} is {value}, but it must be within 0 and 1")


def canonical_name(name: str) -> str:
    """Resolve the paper's type names; refuse unknown ones with the nearest known name."""
    name = ALIASES.get(name, name)
    if name not in DIVERGENCES:
        raise UserError(f"unknown objective '{name}'; {nearest(name, [*DIVERGENCES, *ALIASES])}")
    return name


def check_parameters(name: str, parameters: dict[str, float]) -> None:
    """Refuse a parameter that the divergence does not have, or that is no number in its range."""
    defaults = DIVERGENCES[name].defaults
    for key, value in parameters.items():
        if key not in defaults:
            known = nearest(key, defaults) if defaults else "it has none"
            raise UserError(f"the objective '{name}' has no parameter '{key}'; {known}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"the objective '{name}': {key} must be a number, but is {value!r}")
        if name in ("jsd", "sfkl", "srkl"):
            _check_share(name, key, value)


def loss_scale(name: str, temperature: float, convention: str) -> float:
    """The factor on a divergence: T squared (Hinton et al. 2015) or 1.

    Args:
        name: Canonical name.
        temperature: T.
        convention: ``all``, ``none``, or ``paper``: T squared for fkl, jsd and srkl only, as its scripts have it.
    """
    squared = {"all": True, "none": False, "paper": DIVERGENCES[name].squared}[convention]
    return temperature**2 if squared else 1.0


def value_and_slope(name: str, log_p: Tensor, log_q: Tensor, parameters: dict[str, float]) -> ValueAndSlope:
    """Evaluate a divergence on log-probabilities ``[N, V]``; masked ids (-inf in both) contribute nothing.

    0 · (−∞ − (−∞)) is NaN in floating point where the divergence's limit is 0. Masks are rare, so the plain form is
    evaluated first and the few rows' NaN, if any, lead to the careful form.
    """
    function = DIVERGENCES[name].function
    value, slope = function(log_p, log_q, **parameters)
    if not torch.isfinite(value).all():
        lowest = torch.finfo(log_p.dtype).min / 1e6
        value, slope = function(log_p.clamp(min=lowest), log_q.clamp(min=lowest), **parameters)
        value = value.masked_fill(value > 1e12, float("inf"))  # mass where the other has none
    return value.clamp_(min=0), slope


class _DivergenceFunction(torch.autograd.Function):
    """`divergence` with its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, name: str, temperature: float, parameters: Any) -> Tensor:
        log_q = torch.log_softmax(student / temperature, -1)
        log_p = torch.log_softmax(teacher / temperature, -1)
        value, slope = value_and_slope(name, log_p, log_q, parameters)
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
        name: ``fkl``, ``rkl``, ``jsd``, ``tvd``, ``sfkl``, ``srkl``, one that you registered, or a name of the
            paper's scripts (method: arXiv 2508.06135; see the functions above for each formula and its source).
        student_logits: ``[N, V]``, differentiable.
        teacher_logits: ``[N, V]``, taken as a constant.
        temperature: Both logits are divided by it.
        **parameters: ``lam`` of jsd (0.9), ``alpha`` of sfkl and srkl (0.1).

    Returns:
        ``[N]`` in nats, at least 0; float64 for float64 logits, else float32.

    Raises:
        UserError: unknown name or parameter, a temperature of 0 or below, logits of another kind, NaN, or shapes
            that differ.
    """
    name = canonical_name(name)
    check_parameters(name, parameters)
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature is {temperature}, but it must be above 0 and finite")
    for owner, logits in (("student", student_logits), ("teacher", teacher_logits)):
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"the {owner}'s logits are {found}; expected a torch tensor [N, V].")
        if bool((logits.isnan() | logits.isposinf()).any()):
            raise UserError(f"the {owner}'s logits hold NaN or infinity, which no distribution has.")
    if student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"student logits {list(student_logits.shape)} and teacher logits {list(teacher_logits.shape)} differ in "
            "shape. Where the vocabularies differ by padding rows, cut both to the shared ids first."
        )
    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    result: Tensor = _DivergenceFunction.apply(student, teacher, name, temperature, parameters)
    return result
