"""S-NI: 1694 rows of the Super-NaturalInstructions test tasks whose answers have 11 words and more.

A row may have several references; the best one counts.
"""

from __future__ import annotations

from srd.tasks.base import Hub, register_task
from srd.tasks.instruction import InstructionTask

SINST = InstructionTask(
    name="sinst",
    title="S-NI",
    licence="Apache-2.0",
    source="Super-NaturalInstructions, Wang et al. 2022 (arXiv 2204.07705), test tasks",
    primary="rouge_l",
    hub=Hub("MiniLLM/sinst", split="train", file="11_/valid.jsonl"),
)
register_task("sinst")(SINST)
