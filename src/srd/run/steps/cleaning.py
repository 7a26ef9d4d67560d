"""The cleaning: what an untrained model reads of the rows, which of them are wrong, and what becomes of those.

Three steps, so that what is asked for anew is no more than what has changed: the reading, which takes forward passes;
the marking, which takes none; and the repair, which comes after the teacher.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from srd.base import parallel
from srd.base.console import console
from srd.base.errors import UserError
from srd.base.failures import reading
from srd.base.files import content_of, fingerprint, read_json, read_sealed, write_json, write_sealed
from srd.base.tables import data_set, map_large, parts_of, write_table
from srd.base.text import many, shorten, verb
from srd.curation.calibration import FEWEST, Calibration, rules
from srd.curation.cleaning import Findings, Reader, Reads, find_wrong, read_for
from srd.curation.copies import repeating
from srd.curation.detectors.base import (
    DETECTORS,
    HELD_OUT,
    REPAIRS,
    can_soften,
    is_superfluous,
    needs_of_damage,
    needs_of_scores,
    reason_of,
    work_for,
)
from srd.curation.groups import MAIN, Groups
from srd.curation.repair import TEMPERATURE, candidates_read, chosen, passing
from srd.curation.shots import SHOTS
from srd.data.encoding import AT_ONCE, Encoder
from srd.data.files import is_data
from srd.data.leaks import are_dropped
from srd.data.sources import read_rows
from srd.data.templates.auto import Otherwise
from srd.models.generation import Decoding
from srd.models.settings import ModelConfig
from srd.recipe.schema import Recipe
from srd.run.context import Run, load_options
from srd.run.identity import model_identity, plugins_identity
from srd.run.outline import order
from srd.run.parts.loading import load_reader, load_writer
from srd.run.parts.written import written_by
from srd.run.steps.base import Step, Summary, key_of

logger = logging.getLogger(__name__)

SHOWN = 3  # rows of each reason in a message
#: What each kind of damage is made of.
FEWEST_OF = {
    "swapped": "rows that ask different things",
    "cut": "rows whose response has two words",
    "garbled": "rows whose response has two words",
}


def reading_model(recipe: Recipe) -> ModelConfig:
    """The model that reads: the student as it comes, before anything is done to it; else the teacher."""
    return recipe.student if recipe.student.model else recipe.teacher


def reader_of(run: Run, folder: Path, progress: Any) -> Reader:
    """The model that reads, loaded."""
    named = reading_model(run.recipe)
    model = load_reader(str(named.model), run, load_options(named))
    return Reader(model, frame_read(run), run.recipe.generation.batch_size, folder, progress)


def frame_read(run: Run) -> Encoder:
    """The frame that the model which reads knows: its own chat template. Where that cannot be, as rows are learnt."""
    try:
        chat = run.encoder.with_template("chat")
    except UserError:  # there is none, or several of which none is the default
        return run.encoder
    chat.train_on = "last"  # that is what is read
    refused, rendered = [], []
    for part in parts_of(rows := run.split("train", cleaned=False), rows.column_names, AT_ONCE):
        listed = part.to_pylist()
        refused += [listed[place]["id"] for place in chat.refused(listed)]
        rendered += [row["id"] for row in listed if row["prompt"] and chat.control.found(row["prompt"])]
    for ids, why in ((refused, "the model's chat template refuses them, or is too long for data.max_prompt_length"),
                     (rendered, "their prompt has control tokens, as if a chat template had written it")):  # fmt: skip
        if ids:
            logger.info("cleaning: %s read in the frame of data.template (the first is '%s'): %s",
                        f"{many(len(ids), 'row')} {verb(len(ids))}", ids[0], why)  # fmt: skip
    return chat.framed_by(Otherwise(chat.template, run.encoder.template, {*refused, *rendered}))


class Likelihoods(order.Likelihoods, Step):
    """``cleaning/likelihoods.parquet``: of the rows, and of damage that is made of them."""

    def inputs(self, run: Run) -> list[Any]:
        """What is read; of a finished reading for other detectors what that has read, if it has all that these ask."""
        find = _that_ask(run.recipe.data.cleaning.find)
        before = run.manifest.steps.get(self.name, {}).get("summary", {}).get("find", [])
        if set(before) <= set(DETECTORS.names()) and _has_read(before, find):
            of_others = self._asked(run, before)
            if run.manifest.finished(self.name, key_of(run, self, of_others)):
                return of_others
        return self._asked(run, find)

    def _asked(self, run: Run, find: list[str]) -> list[Any]:
        needs, kinds = work_for(find)
        # There were readings without an empty prompt among the others. Where a score asks for one, needs do not tell.
        later: list[Any] = ["with an empty prompt"] if {"mismatched", "unprompted"} <= needs_of_scores(find) else []
        of_damage = {kind: sorted(needs_of_damage(find, kind)) for kind in sorted(kinds - {"swapped"})}
        later += [[kind, more] for kind, more in of_damage.items() if more]
        later += ["shown before by whomever they are taught"] if run.recipe.teach_by_row else []
        frame = [run.encoding, bool(run.tokenizer.chat_template), SHOTS]
        batch_size, seed = run.recipe.generation.batch_size, run.recipe.seed
        model = model_identity(reading_model(run.recipe))
        return [sorted(needs), sorted(kinds), model, frame, batch_size, seed, *later]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.likelihoods]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.likelihoods_work]

    def told(self, run: Run, summary: Summary) -> str:
        rows, damage = summary["examples"], sum(count for count in summary.values() if isinstance(count, int))
        return f"{many(rows, 'row')} read, and {damage - rows:,} that were damaged on purpose"

    def make(self, run: Run) -> Summary:
        rows, settings = run.split("train"), run.recipe.data.cleaning
        with run.progress("likelihoods") as update:
            reads = read_for(rows, settings.find, reader_of(run, run.files.likelihoods_work, update), run.recipe.seed)
        parallel.on_main(lambda: write_table(data_set(reads.table()), run.files.likelihoods))
        counts = {kind: len(columns["ce"]) for kind, columns in reads.damage.items()}
        return {"examples": len(rows), **counts, "find": _that_ask(settings.find)}


def _that_ask(find: Sequence[str]) -> list[str]:
    """The detectors that a model reads for."""
    return [name for name in find if DETECTORS.get(name).damage is not None]


def _has_read(before: Sequence[str], find: Sequence[str]) -> bool:
    """Whether what was read for some detectors has all that others ask."""
    (had, made), (needs, kinds) = work_for(before), work_for(find)
    of_damage = (needs_of_damage(find, kind) <= needs_of_damage(before, kind) for kind in kinds)
    return needs <= had and kinds <= made and all(of_damage)


def marking_rules(recipe: Recipe) -> list[Any]:
    """What rows are marked by beside the recipe, where scores decide."""
    cleans = recipe.data.cleaning.action != "off"
    return [rules()] if cleans and Likelihoods.name in order.Cleaning().after(recipe) else []


def _own_detectors(recipe: Recipe) -> list[Any]:
    """What the user's own detectors go by."""
    return plugins_identity(recipe, recipe.data.cleaning, "detector", "score")


class Cleaning(order.Cleaning, Step):
    """``cleaning/rows.parquet``, ``cleaning/cleaned.parquet`` and ``cleaning/detectors.json``."""

    def inputs(self, run: Run) -> list[Any]:
        settings = run.recipe.data.cleaning
        files = [content_of_file(settings.keep), content_of_file(settings.drop)]
        idle = ("keep", "drop", *(() if settings.changes_rows else ("most",)))  # a report stops nothing
        found = [settings.model_dump(exclude=set(idle)), files, run.recipe.data.leaks]
        later = ["by all answers that are learnt"] if run.recipe.data.train_on == "all" else []
        later += ["of softened copies one"] if settings.action == "soften" and _finds_copies(run) else []
        return [*found, *marking_rules(run.recipe), *_own_detectors(run.recipe), *later]

    def outputs(self, run: Run) -> list[Path]:
        places = [*_places(run), run.files.detectors]
        return places if run.recipe.data.cleaning.changes_rows else [places[0], places[2]]

    def told(self, run: Run, summary: Summary) -> str:
        return f"{summary['wrong']:,} of {many(summary['rows'], 'row')} marked as wrong"

    def work_out(self, run: Run) -> None:
        parallel.on_main(lambda: self._mark(run))

    def make(self, run: Run) -> Summary:
        return parallel.on_main(lambda: self._write(run))

    def _mark(self, run: Run) -> None:
        settings, rows = run.recipe.data.cleaning, run.split("train")
        asks = Likelihoods.name in self.after(run.recipe)
        keep, drop = (named_ids(field, getattr(settings, field), rows) for field in ("keep", "drop"))
        if both := set(keep).intersection(drop):
            raise UserError(
                f"data.cleaning.keep and data.cleaning.drop both name '{min(both)}' ({many(len(both), 'id')} in all): "
                "a row is right or wrong. Take it out of one of the files."
            )
        found = find_wrong(
            rows, settings.find,
            reads=Reads.of(pq.read_table(run.files.likelihoods)) if asks else None,
            held_out=_held_out(run), keep=keep, drop=drop, train_on=run.recipe.data.train_on,
        )  # fmt: skip
        _judge_leaks(run, found)
        _tell(found)
        _check_share(run, found, rows)
        self._found = found

    def _write(self, run: Run) -> Summary:
        settings, rows, found = run.recipe.data.cleaning, run.split("train"), self._found
        del self._found  # a step is there as long as its command
        table = pa.table(found.columns())
        before = [row["references"][0] if wrong else None for row, wrong in _with(rows, found.wrong)]
        softened = _where(can_soften, found.why) & np.logical_not(found.spare)  # of copies one is enough
        kept = ~found.wrong | (softened if settings.action == "soften" else False)
        after = [text if soft else None for text, soft in zip(before, kept, strict=True)]
        marked, cleaned = _places(run)
        _write_rows(table, np.zeros(len(rows), bool), before, after, marked)
        write_json(run.files.detectors, found.as_json())
        if settings.changes_rows:
            write_table(rows.select(np.flatnonzero(kept)), cleaned)
        return {"rows": len(rows), "wrong": int(found.wrong.sum())}

    def open(self, run: Run) -> None:
        if run.recipe.data.cleaning.changes_rows:
            take_cleaned(run, self, _places(run)[1])


class Repair(order.Repair, Step):
    """``cleaning/rows.parquet`` and ``cleaning/cleaned.parquet`` once the teacher has answered for wrong rows."""

    def inputs(self, run: Run) -> list[Any]:
        settings, marks = run.recipe.data.cleaning, [*_places(run)[:1], run.files.detectors]
        found: list[Any] = [run.encoding, run.teacher_frame, run.recipe.generation.model_dump()]
        found += [settings.find, *map(content_of, marks), *_own_detectors(run.recipe)]
        found += ["no copies", run.recipe.data.leaks == "warn"] if _finds_copies(run) else []
        return [*found, *([settings.action, content_of_file(settings.keep)] if settings.action == "rewrite" else [])]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.marked, run.files.cleaned]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.repair_work]

    def told(self, run: Run, summary: Summary) -> str:
        repaired, dropped = summary["repaired"], summary["dropped"]
        told = f"{many(summary['wrong'], 'wrong row')}, {repaired:,} repaired and {dropped:,} dropped"
        return told + (f"; {many(summary['rewritten'], 'other')} rewritten" if "rewritten" in summary else "")

    def make(self, run: Run) -> Summary:
        rows, marks = run.split("train", cleaned=False), pq.read_table(_places(run)[0])
        why = np.asarray(marks["why"].to_pylist(), dtype=object)
        asked = np.flatnonzero(_is_asked(run, rows, why))
        answers = _answers(run, rows, asked) if len(asked) else []
        new = _without_copies(run, rows, why, _chosen(run, rows, answers)) if answers else {}
        if parallel.is_main():
            repaired = np.isin(np.arange(len(rows)), list(new))
            before = [row["references"][0] if old else None for row, old in _with(rows, repaired | (why != ""))]
            after = [new[row].text if row in new else None for row in range(len(rows))]
            columns = [
                name for name in marks.column_names if name not in ("repaired", "response_before", "response_after")
            ]
            _write_rows(marks.select(columns), repaired, before, after, run.files.marked)
            write_table(_with_responses(rows, new).select(np.flatnonzero((why == "") | repaired)), run.files.cleaned)
        parallel.barrier()
        wrong, right = int((why != "").sum()), sum(not why[row] for row in new)
        others = {"rewritten": right} if run.recipe.data.cleaning.action == "rewrite" else {}
        return {"wrong": wrong, "repaired": len(new) - right, "dropped": wrong - len(new) + right, **others}

    def open(self, run: Run) -> None:
        take_cleaned(run, self, run.files.cleaned)


# ------------------------------------------------------------------------------------------------------------- marking


def _places(run: Run) -> list[Path]:
    """Where the marks and the cleaned rows are written; where a repair is to come, it writes those that count."""
    files = run.files
    if not run.recipe.data.cleaning.teacher_answers:
        return [files.marked, files.cleaned]
    return [files.unrepaired / "rows.parquet", files.unrepaired / "unmarked.parquet"]


def take_cleaned(run: Run, step: Step, path: Path) -> None:
    """Let all that follows train on these rows: what decides its result is the rows, however they came about.

    So what depends on the step goes by them: runs that differ in what becomes of marked rows have one teacher.
    """
    parallel.on_main(lambda: map_large([path], run.files.mapped))
    run.cleaned = path
    run.forget_tokens()
    run.keys[step.name] = parallel.on_main(lambda: fingerprint(content_of(path), *_softened(run)))


def _softened(run: Run) -> list[Any]:
    """What else decides a training: the rows without cross-entropy, on which the teacher has the whole weight."""
    return [names, "by the teacher alone"] if (names := sorted(run.soft_rows())) else [names]


def _is_asked(run: Run, rows: datasets.Dataset, why: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which rows the teacher answers anew: those that are wrong, and not only one of them too many; or all but these.

    A row that the user has named as right keeps its text.
    """
    asked = ~_where(is_superfluous, why)
    if run.recipe.data.cleaning.action != "rewrite":
        return asked & (why != "")
    return asked & ~np.isin(rows["id"], named_ids("keep", run.recipe.data.cleaning.keep, rows))


def _judge_leaks(run: Run, found: Findings) -> None:
    """Rows that copy one that is held out: dropped, only told of, or refused, as data.leaks says of equal prompts."""
    copied = found.why == HELD_OUT
    copies = verb(copied.sum(), "is a near copy", "are near copies")
    said = f"{copied.sum()} of {len(copied)} training rows {copies} of a validation or test row"
    if copied.any() and not are_dropped(said, run.recipe.data.leaks):
        assert found.otherwise is not None, "copies were looked for"
        found.why[copied] = found.otherwise[copied]


def _where(holds: Callable[[str], bool], why: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which rows are marked for a reason of which something holds."""
    return np.isin(why, [each for each in set(why) if holds(each)])


def content_of_file(name: str | None) -> Any:
    """What stands for a user's file of ids in a fingerprint."""
    return content_of(Path(name).expanduser()) if name else None


def named_ids(field: str, name: str | None, rows: datasets.Dataset) -> list[str]:
    """The ids in a user's file: a line each, or the column ``id`` of a file of rows, of any format of training rows.

    Raises:
        UserError: there is no such file, it has no ids, or none of them is a training row's.
    """
    if name is None:
        return []
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"data.cleaning.{field}: there is no file '{path}'. Check the path.")
    if is_data(path):
        listed = [row for _, row in read_rows(path)]
        columns = list(dict.fromkeys(itertools.chain(*listed)))
        if listed and "id" not in columns:
            raise UserError(f"data.cleaning.{field}: {path} has no column 'id'; it has {columns}")
        ids = [str(row["id"]) for row in listed if row.get("id") not in (None, "")]
    else:
        with reading(path, "a list of ids in UTF-8"):
            ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    known = set(rows["id"])
    # A column of whole numbers in which one is missing is one of 4.0 and 7.0 to pandas.
    ids = [each if each in known else each.removesuffix(".0") for each in ids]
    strange = [each for each in ids if each not in known]
    if ids and len(strange) == len(ids):
        raise UserError(
            f"data.cleaning.{field}: none of {many(len(ids), 'id')} in {path} is a training row's; the first is "
            f"'{ids[0]}', and the first training row is '{rows['id'][0]}'. Name rows by their ids in "
            "examples/train.parquet, one to a line or in the column 'id' of a .parquet, .csv or .jsonl file. Rows that "
            "went to validation or test, and those that data.leaks has dropped, are no training rows."
        )
    if strange:
        logger.warning("data.cleaning.%s: %d of %d ids in %s %s no training row's (the first: '%s')",
                       field, len(strange), len(ids), path, verb(len(strange)), strange[0])  # fmt: skip
    return ids


def _tell(found: Findings) -> None:
    """A line for each reason, and one for each detector that cannot tell."""
    for name, each in found.calibrations.items():
        others = {group: one for group, one in found.elsewhere.get(name, {}).items() if one.has_enough}
        for group, one in {MAIN: each, **others}.items():
            if not one.can_tell:
                why = (f"it tells only {100 * one.auc:.0f} % of damage of its own from your rows, and half of it by "
                       "chance. Either it is too weak for them, or most of them are wrong already"
                       if one.has_enough else _lacking(name, one))  # fmt: skip
                which = f" ({group})" if group else ""
                logger.warning("cleaning: '%s' cannot tell which rows%s %s: %s", name, which, reason_of(name), why)
    for group in dict.fromkeys(group for of in found.elsewhere.values() for group in of):
        of = {name: of[group] for name, of in found.elsewhere.items() if group in of and not of[group].has_enough}
        if of:
            logger.warning(
                "cleaning: %s mark none of %s (%s): they compare rows of one script and template, and it takes %d",
                " and ".join(f"'{name}'" for name in of), many(max(each.rows for each in of.values()), "row"), group,
                FEWEST,
            )  # fmt: skip
    for why, count in found.counts().items():
        power = found.calibrations.get(why)
        told = f" (it tells {100 * power.auc:.0f} % of its own damage from these rows)" if power else ""
        console.print(
            f"  rows that {reason_of(why)} [dim]\\[{why}][/]: {count:,} of {len(found.ids):,}{told}", highlight=False
        )
    if not found.wrong.any():
        console.print(f"  none of {len(found.ids):,} rows is marked", highlight=False)


def _lacking(name: str, found: Calibration) -> str:
    """What a detector has too few of: rows, or rows that can be damaged for it."""
    told = f"it takes {FEWEST} rows to find out, and there are {found.rows}"
    if found.damaged >= found.rows:
        return told
    made_of = FEWEST_OF[str(DETECTORS.get(name).damage)]
    return f"it takes {FEWEST} {made_of} to find out, and of the {found.rows} rows {found.damaged} are that"


def _check_share(run: Run, found: Findings, rows: datasets.Dataset) -> None:
    """Refuse to go on where more rows are marked than can be believed, or all of them."""
    settings = run.recipe.data.cleaning
    share = float(found.wrong.mean())
    if not settings.changes_rows or (share <= settings.most and share < 1):
        return
    too_many, others = f"more than data.cleaning.most ({settings.most:g}) allows", ", raise data.cleaning.most"
    if share == 1:
        too_many, others = "so that none is left to train on", ", take other rows"
    shown = []
    for why, count in found.counts().items():
        places = np.flatnonzero(found.why == why)[:SHOWN]
        shown.append(f"\n  rows that {reason_of(why)} ({why}): {count}")
        shown += [
            f"\n    {row['id']}: {shorten(' '.join(str(row['instruction']).split()), 60)} → "
            f"{shorten(' '.join(row['references'][0].split()), 60)}"
            for row in rows.select(places)
        ]
    raise UserError(
        f"cleaning marks {100 * share:.0f} % of the {len(rows)} training rows, {too_many}:{''.join(shown)}\n"
        f"Look at them: data.cleaning.action=report writes {run.files.marked.relative_to(run.folder)} and changes "
        "nothing. Then leave a detector out (data.cleaning.find=[…]), name rows that are right "
        f"(data.cleaning.keep=FILE), or, if they are wrong{others}."
    )


def _with(rows: datasets.Dataset, flags: NDArray[np.bool_]) -> Any:
    """Rows beside their flags; a row that is not flagged is not read."""
    chosen = iter(rows.select(np.flatnonzero(flags)))
    return ((next(chosen) if flag else None, flag) for flag in flags.tolist())


def _write_rows(
    marks: pa.Table, repaired: NDArray[np.bool_], before: list[str | None], after: list[str | None], path: Path
) -> None:
    """Write what was found of each row; texts of marked rows alone, ``response_after`` none where it was dropped."""
    texts = {"response_before": pa.array(before, pa.string()), "response_after": pa.array(after, pa.string())}
    columns = {name: marks[name] for name in marks.column_names}
    write_table(data_set(pa.table({**columns, "repaired": repaired, **texts})), path)


# -------------------------------------------------------------------------------------------------------------- repair


class Answer(NamedTuple):
    """What the teacher has written for a row: its text, and the token ids that are trained on."""

    row: int
    text: str
    tokens: tuple[int, ...]


def _answers(run: Run, rows: datasets.Dataset, wrong: NDArray[np.int64]) -> list[Answer]:
    """The teacher's answers to prompts, greedy and sampled, those that end and say something."""
    encoder, asked = run.teacher_encoder, rows.select(wrong).to_list()
    prompts, _, _ = encoder.prompts(asked)
    names, longest = [row["id"] for row in asked], run.recipe.generation.max_new_tokens
    ways = [Decoding(longest), *(Decoding(longest, TEMPERATURE, seed=run.recipe.seed + i) for i in range(REPAIRS))]
    model: Any = None
    found: list[Answer] = []
    for number, way in enumerate(ways):
        path = run.files.repair_work / f"answers-{number}.json"
        made_from = fingerprint(names, prompts, vars(way), "tokens")
        kept = parallel.on_main(functools.partial(read_sealed, path))
        if kept.get("made_from") != made_from:
            model = model or load_writer(run.teacher_source, run, run.teacher_options())
            title = f"teacher repairs, {number + 1} of {len(ways)}"
            work = run.files.repair_work / str(number)
            kept = {"made_from": made_from, "answers": _written(run, model, prompts, names, way, title, work)}
            if parallel.is_main():
                write_sealed(path, kept)
        pairs = zip(wrong, kept["answers"], strict=True)
        found += [Answer(int(row), text, tuple(tokens)) for row, (text, tokens) in pairs if tokens]
    return list(dict.fromkeys(found))


def _written(
    run: Run, model: Any, prompts: list[list[int]], names: list[str], way: Decoding, title: str, work: Path
) -> list[tuple[str, list[int]]]:
    """Answers as text and token ids; without the latter those that do not end, or say nothing."""
    written, texts = written_by(run, model, run.teacher_encoder.tokenizer, prompts, names, way, title, work)
    if cut := sum(not ended for _, ended in written):
        logger.info("Not used as cut at %d tokens: %d of %d repairs.", way.max_new_tokens, cut, len(texts))
    return [
        (text.strip(), tokens if ended and text.strip() else [])
        for text, (tokens, ended) in zip(texts, written, strict=True)
    ]


def _chosen(run: Run, rows: datasets.Dataset, answers: list[Answer]) -> dict[int, Answer]:
    """Of each row that has an answer which passes the detectors, the one that the student finds likeliest."""
    settings, owners = run.recipe.data.cleaning, np.array([answer.row for answer in answers], dtype=np.int64)
    candidates = _answered(rows.select(owners), answers)
    with run.progress("student reads answers") as update:
        reader = reader_of(run, run.files.repair_work / "read", update)
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
    """The answers that do not make their row a near copy of another one, or of one that is held out."""
    if not new or not _finds_copies(run):
        return new
    places = np.flatnonzero((why == "") | np.isin(np.arange(len(rows)), list(new)))
    held_out = None if run.recipe.data.leaks == "warn" else _held_out(run)
    after = _with_responses(rows, new).select(places)
    copies = parallel.on_main(lambda: repeating(after, np.isin(places, list(new)), held_out))
    gone = set(places[copies].tolist())
    if gone:
        logger.info("%s of the teacher would repeat another row, or one that is held out, and %s not used.",
                    many(len(gone), "answer"), "is" if len(gone) == 1 else "are")  # fmt: skip
    return {row: answer for row, answer in new.items() if row not in gone}


def _finds_copies(run: Run) -> bool:
    return any(DETECTORS.get(each).of_copies for each in run.recipe.data.cleaning.find)


def _held_out(run: Run) -> datasets.Dataset:
    return datasets.concatenate_datasets([run.split("validation"), run.split("test")])


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
