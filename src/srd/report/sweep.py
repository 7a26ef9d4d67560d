"""The tables and the page of a sweep: every row against its reference, from the files of the cells' run directories."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srd.base.files import atomic_write
from srd.base.text import escape_html as escape
from srd.report import words
from srd.report.comparison import Model, primary_metrics, verdict_of
from srd.report.difficulty import corruption_table
from srd.report.plots import Bar, Series, bar_plot, legend, line_plot, scatter_plot
from srd.report.rows import (
    Difference,
    Result,
    by_row,
    differences,
    lines_of,
    mean_over_tasks,
    measure,
    overall,
    read_results,
)
from srd.report.tables import MISSING, Cell, Column, Table, to_csv, to_html, to_latex, to_markdown

if TYPE_CHECKING:
    from srd.sweep import Outcome, SweepConfig

LOW, HIGH = "Low", "High"  # bounds of the interval as numbers, for the CSV file
COLORS = 4  # of the style sheet, beside those of kd and srd


# ------------------------------------------------------------------------------------------------------------ tables


def main_table(
    results: Sequence[Result], references: dict[str, str], primary: dict[str, str], found: Sequence[Difference]
) -> Table:
    """Every row: scores, difference to its reference, time as a multiple of the reference's, passes, examples."""
    lines = lines_of(results, references)
    difference_of = {item.row: item for item in found}
    metrics = set(primary.values())
    columns = [Column("Run")]
    for task, metric in primary.items():
        label = words.metric_name(metric) if len(primary) == 1 else task
        columns.append(Column(f"{task}, {label}" if len(primary) > 1 and len(metrics) > 1 else label, 2, best="max"))
    columns += [
        Column("Mean", 2, best="max"),
        Column("Difference", show=lambda value: words.signed(value, 2)),
        Column("95% interval"),
        Column(LOW, 2),
        Column(HIGH, 2),
        Column("Seeds ahead"),
        Column("Passes", 1),
        Column("Examples", show=words.count),
        Column("Time", show=words.duration),
        Column("Time ratio", 2),
    ]
    cells: list[list[Cell]] = []
    for title, models in given_models(results).items():
        cells.append([title, *_scores(models, primary), *[None] * 9])
    outside = frozenset(range(len(cells)))
    for row, line in lines.items():
        costs = [result.cost for result in line.results]
        time = statistics.fmean(cost.seconds for cost in costs)
        reference = lines.get(references[row])
        base = statistics.fmean(result.cost.seconds for result in reference.results) if reference else 0
        cells.append(
            [
                row, *_scores([result.model for result in line.results], primary), *_compared(difference_of.get(row)),
                statistics.fmean(cost.passes for cost in costs), statistics.fmean(cost.examples for cost in costs),
                time, time / base if base > 0 else None,
            ]
        )  # fmt: skip
    caption = _caption(results, references, found)
    return Table(columns, cells, caption, outside).without_empty_columns()


def _compared(found: Difference | None) -> list[Cell]:
    """The cells of a difference: points, interval as text, its ends, in how many of the common seeds it is ahead."""
    if found is None:
        return [None] * 5
    if found.points is None:
        return [None, None, None, None, f"{MISSING} of {found.pairs}"]
    if found.low is None or found.high is None:
        return [found.points, None, None, None, f"{found.ahead} of {found.pairs}"]
    interval = f"{words.signed(found.low, 2)} to {words.signed(found.high, 2)}"
    return [found.points, interval, found.low, found.high, f"{found.ahead} of {found.pairs}"]


def _scores(models: Sequence[Model], primary: dict[str, str]) -> list[Cell]:
    cells: list[Cell] = [measure(models, place) for place in primary.items()]
    return [*cells, mean_over_tasks(models, primary) if len(primary) > 1 else None]


def given_models(results: Sequence[Result]) -> dict[str, list[Model]]:
    """Title -> the different teachers and starting students of a sweep; equal ones count once."""
    models: dict[str, dict[str, Model]] = {}
    for result in results:
        point = result.outcome.cell.point_name
        for model in result.given:
            scores = str(sorted((place, own.mean) for place, own in model.scores.items()))
            known = models.setdefault(model.name, {})
            known.setdefault(scores, model)
            models.setdefault(f"{model.name}|{point}", {}).setdefault(scores, model)
    titles: dict[str, list[Model]] = {}
    for name in ("Teacher", "Initial student"):
        if name not in models:
            continue
        of_point = {key.partition("|")[2]: own for key, own in models.items() if key.startswith(f"{name}|")}
        if len({str(sorted(own)) for own in of_point.values()}) == 1:  # the grid does not touch it
            titles[name] = list(models[name].values())
        else:
            titles |= {f"{name}, {point}": list(own.values()) for point, own in of_point.items()}
    return titles


def _caption(results: Sequence[Result], references: dict[str, str], found: Sequence[Difference]) -> str:
    lines = lines_of(results, references)
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
        precision = [float(table.rows[0][1]) for table in tables if table.rows[0][1] is not None]  # type: ignore[arg-type]
        aucs = [[float(line[3]) for line in table.rows] for table in tables]  # type: ignore[arg-type]
        means = [statistics.fmean(values) for values in zip(*aucs, strict=True)]
        share = statistics.fmean(len(kinds) / max(run.training_examples, 1) for run, kinds in runs)
        lines.append([row, share, statistics.fmean(precision) if precision else None, *means])
    if not lines:
        return None
    columns = [
        Column("Run"),
        Column("Corrupted", show=words.percent),
        Column("Precision in the dropped", show=words.percent),
    ]
    columns += [Column(f"AUC, {name}", 2) for name in ("fused", "cross-entropy", "ROUGE-L")]
    caption = (
        "Did the ranking find the training examples that were corrupted on purpose? By chance the precision is the "
        "share of the corrupted, and AUC is 0.50."
    )
    return Table(columns, lines, caption)


def cells_csv(results: Sequence[Result]) -> str:
    """Every single number: cell, task, metric, seed of answering, score in percent, cost."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["cell", "row", "task", "metric", "answer_seed", "score", "seconds", "passes", "examples"])
    for result in results:
        cell, cost = result.outcome.cell, result.cost
        for (task, metric), seeds in result.model.seeds.items():
            for seed, score in seeds.items():
                writer.writerow(
                    [cell.folder, cell.row, task, metric, seed, score, cost.seconds, cost.passes, cost.examples]
                )
    return output.getvalue()


# -------------------------------------------------------------------------------------------------------------- page


def write_sweep_report(
    folder: Path, config: SweepConfig, outcomes: Sequence[Outcome], references: dict[str, str]
) -> list[Path]:
    """Write ``sweep.html``, ``results.csv``, ``results.md``, ``results.tex`` and ``cells.csv``, and return their paths.

    Args:
        folder: The sweep's folder.
        config: The sweep.
        outcomes: All its cells; those that are not done are listed, and counted nowhere.
        references: Row -> the row it is compared with.
    """
    results = read_results(outcomes)
    primary = primary_metrics([result.model for result in results])
    found = differences(results, references, primary)
    tables = [main_table(results, references, primary, found)] if results else []
    if (corrupted := corruption_rows(results)) is not None:
        tables.append(corrupted)
    shown = [table.pick(lambda column: column.title not in (LOW, HIGH)) for table in tables]
    texts = {
        "sweep.html": page(
            config, outcomes, shown, headline(found), plots(results, references, primary) if results else ""
        ),
        "cells.csv": cells_csv(results),
        "results.md": "\n".join(map(to_markdown, shown)),
        "results.tex": "\n".join(map(to_latex, shown)),
        "results.csv": to_csv(tables[0].pick(lambda column: column.title != "95% interval")) if tables else "",
    }
    if len(tables) > 1:
        texts["corruption.csv"] = to_csv(tables[1])
    for name, text in texts.items():
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def page(
    config: SweepConfig,
    outcomes: Sequence[Outcome],
    tables: Sequence[Table],
    lead: Sequence[tuple[str, str]],
    drawn: str,
) -> str:
    """Write the whole page: first lines (class and text), tables, plots, and the list of cells."""
    sections = [("results", "Results", to_html(tables[0]) if tables else '<p class="missing">No cell is done yet.</p>')]
    if tables:
        sections.append(("plots", "Plots", drawn))
    if len(tables) > 1:
        sections.append(("corruption", "Corrupted examples", to_html(tables[1])))
    sections.append(("cells", "Cells", cells_section(outcomes)))
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    first = "".join(f'<p class="{kind}">{escape(text)}</p>' for kind, text in lead)
    style = files("srd.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(config.name)} · SRD sweep</title>'
        f'<style>{style}</style></head><body><header><p class="eyebrow">SRD sweep</p><h1>{escape(config.name)}</h1>'
        f'<p class="about">{escape(config.description)}</p>{first}<nav>{links}</nav></header>'
        f"<main>{body}</main></body></html>\n"
    )


def headline(found: Sequence[Difference]) -> list[tuple[str, str]]:
    """Say how many rows are ahead of their reference, and which is farthest."""
    known = [item for item in found if item.points is not None]
    if not known:
        return [("lead", "Nothing can be compared yet.")]
    verdicts = [verdict_of(item.low, item.high) for item in known if item.low is not None and item.high is not None]
    parts = [f"{verdicts.count(name)} {name}" for name in ("ahead", "level", "behind")]
    if len(verdicts) < len(known):
        parts.append(f"{len(known) - len(verdicts)} without an interval")
    best = max(known, key=lambda item: item.points or 0.0)
    interval = "no interval"
    if best.low is not None and best.high is not None:
        interval = f"95% interval {words.signed(best.low, 2)} to {words.signed(best.high, 2)}"
    rows = "comparison" if len(known) == 1 else "comparisons"
    return [
        ("lead", f"{len(known)} {rows} with the reference: {', '.join(parts)}."),
        (
            "sublead",
            f"The largest difference is {words.signed(best.points or 0.0, 2)} points ({best.row} against "
            f"{best.reference}; {interval}). Level means that the interval "
            "holds zero. Of many comparisons some fall outside their interval by chance.",
        ),
    ]


def label_colors(results: Sequence[Result]) -> dict[str, str]:
    """A colour for every label of the sweep's cells; kd and srd have the ones they have in every report."""
    labels = list(dict.fromkeys(map(_label, results)))
    others = [label for label in labels if label not in ("kd", "srd")]
    colors = {label: f"var(--arm-{label})" for label in labels if label in ("kd", "srd")}
    return colors | {label: f"var(--arm-{index % COLORS + 1})" for index, label in enumerate(others)}


def plots(results: Sequence[Result], references: dict[str, str], primary: dict[str, str]) -> str:
    """Draw the scores as bars, over a numeric grid field as lines, and against the time they took."""
    colors = label_colors(results)
    lines = lines_of(results, references)
    bars = []
    for row, line in lines.items():
        score = mean_over_tasks([result.model for result in line.results], primary)
        if score is not None:
            shown = f"{score.mean:.2f}" + (f" ± {score.std:.2f}" if score.std is not None else "")
            bars.append(Bar(row, max(score.mean, 0.0), shown, colors[_label(line.results[0])], score.std))
    counted = [result for line in lines.values() for result in line.results]
    figures = [("Score, percent", bar_plot(bars, title="Score of every row"))]
    figures += [(f"Score over {field}", html) for field, html in grid_lines(counted, primary, colors).items()]
    figures.append(("Score and time of every training", time_scatter(results, primary, colors)))
    drawn = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{html}</figure>" for title, html in figures)
    return f'<div class="figures">{drawn}</div>'


def _label(result: Result) -> str:
    return result.outcome.cell.label or result.model.key


def grid_lines(results: Sequence[Result], primary: dict[str, str], colors: dict[str, str]) -> dict[str, str]:
    """Grid field -> lines of the score over its values, one for each label, where the field is a number."""
    drawn = {}
    for name in dict.fromkeys(key for result in results for key in result.outcome.cell.point):
        values = {result.outcome.cell.point[name] for result in results if _is_number(result.outcome.cell.point[name])}
        if len(values) < 2:
            continue
        series = []
        for label, color in colors.items():
            points = []
            for value in sorted(values):
                own = [r.model for r in results if _label(r) == label and r.outcome.cell.point[name] == value]
                score = mean_over_tasks(own, primary)
                if score is not None:
                    points.append((float(value), score.mean))
            series.append(Series(label, color, points, [f"{label}: {y:.2f}" for _, y in points]))
        plot = line_plot(series, title=f"Score over {name}", x_label=name, y_label="percent", markers=True)
        drawn[name] = legend(series) + plot
    return drawn


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def time_scatter(results: Sequence[Result], primary: dict[str, str], colors: dict[str, str]) -> str:
    """Draw the score of every training over the seconds it took."""
    series = []
    for label, color in colors.items():
        own = [(r, mean) for r in results if _label(r) == label and (mean := overall(r.model, primary)) is not None]
        points = [(result.cost.seconds, mean) for result, mean in own]
        titles = [f"{r.outcome.cell.title}: {mean:.2f}, {words.duration(r.cost.seconds)}" for r, mean in own]
        series.append(Series(label, color, points, titles))
    return legend(series) + scatter_plot(series, title="Score over time", x_label="seconds", y_label="percent")


def cells_section(outcomes: Sequence[Outcome]) -> str:
    """List every cell with its state, and a link to its report."""
    items = []
    for outcome in outcomes:
        title = escape(outcome.cell.title)
        if outcome.state == "done":
            address = escape(f"cells/{outcome.folder.name}/report/index.html", quote=True)
            items.append(f'<dt><a href="{address}">{title}</a></dt><dd>done</dd>')
        else:
            reason = f": {escape(outcome.error)}" if outcome.error else ""
            items.append(f"<dt>{title}</dt><dd>{escape(outcome.state)}{reason}</dd>")
    return f"<dl>{''.join(items)}</dl>"
