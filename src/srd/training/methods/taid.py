"""Distillation towards a teacher that moves away from the student."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from srd.training.loss.schedules import InterpolatedTeacher
from srd.training.methods.base import Method, register_method


@register_method("taid")
class TaidMethod(Method):
    """Temporally adaptive interpolated distillation (TAID, arXiv 2501.16937), with any divergence.

    The target is softmax((1-t)·z_student + t·z_teacher), where the student's logits are constants for the gradient.
    With the divergence L of a step, and g of G steps done,

    - m ← β m + (1-β) (L_before - L) / L_before,
    - t ← min(end, max(start + (end-start) g/G, t + α σ(m) (1-t))).

    The steps are those of the whole training: t rises through its stages.
    """

    title = "TAID"

    start: float = Field(
        0.4, ge=0, le=1, description="the teacher's share of the target at the start; 0.2 for far pairs"
    )
    end: float = Field(1.0, gt=0, le=1, description="its highest share")
    rate: float = Field(5e-4, ge=0, le=1, description="alpha, what a step adds at most, of what is left")
    inertia: float = Field(0.99, ge=0, lt=1, description="beta of the momentum of the loss's fall")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.start > self.end:
            raise ValueError(
                f"start ({self.start:g}) is above end ({self.end:g}): the teacher's share rises. Lower start"
            )
        return self

    def schedule(self) -> InterpolatedTeacher:
        return InterpolatedTeacher(start=self.start, end=self.end, rate=self.rate, inertia=self.inertia)
