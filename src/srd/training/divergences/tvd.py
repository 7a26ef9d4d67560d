"""Total variation distance."""

from __future__ import annotations

from srd.training.divergences._parts import Tensor, ValueAndSlope
from srd.training.divergences.base import register_divergence


@register_divergence("tvd", squared=False, aliases=["ttvd"], gives_slope=True)
def total_variation(log_p: Tensor, log_q: Tensor) -> ValueAndSlope:
    """½ Σ |p - q|."""
    q = log_q.exp()
    difference = q - log_p.exp()
    # ½ sign(q - p) q less ½ q, which vanishes in the chain rule: exact where q and p hardly overlap.
    slope = q.mul_(difference.sign().sub_(1).mul_(0.5))
    return difference.abs_().sum(-1).mul_(0.5), slope
