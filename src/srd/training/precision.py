"""The precision that a training computes in, and that of the weights it changes."""

from __future__ import annotations

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


def widen(model: Any, *, scaled: bool) -> None:
    """Hold weights in float32 where half precision would lose what training is about; says so.

    Args:
        model: Changed in place.
        scaled: Whether the loss is scaled (training.precision=float16), so that float16 can hold the gradients.
    """
    half = (torch.float16, torch.bfloat16)
    trained = [weights for weights in model.parameters() if weights.requires_grad and weights.dtype in half]
    if trained:
        kind = str(trained[0].dtype).removeprefix("torch.")
        logger.warning(f"{kind} weights are trained as float32: small updates would be lost in them")
        for weights in trained:
            weights.data = weights.data.float()
    if not scaled and any(weights.dtype == torch.float16 for weights in model.parameters()):
        logger.warning(
            "the float16 weights below the adapters are held as float32: gradients get lost in float16 unless the loss "
            "is scaled, as with training.precision=float16. dtype=bfloat16 for this model takes half the memory."
        )
        for values in (*model.parameters(), *model.buffers()):
            if values.dtype == torch.float16:
                values.data = values.data.float()


def resolve_precision(precision: str) -> str:
    """What ``auto`` means on this machine."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
