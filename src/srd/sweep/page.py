"""The tables and the page of a sweep, from the files of its cells' run directories."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from markupsafe import Markup
from rich.console import Console

from srd.base.files import write_text
from srd.base.text import count, duration, percent, signed
from srd.report.comparison import Model, Primary, column_title, overall_score, primary_metrics, verdict_of
from srd.report.difficulty import corruption_table
from srd.report.figures import variant_colors
from srd.report.html import render
from srd.report.plots import Bar, Series, bar_plot, legend, line_plot, scatter_plot
from srd.report.summary import escape, grid
from srd.report.tables import MISSING, Cell, Column, Measure, Table, to_csv, to_html, to_latex, to_markdown
from srd.run.folder import RunFolder
from srd.sweep.cells import Outcome
from srd.sweep.compare import (
    Difference,
    Line,
    Result,
    by_row,
    differences,
    lines_of,
    mean_over_tasks,
    measure,
    read_results,
)
from srd.sweep.settings import SweepConfig

LOW, HIGH = "Low", "High"  # bounds of the interval as numbers, for the CSV file
PLAIN_INTERVAL = "95% interval"


def write_sweep_report(
    folder: Path, config: SweepConfig, outcomes: Sequence[Outcome], references: dict[str, str]
) -> list[Path]:
    """Write the page, and its tables and numbers as CSV, Markdown and LaTeX, and return their paths.

    Args:
        folder: The sweep's folder.
        config: The sweep.
        outcomes: All its cells; those that are not done are listed, and counted nowhere.
        references: Row -> the row it is compared with.
    """
    results = read_results(outcomes)
    primary = primary_metrics([result.model for result in results])
    lines = lines_of(results, references)
    found = differences(lines, references, primary)
    tables = {"results": main_table(results, lines, references, primary, found)} if results else {}
    if (corrupted := corruption_rows(results)) is not None:
        tables["corruption"] = corrupted
    shown = {name: table.pick(lambda column: column.title not in (LOW, HIGH)) for name, table in tables.items()}
    plots = figures(results, lines, primary) if results else {}
    texts = {
        "sweep.html": page(config, outcomes, shown, headline(found), plots),
        "cells.csv": cells_csv(results),
        "results.md": "\n".join(map(to_markdown, shown.values())),
        "results.tex": "\n".join(map(to_latex, shown.values())),
        "results.csv": "",
    }
    for name, table in tables.items():
        texts[f"{name}.csv"] = to_csv(table.pick(lambda column: column.title != PLAIN_INTERVAL))
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


#: Columns of the table on the screen, which has eighty characters: the page has them all.
BRIEF = ("Run", "Mean", "Difference", PLAIN_INTERVAL, "Passes", "Time")


def print_sweep(console: Console, outcomes: Sequence[Outcome], references: dict[str, str]) -> None:
    """Print the rows of a sweep with their differences, and what they come to; nothing while no cell is done."""
    results = read_results(outcomes)
    if not results:
        return
    primary = primary_metrics([result.model for result in results])
    lines = lines_of(results, references)
    found = differences(lines, references, primary)
    score = [column_title(*place, primary) for place in primary.items()] if len(primary) == 1 else []
    table = main_table(results, lines, references, primary, found)
    console.print()
    console.print(grid(table.pick(lambda column: column.title in (*BRIEF, *score))))
    console.print()
    for sentence in headline(found):
        console.print(escape(sentence), highlight=False)


def page(
    config: SweepConfig,
    outcomes: Sequence[Outcome],
    tables: dict[str, Table],
    lead: list[str],
    plots: dict[str, Markup],
) -> str:
    """Write the whole page."""
    sections = {"results": "Results", **({"plots": "Plots"} if plots else {})}
    sections |= {"corruption": "Corrupted examples"} if "corruption" in tables else {}
    cells = []
    for outcome in outcomes:
        report = RunFolder(Path("cells") / outcome.folder.name, "").report.as_posix()
        state = outcome.state + (f": {outcome.error}" if outcome.error else "")
        cells.append((outcome.cell.title, report if outcome.state == "done" else "", state))
    return render(
        "sweep.j2",
        package="srd.sweep",
        kind="SRD sweep",
        name=config.name,
        about=config.description,
        lead=lead,
        words={},
        sections={**sections, "cells": "Cells"},
        tables={name: to_html(table) for name, table in tables.items()},
        figures=plots,
        outcomes=cells,
    )


def headline(found: Sequence[Difference]) -> list[str]:
    """Say how many rows are ahead of their reference, and which is farthest."""
    known = [item for item in found if item.points is not None]
    if not known:
        return ["Nothing can be compared yet."]
    verdicts = [verdict_of(*item.interval) for item in known if item.interval]
    parts = [f"{verdicts.count(name)} {name}" for name in ("ahead", "level", "behind")]
    if len(verdicts) < len(known):
        parts.append(f"{len(known) - len(verdicts)} without an interval")
    best = max(known, key=lambda item: item.points or 0.0)
    interval = f"95% interval {_span(best.interval)}" if best.interval else "no interval"
    rows = "comparison" if len(known) == 1 else "comparisons"
    return [
        f"{len(known)} {rows} with the reference: {', '.join(parts)}.",
        f"The largest difference is {signed(best.points or 0.0, 2)} points ({best.row} against {best.reference}; "
        f"{interval}). Level means that the interval holds zero. "
        "Of many comparisons some fall outside their interval by chance.",
    ]


def _span(interval: tuple[float, float]) -> str:
    return f"{signed(interval[0], 2)} to {signed(interval[1], 2)}"


# -------------------------------------------------------------------------------------------------------------- tables


def main_table(
    results: Sequence[Result],
    lines: dict[str, Line],
    references: dict[str, str],
    primary: Primary,
    found: Sequence[Difference],
) -> Table:
    """Every row: scores, difference to its reference, time as a multiple of the reference's, passes, examples."""
    difference_of = {item.row: item for item in found}
    columns = [
        Column("Run"),
        *(Column(column_title(*place, primary), 2, best="max") for place in primary.items()),
        Column("Mean", 2, best="max"),
        Column("Difference", show=lambda value: signed(value, 2)),
        Column(PLAIN_INTERVAL),
        Column(LOW, 2),
        Column(HIGH, 2),
        Column("Seeds ahead"),
        Column("Passes", 1),
        Column("Examples", show=count),
        Column("Time", show=duration),
        Column("Time ratio", 2),
    ]
    cells: list[list[Cell]] = []
    for title, models in given_models(results).items():
        cells.append([title, *_scores(models, primary), *[None] * 9])
    outside = frozenset(range(len(cells)))
    seconds = {row: statistics.fmean(result.seconds for result in line.results) for row, line in lines.items()}
    for row, line in lines.items():
        passes = statistics.fmean(result.passes for result in line.results)
        examples = statistics.fmean(result.examples for result in line.results)
        base = seconds.get(references[row], 0)
        cost = [passes, examples, seconds[row], seconds[row] / base if base > 0 else None]
        cells.append([row, *_scores(line.models, primary), *_compared(difference_of.get(row)), *cost])
    return Table(columns, cells, _caption(lines, references, found), outside).without_empty_columns()


def _compared(found: Difference | None) -> list[Cell]:
    """The cells of a difference: points, interval as text, its ends, in how many of the common seeds it is ahead."""
    if found is None:
        return [None] * 5
    ahead = f"{MISSING if found.points is None else found.ahead} of {found.pairs}"
    if found.interval is None:
        return [found.points, None, None, None, ahead]
    return [found.points, _span(found.interval), *found.interval, ahead]


def _scores(models: Sequence[Model], primary: Primary) -> list[Cell]:
    cells: list[Cell] = [measure([model.scores.get(place) for model in models]) for place in primary.items()]
    return [*cells, mean_over_tasks(models, primary) if len(primary) > 1 else None]


def given_models(results: Sequence[Result]) -> dict[str, list[Model]]:
    """Title -> the different teachers and starting students of a sweep; equal ones count once."""
    found: dict[str, dict[str, dict[str, Model]]] = {}  # name -> grid point -> scores -> model
    for result in results:
        for model in result.given:
            scores = str(sorted((place, own.mean) for place, own in model.scores.items()))
            points = found.setdefault(model.name, {})
            points.setdefault(result.outcome.cell.point_name, {}).setdefault(scores, model)
    titles: dict[str, list[Model]] = {}
    for name, points in found.items():
        if len({tuple(sorted(own)) for own in points.values()}) == 1:  # the grid does not touch it
            titles[name] = list(next(iter(points.values())).values())
        else:
            titles |= {f"{name}, {point}": list(own.values()) for point, own in points.items()}
    return titles


def _caption(lines: dict[str, Line], references: dict[str, str], found: Sequence[Difference]) -> str:
    trainings = max(len(line.results) for line in lines.values())
    spread = f"{trainings} trainings" if trainings > 1 else "the seeds of answering"
    compared = sorted(set(references.values()))
    against = f"'{compared[0]}'" if len(compared) == 1 else "the reference of the same setting"
    parts = [
        f"Scores in percent, mean ± standard deviation over {spread}; best student in bold. Differences in points "
        f"against {against}: of the two means shown, over the same seeds, tasks and examples. Intervals from a paired "
        "bootstrap over the test examples of each task, and over the trainings where there are several. "
        "Time is that of training without validation, with reflection where the training learns from it."
    ]
    parts += [
        f"{line.row}: {', '.join(line.left_out)} left out, since a run that it is compared with lacks it."
        for line in lines.values()
        if line.left_out
    ]
    parts += [f"{item.row} against {item.reference}: {item.reason}." for item in found if item.reason]
    return " ".join(parts)


def corruption_rows(results: Sequence[Result]) -> Table | None:
    """How well each ranking found the examples that were corrupted on purpose; None without any."""
    lines: list[list[Cell]] = []
    for row, own in by_row(results).items():
        runs = [(result.run, result.run.corruption()) for result in own]
        tables = [table for run, kinds in runs if (table := corruption_table(run.ranked, kinds)) is not None]
        if not tables:
            continue
        # A row for what was dropped, then one for each way to call an example hard: name, precision, recall, AUC.
        ranked = not any(run.chosen_otherwise for run, _ in runs)  # else what was left out is not what the ranking says
        precision = [cell for table in tables if ranked and isinstance(cell := table.rows[0][1], float)]
        aucs = zip(*([float(line[3]) for line in table.rows[1:]] for table in tables), strict=True)  # type: ignore[arg-type]
        share = statistics.fmean(len(kinds) / max(run.training_examples, 1) for run, kinds in runs)
        lines.append([row, share, statistics.fmean(precision) if precision else None, *map(statistics.fmean, aucs)])
    if not lines:
        return None
    columns = [Column("Run"), *(Column(title, show=percent) for title in ("Corrupted", "Precision in the dropped"))]
    columns += [Column(f"AUC, {name}", 2) for name in ("fused", "cross-entropy", "ROUGE-L")]
    caption = (
        "Did the ranking find the training examples that were corrupted on purpose? By chance the precision is the "
        "share of the corrupted, and AUC is 0.50."
    )
    return Table(columns, lines, caption)


def cells_csv(results: Sequence[Result]) -> str:
    """Every single number: cell, task, metric, seed of answering, score in percent, cost."""
    rows = [
        (
            result.outcome.cell.folder, result.outcome.cell.row, task, metric, seed, score,
            result.seconds, result.passes, result.examples,
        )
        for result in results
        for (task, metric), seeds in result.model.seeds.items()
        for seed, score in seeds.items()
    ]  # fmt: skip
    columns = ["cell", "row", "task", "metric", "answer_seed", "score", "seconds", "passes", "examples"]
    return str(pd.DataFrame(rows, columns=columns, dtype=object).to_csv(index=False))


# --------------------------------------------------------------------------------------------------------------- plots


def figures(results: Sequence[Result], lines: dict[str, Line], primary: Primary) -> dict[str, Markup]:
    """Draw the scores as bars, over a numeric grid field as lines, and against the time they took: caption -> plot."""
    colors = variant_colors([result.label for result in results])
    bars = []
    for row, line in lines.items():
        score = mean_over_tasks(line.models, primary)
        if score is not None:
            shown = Column("", 2).cell(Measure(score.mean, score.std))
            bars.append(Bar(row, max(score.mean, 0.0), shown, colors[line.results[0].label], score.std))
    drawn = {"Score, percent": bar_plot(bars, title="Score of every row")}
    counted = [result for line in lines.values() for result in line.results]
    for name in dict.fromkeys(key for result in results for key in result.outcome.cell.point):
        if plot := grid_lines(counted, name, primary, colors):
            drawn[f"Score over {name}"] = plot
    return {**drawn, "Score and time of every training": time_scatter(results, primary, colors)}


def grid_lines(results: Sequence[Result], name: str, primary: Primary, colors: dict[str, str]) -> Markup:
    """Draw the score over the values of a grid field, a line for each label; nothing where it is no number."""
    values = {value for result in results if _is_number(value := result.outcome.cell.point[name])}
    if len(values) < 2:
        return Markup("")
    series = []
    for label, color in colors.items():
        points = []
        for value in sorted(values):
            own = [r.model for r in results if r.label == label and r.outcome.cell.point[name] == value]
            if (score := mean_over_tasks(own, primary)) is not None:
                points.append((float(value), score.mean))
        series.append(Series(label, color, points, [f"{label}: {y:.2f}" for _, y in points]))
    plot = line_plot(series, title=f"Score over {name}", x_label=name, y_label="percent", markers=True)
    return legend(series) + plot


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def time_scatter(results: Sequence[Result], primary: Primary, colors: dict[str, str]) -> Markup:
    """Draw the score of every training over the seconds it took."""
    series = []
    for label, color in colors.items():
        scores = [(result, overall_score(result.model, primary)) for result in results if result.label == label]
        own = [(result, score.mean) for result, score in scores if score is not None]
        titles = [f"{result.outcome.cell.title}: {mean:.2f}, {duration(result.seconds)}" for result, mean in own]
        series.append(Series(label, color, [(result.seconds, mean) for result, mean in own], titles))
    return legend(series) + scatter_plot(series, title="Score over time", x_label="seconds", y_label="percent")
