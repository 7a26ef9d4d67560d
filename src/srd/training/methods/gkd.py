"""Distillation on the student's own text."""

from __future__ import annotations

from pydantic import Field

from srd.base.settings import SamplingTemperature
from srd.training.methods.base import Method, Refresh, register_method
from srd.training.rollouts import OnPolicy


@register_method("gkd")
class GkdMethod(Method):
    """On-policy distillation: the student writes the responses, the teacher scores them (arXiv 2306.13649)."""

    title = "GKD"
    text = "student"

    student_share: float = Field(0.5, ge=0, le=1, description="probability that a batch is written by the student")
    temperature: SamplingTemperature = Field(1.0, description="sampling temperature of the student")
    max_new_tokens: int = Field(256, ge=1, description="longest student response")
    refresh: Refresh = "step"

    def rollouts(self, seed: int) -> OnPolicy:
        return OnPolicy(self.student_share, seed)

    def all_by_student(self) -> bool:
        return self.student_share == 1
