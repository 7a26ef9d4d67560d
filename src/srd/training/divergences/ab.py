"""Alpha-beta divergence."""

from __future__ import annotations

from srd.training.divergences._parts import Tensor, ValueAndSlope
from srd.training.divergences.base import register_divergence


@register_divergence("ab", squared=True, ranges={"alpha": (0, 2), "beta": (0, 2)}, gives_slope=True)
def alpha_beta(log_p: Tensor, log_q: Tensor, alpha: float = 0.2, beta: float = 0.7) -> ValueAndSlope:
    """-1/(αβ) Σ [p^α q^β - α/s p^s - β/s q^s] with s = α+β: ABKD's (arXiv 2505.04560), there from Cichocki et al. 2011.

    α = 1, β = 0 is forward KL, α = 0, β = 1 reverse KL, α = β = ½ four times the squared Hellinger distance, and
    α = β = 1 half the squared difference. Each of 0 means the limit. The defaults are the paper's for GPT-2.
    The slope is q^β (q^α - p^α) / α.

    Each term is written from the larger of p and q, so that nothing overflows and small terms keep their digits.
    """
    import torch

    gap, power = log_p - log_q, alpha + beta
    if not power:  # the limit is ½ Σ (log p - log q)²
        return gap.square().sum(-1).mul_(0.5), gap.neg_()
    teacher_leads, distance = gap > 0, gap.abs()
    ahead, behind = (
        torch.where(teacher_leads, log_p.new_tensor(one), log_p.new_tensor(other))
        for one, other in ((alpha, beta), (beta, alpha))
    )
    # In units of the larger of p and q to the power of s: what the product p^α q^β and the smaller one lack of it.
    larger = torch.maximum(log_p, log_q).mul_(power).exp_()
    smaller = distance.mul(-power).expm1_()
    product = distance.mul(behind).neg_().expm1_()
    if alpha and beta:
        value = (smaller * behind / power - product) / (alpha * beta)
    else:  # of a term x = s · distance: x - 1 + e^-x where the one with the power leads, 1 - e^-x - x e^-x elsewhere
        x = distance.mul(power)
        value = torch.where(ahead > 0, x + smaller, -smaller - x * (smaller + 1)) / power**2
    if alpha:
        slope = torch.where(teacher_leads, product - smaller, product) / -alpha
    else:
        slope = torch.where(teacher_leads, -distance * (smaller + 1), distance)
    return value.mul_(larger).sum(-1), slope.mul_(larger)
