"""What the stages of the main training were: how many rows each had, and how the student's answers changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import compute

from srd.base.text import count, duration, signed
from srd.report.answers import Card, Group, by_id, card, scored
from srd.report.reading import Row, RunFiles, finite, parse_json, read_file, read_json_lines, read_parquet
from srd.report.tables import Cell, Column, Table
from srd.training.training import ANSWERS_FILE, METRICS_FILE

SHOWN = 3  # prompts whose answers are printed stage by stage


class Stage(NamedTuple):
    """One stage of the main training, as its files tell of it; ``answers`` to the validation prompts, by id."""

    number: int
    metrics: Row
    answers: dict[str, Row]


def stages_of(run: RunFiles) -> list[Stage]:
    """The stages that are done, in their order."""
    found: list[Stage] = []
    folder = run.files.stages(run.main_variant)
    while metrics := _metrics(folder / str(len(found))):
        answers = read_json_lines(folder / str(len(found)) / ANSWERS_FILE)
        found.append(Stage(len(found) + 1, metrics, by_id(answers)))
    return found


def _metrics(folder: Path) -> Row:
    content: Any = read_file(folder / METRICS_FILE, parse_json, {}, "Run the recipe again to train the stage again")
    return content if isinstance(content, dict) else {}


def stage_table(run: RunFiles, stages: Sequence[Stage]) -> Table:
    """A row for each stage: rows, how hard they were before, settings, time, and the answers after it."""
    columns = [
        Column("Stage"), Column("Rows", show=count), Column("New rows", show=count),
        Column("ROUGE-L before"), Column("Temperature", 2), Column("Teacher's weight", 2),
        Column("Steps", show=count), Column("Time", show=duration), Column("Validation ROUGE-L"),
        Column("Answers changed"),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    otherwise = bool(run.chosen_otherwise)  # then nobody has kept which rows they were
    for index, stage in enumerate(stages):
        before = stages[index - 1] if index else None
        size = finite(stage.metrics, "examples")
        new = math.nan if otherwise else size - finite(before.metrics, "examples") if before else size
        rouge_before = math.nan if otherwise else _before(run, index)
        shown = [finite(stage.metrics, name) for name in ("temperature", "weight", "steps", "seconds")]
        rouge, changed = _answers_of(stage, before)
        cells: list[float] = [size, new, rouge_before, *shown, rouge]
        rows.append([str(stage.number), *(value if math.isfinite(value) else None for value in cells), changed])
    return Table(columns, rows).without_empty_columns()


def _before(run: RunFiles, stage: int) -> float:
    """Mean ROUGE-L, in percent, of the untrained student's answers to what it is trained on in a stage."""
    chosen = compute.and_(run.ranked["kept"], compute.less_equal(run.ranked["stage"], stage))
    value = compute.mean(run.ranked["rouge_l"].filter(chosen)).as_py()
    return math.nan if value is None else 100 * float(value)


def _answers_of(stage: Stage, before: Stage | None) -> tuple[float, str | None]:
    """ROUGE-L of the answers after a stage, and how many differ from those after the one before."""
    if not stage.answers:
        return math.nan, None
    rouge = 100 * math.fsum(finite(row, "rouge_l") for row in stage.answers.values()) / len(stage.answers)
    if before is None or not before.answers:
        return rouge, None
    changed = [name for name, row in stage.answers.items() if row["text"] != before.answers.get(name, {}).get("text")]
    return rouge, f"{len(changed)} of {len(stage.answers)}"


def changed_answers(run: RunFiles, stages: Sequence[Stage]) -> Group | None:
    """Validation prompts whose answers gained most from the first stage to the last, were typical, and lost most."""
    answered = [stage for stage in stages if stage.answers]
    if len(answered) < 2:
        return None
    first, last = answered[0].answers, answered[-1].answers
    gains = sorted((finite(last[key], "rouge_l") - finite(row, "rouge_l"), key)
                   for key, row in first.items() if key in last and row["text"] != last[key]["text"])  # fmt: skip
    places = {"Greatest gain": -1, "Typical": len(gains) // 2, "Greatest loss": 0}
    chosen = {gains[place][1]: (label, gains[place][0]) for label, place in places.items()} if gains else {}
    prompts = by_id(read_parquet(run.files.examples("validation"), chosen))
    cards: list[Card] = []
    for key, (label, gain) in chosen.items():
        if key in prompts:
            texts = [scored(f"After stage {stage.number}", stage.answers[key], "ours" if stage is answered[-1] else "")
                     for stage in answered if key in stage.answers]  # fmt: skip
            cards.append(card(label, prompts[key], [f"ROUGE-L {signed(100 * gain)}"], texts))
    note = (
        "Answers to validation questions, on which it was not trained; gain and loss from the first stage to the last."
    )
    return Group("How its answers changed from stage to stage", note, cards) if cards else None
