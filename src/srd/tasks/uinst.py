"""UnNI: 10,000 rows of Unnatural Instructions whose answers have 11 words and more."""

from __future__ import annotations

from srd.tasks.base import Hub, register_task
from srd.tasks.instruction import InstructionTask

UINST = InstructionTask(
    name="uinst",
    title="UnNI",
    licence="MIT",
    source="Unnatural Instructions, Honovich et al. 2022 (arXiv 2212.09689), core data",
    primary="rouge_l",
    hub=Hub("MiniLLM/uinst", split="train", file="11_/valid.jsonl"),
)
register_task("uinst")(UINST)
