"""The teacher's model itself, asked in every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srd.models.head import head_is_enough, head_weights, response_hidden
from srd.training.teachers.base import TeacherSource, register_teacher
from srd.training.teachers.common import LogitTeacher, Teacher


class LiveTeacher(Teacher):
    """A model whose head alone gives its logits, so that they are made a few positions at a time.

    Args:
        model: Frozen here.
        width: How many token ids teacher and student share; None: all of the model's.
    """

    def __init__(self, model: Any, width: int | None = None) -> None:
        head = head_weights(model)
        super().__init__(head.cut(width) if width else head, model)

    @torch.no_grad()
    def hidden(self, batch: dict[str, Any]) -> Tensor:
        return response_hidden(self.model, batch)


@register_teacher("live")
def live(source: TeacherSource) -> Teacher:
    """A model in every step: by its head, or by its own logits where the head is not enough."""
    model = source.load()
    if head_is_enough(model):
        return LiveTeacher(model, source.width)
    return LogitTeacher(TeacherSource(lambda: model, source.width))
