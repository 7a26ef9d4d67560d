"""The ranking: rank the training data and lay out the stages of the main training's curriculum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from srd.base import parallel
from srd.base.files import content_of
from srd.base.tables import write_table
from srd.base.text import many
from srd.curation.curriculum import Curriculum
from srd.curation.settings import LATER
from srd.run.context import Run
from srd.run.identity import plugins_identity
from srd.run.outline import order
from srd.run.parts.scores import ranked_scores, with_marks
from srd.run.steps.base import Step, Summary


class Ranking(order.Ranking, Step):
    """``curriculum/ranked.parquet``."""

    def curriculum(self, run: Run) -> Curriculum:
        """The main training's curriculum; the paper's where it has none."""
        return run.curriculum_of(run.recipe.training) or Curriculum()

    def inputs(self, run: Run) -> list[Any]:
        idle = ("temperature", "weight", "reflect_again", *LATER)  # what the stages hold does not follow from them
        settings = self.curriculum(run).model_dump(exclude=set(idle))
        marks = [content_of(run.files.marked)] if run.recipe.data.cleaning.changes_rows else []
        own = plugins_identity(run.recipe, self.curriculum(run), "score", "fusion")
        return [settings, run.recipe.data.bad_rows, *marks, *own]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.ranked]

    def told(self, run: Run, summary: Summary) -> str:
        if self.curriculum(run).order == "fresh":
            return f"{many(summary['kept'] + summary['dropped'], 'example')} ranked; every pass draws anew from all"
        return f"{many(summary['kept'], 'example')} kept, the hardest {summary['dropped']:,} dropped"

    def work_out(self, run: Run) -> None:
        curriculum = self.curriculum(run)
        self._laid_out = curriculum.assign(ranked_scores(run, curriculum))

    def make(self, run: Run) -> Summary:
        laid_out = self._laid_out
        del self._laid_out  # a step is there as long as its command
        if parallel.is_main():
            marked = run.recipe.data.cleaning.action != "off"
            write_table(with_marks(run, laid_out) if marked else laid_out, run.files.ranked)
        kept = np.asarray(laid_out["kept"])
        return {"kept": int(np.sum(kept)), "dropped": int(np.sum(~kept))}
