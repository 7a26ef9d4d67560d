"""Selective Reflection Distillation (arXiv 2508.06135): a small language model from a large one."""

from __future__ import annotations

import gc
import importlib
from typing import TYPE_CHECKING, Any

from srd.base.version import VERSION

if TYPE_CHECKING:
    from srd.api import Result, build_cache, distill, evaluate, run
    from srd.base.errors import RunError, UserError
    from srd.curation.curriculum import Curriculum
    from srd.curation.ranking import rank
    from srd.curation.reflection import reflect
    from srd.curation.scores.base import register_score
    from srd.data.encoding import encode
    from srd.data.templates.base import FormatTemplate, Template, register_template
    from srd.metrics.rouge import rouge_l
    from srd.tasks.base import Decoding, Scores, Task, register_task
    from srd.training.divergences.base import register_divergence
    from srd.training.loss.divergence import divergence
    from srd.training.methods.base import Method, register_method
    from srd.training.rollouts import OnPolicy
    from srd.training.teachers.base import register_teacher
    from srd.training.teachers.common import LogitTeacher
    from srd.training.trainer import DistillTrainer

__version__ = VERSION

# Loaded at first use: importing torch and transformers takes seconds that `srd --help` should not.
_HOMES = {
    "Curriculum": "srd.curation.curriculum",
    "Decoding": "srd.tasks.base",
    "DistillTrainer": "srd.training.trainer",
    "FormatTemplate": "srd.data.templates.base",
    "LogitTeacher": "srd.training.teachers.common",
    "Method": "srd.training.methods.base",
    "OnPolicy": "srd.training.rollouts",
    "Result": "srd.api",
    "RunError": "srd.base.errors",
    "Scores": "srd.tasks.base",
    "Task": "srd.tasks.base",
    "Template": "srd.data.templates.base",
    "UserError": "srd.base.errors",
    "build_cache": "srd.api",
    "distill": "srd.api",
    "divergence": "srd.training.loss.divergence",
    "encode": "srd.data.encoding",
    "evaluate": "srd.api",
    "rank": "srd.curation.ranking",
    "reflect": "srd.curation.reflection",
    "register_divergence": "srd.training.divergences.base",
    "register_method": "srd.training.methods.base",
    "register_score": "srd.curation.scores.base",
    "register_task": "srd.tasks.base",
    "register_teacher": "srd.training.teachers.base",
    "register_template": "srd.data.templates.base",
    "rouge_l": "srd.metrics.rouge",
}

__all__ = [
    "Curriculum",
    "Decoding",
    "DistillTrainer",
    "FormatTemplate",
    "LogitTeacher",
    "Method",
    "OnPolicy",
    "Result",
    "RunError",
    "Scores",
    "Task",
    "Template",
    "UserError",
    "build_cache",
    "distill",
    "divergence",
    "encode",
    "evaluate",
    "rank",
    "reflect",
    "register_divergence",
    "register_method",
    "register_score",
    "register_task",
    "register_teacher",
    "register_template",
    "rouge_l",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "run":  # the room of that name, which can be called
        return importlib.import_module("srd.run")
    if name not in _HOMES:
        raise AttributeError(f"module 'srd' has no attribute {name!r}")
    if waits := gc.isenabled():
        gc.disable()  # to look for garbage among what is imported takes a tenth of the time
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    finally:
        if waits:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
