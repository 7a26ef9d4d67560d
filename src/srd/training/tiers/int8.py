"""The teacher's last hidden states in eight bits a value.

Hidden states have a few channels with values far above the others. With one scale for all of them the others would
keep a few levels each, so every channel is brought to mean 0 and standard deviation 1 first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from srd.training.tiers.base import Tier, register_tier

if TYPE_CHECKING:
    from torch import Tensor

    from srd.models.head import HeadWeights

LEVELS = 127  # of each sign


@register_tier("int8")
class Int8(Tier):
    """``h ≈ mean + sd · scale · code`` with a scale for each token: any divergence at any temperature.

    Mean and deviation could be folded into the head's weights and a bias. They are put back where a state is read
    instead: that takes d multiplications a token, where a bias takes V additions, and half-precision weights stay as
    they are.
    """

    sample = 2048

    def token_bytes(self, hidden_size: int, vocabulary: int) -> int:
        return hidden_size + 2

    def learn(self, states: Tensor) -> dict[str, Tensor]:
        spread = states.float().std(0, correction=0)
        return {"mean": states.float().mean(0), "sd": spread.where(spread > 0, 1.0)}

    def pack(self, states: Tensor, targets: Tensor, head: HeadWeights, learnt: dict[str, Tensor]) -> dict[str, Tensor]:
        levelled = (states.float() - learnt["mean"].to(states.device)) / learnt["sd"].to(states.device)
        scale = (levelled.abs().amax(-1, keepdim=True) / LEVELS).half().clamp(min=2.0**-24)
        codes = (levelled / scale.float()).round_().clamp_(-LEVELS, LEVELS)
        return {"codes": codes.char(), "scale": scale}

    def unpack(self, kept: dict[str, Tensor], targets: Sequence[int], learnt: dict[str, Tensor]) -> Tensor:
        levelled = kept["codes"].float().mul_(kept["scale"].float())
        return levelled.mul_(learnt["sd"]).add_(learnt["mean"])
