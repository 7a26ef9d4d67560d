"""Examples to read: the student's answers to training examples before and after, and to unseen prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import pyarrow  # type: ignore[import-untyped]

from srd.base.text import signed
from srd.curation.inspect import examples_to_show
from srd.evaluation.predictions import predictions_path, read_answers
from srd.report.comparison import Model, baseline_of, main_model, primary_metrics
from srd.report.reading import Row, RunFiles, finite, read_parquet
from srd.report.words import phrase, task_name

T = TypeVar("T")

GROUPS = {
    "easiest": ("Easiest", "The student nearly knew these already."),
    "hardest": ("Hardest of those kept", "Of what was trained on, the student knew these least."),
    "dropped": ("Dropped", "Too hard or too odd for this student; never trained on."),
}


class Answer(NamedTuple):
    """A text under its title; None is unknown. ``kind`` is the CSS class: ``reference``, ``ours`` or none."""

    title: str
    text: str | None
    kind: str = ""


class Card(NamedTuple):
    """An example to unfold: what comes before its instruction, the prompt, short facts, and answers in order."""

    label: str
    instruction: str
    input: str
    facts: list[str]
    answers: list[Answer]


class Group(NamedTuple):
    """Cards under a title and a sentence."""

    title: str
    note: str
    cards: list[Card]


def card(label: str, example: Row, facts: list[str], answers: Sequence[Answer]) -> Card:
    """Make the card of an example: its prompt, the reference that is trained on, the answers."""
    instruction = str(example.get("instruction") or example.get("prompt") or "")
    reference = Answer("Reference", str((example.get("references") or [""])[0]), "reference")
    return Card(label, instruction, str(example.get("input") or ""), facts, [reference, *answers])


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Choose at most so many of them: the first, the last, and what lies evenly between."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def scored(title: str, row: Row, kind: str = "") -> Answer:
    """Make an answer with its ROUGE-L, where it is known."""
    score = 100 * finite(row, "rouge_l")
    return Answer(title + (f" · ROUGE-L {score:.1f}" if math.isfinite(score) else ""), row["text"], kind)


def training_answers(run: RunFiles) -> list[Group]:
    """The easiest, hardest and some dropped training examples; none without a ranking."""
    groups = examples_to_show(run.ranked)
    ids = [example_id for group in groups.values() for example_id in group]
    examples = by_id(read_parquet(run.files.examples("train"), ids))
    before = by_id(read_parquet(run.files.scores, ids, ["id", "response"]))
    after = by_id(run.train_samples)
    ranked = by_id(read_parquet(run.files.ranked, ids))

    def one(example_id: str) -> Card:
        rank, example = ranked[example_id], examples[example_id]
        facts = [f"ROUGE-L {100 * finite(rank, 'rouge_l'):.1f}", f"{finite(rank, 'ce'):.2f} nats"]
        facts += [str(example["corruption"])] if example.get("corruption") else []
        answers = [Answer("Student before", before[example_id]["response"] if example_id in before else None)]
        if (row := after.get(example_id)) is not None:
            answers.append(scored(f"{run.name_of(str(row.get('model', run.main_variant)))} after", row, "ours"))
        return card(f"#{rank['rank']:.0f}", example, facts, answers)

    made = [Group(*GROUPS[name], [one(key) for key in group if key in examples]) for name, group in groups.items()]
    return [group for group in made if group.cards]


def unseen_answers(run: RunFiles, models: Sequence[Model]) -> Group | None:
    """Test prompts where our model gains most on the baseline, is typical of it, and loses most.

    Uses one seed and the first task whose prompts are the run's own test examples; else None.
    """
    ours = main_model(list(models), primary_metrics(list(models)))
    for task in {task: None for task, _ in ours.scores} if ours else {}:
        answers = {model.key: rows for model in models if (rows := predictions(run, model, task))}
        baseline = baseline_of([model for model in models if model is not ours and model.key in answers])
        if ours is None or baseline is None or ours.key not in answers:
            continue
        theirs = answers[baseline.key]
        gains = sorted(
            (finite(row, "rouge_l") - finite(theirs[key], "rouge_l"), key)
            for key, row in answers[ours.key].items()
            if key in theirs and "rouge_l" in row and "rouge_l" in theirs[key]
        )
        middle = gains[len(gains) // 2 :][:1]
        chosen = {"Greatest gain": gains[-1:], "Typical": middle, "Greatest loss": gains[:1]}
        wanted = [key for pairs in chosen.values() for _, key in pairs]
        prompts = by_id(read_parquet(run.files.examples("test"), wanted))
        cards = []
        for label, pairs in chosen.items():
            for gain, key in (pair for pair in pairs if pair[1] in prompts):
                shown = [
                    scored(run.name_of(name), rows[key], "ours" if name == ours.key else "")
                    for name, rows in answers.items()
                    if key in rows
                ]
                cards.append(card(label, prompts[key], [f"ROUGE-L {signed(100 * gain)}"], shown))
        if cards:
            note = f"From {task_name(task)}, one seed; gain and loss are over {phrase(baseline.key)}."
            return Group("Answers to unseen prompts", note, cards)
    return None


def predictions(run: RunFiles, model: Model, task: str) -> dict[str, Row]:
    """Read the answers of a model to a task for the first of the seeds that were scored, by example id.

    Answers that are not as they were when they were scored are left out: their scores would be another text's.
    """
    seeds = next((seeds for (name, _), seeds in model.seeds.items() if name == task and seeds), {})
    for seed in seeds:
        if rows := read_answers(predictions_path(run.files.evaluation, model.key, task, seed)):
            return by_id(rows)
    return {}


def by_id(rows: pyarrow.Table | Sequence[Row]) -> dict[str, Row]:
    """Key rows by their id."""
    listed = rows.to_pylist() if isinstance(rows, pyarrow.Table) else rows
    return {str(row["id"]): row for row in listed if "id" in row}
