"""How long the rest of a run will take, and what its steps say when they are done."""

from __future__ import annotations

from typing import Any

import pytest

from srd.run.flow import planned_steps
from srd.run.outline.costs import Phase
from srd.run.outline.forecast import Forecast
from srd.training.progress import told_of
from tests.runs import TinyRun, close

COSTS = [
    Phase("examples"),
    Phase("teacher", flops=100.0),
    Phase("reflection", flops=50.0),
    Phase("train/srd", flops=200.0),
]


@pytest.mark.parametrize(
    ("seconds", "step", "share", "spent", "after"),
    [
        ({}, "teacher", 0.5, 10.0, 50.0),  # 5 FLOPs a second, 250 to come
        ({"examples": 3.0, "teacher": 20.0}, "reflection", 0.0, 0.0, 40.0),
        ({"teacher": 20.0}, "reflection", 0.5, 5.0, 40.0),
        ({"teacher": 20.0}, "train/srd", 0.1, 2.0, 0.0),
        ({"teacher": 20.0, "train/srd": 40.0}, "reflection", 0.1, 1.0, 0.0),  # the last one is kept
        ({}, "examples", 0.5, 10.0, None),
        ({}, "unknown", 0.5, 10.0, None),
    ],
)
def test_the_rest_goes_as_fast_as_what_was_timed(
    seconds: dict[str, float], step: str, share: float, spent: float, after: float | None
) -> None:
    assert Forecast(COSTS, seconds).after(step, share, spent) == (after if after is None else pytest.approx(after))


def test_a_step_knows_its_place() -> None:
    assert [Forecast(COSTS).place(name) for name in ("teacher", "unknown")] == ["step 2 of 4", ""]


TRAINED = {"steps": 60, "stages": 3, "passes": 2.25, "best_validation": 0.189, "parameters": 99_000_000, "examples": 18}
SUMMARIES: dict[str, tuple[dict[str, Any], str]] = {
    "examples": ({"train": 1200, "validation": 4, "test": 5, "dropped": 1},
                 "1,200 examples to train on, 4 to validate with, 5 to test with, and 1 unusable row left out"),
    "likelihoods": ({"examples": 24, "swap": 3, "cut": 4}, "24 rows read, and 7 that were damaged on purpose"),
    "cleaning": ({"rows": 24, "wrong": 1}, "1 of 24 rows marked as wrong"),
    "teacher repairs": ({"rows": 3, "answers": 15, "cut": 4}, "15 answers to 3 rows, of which 4 do not end"),
    "repair": ({"wrong": 3, "repaired": 2, "dropped": 1}, "3 wrong rows, 2 repaired and 1 dropped"),
    "teacher": ({"parameters": 135_000_000}, "135 M parameters, used as it is"),
    "teacher text": ({"examples": 24, "empty": 0, "cut": 2}, "24 answers of the teacher, 2 cut and 0 empty"),
    "cache": ({"examples": 24, "bytes": 815_600}, "what the teacher says of 24 examples is kept in 815.6 kB"),
    "student": ({"parameters": 99_000_000, "dropped_layers": "decoder [2, 13]"}, "99.0 M parameters, 2 layers dropped"),
    "reflection": ({"mean_rouge_l": 0.253, "mean_ce": 3.214},
                   "the student's answers have a mean ROUGE-L of 25.3, its surprise is 3.21 nats a token"),
    "measures": ({"mean_pmi": 0.25}, "mean pmi 0.25"),
    "ranking": ({"kept": 150, "dropped": 50}, "150 examples kept, the hardest 50 dropped"),
    "train/srd": (TRAINED, "trained for 60 steps in 3 stages, 2.25 passes over the data, ROUGE-L 18.9 in validation"),
    "cards": ({"by hand": []}, "1 model card written"),
    "evaluation": ({"models": 4, "tasks": 1, "answers": 480}, "480 answers of 4 models to 1 task"),
}  # fmt: skip


def test_every_step_says_in_words_what_it_came_to(tiny_run: TinyRun) -> None:
    run = tiny_run.open()
    close(run)
    steps = {step.name: step for step in planned_steps(run.recipe, *SUMMARIES)}
    assert steps.keys() >= SUMMARIES.keys()
    assert {name: steps[name].told(run, summary) for name, (summary, _) in SUMMARIES.items()} == {
        name: said for name, (_, said) in SUMMARIES.items()
    }
    assert told_of({}, run.recipe.training) == told_of(TRAINED, None) == ""
    assert ", 1 pass over the data" in told_of({**TRAINED, "passes": 1.0}, run.recipe.training)
