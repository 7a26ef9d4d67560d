"""How hard each training example is for the student: what to show, and whether it finds bad rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from srd.report import words
from srd.report.run_files import Row
from srd.report.tables import Cell, Column, Table

#: Three ways to call an example hard, higher is harder; the first is the method's own.
DETECTORS: dict[str, Callable[[Row], float]] = {
    "Both, fused": lambda row: -float(row["rrf"]),
    "Cross-entropy": lambda row: float(row["ce"]),
    "ROUGE-L": lambda row: -float(row["rouge_l"]),
}


def sample_evenly(rows: Sequence[Row], limit: int) -> list[Row]:
    """Take at most ``limit`` rows at even distances, the first and the last included, nothing random."""
    if len(rows) <= limit:
        return list(rows)
    if limit < 2:
        return list(rows[:limit])
    return [rows[round(index * (len(rows) - 1) / (limit - 1))] for index in range(limit)]


def examples_to_show(ranked: Sequence[Row], count: int = 4) -> dict[str, list[str]]:
    """Choose the training examples that the report prints, so that the student can answer just these.

    Args:
        ranked: Rows with ``id``, ``rank``, ``kept``, as in ``curriculum/ranked.parquet``.
        count: How many of each group.

    Returns:
        Ids in the groups ``easiest`` and ``hardest`` (of those kept) and ``dropped`` (over all ranks).
    """
    ordered = sorted(ranked, key=lambda row: row["rank"])
    kept = [str(row["id"]) for row in ordered if row["kept"]]
    easiest = kept[:count]
    hardest = kept[max(len(kept) - count, len(easiest)) :]
    dropped = [row for row in ordered if not row["kept"]]
    return {
        "easiest": easiest,
        "hardest": hardest,
        "dropped": [str(row["id"]) for row in sample_evenly(dropped, count)],
    }


def detection_auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
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


def corruption_table(ranked: Sequence[Row], corruption: dict[str, str]) -> Table | None:
    """Ask whether the corrupted examples were the ones dropped, for the fused rank and for each score alone.

    Args:
        ranked: Rows of ``curriculum/ranked.parquet``.
        corruption: Example id -> kind of corruption, empty for clean rows.

    Returns:
        A row for each way to call an example hard, None without corruption. Precision: the corrupted among as
        many of the hardest as were dropped; recall: those of all corrupted; AUC: over all and for each kind.
    """
    kinds = [corruption.get(str(row["id"]), "") for row in ranked]
    names = sorted(set(kinds) - {""})
    if not names:
        return None
    dropped = sum(not row["kept"] for row in ranked)
    columns = [Column("Hardness by"), Column("Precision", show=words.percent, best="max")]
    columns += [Column("Recall", show=words.percent, best="max"), Column("AUC", digits=2, best="max")]
    columns += [Column(f"AUC, {name}", digits=2, best="max") for name in names]
    rows: list[list[Cell]] = []
    for detector, hardness in DETECTORS.items():
        scores = [hardness(row) for row in ranked]
        # Ties in the fused score are broken as the ranking broke them, so that this is what was dropped.
        order = sorted(range(len(ranked)), key=lambda i: (-scores[i], -ranked[i]["rank"]))
        found = sum(bool(kinds[i]) for i in order[:dropped])
        cells: list[Cell] = [detector, found / dropped if dropped else None, found / sum(map(bool, kinds))]
        cells.append(detection_auc(scores, [bool(kind) for kind in kinds]))
        for name in names:
            chosen = [i for i, kind in enumerate(kinds) if kind in ("", name)]
            cells.append(detection_auc([scores[i] for i in chosen], [kinds[i] == name for i in chosen]))
        rows.append(cells)
    base = sum(map(bool, kinds)) / len(kinds)
    caption = (
        f"{words.percent(base)} of the training examples were corrupted on purpose; "
        f"{words.percent(dropped / len(kinds))} were dropped. "
        "By chance precision would be the first, recall the second of these, and AUC 0.50."
    )
    return Table(columns, rows, caption)
