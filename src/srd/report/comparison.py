"""The models of a run side by side: what each scores, what it cost, and what may be said about it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from srd.report import words
from srd.report.run_files import PREPARATION_ARMS, Row, RunFiles, finite
from srd.report.tables import Cell, Column, Measure, Table

#: The metric that stands for a task, the first one it has.
PRIMARY_METRICS = ("rouge_l", "accuracy", "pass@1", "bleu", "exact_match")
#: Models that no arm trains, in the order they are listed; the arms follow, the recipe's main one last.
GIVEN_MODELS = ("teacher", "student")
#: Titles of the columns that say what a model cost; all others but the model's name say how good it is.
COST_COLUMNS = ("Training", "Reflection", "Passes", "Examples", "Parameters")
#: What a curriculum may rank by without asking the student.
UNREFLECTED_SCORES = ("length", "random")


@dataclass(frozen=True)
class Model:
    """One model of the comparison; None where a number is not known.

    Args:
        key: Its name in the files, such as ``srd``.
        scores: (task, metric) -> mean and standard deviation over seeds, in percent.
        seeds: (task, metric) -> seed -> score, in percent.
        seconds: Training time.
        reflection_seconds: Time of the student's reflection and the ranking, for arms that learn from it.
        passes: Passes over the whole training set while training.
        examples: Distinct training examples used.
        parameters: Number of weights.
    """

    key: str
    scores: dict[tuple[str, str], Measure]
    seeds: dict[tuple[str, str], dict[str, float]]
    seconds: float | None = None
    reflection_seconds: float | None = None
    passes: float | None = None
    examples: float | None = None
    parameters: float | None = None

    @property
    def name(self) -> str:
        """The name shown to the reader."""
        return words.model_name(self.key)

    @property
    def total_seconds(self) -> float | None:
        """Training time, reflection included: what one pays for the arm."""
        return None if self.seconds is None else self.seconds + (self.reflection_seconds or 0.0)


def models_of(run: RunFiles) -> list[Model]:
    """Collect every evaluated or trained model: teacher, initial student, baselines, the main arm."""
    arms = [step.removeprefix("train/") for step in run.steps if step.startswith("train/")]
    arms = [arm for arm in arms if arm not in PREPARATION_ARMS]
    keys = list(dict.fromkeys([*run.evaluation, *arms]))
    places = [*GIVEN_MODELS, *run.arms]
    # What the recipe does not name stands after the teacher and the student, before the arms it names.
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
    size = run.summary("teacher" if key == "teacher" else "student").get("parameters")
    curriculum = run.arms.get(key, {}).get("curriculum")
    asks_student = curriculum is not None and curriculum.get("score") not in UNREFLECTED_SCORES
    reflects = asks_student and step in run.steps
    reflection = [seconds for name in ("reflection", "ranking") if (seconds := run.seconds(name)) is not None]
    return Model(
        key=key,
        scores=scores,
        seeds=seeds,
        seconds=run.seconds(step),
        reflection_seconds=math.fsum(reflection) if reflects and reflection else None,
        passes=summary.get("passes", logged_passes(run.metrics, key)),
        examples=summary.get("examples"),
        parameters=summary.get("parameters", size),
    )


def logged_passes(metrics: list[Row], arm: str) -> float | None:
    """Return the passes over the training set that an arm has logged so far."""
    passes = [value for row in metrics if row.get("arm") == arm and math.isfinite(value := finite(row, "passes"))]
    return max(passes, default=None)


def primary_metrics(models: list[Model]) -> dict[str, str]:
    """Return the metric that stands for each evaluated task, tasks in the order of the evaluation."""
    available: dict[str, list[str]] = {}
    for model in models:
        for task, metric in model.scores:
            available.setdefault(task, [])
            if metric not in available[task]:
                available[task].append(metric)
    return {
        task: next((metric for metric in PRIMARY_METRICS if metric in metrics), metrics[0])
        for task, metrics in available.items()
    }


def overall_score(model: Model, primary: dict[str, str]) -> Measure | None:
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


def score_columns(models: list[Model], primary: dict[str, str]) -> list[tuple[str, str]]:
    """List the (task, metric) columns: one metric for each of several tasks, all metrics of a single one."""
    if len(primary) != 1:
        return list(primary.items())
    [(task, first)] = primary.items()
    others = {metric for model in models for _, metric in model.scores if metric != first}
    order = list(PRIMARY_METRICS)
    return [
        (task, first),
        *((task, m) for m in sorted(others, key=lambda m: (order.index(m) if m in order else 99, m))),
    ]


def comparison_table(models: list[Model]) -> Table:
    """Build the main table: scores (percent), share of the teacher's score, time, passes, examples, size."""
    primary = primary_metrics(models)
    places = score_columns(models, primary)
    teacher = next((overall_score(model, primary) for model in models if model.key == "teacher"), None)
    metrics = {metric for _, metric in places}
    columns = [Column("Model")]
    for task, metric in places:
        label = words.metric_name(metric) if len(primary) == 1 else task
        label = f"{task}, {words.metric_name(metric)}" if len(primary) > 1 and len(metrics) > 1 else label
        columns.append(Column(label, best="max"))
    columns.append(Column("Mean", best="max"))
    columns += [
        Column("Of the teacher", show=words.percent),
        Column("Training", show=words.duration, best="min"),
        Column("Reflection", show=words.duration),
        Column("Passes", digits=1, best="min"),
        Column("Examples", show=words.count, best="min"),
        Column("Parameters", show=words.count),
    ]
    rows: list[list[Cell]] = []
    for model in models:
        overall = overall_score(model, primary)
        share = overall.mean / teacher.mean if overall and teacher and teacher.mean > 0 else None
        scores: list[Cell] = [model.scores.get(place) for place in places]
        cost: list[Cell] = [
            model.seconds,
            model.reflection_seconds,
            model.passes,
            model.examples,
            model.parameters,
        ]
        rows.append([model.name, *scores, overall if len(primary) > 1 else None, share, *cost])
    outside = frozenset(index for index, model in enumerate(models) if model.key == "teacher")
    return Table(columns, rows, outside=outside).without_empty_columns()


def interval_table(run: RunFiles) -> Table | None:
    """Build the table of paired differences with their 95 % intervals, None where there are none."""
    rows: list[list[Cell]] = [
        [
            f"{words.model_name(row['a'])} \N{MINUS SIGN} {words.model_name(row['b'])}",
            str(row["task"]),
            words.metric_name(row["metric"]),
            words.signed(row["difference"]),
            None if row["low"] is None else f"{words.signed(row['low'])} to {words.signed(row['high'])}",
            None if row["low"] is None else verdict_of(row["low"], row["high"]),
        ]
        for row in run.comparisons
    ]
    titles = ("Difference", "Task", "Metric", "Points", "95% interval", "So")
    return Table([Column(title) for title in titles], rows) if rows else None


def verdict_of(low: float, high: float) -> str:
    """Judge a difference by its interval: ``ahead``, ``behind``, or ``level`` where it holds zero."""
    return "ahead" if low > 0 else "behind" if high < 0 else "level"


@dataclass(frozen=True)
class Verdict:
    """What may be said about two models: the difference in points, its verdict, and the grounds in words."""

    difference: float
    verdict: str
    grounds: str


def judge(run: RunFiles, ours: Model, other: Model, primary: dict[str, str]) -> Verdict | None:
    """Compare two models by paired interval where there is one, else by the spread over seeds.

    Two spreads add as independent errors do: a difference counts when it exceeds the root of their squares.
    """
    a, b = overall_score(ours, primary), overall_score(other, primary)
    if a is None or b is None:
        return None
    difference = a.mean - b.mean
    intervals = [row for row in run.comparisons if (row["a"], row["b"]) == (ours.key, other.key)]
    intervals = [row for row in intervals if primary.get(row["task"]) == row["metric"] and row["low"] is not None]
    intervals = [row for row in intervals if math.isclose(row["difference"], difference, abs_tol=0.01)]
    if len(primary) == 1 and intervals:
        low, high = float(intervals[0]["low"]), float(intervals[0]["high"])
        grounds = f"95% interval of the difference {words.signed(low)} to {words.signed(high)}"
        return Verdict(difference, verdict_of(low, high), grounds)
    if a.std is None or b.std is None:
        verdict = "ahead" if difference > 0 else "behind" if difference < 0 else "level"
        return Verdict(difference, verdict, "one seed, so chance is not ruled out")
    spread = math.hypot(a.std, b.std)
    if abs(difference) <= spread:
        return Verdict(difference, "level", f"the spread over seeds is {spread:.1f}")
    return Verdict(difference, "ahead" if difference > 0 else "behind", f"the spread over seeds is {spread:.1f}")


def headline(run: RunFiles, models: list[Model]) -> list[str]:
    """Say in plain sentences what was gained, what it cost, and how near the teacher it comes.

    Empty where no trained model has been evaluated.
    """
    primary = primary_metrics(models)
    ours = main_model(models, primary)
    if ours is None:
        return []
    others = {model.key: model for model in models if model is not ours and overall_score(model, primary)}
    baseline = baseline_of(list(others.values()))
    sentences = []
    if baseline is not None:
        sentences.append(gain_sentence(run, ours, baseline, primary))
        sentences += cost_sentence(ours, baseline)
        if baseline.key != "student" and "student" in others:
            sentences += training_sentence(run, ours, others["student"], primary)
    if "teacher" in others:
        sentences += teacher_sentence(ours, others["teacher"], primary)
    if not sentences:
        score = overall_score(ours, primary)
        sentences.append(f"{ours.name} scores {score.mean:.1f} {yardstick(primary)}." if score else "")
    return sentences


def main_model(models: list[Model], primary: dict[str, str]) -> Model | None:
    """Return the model the report is about: the main arm, or else the last one evaluated."""
    trained = [m for m in models if m.key not in GIVEN_MODELS and overall_score(m, primary) is not None]
    return trained[-1] if trained else None


def baseline_of(others: list[Model]) -> Model | None:
    """Return what our model is measured against: plain KD, else another arm, else the initial student."""
    by_key = {model.key: model for model in others if model.key != "teacher"}
    trained = [key for key in by_key if key not in GIVEN_MODELS]
    return next((by_key[key] for key in ("kd", *trained, "student") if key in by_key), None)


def yardstick(primary: dict[str, str]) -> str:
    """Name what the scores measure: ``ROUGE-L on dolly``, ``ROUGE-L on the mean of 5 tasks``."""
    metrics = sorted({words.metric_name(metric) for metric in primary.values()})
    metric = metrics[0] if len(metrics) == 1 else "points"
    return (
        f"{metric} on {words.task_name(next(iter(primary)))}"
        if len(primary) == 1
        else f"{metric} on the mean of {len(primary)} tasks"
    )


def gain_sentence(run: RunFiles, ours: Model, baseline: Model, primary: dict[str, str]) -> str:
    """Say whether our model is ahead of, behind or level with the baseline, and on what grounds."""
    a, b = overall_score(ours, primary), overall_score(baseline, primary)
    result = judge(run, ours, baseline, primary)
    assert a is not None and b is not None and result is not None, "both models were chosen because they have scores"
    other = words.phrase(baseline.key)
    numbers = f"{a.mean:.1f} against {b.mean:.1f}"
    if result.verdict == "level":
        return f"{ours.name} and {other} are level in {yardstick(primary)}: {numbers} ({result.grounds})."
    points = f"{abs(result.difference):.1f} points"
    place = "ahead of" if result.verdict == "ahead" else "behind"
    return f"{ours.name} is {points} {place} {other} in {yardstick(primary)}: {numbers} ({result.grounds})."


def cost_sentence(ours: Model, baseline: Model) -> list[str]:
    """Say what our model cost compared with the baseline: examples, passes, and time with reflection."""
    parts = []
    if ours.examples and baseline.examples:
        if ours.examples < baseline.examples:
            parts.append(f"{words.percent(ours.examples / baseline.examples)} of the examples")
        else:
            parts.append(
                words.change(ours.examples, baseline.examples, less="", more="more examples", same="as many examples")
            )
    if ours.passes and baseline.passes:
        parts.append(
            words.change(ours.passes, baseline.passes, less="fewer passes", more="more passes", same="as many passes")
        )
    if ours.total_seconds and baseline.total_seconds:
        spans = f"{words.duration(ours.total_seconds)} against {words.duration(baseline.total_seconds)}"
        note = ", reflection included" if ours.reflection_seconds else ""
        parts.append(
            words.change(
                ours.total_seconds,
                baseline.total_seconds,
                less="less time",
                more="more time",
                same="as much time",
            )
            + f" ({spans}{note})"
        )
    return [f"It took {join(parts)}."] if parts else []


def training_sentence(run: RunFiles, ours: Model, student: Model, primary: dict[str, str]) -> list[str]:
    """Say what training did to the student."""
    result = judge(run, ours, student, primary)
    if result is None:
        return []
    if result.verdict == "level":
        return [f"It is level with the initial student ({words.signed(result.difference)} points)."]
    verb = "gained" if result.difference > 0 else "lost"
    return [f"Training {verb} {abs(result.difference):.1f} points over the initial student."]


def teacher_sentence(ours: Model, teacher: Model, primary: dict[str, str]) -> list[str]:
    """Say how much of the teacher's score is left at which size."""
    a, b = overall_score(ours, primary), overall_score(teacher, primary)
    if a is None or b is None or b.mean <= 0:
        return []
    size = ""
    if ours.parameters and teacher.parameters:
        size = f" with {words.percent(ours.parameters / teacher.parameters)} of its parameters"
    if a.mean >= b.mean:
        return [f"It scores as high as its teacher or higher ({a.mean:.1f} against {b.mean:.1f}){size}."]
    return [f"It keeps {words.percent(a.mean / b.mean)} of its teacher's score{size}."]


def join(parts: list[str]) -> str:
    """Join parts of a sentence: ``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
