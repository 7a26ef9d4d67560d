"""Generalised Jensen-Shannon divergence."""

from __future__ import annotations

from srd.training.divergences._parts import LARGEST_GAP, Tensor, ValueAndSlope, excess_of, log_odds, nowhere, softplus
from srd.training.divergences.base import register_divergence


@register_divergence(
    "jsd", squared=True, aliases=["tjsd"], ranges={"lam": (0, 1)}, nothing={"lam": (0, 1)}, gives_slope=True,
    beta=lambda lam: 1 - lam,
)  # fmt: skip
def jensen_shannon(log_p: Tensor, log_q: Tensor, lam: float = 0.9) -> ValueAndSlope:
    """λ KL(q ‖ m) + (1-λ) KL(p ‖ m) with m = (1-λ) p + λ q: generalised JSD, GKD's with β = 1-λ (arXiv 2306.13649)."""
    if lam in (0, 1):
        return nowhere(log_q)
    gap, q = (log_p - log_q).clamp_(max=LARGEST_GAP), log_q.exp()
    # log m - log q, less log λ, whose part in the slope vanishes in the chain rule
    slope = softplus(gap + log_odds(1 - lam)).mul_(q).mul_(-lam)
    above = excess_of(gap, 1 - lam).log1p_()  # log m - log q
    # Token by token, as the two sums are large and opposite where p is near q.
    p_part = gap.sub_(above).mul_(log_p.exp()).mul_(1 - lam)  # of p (log p - log m)
    return p_part.addcmul_(above, q, value=-lam).sum(-1), slope
