"""Distillation that spreads out where the teacher is uncertain."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from srd.training.loss.schedules import UncertainTeacher
from srd.training.methods.base import register_method
from srd.training.methods.gkd import GkdMethod
from srd.training.rollouts import OnPolicy


@register_method("entropy_aware")
class EntropyAwareMethod(GkdMethod):
    """Entropy-aware distillation (arXiv 2603.07079): KL(q ‖ p) + 1[H(p) > τ] KL(p ‖ q), H the teacher's entropy.

    High is what lies above a quantile of the entropies of the optimizer step, however it is divided. The text is the
    data's, so that a cache serves; with ``student_share`` 1 the student writes all of it, as in the paper.
    """

    title = "Entropy-aware"
    own_objective: ClassVar[str | None] = "entropy_aware"

    quantile: float = Field(0.8, ge=0, le=1, description="share of a step's positions with reverse KL alone")
    student_share: float = Field(0.0, ge=0, le=1, description="probability that a batch is written by the student")

    @property
    def text(self) -> Literal["reference", "student"]:  # type: ignore[override]
        """Who writes the responses."""
        return "student" if self.student_share else "reference"

    def rollouts(self, seed: int) -> OnPolicy | None:  # type: ignore[override]
        return super().rollouts(seed) if self.student_share else None

    def longest_text(self) -> int | None:  # type: ignore[override]
        return super().longest_text() if self.student_share else None

    def schedule(self) -> UncertainTeacher:
        return UncertainTeacher(quantile=self.quantile)
