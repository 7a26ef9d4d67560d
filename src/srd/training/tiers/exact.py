"""The teacher's last hidden states as they are, but for the precision of storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from srd.training.tiers.base import BYTES, Tier, register_tier

if TYPE_CHECKING:
    from torch import Tensor

    from srd.models.head import HeadWeights

FLOAT16_ENDS = 60_000  # with some room before float16's largest number


@register_tier("exact")
class Exact(Tier):
    """Everything can be worked out from it: any divergence at any temperature.

    Of float32 states float16 keeps 11 bits where bfloat16 keeps 8, at the same size. A shard whose states are too large
    for float16 is kept in bfloat16.
    """

    in_full = True
    nearer = "Set cache.dtype=float32"

    @property
    def identity(self) -> Any:
        return self.options.dtype

    def token_bytes(self, hidden_size: int, vocabulary: int) -> int:
        return hidden_size * BYTES[self.options.dtype]

    def pack(self, states: Tensor, targets: Tensor, head: HeadWeights, learnt: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        dtype = getattr(torch, self.options.dtype)
        if dtype == torch.float16 and len(states) and float(states.abs().max()) > FLOAT16_ENDS:
            dtype = torch.bfloat16
        return {"hidden": states.to(dtype)}

    def unpack(self, kept: dict[str, Tensor], targets: Sequence[int], learnt: dict[str, Tensor]) -> Tensor:
        return kept["hidden"]
