"""Curated data for any other trainer: reflection, ranking and stages, without the training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

from srd.base import parallel
from srd.base.errors import UserError
from srd.base.files import atomic_write, file_digest, remove, write_json
from srd.base.locks import held
from srd.base.tables import positions
from srd.curation.curriculum import Curriculum, Stage
from srd.data.batching import LengthBatches
from srd.data.examples import row_of
from srd.run.assemble import ranked_scores
from srd.run.context import Run
from srd.run.flow import advance

WRITTEN = "stages.json"  # what `curate` has written into a folder: the digest of every file; null while it writes


def curate(run: Run, target: Path) -> list[Path]:
    """Reflect, rank and stage only: ``stage_0.jsonl …``, in the order of the curriculum, for any other trainer.

    Each row has its content in the shape in which srd reads it (``instruction``, ``input`` and ``output``, or
    ``prompt`` and ``completion``, or ``messages`` with the answer last; ``references`` where there are several) and
    ``id, rank, rouge_l, ce, stage, temperature, weight``.

    Raises:
        UserError: another command works in ``target``, or a file is in the way that curate has not written.
    """
    curriculum = run.curriculum_of(run.recipe.training) or Curriculum()
    names = [f"stage_{index}.jsonl" for index in range(curriculum.stages)]
    with contextlib.ExitStack() as stack:
        if target.resolve() == run.folder.resolve():
            raise UserError(f"-o {target} is the run directory. Choose another folder.")
        parallel.on_main(lambda: stack.enter_context(held(target, "-o")))
        parallel.on_main(lambda: _check_ours(target, names))
        advance(run, "ranking")
        stages = curriculum.split(ranked_scores(run, curriculum))
        parallel.on_main(lambda: _write_stages(run, stages, target))
    return [target / name for name in names] if parallel.is_main() else []


def _check_ours(target: Path, names: list[str]) -> None:
    """Refuse to write over, or to remove, what this command has not written itself."""
    before = _written(target)
    for name in sorted({*names, WRITTEN, *before}):
        path = target / name
        if not path.exists() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path} is in the way: it is no plain file. Move it, or choose another -o.")
        if name == WRITTEN:
            continue
        if name not in before or before[name] not in (None, file_digest(path)):
            what = "has been changed since" if name in before else "was not written by srd curate"
            raise UserError(f"{path} {what} and would be lost. Move it, or choose another -o.")


def _written(target: Path) -> dict[str, str | None]:
    """The files that former calls have written, with their digests."""
    path = target / WRITTEN
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        if not all(Path(name).name == name and name.startswith("stage_") for name in files):
            raise ValueError("a name that is no stage's")
        return dict(files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what srd curate writes. Move it, or choose another -o.") from error


def _write_stages(run: Run, stages: list[Stage], target: Path) -> None:
    """Write the stages, and remove those of a former call; what is ours is noted before it is there."""
    before, names = _written(target), [f"stage_{stage.index}.jsonl" for stage in stages]
    write_json(target / WRITTEN, {"files": {**before, **dict.fromkeys(names)}})
    ranks, rows = datasets.Dataset(pq.read_table(run.files.ranked)), run.split("train")
    for stage, name in zip(stages, names, strict=True):
        ids = _first_pass(run, stage)
        chosen, ranked = (table.select(positions(ids, table)) for table in (rows, ranks))
        with atomic_write(target / name) as partial, open(partial, "w", encoding="utf-8") as file:
            for row, rank in zip(chosen, ranked, strict=True):
                file.write(json.dumps(curated(row, rank, stage), ensure_ascii=False) + "\n")
    for name in before.keys() - set(names):
        remove(target / name)
    write_json(target / WRITTEN, {"files": {name: file_digest(target / name) for name in names}})


def _first_pass(run: Run, stage: Stage) -> list[str]:
    """The examples of a stage; where every pass draws its own, those of the first."""
    if stage.subset is None:
        return stage.ids
    seed = run.seed_of(run.recipe.training) + stage.index
    drawn = LengthBatches([1] * len(stage.ids), 1, seed=seed, subset=stage.subset).order()
    return [stage.ids[i] for i in drawn]


def curated(example: Mapping[str, Any], ranked: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """An example as a row that srd reads back as the same example, with its place in the curriculum."""
    return {
        **row_of(example), "rank": ranked["rank"],
        "rouge_l": ranked["rouge_l"], "ce": ranked["ce"], "stage": stage.index,
        "temperature": stage.temperature, "weight": stage.weight,
    }  # fmt: skip
