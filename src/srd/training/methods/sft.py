"""Supervised fine-tuning."""

from __future__ import annotations

from srd.training.methods.base import Method, register_method


@register_method("sft")
class SftMethod(Method):
    """Cross-entropy on the reference responses; no teacher."""

    title = "SFT"
    uses_teacher = False
