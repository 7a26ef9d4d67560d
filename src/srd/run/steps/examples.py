"""The examples: read, split, limited, without leaks, and (where asked) corrupted."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from srd.base import parallel
from srd.base.errors import UserError, nearest
from srd.base.files import fingerprint, read_sealed, write_sealed
from srd.base.remedies import warn
from srd.base.tables import column, map_large, repeated, write_table
from srd.base.text import many
from srd.data.bad_rows import BadRows, Check, Owner, content_of, mark_of, without_refused
from srd.data.corruption import corrupt, leave_out
from srd.data.encoding import Encoder
from srd.data.examples import EXAMPLE_FEATURES, content_hash, one_for_each_answer, split_examples
from srd.data.folders import by_role
from srd.data.leaks import leaked_ids, without_leaks
from srd.recipe.schema import Recipe
from srd.run.checks.warnings import warn_of_copies, warn_of_questions
from srd.run.context import Run
from srd.run.folder import SPLITS
from srd.run.identity import plugins_identity, source_identity, task_identity
from srd.run.models import RecipeModels
from srd.run.outline import order
from srd.run.steps.base import Step, Summary
from srd.tasks.base import get_task, load_source

logger = logging.getLogger(__name__)

DIVIDED = ("train", "validation")  # splits that losses are asked of; of the test split only the last answer is asked


class Examples(order.Examples, Step):
    """``examples/{train,validation,test}.parquet``, and ``examples/dropped.jsonl`` where rows were left out."""

    _kept: _Found | None = None

    def inputs(self, run: Run) -> list[Any]:
        data = run.recipe.data
        sources = [source_identity(source) for source in (data.train, data.validation, data.test)]
        settings = data.model_dump(
            include={
                "validation_size",
                "test_size",
                "train_limit",
                "validation_limit",
                "test_limit",
                "corruption",
                "leaks",
            }
        )
        if data.corruption and data.corruption.leave_out == "nothing":  # came later
            settings["corruption"].pop("leave_out")
        found = self._found(run)
        dropped = _dropped(run, found, [sources, settings])
        taken = _taken_by_tasks(run, found, [sources, settings, *dropped])
        shared = [[each.title, each.marks] for each in run.recipe.teachers if each.marks]
        owned = [[data.teacher_column, shared]] if shared else []
        own = plugins_identity(run.recipe, data, "task")  # whose rows may be trained on
        return [sources, settings, run.recipe.seed, *dropped, *([taken] if taken else []), *owned, *own]

    def outputs(self, run: Run) -> list[Path]:
        return [*(run.files.examples(name) for name in SPLITS), run.files.dropped]

    def told(self, run: Run, summary: Summary) -> str:
        train, validation, test = (summary[name] for name in SPLITS)
        bad = f", and {many(summary['dropped'], 'unusable row')} left out" if summary.get("dropped") else ""
        return f"{many(train, 'example')} to train on, {validation:,} to validate with, {test:,} to test with{bad}"

    def work_out(self, run: Run) -> None:
        check_count(parallel.on_main(lambda: self._split(run)))

    def _split(self, run: Run) -> int:
        found = self._found(run)
        self._splits = splits = _prepared(run.recipe, dict(found.splits), found.benchmarks, found.divided)
        warn_of_copies(run.recipe.data, splits, found.benchmarks)
        warn_of_questions(run, splits["test"], found.benchmarks)
        _check_ids(splits)
        return len(splits["train"])

    def make(self, run: Run) -> Summary:
        return parallel.on_main(lambda: self._write(run))

    def _write(self, run: Run) -> Summary:
        found, sizes = self._found(run), {name: len(self._splits[name]) for name in SPLITS}
        for name in SPLITS:
            write_table(self._splits.pop(name), run.files.examples(name))
        if found.bad.count:
            found.bad.write(run.files.dropped)
            sizes["dropped"] = found.bad.count
        return sizes

    def open(self, run: Run) -> None:
        self._kept = None
        parallel.on_main(lambda: map_large([run.files.examples(name) for name in SPLITS], run.files.mapped))

    def _found(self, run: Run) -> _Found:
        """What there is to make examples from, read once for fingerprint and files."""
        self._kept = self._kept or _Found(run.recipe, run)
        return self._kept


Frames = RecipeModels | Encoder  # makes tokens of examples, as a recipe's models or one tokenizer read them


class _Found:
    """Rows by split, and the examples of the named tasks, each read when it is first asked for."""

    def __init__(self, recipe: Recipe, frames: Frames | None) -> None:
        self.recipe = recipe
        self.frames = frames
        self.bad = BadRows(recipe.data.bad_rows, of_recipe=True)

    @cached_property
    def splits(self) -> dict[str, datasets.Dataset]:
        """Train, validation and test, as they are read, without the rows that cannot be used."""
        return _load_splits(self.recipe, self.bad, None if self.frames is None else self.frames.refused)

    @cached_property
    def divided(self) -> list[str]:
        """The conversations to learn from that become an example for each of their answers, by their ids."""
        if self.frames is None or self.recipe.data.train_on != "all":
            return []
        return [name for split in DIVIDED for name in self.frames.divided_ids(self.splits[split])]

    @cached_property
    def benchmarks(self) -> dict[str, datasets.Dataset]:
        """By the key of the task in results."""
        return _benchmarks(self.recipe)


def check_count(examples: int) -> None:
    """Refuse more processes than there are training examples."""
    if parallel.processes() > examples:
        raise UserError(
            f"{parallel.processes()} processes are more than the {examples} training examples. "
            "Start fewer processes, or give more examples."
        )


def _dropped(run: Run, found: _Found, data: list[Any]) -> list[str]:
    """What stands for the rows that are left out, as they cannot be used; nothing where all can be.

    Template, tokenizer and lengths leave everything as it is where no row is refused for them. What was left out is
    noted, for the data and the frames it was found with.
    """
    tasks = [task_identity(task) for task in run.recipe.evaluation.tasks]
    known = [run.known_to_all] if run.known_to_all else []
    identity = fingerprint(data, run.encoding, run.teacher_frame, plugins_identity(run.recipe), *tasks, *known)
    note = run.shared.folder / f"bad_rows-{identity}.json" if run.shared else run.files.bad_rows
    noted = read_sealed(note)
    if noted.get("identity") != identity:
        found.splits  # noqa: B018 - reads the rows
        check_benchmarks(found.benchmarks, run.refused)
        divided = fingerprint(found.divided) if found.divided else ""
        noted = {"identity": identity, "dropped": found.bad.digest, "divided": divided}
        write_sealed(note, noted)
    return [stands_for for stands_for in (noted["dropped"], noted.get("divided")) if stands_for]


def check_benchmarks(benchmarks: Mapping[str, datasets.Dataset], check: Check) -> None:
    """Refuse tasks with examples that no model could be asked: a score is that of all of them."""
    for name, rows in benchmarks.items():
        bad, examples = BadRows(), list(rows.select_columns(list(EXAMPLE_FEATURES)))
        without_refused(examples, [f"example '{example['id']}'" for example in examples], check, bad)
        if bad.count:
            raise UserError(
                f"evaluation.tasks: {name}: {bad.count:,} of {len(rows):,} examples cannot be asked.\n{bad.told()}"
            )


def _taken_by_tasks(run: Run, found: _Found, data: list[Any]) -> str | None:
    """What stands for the training examples that the named tasks take away; None: they take none.

    A task that asks nothing of what is trained on leaves everything as it is. So what decides is the examples that a
    task takes, and not the task; they are noted, for the data and the tasks they were found with.
    """
    recipe, note = run.recipe, run.files.leaks
    if not recipe.evaluation.tasks or recipe.data.leaks == "warn":
        return None
    identity = fingerprint(data, recipe.seed, [task_identity(task) for task in recipe.evaluation.tasks])
    noted = read_sealed(note)
    if noted.get("identity") == identity:
        return noted["taken"] or None
    ids = leaked_ids(found.splits["train"], found.benchmarks)
    taken = fingerprint(ids) if ids else ""
    write_sealed(note, {"identity": identity, "taken": taken})
    return taken or None


def _benchmarks(recipe: Recipe) -> dict[str, datasets.Dataset]:
    """The examples of the named tasks: what cannot be read is refused now, and not after the training.

    Raises:
        UserError: with the first task that has no file here and cannot be had from the hub.
    """
    tasks = recipe.evaluation.tasks
    return {
        named.key: get_task(named.name).examples(Path(named.path).expanduser() if named.path else None, named.limit)
        for named in tasks
    }


def read_all(recipe: Recipe, frames: Frames | None) -> tuple[dict[str, datasets.Dataset], dict[str, datasets.Dataset]]:
    """The examples of a recipe by split, and those of the named tasks, as a run takes them."""
    found = _Found(recipe, frames)
    splits = _prepared(recipe, dict(found.splits), found.benchmarks, found.divided)
    _check_ids(splits)
    return splits, found.benchmarks


def _check_ids(splits: Mapping[str, datasets.Dataset]) -> None:
    """Refuse an id that is in two splits."""
    ids = {name: column(splits[name], "id") for name in SPLITS}
    if len(twice := repeated(pa.chunked_array([chunk for name in SPLITS for chunk in ids[name].chunks]))):
        first, second, *_ = (name for name in SPLITS for _ in range(pc.sum(pc.equal(ids[name], twice[0])).as_py()))
        raise UserError(f"the id '{twice[0]}' is in {first} and in {second}: ids must be unique.")


def read_splits(recipe: Recipe, frames: Frames | None = None) -> dict[str, datasets.Dataset]:
    """The examples of a recipe by split, the named tasks left aside, but for examples that could not be asked."""
    found = _Found(recipe, frames)
    splits = dict(found.splits)
    if frames is not None:
        check_benchmarks(_benchmarks(recipe), frames.refused)
    return _prepared(recipe, splits, {}, found.divided)


def _prepared(
    recipe: Recipe,
    splits: dict[str, datasets.Dataset],
    benchmarks: Mapping[str, datasets.Dataset],
    divided: Collection[str],
) -> dict[str, datasets.Dataset]:
    """Rows by split, limited, without leaks, divided, and (where asked) corrupted.

    Args:
        recipe: Says all of that.
        splits: As they were read.
        benchmarks: What the models are evaluated on beside the test split, which is not to be trained on either.
        divided: Conversations to train on that become an example for each of their answers.
    """
    data, seed = recipe.data, recipe.seed
    # The training data last: a limit counts what is left of it.
    limits = {"validation": data.validation_limit, "test": data.test_limit, "train": data.train_limit}
    for name, limit in limits.items():
        if name == "train":
            splits = without_leaks(splits, benchmarks, data.leaks)
        if limit is not None and limit < len(splits[name]):
            chosen = np.sort(np.random.default_rng(seed).permutation(len(splits[name]))[:limit])
            splits[name] = splits[name].select(chosen)
    for name in DIVIDED if divided else ():
        splits[name] = _with_divided(splits[name], name, set(divided))
    if data.corruption:
        damaged = corrupt(splits["train"], data.corruption.share, data.corruption.kinds, seed)
        splits["train"] = leave_out(damaged, data.corruption.leave_out, seed)
    return splits


def _with_divided(rows: datasets.Dataset, split: str, divided: set[str]) -> datasets.Dataset:
    """The rows of a split, with an example for each answer of the divided conversations."""
    there = divided.intersection(column(rows, "id").to_pylist())
    if not there:
        return rows
    warn(
        logger,
        f"{split}: {len(there):,} of {many(len(rows), 'conversation')} became an example for each answer, as the chat "
        "template writes earlier answers in another way than the last (without what was thought, or what ends them).",
        "Nothing is lost by it but time; data.train_on=last learns the last answer of each only.",
    )

    def each_answer(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        given = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        found = [one for row in given for one in (one_for_each_answer(row) if row["id"] in there else [row])]
        return {name: [row[name] for row in found] for name in batch}

    name = fingerprint("divided", rows._fingerprint, sorted(there))
    return rows.map(each_answer, batched=True, features=rows.features, load_from_cache_file=False, new_fingerprint=name)


def _named_once(splits: dict[str, datasets.Dataset], bad: BadRows) -> dict[str, datasets.Dataset]:
    """The splits without rows whose id is in a later one too, which models are compared on.

    A row that is in both, and has its id from its content, stays under another: `data.leaks` says what becomes of it.

    Raises:
        UserError: nothing would be left of one.
    """
    found, taken = dict(splits), pa.array([], pa.string())
    for name in (each for each in reversed(SPLITS) if each in splits):
        rows, ids = splits[name], column(splits[name], "id").combine_chunks()
        again = pc.is_in(ids, value_set=taken).to_numpy(zero_copy_only=False)
        if again.any():
            rows, again = _renamed(rows, again, name)
        taken = pa.concat_arrays([taken, column(rows, "id").combine_chunks()])
        for row in rows.select(np.flatnonzero(again)) if again.any() else ():
            error = UserError(
                f"the id {row['id']!r} is in {name} and in another split, too. Make the ids unique, or leave the field "
                "'id' out of all files to have ids made from the content."
            )
            error.fault = f"an id of {name} in another split"
            bad.lose(f"{name}: {row['id']}", content_of(row), error, row["id"])
        if again.all():
            raise bad.nothing_left(f"data.{name}")
        found[name] = rows.select(np.flatnonzero(~again)) if again.any() else rows
    return found


def _renamed(
    rows: datasets.Dataset, again: NDArray[np.bool_], split: str
) -> tuple[datasets.Dataset, NDArray[np.bool_]]:
    """Name rows after their split whose id, made from their content, is in another one; and what is left of those."""
    ids, again = column(rows, "id").to_pylist(), again.copy()
    for place in np.flatnonzero(again).tolist():
        if f"-{content_hash(rows[place]):016x}" in ids[place]:
            ids[place], again[place] = f"{ids[place]}-{split}", False
    name = fingerprint("renamed", rows._fingerprint, split)
    renamed = (
        rows.remove_columns("id").add_column("id", ids, new_fingerprint=name).select_columns(list(EXAMPLE_FEATURES))
    )
    return renamed, again


def owner_of(recipe: Recipe) -> Owner | None:
    """What says which of several teachers a row has; None where each teaches all rows, or there is one."""
    teachers = {mark: each.title for each in recipe.teachers for mark in each.marks}
    column = recipe.data.teacher_column

    def owner(row: Mapping[str, Any], place: str) -> str:
        mark = mark_of(column, row, place)
        if mark not in teachers:
            raise UserError(f"{place}: {column} is {mark!r}, and no teacher has such rows; {nearest(mark, teachers)}")
        return teachers[mark]

    return owner if teachers else None


def _part(splits: datasets.DatasetDict, name: str) -> datasets.Dataset:
    """The split of that name, or the only one."""
    found = by_role(splits)
    if name not in found and len(found) > 1:
        raise UserError(
            f"data.{name}: it has the splits {', '.join(splits)}, and none is called {name}. Choose one: "
            f"data.{name}.split={next(iter(splits))}"
        )
    return found.get(name, next(iter(found.values())))


def _load_splits(recipe: Recipe, bad: BadRows, check: Check | None) -> dict[str, datasets.Dataset]:
    """Train, validation and test: as the source has them, as the recipe names them, or split off by id."""
    data, seed = recipe.data, recipe.seed
    loaded = load_source(data.train, seed=seed, bad=bad, check=check, owner=owner_of(recipe))
    splits = by_role(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    for name, source in (("validation", data.validation), ("test", data.test)):
        if source is not None:
            other = load_source(source, seed=seed, bad=bad, check=check)
            splits[name] = _part(other, name) if isinstance(other, datasets.DatasetDict) else other
    if unused := sorted(splits.keys() - set(SPLITS)):
        logger.info(
            "data.train: splits that are not used: %s. A split is chosen with data.train.split", ", ".join(unused)
        )
    splits = _named_once(splits, bad)
    bad.settle()
    if "train" not in splits:
        found = " and ".join(f"{name} ({len(rows)})" for name, rows in sorted(splits.items()))
        nearest = min(splits, key=lambda name: ("train" not in name, name))
        raise UserError(
            f"data.train has no training rows, only {found} (of Dolly the first 1000 rows are validation). "
            f"Give more rows, or train on these: data.train.split={nearest}"
        )
    missing = {
        name: size
        for name, size in (("validation", data.validation_size), ("test", data.test_size))
        if name not in splits
    }
    if missing:
        parts = split_examples(splits["train"], missing.get("validation", 0), missing.get("test", 0), seed)
        splits.update({name: parts[name] for name in ("train", *missing) if name in parts})
        if absent := [name for name in missing if name not in parts]:
            raise UserError(
                f"{len(splits['train'])} training examples are too few to split off {absent[0]} data. "
                f"Name a file as data.{absent[0]}, raise data.{absent[0]}_size, or give more examples."
            )
    return splits
