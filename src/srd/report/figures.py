"""The pictures of a run: scores, training curves, the difficulty map, and where the time went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow  # type: ignore[import-untyped]
from pyarrow import compute

from srd.report import words
from srd.report.comparison import Model, overall_score, primary_metrics
from srd.report.difficulty import sample_evenly
from srd.report.plots import (
    Band,
    Bar,
    Series,
    bar_plot,
    legend,
    line_plot,
    scatter_plot,
    thin,
)
from srd.report.run_files import PREPARATION_ARMS, Row, RunFiles, finite

KNOWN_COLORS = ("teacher", "student", "kd", "srd")
OTHER_COLORS = 4
MAP_POINTS = 2000


def arm_colors(keys: Sequence[str]) -> dict[str, str]:
    """Give every model or arm its CSS colour, the same in all plots of a page."""
    others = [key for key in dict.fromkeys(keys) if key not in KNOWN_COLORS]
    colors = {key: f"var(--arm-{key})" for key in keys if key in KNOWN_COLORS}
    return colors | {key: f"var(--arm-{index % OTHER_COLORS + 1})" for index, key in enumerate(others)}


def stage_color(stage: int, stages: int) -> str:
    """Return the colour of a stage, from easy to hard."""
    share = 100 * stage / (stages - 1) if stages > 1 else 100
    return f"color-mix(in oklab, var(--hard) {share:.0f}%, var(--easy))"


def score_bars(run: RunFiles, models: Sequence[Model]) -> str:
    """Draw the score of every evaluated model, with its spread; empty without an evaluation."""
    primary = primary_metrics(list(models))
    colors = arm_colors([*run.arms, *(model.key for model in models)])
    bars = []
    for model in models:
        score = overall_score(model, primary)
        if score is None:
            continue
        shown = f"{score.mean:.1f}" + (f" ± {score.std:.1f}" if score.std is not None else "")
        seeds = model.seeds[next(iter(primary.items()))] if len(primary) == 1 else {}
        each = "".join(f", seed {seed}: {value:.2f}" for seed, value in seeds.items())
        bars.append(Bar(model.name, score.mean, shown, colors[model.key], score.std, f"{model.name}: {shown}{each}"))
    return (
        bar_plot(bars, title="Score of every model, in percent, with its standard deviation over seeds") if bars else ""
    )


def time_bars(run: RunFiles) -> str:
    """Draw how long each step took; empty where nothing was timed."""
    timed = {step: seconds for step in run.steps if (seconds := run.seconds(step)) is not None}
    total = math.fsum(timed.values())
    colors = arm_colors(list(run.arms))
    bars = []
    for step, seconds in timed.items():
        share = f" · {words.percent(seconds / total)}" if total > 0 else ""
        color = colors.get(step.removeprefix("train/"), "var(--bar)") if step.startswith("train/") else "var(--bar)"
        bars.append(Bar(words.step_name(step), seconds, words.duration(seconds) + share, color))
    return bar_plot(bars, title="Time of each step of the run") if bars else ""


def training_curves(run: RunFiles) -> list[tuple[str, str]]:
    """Draw validation ROUGE-L, validation loss and training loss of the compared arms.

    Returns:
        (caption, HTML of legend and plot) for each plot there is data for.
    """
    arms = [arm for arm in dict.fromkeys(str(row.get("arm")) for row in run.metrics) if arm not in PREPARATION_ARMS]
    figures = []
    for key, label, caption, markers in (
        ("eval_rouge_l", "ROUGE-L, %", "Validation ROUGE-L", True),
        ("eval_loss", "loss", "Validation loss", True),
        ("loss", "loss", "Training loss", False),
    ):
        html = curve(run, arms, key, label, caption, markers)
        if html:
            figures.append((caption, html))
    return figures


def preparation_curves(run: RunFiles) -> list[tuple[str, str]]:
    """Draw the training loss of the arms that prepare teacher and student; see ``training_curves``."""
    arms = [arm for arm in PREPARATION_ARMS if any(row.get("arm") == arm for row in run.metrics)]
    html = curve(run, arms, "loss", "loss", "Training loss before distillation", False)
    return [("Training loss", html)] if html else []


def curve(run: RunFiles, arms: Sequence[str], key: str, label: str, title: str, markers: bool) -> str:
    """Draw one logged value of all arms over the passes through the training set, stages shaded."""
    colors = arm_colors([*run.arms, *arms])
    factor = 100.0 if key == "eval_rouge_l" else 1.0
    series = []
    for arm in arms:
        rows = logged(run.metrics, arm, key)
        points = [(finite(row, "passes"), factor * finite(row, key)) for row in rows]
        if not points:
            continue
        titles = [point_title(arm, row, y) for row, (_, y) in zip(rows, points, strict=True)] if markers else []
        series.append(Series(words.model_name(arm), colors[arm], points if markers else thin(points), titles))
    if not series:
        return ""
    bands = stage_bands(run.metrics, run.main_arm) if run.main_arm in arms else []
    x_label = "passes over the training set"
    plot = line_plot(series, title=title, x_label=x_label, y_label=label, bands=bands, markers=markers)
    return legend(series) + plot


def point_title(arm: str, row: Row, value: float) -> str:
    """Write the tooltip of a validation point."""
    epoch = finite(row, "epoch")
    where = f", epoch {epoch:.3g}" if math.isfinite(epoch) else ""
    stage = f", stage {row['stage'] + 1}" if isinstance(row.get("stage"), int) else ""
    return f"{words.model_name(arm)}{stage}{where}: {value:.4g}"


def logged(metrics: Sequence[Row], arm: str, key: str) -> list[Row]:
    """Return the lines of an arm that carry a value, by passes; of a step logged twice, the last."""
    rows: dict[object, Row] = {}
    for row in metrics:
        if row.get("arm") == arm and key in row and math.isfinite(finite(row, "passes")):
            rows[row.get("stage"), row.get("step", row["passes"])] = row
    return sorted(rows.values(), key=lambda row: float(row["passes"]))


def stage_bands(metrics: Sequence[Row], arm: str) -> list[Band]:
    """Find where each stage of an arm lies on the axis of passes; none where there is a single stage."""
    ends: dict[int, float] = {}
    for row in metrics:
        passes = finite(row, "passes")
        if row.get("arm") == arm and isinstance(row.get("stage"), int) and math.isfinite(passes):
            ends[row["stage"]] = max(passes, ends.get(row["stage"], 0.0))
    if len(ends) < 2:
        return []
    starts = [0.0, *[ends[stage] for stage in sorted(ends)]]
    return [Band(starts[i], ends[stage], f"stage {stage + 1}") for i, stage in enumerate(sorted(ends))]


def difficulty_map(ranked: pyarrow.Table, corruption: dict[str, str]) -> str:
    """Draw every example by the two scores it was ranked with, coloured by the stage in which it enters.

    Args:
        ranked: ``curriculum/ranked.parquet``, easiest first; about 2000 of its rows are drawn.
        corruption: Id of each corrupted example -> kind of corruption.
    """
    rows = sample_evenly(ranked, MAP_POINTS).to_pylist()
    stages = int(compute.max(ranked["stage"]).as_py()) + 1
    series = []
    for stage in range(stages):
        members = [row for row in rows if row["kept"] and row["stage"] == stage]
        name = f"enters in stage {stage + 1}" if stages > 1 else "kept"
        series.append(map_series(name, stage_color(stage, stages), members))
    series.append(map_series("dropped", "var(--dropped)", [row for row in rows if not row["kept"]], ring=True))
    corrupted = [row for row in rows if corruption.get(str(row["id"]))]
    if corrupted:
        titles = [f"{row['id']}: {corruption[str(row['id'])]}" for row in corrupted]
        points = [(finite(row, "ce"), finite(row, "rouge_l")) for row in corrupted]
        series.append(Series("corrupted on purpose", "var(--ink)", points, titles, "cross"))
    series = [group for group in series if group.points]
    plot = scatter_plot(
        series,
        title="Every training example by the student's cross-entropy and ROUGE-L",
        x_label="cross-entropy of the reference, nats per token",
        y_label="ROUGE-L of the student's answer",
        x_range=(0.0, upper_end([finite(row, "ce") for row in rows])),
        y_range=(-0.02, 1.02),
    )
    return legend(series) + plot


def map_series(name: str, color: str, rows: Sequence[Row], *, ring: bool = False) -> Series:
    """Make the points of one group of the difficulty map."""
    points = [(finite(row, "ce"), finite(row, "rouge_l")) for row in rows]
    titles = [
        f"#{row['rank']:.0f} {row['id']}: ROUGE-L {y:.2f}, {x:.2f} nats"
        for row, (x, y) in zip(rows, points, strict=True)
    ]
    return Series(name, color, points, titles, "ring" if ring else "dot")


def upper_end(values: Sequence[float]) -> float:
    """Return where an axis ends: at the largest value, or before a few that would squeeze the rest."""
    finite_values = sorted(value for value in values if math.isfinite(value))
    if not finite_values:
        return 1.0
    largest = finite_values[-1]
    most = finite_values[round(0.995 * (len(finite_values) - 1))]
    return 1.04 * (most if largest > 1.5 * most and most > 0 else largest) or 1.0
