"""What is asked of all positions before the loss: without gradients, in blocks, never [tokens, vocabulary] at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from srd.models.head import HeadWeights
from srd.training.divergences.entropy_aware import entropy
from srd.training.loss import chunk_rows


@torch.no_grad()
def in_blocks(count: int, vocabulary: int, measure: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """What ``measure`` says of blocks of positions, put together: ``[N]``."""
    step = max(1, chunk_rows(vocabulary, count, like.device))
    with torch.autocast(like.device.type, enabled=False):
        parts = [measure(slice(start, start + step)) for start in range(0, count, step)]
    return torch.cat(parts) if parts else torch.zeros(0, device=like.device)


def entropies(hidden: Tensor, head: HeadWeights, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the distribution at each position, ``[N]``.

    Args:
        hidden: What enters the head, ``[N, d]``.
        head: Of the model.
        temperature: The logits are divided by it.
    """
    return in_blocks(
        len(hidden),
        head.vocabulary,
        lambda rows: entropy(torch.log_softmax(head.logits(hidden[rows]).div_(temperature), -1)),
        hidden,
    )
