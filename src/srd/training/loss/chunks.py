"""How many positions are worked on at a time, and the memory for their logits."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from srd.base.limits import CHUNK_BYTES
from srd.models.head import HeadWeights

CHUNKS_ON_A_GPU = 64  # of its memory: fewer and larger kernels, and still little beside a model


class Workspace(threading.local):
    """Memory for the logits of a chunk on a CPU, kept from chunk to chunk and from step to step.

    Such blocks come fresh from the system otherwise, and making their pages costs a fifth of the matrix product that
    fills them. A GPU's allocator keeps its memory by itself.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def logits(self, name: str, head: HeadWeights, hidden: Tensor) -> Tensor:
        """`HeadWeights.logits`, valid until the next call with this name."""
        if head.weight.device.type != "cpu" or head.weight.dtype != torch.float32 or not head.weight.numel():
            return head.logits(hidden)
        shape = (len(hidden), head.vocabulary)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < math.prod(shape):
            buffer = self.buffers[name] = torch.empty(math.prod(shape))
        return head.logits(hidden, out=buffer[: math.prod(shape)].view(shape))


workspace = Workspace()


def chunk_bytes(device: torch.device | None = None) -> int:
    """Bytes of a chunk of logits: on a GPU a share of its whole memory, as what is free changes, and rounding too."""
    if device is None or device.type != "cuda":
        return CHUNK_BYTES
    return max(CHUNK_BYTES, torch.cuda.get_device_properties(device).total_memory // CHUNKS_ON_A_GPU)


def chunk_rows(vocabulary: int, tokens: int, device: torch.device | None = None) -> int:
    """Tokens in one chunk: of equal size, so that no small rest is left over."""
    largest = max(1, chunk_bytes(device) // (4 * vocabulary))
    chunks = -(-tokens // largest)
    return -(-tokens // max(1, chunks))


def cut(places: Tensor, vocabulary: int) -> list[slice]:
    """Parts of some positions ``[M]``, each as large as one chunk of logits may be."""
    step = max(1, chunk_rows(vocabulary, len(places), places.device))
    return [slice(start, start + step) for start in range(0, len(places), step)]
