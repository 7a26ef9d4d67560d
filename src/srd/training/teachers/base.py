"""The registry of teachers: what makes a `srd.training.teachers.common.Teacher` of a recipe's teacher.

To add one, register a subclass of `srd.LogitTeacher`::

    @srd.register_teacher("cautious")
    class Cautious(srd.LogitTeacher):
        def logits(self, batch):
            return super().logits(batch) / 2

The recipe then says ``teacher.source: cautious``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srd.base.handed import check_call
from srd.base.registry import Registry


@dataclass(frozen=True)
class TeacherSource:
    """What a teacher can be made from.

    Attributes:
        load: Gives the recipe's teacher model, fine-tuned where the recipe says so.
        width: How many token ids teacher and student share.
        cache: The teacher's hidden states for the training examples (`TeacherCache`); None: there
            are none.
    """

    load: Callable[[], Any]
    width: int
    cache: Any = None


def _check(name: str, teacher: Any) -> None:
    """Refuse what is called otherwise than with a `TeacherSource`, and a subclass of `srd.LogitTeacher` likewise."""
    check_call(f"the teacher '{name}'", teacher, "source")
    if isinstance(teacher, type) and hasattr(teacher, "logits"):
        check_call(f"{teacher.__name__}.logits", teacher.logits, "self", "batch")


TEACHERS: Registry[Callable[[TeacherSource], Any]] = Registry("teacher", "srd.training.teachers", check=_check)
register_teacher = TEACHERS.register
