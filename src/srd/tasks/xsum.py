"""XSum: one-sentence summaries of BBC articles, scored by ROUGE-1, -2 and -L."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from srd.base.errors import UserError
from srd.metrics.scripts import choose_words, words_note
from srd.sandbox.outside import Permission
from srd.tasks.base import (
    CONVERTED,
    PUBLISHED,
    Decoding,
    Hub,
    Predictions,
    Row,
    Scores,
    Task,
    means,
    register_task,
    single_answers,
)

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class XsumTask(Task):
    """ROUGE of a summary."""

    def is_test_row(self, row: Row) -> bool:
        """Leave out the few published rows without an article or a summary."""
        return "document" not in row or bool(row["document"] and row.get("summary"))

    def convert(self, row: Row, place: str) -> Row | None:
        """Ask for a summary; a few published rows are empty."""
        document, summary = self.field(row, "document", place), self.field(row, "summary", place)
        if not document.strip() or not summary.strip():
            return None
        instruction = "Summarize the following article in one sentence."
        return {"id": row.get("id"), "instruction": instruction, "input": document, "output": summary}

    def asked(self, row: Row, place: str) -> Row:
        """Ask for the summary with the instruction that training uses."""
        if "document" not in row:
            return row
        converted = self.convert(row, place)
        if converted is None:
            raise UserError(f"{place}: field 'document' or 'summary' is blank: remove the row")
        return converted

    def reading(self, examples: Dataset) -> dict[str, str]:
        """Say where ROUGE goes by script: ``{"rouge_words": "unicode"}``."""
        return words_note(choose_words(examples["references"][:]))

    def score(self, predictions: Predictions, examples: Dataset, *, allow_code_execution: Permission = False) -> Scores:
        """Score one summary an example: ``rouge_1``, ``rouge_2`` and ``rouge_l``, F1 with stemming."""
        from srd.metrics.rouge import rouge_l_many, rouge_n_many

        answers = single_answers(predictions, examples, self.name)
        references = examples["references"][:]
        words = choose_words(references)
        per_example = {
            "rouge_1": rouge_n_many(answers, references, 1, words),
            "rouge_2": rouge_n_many(answers, references, 2, words),
            "rouge_l": rouge_l_many(answers, references, words),
        }
        return Scores(means(per_example), per_example, self.primary, words_note(words))


XSUM = XsumTask(
    name="xsum",
    title="XSum",
    licence="not stated; BBC articles",
    source="Narayan et al. 2018 (arXiv 1808.08745), 11,334 test articles",
    primary="rouge_l",
    hub=Hub("EdinburghNLP/xsum", revision=CONVERTED),
    splits=PUBLISHED,
    size=({"train": 204_045, "validation": 11_332, "test": 11_334}, 470, 28),
    decoding=Decoding(max_new_tokens=64),
    reference_fields=("summary", "references", "output"),
)
register_task("xsum")(XSUM)
