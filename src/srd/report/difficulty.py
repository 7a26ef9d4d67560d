"""Whether the ranking finds bad rows: those that were corrupted on purpose."""

from __future__ import annotations

import math

import numpy as np
import pyarrow  # type: ignore[import-untyped]
from numpy.typing import ArrayLike
from pyarrow import compute

from srd.base.text import percent
from srd.report.tables import Cell, Column, Table

#: Three ways to call an example hard: a column and 1 where higher is harder; the first is the method's own.
DETECTORS = {"Both, fused": ("rrf", -1), "Cross-entropy": ("ce", 1), "ROUGE-L": ("rouge_l", -1)}


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
        ranked: The ranking.
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
    columns = [Column("Hardness by"), *(Column(title, show=percent, best="max") for title in ("Precision", "Recall"))]
    columns += [Column(title, digits=2, best="max") for title in ("AUC", *(f"AUC, {name}" for name in names))]
    rows: list[list[Cell]] = []
    for detector, (column, sign) in DETECTORS.items():
        scores = sign * ranked[column].to_numpy()
        # Ties in the fused score are broken as the ranking broke them, so that this is what was dropped.
        order = np.lexsort((-ranked["rank"].to_numpy(), -scores))
        found = int(corrupted[order[:dropped]].sum())
        of_kind = [~corrupted | (kinds == name) for name in names]
        aucs = [detection_auc(scores[chosen], corrupted[chosen]) for chosen in (np.full(len(kinds), True), *of_kind)]
        rows.append([detector, found / dropped if dropped else None, found / int(corrupted.sum()), *aucs])
    caption = (
        f"{percent(corrupted.mean())} of the training examples were corrupted on purpose; "
        f"{percent(dropped / len(ranked))} were dropped. "
        "By chance precision would be the first, recall the second of these, and AUC 0.50."
    )
    return Table(columns, rows, caption)
