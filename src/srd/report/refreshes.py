"""What a student wrote ahead of its training: how its text changed from refresh to refresh, and whether it stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from srd.base.text import count, many, percent
from srd.metrics.rouge import rouge_l_many
from srd.report.answers import Answer, Card, Group, by_id, card, evenly
from srd.report.reading import Row, RunFiles, finite, read_file, read_parquet
from srd.report.tables import Cell, Column, Table
from srd.training.student_text.written import read_about

COMPARED = 200  # answers of a refresh that are compared with those before, and with the references
SHOWN = 3  # prompts whose answers are printed refresh by refresh
TEXTS = 4  # answers of each
ROWS = 12  # refreshes of a training in the table


class Refresh(NamedTuple):
    """What was written at one refresh: in which stage, before which step, and the answers by id."""

    stage: int
    number: int
    step: int
    end: int
    answers: dict[str, Row]

    @property
    def title(self) -> str:
        """What it is called."""
        return f"Stage {self.stage + 1}, step {self.step}"


def refreshes_of(run: RunFiles, variant: str) -> list[Refresh]:
    """The refreshes of a training that are there, in their order."""
    found = []
    for path in run.files.stages(variant).glob("*/rollouts/*.parquet"):
        stage, number = path.parts[-3], path.stem
        if stage.isdigit() and number.isdigit():
            about = read_file(path, read_about, {})
            columns = ["id", "response", "ended", "tokens"]
            answers = by_id(read_parquet(path, columns=columns))
            step, end = (int(about.get(name, 0)) for name in ("start", "end"))
            found.append(Refresh(int(stage), int(number), step, end, answers))
    found.sort(key=lambda refresh: refresh[:2])
    for place, after in enumerate(found[1:]):  # with `auto` text gives way before its planned end
        if found[place].stage == after.stage:
            found[place] = found[place]._replace(end=min(found[place].end, after.step))
    return found


def refreshes_section(run: RunFiles) -> tuple[Table | None, Group | None]:
    """A table of the refreshes of all trainings, and answers of the last of them that has any."""
    by_variant = {variant: refreshes_of(run, variant) for variant in run.variants}
    written = {variant: refreshes for variant, refreshes in by_variant.items() if refreshes}
    if not written:
        return None, None
    return refresh_table(run, written), changed_texts(run, list(written.values())[-1])


def refresh_table(run: RunFiles, written: dict[str, list[Refresh]]) -> Table:
    """A row for each refresh."""
    columns = [
        Column("Model"), Column("Refresh"), Column("Answers", show=count), Column("Tokens"),
        Column("End by themselves", show=percent), Column("Empty", show=percent),
        Column("ROUGE-L with the reference"), Column("ROUGE-L with the text before"), Column("Drift at its end", 2),
    ]  # fmt: skip
    names = {name for refreshes in written.values() for each in refreshes for name in sorted(each.answers)[:COMPARED]}
    examples = by_id(read_parquet(run.files.examples("train"), names, ["id", "references"]))
    references = {name: list(row["references"]) for name, row in examples.items()}
    rows: list[list[Cell]] = []
    for variant, refreshes in written.items():
        before: dict[str, Any] = {}
        shown = evenly(refreshes, ROWS)
        for refresh in refreshes:
            texts = {name: str(row["response"]) for name, row in refresh.answers.items()}
            cells = [
                *_counts(refresh),
                likeness(texts, references),
                likeness(texts, before),
                _drift(run, variant, refresh),
            ]
            if refresh in shown:
                rows.append([run.name_of(variant), refresh.title, *(v if math.isfinite(v) else None for v in cells)])
            before |= {name: [text] for name, text in texts.items() if text.strip()}
    return Table(columns, rows).without_empty_columns()


def _counts(refresh: Refresh) -> list[float]:
    """Answers, their mean tokens, the share that ends by itself, the share that is empty."""
    answers = list(refresh.answers.values())
    if not answers:
        return [0, math.nan, math.nan, math.nan]
    sums = [
        sum(len(row["tokens"]) for row in answers),
        sum(bool(row["ended"]) for row in answers),
        sum(not str(row["response"]).strip() for row in answers),
    ]
    return [len(answers), *(total / len(answers) for total in sums)]


def likeness(texts: dict[str, str], others: dict[str, list[str]]) -> float:
    """Mean ROUGE-L, in percent, of texts with others of the same example; of the first `COMPARED` that have both."""
    both = sorted(texts.keys() & others.keys())[:COMPARED]
    if not both:
        return math.nan
    return 100 * float(rouge_l_many([texts[name] for name in both], [others[name] for name in both]).mean())


def _drift(run: RunFiles, variant: str, refresh: Refresh) -> float:
    """The last drift that was logged on the text of a refresh, in nats a token."""
    logged = [
        finite(row, "drift")
        for row in run.metrics
        if row.get("arm") == variant and row.get("stage") == refresh.stage and "drift" in row
        and refresh.step < finite(row, "step") <= refresh.end
    ]  # fmt: skip
    return logged[-1] if logged else math.nan


def changed_texts(run: RunFiles, refreshes: Sequence[Refresh]) -> Group | None:
    """Prompts that were answered most often, with every answer."""
    times: dict[str, int] = {}
    for name in (name for refresh in refreshes for name in refresh.answers):
        times[name] = times.get(name, 0) + 1
    chosen = sorted(times, key=lambda name: (-times[name], name))[:SHOWN]
    prompts = by_id(read_parquet(run.files.examples("train"), chosen))
    cards: list[Card] = []
    for name in (name for name in chosen if name in prompts):
        texts = [Answer(each.title, str(each.answers[name]["response"])) for each in refreshes if name in each.answers]
        cards.append(card(f"Answered {many(len(texts), 'time')}", prompts[name], [], evenly(texts, TEXTS)))
    note = "What it wrote to train on, at each refresh, sampled anew."
    return Group("How its own text changed", note, cards) if cards else None
