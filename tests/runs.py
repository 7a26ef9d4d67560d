"""What many tests share: a tiny run of any family, in a folder of its own, and what is read of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from srd.base.console import set_up_logging
from srd.base.files import read_json
from srd.evaluation.models import evaluate_models, read_benchmarks
from srd.recipe.reading import validate_recipe
from srd.report.page import build_report
from srd.run.context import Run
from srd.run.flow import advance, training_steps
from tests.tiny import save_tiny

ANIMALS = ("whale", "dolphin", "octopus", "particle", "apple", "function", "item", "sky", "box", "list")
QUESTIONS = (
    ("What does the {} return?", "It returns the number of items in the {}."),
    ("Name the {} that lives in the sea.", "The {} lives in the sea."),
    ("How many {}s are there in the box?", "There are 12 {}s in the first box and 30 in the second."),
    ("Why is the {} blue?", "Because small particles scatter the light of the {}."),
)


def tiny_rows() -> list[dict[str, str]]:
    """Forty questions, no two alike, with answers of different length."""
    return [
        {"instruction": question.format(animal), "input": "in the air" if number % 3 == 0 else "", "output": answer}
        for number, (animal, question, answer) in enumerate(
            (animal, question, answer.format(animal)) for animal in ANIMALS for question, answer in QUESTIONS
        )
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evaluated(
    models: list[str], tasks: list[str], folder: Path, *, max_prompt_length: int | None = None,
    allow_code_execution: bool = False, **asked: Any,
) -> dict[str, Any]:  # fmt: skip
    """Read benchmarks and let models answer them, as ``srd evaluate --task`` does."""
    benchmarks = read_benchmarks(tasks, allow_code_execution=allow_code_execution, **asked)
    return evaluate_models(
        models, benchmarks, folder, max_prompt_length=max_prompt_length, allow_code_execution=allow_code_execution
    )


class TinyRun:
    """A recipe of tiny models in a folder; ``run`` goes through the whole flow, again and again if wanted.

    Args:
        folder: Holds the models, the data and the run directory ``run``.
        family: Of teacher (2 layers) and student (1 layer).
        sizes: Of ``teacher`` and ``student``, as ``save_tiny`` takes them.
    """

    def __init__(self, folder: Path, family: str = "llama", **sizes: Any) -> None:
        self.folder = folder
        self.family = family
        self.run_dir = folder / "run"
        self.teacher = save_tiny(folder / "teacher", family, seed=1, **{"layers": 2, **sizes.get("teacher", {})})
        self.student = save_tiny(folder / "student", family, seed=2, **{"layers": 1, **sizes.get("student", {})})
        self.rows = write_rows(folder / "rows.jsonl", tiny_rows())
        self.recipe: dict[str, Any] = {
            "name": "tiny",
            "teacher": str(self.teacher),
            "student": str(self.student),
            "data": {"train": str(self.rows), "template": "plain", "max_length": 96, "max_prompt_length": 48,
                     "validation_size": 4, "test_size": 4},
            "generation": {"max_new_tokens": 4},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
            "evaluation": {"seeds": [1]},
        }  # fmt: skip

    def set(self, **changes: Any) -> TinyRun:
        """Change settings: ``set(training__epochs=2)`` is ``training.epochs=2``."""
        for key, value in changes.items():
            *path, last = key.split("__")
            place = self.recipe
            for part in path:
                if isinstance(place.get(part), str):
                    place[part] = {"model": place[part]}
                place = place.setdefault(part, {})
            place[last] = value
        return self

    def copy(self, run_dir: Path) -> TinyRun:
        """The same run in another directory, with what it has made so far and a recipe of its own."""
        copy = self.twin()
        copy.run_dir = run_dir
        shutil.copytree(self.run_dir, run_dir)
        return copy

    def twin(self) -> TinyRun:
        """The same models and rows, with a recipe of its own."""
        twin = TinyRun.__new__(TinyRun)
        twin.__dict__.update(self.__dict__, recipe=json.loads(json.dumps(self.recipe)))
        return twin

    def open(self, run_dir: Path | None = None) -> Run:
        """Claim the run directory, as one command does."""
        run = Run(validate_recipe(self.recipe, "tiny"), run_dir or self.run_dir)
        set_up_logging(run.warnings)
        return run

    def run(self, run_dir: Path | None = None) -> Run:
        """Go through the whole flow, report included."""
        run = self.open(run_dir)
        try:
            advance(run)
            build_report(run.folder)
        finally:
            close(run)
        return run

    def advance(self, *wanted: str, run_dir: Path | None = None) -> Run:
        """Go as far as these steps, or through all of them; no report."""
        run = self.open(run_dir)
        try:
            advance(run, *wanted)
        finally:
            close(run)
        return run

    def train(self, run_dir: Path | None = None) -> Run:
        """Go as far as the trained students: no evaluation, no report."""
        return self.advance(*training_steps(validate_recipe(self.recipe, "tiny")), run_dir=run_dir)

    def write_recipe(self) -> Path:
        """Write the recipe as a file for the command line (JSON is YAML)."""
        path = self.folder / "tiny.yaml"
        path.write_text(json.dumps(self.recipe), encoding="utf-8")
        return path


def in_turn(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Cases of one kind, of which ``make test`` runs the ``quick`` ones, and ``make test-all`` every one."""
    found = list(cases)
    assert set(quick) <= set(found), "a case that is to be quick is none of them"
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in found]


def close(run: Run) -> None:
    """Give the run directory free, as the end of the process would."""
    run.close()


def logged(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def edit_loss(log: Path, which: int) -> None:
    """Change the loss in one of the rows of a log that have one."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    [row for row in rows if "loss" in row][which]["loss"] = 99.0
    write_rows(log, rows)


def steps_finished(run_dir: Path) -> dict[str, str]:
    """When each step was finished, and from which inputs."""
    steps = read_json(run_dir / "manifest.json")["steps"]
    return {name: f"{step.get('finished')} {step['fingerprint']}" for name, step in steps.items()}
