"""Skew forward KL."""

from __future__ import annotations

from srd.training.divergences._parts import Tensor, ValueAndSlope, excess_of, kl, log_odds, log_ratio, nowhere
from srd.training.divergences.base import register_divergence
from srd.training.divergences.fkl import forward_kl


@register_divergence(
    "sfkl", squared=False, aliases=["tsfkl"], ranges={"alpha": (0, 1)}, nothing={"alpha": (1,)}, gives_slope=True
)
def skew_forward_kl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> ValueAndSlope:
    """KL(p ‖ α p + (1-α) q), DistiLLM's skew KL (arXiv 2402.03898)."""
    if alpha == 1:
        return nowhere(log_q)
    if alpha == 0:
        return forward_kl(log_p, log_q)
    p, gap = log_p.exp(), log_q - log_p
    excess = excess_of(gap, 1 - alpha)
    value = kl(p, log_ratio(excess), excess)
    return value, gap.add_(log_odds(1 - alpha)).sigmoid_().mul_(p).neg_()
