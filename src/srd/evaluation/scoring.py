"""Score answers that were made elsewhere: a file of predictions against a file of references."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from srd.base.errors import UserError
from srd.base.text import many
from srd.data.sources import read_rows
from srd.metrics.scripts import BY_SCRIPT
from srd.sandbox.outside import Permission, require_permission
from srd.tasks.base import Task, get_task

# Fields that hold the id of a row; MBPP calls it `task_id`.
ID_FIELDS = ("id", "task_id")
SHOWN = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Placed:
    """A row, and where it stands."""

    place: str
    row: dict[str, Any]

    @property
    def id(self) -> str | None:
        value = next((self.row[name] for name in ID_FIELDS if self.row.get(name) is not None), None)
        return None if value is None else str(value)


def score_files(
    predictions: Path | str,
    references: Path | str,
    task: str | None = None,
    *,
    allow_code_execution: Permission = False,
) -> dict[str, Any]:
    """Score a file of predictions against a file of references.

    Rows belong together by ``id`` (or ``task_id``) where both files have one, else line by line. A prediction
    is ``{"text": "..."}``; for MBPP the text may be a list of samples. References are the data sets' own rows.

    Args:
        predictions: JSONL, JSON array, CSV or parquet.
        references: the same formats.
        task: name of a task; None: ROUGE-L and exact match.
        allow_code_execution: the user's permission to run the programs that are to be scored; ``"unconfined"``: without
            a sandbox.

    Returns:
        The task's metrics as percentages, unrounded, ``count``, and how the numbers came about where a task
        says so (``signatures``, ``isolation``, ``rouge_words``).

    Raises:
        UserError: a file that cannot be read, counts or ids that do not match, a row without text or reference,
            an empty list of references, an unknown task, or code that may not be run.
    """
    chosen = get_task("instruction" if task is None else task)
    if chosen.runs_code:
        require_permission(allow_code_execution)
    answers, expected = _read(Path(predictions)), _read(Path(references))
    answers = _matched(answers, expected, Path(predictions), Path(references))
    texts = [_text(answer, chosen) for answer in answers]
    examples = Dataset.from_list([chosen.scoring_columns(row.row, row.place) for row in expected])
    if chosen.reading(examples):
        log.warning("%s: %s", references, BY_SCRIPT)
    scores = chosen.scored(texts, examples, allow_code_execution=allow_code_execution)
    percentages = {name: 100 * value for name, value in scores.metrics.items()}
    left_out = scores.details.get("not_counted", {}).get("count", 0)
    return {**percentages, "count": len(expected) - left_out, **scores.details}


def _read(path: Path) -> list[_Placed]:
    rows = [_Placed(f"{path}:{line}", row) for line, row in read_rows(path)]
    if not rows:
        raise UserError(f"{path}: there are no rows in it: give a file with at least one")
    return rows


def _matched(answers: list[_Placed], expected: list[_Placed], predictions: Path, references: Path) -> list[_Placed]:
    """Put the answers into the order of the references."""
    if answers[0].id is not None and expected[0].id is not None:
        by_id = _by_id(answers)
        wanted = _by_id(expected)
        _check_ids(set(by_id) - set(wanted), f"{predictions} has ids that are not in {references}")
        _check_ids(set(wanted) - set(by_id), f"{predictions} has no prediction for ids of {references}")
        return [by_id[name] for name in wanted]
    if len(answers) != len(expected):
        raise UserError(
            f"{predictions} has {many(len(answers), 'prediction')}, but {references} has "
            f"{many(len(expected), 'reference')}: line by line they must be one to one. Complete the "
            "shorter file, or give both an 'id'"
        )
    return answers


def _by_id(rows: list[_Placed]) -> dict[str, _Placed]:
    found: dict[str, _Placed] = {}
    for row in rows:
        name = row.id
        if name is None:
            raise UserError(f"{row.place}: no 'id', although the first row of the file has one: give every row its id")
        if name in found:
            raise UserError(f"{row.place}: id {name!r} was used before, at {found[name].place}: make ids unique")
        found[name] = row
    return found


def _check_ids(unmatched: set[str], problem: str) -> None:
    if unmatched:
        names = sorted(unmatched)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        shown = ", ".join(map(repr, names[:SHOWN]))
        raise UserError(
            f"{problem}: {shown}{more}. Both files must have the same ids; without ids rows are matched by line"
        )


def _text(answer: _Placed, task: Task) -> str | list[str]:
    if "text" not in answer.row:
        found = ", ".join(answer.row) or "nothing"
        raise UserError(f'{answer.place}: no field \'text\': expected {{"text": "..."}}, found {found}')
    text = answer.row["text"]
    if isinstance(text, str):
        return text
    if task.takes_samples and isinstance(text, list) and text and all(isinstance(sample, str) for sample in text):
        return text
    kind = "a text or a list of texts" if task.takes_samples else "a text"
    raise UserError(f"{answer.place}: field 'text' must be {kind}, found {text!r:.80}")
