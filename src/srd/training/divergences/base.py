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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from srd.base.errors import UserError, nearest
from srd.base.handed import check_call, check_kind, check_name
from srd.base.registry import Registry

Range = tuple[float, float]


@dataclass(frozen=True)
class Divergence:
    """A registered divergence.

    Attributes:
        name: Its name in recipes.
        function: ``(log_p [N, V], log_q [N, V], **parameters) -> value [N]``, or with ``slope [N, V]``.
        defaults: Its parameters and their defaults.
        squared: Whether the paper's scripts multiply it by T squared.
        gives_slope: Whether the function gives its own slope; else autograd does.
        ranges: The lowest and highest value of parameters.
        whole: Whether it needs the probabilities of all tokens: it means something else on some tokens and a rest.
        nothing: Values of parameters with which it is 0 whatever teacher and student say.
        beta: GKD's β (arXiv 2306.13649), a number or a function of the parameters: 0 is forward KL, 1 reverse KL, and
            between them are Jensen-Shannon divergences. None: it is none of these.
        near_beta: The nearest of these where it is none.
        of_own_token: Whether it is known to teach from how likely the text's own tokens are, and nothing else.
    """

    name: str
    function: Callable[..., Any]
    defaults: dict[str, float]
    squared: bool
    gives_slope: bool = False
    ranges: Mapping[str, Range] = field(default_factory=dict)
    whole: bool = False
    nothing: Mapping[str, Sequence[float]] = field(default_factory=dict)
    beta: float | Callable[..., float] | None = None
    near_beta: float = 0.0
    of_own_token: bool = False

    def beta_with(self, parameters: Mapping[str, float]) -> float | None:
        """``beta`` with these parameters, and the defaults of others."""
        return self.beta(**{**self.defaults, **parameters}) if callable(self.beta) else self.beta


def _check(name: str, divergence: Any) -> None:
    """Refuse a bare function, which an entry point may name."""
    check_kind(f"the divergence '{name}'", divergence, Divergence, "name a module that calls srd.register_divergence")


DIVERGENCES: Registry[Divergence] = Registry(
    "divergence", "srd.training.divergences", "unknown objective '{}'", check=_check
)
KNOWN = ("beta", "near_beta", "of_own_token")  # what else `register_divergence` takes


def register_divergence(
    name: str,
    *,
    squared: bool = True,
    aliases: Iterable[str] = (),
    ranges: Mapping[str, Range] | None = None,
    gives_slope: bool = False,
    whole: bool = False,
    nothing: Mapping[str, Sequence[float]] | None = None,
    **known: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``function(log_p, log_q, **parameters) -> value`` under ``name``.

    ``log_p`` (teacher) and ``log_q`` (student) are log-probabilities ``[N, V]``; the function returns the divergence
    ``[N]``, differentiable in ``log_q``. Its further parameters need defaults and become recipe fields.

    Args:
        name: The name in recipes and for `srd.divergence`.
        squared: Multiply by T squared where ``temperature_scaling`` is ``paper``.
        aliases: Other names that mean the same.
        ranges: Parameter -> the lowest and the highest value that it may have.
        gives_slope: The function returns ``(value [N], slope [N, V])`` instead, and no autograd graph over ``[N, V]``
            is built.
        whole: It needs the probabilities of all tokens (it sorts them, or takes their entropy), so that a teacher cache
            of the likeliest ones cannot serve it.
        nothing: Parameter -> values at which the divergence is 0 everywhere; it is refused there.
        known: What else is known of it: ``beta``, ``near_beta``, ``of_own_token``; see `Divergence`.

    Raises:
        UserError: a name is taken by another function.
    """
    check_name("divergence", name)
    for unknown in known.keys() - set(KNOWN):
        raise UserError(f"the divergence {name}: register_divergence takes no '{unknown}'; {nearest(unknown, KNOWN)}")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        defaults, within = _parameters_of(name, function), dict(ranges or {})
        for parameter, limits in within.items():
            _check_range(name, parameter, limits, defaults)
        described = Divergence(name, function, defaults, squared, gives_slope, within, whole, nothing or {}, **known)
        DIVERGENCES.register(name, aliases=aliases, of=function)(described)
        return function

    return decorate


def _check_range(name: str, parameter: str, limits: Any, defaults: Mapping[str, float]) -> None:
    """Refuse a range of no parameter, one that is none, and one that its own default is outside of."""
    if parameter not in defaults:
        raise UserError(f"the divergence {name} has a range for '{parameter}', but no such parameter")
    if not isinstance(limits, list | tuple) or len(limits) != 2:
        raise UserError(f"the divergence {name}: the range of '{parameter}' is {limits!r}: give (lowest, highest)")
    if not limits[0] <= defaults[parameter] <= limits[1]:
        raise UserError(
            f"the divergence {name}: the default of '{parameter}' is {defaults[parameter]:g}, outside of its range "
            f"{limits[0]:g} to {limits[1]:g}"
        )


def _parameters_of(name: str, function: Callable[..., Any]) -> dict[str, float]:
    if not callable(function):
        check_call(f"the divergence {name}", function, "log_p", "log_q")
    parameters = list(inspect.signature(function).parameters.values())[2:]
    if many := [str(item) for item in parameters if item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]:
        raise UserError(f"the divergence {name} takes {many[0]}: write each parameter out, with its default")
    missing = [item.name for item in parameters if item.default is inspect.Parameter.empty]
    if missing:
        raise UserError(f"the divergence {name} needs a default for its parameters {missing}")
    check_call(f"the divergence {name}", function, "log_p", "log_q")
    for item in parameters:
        if isinstance(item.default, bool) or not isinstance(item.default, int | float):
            raise UserError(
                f"the divergence {name}: the default of '{item.name}' is {item.default!r}, but must be a number"
            )
    return {item.name: item.default for item in parameters}


def check_parameters(name: str, parameters: Mapping[str, float], *, teaches: bool = False) -> None:
    """Refuse what the divergence does not have, what is no number in its range and, to train by, what makes it 0."""
    known = DIVERGENCES.get(name)
    for key, value in parameters.items():
        if key not in known.defaults:
            names = nearest(key, known.defaults) if known.defaults else "it has none"
            raise UserError(f"the objective '{name}' has no parameter '{key}'; {names}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"the objective '{name}': {key} must be a number, but is {value!r}")
        if key in known.ranges:
            low, high = known.ranges[key]
            if not low <= value <= high:
                raise UserError(f"{name}: {key} is {value}, but it must be within {low:g} and {high:g}")
        if teaches and value in known.nothing.get(key, ()):
            raise UserError(
                f"{name} with {key} {value:g} is 0 whatever the student says: nothing is learnt. Use fkl or rkl"
            )


def loss_scale(name: str, temperature: float, convention: str) -> float:
    """The factor on a divergence: T squared (Hinton et al. 2015) or 1.

    Args:
        name: Canonical name.
        temperature: T.
        convention: ``all``, ``none``, or ``paper``: as its scripts have it, T squared for all but rkl, tvd and sfkl.
    """
    squared = {"all": True, "none": False, "paper": DIVERGENCES.get(name).squared}[convention]
    return temperature**2 if squared else 1.0
