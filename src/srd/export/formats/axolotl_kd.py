"""Axolotl's distillation from files: rows of the targets stand where the teacher predicts from, labels at their tokens.

Its kernel shifts the labels by one position and leaves the targets where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from srd.curation.curriculum import Stage
from srd.export.base import FORMATS, Exported, Format
from srd.export.curated import start_model
from srd.export.topk import Taught, TaughtStages, nearest_beta, taught_files, write_stages
from srd.export.trainers.axolotl import trained

ROWS, CONFIG = "stage_{}.parquet", "axolotl_kd_stage_{}.yaml"
BETAS = (0.0, 1.0)  # forward and reverse KL
NOTHING = -1e9  # log-probability of rows that do not count
INTS, NESTED = pa.list_(pa.int64()), pa.list_(pa.list_(pa.int64()))
SCHEMA = pa.schema(
    [
        ("input_ids", INTS), ("attention_mask", INTS), ("labels", INTS),
        ("target_token_ids", NESTED), ("target_logprobs", pa.list_(pa.list_(pa.float32()))), ("target_mask", NESTED),
    ]
)  # fmt: skip


def names(exported: Exported) -> list[str]:
    """Rows and a configuration for every stage."""
    return taught_files(exported, [ROWS, CONFIG], BETAS)


def write(exported: Exported, folder: Path) -> None:
    """Write them."""
    taught = TaughtStages(exported)
    write_stages(
        taught, folder, [ROWS, CONFIG], SCHEMA, lambda stage: taught.rows(stage, stage.temperature),
        lambda part: pa.Table.from_pylist([targets(row, taught.k) for row in part], schema=SCHEMA),
        lambda stage: _settings(taught, stage),
    )  # fmt: skip


def targets(row: Taught, k: int) -> dict[str, Any]:
    """A row as Axolotl reads it: the likeliest tokens' probabilities add up to 1."""
    length = len(row.ids)
    tokens, mask = np.zeros((length, k), np.int64), np.zeros((length, k), np.int64)
    logprobs: NDArray[np.float32] = np.full((length, k), NOTHING, np.float32)
    tokens[row.positions], mask[row.positions] = row.tokens, 1
    exact = row.logprobs.astype(np.float64)
    total = np.log(np.exp(exact - exact[:, :1]).sum(1, keepdims=True)) + exact[:, :1]
    logprobs[row.positions] = exact - total
    return {
        "input_ids": row.ids, "attention_mask": [1] * length, "labels": row.labels,
        "target_token_ids": tokens.tolist(), "target_logprobs": logprobs.tolist(), "target_mask": mask.tolist(),
    }  # fmt: skip


def _settings(taught: TaughtStages, stage: Stage) -> Iterator[tuple[str, Any]]:
    start, output = start_model(taught.run), "./outputs/stage_{}"
    yield from trained(taught.run.recipe, start, output.format(stage.index - 1) if stage.index else start).items()
    yield "plugins", ["axolotl.integrations.kd.KDPlugin"]
    yield "kd_trainer", True
    yield "kd_ce_alpha", 1 - stage.weight
    yield "kd_alpha", stage.weight
    yield "kd_temperature", stage.temperature
    yield "kd_beta", nearest_beta(taught.run.recipe, BETAS)[0]
    yield "kd_normalize_topk", True
    yield "datasets", [{"path": f"./{ROWS.format(stage.index)}", "ds_type": "parquet", "type": None}]
    yield "skip_prepare_dataset", True
    yield "remove_unused_columns", False
    yield "output_dir", output.format(stage.index)
    yield "num_epochs", taught.run.recipe.training.epochs


def then(exported: Exported, folder: Path) -> str:
    """What to do with it."""
    return f"cd {folder} && axolotl train {CONFIG.format(0)}, then the next stage"


FORMATS.register("axolotl_kd")(Format("Axolotl KD", names, write, then, takes=("top_k",)))
