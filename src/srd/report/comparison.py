"""The models of a run side by side: what each scores, what it cost, and what may be said about it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple

from srd.base.text import change, count, duration, percent, signed
from srd.report.reading import PREPARATIONS, RunFiles, finite
from srd.report.tables import Cell, Column, Measure, Table
from srd.report.words import metric_name, model_name, phrase, task_name
from srd.run.outline.order import Cleaning, Likelihoods, Repair, Repairs

#: The metric that stands for a task, the first one it has.
PRIMARY_METRICS = ("rouge_l", "accuracy", "pass@1", "bleu", "exact_match")
#: Models that the run does not train, in the order they are listed; its trainings follow, the main one last.
GIVEN_MODELS = ("teacher", "student")
#: Titles of the columns that say what a model cost; all others but the model's name say how good it is.
COST_COLUMNS = ("Training", "Reflection", "Passes", "Examples", "Parameters")

#: Steps that a baseline on the rows as they came does without.
CLEANING_STEPS = (Likelihoods.name, Cleaning.name, Repairs.name, Repair.name)

#: Task -> the metric that stands for it.
Primary = dict[str, str]


@dataclass(frozen=True)
class Model:
    """One model of the comparison; None where a number is not known.

    Args:
        key: Its name in the files, such as ``srd``.
        scores: (task, metric) -> mean and standard deviation over seeds, in percent.
        seeds: (task, metric) -> seed -> score, in percent.
        seconds: Training time.
        reflection_seconds: Time of the student's reflection and the ranking, for trainings that learn from it.
        passes: Passes over the whole training set while training.
        examples: Distinct training examples used.
        parameters: Number of weights.
        uncleaned: Whether it had the rows as they came, where others have cleaned ones.
    """

    key: str
    scores: dict[tuple[str, str], Measure]
    seeds: dict[tuple[str, str], dict[str, float]]
    seconds: float | None = None
    reflection_seconds: float | None = None
    passes: float | None = None
    examples: float | None = None
    parameters: float | None = None
    uncleaned: bool = False

    @property
    def name(self) -> str:
        """The name shown to the reader."""
        return model_name(self.key, self.uncleaned)

    @property
    def total_seconds(self) -> float | None:
        """Training time, reflection included: what one pays for the training."""
        return None if self.seconds is None else self.seconds + (self.reflection_seconds or 0.0)


def models_of(run: RunFiles) -> list[Model]:
    """Collect every evaluated or trained model: teacher, initial student, baselines, the main training's."""
    variants = [step.removeprefix("train/") for step in run.steps if step.startswith("train/")]
    keys = list(dict.fromkeys([*run.evaluation, *(variant for variant in variants if variant not in PREPARATIONS)]))
    places = [*GIVEN_MODELS, *run.variants]
    # What the recipe does not name stands after the teacher and the student, before the trainings it names.
    keys.sort(key=lambda key: places.index(key) if key in places else len(GIVEN_MODELS) - 0.5)
    return [model_of(run, key) for key in keys]


def model_of(run: RunFiles, key: str) -> Model:
    """Collect what the files say about one model."""
    scores: dict[tuple[str, str], Measure] = {}
    seeds: dict[tuple[str, str], dict[str, float]] = {}
    for task, metrics in run.evaluation.get(key, {}).items():
        for metric, values in metrics.items():
            if not isinstance(values, dict) or not math.isfinite(finite(values, "mean")):
                continue
            seeds[task, metric] = {str(seed): float(score) for seed, score in (values.get("seeds") or {}).items()}
            std = finite(values, "std") if len(seeds[task, metric]) != 1 else math.nan
            scores[task, metric] = Measure(float(values["mean"]), std if math.isfinite(std) else None)
    step = f"train/{key}"
    summary = run.summary(step)
    logged = [finite(row, "passes") for row in run.metrics if row.get("arm") == key]
    given = run.summary(key if key in GIVEN_MODELS else "student")
    return Model(
        key=key,
        scores=scores,
        seeds=seeds,
        seconds=run.seconds(step),
        reflection_seconds=run.reflection_seconds(key) if step in run.steps else None,
        passes=summary.get("passes", max((passes for passes in logged if math.isfinite(passes)), default=None)),
        examples=summary.get("examples"),
        parameters=summary.get("parameters", given.get("parameters")),
        uncleaned=run.takes_uncleaned(key),
    )


def primary_metrics(models: list[Model]) -> Primary:
    """Return the metric that stands for each evaluated task, tasks in the order of the evaluation."""
    available: dict[str, dict[str, None]] = {}
    for model in models:
        for task, metric in model.scores:
            available.setdefault(task, {})[metric] = None
    return {
        task: next((metric for metric in PRIMARY_METRICS if metric in metrics), next(iter(metrics)))
        for task, metrics in available.items()
    }


def overall_score(model: Model, primary: Primary) -> Measure | None:
    """Return the score over all tasks: their mean, its spread over the seeds that every task has.

    None where the model lacks a task: a mean over fewer tasks would not compare.
    """
    places = list(primary.items())
    if not places or any(place not in model.scores for place in places):
        return None
    if len(places) == 1:
        return model.scores[places[0]]
    mean = statistics.fmean(model.scores[place].mean for place in places)
    shared = set.intersection(*(set(model.seeds[place]) for place in places))
    by_seed = [statistics.fmean(model.seeds[place][seed] for place in places) for seed in sorted(shared)]
    return Measure(mean, statistics.stdev(by_seed) if len(by_seed) > 1 else None)


# -------------------------------------------------------------------------------------------------------------- tables


def score_columns(models: list[Model], primary: Primary) -> list[tuple[str, str]]:
    """List the (task, metric) columns: one metric for each of several tasks, all metrics of a single one."""
    if len(primary) != 1:
        return list(primary.items())
    [(task, first)] = primary.items()
    others = {metric for model in models for _, metric in model.scores if metric != first}
    known = {metric: place for place, metric in enumerate(PRIMARY_METRICS)}
    return [(task, metric) for metric in [first, *sorted(others, key=lambda metric: (known.get(metric, 99), metric))]]


def column_title(task: str, metric: str, primary: Primary) -> str:
    """Name a column of scores by what tells it from the others: the metric of a single task, or the task."""
    if len(primary) == 1:
        return metric_name(metric)
    return f"{task}, {metric_name(metric)}" if len(set(primary.values())) > 1 else task


def comparison_table(models: list[Model]) -> Table:
    """Build the main table: scores (percent), share of the teacher's score, time, passes, examples, size."""
    primary = primary_metrics(models)
    places = score_columns(models, primary)
    teacher = next((overall_score(model, primary) for model in models if model.key == "teacher"), None)
    columns = [
        Column("Model"),
        *(Column(column_title(*place, primary), best="max") for place in places),
        Column("Mean", best="max"),
        Column("Of the teacher", show=percent),
        Column("Training", show=duration, best="min"),
        Column("Reflection", show=duration),
        Column("Passes", digits=1, best="min"),
        Column("Examples", show=count, best="min"),
        Column("Parameters", show=count),
    ]
    rows: list[list[Cell]] = []
    for model in models:
        overall = overall_score(model, primary)
        share = overall.mean / teacher.mean if overall and teacher and teacher.mean > 0 else None
        scores: list[Cell] = [model.scores.get(place) for place in places]
        cost: list[Cell] = [model.seconds, model.reflection_seconds, model.passes, model.examples, model.parameters]
        rows.append([model.name, *scores, overall if len(primary) > 1 else None, share, *cost])
    outside = frozenset(index for index, model in enumerate(models) if model.key == "teacher")
    return Table(columns, rows, outside=outside).without_empty_columns()


def interval_table(run: RunFiles) -> Table | None:
    """Build the table of paired differences with their 95 % intervals, None where there are none."""
    rows: list[list[Cell]] = []
    for row in run.comparisons:
        pair = f"{run.name_of(row['a'])} \N{MINUS SIGN} {run.name_of(row['b'])}"
        known = row["low"] is not None
        interval = f"{signed(row['low'])} to {signed(row['high'])}" if known else None
        verdict = verdict_of(row["low"], row["high"]) if known else None
        metric = metric_name(row["metric"])
        rows.append([pair, str(row["task"]), metric, signed(row["difference"]), interval, verdict])
    titles = ("Difference", "Task", "Metric", "Points", "95% interval", "So")
    return Table([Column(title) for title in titles], rows) if rows else None


# ----------------------------------------------------------------------------------------------------------- sentences


class Verdict(NamedTuple):
    """What may be said about two models: the difference in points, its verdict, and the grounds in words."""

    difference: float
    verdict: str
    grounds: str


def verdict_of(low: float, high: float) -> str:
    """Judge a difference by its interval: ``ahead``, ``behind``, or ``level`` where it holds zero."""
    return "ahead" if low > 0 else "behind" if high < 0 else "level"


def judge(run: RunFiles, ours: Model, other: Model, primary: Primary) -> Verdict | None:
    """Compare two models by paired interval where there is one, else by the spread over seeds.

    Two spreads add as independent errors do: a difference counts when it exceeds the root of their squares.
    """
    a, b = overall_score(ours, primary), overall_score(other, primary)
    if a is None or b is None:
        return None
    difference = a.mean - b.mean
    for row in run.comparisons if len(primary) == 1 else []:
        same = (row["a"], row["b"], row["metric"]) == (ours.key, other.key, primary.get(row["task"]))
        if same and row["low"] is not None and math.isclose(row["difference"], difference, abs_tol=0.01):
            grounds = f"95% interval of the difference {signed(row['low'])} to {signed(row['high'])}"
            return Verdict(difference, verdict_of(row["low"], row["high"]), grounds)
    if a.std is None or b.std is None:
        return Verdict(difference, verdict_of(difference, difference), "one seed, so chance is not ruled out")
    spread = math.hypot(a.std, b.std)
    verdict = verdict_of(difference - spread, difference + spread)
    return Verdict(difference, verdict, f"the spread over seeds is {spread:.1f}")


def headline(run: RunFiles, models: list[Model]) -> list[str]:
    """Say in plain sentences what was gained, what it cost, and how near the teacher it comes."""
    primary = primary_metrics(models)
    ours = main_model(models, primary)
    if ours is None:
        return ["Nothing has been compared yet."]
    others = {model.key: model for model in models if model is not ours and overall_score(model, primary)}
    baseline = baseline_of(list(others.values()))
    sentences = []
    if baseline is not None:
        sentences.append(gain_sentence(run, ours, baseline, primary))
        cleaning = math.fsum(run.seconds(step) or 0.0 for step in CLEANING_STEPS) if baseline.uncleaned else 0.0
        sentences += cost_sentence(ours, baseline, cleaning)
        if baseline.uncleaned:
            came = "the rows as they came, for its teacher, too"
            sentences.append(f"{baseline.name}, is what comes without cleaning: {came}.")
        if baseline.key not in GIVEN_MODELS and "student" in others:
            sentences += training_sentence(run, ours, others["student"], primary)
    if "teacher" in others:
        sentences += teacher_sentence(ours, others["teacher"], primary)
    if not sentences:
        score = overall_score(ours, primary)
        sentences.append(f"{ours.name} scores {score.mean:.1f} {yardstick(primary)}." if score else "")
    return sentences


def main_model(models: list[Model], primary: Primary) -> Model | None:
    """Return the model the report is about: the main training's, or else the last one evaluated."""
    trained = [m for m in models if m.key not in GIVEN_MODELS and overall_score(m, primary) is not None]
    return trained[-1] if trained else None


def baseline_of(others: list[Model]) -> Model | None:
    """Return what our model is measured against: plain KD, else another training, else the initial student."""
    by_key = {model.key: model for model in others}
    trained = [key for key in by_key if key not in GIVEN_MODELS]
    return next((by_key[key] for key in ("kd", *trained, "student") if key in by_key), None)


def yardstick(primary: Primary) -> str:
    """Name what the scores measure: ``ROUGE-L on dolly``, ``ROUGE-L on the mean of 5 tasks``."""
    metrics = {metric_name(metric) for metric in primary.values()}
    tasks = task_name(next(iter(primary))) if len(primary) == 1 else f"the mean of {len(primary)} tasks"
    return f"{metrics.pop() if len(metrics) == 1 else 'points'} on {tasks}"


def gain_sentence(run: RunFiles, ours: Model, baseline: Model, primary: Primary) -> str:
    """Say whether our model is ahead of, behind or level with the baseline, and on what grounds."""
    a, b = overall_score(ours, primary), overall_score(baseline, primary)
    result = judge(run, ours, baseline, primary)
    assert a is not None and b is not None and result is not None, "both models were chosen because they have scores"
    other = phrase(baseline.key)
    numbers = f"in {yardstick(primary)}: {a.mean:.1f} against {b.mean:.1f} ({result.grounds})."
    if result.verdict in ("ahead", "behind"):
        place = {"ahead": "ahead of", "behind": "behind"}[result.verdict]
        return f"{ours.name} is {abs(result.difference):.1f} points {place} {other} {numbers}"
    return f"{ours.name} and {other} are level {numbers}"


def cost_sentence(ours: Model, baseline: Model, cleaning: float = 0.0) -> list[str]:
    """Say what our model cost compared with the baseline: examples, passes, and time with reflection and cleaning."""
    parts = []
    if ours.examples and baseline.examples:
        share = f"{percent(ours.examples / baseline.examples)} of the examples"
        more = change(ours.examples, baseline.examples, less="", more="more examples", same="as many examples")
        parts.append(share if ours.examples < baseline.examples else more)
    if ours.passes and baseline.passes:
        parts.append(
            change(ours.passes, baseline.passes, less="fewer passes", more="more passes", same="as many passes")
        )
    if ours.total_seconds and baseline.total_seconds:
        seconds = ours.total_seconds + cleaning, baseline.total_seconds
        spans = " against ".join(map(duration, seconds))
        included = [name for name, part in (("reflection", ours.reflection_seconds), ("cleaning", cleaning)) if part]
        note = f", {' and '.join(included)} included" if included else ""
        parts.append(f"{change(*seconds, less='less time', more='more time', same='as much time')} ({spans}{note})")
    if not parts:
        return []
    *before, last = parts
    return [f"It took {', '.join(before)}{' and ' if before else ''}{last}."]


def training_sentence(run: RunFiles, ours: Model, student: Model, primary: Primary) -> list[str]:
    """Say what training did to the student."""
    result = judge(run, ours, student, primary)
    if result is None:
        return []
    if result.verdict not in ("ahead", "behind"):
        return [f"It is level with the initial student ({signed(result.difference)} points)."]
    verb = "gained" if result.difference > 0 else "lost"
    return [f"Training {verb} {abs(result.difference):.1f} points over the initial student."]


def teacher_sentence(ours: Model, teacher: Model, primary: Primary) -> list[str]:
    """Say how much of the teacher's score is left at which size."""
    a, b = overall_score(ours, primary), overall_score(teacher, primary)
    if a is None or b is None or b.mean <= 0:
        return []
    size = ""
    if ours.parameters and teacher.parameters:
        size = f" with {percent(ours.parameters / teacher.parameters)} of its parameters"
    if a.mean >= b.mean:
        return [f"It scores as high as its teacher or higher ({a.mean:.1f} against {b.mean:.1f}){size}."]
    return [f"It keeps {percent(a.mean / b.mean)} of its teacher's score{size}."]
