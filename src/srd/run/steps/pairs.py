"""Two texts of every training prompt, written once: the teacher's and the starting student's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srd.base.text import many
from srd.models.generation import Decoding
from srd.recipe.schema import Recipe
from srd.run.context import Run
from srd.run.outline import order
from srd.run.parts.pairs import PAIR
from srd.run.steps.base import Step, Summary
from srd.run.steps.teacher import write_text


class Pairs(order.Pairs, Step):
    """``pairs/teacher.parquet`` and ``pairs/student.parquet``, as `TEACHER_TEXT` has it."""

    def decoding(self, recipe: Recipe) -> Decoding:
        """How both write: as the trainings say, which agree but for the length, of which the greatest counts."""
        methods: list[Any] = [each.method for each in recipe.variants.values() if each.on_pairs]
        longest = max(method.longest_text() for method in methods)
        return Decoding(longest, methods[0].temperature, methods[0].top_p, seed=recipe.seed)

    def inputs(self, run: Run) -> list[Any]:
        generation, decoding = run.recipe.generation, self.decoding(run.recipe)
        how = [decoding.max_new_tokens, decoding.temperature, decoding.top_p, decoding.seed]
        return [run.encoding, run.teacher_frame, how, generation.engine, generation.batch_size]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.pair_text(who) for who in PAIR]

    def told(self, run: Run, summary: Summary) -> str:
        return f"{many(summary['examples'], 'prompt')} answered by both, {summary['cut']:,} answers cut"

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.pairs_work]

    def make(self, run: Run) -> Summary:
        decoding, files = self.decoding(run.recipe), run.files
        told = [write_text(run, who, decoding, files.pair_text(who), files.pairs_work / who) for who in PAIR]
        return {"examples": told[0]["examples"], "cut": sum(each["cut"] for each in told)}
