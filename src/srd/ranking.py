"""Ranking the training data from easy to hard by reciprocal rank fusion (method: SRD, arXiv 2508.06135)."""

from __future__ import annotations

import logging
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from srd.errors import UserError, nearest
from srd.tables import repeated

logger = logging.getLogger(__name__)

Score = Literal["fused", "rouge_l", "ce", "length", "random"]
SCORES: tuple[str, ...] = ("fused", "rouge_l", "ce", "length", "random")


def average_rank(values: NDArray[np.float64], *, descending: bool = False) -> NDArray[np.float64]:
    """Rank values from 1; equal values share their average rank.

    Args:
        values: Finite numbers, ``[N]``.
        descending: Give rank 1 to the highest value instead of the lowest.

    Returns:
        Ranks, ``[N]``.
    """
    _, group, count = np.unique(-values if descending else values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[group]


def rank(
    scores: Any,
    *,
    k: float = 60,
    by: Score = "fused",
    seed: int = 0,
    bad_rows: Literal["error", "drop"] = "error",
) -> datasets.Dataset:
    """Rank examples from easy to hard.

    ``rank_rouge`` is 1 for the highest ROUGE-L, ``rank_ce`` is 1 for the lowest cross-entropy, and
    ``rrf = 1 / (k + rank_rouge) + 1 / (k + rank_ce)`` fuses them. The easiest example has the highest ``rrf``; ties
    are broken by id, so that the order is the same on every machine.

    Args:
        scores: Rows with ``id``, ``rouge_l`` (0 to 1) and ``ce`` (nats a token): a ``datasets.Dataset``, a pandas or
            polars frame, a pyarrow table, or a list of dicts.
        k: The constant of reciprocal rank fusion.
        by: What decides: ``fused``, or for ablations ``rouge_l``, ``ce``, ``length`` (short references first; needs
            the column ``length``) or ``random``.
        seed: For ``random``.
        bad_rows: A score that is not finite is an error, or the row is dropped with a warning.

    Returns:
        ``id, rouge_l, ce, rank_rouge, rank_ce, rrf, rank`` sorted by ``rank`` (1 is the easiest).

    Raises:
        UserError: missing columns, duplicate ids, no rows, scores that are not finite.
    """
    if by not in SCORES:
        raise UserError(f"unknown score '{by}' to rank by; {nearest(by, SCORES)}")
    if not 0 <= k < np.inf:
        raise UserError(f"k of the rank fusion is {k}, but it must be 0 or more")
    numbers = ["rouge_l", "ce", *(["length"] if by == "length" else [])]
    table = _finite_rows(as_table(scores, ["id", *numbers]), numbers, bad_rows)
    _check_ids(table)
    rouge_l, ce = table["rouge_l"].to_numpy(), table["ce"].to_numpy()
    rank_rouge = average_rank(rouge_l, descending=True)
    rank_ce = average_rank(ce)
    rrf = 1 / (k + rank_rouge) + 1 / (k + rank_ce)
    if by == "length":
        difficulty = table["length"].to_numpy()
    elif by != "random":
        difficulty = {"fused": -rrf, "rouge_l": -rouge_l, "ce": ce}[by]
    else:  # draw in the order of the ids, so that the rows' order does not matter
        difficulty = np.empty(len(table))
        by_id = pc.sort_indices(table, sort_keys=[("id", "ascending")]).to_numpy()
        difficulty[by_id] = np.random.default_rng(seed).random(len(table))
    columns = {
        "id": table["id"],
        "rouge_l": rouge_l,
        "ce": ce,
        "rank_rouge": rank_rouge,
        "rank_ce": rank_ce,
        "rrf": rrf,
    }
    ranked = pa.table({**columns, "difficulty": difficulty})
    ranked = ranked.sort_by([("difficulty", "ascending"), ("id", "ascending")]).drop_columns(["difficulty"])
    ranked = ranked.append_column("rank", pa.array(np.arange(1, len(ranked) + 1)))
    return datasets.Dataset(ranked.combine_chunks())


def as_table(rows: Any, columns: list[str]) -> pa.Table:
    """Turn any common table into an Arrow table and check that it has ``columns``."""
    if isinstance(rows, datasets.Dataset):
        table = rows.with_format("arrow")[:]
    elif isinstance(rows, pa.Table):
        table = rows
    elif hasattr(rows, "__arrow_c_stream__"):  # pandas, polars and most other frames
        table = pa.table(rows)
    elif isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        table = pa.Table.from_pylist(rows)
    else:
        raise UserError(f"cannot rank a {type(rows).__name__}: give a datasets.Dataset, a frame or a list of dicts")
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UserError(f"the scores lack the columns {missing}; they have {table.column_names}")
    if not len(table):
        raise UserError("the scores have no rows: there is nothing to rank")
    return table


def _finite_rows(table: pa.Table, numbers: list[str], bad_rows: str) -> pa.Table:
    """Refuse or drop rows with a missing, NaN or infinite number; ids become strings and numbers float64."""
    table = _cast(table, "id", pa.string(), "names")
    finite = np.ones(len(table), dtype=bool)
    for name in numbers:
        table = _cast(table, name, pa.float64(), "numbers")
        column = pc.fill_null(table[name], float("nan"))
        table = table.set_column(table.column_names.index(name), name, column)
        finite &= np.isfinite(column.to_numpy())
    if finite.all():
        return table
    bad = table.filter(pa.array(~finite))
    shown = ", ".join(
        f"{row['id']} ({', '.join(f'{name} {row[name]}' for name in numbers)})" for row in bad.slice(0, 5).to_pylist()
    ) + (" …" if len(bad) > 5 else "")
    if bad_rows == "error":
        raise UserError(
            f"{len(bad)} of {len(table)} examples have a score that is not finite: {shown}. "
            "Mend or remove them, or set data.bad_rows=drop (--drop-bad) to go on without them."
        )
    logger.warning("dropped %d examples whose score is not finite: %s", len(bad), shown)
    if len(bad) == len(table):
        raise UserError("no example has a finite score: there is nothing to rank")
    return table.filter(pa.array(finite))


def _cast(table: pa.Table, name: str, kind: pa.DataType, meaning: str) -> pa.Table:
    try:
        column = table[name].cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"the column '{name}' does not hold {meaning}: {error}") from error
    return table.set_column(table.column_names.index(name), name, column)


def _check_ids(table: pa.Table) -> None:
    if table["id"].null_count:
        raise UserError(f"{table['id'].null_count} rows of the scores have no id")
    if len(twice := repeated(table["id"])):
        shown = ", ".join(map(str, twice[:5].to_pylist()))
        raise UserError(f"{len(twice)} ids occur more than once in the scores: {shown}. Ids must be unique.")
