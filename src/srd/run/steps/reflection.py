"""The reflection: the starting student answers every training prompt."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from srd.curation.reflection import ranking_warnings
from srd.metrics.scripts import words_note
from srd.recipe.schema import Recipe
from srd.run.assemble import keep_scores, load_writer, longest_answer, mean_scores, reflect_on
from srd.run.context import Run
from srd.run.costs import Facts, Phase, inference_memory
from srd.run.steps.base import Step, Summary
from srd.run.steps.cleaning import cleaning_steps

logger = logging.getLogger(__name__)


class Reflection(Step):
    """``reflection/scores.parquet``."""

    name = "reflection"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples", *cleaning_steps(recipe), "student")

    def inputs(self, run: Run) -> list[Any]:
        generation = run.recipe.generation.model_dump()
        return [run.encoding, longest_answer(run), generation, *run.reading()]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.scores]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.batches]

    def cost(self, facts: Facts) -> Phase:
        """The reference is read, and an answer is written behind the same prompt."""
        student = facts.student
        flops = student.forward(facts.prompt, facts.response) + student.forward(0, facts.response)
        tokens = facts.prompt + 2 * facts.response
        memory = inference_memory(student, facts)
        return Phase(self.name, student_passes=1.0, tokens=tokens, flops=flops, memory=memory)

    def make(self, run: Run) -> Summary:
        model = load_writer(run.start_source, run, run.start_options())
        scores = reflect_on(run, model, run.files.batches)
        for warning in ranking_warnings(scores):
            logger.warning(warning)
        summary = {**mean_scores(scores), **words_note(run.words)}
        keep_scores(scores, run.files.scores, run.files.batches)
        return summary
