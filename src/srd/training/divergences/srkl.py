"""Skew reverse KL."""

from __future__ import annotations

from srd.training.divergences._parts import Tensor, ValueAndSlope, excess_of, kl, log_odds, log_ratio, nowhere, softplus
from srd.training.divergences.base import register_divergence
from srd.training.divergences.rkl import reverse_kl


@register_divergence(
    "srkl", squared=True, aliases=["tsrkl"], ranges={"alpha": (0, 1)}, nothing={"alpha": (1,)}, gives_slope=True,
    near_beta=1.0,
)  # fmt: skip
def skew_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> ValueAndSlope:
    """KL(q ‖ (1-α) p + α q), DistiLLM's skew reverse KL (arXiv 2402.03898)."""
    if alpha == 1:
        return nowhere(log_q)
    if alpha == 0:
        return reverse_kl(log_p, log_q)
    q, gap = log_q.exp(), log_p - log_q
    excess = excess_of(gap, 1 - alpha)
    value = kl(q, log_ratio(excess), excess)
    odds = gap.add_(log_odds(1 - alpha))
    above = softplus(odds).mul_(q)  # q (log m - log q), less a multiple of q
    return value, odds.sigmoid_().mul_(q).sub_(above)
