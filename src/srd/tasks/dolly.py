"""DollyEval: 500 instructions that Databricks' employees wrote, held out of databricks-dolly-15k."""

from __future__ import annotations

from dataclasses import dataclass

from srd.tasks.base import Hub, Row, register_task
from srd.tasks.instruction import InstructionTask

VALIDATION_ROWS = 1000  # the first ones, as MiniLLM has it


@dataclass(frozen=True)
class DollyTask(InstructionTask):
    """Published in one piece, whose first rows validate."""

    def split_of(self, number: int, row: Row, place: str) -> str:
        """The first thousand rows are for validation."""
        return "validation" if number < VALIDATION_ROWS else "train"


DOLLY = DollyTask(
    name="dolly",
    title="DollyEval",
    licence="CC BY-SA 3.0",
    source="databricks-dolly-15k, 500 held-out rows chosen by MiniLLM (arXiv 2306.08543)",
    primary="rouge_l",
    hub=Hub("MiniLLM/dolly", split="train", file="valid.jsonl"),
    training=Hub("databricks/databricks-dolly-15k"),
    splits=("train", "validation"),
    size=({"train": 14_011, "validation": 1000}, 120, 90),
)
register_task("dolly")(DOLLY)
