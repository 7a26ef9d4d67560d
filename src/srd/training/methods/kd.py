"""Distillation on given text."""

from __future__ import annotations

from srd.training.methods.base import Method, register_method


@register_method("kd")
class KdMethod(Method):
    """Off-policy distillation on the reference responses."""

    title = "Plain KD"
