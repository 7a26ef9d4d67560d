"""Curated data for any other trainer: reflection, ranking and stages, without the training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from srd.base import parallel
from srd.base.errors import UserError
from srd.base.files import write_json_lines
from srd.base.locks import held
from srd.base.owned import OwnedFiles
from srd.base.remedies import warn
from srd.base.tables import data_set, positions
from srd.base.text import many, percent
from srd.curation.curriculum import Curriculum, Stage
from srd.data.batching import LengthBatches
from srd.data.examples import row_of
from srd.run.context import Run
from srd.run.flow import advance
from srd.run.parts.scores import ranked_scores

logger = logging.getLogger(__name__)

WRITTEN = "stages.json"  # what `curate` has written into a folder: the digest of every file; null while it writes
AT_ONCE = 1000  # rows that are laid out together


class Layout:
    """How curated rows are laid out for those who read them: as they are, with nothing beside them."""

    def check(self, run: Run) -> None:
        """Refuse a run whose rows cannot be laid out so, before anything is computed."""

    def names(self, stages: int) -> list[str]:
        """The files that `write` writes beside so many stages, as paths below the folder."""
        return []

    def columns(self, run: Run, examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the row of each example has beyond the example and its place in the curriculum."""
        return [{} for _ in examples]

    def write(self, curated: Curated) -> None:
        """Write the files beside the stages."""


def curate(run: Run, target: Path, layout: Layout | None = None) -> list[Path]:
    """Reflect, rank and stage only: ``stage_0.jsonl …``, in the order of the curriculum, for any other trainer.

    Each row has its content in the shape in which srd reads it (``instruction``, ``input`` and ``output``, or
    ``prompt`` and ``completion``, or ``messages`` with the answer last; ``references`` where there are several) and
    ``id, rank, rouge_l, ce, stage, temperature, weight`` (with paced rows also ``row_weight``); a layout adds columns,
    and files beside the stages.

    Raises:
        UserError: another command works in ``target``, or a file is in the way that curate has not written.
    """
    layout = layout or Layout()
    curriculum = curriculum_of(run)
    names = [*map(stage_file, range(curriculum.stages)), *layout.names(curriculum.stages)]
    files = OwnedFiles(target, WRITTEN, "srd curate")
    with contextlib.ExitStack() as stack:
        if target.resolve() == run.folder.resolve():
            raise UserError(f"-o {target} is the run directory. Choose another folder.")
        parallel.on_main(lambda: stack.enter_context(held(target, "-o")))
        parallel.on_main(lambda: files.check(names))
        layout.check(run)
        advance(run, "ranking")
        curated = Curated(run, learnt_stages(run, curriculum.split(ranked_scores(run, curriculum))), target)
        parallel.on_main(lambda: _write(curated, layout, files, names))
    return [target / name for name in names] if parallel.is_main() else []


def learnt_stages(run: Run, stages: list[Stage]) -> list[Stage]:
    """The stages without the rows that are softened: a file cannot say that there is no cross-entropy on a row."""
    soft = parallel.on_main(run.soft_rows)
    if soft:
        warn(
            logger,
            f"data.cleaning is soften: {many(len(soft), 'row')} in doubt would be learnt as all others, so that "
            "the files are without.",
            "To train on what the teacher says of such rows, use srd run.",
        )
    return [stage.without(soft) for stage in stages] if soft else stages


def curriculum_of(run: Run) -> Curriculum:
    """The curriculum by which a run's data are curated: its training's, or else the usual one, with a warning."""
    own = run.curriculum_of(run.recipe.training)
    if own is None:
        usual = Curriculum()
        warn(
            logger,
            f"this recipe trains without a curriculum; its rows are put into {usual.stages} stages, of the easiest "
            f"{percent(usual.select)}, all the same.",
            "Set training.curriculum.stages and the like to choose, or stages=1 select=1 for all rows at once.",
        )
        return usual
    return own


def stage_file(index: int) -> str:
    """The name of a stage's file."""
    return f"stage_{index}.jsonl"


@dataclass(frozen=True)
class Curated:
    """The stages of a run, and the folder that they are written into."""

    run: Run
    stages: list[Stage]
    folder: Path

    @property
    def epochs(self) -> float:
        """Passes over each stage."""
        return self.run.recipe.training.epochs

    @property
    def _seed(self) -> int:
        return self.run.seed_of(self.run.recipe.training)

    def passes(self, stage: Stage) -> Iterator[list[str]]:
        """The examples of every pass over a stage, in their order; a last pass may be cut short."""
        return passes_of(stage, self.epochs, self._seed)

    def first_pass(self, stage: Stage) -> list[str]:
        """What stands in the file of a stage."""
        return _drawn(stage, self._seed, 0)

    def rows(self, stage: Stage, ids: list[str], layout: Layout) -> Iterator[dict[str, Any]]:
        """The rows of some examples, in this order."""
        ranks, examples = data_set(pq.read_table(self.run.files.ranked)), self.run.split("train")
        chosen, ranked = (table.select(positions(ids, table)) for table in (examples, ranks))
        for start in range(0, len(ids), AT_ONCE):
            part = range(start, min(start + AT_ONCE, len(ids)))
            batch = chosen.select(part).to_list()
            more = layout.columns(self.run, batch)
            for example, rank, columns in zip(batch, ranked.select(part), more, strict=True):
                yield {**curated(example, rank, stage), **columns}

    @property
    def summary(self) -> list[dict[str, Any]]:
        """What each stage is, for those who train on it."""
        return [
            {
                "stage": stage.index, "file": stage_file(stage.index), "rows": stage.size, "passes": self.epochs,
                "temperature": stage.temperature, "weight": stage.weight,
            }
            for stage in self.stages
        ]  # fmt: skip


def passes_of(stage: Stage, passes: float, seed: int) -> Iterator[list[str]]:
    """The examples of so many passes over a stage, in their order; the last may be cut short.

    Where every pass draws its own, it does as in a training with this seed.
    """
    whole, part = int(passes), passes - int(passes)
    for epoch in range(whole):
        yield _drawn(stage, seed, epoch)
    if count := round(part * stage.size):
        yield _drawn(stage, seed, whole)[:count]


def _drawn(stage: Stage, seed: int, epoch: int) -> list[str]:
    """The examples of one pass."""
    if stage.subset is None:
        return stage.ids
    drawn = LengthBatches([1] * len(stage.ids), 1, seed=seed + stage.index, subset=stage.subset)
    drawn.set_epoch(epoch)
    return [stage.ids[i] for i in drawn.order()]


def _write(made: Curated, layout: Layout, files: OwnedFiles, names: list[str]) -> None:
    """Write the stages and what stands beside them; what is ours is noted before it is there."""
    files.begin(names)
    for stage in made.stages:
        write_json_lines(made.folder / stage_file(stage.index), made.rows(stage, made.first_pass(stage), layout))
    layout.write(made)
    files.finish(names, stages=made.summary)


def curated(example: Mapping[str, Any], ranked: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """An example as a row that srd reads back as the same example, with its place in the curriculum."""
    return {
        **row_of(example), "rank": ranked["rank"],
        "rouge_l": ranked["rouge_l"], "ce": ranked["ce"], "stage": stage.index,
        "temperature": stage.temperature, "weight": stage.weight,
        **({"row_weight": stage.row_weights[example["id"]]} if stage.row_weights else {}),
    }  # fmt: skip
