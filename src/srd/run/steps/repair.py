"""The repair: the teacher answers the prompts of wrong rows, and the best of what it answers becomes their text.

Two steps, so that the teacher is asked again only where it, or what it is asked, has changed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from srd.base import parallel
from srd.base.files import content_of, read_json
from srd.base.tables import data_set, positions, write_table
from srd.base.text import many, verb
from srd.curation.copies import repeating
from srd.curation.detectors.base import REPAIRS, is_superfluous
from srd.curation.groups import MAIN, Groups
from srd.curation.repair import TEMPERATURE, candidates_read, chosen, passing
from srd.models.generation import Decoding
from srd.run.context import Run
from srd.run.outline import order
from srd.run.parts.loading import load_writer
from srd.run.parts.written import TEACHER_TEXT, written_by
from srd.run.steps.base import Step, Summary
from srd.run.steps.cleaning import (
    finds_copies,
    held_out_rows,
    marked_places,
    named_ids,
    own_detectors,
    reader_of,
    take_cleaned,
    where,
    with_flags,
    write_marks,
)

logger = logging.getLogger(__name__)


class Repairs(order.Repairs, Step):
    """``cleaning/repairs.parquet``: to each prompt that it is asked the teacher's greedy answer, and samples."""

    def inputs(self, run: Run) -> list[Any]:
        return [run.encoding, run.teacher_frame, run.recipe.generation.model_dump(), run.recipe.seed, *_asked(run)]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.repairs]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.repairs_work]

    def told(self, run: Run, summary: Summary) -> str:
        told, cut = f"{many(summary['answers'], 'answer')} to {many(summary['rows'], 'row')}", summary["cut"]
        return told + (f", of which {cut:,} {verb(cut, 'does', 'do')} not end" if cut else "")

    def make(self, run: Run) -> Summary:
        asked = _asked(run)
        table = _answers(run, asked) if asked else TEACHER_TEXT.empty_table()
        parallel.on_main(lambda: write_table(data_set(table), run.files.repairs))
        return {"rows": len(asked), "answers": len(table), "cut": len(table) - sum(table["ended"].to_pylist())}


class Repair(order.Repair, Step):
    """``cleaning/rows.parquet`` and ``cleaning/cleaned.parquet`` with the answers that were taken."""

    def inputs(self, run: Run) -> list[Any]:
        settings, (marked, _) = run.recipe.data.cleaning, marked_places(run)
        found = [settings.action, settings.find, content_of(marked), content_of(run.files.detectors)]
        found += ["no copies", run.recipe.data.leaks == "warn"] if finds_copies(run) else []
        return [*found, *own_detectors(run.recipe)]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.marked, run.files.cleaned]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.repair_work]

    def told(self, run: Run, summary: Summary) -> str:
        repaired, dropped = summary["repaired"], summary["dropped"]
        told = f"{many(summary['wrong'], 'wrong row')}, {repaired:,} repaired and {dropped:,} dropped"
        return told + (f"; {many(summary['rewritten'], 'other')} rewritten" if "rewritten" in summary else "")

    def make(self, run: Run) -> Summary:
        rows, marks = run.split("train", cleaned=False), pq.read_table(marked_places(run)[0])
        why = np.asarray(marks["why"].to_pylist(), dtype=object)
        answers = _usable(rows, pq.read_table(run.files.repairs))
        new = _without_copies(run, rows, why, _chosen(run, rows, answers)) if answers else {}
        if parallel.is_main():
            repaired = np.isin(np.arange(len(rows)), list(new))
            before = [row["references"][0] if old else None for row, old in with_flags(rows, repaired | (why != ""))]
            after = [new[row].text if row in new else None for row in range(len(rows))]
            columns = [
                name for name in marks.column_names if name not in ("repaired", "response_before", "response_after")
            ]
            write_marks(marks.select(columns), repaired, before, after, run.files.marked)
            write_table(_with_responses(rows, new).select(np.flatnonzero((why == "") | repaired)), run.files.cleaned)
        parallel.barrier()
        wrong, right = int((why != "").sum()), sum(not why[row] for row in new)
        others = {"rewritten": right} if run.recipe.data.cleaning.action == "rewrite" else {}
        return {"wrong": wrong, "repaired": len(new) - right, "dropped": wrong - len(new) + right, **others}

    def open(self, run: Run) -> None:
        take_cleaned(run, self, run.files.cleaned)


# ----------------------------------------------------------------------------------------------------- what is answered


def _asked(run: Run) -> list[str]:
    """Ids of the rows that the teacher answers anew: those that are wrong, and not only one too many; or all but these.

    A row that the user has named as right keeps its text.
    """
    marks = pq.read_table(marked_places(run)[0], columns=["id", "why"])
    why, ids = np.asarray(marks["why"].to_pylist(), dtype=object), marks["id"].to_pylist()
    asked, settings = ~where(is_superfluous, why), run.recipe.data.cleaning
    asked &= ~np.isin(ids, named_ids("keep", settings.keep, ids)) if settings.action == "rewrite" else why != ""
    return [ids[row] for row in np.flatnonzero(asked)]


def _answers(run: Run, names: list[str]) -> pa.Table:
    """The teacher's answers to these rows, as `TEACHER_TEXT`: all greedy ones, then a sample of each, and so on."""
    rows = run.split("train", cleaned=False)
    prompts, _, _ = run.teacher_encoder.prompts(rows.select(positions(names, rows)).to_list())
    longest, seed = run.recipe.generation.max_new_tokens, run.recipe.seed
    ways = [Decoding(longest), *(Decoding(longest, TEMPERATURE, seed=seed + i) for i in range(REPAIRS))]
    model, tokenizer = load_writer(run.teacher_source, run, run.teacher_options()), run.teacher_encoder.tokenizer
    found = []
    for number, way in enumerate(ways):
        title, work = f"teacher repairs, {number + 1} of {len(ways)}", run.files.repairs_work / str(number)
        written, texts = written_by(run, model, tokenizer, prompts, names, way, title, work)
        tokens, ended = zip(*written, strict=True)
        columns = {"id": names, "response": texts, "tokens": tokens, "ended": ended}
        found.append(pa.table(columns, schema=TEACHER_TEXT))
    return pa.concat_tables(found)


# -------------------------------------------------------------------------------------------------- what of it is taken


class Answer(NamedTuple):
    """What the teacher has written for a row: its text, and the token ids that are trained on."""

    row: int
    text: str
    tokens: tuple[int, ...]


def _usable(rows: datasets.Dataset, table: pa.Table) -> list[Answer]:
    """Of the teacher's answers (`TEACHER_TEXT`) those that end and say something, each once."""
    listed = zip(positions(table["id"], rows).tolist(), table.drop_columns("id").to_pylist(), strict=True)
    found = [
        Answer(row, text, tuple(each["tokens"])) for row, each in listed
        if each["ended"] and each["tokens"] and (text := each["response"].strip())
    ]  # fmt: skip
    return list(dict.fromkeys(found))


def _chosen(run: Run, rows: datasets.Dataset, answers: list[Answer]) -> dict[int, Answer]:
    """Of each row that has an answer which passes the detectors, the one that the student finds likeliest."""
    settings, owners = run.recipe.data.cleaning, np.array([answer.row for answer in answers], dtype=np.int64)
    candidates = _answered(rows.select(owners), answers)
    with run.progress("student reads answers") as update:
        reader = reader_of(run, run.files.repair_work, update)
        if refused := reader.encoder.refused(candidates.to_list()):  # an answer without a thought, where one is opened
            taken = [place for place in range(len(answers)) if place not in refused]
            answers, owners, candidates = [answers[i] for i in taken], owners[taken], candidates.select(taken)
        if not answers:
            return {}
        read, groups = candidates_read(rows, owners, candidates, settings.find, reader)
    thresholds = {name: _thresholds(each, groups) for name, each in read_json(run.files.detectors).items()}
    fine = passing(candidates, read, thresholds, settings.find, run.recipe.data.train_on)
    return {row: answers[candidate] for row, candidate in chosen(owners, fine, read["ce"]).items()}


def _without_copies(
    run: Run, rows: datasets.Dataset, why: NDArray[np.object_], new: dict[int, Answer]
) -> dict[int, Answer]:
    """The answers that do not make their row a near copy of another one, or of one that is held out.

    A right row whose answer is not used has its own text again, which others are compared with then.
    """
    left, looks = new, bool(new) and finds_copies(run)
    held_out = None if run.recipe.data.leaks == "warn" else held_out_rows(run)
    while looks:
        places = np.flatnonzero((why == "") | np.isin(np.arange(len(rows)), list(left)))
        after, are_new = _with_responses(rows, left).select(places), np.isin(places, list(left))
        gone = set(places[parallel.on_main(functools.partial(repeating, after, are_new, held_out))].tolist())
        left = {row: answer for row, answer in left.items() if row not in gone}
        looks = any(not why[row] for row in gone)
    if unused := len(new) - len(left):
        logger.info("%s of the teacher would repeat another row, or one that is held out, and %s not used.",
                    many(unused, "answer"), verb(unused))  # fmt: skip
    return left


def _thresholds(detector: dict[str, Any], groups: Groups) -> NDArray[np.float64]:
    """The threshold of a detector for each of these groups, as ``detectors.json`` has it; else that of most rows."""
    of = {group: each["threshold"] for group, each in {MAIN: detector, **detector.get("elsewhere", {})}.items()}
    known = [of.get(group, of[MAIN]) for group in groups]
    return np.array([np.inf if threshold is None else threshold for threshold in known])


def _answered(rows: datasets.Dataset, answers: Sequence[Answer]) -> datasets.Dataset:
    """Rows with these answers, whose token ids stand beside their texts."""
    features = datasets.Features({**rows.features, "tokens": datasets.List(datasets.Value("int32"))})
    listed = [
        {**row, "references": [answer.text], "tokens": list(answer.tokens)}
        for row, answer in zip(rows, answers, strict=True)
    ]
    return datasets.Dataset.from_list(listed, features=features)


def _with_responses(rows: datasets.Dataset, new: dict[int, Answer]) -> datasets.Dataset:
    """The rows, some with a response of their own, and the token ids of that."""
    if not new:
        return rows
    places = sorted(new)
    changed = _answered(rows.select(places), [new[place] for place in places])
    picked = np.arange(len(rows))
    picked[places] = len(rows) + np.arange(len(places))
    return datasets.concatenate_datasets([rows, changed]).select(picked)
