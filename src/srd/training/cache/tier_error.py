"""How far what a tier keeps is from what the teacher said, on some of its tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srd.base.errors import UserError
from srd.models.head import HeadWeights
from srd.training.loss.outcomes import OutcomeHead
from srd.training.tiers.base import Tier

ROWS = 32  # at a time: several tensors [rows, V] in float64
FLATTER = 0.7  # what the logits of the stand-in for a student are multiplied by


@torch.no_grad()
def measure(
    tier: Tier, states: Tensor, targets: Tensor, head: HeadWeights, learnt: dict[str, Tensor]
) -> dict[str, Any]:
    """The error of a tier on some tokens, over the ids of ``head``, at temperature 1.

    A tier that keeps some tokens and the mass of the rest leaves the rest's shape to the student. A student is not
    there yet: the teacher at temperature 1 / 0.7 stands for one.

    Args:
        tier: The tier.
        states: The teacher's last hidden states ``[n, d]``, as it gave them.
        targets: Ids of the actual tokens ``[n]``.
        head: The teacher's, cut to the ids that count.
        learnt: From `Tier.learn`.

    Returns:
        ``mean_kl`` and ``p99_kl`` (nats, KL(teacher ‖ kept)), ``mean_tv`` (total variation), ``flips`` (share of tokens
        whose likeliest next token is another) and ``tokens``.
    """
    parts = []
    for start in range(0, len(states), ROWS):
        rows, own = states[start : start + ROWS], targets[start : start + ROWS]
        logits = head.logits(rows).double()
        log_p = torch.log_softmax(logits, -1)
        read = tier.unpack({k: v.cpu() for k, v in tier.pack(rows, own, head, learnt).items()}, own.tolist(), learnt)
        decoder = tier.head(head, head.vocabulary)
        if isinstance(decoder, OutcomeHead):
            log_kept = decoder.spread(read.to(rows.device), torch.log_softmax(FLATTER * logits, -1))
        else:
            log_kept = torch.log_softmax(decoder.logits(read.to(rows.device)).double(), -1)
        p, kept = log_p.exp(), log_kept.exp()
        kl = (p * (log_p - log_kept)).nan_to_num(nan=0.0).sum(-1).clamp(min=0)
        parts.append(torch.stack([kl, (p - kept).abs().sum(-1) / 2, (p.argmax(-1) != kept.argmax(-1)).double()]))
    kl, tv, flips = torch.cat(parts, -1)
    return {
        "mean_kl": float(kl.mean()), "p99_kl": float(kl.quantile(0.99)), "mean_tv": float(tv.mean()),
        "flips": float(flips.mean()), "tokens": len(kl),
    }  # fmt: skip


def check_error(tier: Tier, error: dict[str, Any] | None, max_kl: float) -> None:
    """Refuse a tier that is too far from the teacher.

    Raises:
        UserError: with the error, and what is nearer.
    """
    if error is None or error["mean_kl"] <= max_kl:
        return
    raise UserError(
        f"cache.tier={tier.name} is {error['mean_kl']:.2g} nats from the teacher (mean KL of {error['tokens']} tokens; "
        f"{error['p99_kl']:.2g} at the 99th percentile), and cache.max_kl is {max_kl:g}. {tier.nearer}, or take it as "
        f"it is: cache.max_kl={_above(error['mean_kl'])}."
    )


def _above(value: float) -> str:
    """A number of two digits above this one."""
    text = f"{value * 1.1:.1e}"
    return f"{float(text):g}"
