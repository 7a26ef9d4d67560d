"""What a loss minimises, in numbers and names: read and changed without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from srd.training.divergences.base import loss_scale


@dataclass(frozen=True)
class TokenChoice:
    """At which positions of each example the divergence is taken; see `srd.training.loss.positions`.

    Attributes:
        share: Of an example's positions, rounded up.
        by: ``student_entropy``: where the student is least certain; ``teacher_gap``: where the two are furthest apart;
            ``random``.
    """

    share: float
    by: str

    def count(self, positions: int) -> int:
        """How many of an example's positions."""
        return math.ceil(self.share * positions - 1e-9)  # 0.1 * 30 is a little above 3


@dataclass(frozen=True)
class LossSettings:
    """What is minimised.

    Attributes:
        objective: Name of the divergence; None: cross-entropy alone.
        parameters: Of the divergence.
        temperature: T.
        weight: w, the divergence's share.
        scaling: Convention for T squared: ``paper``, ``all`` or ``none``.
        teacher_share: The teacher's share of the logits that the divergence aims at; the student's own, as constants,
            are the rest (TAID, arXiv 2501.16937). 1: the teacher alone.
        tokens: Where the divergence is taken; None: everywhere.
        compiled: Whether what is done to a chunk of logits is compiled for the machine first.
    """

    objective: str | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    weight: float = 1.0
    scaling: str = "paper"
    teacher_share: float = 1.0
    tokens: TokenChoice | None = None
    compiled: bool = False

    @property
    def kd_factor(self) -> float:
        """What a token's divergence is multiplied by."""
        return self.weight * loss_scale(self.objective, self.temperature, self.scaling) if self.objective else 0.0

    @property
    def ce_factor(self) -> float:
        """What a token's cross-entropy is multiplied by."""
        return 1.0 - self.weight if self.objective else 1.0
