"""The report of a run: one HTML file that needs nothing but itself."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pyarrow import compute

from srd.base.files import write_text
from srd.base.text import duration
from srd.report.answers import training_answers, unseen_answers
from srd.report.cleaning import cleaning_section, found_sentences
from srd.report.closing import next_steps
from srd.report.comparison import (
    COST_COLUMNS,
    GIVEN_MODELS,
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
    measured_once,
    preparation_curves,
    score_bars,
    step_seconds,
    time_bars,
    training_curves,
)
from srd.report.html import render
from srd.report.reading import RunFiles, read_run
from srd.report.refreshes import refreshes_section
from srd.report.stages import changed_answers, stage_table, stages_of
from srd.report.tables import Table, to_html
from srd.report.teaching import alignment_table, cache_table

#: The words of the first lines, which mean something of their own here.
WORDS = {
    "ROUGE-L": "how much of an answer's wording is in the reference's, in order; 0 to 100",
    "Pass": "once over the whole training set",
    "95% interval": "where a difference would lie in 95 of 100 such tests; one that holds zero is called level",
}
#: What a run leaves behind that a reader may want to open, by its place in the run directory.
FILES = {
    "recipe.yaml": "every setting of this run",
    "manifest.json": "its steps: when, how long, which files",
    "metrics.jsonl": "every logged value, an object a line",
    "examples/": "training, validation and test examples",
    "reflection/scores.parquet": "the student's answers before training, with their scores",
    "cleaning/rows.parquet": "which rows are marked as wrong, and why",
    "curriculum/ranked.parquet": "rank and stage of every training example",
    "stages/": "numbers, answers and best model of every stage, and the text that the student wrote to train on",
    "evaluation/metrics.json": "scores of all models",
    "evaluation/predictions/": "their answers",
}

SECTIONS = ("comparison", "training", "cleaning", "difficulty", "examples", "recipe", "time", "record")


def build_report(run_dir: Path) -> Path:
    """Write the page of a run, whatever part of the run there is, and return its path.

    Raises:
        UserError: ``run_dir`` is no run directory, or one of its files is damaged.
    """
    run = read_run(Path(run_dir))
    write_text(run.files.report, page(run))
    return run.files.report


def page(run: RunFiles) -> str:
    """Write the whole page: what each section shows, filled into the template."""
    models = models_of(run)
    finished = max((str(step["finished"]) for step in run.steps.values() if step.get("finished")), default="")
    cleaned = cleaning_section(run)
    shown: dict[str, Any] = {
        "kind": "SRD report",
        "name": str(run.recipe.get("name") or run.run_dir.resolve().name),
        "about": " · ".join(part for part in (recipe_models(run), finished[:10]) if part),
        "lead": [*headline(run, models), *found_sentences(run)],
        "words": WORDS if models else {},
        "next_steps": next_steps(run),
        "sections": {name: name.capitalize() for name in SECTIONS if name != "cleaning" or cleaned["marked"]},
        "command": run.command,
        **comparison_section(run, models),
        **training_section(run),
        **cleaned,
        **difficulty_section(run),
        **examples_section(run, models),
        "recipe": [yaml_parts(line) for line in run.recipe_text.rstrip().split("\n")],
        **time_section(run),
        **record_section(run),
    }
    return render("report.j2", **shown)


def recipe_models(run: RunFiles) -> str:
    """Return ``teacher → student`` as the recipe names them, folders by their last part, or nothing."""
    several = run.recipe.get("teachers") or [run.recipe.get("teacher")]
    names = [_named(section) for section in (*several, run.recipe.get("student"))]
    teachers = " + ".join(filter(None, names[:-1]))
    return f"{teachers} → {names[-1] or f'{teachers} shortened'}" if teachers else ""


def _named(section: Any) -> str:
    name = str(section.get("name") or section.get("model") or "") if isinstance(section, dict) else ""
    return Path(name).name if name.startswith(("/", ".", "~")) else name


def comparison_section(run: RunFiles, models: list[Model]) -> dict[str, Any]:
    """The models side by side: bars, tables, paired intervals."""
    primary = primary_metrics(models)
    tables = [comparison_table(models)] if models else []
    if len(primary) > 1:
        scores = tables[0].pick(lambda column: column.title not in COST_COLUMNS)
        tables = [scores, tables[0].pick(lambda column: column.title in ("Model", *COST_COLUMNS))]
    return {
        "bars": score_bars(run, models) if primary else None,
        "yardstick": yardstick(primary) if primary else "",
        "comparisons": [to_html(table) for table in tables if len(table.columns) > 1],
        "compared": bool(models),
        "by_script": [task for task, own in run.details.get("tasks", {}).items() if "rouge_words" in own["scoring"]],
        "intervals": _html(interval_table(run)),
        "alone": len([model for model in models if model.key not in GIVEN_MODELS]) == 1,
    }


def training_section(run: RunFiles) -> dict[str, Any]:
    """The curves of the compared trainings and of those before them."""
    main = run.variants[run.main_variant]
    staged = main.get("curriculum") is not None and main.get("select_by") != "last"
    stages = stages_of(run)
    changed = changed_answers(run, stages)
    refreshes, texts = refreshes_section(run)
    return {
        "curves": training_curves(run),
        "once": measured_once(run),
        "preparation": preparation_curves(run),
        "restarts_at_best": staged,
        "stages": to_html(stage_table(run, stages)) if stages else None,
        "one_stage": len(stages) == 1,
        "otherwise": run.chosen_otherwise,
        "way": run.way,
        "changed": [changed] if changed else [],
        "refreshes": _html(refreshes),
        "own_texts": [texts] if texts else [],
        "aligned": _html(alignment_table(run)),
        "cached": _html(cache_table(run)),
    }


def _html(table: Table | None) -> Markup | None:
    """A table as the page has it, which may have none."""
    return to_html(table) if table is not None else None


def difficulty_section(run: RunFiles) -> dict[str, Any]:
    """The difficulty map, and whether corrupted examples were found."""
    if not run.ranked:
        return {"map": None}
    corruption = run.corruption()
    return {
        "map": difficulty_map(run.ranked, corruption, staged=not run.chosen_otherwise),
        "kept": f"{compute.sum(run.ranked['kept']).as_py():,}",
        "ranked": f"{len(run.ranked):,}",
        "drawn": f"{MAP_POINTS:,}" if len(run.ranked) > MAP_POINTS else "",
        "detection": None if run.chosen_otherwise else _html(corruption_table(run.ranked, corruption)),
        "in_sample": bool(run.summary("reflection").get("in_sample")),
    }


def examples_section(run: RunFiles, models: list[Model]) -> dict[str, Any]:
    """The examples to read."""
    unseen = unseen_answers(run, models)
    answered = bool(run.train_samples)
    groups = [] if run.chosen_otherwise else training_answers(run)
    return {"groups": groups, "answered": answered, "unseen": [unseen] if unseen else []}


def time_section(run: RunFiles) -> dict[str, Any]:
    """Where the time went."""
    timed = step_seconds(run)
    return {"times": time_bars(run) if timed else None, "total": duration(math.fsum(timed.values()))}


def record_section(run: RunFiles) -> dict[str, Any]:
    """Warnings, counts, versions and the machine."""
    lists = {"Data": run.summary("examples")}
    lists |= {title: run.manifest.get(title.lower()) or {} for title in ("Versions", "Machine")}
    records = {
        title: [(name.replace("_", " "), shown_value(value)) for name, value in values.items()]
        for title, values in lists.items()
        if values
    }
    files = {**FILES, f"{run.files.student(run.main_variant).relative_to(run.run_dir)}/": "the student"}
    there = {name: what for name, what in files.items() if (run.run_dir / name).exists()}
    return {"warnings": run.manifest.get("warnings") or [], "records": records, "files": there}


def yaml_parts(line: str) -> tuple[str, str, str]:
    """Split a line of YAML into what comes before its key, the key, and the rest."""
    match = re.match(r"( *(?:- )?)([\w.\-/]+)(:(?: .*)?)$", line)
    return (match[1], match[2], match[3]) if match else ("", "", line)


def shown_value(value: Any) -> str:
    """Write a free-form value: numbers with thousands, the rest as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
