"""Distillation on pairs of texts: what the teacher wrote, and what the student wrote."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from srd.base.settings import SamplingTemperature
from srd.training.loss.schedules import Contrast
from srd.training.methods.base import Method, register_method


@register_method("distillm2")
class Distillm2Method(Method):
    """Contrastive distillation (DistiLLM-2, arXiv 2503.07067): teacher and student answer every prompt once beforehand.

    L = (2-b) KL(p ‖ α p + (1-α) q) on the teacher's texts + b KL(q ‖ (1-α) p + α q') on the student's, where q' is a
    constant. b is 1, or with ``gradual`` 1 + ½ min(1, 2 g/G) after g of G steps. α follows each text: with P and Q the
    teacher's and the student's likelihood of it (the geometric mean over its tokens), and m the mean of P - Q,

        α = clip(1 - (1-α₀) m / (P - Q + 1e-5), 0.01, α₀)

    on the teacher's texts, and with Q - P on the student's. m is measured in the first steps (``anchor``), in which α
    is α₀; then it stays. There is no cross-entropy on the student's texts.
    """

    title = "DistiLLM-2"
    text = "both"
    own_objective: ClassVar[str | None] = "distillm2"

    alpha: float = Field(0.1, ge=0.01, le=0.9, description="alpha at the start, and the highest")
    anchor: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the mean difference is measured")
    gradual: bool = Field(False, description="let the student's texts count more and more, up to three times as much")
    temperature: SamplingTemperature = Field(0.8, description="sampling temperature of both where they write")
    top_p: float = Field(0.95, gt=0, le=1, description="sample from the likeliest tokens with this mass")
    max_new_tokens: int = Field(256, ge=1, description="longest response of either")

    def schedule(self) -> Contrast:
        return Contrast(alpha=self.alpha, anchor=self.anchor, gradual=self.gradual)
