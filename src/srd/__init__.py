"""Selective Reflection Distillation (arXiv 2508.06135): a small language model from a large one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srd.curriculum import Curriculum
    from srd.metrics import rouge_l
    from srd.objectives import divergence, register_divergence
    from srd.ranking import rank
    from srd.reflection import reflect
    from srd.trainer import DistillTrainer

__version__ = "0.1.0"

# Loaded at first use: importing torch and transformers takes seconds that `srd --help` should not.
_HOMES = {
    "Curriculum": "srd.curriculum",
    "DistillTrainer": "srd.trainer",
    "divergence": "srd.objectives",
    "rank": "srd.ranking",
    "reflect": "srd.reflection",
    "register_divergence": "srd.objectives",
    "rouge_l": "srd.metrics",
}

__all__ = ["Curriculum", "DistillTrainer", "divergence", "rank", "reflect", "register_divergence", "rouge_l"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'srd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
