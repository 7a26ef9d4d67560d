"""DollyEval: 500 instructions that Databricks' employees wrote, held out of databricks-dolly-15k."""

from __future__ import annotations

from srd.tasks.base import Hub
from srd.tasks.instruction import InstructionTask

DOLLY = InstructionTask(
    name="dolly",
    title="DollyEval",
    licence="CC BY-SA 3.0",
    source="databricks-dolly-15k, 500 held-out rows chosen by MiniLLM (arXiv 2306.08543)",
    primary="rouge_l",
    hub=Hub("MiniLLM/dolly", split="train", file="valid.jsonl"),
)
