"""Reverse KL, and forward KL where the teacher is uncertain."""

from __future__ import annotations

import math

from srd.training.divergences._parts import Tensor, ValueAndSlope
from srd.training.divergences.base import register_divergence
from srd.training.divergences.fkl import forward_kl
from srd.training.divergences.rkl import reverse_kl


@register_divergence("entropy_aware", squared=True, ranges={"threshold": (-1, math.inf)}, gives_slope=True, whole=True)
def entropy_aware(log_p: Tensor, log_q: Tensor, threshold: float = 1.0) -> ValueAndSlope:
    """KL(q ‖ p) + 1[H(p) > threshold] KL(p ‖ q), the threshold in nats: entropy-aware (arXiv 2603.07079)."""
    import torch

    uncertain = (entropy(log_p) > threshold).to(log_p.dtype)
    forward, slope = forward_kl(log_p, log_q)
    reverse, other = reverse_kl(log_p, log_q)
    return reverse + torch.where(uncertain > 0, forward, 0), other.addcmul_(slope, uncertain[:, None])


def entropy(log_p: Tensor) -> Tensor:
    """The entropy of each distribution in nats, ``[N]``; ids without mass add nothing."""
    import torch

    return torch.linalg.vecdot(log_p.exp(), log_p.clamp(min=torch.finfo(log_p.dtype).min / 1e6)).neg_()
