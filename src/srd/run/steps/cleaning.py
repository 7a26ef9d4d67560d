"""The cleaning: what an untrained model reads of the rows, which of them are wrong, and what becomes of those.

Steps of their own, so that what is asked for anew is no more than what has changed: the reading, which takes forward
passes, and the marking, which takes none. What comes after the teacher is in `srd.run.steps.repair`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from srd.base import parallel
from srd.base.console import console
from srd.base.errors import UserError
from srd.base.failures import reading
from srd.base.files import content_of, fingerprint, write_json
from srd.base.tables import data_set, map_large, parts_of, write_table
from srd.base.text import many, shorten, verb
from srd.curation.calibration import FEWEST, Calibration, rules
from srd.curation.cleaning import Findings, Reader, Reads, find_wrong, read_for
from srd.curation.detectors.base import (
    DETECTORS,
    can_soften,
    needs_of_damage,
    needs_of_scores,
    reason_of,
    work_for,
)
from srd.curation.groups import MAIN
from srd.curation.shots import SHOTS
from srd.data.encoding import AT_ONCE, Encoder
from srd.data.files import is_data
from srd.data.leaks import are_dropped
from srd.data.settings import CleaningConfig
from srd.data.sources import read_rows
from srd.data.templates.auto import Otherwise
from srd.models.settings import ModelConfig
from srd.recipe.schema import Recipe
from srd.run.context import Run, load_options
from srd.run.identity import model_identity, plugins_identity
from srd.run.outline import order
from srd.run.parts.loading import load_reader
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
            # What is damaged is read again, for these alone, and must not be taken for what the others ask.
            if run.manifest.finished(self.name, key_of(run, self, of_others)) and not run.manifest.damaged(self.name):
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


def own_detectors(recipe: Recipe) -> list[Any]:
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
        later += ["copies of test rows stay"] if run.recipe.data.leaks == "warn" and finds_copies(run) else []
        later += ["of softened copies one"] if settings.action == "soften" and finds_copies(run) else []
        return [*found, *marking_rules(run.recipe), *own_detectors(run.recipe), *later]

    def outputs(self, run: Run) -> list[Path]:
        places = [*marked_places(run), run.files.detectors]
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
        keep, drop = named_by_user(settings, rows["id"])
        found = find_wrong(
            rows, settings.find,
            reads=Reads.of(pq.read_table(run.files.likelihoods)) if asks else None,
            held_out=held_out_rows(run), held_stay=run.recipe.data.leaks == "warn", keep=keep, drop=drop,
            train_on=run.recipe.data.train_on,
        )  # fmt: skip
        _judge_leaks(run, found)
        _tell(found)
        _check_share(run, found, rows)
        self._found = found

    def _write(self, run: Run) -> Summary:
        settings, rows, found = run.recipe.data.cleaning, run.split("train"), self._found
        del self._found  # a step is there as long as its command
        table = pa.table(found.columns())
        before = [row["references"][0] if wrong else None for row, wrong in with_flags(rows, found.wrong)]
        softened = where(can_soften, found.why) & np.logical_not(found.spare)  # of copies one is enough
        kept = ~found.wrong | (softened if settings.action == "soften" else False)
        after = [text if soft else None for text, soft in zip(before, kept, strict=True)]
        marked, cleaned = marked_places(run)
        write_marks(table, np.zeros(len(rows), bool), before, after, marked)
        write_json(run.files.detectors, found.as_json())
        if settings.changes_rows:
            write_table(rows.select(np.flatnonzero(kept)), cleaned)
        return {"rows": len(rows), "wrong": int(found.wrong.sum())}

    def open(self, run: Run) -> None:
        if run.recipe.data.cleaning.changes_rows:
            take_cleaned(run, self, marked_places(run)[1])


# ------------------------------------------------------------------------------------------------------------- marking


def marked_places(run: Run) -> list[Path]:
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


def _judge_leaks(run: Run, found: Findings) -> None:
    """Tell of rows that copy one that is held out, or refuse them, as data.leaks says of equal prompts."""
    copied = int(np.sum(found.held))
    copies = verb(copied, "is a near copy", "are near copies")
    if copied:
        said = f"{copied} of {len(found.ids)} training rows {copies} of a validation or test row"
        are_dropped(said, run.recipe.data.leaks)


def where(holds: Callable[[str], bool], why: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which rows are marked for a reason of which something holds."""
    return np.isin(why, [each for each in set(why) if holds(each)])


def content_of_file(name: str | None) -> Any:
    """What stands for a user's file of ids in a fingerprint."""
    return content_of(Path(name).expanduser()) if name else None


def named_ids(field: str, name: str | None, of_rows: Sequence[str]) -> list[str]:
    """The ids in a user's file: a line each, or the column ``id`` of a file of rows, of any format of training rows.

    Raises:
        UserError: there is no such file, or it has no ids.
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
    known = set(of_rows)
    # A column of whole numbers in which one is missing is one of 4.0 and 7.0 to pandas.
    return [each if each in known else each.removesuffix(".0") for each in ids]


def named_by_user(settings: CleaningConfig, of_rows: Sequence[str]) -> tuple[list[str], list[str]]:
    """The ids that the user keeps and drops.

    Raises:
        UserError: see `named_ids`; none of a file's ids is a training row's, or a row is to be kept and dropped.
    """
    found = {}
    for field, name in {"keep": settings.keep, "drop": settings.drop}.items():
        found[field] = ids = named_ids(field, name, of_rows)
        known = set(of_rows) if ids else set()
        strange = [each for each in ids if each not in known]
        if ids and len(strange) == len(ids):
            raise UserError(
                f"data.cleaning.{field}: none of {many(len(ids), 'id')} in {name} is a training row's; the first is "
                f"'{ids[0]}', and the first training row is '{of_rows[0]}'. Name rows by their ids in "
                "examples/train.parquet, one to a line or in the column 'id' of a .parquet, .csv or .jsonl file. Rows "
                "that went to validation or test, and those that data.leaks has dropped, are no training rows."
            )
        if name and not ids:
            header = ": its first line names the columns" if is_data(Path(name)) else ""
            logger.warning("data.cleaning.%s: %s names no row%s", field, name, header)
        if strange:
            logger.warning("data.cleaning.%s: %d of %d ids in %s %s no training row's (the first: '%s')",
                           field, len(strange), len(ids), name, verb(len(strange)), strange[0])  # fmt: skip
    if both := set(found["keep"]).intersection(found["drop"]):
        raise UserError(
            f"data.cleaning.keep and data.cleaning.drop both name '{min(both)}' ({many(len(both), 'id')} in all): "
            "a row is right or wrong. Take it out of one of the files."
        )
    return found["keep"], found["drop"]


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


def with_flags(rows: datasets.Dataset, flags: NDArray[np.bool_]) -> Any:
    """Rows beside their flags; a row that is not flagged is not read."""
    chosen = iter(rows.select(np.flatnonzero(flags)))
    return ((next(chosen) if flag else None, flag) for flag in flags.tolist())


def write_marks(
    marks: pa.Table, repaired: NDArray[np.bool_], before: list[str | None], after: list[str | None], path: Path
) -> None:
    """Write what was found of each row; texts of marked rows alone, ``response_after`` none where it was dropped."""
    texts = {"response_before": pa.array(before, pa.string()), "response_after": pa.array(after, pa.string())}
    columns = {name: marks[name] for name in marks.column_names}
    write_table(data_set(pa.table({**columns, "repaired": repaired, **texts})), path)


def finds_copies(run: Run) -> bool:
    """Whether near copies are looked for."""
    return any(DETECTORS.get(each).of_copies for each in run.recipe.data.cleaning.find)


def held_out_rows(run: Run) -> datasets.Dataset:
    """The validation and test rows."""
    return datasets.concatenate_datasets([run.split("validation"), run.split("test")])
