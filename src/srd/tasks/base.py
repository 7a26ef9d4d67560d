"""What a task is: a data set known by name, and a benchmark where it can score.

A task is one file here: where its rows are, how a row becomes an example, and (for a benchmark) the prompt, the
decoding and the scoring. A plugin adds one with ``srd.register_task("name")(task)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srd.base.errors import UserError, nearest
from srd.base.handed import check_call, check_kind
from srd.base.registry import Registry
from srd.base.text import many
from srd.metrics.common import FloatArray
from srd.sandbox.outside import Permission

if TYPE_CHECKING:  # a recipe is checked against the names and the tasks without this library
    from datasets import Dataset, DatasetDict

    from srd.data.bad_rows import BadRows, Check, Owner
    from srd.data.settings import SourceConfig

Row = Mapping[str, Any]
# One answer an example, or several samples an example where a task draws several.
Predictions = Sequence[str] | Sequence[Sequence[str]]
# The fields a reference is looked for in, in this order, where a task does not name its own.
REFERENCE_FIELDS = ("references", "output", "answer", "completion", "response", "summary")


CONVERTED = "refs/convert/parquet"
ROUNDING = 1e-6  # a mean of ones in single precision
PUBLISHED = ("train", "validation", "test")  # splits


@dataclass(frozen=True)
class Decoding:
    """How answers are generated. Temperature 0 is greedy; there is no top-k and no n-gram block."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        numbers = all(isinstance(each, int | float) for each in (self.temperature, self.top_p))
        whole = isinstance(self.seeds, tuple | list) and all(isinstance(seed, int) and seed >= 0 for seed in self.seeds)
        for fits, wanted in (
            (numbers and 0 <= self.temperature < float("inf"), "temperature must be a number, at least 0"),
            (numbers and 0 < self.top_p <= 1, "top_p must be above 0, and 1 at most"),
            (isinstance(self.max_new_tokens, int) and self.max_new_tokens >= 1, "max_new_tokens must be at least 1"),
            (whole and self.seeds, "seeds must be whole numbers from 0, such as (10, 20)"),
        ):
            if not fits:
                raise UserError(f"srd.{self}: {wanted}")


# The published evaluations of instruction following: five sampled answers a prompt.
SAMPLED = Decoding(temperature=1.0, seeds=(10, 20, 30, 40, 50))


@dataclass(frozen=True)
class Scores:
    """The result of scoring.

    Attributes:
        metrics: each metric over all the examples, 0..1.
        per_example: values of each example, [N], for paired comparisons. For corpus metrics (BLEU) these are
            sentence scores under another name, because their mean is not the corpus score.
        details: how the scores came about: signatures, isolation, reasons.
        primary: the metric to rank models by.
    """

    metrics: dict[str, float]
    per_example: dict[str, FloatArray]
    primary: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hub:
    """Where a task's examples are on the Hugging Face hub.

    The revision ``CONVERTED`` is the hub's own conversion of data sets that are published as a loading script, which
    ``datasets`` does not run.
    """

    repository: str
    configuration: str | None = None
    split: str = "test"
    file: str | None = None
    revision: str | None = None

    @property
    def full_name(self) -> str:
        """As in a recipe: ``owner/name`` or ``owner/name:configuration``."""
        return f"{self.repository}:{self.configuration}" if self.configuration else self.repository


@dataclass(frozen=True)
class Task:
    """A data set known by name, a benchmark, or both.

    Attributes:
        name: as in a recipe and on the command line.
        title: for tables.
        licence: of the data.
        source: who made the data, and where it is described.
        primary: the metric to rank models by; "" where there is no benchmark.
        hub: where the test examples come from when no file is given.
        training: where the training examples are; none: with the test examples.
        splits: of the training data; none: there is a benchmark only.
        template: name of the prompt template (see ``srd.data.templates``).
        decoding: how answers are generated.
        reference_fields: fields that may hold the reference, the first one present counts.
        runs_code: scoring runs generated programs, and needs permission.
        takes_samples: scoring takes several answers an example (pass@k).
        size: of the training data on the hub, for plans: rows by split, mean tokens of a prompt in its frame and of a
            response; None: not known.
    """

    name: str
    title: str
    licence: str
    source: str
    primary: str = ""
    hub: Hub | None = None
    training: Hub | None = None
    splits: tuple[str, ...] = ()
    template: str = "alpaca"
    decoding: Decoding = SAMPLED
    reference_fields: tuple[str, ...] = REFERENCE_FIELDS
    runs_code: bool = False
    takes_samples: bool = False
    size: tuple[dict[str, int], float, float] | None = None

    # ------------------------------------------------------------------------------------------------- training data

    @property
    def home(self) -> Hub | None:
        """Where the training examples are on the hub."""
        return self.training or self.hub

    def in_direction(self, language_pair: str | None) -> Task:
        """The same task for a pair of languages, where it translates."""
        return self

    @property
    def made(self) -> bool:
        """Whether it is made on the spot, by a `make` of its own."""
        return type(self).make is not Task.make

    def make(self, seed: int) -> DatasetDict:
        """The splits of a data set that is made on the spot; a task without this is read."""
        raise NotImplementedError(f"the data set {self.name!r} is read")

    def convert(self, row: Row, place: str) -> Row | None:
        """Turn a published row into one that ``examples_from_rows`` accepts; None: it is known to be empty.

        Raises:
            UserError: the row is not in the published format.
        """
        return row

    def split_of(self, number: int, row: Row, place: str) -> str | None:
        """The split of a row by its number (from 0) and content, where all are published in one piece."""
        return None

    def field(self, row: Row, name: str, place: str) -> Any:
        """A field of a published row.

        Raises:
            UserError: it is not there.
        """
        if row.get(name) is None:
            found = ", ".join(sorted(map(str, row))) or "nothing"
            raise UserError(f"{place}: field {name!r} is missing, found {found}; {self.not_the_format}")
        return row[name]

    @property
    def not_the_format(self) -> str:
        """What a message about a row ends with."""
        return f"this is not the format of the data set {self.name!r}."

    # ----------------------------------------------------------------------------------------------------- benchmark

    def examples(self, path: Path | None = None, limit: int | None = None) -> Dataset:
        """Read the test examples from a file in the original format, or from the hub.

        Args:
            path: JSONL, JSON array, CSV or parquet; None: the hub.
            limit: use the first so many.

        Returns:
            The columns of ``srd.data.examples.EXAMPLE_FEATURES`` and the ones that scoring needs beside them.

        Raises:
            UserError: a file or row that cannot be read, a hub that cannot be reached.
        """
        from srd.data.examples import examples_from_rows
        from srd.data.shapes import recognised
        from srd.data.sources import read_rows

        placed = ((f"{path}:{line}", row) for line, row in read_rows(path)) if path else self._hub_rows(limit)
        wanted = ((place, row) for place, row in placed if self.is_test_row(row))
        chosen = list(itertools.islice(wanted, limit))
        origin = str(path) if path else f"hub {self.hub.repository}" if self.hub else self.name
        if not chosen:
            raise UserError(f"{origin}: no test examples of the task {self.name!r} in it. Give a file that has some.")
        asked = [self.asked(row, place) for place, row in chosen]
        for (place, row), question in zip(chosen, asked, strict=True):
            if not recognised(question, place)[0]:
                raise UserError(
                    f"{place}: no question with an answer in this row, found {', '.join(map(str, row)) or 'nothing'}; "
                    f"{self.not_the_format} Write each row as `instruction`, `input` where there is one, and `output`."
                )
        examples = examples_from_rows(asked, origin, id_prefix=self.name)
        scoring = [self.scoring_columns(row, place) for place, row in chosen]
        for column in scoring[0]:
            if column != "references":
                examples = examples.add_column(column, [row[column] for row in scoring])
        return examples

    def is_test_row(self, row: Row) -> bool:
        """Whether a row of the original file belongs to the test split; most files hold nothing else."""
        return True

    def asked(self, row: Row, place: str) -> Row:
        """Turn a row of a test file, published or the user's own, into one that ``examples_from_rows`` accepts."""
        return row

    def scoring_columns(self, row: Row, place: str) -> dict[str, Any]:
        """Take what scoring needs from an original row: the references, and what a task needs beside them.

        Raises:
            UserError: the row has no reference, or an empty list of them.
        """
        return {"references": references_of(row, self.reference_fields, place)}

    def judgeable(self, examples: Dataset, *, allow_code_execution: Permission) -> list[int]:
        """Return the positions of the examples whose answers can be judged: all, for most tasks."""
        return list(range(len(examples)))

    def reading(self, examples: Dataset) -> dict[str, str]:
        """How texts are read where these examples ask for another way than the published one; part of the details."""
        return {}

    def score(self, predictions: Predictions, examples: Dataset, *, allow_code_execution: Permission = False) -> Scores:
        """Score one answer an example, in the order of ``examples``, which needs the scoring columns only.

        Raises:
            UserError: the counts differ, or generated code would have to run without permission.
        """
        raise NotImplementedError(f"the data set {self.name!r} is no benchmark")

    def scored(self, predictions: Predictions, examples: Dataset, **permission: Permission) -> Scores:
        """Score as `score` does, and look at what it gives: metrics from 0 to 1, and as many values as examples.

        Raises:
            UserError: it is no `Scores`, or holds something else.
        """
        scores = self.score(predictions, examples, **permission)
        place = f"task {self.name!r}: {type(self).__name__}.score"
        check_kind(f"what {place} gives", scores, Scores, "give srd.Scores(metrics, per_example, primary)")
        if self.primary not in scores.metrics:
            raise UserError(
                f"{place} gives the metrics {sorted(scores.metrics)}, but primary is {self.primary!r}: name one"
            )
        for name, value in scores.metrics.items():
            if not isinstance(value, int | float | np.number | np.bool_) or not -ROUNDING <= value <= 1 + ROUNDING:
                raise UserError(f"{place} gives {name} = {value!r}, but a metric must be a number from 0 to 1")
        for name, values in scores.per_example.items():
            if np.shape(values) != (len(examples),):
                raise UserError(f"{place} gives {list(np.shape(values))} values of {name} for {len(examples)} examples")
        metrics = {name: float(value) for name, value in scores.metrics.items()}
        return replace(scores, metrics=metrics)

    def _hub_rows(self, limit: int | None) -> Iterator[tuple[str, Row]]:
        import datasets

        from srd.data.sources import HUB_ERRORS

        remedy = f"download the file elsewhere and give its path, as in `path: {self.name}.jsonl`"
        if self.hub is None:
            raise UserError(
                f"task {self.name!r} is read from a file: give its path, as in `path: {self.name}.jsonl`, or on the "
                f"command line --task {self.name}={self.name}.jsonl"
            )
        try:
            rows = datasets.load_dataset(
                self.hub.repository,
                self.hub.configuration,
                data_files=self.hub.file,
                split=self.hub.split,
                revision=self.hub.revision,
                streaming=limit is not None,
            )
            # Streaming reaches for the network only now, so the loop belongs under the same protection.
            for number, row in enumerate(rows, start=1):
                yield f"hub {self.hub.repository} row {number}", row
        except HUB_ERRORS as error:
            if isinstance(error, UserError):
                raise
            reason = (str(error) or repr(error)).splitlines()[0]
            raise UserError(
                f"task {self.name!r}: could not read {self.hub.repository!r} from the hub: {reason}. "
                f"Check the network, or {remedy}"
            ) from error


def _check(name: str, task: Any) -> None:
    """Refuse what is no task, or cannot score as it says."""
    check_kind(f"the task '{name}'", task, Task, "make one of the class, as in register_task(...)(MyTask(name=...))")
    check_kind(f"decoding of the task '{name}'", task.decoding, Decoding, "give srd.Decoding(max_new_tokens=...)")
    if task.primary and type(task).score is Task.score:
        raise UserError(f"the task '{name}' has a primary metric, but no score(predictions, examples, ...)")
    score = type(task).score
    check_call(f"{type(task).__name__}.score", score, "self", "predictions", "examples", also="allow_code_execution")
    if task.name != name:
        raise UserError(f"the task '{name}' has name={task.name!r}: files and tables would call it so. Give one name")


TASKS: Registry[Task] = Registry("task", "srd.tasks", check=_check)
register_task = TASKS.register


def benchmarks() -> dict[str, Task]:
    """All tasks that score."""
    return {name: task for name in TASKS.names() if (task := TASKS.get(name)).primary}


def data_sets() -> dict[str, Task]:
    """All tasks to train on."""
    return {name: task for name in TASKS.names() if (task := TASKS.get(name)).splits}


def get_task(name: str) -> Task:
    """Return the benchmark called ``name``; "iwslt2017:fr-en" is IWSLT2017 in another direction.

    Raises:
        UserError: there is no such task; the message suggests the nearest name.
    """
    base, colon, pair = name.partition(":")
    task = TASKS.get(base) if base in TASKS else None
    directed = task.in_direction(pair) if task is not None and task.primary and colon else task
    if task is not None and not task.primary:
        raise UserError(
            f"task: {name!r} is a data set to train on: it has no primary metric, so that nothing scores it"
        )
    if task is None or (colon and directed is task):
        raise UserError(f"task: there is no task {name!r}; {nearest(base, benchmarks())}")
    assert directed is not None
    return directed


def data_set_of(source: SourceConfig) -> Task | None:
    """The data set that a source names, if it names one.

    Raises:
        UserError: a pair of languages is asked of something that does not translate.
    """
    names = TASKS.names()
    task = TASKS.get(name) if (name := source.data_set(names)) in names else None
    task = task if task is not None and task.splits else None
    if source.language_pair and (task is None or task.in_direction(source.language_pair) is task):
        raise UserError(
            f"language_pair ({source.language_pair!r}) is for data sets that translate, such as iwslt2017, and this "
            "is none. Remove it."
        )
    return task


def load_source(
    source: SourceConfig,
    *,
    seed: int = 0,
    bad: BadRows | None = None,
    check: Check | None = None,
    owner: Owner | None = None,
) -> DatasetDict | Dataset:
    """Load training examples from files, the hub or a data set known by name (see `srd.data.sources`)."""
    from srd.data import sources

    data_set_of(source)
    return sources.load_source(source, known=data_sets(), seed=seed, bad=bad, check=check, owner=owner)


def references_of(row: Row, fields: Sequence[str], place: str) -> list[str]:
    """Return the references of a row: the first of ``fields`` that it has, a text or a list of texts.

    Raises:
        UserError: none of the fields is there, its list is empty, or it holds something that is not text.
    """
    name = next((name for name in fields if row.get(name) is not None), None)
    if name is None:
        found = ", ".join(map(str, row)) or "nothing"
        raise UserError(f"{place}: no reference: expected one of the fields {', '.join(fields)}, found {found}")
    value = row[name]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place}: field {name!r} must be a text or a list of texts, found {value!r:.80}")
    if not texts:
        raise UserError(f"{place}: field {name!r} is an empty list: give at least one reference, or remove the row")
    return list(texts)


def single_answers(predictions: Predictions, examples: Dataset, task: str) -> list[str]:
    """Check that there is exactly one text for each example, and return them as a list.

    Raises:
        UserError: the counts differ, or an answer is not a text.
    """
    check_counts(predictions, examples, task)
    answers = [text for text in predictions if isinstance(text, str)]
    if len(answers) != len(predictions):
        raise UserError(f"task {task!r} takes one text an example, not several samples: score each seed on its own")
    return answers


def check_counts(predictions: Predictions, examples: Dataset, task: str) -> None:
    """Raise UserError unless there are as many predictions as examples, and at least one."""
    if len(predictions) != len(examples) or not len(examples):
        raise UserError(
            f"task {task!r}: {many(len(predictions), 'prediction')} for {many(len(examples), 'example')}: there must "
            "be one for each"
        )


def means(per_example: Mapping[str, FloatArray]) -> dict[str, float]:
    """Average each metric over the examples."""
    return {name: float(np.mean(values)) for name, values in per_example.items()}
