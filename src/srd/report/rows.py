"""The rows of a sweep's table: what each scores, and how far it is from its reference.

Every number of a row comes from here, for the page, its first lines, and the tables in all formats.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from srd.evaluation.predictions import predictions_path, read_answers, read_scores
from srd.metrics.common import FloatArray
from srd.metrics.statistics import macro_bootstrap
from srd.report import words
from srd.report.comparison import UNREFLECTED_SCORES, Model, model_of
from srd.report.run_files import RunFiles, read_run
from srd.report.tables import Measure

if TYPE_CHECKING:
    from srd.sweep import Outcome

TOLERANCE = 1e-6  # points by which a mean may be off by rounding


@dataclass(frozen=True)
class Cost:
    """What a cell took.

    Attributes:
        seconds: Training without validation, and the reflection where the training learns from it.
        training_seconds: Training alone.
        passes: Passes over all the training data.
        examples: Distinct examples trained on.
    """

    seconds: float
    training_seconds: float
    passes: float
    examples: int


@dataclass(frozen=True)
class Result:
    """A cell that is done.

    Attributes:
        outcome: The cell and its folder.
        run: Its files.
        model: The trained student's scores, in percent.
        given: The scores of the teacher and the starting student, as far as they were evaluated.
        cost: What it took.
    """

    outcome: Outcome
    run: RunFiles
    model: Model
    given: list[Model]
    cost: Cost

    @property
    def seeds(self) -> str:
        """The seeds of the training, which pair it with one of another row."""
        return ", ".join(f"{name} {seed}" for name, seed in sorted(self.outcome.cell.seeds.items()))


@dataclass(frozen=True)
class Difference:
    """A row against its reference, in points: the difference of the two means that the table shows.

    Attributes:
        row: The row.
        reference: What it is compared with.
        pairs: Trainings that both have, by their seeds.
        points: The difference; None where the means are not over the same seeds, tasks and examples.
        low: Lower end of the 95 % interval; None where there is none.
        high: Its upper end.
        ahead: Pairs in which the row is ahead.
        reason: Why there is no difference or no interval.
    """

    row: str
    reference: str
    pairs: int
    points: float | None = None
    low: float | None = None
    high: float | None = None
    ahead: int = 0
    reason: str = ""


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


# ------------------------------------------------------------------------------------------------------------- reading


def cost_of(outcome: Outcome) -> Cost:
    """Read what a cell that is done took."""
    return _cost(read_run(outcome.folder))


def _cost(run: RunFiles) -> Cost:
    summary = run.summary(f"train/{run.main_arm}")
    curriculum = run.arms[run.main_arm].get("curriculum")
    reflects = curriculum is not None and curriculum.get("score") not in UNREFLECTED_SCORES
    if curriculum is not None and curriculum.get("order") == "fresh":
        reflects = False  # drawn from all the data, whatever the ranks
    steps = [run.seconds(step) or 0.0 for step in ("reflection", "ranking")] if reflects else []
    training = float(summary["training_seconds"])
    return Cost(training + math.fsum(steps), training, float(summary["passes"]), int(summary["examples"]))


def read_results(outcomes: Sequence[Outcome]) -> list[Result]:
    """Read the cells that are done."""
    results = []
    for outcome in outcomes:
        if outcome.state != "done":
            continue
        run = read_run(outcome.folder)
        given = [model_of(run, key) for key in ("teacher", "student") if key in run.evaluation]
        results.append(Result(outcome, run, model_of(run, run.main_arm), given, _cost(run)))
    return results


def by_row(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results into rows of the table: one for each setting, all its seeds together."""
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


# ---------------------------------------------------------------------------------------------------------- statistics


def measure(models: Sequence[Model], place: tuple[str, str]) -> Measure | None:
    """Mean and standard deviation of one metric of one task: over trainings, or over the answers of a single one."""
    scores = [model.scores[place] for model in models if place in model.scores]
    if not scores or len(scores) < len(models):
        return None
    if len(scores) == 1:
        return scores[0]
    means = [score.mean for score in scores]
    return Measure(statistics.fmean(means), statistics.stdev(means))


def mean_over_tasks(models: Sequence[Model], primary: dict[str, str]) -> Measure | None:
    """The mean over the tasks of each training, then mean and standard deviation over trainings."""
    means = [mean for model in models if (mean := overall(model, primary)) is not None]
    if not means or len(means) < len(models):
        return None
    if len(means) == 1:  # one training: the spread over the seeds of its answers
        shared = set.intersection(*(set(models[0].seeds[place]) for place in primary.items()))
        values = [statistics.fmean(models[0].seeds[p][seed] for p in primary.items()) for seed in sorted(shared)]
        return Measure(means[0], statistics.stdev(values) if len(values) > 1 else None)
    return Measure(statistics.fmean(means), statistics.stdev(means))


def overall(model: Model, primary: dict[str, str]) -> float | None:
    """The mean over all tasks; None where one is missing, since a mean over fewer would not compare."""
    if not primary or any(place not in model.scores for place in primary.items()):
        return None
    return statistics.fmean(model.scores[place].mean for place in primary.items())


def differences(results: Sequence[Result], references: dict[str, str], primary: dict[str, str]) -> list[Difference]:
    """Compare every row with its reference, training by training of equal seeds, example by example."""
    lines = lines_of(results, references)
    answered: dict[int, list[Answered]] = {}
    found = []
    for row, line in lines.items():
        reference = references[row]
        if row == reference or reference not in lines:
            continue
        for result in (*line.results, *lines[reference].results):
            answered.setdefault(id(result), [read_task(result, *place) for place in primary.items()])
        found.append(_difference(line, lines[reference], primary, answered))
    return found


def _difference(
    line: Line, reference: Line, primary: dict[str, str], answered: dict[int, list[Answered]]
) -> Difference:
    """Compare two rows; what cannot be compared is missing, with the reason."""
    partner = {result.seeds: result for result in reference.results}
    pairs = [(result, partner[result.seeds]) for result in line.results if result.seeds in partner]
    names = line.row, reference.row, len(pairs)
    ours, theirs = (mean_over_tasks([r.model for r in other.results], primary) for other in (line, reference))
    if not len(pairs) == len(line.results) == len(reference.results):
        return Difference(*names, reason="no seed in common")
    if ours is None or theirs is None:
        return Difference(*names, reason="a task is missing")
    tasks = [[(answered[id(a)][number], answered[id(b)][number]) for a, b in pairs] for number in range(len(primary))]
    for (task, _), own in zip(primary.items(), tasks, strict=True):
        if any(not pair[0].ids or not pair[1].ids for pair in own):
            return Difference(*names, reason=f"answers to {task} are missing or not as they were scored")
        if any(pair[0].ids != pair[1].ids for pair in own):
            return Difference(*names, reason=f"not the same examples of {task}")
    points = ours.mean - theirs.mean
    ahead = sum((overall(a.model, primary) or 0.0) > (overall(b.model, primary) or 0.0) for a, b in pairs)
    for (task, metric), own in zip(primary.items(), tasks, strict=True):
        if any(side.values is None for pair in own for side in pair):
            reason = f"{words.metric_name(metric)} of {task} is no mean over examples, so that it has no interval"
            return Difference(*names, points, ahead=ahead, reason=reason)
    values = [[a.values - b.values for a, b in own] for own in tasks]  # type: ignore[operator]  # none is None
    _, low, high = macro_bootstrap(values, [[a.ids for a, _ in own] for own in tasks])
    return Difference(*names, points, min(low, points), max(high, points), ahead)


@dataclass(frozen=True)
class Answered:
    """One training's answers to a task.

    Attributes:
        ids: The examples, in order; empty where answers are missing, damaged, or not those that the mean is of.
        values: Each example's score in percent, mean over the seeds of answering, [N]; None where the task's score is
            not the mean of these, as of a corpus metric (BLEU).
    """

    ids: tuple[str, ...] = ()
    values: FloatArray | None = None


def read_task(result: Result, task: str, metric: str) -> Answered:
    """Read the answers that ``metrics.json`` speaks of: its seeds, and no other file that lies there."""
    seeds = result.model.seeds.get((task, metric), {})
    ids: set[tuple[str, ...]] = set()
    values: list[Any] = []
    for seed, mean in seeds.items():
        path = predictions_path(result.outcome.folder / "evaluation", result.model.key, task, seed)
        scores, rows = read_scores(path), read_answers(path)
        if scores is None or rows is None:
            return Answered()
        if not math.isclose(100 * scores.get("metrics", {}).get(metric, mean / 100), mean, abs_tol=TOLERANCE):
            return Answered()  # another evaluation's
        ids.add(tuple(str(row["id"]) for row in rows))
        values.append(scores.get("per_example", {}).get(metric))
    if len(ids) != 1:
        return Answered()
    [asked] = ids
    if any(own is None or len(own) != len(asked) for own in values):
        return Answered(asked)
    means = 100 * np.mean(np.asarray(values, dtype=np.float64), axis=0)
    is_mean = abs(float(means.mean()) - result.model.scores[task, metric].mean) < TOLERANCE
    return Answered(asked, means if is_mean else None)
