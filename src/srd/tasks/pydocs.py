"""pydocs: questions about Python's standard library, answered by its own documentation. On every machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from srd.data.pydocs import pydocs_splits
from srd.tasks.instruction import InstructionTask

# The split has to be the one that training used, and training's default seed is 0.
SPLIT_SEED = 0


@dataclass(frozen=True)
class PydocsTask(InstructionTask):
    """ROUGE-L and exact match on the held-out tenth of the standard library's docstrings."""

    def examples(self, path: Path | None = None, limit: int | None = None) -> Dataset:
        """Make the test split from the installed Python, or read a file where one is given."""
        if path is not None:
            return super().examples(path, limit)
        examples = pydocs_splits(SPLIT_SEED)["test"]
        return examples.select(range(min(limit, len(examples)))) if limit is not None else examples


PYDOCS = PydocsTask(
    name="pydocs",
    title="pydocs",
    licence="PSF-2.0",
    source="docstrings of the installed Python's standard library",
    primary="rouge_l",
)
