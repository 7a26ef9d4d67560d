"""Adaptive KL divergence."""

from __future__ import annotations

from srd.training.divergences._parts import Tensor, ValueAndSlope
from srd.training.divergences.base import register_divergence
from srd.training.divergences.fkl import forward_kl
from srd.training.divergences.rkl import reverse_kl

FIRST = 64  # ids among which the teacher's likely ones are looked for first: they are few


@register_divergence("akl", squared=True, ranges={"mu": (0, 1)}, gives_slope=True, whole=True)
def adaptive_kl(log_p: Tensor, log_q: Tensor, mu: float = 0.5) -> ValueAndSlope:
    """The sum w KL(p ‖ q) + (1-w) KL(q ‖ p), w being the head's share of Σ |p - q|: AKL's (arXiv 2404.02657).

    The tail is the least likely ids of the teacher that have less than μ of its mass together, the head is the rest.
    For the gradient w is a constant. Where p = q it is ½. Ids of equal p stay together, in the head.
    """
    p = log_p.exp()
    distance = (log_q.exp() - p).abs_()
    whole = distance.sum(-1)
    weight = distance.mul_(p >= _least_of_head(p, mu)).sum(-1).div_(whole).nan_to_num_(nan=0.5)
    forward, slope = forward_kl(log_p, log_q)
    reverse, other = reverse_kl(log_p, log_q)
    rest = 1 - weight
    return weight * forward + rest * reverse, slope.mul_(weight[:, None]).addcmul_(other, rest[:, None])


def _least_of_head(p: Tensor, mu: float) -> Tensor:
    """The probability of the least likely id that is in the head, ``[N, 1]``."""
    import torch

    count = min(FIRST, p.shape[-1])
    while True:
        likely = p.topk(count, -1).values  # [N, count]
        above = likely.cumsum(-1) - likely  # the mass of what is likelier
        if count == p.shape[-1] or bool((above[:, -1] + likely[:, -1] > 1 - mu).all()):
            head = above <= 1 - mu
            return torch.where(head, likely, torch.inf).amin(-1, keepdim=True)
        count = min(8 * count, p.shape[-1])
