"""Sequence-level distillation."""

from __future__ import annotations

from pydantic import Field

from srd.training.methods.base import Method, register_method


@register_method("seqkd")
class SeqKdMethod(Method):
    """Cross-entropy on responses that the teacher wrote once (Kim & Rush 2016)."""

    title = "SeqKD"
    text = "teacher"
    uses_teacher = False

    max_new_tokens: int = Field(256, ge=1, description="longest teacher response")
