"""Reverse Kullback-Leibler divergence."""

from __future__ import annotations

from srd.training.divergences._parts import Tensor, ValueAndSlope, kl
from srd.training.divergences.base import register_divergence


@register_divergence("rkl", squared=False, aliases=["rkld", "trkl"], gives_slope=True, beta=1.0)
def reverse_kl(log_p: Tensor, log_q: Tensor) -> ValueAndSlope:
    """KL(q ‖ p), MiniLLM's (arXiv 2306.08543)."""
    q, gap = log_q.exp(), log_p - log_q
    value = kl(q, gap, gap.expm1())
    return value, gap.neg_().mul_(q)  # the slope's other term, q itself, vanishes in the chain rule
