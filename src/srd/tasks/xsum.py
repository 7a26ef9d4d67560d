"""XSum: one-sentence summaries of BBC articles, scored by ROUGE-1, -2 and -L."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset

from srd.base.errors import UserError
from srd.data.sources import DATASETS
from srd.metrics.rouge import rouge_l_many, rouge_n_many
from srd.tasks.base import Decoding, Hub, Predictions, Row, Scores, Task, means, single_answers
from srd.tasks.confinement import Permission


@dataclass(frozen=True)
class XsumTask(Task):
    """ROUGE of a summary."""

    def is_test_row(self, row: Row) -> bool:
        """Leave out the few published rows without an article or a summary."""
        return "document" not in row or bool(row["document"] and row.get("summary"))

    def convert(self, row: Row, place: str) -> Row:
        """Ask for the summary with the instruction that training uses."""
        if "document" not in row:
            return row
        converted = DATASETS["xsum"].convert(dict(row), "")
        if converted is None:
            raise UserError(f"{place}: field 'document' or 'summary' is blank: remove the row")
        return converted

    def score(self, predictions: Predictions, examples: Dataset, *, allow_code_execution: Permission = False) -> Scores:
        """Score one summary an example: ``rouge_1``, ``rouge_2`` and ``rouge_l``, F1 with stemming."""
        answers = single_answers(predictions, examples, self.name)
        references = examples["references"][:]
        per_example = {
            "rouge_1": rouge_n_many(answers, references, 1),
            "rouge_2": rouge_n_many(answers, references, 2),
            "rouge_l": rouge_l_many(answers, references),
        }
        return Scores(means(per_example), per_example, self.primary)


XSUM = XsumTask(
    name="xsum",
    title="XSum",
    licence="not stated; BBC articles",
    source="Narayan et al. 2018 (arXiv 1808.08745), 11,334 test articles",
    primary="rouge_l",
    hub=Hub("EdinburghNLP/xsum", revision="refs/convert/parquet"),
    decoding=Decoding(max_new_tokens=64),
    reference_fields=("summary", "references", "output"),
)
