"""The report of a run: one HTML file that needs nothing but itself."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from pyarrow import compute

from srd.base.files import atomic_write
from srd.base.text import escape_html as escape
from srd.report import words
from srd.report.answers import training_answers, unseen_answers
from srd.report.comparison import (
    COST_COLUMNS,
    Model,
    comparison_table,
    headline,
    interval_table,
    models_of,
    primary_metrics,
    yardstick,
)
from srd.report.difficulty import corruption_table
from srd.report.figures import (
    MAP_POINTS,
    difficulty_map,
    preparation_curves,
    score_bars,
    time_bars,
    training_curves,
)
from srd.report.run_files import RunFiles, read_run
from srd.report.tables import to_html


def build_report(run_dir: Path) -> Path:
    """Write ``report/index.html`` of a run, whatever part of the run there is, and return its path.

    Raises:
        UserError: ``run_dir`` is no run directory, or one of its files is damaged.
    """
    run = read_run(Path(run_dir))
    target = run.run_dir / "report" / "index.html"
    with atomic_write(target) as partial:
        partial.write_text(page(run), encoding="utf-8")
    return target


def page(run: RunFiles) -> str:
    """Write the whole page."""
    models = models_of(run)
    sections = [
        ("comparison", "Comparison", comparison_section(run, models)),
        ("training", "Training", training_section(run)),
        ("difficulty", "Difficulty", difficulty_section(run)),
        ("examples", "Examples", examples_section(run, models)),
        ("recipe", "Recipe", recipe_section(run)),
        ("time", "Time", time_section(run)),
        ("record", "Record", record_section(run)),
    ]
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'
        for name, title, content in sections
    )
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    name = run_name(run)
    style = files("srd.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(name)} · SRD report</title>'
        f"<style>{style}</style></head><body><header>{header(run, models, name)}<nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


def header(run: RunFiles, models: list[Model], name: str) -> str:
    """Write the name of the run and, in plain words, what came of it."""
    finished = max((str(step["finished"]) for step in run.steps.values() if step.get("finished")), default="")
    about = " · ".join(part for part in (escape(recipe_models(run)), escape(finished[:10])) if part)
    sentences = headline(run, models)
    if sentences:
        lead = f'<p class="lead">{escape(sentences[0])}</p>'
        lead += f'<p class="sublead">{escape(" ".join(sentences[1:]))}</p>' if sentences[1:] else ""
    else:
        lead = '<p class="lead">Nothing has been compared yet.</p>'
    return f'<p class="eyebrow">SRD report</p><h1>{escape(name)}</h1><p class="about">{about}</p>{lead}'


def run_name(run: RunFiles) -> str:
    """Return the recipe's name, else the run directory's."""
    return str(run.recipe.get("name") or run.run_dir.resolve().name)


def recipe_models(run: RunFiles) -> str:
    """Return ``teacher → student`` as the recipe names them, folders by their last part, or nothing."""
    teacher, student = (run.recipe.get(role) or {} for role in ("teacher", "student"))
    sections = [section if isinstance(section, dict) else {} for section in (teacher, student)]
    names = [str(section.get("model") or "") for section in sections]
    names = [Path(name).name if name.startswith(("/", ".", "~")) else name for name in names]
    if names[0] and not names[1]:
        names[1] = f"{names[0]} shortened"
    return " → ".join(names) if names[0] else ""


def comparison_section(run: RunFiles, models: list[Model]) -> str:
    """Compare the models: bars, table, paired intervals."""
    parts = []
    if not primary_metrics(models):
        parts.append(missing("The models have not been evaluated yet.", run.command("evaluate")))
    else:
        parts.append(figure(f"{yardstick(primary_metrics(models))}, percent", score_bars(run, models)))
    if models:
        table = comparison_table(models)
        if len(primary_metrics(models)) > 1:
            parts.append(to_html(table.pick(lambda column: column.title not in COST_COLUMNS)))
            table = table.pick(lambda column: column.title in ("Model", *COST_COLUMNS))
        parts.append(to_html(table) if len(table.columns) > 1 else "")
        parts.append(
            '<p class="note">Scores in percent, mean ± standard deviation over seeds; best student in bold. '
            "A pass is one time over the whole training set.</p>"
        )
    intervals = interval_table(run)
    if intervals is not None:
        parts.append(f"<h3>How sure is that?</h3>{to_html(intervals)}")
        parts.append(
            '<p class="note">Paired bootstrap over the test examples: both models answer the same prompts. '
            "An interval that holds zero is called level.</p>"
        )
    if len([model for model in models if model.key not in ("teacher", "student")]) == 1:
        parts.append('<p class="note">Only one arm was trained, so no baseline on the same data stands beside it.</p>')
    return "".join(parts)


def training_section(run: RunFiles) -> str:
    """Show the curves, or say that nothing has been trained."""
    figures = training_curves(run)
    prepared = "".join(figure(caption, html) for caption, html in preparation_curves(run))
    prepared = (
        f"<details class='more'><summary>Fine-tuning before distillation</summary>{prepared}</details>"
        if prepared
        else ""
    )
    if not figures:
        return missing("No student has been distilled yet.", run.command("distill")) + prepared
    body = "".join(figure(caption, html) for caption, html in figures)
    note = ""
    main = run.arms[run.main_arm]
    if main.get("curriculum") is not None and main.get("select_by") != "last":
        note = "Each stage starts from the best point of the one before, with a new schedule. "
    note += "Losses of different arms do not compare: temperature and weight of the teacher differ."
    return f'<div class="figures">{body}</div><p class="note">{note}</p>{prepared}'


def figure(caption: str, html: str) -> str:
    """Put a plot under its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{html}</figure>"


def difficulty_section(run: RunFiles) -> str:
    """Show the difficulty map, and whether corrupted examples were found."""
    if not run.ranked:
        return missing("The training examples have not been ranked yet.", run.command("rank"))
    corruption, kept = run.corruption(), compute.sum(run.ranked["kept"]).as_py()
    drawn = f", of which {MAP_POINTS:,} are drawn, evenly over the ranks" if len(run.ranked) > MAP_POINTS else ""
    note = (
        f"{kept:,} examples were kept of {len(run.ranked):,}{drawn}. An easy one is answered well (up) "
        "and expected (left). Points beyond the axis lie on its edge."
    )
    parts = [f'<figure>{difficulty_map(run.ranked, corruption)}</figure><p class="note">{note}</p>']
    table = corruption_table(run.ranked, corruption)
    if table is not None:
        parts.append(f"<h3>Does it find bad examples?</h3>{to_html(table)}")
    return "".join(parts)


def examples_section(run: RunFiles, models: list[Model]) -> str:
    """Show examples to read."""
    parts = [training_answers(run)]
    if not parts[0]:
        parts = [missing("There is no ranking yet to choose examples by.", run.command("rank"))]
    elif not (run.run_dir / "evaluation" / "train_samples.jsonl").is_file():
        parts.append(missing("The trained student has not answered these yet.", run.command("evaluate")))
    parts.append(unseen_answers(run, models))
    return "".join(parts)


def recipe_section(run: RunFiles) -> str:
    """Show the resolved recipe, folded."""
    lines = "\n".join(highlight(line) for line in run.recipe_text.rstrip().split("\n"))
    summary = "<summary>Every setting, defaults written out</summary>"
    return f"<details class='more'>{summary}<pre>{lines}</pre></details>"


def highlight(line: str) -> str:
    """Escape a line of YAML and set its key apart."""
    match = re.match(r"( *(?:- )?)([\w.\-/]+)(:(?: .*)?)$", line)
    if match is None:
        return escape(line)
    indent, key, rest = match.groups()
    return f'{indent}<span class="key">{escape(key)}</span>{escape(rest)}'


def time_section(run: RunFiles) -> str:
    """Show where the time went."""
    bars = time_bars(run)
    if not bars:
        return missing("No step has finished yet.", run.command("run"))
    total = sum(seconds for step in run.steps if (seconds := run.seconds(step)) is not None)
    return f'<figure>{bars}</figure><p class="note">Together {words.duration(total)}.</p>'


def record_section(run: RunFiles) -> str:
    """Show warnings, counts, versions and the machine."""
    warnings = run.manifest.get("warnings") or []
    parts = ["<h3>Warnings</h3>"]
    if warnings:
        parts.append(f"<ul class='warnings'>{''.join(f'<li>{escape(str(text))}</li>' for text in warnings)}</ul>")
    else:
        parts.append("<p>None.</p>")
    lists = [("Versions", run.manifest.get("versions")), ("Machine", run.manifest.get("machine"))]
    lists = [("Data", run.summary("examples")), *lists]
    blocks = "".join(definitions(title, values) for title, values in lists if values)
    return "".join(parts) + (f'<div class="records">{blocks}</div>' if blocks else "")


def definitions(title: str, values: dict[str, Any]) -> str:
    """Write names and values as a list."""
    rows = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(shown_value(value))}</dd>"
        for name, value in values.items()
    )
    return f"<div><h3>{title}</h3><dl>{rows}</dl></div>"


def shown_value(value: Any) -> str:
    """Write a free-form value: numbers with thousands, the rest as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def missing(what: str, command: str) -> str:
    """Say what is not there and which command makes it."""
    return f'<p class="missing">{escape(what)}<code>{escape(command)}</code></p>'
