"""Instruction following on any file: ROUGE-L and exact match against one or more references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srd.metrics.scripts import Words, choose_words, words_note
from srd.sandbox.outside import Permission
from srd.tasks.base import Predictions, Row, Scores, Task, means, register_task, single_answers

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class InstructionTask(Task):
    """A task scored with ROUGE-L and exact match, the way Super-NaturalInstructions and MiniLLM do it.

    Attributes:
        words: How ROUGE-L reads texts (`srd.metrics.scripts`); None: as the references ask for.
    """

    words: Words | None = None

    def scoring_columns(self, row: Row, place: str) -> dict[str, Any]:
        """Take the ``references``, else the answer that a run learns; of a row that no run takes, any reference."""
        from srd.data.examples import example_from_row
        from srd.data.shapes import recognised

        shape, native = recognised(row, place)
        if not shape or row.get("references") is not None:
            return super().scoring_columns(row, place)
        return {"references": example_from_row(native, place)["references"]}

    def reading(self, examples: Dataset) -> dict[str, str]:
        """Say where ROUGE-L goes by script: ``{"rouge_words": "unicode"}``."""
        return words_note(self.words or choose_words(examples["references"][:]))

    def score(self, predictions: Predictions, examples: Dataset, *, allow_code_execution: Permission = False) -> Scores:
        """Score one answer an example: ``rouge_l`` and ``exact_match``, each against the best reference."""
        from srd.metrics.rouge import rouge_l_many
        from srd.metrics.text import exact_match_many

        answers = single_answers(predictions, examples, self.name)
        references = examples["references"][:]
        words = self.words or choose_words(references)
        per_example = {
            "rouge_l": rouge_l_many(answers, references, words),
            "exact_match": exact_match_many(answers, references),
        }
        return Scores(means(per_example), per_example, self.primary, words_note(words))


INSTRUCTION = InstructionTask(
    name="instruction",
    title="Instructions",
    licence="the user's own",
    source="any file of instructions and answers",
    primary="rouge_l",
    template="auto",
)
register_task("instruction")(INSTRUCTION)
