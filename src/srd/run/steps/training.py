"""One of the compared trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srd.base import parallel
from srd.base.files import atomic_write, link
from srd.run.context import Run
from srd.run.outline import order
from srd.run.parts.assemble import split_of, training_of
from srd.run.parts.teacher_caches import tier_of_pairs
from srd.run.steps.base import Step, Summary
from srd.run.steps.student import Student, alignment, softened, taught_by
from srd.run.steps.teacher import Teacher
from srd.training.progress import told_of
from srd.training.stages import train


class Training(order.Training, Step):
    """``stages/``, ``student/`` (of all but the main training in ``baselines/<label>/``) and ``logs/<label>.jsonl``."""

    shares = False

    def inputs(self, run: Run) -> list[Any]:
        recipe, config = run.recipe, run.recipe.variants[self.label]
        found: list[Any] = [config.decides(), run.encoding, recipe.seed, *alignment(run, config)]
        found += [recipe.generation.model_dump(exclude={"engine"}), *taught_by(recipe)]
        return [*found, *run.reading(config), *tier_of_pairs(run, config), *softened(run, config)]

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

    def told(self, run: Run, summary: Summary) -> str:
        return told_of(summary, run.recipe.variants[self.label])

    def work_out(self, run: Run) -> None:
        self._split = split_of(run, run.recipe.variants[self.label])

    def make(self, run: Run) -> Summary:
        split = self._split
        del self._split  # a step is there as long as its command
        config, files = run.recipe.variants[self.label], run.files
        folder = files.training(self.label)
        folder.mkdir(parents=True, exist_ok=True)
        start, options = run.start_source, run.start_options()
        with training_of(run, self.label, config, folder, start, options, split) as training:
            return train(training, files.student(self.label))

    def open(self, run: Run) -> None:
        parallel.on_main(lambda: write_metrics(run))


class Uncleaned(order.Uncleaned, Training):
    """A baseline on the rows as they came, taken from the run that has made it."""

    def inputs(self, run: Run) -> list[Any]:
        return [run.uncleaned.keys[self.name]]

    def spoilt(self, run: Run, damaged: list[Path]) -> list[Path]:
        return self.outputs(run)

    def work_out(self, run: Run) -> None:
        """The other run has."""

    def make(self, run: Run) -> Summary:
        other = run.uncleaned
        if parallel.is_main():
            for ours, theirs in zip(self.outputs(run), self.outputs(other), strict=True):
                link(theirs, ours)
        parallel.barrier()
        return other.manifest.steps[self.name]["summary"]


def write_metrics(run: Run) -> None:
    """Put what all trainings logged together in ``metrics.jsonl``, unless it says just that already."""
    labels = (Teacher.label, Student.label, *run.recipe.variants)
    logs = [run.files.log(label) for label in labels]
    text = b"".join(log.read_bytes() for log in logs if log.is_file())
    if not run.files.metrics.is_file() or run.files.metrics.read_bytes() != text:
        with atomic_write(run.files.metrics) as partial:
            partial.write_bytes(text)
