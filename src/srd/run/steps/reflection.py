"""The reflection: the starting student answers every training prompt."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from srd.base import parallel
from srd.base.console import console
from srd.base.tables import column, positions, write_table
from srd.curation.reflection import own_losses, ranking_warnings
from srd.metrics.scripts import words_note
from srd.run.context import Run, load_options, made_options
from srd.run.outline import order
from srd.run.parts.assemble import training_of
from srd.run.parts.loading import load_writer
from srd.run.parts.scores import longest_answer, mean_scores, reflect_on
from srd.run.steps.base import Step, Summary
from srd.run.steps.student import Student, reflecting_student, shorten
from srd.training.stages import train

logger = logging.getLogger(__name__)


class Reflection(order.Reflection, Step):
    """``reflection/scores.parquet``, and beside it what other scores need of the same reading."""

    def inputs(self, run: Run) -> list[Any]:
        recipe, way = run.recipe, run.recipe.out_of_sample
        usual = [run.encoding, longest_answer(run), recipe.generation.model_dump(), *run.reading()]
        if way == "off":
            return usual
        return [*usual, way, *([recipe.reflection.folds] if way == "cross_fit" else []), *Student().inputs(run)]

    def outputs(self, run: Run) -> list[Path]:
        logs = [run.files.log(label) for label in fold_labels(run)]
        return [run.files.scores, run.files.own_losses, *logs]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.batches, *([run.files.folds] if run.recipe.out_of_sample == "cross_fit" else [])]

    def told(self, run: Run, summary: Summary) -> str:
        return (
            f"the student's answers have a mean ROUGE-L of {100 * summary['mean_rouge_l']:.1f}, "
            f"its surprise is {summary['mean_ce']:.2f} nats a token"
        )

    def make(self, run: Run) -> Summary:
        if run.recipe.out_of_sample == "cross_fit":
            scores = self._cross_fit(run)
        else:
            source, options = reflecting_student(run)
            scores = reflect_on(run, load_writer(source, run, options), run.files.batches)
        for warning in ranking_warnings(scores):
            logger.warning(warning)
        summary: Summary = {**mean_scores(scores), **words_note(run.words)}
        folders = [run.files.batches / label for label in fold_labels(run)] or [run.files.batches]
        parallel.on_main(lambda: write_table(own_losses(folders, column(scores, "id")), run.files.own_losses))
        parallel.on_main(lambda: write_table(scores, run.files.scores))
        if knows := _knows_rows(run):
            console.print(f"  the student {knows} on these rows: what it knows by heart says little of their "
                          "difficulty (reflection.out_of_sample)", highlight=False)  # fmt: skip
            summary["in_sample"] = True
        return summary

    def _cross_fit(self, run: Run) -> datasets.Dataset:
        """Scores of each fold by a student that was warmed up on the others, in the order of the rows."""
        ids = list(run.split("train")["id"])
        fold = folds_of(ids, run.recipe.reflection.folds, run.recipe.seed)
        parts = []
        for number, label in enumerate(fold_labels(run)):
            source = self._warmed_up(run, label, {name for name, own in zip(ids, fold, strict=True) if own != number})
            model = load_writer(str(source), run, made_options(run.recipe))
            places = np.flatnonzero(fold == number)
            parts.append(reflect_on(run, model, run.files.batches / label, places))
        both = datasets.concatenate_datasets(parts)
        return both.select(positions(ids, both))

    def _warmed_up(self, run: Run, label: str, others: set[str]) -> Path:
        """A student that has seen these rows alone, from the same start and by the same warm-up."""
        student, work = run.recipe.student, run.files.folds / label
        assert student.warm_start is not None
        shorten(run, work / "shortened")
        source = str(work / "shortened") if student.drop_layers else str(student.model)
        options = made_options(run.recipe) if student.drop_layers else load_options(student)
        with training_of(run, label, student.warm_start, work, source, options) as training:
            stages = [replace(stage, ids=[name for name in stage.ids if name in others]) for stage in training.stages]
            train(replace(training, stages=stages), work / "student")
        return work / "student"


def _knows_rows(run: Run) -> str:
    """How the student that reflects has come to know the rows; nothing where it has not seen them."""
    student, teacher = run.recipe.student, run.recipe.teacher
    if student.model is None and teacher.sft:  # so is each fold's: the teacher has seen all rows
        return "is made of the teacher, which was fine-tuned"
    return "was warmed up" if run.recipe.out_of_sample == "off" and student.warm_start else ""


def fold_labels(run: Run) -> list[str]:
    """What the warm-ups of folds are called."""
    count = run.recipe.reflection.folds if run.recipe.out_of_sample == "cross_fit" else 0
    return [f"fold_{number}" for number in range(count)]


def folds_of(ids: list[str], count: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, ``[N]``: of equal size, and the same whatever the order of the rows."""
    order = sorted(range(len(ids)), key=lambda row: hashlib.blake2b(f"{seed}:{ids[row]}".encode()).digest())
    folds = np.zeros(len(ids), dtype=np.int64)
    folds[order] = np.arange(len(ids)) % count
    return folds
