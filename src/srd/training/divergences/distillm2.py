"""The two divergences of contrastive distillation: one for the teacher's text, one for the student's own."""

from __future__ import annotations

from srd.training.divergences._parts import Tensor, ValueAndSlope, kl, log_ratio, softplus
from srd.training.divergences.base import register_divergence


@register_divergence(
    "distillm2", squared=True, ranges={"alpha": (1e-3, 0.999), "own": (0, 1), "share": (0, 2)}, gives_slope=True
)
def contrastive(
    log_p: Tensor, log_q: Tensor, alpha: Tensor | float = 0.1, own: Tensor | float = 0.0, share: Tensor | float = 1.0
) -> ValueAndSlope:
    """KL(p ‖ α p + (1-α) q) on the teacher's text, KL(q ‖ (1-α) p + α q') on the student's: DistiLLM-2.

    See arXiv 2503.07067. There q' is q as a constant, so that the gradient is another than `skew_reverse_kl`'s. The
    method gives the parameters of each position: α, whether the text is the student's ``own`` (1 or 0), and a ``share``
    to multiply by, each ``[N, 1]``.
    """
    import torch

    def of_rows(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=log_p.dtype, device=log_p.device).expand(len(log_p), 1)

    alpha, factor, is_own = of_rows(alpha), of_rows(share), of_rows(own) > 0.5
    first, gap = torch.where(is_own, log_q, log_p).exp_(), torch.where(is_own, log_p - log_q, log_q - log_p)
    excess = gap.expm1().mul_(1 - alpha)  # of the mixture over the first
    value = kl(first, log_ratio(excess), excess).mul_(factor[:, 0])
    odds = gap.add_(((1 - alpha) / alpha).log_())
    pull = torch.where(is_own, softplus(odds), odds.sigmoid())  # log (m / q) less log α; the other's share of m
    return value, pull.mul_(first).mul_(-factor)
