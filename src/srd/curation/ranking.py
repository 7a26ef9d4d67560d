"""Ranking the training data from easy to hard by reciprocal rank fusion (method: SRD, arXiv 2508.06135)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from srd.base.errors import UserError, nearest
from srd.base.limits import LARGEST_K
from srd.base.tables import data_set
from srd.base.text import many, verb
from srd.curation.fusion import FUSIONS, rrf
from srd.curation.scores.base import Score, ScoreInputs, Values, columns_of, one_each, scores_of
from srd.data.rows import as_table, with_ids, with_numbers

logger = logging.getLogger(__name__)

RANKS = {"rouge_l": "rank_rouge", "ce": "rank_ce"}  # a column that goes along where it is there, and that of its rank
TAKEN = ("rank", "kept", "stage", "wrong", "why", "repaired")  # columns of ranked.parquet that are no scores


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
    by: str | Sequence[str] = "fused",
    fusion: str = "rrf",
    seed: int = 0,
    bad_rows: Literal["error", "drop"] = "error",
) -> datasets.Dataset:
    """Rank examples from easy to hard.

    ``rank_rouge`` is 1 for the highest ROUGE-L, ``rank_ce`` is 1 for the lowest cross-entropy, and
    ``rrf = 1 / (k + rank_rouge) + 1 / (k + rank_ce)`` fuses them. The easiest example has the highest ``rrf``; ties
    are broken by id, so that the order is the same on every machine.

    Args:
        scores: Rows with ``id`` (text or whole numbers) and what decides, as a rule ``rouge_l`` (0 to 1) and ``ce``
            (nats a token): a ``datasets.Dataset`` (also after ``select`` or ``filter``), a pandas or polars frame, a
            pyarrow table, or a list of dicts. One row is ranked 1; no row is an error.
        k: The constant of reciprocal rank fusion.
        by: What decides: ``fused`` (``rouge_l`` and ``ce``), or ``rouge_l``, ``ce``, ``length`` (short references
            first; needs the column ``length``), ``random``, another of ``srd/curation/scores`` with its columns, or a
            score that you registered; several names are fused.
        fusion: How several scores are fused: ``rrf``, ``mean_rank`` or ``max_rank`` of their ranks.
        seed: For ``random``.
        bad_rows: A score that decides and is not finite is an error, or the row is dropped with a warning.

    Returns:
        ``id, rouge_l, ce, rank_rouge, rank_ce, rrf, rank`` sorted by ``rank`` (1 is the easiest), and a column for each
        other score that decides. ``rouge_l`` and ``ce`` may be missing where they do not decide.

    Raises:
        UserError: missing columns, duplicate ids, no rows, scores that are not finite.
    """
    chosen, fusion = scores_of(by), FUSIONS.name_of(fusion)
    _check_options(k, seed, bad_rows)
    table = with_ids(as_table(scores, ["id", *columns_of(chosen)], only=True, also=[*RANKS]))
    table, difficulties = _difficulties(finite_rows(table, columns_of(chosen), bad_rows), chosen, seed, bad_rows)
    difficulty = difficulties[0] if len(chosen) == 1 else fused(fusion, difficulties, k, table["id"])
    there = {name: with_numbers(table, name)[name].to_numpy() for name in RANKS if name in table.column_names}
    ranks = {RANKS[name]: _rank_of(each, descending=name == "rouge_l") for name, each in there.items()}
    both = {"rrf": rrf([*ranks.values()], k)} if len(ranks) == len(RANKS) else {}
    numbers = {name: pa.array(each, mask=~np.isfinite(each)) for name, each in {**there, **ranks, **both}.items()}
    columns = {"id": table["id"], **numbers}
    others = {
        score.name: values if score.harder == "high" else -values
        for score, values in zip(chosen, difficulties, strict=True)
        if score.name not in {*columns, *TAKEN}
    }
    ranked = pa.table({**columns, "rank": difficulty, **others})
    ranked = ranked.sort_by([("rank", "ascending"), ("id", "ascending")]).combine_chunks()
    return data_set(ranked.set_column(len(columns), "rank", pa.array(np.arange(1, len(ranked) + 1))))


def _difficulties(
    table: pa.Table, chosen: Sequence[Score], seed: int, bad_rows: str
) -> tuple[pa.Table, list[NDArray[np.float64]]]:
    """The rows for which all scores are finite, and what each score says of them."""
    found = {f"score {score.name}": score.difficulty(ScoreInputs(table, seed)) for score in chosen}
    for name, values in found.items():
        table = table.append_column(name, pa.array(values))
    table = finite_rows(table, [*found], bad_rows)
    return table, [table[name].to_numpy() for name in found]


def _rank_of(values: NDArray[np.float64], *, descending: bool) -> NDArray[np.float64]:
    """Their ranks; NaN for what is not finite, where it does not decide."""
    ranks, fine = np.full(len(values), np.nan), np.isfinite(values)
    ranks[fine] = average_rank(values[fine], descending=descending)
    return ranks


def _check_options(k: float, seed: int, bad_rows: str) -> None:
    if bad_rows not in ("error", "drop"):
        raise UserError(f"unknown bad_rows '{bad_rows}'; {nearest(str(bad_rows), ('error', 'drop'))}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"the seed is {seed!r}, but it must be a whole number of 0 or more")
    if not isinstance(k, int | float) or not 0 <= k <= LARGEST_K:
        raise UserError(f"k of the rank fusion is {k!s:.40}, but it must be between 0 and {LARGEST_K:g}")


def fused(fusion: str, difficulties: Sequence[Values], k: float, ids: pa.ChunkedArray) -> Values:
    """One difficulty for each example from those by several scores."""
    given = FUSIONS.get(fusion)([average_rank(values) for values in difficulties], k)
    return one_each(f"the fusion '{fusion}'", given, ids)


def finite_rows(table: pa.Table, numbers: list[str], bad_rows: str) -> pa.Table:
    """Refuse or drop rows with a missing, NaN or infinite number; numbers become float64."""
    finite = np.ones(len(table), dtype=bool)
    for name in numbers:
        table = with_numbers(table, name)
        finite &= np.isfinite(table[name].to_numpy())
    if finite.all():
        return table
    bad = table.filter(pa.array(~finite))
    shown = ", ".join(
        f"{row['id']} ({', '.join(f'{name} {row[name]}' for name in numbers)})" for row in bad.slice(0, 5).to_pylist()
    ) + (" …" if len(bad) > 5 else "")
    if bad_rows == "error":
        raise UserError(
            f"{len(bad)} of {len(table)} examples {verb(len(bad), 'has', 'have')} a score that is not finite: {shown}. "
            "Correct or remove them, or set data.bad_rows=drop (--drop-bad) to go on without them."
        )
    logger.warning("dropped %s whose score is not finite: %s", many(len(bad), "example"), shown)
    if len(bad) == len(table):
        raise UserError("no example has a finite score: there is nothing to rank")
    return table.filter(pa.array(finite))
