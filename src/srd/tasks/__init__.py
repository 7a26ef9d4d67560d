"""Benchmarks by name. Each task owns its examples, prompt, decoding and scoring, in a file of its own."""

from __future__ import annotations

from srd.base.errors import UserError, nearest
from srd.tasks.base import Decoding, Scores, Task
from srd.tasks.dolly import DOLLY
from srd.tasks.gsm8k import GSM8K
from srd.tasks.instruction import INSTRUCTION
from srd.tasks.iwslt2017 import IWSLT2017
from srd.tasks.mbpp import MBPP
from srd.tasks.pydocs import PYDOCS
from srd.tasks.self_inst import SELF_INST
from srd.tasks.sinst import SINST
from srd.tasks.uinst import UINST
from srd.tasks.vicuna import VICUNA
from srd.tasks.xsum import XSUM

__all__ = ["TASKS", "Decoding", "Scores", "Task", "get_task"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (DOLLY, SELF_INST, VICUNA, SINST, UINST, GSM8K, MBPP, XSUM, IWSLT2017, PYDOCS, INSTRUCTION)
}


def get_task(name: str) -> Task:
    """Return the task called ``name``; "iwslt2017:fr-en" is IWSLT2017 in another direction.

    Raises:
        UserError: there is no such task; the message suggests the nearest name.
    """
    base, colon, pair = name.partition(":")
    if base not in TASKS or (colon and base != IWSLT2017.name):
        raise UserError(f"task: there is no task {name!r}; {nearest(base, TASKS)}")
    return IWSLT2017.for_pair(pair) if colon else TASKS[base]
