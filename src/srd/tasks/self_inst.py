"""SelfInst: 242 expert-written, user-oriented instructions of the Self-Instruct paper."""

from __future__ import annotations

from srd.tasks.base import Hub, register_task
from srd.tasks.instruction import InstructionTask

SELF_INST = InstructionTask(
    name="self_inst",
    title="SelfInst",
    licence="Apache-2.0",
    source="Self-Instruct, Wang et al. 2022 (arXiv 2212.10560), its 252 user-oriented instructions",
    primary="rouge_l",
    hub=Hub("MiniLLM/self-inst", split="train", file="valid.jsonl"),
)
register_task("self_inst")(SELF_INST)
