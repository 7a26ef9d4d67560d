"""One of the compared trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srd.base import parallel
from srd.base.files import atomic_write
from srd.recipe.schema import Recipe
from srd.run.assemble import training_of
from srd.run.context import Run
from srd.run.costs import Facts, Phase, training_phase
from srd.run.steps.base import Step, Summary
from srd.run.steps.cleaning import cleaning_steps
from srd.run.steps.measures import measuring_steps
from srd.run.steps.student import Student, alignment, needs_teacher, runs_live, taught_by, teaching_steps
from srd.run.steps.teacher import Teacher
from srd.training.progress import told_of
from srd.training.stages import train


class Training(Step):
    """``stages/``, ``student/`` (of all but the main training in ``baselines/<label>/``) and ``logs/<label>.jsonl``.

    Args:
        label: Of the training among the recipe's.
    """

    shares = False

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = f"train/{label}"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        training = recipe.arms[self.label]
        steps = ["examples", *cleaning_steps(recipe), "student"]
        if needs_teacher(training):
            steps += ["teacher", *teaching_steps(recipe, training)]
        if training.curriculum is not None:
            steps += ["reflection", *measuring_steps(training.curriculum.score)]
        return tuple(steps)

    def inputs(self, run: Run) -> list[Any]:
        recipe, config = run.recipe, run.recipe.arms[self.label]
        found: list[Any] = [config.decides(), run.encoding, recipe.seed, *alignment(run, config)]
        found += [recipe.generation.model_dump(exclude={"engine"}), *taught_by(recipe)]
        return [*found, *run.reading(config)]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.student(self.label), run.files.stages(self.label), run.files.log(self.label)]

    def spoilt(self, run: Run, damaged: list[Path]) -> list[Path]:
        """The student alone is written again; a stage is trained again, with all that came after it.

        A log is written by training only: without it everything is trained again.
        """
        student, stages, log = self.outputs(run)
        if log in damaged:
            return [student, stages, log]
        hurt = [int(path.relative_to(stages).parts[0]) for path in damaged if path.is_relative_to(stages)]
        places = {file.relative_to(stages).parts[0] for file in run.manifest.files(self.name, stages)}
        return [student, *(stages / place for place in sorted(places) if hurt and int(place) >= min(hurt))]

    def cost(self, facts: Facts) -> Phase:
        training = facts.recipe.arms[self.label]
        return training_phase(self.name, training, facts, runs_live(facts, training))

    def told(self, run: Run, summary: Summary) -> str:
        return told_of(summary, run.recipe.arms[self.label])

    def make(self, run: Run) -> Summary:
        config, files = run.recipe.arms[self.label], run.files
        folder = files.training(self.label)
        folder.mkdir(parents=True, exist_ok=True)
        with training_of(run, self.label, config, folder, run.start_source, run.start_options()) as training:
            return train(training, files.student(self.label))

    def open(self, run: Run) -> None:
        parallel.on_main(lambda: write_metrics(run))


def write_metrics(run: Run) -> None:
    """Put what all trainings logged together in ``metrics.jsonl``, unless it says just that already."""
    labels = (Teacher.label, Student.label, *run.recipe.arms)
    logs = [run.files.log(label) for label in labels]
    text = b"".join(log.read_bytes() for log in logs if log.is_file())
    if not run.files.metrics.is_file() or run.files.metrics.read_bytes() != text:
        with atomic_write(run.files.metrics) as partial:
            partial.write_bytes(text)
