"""Curated data for any other trainer: reflection, ranking and stages, without the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

from srd import parallel
from srd.artifacts import atomic_write
from srd.curriculum import Curriculum, Stage
from srd.pipeline import ranked_scores, run_ranking
from srd.run import Run
from srd.tables import positions


def curate(run: Run, target: Path) -> list[Path]:
    """Reflect, rank and stage only: ``stage_0.jsonl …``, in the order of the curriculum, for any other trainer.

    Each row has ``id, instruction, input, output, messages, stage, rank, temperature, weight`` as far as they apply.
    """
    curriculum = run.curriculum_of(run.recipe.training) or Curriculum()
    run_ranking(run)
    stages = curriculum.split(ranked_scores(run, curriculum))
    ranks, rows = datasets.Dataset(pq.read_table(run.ranked_file)), run.split("train")
    paths = []
    for stage in stages if parallel.is_main() else []:
        path = target / f"stage_{stage.index}.jsonl"
        chosen, ranked = (table.select(positions(stage.ids, table)) for table in (rows, ranks))
        with atomic_write(path) as partial, open(partial, "w", encoding="utf-8") as file:
            for row, rank in zip(chosen, ranked, strict=True):
                file.write(json.dumps(_curated(row, rank, stage), ensure_ascii=False) + "\n")
        paths.append(path)
    return paths


def _curated(row: dict[str, Any], ranked: dict[str, Any], stage: Stage) -> dict[str, Any]:
    content = {key: row[key] for key in ("instruction", "input", "messages", "prompt") if row[key]}
    return {
        "id": row["id"], **content, "output": row["references"][0], "rank": ranked["rank"],
        "rouge_l": ranked["rouge_l"], "ce": ranked["ce"], "stage": stage.index,
        "temperature": stage.temperature, "weight": stage.weight,
    }  # fmt: skip
