"""The tables and the page of a sweep: every row against its reference, from the files of the cells' run directories."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srd.artifacts import atomic_write
from srd.metrics import paired_bootstrap
from srd.report import words
from srd.report.comparison import UNREFLECTED_SCORES, Model, model_of, primary_metrics, verdict_of
from srd.report.difficulty import corruption_table
from srd.report.plots import Bar, Series, bar_plot, legend, line_plot, scatter_plot
from srd.report.run_files import RunFiles, read_json_file, read_run
from srd.report.tables import Cell, Column, Measure, Table, to_csv, to_html, to_latex, to_markdown

if TYPE_CHECKING:
    from srd.sweep import Outcome, SweepConfig

LOW, HIGH = "Low", "High"  # bounds of the interval as numbers, for the CSV file
COLORS = 4  # of the style sheet, beside those of kd and srd


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


@dataclass(frozen=True)
class Difference:
    """A row against its reference, in points: mean, 95 % interval, and with how many seeds it is ahead."""

    row: str
    reference: str
    points: float
    low: float
    high: float
    ahead: int
    pairs: int


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


# ------------------------------------------------------------------------------------------------------- statistics


def by_row(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results into rows of the table: one for each setting, all its seeds together."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.outcome.cell.row, []).append(result)
    return rows


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
    means = []
    for model in models:
        if any(place not in model.scores for place in primary.items()):
            return None
        means.append(statistics.fmean(model.scores[place].mean for place in primary.items()))
    if not means:
        return None
    if len(means) == 1:  # one training: the spread over the seeds of its answers
        shared = set.intersection(*(set(models[0].seeds[place]) for place in primary.items()))
        values = [statistics.fmean(models[0].seeds[p][seed] for p in primary.items()) for seed in sorted(shared)]
        return Measure(means[0], statistics.stdev(values) if len(values) > 1 else None)
    return Measure(statistics.fmean(means), statistics.stdev(means))


def example_scores(result: Result, primary: dict[str, str]) -> dict[tuple[str, str], float]:
    """(task, example id) -> mean score over the seeds of answering, in percent."""
    totals: dict[tuple[str, str], list[float]] = {}
    folder = result.outcome.folder / "evaluation" / "predictions"
    for task, metric in primary.items():
        stem = f"{result.model.key}.{task.replace(':', '-')}"
        for path in sorted(folder.glob(f"{stem}.*.scores.json")):
            values = read_json_file(path, {}).get("per_example", {}).get(metric)
            if values is None:
                continue  # a corpus metric such as BLEU
            answers = path.with_name(path.name.replace(".scores.json", ".jsonl"))
            for name, value in zip(_ids(answers), values, strict=True):
                totals.setdefault((task, name), []).append(100 * float(value))
    return {place: statistics.fmean(values) for place, values in totals.items()}


def _ids(path: Path) -> list[str]:
    from srd.report.run_files import read_json_lines

    return [str(row["id"]) for row in read_json_lines(path)]


def differences(results: Sequence[Result], references: dict[str, str], primary: dict[str, str]) -> list[Difference]:
    """Compare every row with its reference, pairing equal seeds and equal examples.

    An example's score is its mean over seeds, and the examples are resampled (paired bootstrap). So the interval says
    what another test set would change; what another training run would change shows in the seeds.
    """
    scores = {id(result): example_scores(result, primary) for result in results}
    rows = by_row(results)
    found = []
    for row, own in rows.items():
        reference = references[row]
        if row == reference or reference not in rows:
            continue
        partner = {_seeds(other): other for other in rows[reference]}
        pairs = [(result, partner[_seeds(result)]) for result in own if _seeds(result) in partner]
        ours, theirs = (_pooled([scores[id(pair[side])] for pair in pairs]) for side in (0, 1))
        shared = sorted(set(ours) & set(theirs))
        if not shared:
            continue
        points, low, high = paired_bootstrap([ours[key] for key in shared], [theirs[key] for key in shared], seed=0)
        ahead = sum(_overall(a.model, primary) > _overall(b.model, primary) for a, b in pairs)
        found.append(Difference(row, reference, points, low, high, ahead, len(pairs)))
    return found


def _seeds(result: Result) -> str:
    return str(sorted(result.outcome.cell.seeds.items()))


def _pooled(scores: Sequence[dict[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Mean of each example over the trainings that were tested on it."""
    values: dict[tuple[str, str], list[float]] = {}
    for own in scores:
        for key, value in own.items():
            values.setdefault(key, []).append(value)
    return {key: statistics.fmean(items) for key, items in values.items()}


def _overall(model: Model, primary: dict[str, str]) -> float:
    return statistics.fmean(model.scores[place].mean for place in primary.items())


# ------------------------------------------------------------------------------------------------------------ tables


def main_table(results: Sequence[Result], references: dict[str, str], primary: dict[str, str]) -> Table:
    """Every row: scores, difference to its reference, time as a multiple of the reference's, passes, examples."""
    rows = by_row(results)
    found = {item.row: item for item in differences(results, references, primary)}
    metrics = {metric for metric in primary.values()}
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
    lines: list[list[Cell]] = []
    for title, models in given_models(results).items():
        lines.append([title, *_scores(models, primary), *[None] * 9])
    outside = frozenset(range(len(lines)))
    for row, own in rows.items():
        difference = found.get(row)
        time = statistics.fmean(result.cost.seconds for result in own)
        base = [result.cost.seconds for result in rows.get(references[row], [])]
        compared = (
            [
                difference.points,
                f"{words.signed(difference.low, 2)} to {words.signed(difference.high, 2)}",
                difference.low,
                difference.high,
                f"{difference.ahead} of {difference.pairs}",
            ]
            if difference
            else [None] * 5
        )
        lines.append(
            [
                row, *_scores([result.model for result in own], primary), *compared,
                statistics.fmean(result.cost.passes for result in own),
                statistics.fmean(result.cost.examples for result in own),
                time, time / statistics.fmean(base) if base and statistics.fmean(base) > 0 else None,
            ]
        )  # fmt: skip
    return Table(columns, lines, _caption(results, references), outside).without_empty_columns()


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


def _caption(results: Sequence[Result], references: dict[str, str]) -> str:
    trainings = max(len(own) for own in by_row(results).values())
    spread = f"{trainings} trainings" if trainings > 1 else "the seeds of answering"
    compared = sorted(set(references.values()))
    against = f"'{compared[0]}'" if len(compared) == 1 else "the reference of the same setting"
    return (
        f"Scores in percent, mean ± standard deviation over {spread}; best student in bold. Differences in points "
        f"against {against}, same seeds and examples, with intervals from a paired bootstrap over the test examples. "
        "Time is that of training without validation, with reflection where the training learns from it."
    )


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
    tables = [main_table(results, references, primary)] if results else []
    if (corrupted := corruption_rows(results)) is not None:
        tables.append(corrupted)
    shown = [table.pick(lambda column: column.title not in (LOW, HIGH)) for table in tables]
    texts = {
        "sweep.html": page(config, outcomes, results, shown, primary, references),
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
    results: Sequence[Result],
    tables: Sequence[Table],
    primary: dict[str, str],
    references: dict[str, str],
) -> str:
    """Write the whole page."""
    sections = [("results", "Results", to_html(tables[0]) if tables else '<p class="missing">No cell is done yet.</p>')]
    if tables:
        sections.append(("plots", "Plots", plots(results, primary)))
    if len(tables) > 1:
        sections.append(("corruption", "Corrupted examples", to_html(tables[1])))
    sections.append(("cells", "Cells", cells_section(outcomes)))
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    lead = "".join(f'<p class="{kind}">{escape(text)}</p>' for kind, text in headline(results, references, primary))
    style = files("srd.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(config.name)} · SRD sweep</title>'
        f'<style>{style}</style></head><body><header><p class="eyebrow">SRD sweep</p><h1>{escape(config.name)}</h1>'
        f'<p class="about">{escape(config.description)}</p>{lead}<nav>{links}</nav></header>'
        f"<main>{body}</main></body></html>\n"
    )


def headline(results: Sequence[Result], references: dict[str, str], primary: dict[str, str]) -> list[tuple[str, str]]:
    """Say how many rows are ahead of their reference, and how many cells the statement rests on."""
    found = differences(results, references, primary)
    if not found:
        return [("lead", "Nothing can be compared yet.")]
    verdicts = [verdict_of(item.low, item.high) for item in found]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in ("ahead", "level", "behind"))
    best = max(found, key=lambda item: item.points)
    rows = "comparison" if len(found) == 1 else "comparisons"
    return [
        ("lead", f"{len(found)} {rows} with the reference: {counts}."),
        (
            "sublead",
            f"The largest difference is {words.signed(best.points, 2)} points ({best.row} against {best.reference}; "
            f"95% interval {words.signed(best.low, 2)} to {words.signed(best.high, 2)}). Level means that the interval "
            "holds zero. Of many comparisons some fall outside their interval by chance.",
        ),
    ]


def label_colors(results: Sequence[Result]) -> dict[str, str]:
    """A colour for every label of the sweep's cells; kd and srd have the ones they have in every report."""
    labels = list(dict.fromkeys(result.outcome.cell.label or result.model.key for result in results))
    others = [label for label in labels if label not in ("kd", "srd")]
    colors = {label: f"var(--arm-{label})" for label in labels if label in ("kd", "srd")}
    return colors | {label: f"var(--arm-{index % COLORS + 1})" for index, label in enumerate(others)}


def plots(results: Sequence[Result], primary: dict[str, str]) -> str:
    """Draw the scores as bars, over a numeric grid field as lines, and against the time they took."""
    colors = label_colors(results)
    bars = []
    for row, own in by_row(results).items():
        score = mean_over_tasks([result.model for result in own], primary)
        if score is not None:
            shown = f"{score.mean:.2f}" + (f" ± {score.std:.2f}" if score.std is not None else "")
            label = own[0].outcome.cell.label or own[0].model.key
            bars.append(Bar(row, max(score.mean, 0.0), shown, colors[label], score.std))
    figures = [("Score, percent", bar_plot(bars, title="Score of every row"))]
    figures += [(f"Score over {field}", html) for field, html in grid_lines(results, primary, colors).items()]
    figures.append(("Score and time of every training", time_scatter(results, primary, colors)))
    drawn = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{html}</figure>" for title, html in figures)
    return f'<div class="figures">{drawn}</div>'


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
                own = [r for r in results if (r.outcome.cell.label or r.model.key) == label]
                models = [r.model for r in own if r.outcome.cell.point[name] == value]
                if models:
                    points.append((float(value), statistics.fmean(_overall(model, primary) for model in models)))
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
        own = [result for result in results if (result.outcome.cell.label or result.model.key) == label]
        points = [(result.cost.seconds, _overall(result.model, primary)) for result in own]
        titles = [
            f"{result.outcome.cell.title}: {y:.2f}, {words.duration(x)}"
            for result, (x, y) in zip(own, points, strict=True)
        ]
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
            items.append(f"<dt>{title}</dt><dd>{outcome.state}{reason}</dd>")
    return f"<dl>{''.join(items)}</dl>"
