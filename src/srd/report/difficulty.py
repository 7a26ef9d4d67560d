"""How hard each training example is for the student: what to show, and whether it finds bad rows."""

from __future__ import annotations

import math

import numpy as np
import pyarrow  # type: ignore[import-untyped]
from numpy.typing import ArrayLike
from pyarrow import compute

from srd.report import words
from srd.report.tables import Cell, Column, Table

#: Three ways to call an example hard: a column and 1 where higher is harder; the first is the method's own.
DETECTORS = {"Both, fused": ("rrf", -1), "Cross-entropy": ("ce", 1), "ROUGE-L": ("rouge_l", -1)}


def sample_evenly(rows: pyarrow.Table, limit: int) -> pyarrow.Table:
    """Take at most ``limit`` rows at even distances, the first and the last included, nothing random."""
    return rows.take(np.linspace(0, len(rows) - 1, limit).round().astype(int)) if len(rows) > limit else rows


def examples_to_show(ranked: pyarrow.Table, count: int = 4) -> dict[str, list[str]]:
    """Choose the training examples that the report prints, so that the student can answer just these.

    Args:
        ranked: Has ``id``, ``rank``, ``kept``, as ``curriculum/ranked.parquet``.
        count: How many of each group.

    Returns:
        Ids in the groups ``easiest`` and ``hardest`` (of those kept) and ``dropped`` (over all ranks).
    """
    ordered = ranked.select(["id", "rank", "kept"]).sort_by("rank")
    kept, dropped = ordered.filter(ordered["kept"]), ordered.filter(compute.invert(ordered["kept"]))
    groups = {
        "easiest": kept[:count],
        "hardest": kept[max(len(kept) - count, min(count, len(kept))) :],
        "dropped": sample_evenly(dropped, count),
    }
    return {name: group["id"].to_pylist() for name, group in groups.items()}


def detection_auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, ties half.

    NaN where there is no positive or no negative.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    negatives = np.sort(values[~labels])
    if not labels.any() or not len(negatives):
        return math.nan
    below = np.searchsorted(negatives, values[labels], side="left")
    not_above = np.searchsorted(negatives, values[labels], side="right")
    return float(np.mean((below + not_above) / 2) / len(negatives))


def corruption_table(ranked: pyarrow.Table, corruption: dict[str, str]) -> Table | None:
    """Ask whether the corrupted examples were the ones dropped, for the fused rank and for each score alone.

    Args:
        ranked: ``curriculum/ranked.parquet``.
        corruption: Id of each corrupted example -> kind of corruption.

    Returns:
        A row for each way to call an example hard, None without corruption. Precision: the corrupted among as
        many of the hardest as were dropped; recall: those of all corrupted; AUC: over all and for each kind.
    """
    known = pyarrow.array(corruption, pyarrow.string())
    place = compute.fill_null(compute.index_in(ranked["id"], value_set=known), len(known)).to_numpy()
    kinds = np.array([*corruption.values(), ""])[place]  # of every ranked example
    corrupted = kinds != ""
    names = sorted(set(kinds[corrupted].tolist()))
    if not names:
        return None
    dropped = len(ranked) - compute.sum(ranked["kept"]).as_py()
    columns = [Column("Hardness by"), Column("Precision", show=words.percent, best="max")]
    columns += [Column("Recall", show=words.percent, best="max"), Column("AUC", digits=2, best="max")]
    columns += [Column(f"AUC, {name}", digits=2, best="max") for name in names]
    rows: list[list[Cell]] = []
    for detector, (column, sign) in DETECTORS.items():
        scores = sign * ranked[column].to_numpy()
        # Ties in the fused score are broken as the ranking broke them, so that this is what was dropped.
        order = np.lexsort((-ranked["rank"].to_numpy(), -scores))
        found = int(corrupted[order[:dropped]].sum())
        cells: list[Cell] = [detector, found / dropped if dropped else None, found / int(corrupted.sum())]
        cells.append(detection_auc(scores, corrupted))
        for name in names:
            chosen = ~corrupted | (kinds == name)
            cells.append(detection_auc(scores[chosen], corrupted[chosen]))
        rows.append(cells)
    base = corrupted.mean()
    caption = (
        f"{words.percent(base)} of the training examples were corrupted on purpose; "
        f"{words.percent(dropped / len(ranked))} were dropped. "
        "By chance precision would be the first, recall the second of these, and AUC 0.50."
    )
    return Table(columns, rows, caption)
