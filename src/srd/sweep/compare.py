"""The numbers of a sweep: what each row scores and took, and how far it is from its reference.

A row is a setting, all its seeds together. Every number of the page, its first lines and the tables comes from here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srd.evaluation.predictions import predictions_path, read_answers, read_scores
from srd.metrics.common import FloatArray
from srd.metrics.statistics import macro_bootstrap
from srd.report.comparison import Model, Primary, model_of, overall_score
from srd.report.reading import RunFiles, read_run
from srd.report.tables import Measure
from srd.report.words import metric_name
from srd.sweep.cells import Outcome

TOLERANCE = 1e-6  # points by which a mean may be off by rounding


@dataclass(frozen=True)
class Result:
    """A cell that is done.

    Attributes:
        outcome: The cell and its folder.
        run: Its files.
        model: The trained student's scores, in percent.
        given: The scores of the teacher and the starting student, as far as they were evaluated.
        seconds: Training without validation, and the reflection where the training learns from it.
        passes: Passes over all the training data.
        examples: Distinct examples trained on.
    """

    outcome: Outcome
    run: RunFiles
    model: Model
    given: list[Model]
    seconds: float
    passes: float
    examples: int

    @property
    def label(self) -> str:
        """What it is called in plots: its label among the cells, or its training's name."""
        return self.outcome.cell.label or self.model.key

    @property
    def seeds(self) -> str:
        """The seeds of the training, which pair it with one of another row."""
        return ", ".join(f"{name} {seed}" for name, seed in sorted(self.outcome.cell.seeds.items()))


@dataclass(frozen=True)
class Line:
    """A row of the table: its trainings that count.

    Attributes:
        row: Its name.
        results: Over the seeds that all rows with the same reference have; over all where there is no such seed.
        left_out: Seeds that some other row lacks.
    """

    row: str
    results: list[Result]
    left_out: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[Model]:
        """What was trained."""
        return [result.model for result in self.results]


@dataclass(frozen=True)
class Difference:
    """A row against its reference, in points: the difference of the two means that the table shows.

    Attributes:
        row: The row.
        reference: What it is compared with.
        pairs: Trainings that both have, by their seeds.
        points: The difference; None where the means are not over the same seeds, tasks and examples.
        interval: The 95 % interval; None where there is none.
        ahead: Pairs in which the row is ahead.
        reason: Why there is no difference or no interval.
    """

    row: str
    reference: str
    pairs: int
    points: float | None = None
    interval: tuple[float, float] | None = None
    ahead: int = 0
    reason: str = ""


def read_results(outcomes: Sequence[Outcome]) -> list[Result]:
    """Read the cells that are done."""
    results = []
    for outcome in (outcome for outcome in outcomes if outcome.state == "done"):
        run = read_run(outcome.folder)
        given = [model_of(run, key) for key in ("teacher", "student") if key in run.evaluation]
        summary = run.summary(f"train/{run.main_variant}")
        seconds = float(summary["training_seconds"]) + (run.reflection_seconds(run.main_variant) or 0.0)
        took = seconds, float(summary["passes"]), int(summary["examples"])
        results.append(Result(outcome, run, model_of(run, run.main_variant), given, *took))
    return results


def by_row(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results into rows."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.outcome.cell.row, []).append(result)
    return rows


def lines_of(results: Sequence[Result], references: dict[str, str]) -> dict[str, Line]:
    """The rows of the table. Those that are compared count the same seeds, so that no mean is over others."""
    rows, lines = by_row(results), {}
    for row, own in rows.items():
        group = [other for name, other in rows.items() if references[name] == references[row]]
        common = set.intersection(*({result.seeds for result in other} for other in group))
        counted = [result for result in own if result.seeds in common]
        left_out = [result.seeds for result in own if result.seeds not in common] if counted else []
        lines[row] = Line(row, counted or own, left_out)
    return lines


def measure(scores: Sequence[Measure | None]) -> Measure | None:
    """Mean and deviation over trainings, or over the answers of a single one; None where a training lacks its score."""
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    if len(known) == 1:
        return known[0]
    means = [score.mean for score in known]
    return Measure(statistics.fmean(means), statistics.stdev(means))


def mean_over_tasks(models: Sequence[Model], primary: Primary) -> Measure | None:
    """The mean over the tasks of each training, then mean and standard deviation over trainings."""
    return measure([overall_score(model, primary) for model in models])


def differences(lines: dict[str, Line], references: dict[str, str], primary: Primary) -> list[Difference]:
    """Compare every row with its reference, training by training of equal seeds, example by example."""
    answers: dict[int, list[Answered]] = {}
    found = []
    for row, line in lines.items():
        reference = references[row]
        if row == reference or reference not in lines:
            continue
        for result in (*line.results, *lines[reference].results):
            if id(result) not in answers:
                answers[id(result)] = [read_task(result, *place) for place in primary.items()]
        found.append(_difference(line, lines[reference], primary, answers))
    return found


def _difference(line: Line, reference: Line, primary: Primary, answers: dict[int, list[Answered]]) -> Difference:
    """Compare two rows; what cannot be compared is missing, with the reason."""
    partner = {result.seeds: result for result in reference.results}
    pairs = [(result, partner[result.seeds]) for result in line.results if result.seeds in partner]
    names = line.row, reference.row, len(pairs)
    ours, theirs = (mean_over_tasks(other.models, primary) for other in (line, reference))
    if not len(pairs) == len(line.results) == len(reference.results):
        return Difference(*names, reason="no seed in common")
    if ours is None or theirs is None:
        return Difference(*names, reason="a task is missing")
    tasks = [[(answers[id(a)][number], answers[id(b)][number]) for a, b in pairs] for number in range(len(primary))]
    for task, own in zip(primary, tasks, strict=True):
        if any(not a.ids or not b.ids for a, b in own):
            return Difference(*names, reason=f"answers to {task} are missing or not as they were scored")
        if any(a.ids != b.ids for a, b in own):
            return Difference(*names, reason=f"not the same examples of {task}")
        if any(a.seeds != b.seeds for a, b in own):
            return Difference(*names, reason=f"answers to {task} were not drawn with the same seeds")
    points = ours.mean - theirs.mean
    scores = [[overall_score(side.model, primary) for side in pair] for pair in pairs]
    ahead = sum(a.mean > b.mean for a, b in scores if a is not None and b is not None)
    for (task, metric), own in zip(primary.items(), tasks, strict=True):
        if any(side.values is None for pair in own for side in pair):
            reason = f"{metric_name(metric)} of {task} is no mean over examples, so that it has no interval"
            return Difference(*names, points, ahead=ahead, reason=reason)
    values = [[a.values - b.values for a, b in own] for own in tasks]  # type: ignore[operator]  # none is None
    _, low, high = macro_bootstrap(values, [[a.ids for a, _ in own] for own in tasks])
    return Difference(*names, points, (min(low, points), max(high, points)), ahead)


@dataclass(frozen=True)
class Answered:
    """One training's answers to a task.

    Attributes:
        ids: The examples, in order; empty where answers are missing, damaged, or not those that the mean is of.
        values: Each example's score in percent, mean over the seeds of answering, [N]; None where the task's score is
            not the mean of these, as of a corpus metric (BLEU).
        seeds: Of answering.
    """

    ids: tuple[str, ...] = ()
    values: FloatArray | None = None
    seeds: frozenset[str] = frozenset()


def read_task(result: Result, task: str, metric: str) -> Answered:
    """Read the answers that the evaluation's metrics are made of: those of its seeds, and no other file."""
    ids: set[tuple[str, ...]] = set()
    values: list[Any] = []
    for seed, mean in result.model.seeds.get((task, metric), {}).items():
        path = predictions_path(result.run.files.evaluation, result.model.key, task, seed)
        scores, rows = read_scores(path), read_answers(path)
        if scores is None or rows is None:
            return Answered()
        if not math.isclose(100 * scores.get("metrics", {}).get(metric, mean / 100), mean, abs_tol=TOLERANCE):
            return Answered()  # another evaluation's
        ids.add(tuple(str(row["id"]) for row in rows))
        values.append(scores.get("per_example", {}).get(metric))
    if len(ids) != 1:
        return Answered()
    [asked], drawn = ids, frozenset(result.model.seeds[task, metric])
    if any(own is None or len(own) != len(asked) for own in values):
        return Answered(asked, None, drawn)
    means = 100 * np.mean(np.asarray(values, dtype=np.float64), axis=0)
    is_mean = abs(float(means.mean()) - result.model.scores[task, metric].mean) < TOLERANCE
    return Answered(asked, means if is_mean else None, drawn)
