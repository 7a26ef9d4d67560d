"""DistillKit's offline logits: the likeliest tokens as bytes, a row for every position, for the token behind it.

Its mask is ``labels >= 0`` at the labels' own positions, not at those that predict them: the distribution of an
answer's first token does not count there, and the row behind its last token does. That row, and all that are not
learnt, give the next token all of the probability.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from srd.curation.curriculum import Stage
from srd.export.base import FORMATS, Exported, Format
from srd.export.curated import start_model, tell_of_lora
from srd.export.topk import IGNORED, Taught, TaughtStages, taught_files, write_stages
from srd.models.tokenizers.tokens import padding_id
from srd.training.arguments import micro_batch_size

ROWS, CONFIG = "stage_{}/data_0.parquet", "distillkit_stage_{}.yaml"
NOTHING = -1e9
ROUND_TO = 8  # lengths are multiples of this
BYTES = pa.list_(pa.list_(pa.uint8()))
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint64())), ("attention_mask", pa.list_(pa.int64())),
        ("labels", pa.list_(pa.int64())), ("compressed_logprobs", BYTES), ("bytepacked_indices", BYTES),
    ]
)  # fmt: skip


def names(exported: Exported) -> list[str]:
    """A folder of rows and a configuration for every stage."""
    tell_of_lora(exported.run, "DistillKit")
    return taught_files(exported, [ROWS, CONFIG], [0.0])  # forward KL is what it is told


def write(exported: Exported, folder: Path) -> None:
    """Write them."""
    taught = TaughtStages(exported)
    length = -(-taught.longest // ROUND_TO) * ROUND_TO
    pad, end = padding_id(taught.run.tokenizer), taught.run.tokenizer.eos_token_id
    write_stages(
        taught, folder, [ROWS, CONFIG], SCHEMA,
        lambda stage: taught.rows(stage, 1.0),  # DistillKit applies the temperature itself
        lambda part: _table([packed(row, taught.k, taught.head.vocabulary, length, pad, end) for row in part]),
        lambda stage: _settings(taught, stage, length),
    )  # fmt: skip


def packed(row: Taught, k: int, vocabulary: int, length: int, pad: int, end: int) -> dict[str, NDArray[Any]]:
    """A row, padded to a length, whose distributions are bytes: little-endian float32, and indices of a few bits."""
    real, more = len(row.ids), length - len(row.ids)
    following = np.array([*row.ids[1:], end, *[pad] * more])
    tokens = np.empty((length, k), np.int64)
    tokens[:, 0] = following
    others = np.arange(k)  # k - 1 ids beside the first, whichever that is
    tokens[:, 1:] = np.where(others[:-1] < following[:, None], others[:-1], others[1:])
    logprobs = np.full((length, k), NOTHING, np.float32)
    logprobs[:, 0] = 0.0
    tokens[row.positions], logprobs[row.positions] = row.tokens, row.logprobs
    return {
        "input_ids": np.array([*row.ids, *[pad] * more], np.uint64),
        "attention_mask": (np.arange(length) < real).astype(np.int64),
        "labels": np.array([*row.labels, *[IGNORED] * more], np.int64),
        "compressed_logprobs": logprobs.astype("<f4").view(np.uint8).reshape(length, -1),
        "bytepacked_indices": pack_bits(tokens, index_bits(vocabulary)),
    }


def index_bits(vocabulary: int) -> int:
    """Bits of an index: the logarithm to the base of 2, rounded up."""
    return max(1, math.ceil(math.log2(vocabulary)))


def pack_bits(values: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Numbers of some bits each, the highest first, one behind the other: ``[T, k] -> [T, ceil(k · bits / 8)]``."""
    single = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.astype(np.uint8).reshape(len(values), -1), axis=1)


def _table(rows: list[dict[str, NDArray[Any]]]) -> pa.Table:
    columns = {}
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        values = np.stack([row[name] for row in rows])
        column = pa.array(values.reshape(-1))
        for size in values.shape[:0:-1]:
            column = pa.ListArray.from_arrays(np.arange(0, len(column) + 1, size, dtype=np.int32), column)
        columns[name] = column.cast(kind)
    return pa.table(columns, schema=SCHEMA)


def _settings(taught: TaughtStages, stage: Stage, length: int) -> Iterator[tuple[str, Any]]:
    training = taught.run.recipe.training
    micro = micro_batch_size(training)
    yield "model", f"./outputs/stage_{stage.index - 1}" if stage.index else start_model(taught.run)
    yield "output_path", f"./outputs/stage_{stage.index}"
    yield "sequence_length", length
    yield "dataset", {
        "train_dataset": {"repo_id": f"./stage_{stage.index}", "split": "train"}, "seed": None, "prepacked": True,
    }  # fmt: skip
    yield "teacher", {
        "kind": "dataset",
        "logprob_compressor": {
            "d": taught.head.vocabulary, "k": taught.k, "exact_k": taught.k, "exact_dtype": "float32",
            "polynomial_terms": None, "residual_bins": [], "delta_encoding": False, "error_diffusion": False,
        },
    }  # fmt: skip
    losses: list[dict[str, Any]] = [{"function": "cross_entropy", "weight": 1 - stage.weight}]
    divergence = {"function": "kl", "weight": stage.weight, "temperature": stage.temperature}
    losses.append({**divergence, "missing_probability_handling": "zero"})
    yield "loss_functions", [loss for loss in losses if loss["weight"] > 0]
    yield "use_flash_attention", False
    yield "training_args", {
        "num_train_epochs": training.epochs, "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": training.batch_size // micro, "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule, "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "remove_unused_columns": False,  # else TRL drops the teacher's
        "report_to": "none",
    }  # fmt: skip


def then(exported: Exported, folder: Path) -> str:
    """What to do with it."""
    return f"cd {folder} && distillkit {CONFIG.format(0)}, then the next stage (it shuffles the rows within a stage)"


FORMATS.register("distillkit")(Format("DistillKit", names, write, then, takes=("top_k",)))
