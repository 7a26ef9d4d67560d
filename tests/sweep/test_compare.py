"""The numbers of a sweep's table: a difference is that of the two means beside it, or it is missing."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srd.base.files import write_json
from srd.evaluation.answers import summarise
from srd.evaluation.predictions import predictions_path, write_answers
from srd.metrics.statistics import macro_bootstrap
from srd.sweep.cells import Cell, Outcome
from srd.sweep.page import write_sweep_report
from srd.sweep.settings import SweepConfig
from tests.report.fake_run import write_text

# task -> example -> score, 0..1
Answers = dict[str, dict[str, float]]


@dataclass
class Trained:
    """A cell of a made-up sweep; a cell that failed has no answers."""

    label: str
    seed: int
    answers: Answers | None
    point: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        assert self.answers is not None
        return 100 * statistics.fmean(statistics.fmean(own.values()) for own in self.answers.values())


def write_cell(
    folder: Path,
    trained: Trained,
    corpus: tuple[str, ...] = (),
    stale: bool = False,
    second: dict[str, int] | None = None,
) -> Outcome:
    """Write the run directory of a cell as far as the tables read it."""
    cell = Cell(trained.label, trained.point, {"training.seed": trained.seed}, {})
    outcome = Outcome(cell, folder / "cells" / cell.folder, "failed" if trained.answers is None else "done")
    if trained.answers is None:
        return outcome
    write_text(outcome.folder / "recipe.yaml", "training: {method: kd, curriculum: null}\n")
    summary = {"training_seconds": 2.0 + trained.seed, "passes": 1, "examples": 10}
    write_json(outcome.folder / "manifest.json", {"steps": {"train/kd": {"seconds": 3, "summary": summary}}})
    evaluation = outcome.folder / "evaluation"
    metrics: dict[str, Any] = {}
    for task, answers in trained.answers.items():
        metric, parts = ("bleu", "sentence_bleu") if task in corpus else ("rouge_l", "rouge_l")
        mean = statistics.fmean(answers.values())
        by_seed = {}
        for seed, shift in ((1, 0.01), ((second or {}).get(trained.label, 2), -0.01)):
            values = [value + shift for value in answers.values()]
            scores = {"metrics": {metric: mean + shift}, "per_example": {parts: values}}
            rows = [{"id": name, "text": "so", parts: value} for name, value in zip(answers, values, strict=True)]
            write_answers(predictions_path(evaluation, "kd", task, seed), rows, scores, "")
            by_seed[seed] = scores
        if stale:
            scores = {"metrics": {metric: 9.0}, "per_example": {parts: [9.0] * len(answers)}}
            rows = [{"id": name, "text": "old"} for name in answers]
            write_answers(predictions_path(evaluation, "kd", task, 3), rows, scores, "")
        metrics[task] = summarise(by_seed)
    write_json(evaluation / "metrics.json", {"kd": metrics})
    return outcome


def table_of(
    folder: Path, cells: list[Trained], damage: dict[str, str] | None = None, **named: Any
) -> dict[str, dict[str, str]]:
    """Write a sweep's report; its ``results.csv`` by row."""
    outcomes = [write_cell(folder, cell, **named) for cell in cells]
    for name, text in (damage or {}).items():
        assert (folder / name).exists()
        (folder / name).write_text(text)
    references = dict.fromkeys({cell.label for cell in cells}, cells[0].label)
    write_sweep_report(folder, SweepConfig(recipe="demo"), outcomes, references)
    with open(folder / "results.csv", newline="") as file:
        return {row["Run"]: row for row in csv.DictReader(file)}


def shown_mean(row: dict[str, str]) -> float | None:
    """The mean that stands beside the difference: over all tasks where there are several."""
    if len([name for name in row if name.endswith(" mean")]) > 1 and "Mean mean" not in row:
        return None  # no row has all the tasks
    value = next((row[name] for name in ("Mean mean", "ROUGE-L mean", "BLEU mean") if name in row), "")
    return float(value) if value else None


LABELS, SEEDS, TASKS = ("kd", "srd", "sft"), (0, 1, 2), ("test", "gsm8k", "hard:er")


@st.composite
def sweeps(draw: st.DrawFn) -> list[Trained]:
    tasks = draw(st.lists(st.sampled_from(TASKS), min_size=1, max_size=3, unique=True))
    sizes = {task: draw(st.integers(1, 5)) for task in tasks}
    labels = draw(st.lists(st.sampled_from(LABELS), min_size=2, max_size=3, unique=True))
    by_seed = draw(st.booleans())  # the test set may depend on the seed
    cells = []
    for label, seed in itertools.product(labels, SEEDS):
        answers: Answers | None = {}
        for task in tasks:
            if not draw(st.integers(0, 11)):
                continue  # this training was not asked the task
            other = draw(st.integers(0, 15)) == 0  # or was asked other examples
            names = [f"{task}-{number}{seed if by_seed else ''}{other or ''}" for number in range(sizes[task])]
            answers[task] = {name: draw(st.floats(0.1, 0.9)) for name in names}  # type: ignore[index]
        if not draw(st.integers(0, 4)) or not answers:
            answers = None
        cells.append(Trained(label, seed, answers))
    return cells


@settings(max_examples=12, deadline=None)
@given(sweeps())
def test_shown_difference_is_that_of_the_shown_means(cells: list[Trained]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        table = table_of(folder, cells, stale=True)
        page = (folder / "sweep.html").read_text()
    finally:
        shutil.rmtree(folder)
    done = [cell for cell in cells if cell.answers]
    tasks = {task for cell in done for task in cell.answers or {}}
    of_row = {row: {cell.seed: cell for cell in done if cell.label == row} for row in {cell.label for cell in done}}
    common = set.intersection(*map(set, of_row.values())) if of_row else set()
    reference = cells[0].label
    found = []
    for row, own in of_row.items():
        counted = [own[seed] for seed in sorted(common or own)]
        whole = all(set(cell.answers or {}) == tasks for cell in counted)
        mean = shown_mean(table[row])
        assert mean == (pytest.approx(statistics.fmean(cell.mean for cell in counted)) if whole else None)
        # Without a seed that all rows have each counts its own, and compares where these are the reference's.
        shared = common or (set(own) if set(own) == set(of_row.get(reference, {})) else set())
        pairs = [(own[seed], of_row[reference][seed]) for seed in shared] if reference in of_row else []
        asked = [[{task: list(part) for task, part in (side.answers or {}).items()} for side in pair] for pair in pairs]
        comparable = row != reference and bool(pairs) and all(set(a) == tasks and a == b for a, b in asked)
        assert bool(table[row].get("Difference")) == comparable, row
        if not comparable:
            continue
        difference = float(table[row]["Difference"])
        other = shown_mean(table[reference])
        assert mean is not None and other is not None
        assert difference == pytest.approx(mean - other, abs=1e-9)
        assert float(table[row]["Low"]) <= difference <= float(table[row]["High"])
        assert table[row]["Seeds ahead"].endswith(f" of {len(shared)}")
        found.append(difference)
    lead = re.search(r"largest difference is (\S+) points", page)
    assert (lead is None) == (not found)
    if lead is not None:
        assert float(lead[1].replace("\N{MINUS SIGN}", "-")) == pytest.approx(max(found), abs=0.006)


def flat(value: float, task: str = "test", size: int = 4) -> Answers:
    return {task: {f"{task}-{number}": value for number in range(size)}}


def test_a_failed_cell_is_not_in_the_mean_of_the_row_that_is_compared(tmp_path: Path) -> None:
    cells = [Trained("kd", 0, flat(0.2)), Trained("kd", 1, flat(0.4)), Trained("srd", 0, flat(0.25)),
             Trained("srd", 1, None)]  # fmt: skip
    table = table_of(tmp_path, cells)
    assert [shown_mean(table[row]) for row in ("kd", "srd")] == [pytest.approx(20), pytest.approx(25)]
    assert float(table["srd"]["Difference"]) == pytest.approx(5)
    assert table["srd"]["Seeds ahead"] == "1 of 1"
    assert "kd: training.seed 1 left out" in (tmp_path / "sweep.html").read_text()


def test_a_large_task_does_not_outweigh_a_small_one(tmp_path: Path) -> None:
    kd, srd = ({**flat(a, "vicuna", 8), **flat(b, "uinst", 1000)} for a, b in ((0.1, 0.4), (0.3, 0.39)))
    table = table_of(tmp_path, [Trained("kd", 0, kd), Trained("srd", 0, srd)])
    assert [shown_mean(table[row]) for row in ("kd", "srd")] == [pytest.approx(25), pytest.approx(34.5)]
    assert float(table["srd"]["Difference"]) == pytest.approx(9.5)
    assert float(table["srd"]["Low"]) == pytest.approx(9.5)
    assert "1 comparison with the reference: 1 ahead" in (tmp_path / "sweep.html").read_text()


def test_answers_to_a_seed_of_former_times_are_not_read(tmp_path: Path) -> None:
    cells = [Trained("kd", 0, flat(0.2)), Trained("srd", 0, flat(0.25))]
    write_cell(tmp_path, cells[0], stale=True)
    assert float(table_of(tmp_path, cells)["srd"]["Difference"]) == pytest.approx(5)


def test_a_corpus_score_enters_the_difference_and_has_no_interval(tmp_path: Path) -> None:
    cells = [
        Trained(label, 0, {**flat(a), **flat(b, "iwslt2017")}) for label, a, b in (("kd", 0.2, 0.3), ("srd", 0.3, 0.6))
    ]
    table = table_of(tmp_path, cells, corpus=("iwslt2017",))
    assert float(table["srd"]["Difference"]) == pytest.approx(20)
    assert "Low" not in table["srd"]
    page = (tmp_path / "sweep.html").read_text()
    assert "BLEU of iwslt2017 is no mean over examples" in page
    assert "0 ahead, 0 level, 0 behind, 1 without an interval" in page


def test_answers_drawn_with_other_seeds_are_not_compared(tmp_path: Path) -> None:
    cells = [Trained("kd", 0, flat(0.2)), Trained("srd", 0, flat(0.25)), Trained("sft", 0, flat(0.3))]
    table = table_of(tmp_path, cells, second={"srd": 7})
    assert table["srd"]["Difference"] == "" and table["srd"]["Seeds ahead"] == "– of 1"
    assert float(table["sft"]["Difference"]) == pytest.approx(10)
    assert "answers to test were not drawn with the same seeds" in (tmp_path / "sweep.html").read_text()


@pytest.mark.parametrize("name", ["kd.test.2.jsonl", "kd.test.2.scores.json"])
def test_changed_answers_are_not_compared(tmp_path: Path, name: str) -> None:
    cells = [Trained("kd", 0, flat(0.2)), Trained("srd", 0, flat(0.25))]
    write_cell(tmp_path, cells[1])
    path = tmp_path / "cells/srd-seed-0/evaluation/predictions" / name
    text = path.read_text().replace("0.24", "0.99", 1)
    table = table_of(tmp_path, cells, {str(path.relative_to(tmp_path)): text})
    assert "Difference" not in table["srd"]
    assert table["srd"]["Seeds ahead"] == "– of 1"
    assert "answers to test are missing or not as they were scored" in (tmp_path / "sweep.html").read_text()


def test_the_interval_resamples_what_the_difference_averages() -> None:
    generator = np.random.default_rng(0)
    # Two tasks of very different size: the variance is a quarter of the sum of the variances of their means.
    tasks = [[generator.normal(1, 1, 30)], [generator.normal(0, 0.5, 900)]]
    _, low, high = macro_bootstrap(tasks, [[0], [0]], samples=4000)
    spread = 1.96 * np.sqrt(sum(own.var() / own.size for [own] in tasks)) / 2
    assert high - low == pytest.approx(2 * spread, rel=0.06)
    # Trainings that differ by far more than their examples do.
    trainings = [generator.normal(shift, 0.01, 50) for shift in generator.normal(0, 1, 24)]
    difference, low, high = macro_bootstrap([trainings], [[0] * 24], samples=4000)
    spread = 1.96 * np.std([own.mean() for own in trainings]) / np.sqrt(24)
    assert difference == pytest.approx(np.mean(trainings))
    assert high - low == pytest.approx(2 * spread, rel=0.06)
    # The same examples in every training move together; others average out, as far as each training is drawn once.
    [own] = [generator.normal(0, 1, 100)]
    together, apart = (macro_bootstrap([[own] * 16], [keys], samples=4000) for keys in ([0] * 16, list(range(16))))
    assert (together[2] - together[1]) / (apart[2] - apart[1]) == pytest.approx(8**0.5, rel=0.1)
