"""Products of gradients in half precision, which float16 alone has too little range for."""

from __future__ import annotations

import torch
from torch import Tensor

from srd.models.head import gives_float32, product

FLOAT16_TOP = 13  # largest power of two in a lifted gradient: float16 ends at 2 ** 16


def lifted(gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The gradient at a chunk's logits in the type it is multiplied in, and what to multiply the products by.

    Divided by a step's tokens, and spread over a vocabulary, it lies where float16 has few digits or none. So it is
    brought to float16's upper range first, by a power of two, and back in float32. Other types have the range.
    """
    if dtype != torch.float16:
        return gradient.to(dtype), None
    largest = torch.linalg.vector_norm(gradient, torch.inf).clamp(min=2.0**-100)
    lift = torch.exp2(FLOAT16_TOP - largest.log2().ceil())
    return gradient.mul_(lift).to(dtype), 1 / lift


def lifted_product(left: Tensor, right: Tensor, back: Tensor | None) -> Tensor:
    """``left @ right``; of lifted halves it is added up in float32 and brought back there."""
    if back is None:
        return product(left, right)
    if not gives_float32(left):
        left, right = left.float(), right.float()
    return product(left, right).mul_(back)


def add_product(total: Tensor, gradient: Tensor, hidden: Tensor, back: Tensor | None, *, first: bool) -> None:
    """Add ``gradient.T @ hidden`` to ``total [V, d]``; the first product is written, so that nothing is zeroed."""
    factors = (gradient.T, hidden.to(gradient.dtype))
    if back is not None:
        total.copy_(lifted_product(*factors, back)) if first else total.add_(lifted_product(*factors, back))
    elif gradient.dtype != total.dtype:
        total.copy_(product(*factors)) if first else total.add_(product(*factors))
    elif first:
        torch.mm(*factors, out=total)
    else:
        total.addmm_(*factors)
