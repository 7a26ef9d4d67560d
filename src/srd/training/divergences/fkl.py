"""Forward Kullback-Leibler divergence."""

from __future__ import annotations

from srd.training.divergences._parts import Tensor, ValueAndSlope, kl
from srd.training.divergences.base import register_divergence


@register_divergence(
    "fkl", squared=True, aliases=["kd", "kld", "tfkl", "tkd"], gives_slope=True, beta=0.0, of_own_token=True
)
def forward_kl(log_p: Tensor, log_q: Tensor) -> ValueAndSlope:
    """KL(p ‖ q), the classic of Hinton et al. 2015."""
    p, gap = log_p.exp(), log_q - log_p
    value = kl(p, gap, gap.expm1())
    return value, p.neg_()
