"""The pictures of a run: scores, training curves, the difficulty map, and where the time went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow  # type: ignore[import-untyped]
from markupsafe import Markup
from pyarrow import compute

from srd.base.text import duration, percent
from srd.curation.inspect import sample_evenly
from srd.report.comparison import Model, overall_score, primary_metrics
from srd.report.plots import Band, Bar, Series, bar_plot, legend, line_plot, padded_range, scatter_plot, thin
from srd.report.reading import PREPARATIONS, Row, RunFiles, finite
from srd.report.words import step_name
from srd.run.folder import UNCLEANED

KNOWN_COLORS = ("teacher", "student", "kd", "srd")
OTHER_COLORS = 4  # in the style sheet, beside the known ones
MAP_POINTS = 2000
SHORT = 0.01  # share of the time below which a step has no bar of its own

#: What is drawn of a training: key in the log, label of its axis, caption, and whether each point is marked.
CURVES = (
    ("eval_rouge_l", "ROUGE-L, %", "Validation ROUGE-L", True),
    ("eval_loss", "loss", "Validation loss", True),
    ("loss", "loss", "Training loss", False),
)


def variant_colors(keys: Sequence[str]) -> dict[str, str]:
    """Give every model or training its CSS colour, the same in all plots of a page."""
    others = [key for key in dict.fromkeys(keys) if key not in KNOWN_COLORS]
    colors = {key: f"var(--arm-{key})" for key in keys if key in KNOWN_COLORS}
    return colors | {key: f"var(--arm-{index % OTHER_COLORS + 1})" for index, key in enumerate(others)}


def stage_color(stage: int, stages: int) -> str:
    """Return the colour of a stage, from easy to hard."""
    share = 100 * stage / (stages - 1) if stages > 1 else 100
    return f"color-mix(in oklab, var(--hard) {share:.0f}%, var(--easy))"


def score_bars(run: RunFiles, models: Sequence[Model]) -> Markup:
    """Draw the score of every evaluated model, with its spread."""
    primary = primary_metrics(list(models))
    colors = variant_colors([*run.variants, *(model.key for model in models)])
    bars = []
    for model in models:
        score = overall_score(model, primary)
        if score is None:
            continue
        shown = f"{score.mean:.1f}" + (f" ± {score.std:.1f}" if score.std is not None else "")
        seeds = model.seeds[next(iter(primary.items()))] if len(primary) == 1 else {}
        each = "".join(f", seed {seed}: {value:.2f}" for seed, value in seeds.items())
        bars.append(Bar(model.name, score.mean, shown, colors[model.key], score.std, f"{model.name}: {shown}{each}"))
    return bar_plot(bars, title="Score of every model, in percent, with its standard deviation over seeds")


def step_seconds(run: RunFiles) -> dict[str, float]:
    """The steps that were timed, and how long each took."""
    timed = {step: seconds for step in run.steps if (seconds := run.seconds(step)) is not None}
    again = {f"{step}{UNCLEANED}": float(entry.get("seconds", 0.0)) for step, entry in run.uncleaned_steps.items()}
    return {**timed, **again}


def time_bars(run: RunFiles) -> Markup:
    """Draw how long each step took; several that took nearly no time share a bar."""
    timed = step_seconds(run)
    total = math.fsum(timed.values())
    colors = {f"train/{variant}": color for variant, color in variant_colors(list(run.variants)).items()}
    steps = [(step_name(step), seconds, colors.get(step, "var(--bar)")) for step, seconds in timed.items()]
    long = [each for each in steps if each[1] >= SHORT * total]
    if (short := len(steps) - len(long)) > 2:
        rest = total - math.fsum(seconds for _, seconds, _ in long)
        steps = [*long, (f"{short} steps of less than {percent(SHORT)} each", rest, "var(--bar)")]
    bars = []
    for name, seconds, color in steps:
        share = f" · {percent(seconds / total)}" if total > 0 else ""
        bars.append(Bar(name, seconds, duration(seconds) + share, color))
    return bar_plot(bars, title="Time of each step of the run")


def training_curves(run: RunFiles) -> dict[str, Markup]:
    """Draw validation ROUGE-L, validation loss and training loss of the compared trainings: caption -> plot."""
    variants = compared_variants(run)
    drawn = {caption: curve(run, variants, key, label, caption, markers) for key, label, caption, markers in CURVES}
    return {caption: plot for caption, plot in drawn.items() if plot}


def compared_variants(run: RunFiles) -> list[str]:
    """Return the trainings that were logged, in their order, without those that prepare teacher and student."""
    variants = dict.fromkeys(str(row.get("arm")) for row in run.metrics)
    return [variant for variant in variants if variant not in PREPARATIONS]


def measured_once(run: RunFiles) -> list[str]:
    """Say what has a single value in each training, where a curve would be an empty frame: a sentence for each."""
    sentences = []
    for key, _, caption, markers in CURVES:
        series = curve_series(run, compared_variants(run), key, markers)
        if series and not any(len(line.points) > 1 for line in series):
            values = ", ".join(f"{line.name} {line.points[0][1]:.4g}" for line in series)
            sentences.append(f"{caption}, logged once in each training: {values}.")
    return sentences


def preparation_curves(run: RunFiles) -> dict[str, Markup]:
    """Draw the training loss of the trainings that prepare teacher and student; see ``training_curves``."""
    plot = curve(run, PREPARATIONS, "loss", "loss", "Training loss before distillation", False)
    return {"Training loss": plot} if plot else {}


def curve(run: RunFiles, variants: Sequence[str], key: str, label: str, title: str, markers: bool) -> Markup:
    """Draw one logged value of all trainings over the passes, stages shaded; nothing where none has two points."""
    series = curve_series(run, variants, key, markers)
    if not any(len(line.points) > 1 for line in series):
        return Markup("")
    markers = markers or any(len(line.points) == 1 for line in series)  # a line of one point is not seen
    bands = stage_bands(run.metrics, run.main_variant) if run.main_variant in variants else []
    x_label = "passes over the training set"
    plot = line_plot(series, title=title, x_label=x_label, y_label=label, bands=bands, markers=markers)
    return legend(series) + plot


def curve_series(run: RunFiles, variants: Sequence[str], key: str, markers: bool) -> list[Series]:
    """Return the points of one logged value, a series for every training that has one."""
    colors = variant_colors([*run.variants, *variants])
    factor = 100.0 if key == "eval_rouge_l" else 1.0
    series = []
    for variant in variants:
        rows, name = logged(run.metrics, variant, key), run.name_of(variant)
        points = [(finite(row, "passes"), factor * finite(row, key)) for row in rows]
        titles = [point_title(name, row, y) for row, (_, y) in zip(rows, points, strict=True)] if markers else []
        if points:
            series.append(Series(name, colors[variant], points if markers else thin(points), titles))
    return series


def point_title(name: str, row: Row, value: float) -> str:
    """Write the tooltip of a validation point."""
    epoch = finite(row, "epoch")
    where = f", epoch {epoch:.3g}" if math.isfinite(epoch) else ""
    stage = f", stage {row['stage'] + 1}" if isinstance(row.get("stage"), int) else ""
    return f"{name}{stage}{where}: {value:.4g}"


def logged(metrics: Sequence[Row], variant: str, key: str) -> list[Row]:
    """Return the lines of a training that carry a value, by passes; of a step logged twice, the last."""
    rows: dict[object, Row] = {}
    for row in metrics:
        if row.get("arm") == variant and key in row and math.isfinite(finite(row, "passes")):
            rows[row.get("stage"), row.get("step", row["passes"])] = row
    return sorted(rows.values(), key=lambda row: float(row["passes"]))


def stage_bands(metrics: Sequence[Row], variant: str) -> list[Band]:
    """Find where each stage of a training lies on the axis of passes; none where there is a single stage."""
    ends: dict[int, float] = {}
    for row in metrics:
        passes = finite(row, "passes")
        if row.get("arm") == variant and isinstance(row.get("stage"), int) and math.isfinite(passes):
            ends[row["stage"]] = max(passes, ends.get(row["stage"], 0.0))
    if len(ends) < 2:
        return []
    starts = [0.0, *(ends[stage] for stage in sorted(ends))]
    return [Band(starts[i], ends[stage], f"stage {stage + 1}") for i, stage in enumerate(sorted(ends))]


def difficulty_map(ranked: pyarrow.Table, corruption: dict[str, str], *, staged: bool = True) -> Markup:
    """Draw every example by the two scores it was ranked with, coloured by the stage in which it enters.

    Args:
        ranked: The ranking, easiest first; about 2000 of its rows are drawn.
        corruption: Id of each corrupted example -> kind of corruption.
        staged: Whether the training went by these stages.
    """
    rows = sample_evenly(ranked, MAP_POINTS).to_pylist()
    stages = int(compute.max(ranked["stage"]).as_py()) + 1 if staged else 0
    series = [] if staged else [Series("examples", stage_color(0, 1), *map_points(rows))]
    for stage in range(stages):
        members = [row for row in rows if row["kept"] and row["stage"] == stage]
        name = f"enters in stage {stage + 1}" if stages > 1 else "kept"
        series.append(Series(name, stage_color(stage, stages), *map_points(members)))
    dropped = [row for row in rows if staged and not row["kept"]]
    series.append(Series("dropped", "var(--dropped)", *map_points(dropped), "ring"))
    corrupted = [row for row in rows if corruption.get(str(row["id"]))]
    titles = [f"{row['id']}: {corruption[str(row['id'])]}" for row in corrupted]
    series.append(Series("corrupted on purpose", "var(--ink)", map_points(corrupted)[0], titles, "cross"))
    series = [group for group in series if group.points]
    plot = scatter_plot(
        series,
        title="Every training example by the student's cross-entropy and ROUGE-L",
        x_label="cross-entropy of the reference, nats per token",
        y_label="ROUGE-L of the student's answer, %",
        x_range=surprise_range([finite(row, "ce") for row in rows]),
        y_range=within(padded_range([100 * finite(row, "rouge_l") for row in rows]), 0.0, 102.0),
    )
    return legend(series) + plot


def map_points(rows: Sequence[Row]) -> tuple[list[tuple[float, float]], list[str]]:
    """Make the points and tooltips of one group of the difficulty map."""
    points = [(finite(row, "ce"), 100 * finite(row, "rouge_l")) for row in rows]
    places = zip(rows, points, strict=True)
    return points, [f"#{row['rank']:.0f} {row['id']}: ROUGE-L {y:.1f}, {x:.2f} nats" for row, (x, y) in places]


def surprise_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis of cross-entropy: those of the values, but for a few that would squeeze the rest."""
    high = upper_end(values)
    low, _ = padded_range([value for value in values if value <= high], room=0.04)
    return max(0.0, min(low, high - 1e-6)), high


def within(ends: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """Keep an axis within what its values can be."""
    return max(ends[0], low), min(ends[1], high)


def upper_end(values: Sequence[float]) -> float:
    """Return where an axis ends: at the largest value, or before a few that would squeeze the rest."""
    finite_values = sorted(value for value in values if math.isfinite(value))
    if not finite_values:
        return 1.0
    largest = finite_values[-1]
    most = finite_values[round(0.995 * (len(finite_values) - 1))]
    return 1.04 * (most if largest > 1.5 * most and most > 0 else largest) or 1.0
