"""The teacher's hidden states, read from a cache: they come with the examples, and only its head is here."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from srd.base.errors import UserError
from srd.models.head import head_weights
from srd.training.teachers.base import TeacherSource, register_teacher
from srd.training.teachers.common import Teacher


class CachedTeacher(Teacher):
    """A teacher's head, for examples that bring its states; see `srd.data.batching.EncodedExamples`."""

    reads_new_text: ClassVar[bool] = False

    def hidden(self, batch: dict[str, Any]) -> Tensor:
        states: Tensor | None = batch.get("teacher_hidden")
        if states is None:  # a micro-batch without examples
            assert not len(batch["targets"]), "these examples bring no states of the teacher"
            return torch.zeros(0, self.head.weight.shape[1], device=batch["targets"].device)
        return states


def head_alone(source: TeacherSource) -> Teacher:
    """A teacher that reads text once at every refresh: its states come with the rows, and its head stays."""
    head = head_weights(source.load()).cut(source.width)
    return CachedTeacher(head.changed(lambda tensor: tensor.detach().clone()))


@register_teacher("cache")
def cached(source: TeacherSource) -> Teacher:
    """A teacher that has said all it will say.

    Raises:
        UserError: there is no cache.
    """
    if source.cache is None:
        raise UserError("there is no teacher cache for this training: give it one, or a live teacher")
    return CachedTeacher(source.cache.head().cut(source.width))
