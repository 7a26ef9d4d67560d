"""Whether the ranking finds bad rows: those that were corrupted on purpose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray
from pyarrow import compute

from srd.base.text import percent
from srd.report.tables import Cell, Column, Table

#: Three ways to call an example hard: a column and 1 where higher is harder; the first is the method's own.
DETECTORS = {"both, fused": ("rrf", -1), "cross-entropy": ("ce", 1), "ROUGE-L": ("rouge_l", -1)}


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
    """Ask whether the corrupted examples are the ones that were dropped, and the ones that are hard by each score.

    Args:
        ranked: The ranking.
        corruption: Id of each corrupted example -> kind of corruption.

    Returns:
        A row for what was dropped, whatever chose it, and one for each way to call an example hard; None without
        corruption. Precision: the corrupted among the dropped, or among as many of the hardest; recall: those of all
        corrupted; AUC: of that hardness, over all and for each kind.
    """
    known = pyarrow.array(corruption, pyarrow.string())
    place = compute.fill_null(compute.index_in(ranked["id"], value_set=known), len(known)).to_numpy()
    kinds = np.array([*corruption.values(), ""])[place]  # of every ranked example
    corrupted = kinds != ""
    names = sorted(set(kinds[corrupted].tolist()))
    if not names:
        return None
    dropped = ~ranked["kept"].to_numpy()
    columns = [Column("Examples"), *(Column(title, show=percent, best="max") for title in ("Precision", "Recall"))]
    columns += [Column(title, digits=2, best="max") for title in ("AUC", *(f"AUC, {name}" for name in names))]
    rows: list[list[Cell]] = [["What was dropped", *_found(corrupted, dropped), *[None] * (1 + len(names))]]
    for detector, (column, sign) in DETECTORS.items():
        scores = sign * ranked[column].to_numpy()
        order = np.lexsort((-ranked["rank"].to_numpy(), -scores))  # ties as the ranking broke them
        of_kind = [~corrupted | (kinds == name) for name in names]
        aucs = [detection_auc(scores[chosen], corrupted[chosen]) for chosen in (np.full(len(kinds), True), *of_kind)]
        rows.append([f"Hardest by {detector}", *_found(corrupted, order[: int(dropped.sum())]), *aucs])
    caption = (
        f"{percent(corrupted.mean())} of the training examples were corrupted on purpose; "
        f"{percent(dropped.mean())} were dropped; the other lines are as many of the hardest. "
        "By chance precision would be the first, recall the second of these, and AUC 0.50."
    )
    return Table(columns, rows, caption, outside=frozenset({0}))


def _found(corrupted: NDArray[np.bool_], chosen: NDArray[Any]) -> list[Cell]:
    """Precision and recall of the chosen examples, a mask or places; no precision where none is chosen."""
    found, count = int(corrupted[chosen].sum()), len(corrupted[chosen])
    return [found / count if count else None, found / int(corrupted.sum())]
