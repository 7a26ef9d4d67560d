"""What chosen scores need beyond the reflection: likelihoods of the references, the teacher's losses, likeness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from srd.base import parallel
from srd.base.files import remove
from srd.base.tables import column, write_table
from srd.curation.copies import near_copies
from srd.curation.likelihoods import likelihoods
from srd.curation.scores.base import NEEDS, PASSES, measured_needs
from srd.recipe.schema import Recipe
from srd.run.context import Run
from srd.run.costs import Facts, Phase, inference_memory
from srd.run.identity import model_identity
from srd.run.loading import load_reader
from srd.run.scores import teacher_losses
from srd.run.steps.base import Step, Summary
from srd.run.steps.cleaning import cleaning_steps
from srd.run.steps.student import reflecting_student, teaching_steps


class Measures(Step):
    """``reflection/measures.parquet``, where a curriculum ranks by more than the reflection gives."""

    name = "measures"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        needs, steps = needs_of(recipe), ["examples", *cleaning_steps(recipe)]
        if needs & PASSES.keys() and recipe.out_of_sample != "before":
            steps.append("student")
        if "teacher" in needs:
            steps += ["teacher", *_caching(recipe)]
        return tuple(steps)

    def inputs(self, run: Run) -> list[Any]:
        before = [model_identity(run.recipe.student)] if run.recipe.out_of_sample == "before" else []
        return [run.encoding, sorted(needs_of(run.recipe)), run.recipe.generation.batch_size, *before]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.measures]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.measured]

    def cost(self, facts: Facts) -> Phase:
        """A pass of the student over the responses for each kind of prompt, and one of the teacher without a cache."""
        needs = needs_of(facts.recipe)
        alone = facts.student.forward(0, facts.response) if "unprompted" in needs else 0.0
        behind = sum(PASSES[need] for need in needs & PASSES.keys() - {"unprompted"})
        flops = alone + behind * facts.student.forward(facts.prompt, facts.response)
        live = "teacher" in needs and (not _caching(facts.recipe) or not facts.cache_fits)
        flops += facts.teacher.forward(facts.prompt, facts.response) if live else 0.0
        tokens = behind * (facts.prompt + facts.response) + ("unprompted" in needs) * facts.response
        return Phase(
            self.name, student_passes=behind + ("unprompted" in needs), teacher_passes=float(live), tokens=tokens,
            flops=flops, memory=inference_memory(facts.student, facts) if flops else 0.0,
        )  # fmt: skip

    def told(self, run: Run, summary: Summary) -> str:
        return ", ".join(f"mean {name.removeprefix('mean_')} {value:.4g}" for name, value in summary.items())

    def make(self, run: Run) -> Summary:
        needs = needs_of(run.recipe)
        columns = {name: values for name, values in self._read(run, needs).items() if name not in ("ce", "length")}
        if "teacher" in needs:
            columns[NEEDS["teacher"]] = teacher_losses(run, run.files.measured / "teacher")
        if "likeness" in needs:
            columns[NEEDS["likeness"]] = parallel.on_main(lambda: near_copies(run.split("train")).likeness)
        if parallel.is_main():
            table = pa.table({"id": column(run.split("train"), "id"), **columns})
            write_table(datasets.Dataset(table), run.files.measures)
            remove(run.files.measured)
        parallel.barrier()
        return {f"mean_{name}": round(float(np.mean(values)), 4) for name, values in columns.items()}

    def _read(self, run: Run, needs: set[str]) -> dict[str, Any]:
        if not needs & PASSES.keys():
            return {}
        source, options = reflecting_student(run)  # scores join what it says here with what it says in reflecting
        model = load_reader(source, run, options)
        with run.progress("student reads") as update:
            return likelihoods(
                model, run.encoder, run.split("train"), needs, encoded=run.token_ids("train"),
                batch_size=run.recipe.generation.batch_size, folder=run.files.measured / "student", progress=update,
            )  # fmt: skip


def needs_of(recipe: Recipe) -> set[str]:
    """What the curricula of a recipe rank by beside the reflection and the rows themselves."""
    scores = [training.curriculum.score for training in recipe.arms.values() if training.curriculum is not None]
    return {need for score in scores for need in measured_needs(score)}


def measuring_steps(score: str | list[str]) -> list[str]:
    """The step that a ranking by some scores comes after, beside the reflection."""
    return [Measures.name] if measured_needs(score) else []


def _caching(recipe: Recipe) -> list[str]:
    """The step that fills the cache of a training that ranks by what the teacher says."""
    found = [teaching_steps(recipe, training) for training in recipe.arms.values() if training.curriculum is not None]
    return ["cache"] if any("cache" in steps for steps in found) else []
