"""Distillation on old text and new."""

from __future__ import annotations

from pydantic import Field

from srd.base.settings import SamplingTemperature
from srd.training.methods.base import Method, Refresh, register_method
from srd.training.rollouts import AdaptiveOffPolicy


@register_method("distillm")
class DistillmMethod(Method):
    """Adaptive off-policy distillation with a replay buffer (DistiLLM, arXiv 2402.03898)."""

    title = "DistiLLM"
    text = "student"

    capacity: int = Field(1000, ge=1, description="student responses the replay buffer holds")
    student_share: float = Field(0.0, ge=0, le=1, description="probability of student text at the start")
    share_step: float = Field(0.1, gt=0, le=1, description="added to it whenever validation loss has risen")
    tolerance: float = Field(0.1, ge=0, description="rise of validation loss (nats a token) that counts")
    temperature: SamplingTemperature = Field(1.0, description="sampling temperature of the student")
    max_new_tokens: int = Field(256, ge=1, description="longest student response")
    refresh: Refresh = "step"

    def rollouts(self, seed: int) -> AdaptiveOffPolicy:
        return AdaptiveOffPolicy(self.student_share, self.share_step, self.tolerance, self.capacity, seed)
