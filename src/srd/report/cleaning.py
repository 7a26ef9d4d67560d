"""What the cleaning has found: rows by reason, the scores with their thresholds, and the surest rows of each kind."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
from markupsafe import Markup

from srd.base.text import many, percent
from srd.curation.cleaning import bad_end
from srd.curation.detectors.base import DETECTORS, HELD_OUT, REWRITTEN, reason_of
from srd.report.answers import Answer, Card, by_id, card
from srd.report.plots import Band, Series, line_plot
from srd.report.reading import Row, RunFiles, parse_json, read_file, read_parquet
from srd.report.tables import Column, Table, to_html

SUREST = 20  # rows of each reason
BINS = 40
UNDAMAGED = "not damaged"
#: Columns of the marks that are no detector's.
OTHERS = {"id", HELD_OUT, "wrong", "why", "repaired", "response_before", "response_after"}
#: What became of marked rows, where that is more than that they were dropped.
FATES = {
    "report": "Rows that are marked were only marked.",
    "soften": "Rows that are marked keep their text, without cross-entropy; those that are empty, named or there twice "
    "were dropped.",
}
OUTERMOST = 0.5  # per cent of the rows beyond each end of a plot


class Reason(NamedTuple):
    """Rows that are wrong for one reason, the surest of them as cards."""

    title: str
    cards: list[Card]


def marks_of(run: RunFiles, columns: list[str] | None = None) -> pyarrow.Table:
    """What was found of each row; nothing where the recipe does not clean, or has other rows or detectors.

    Marks stay in the run directory where another recipe has made them there.
    """
    found: list[str] = read_file(run.files.marked, lambda path: pyarrow.parquet.read_schema(path).names, [])
    marks = read_parquet(run.files.marked, columns=columns)
    if not len(marks) or run.cleaning == "off" or {*found} - OTHERS != {*run.detectors}:
        return marks[:0]
    rows = read_parquet(run.files.examples("train"), columns=["id"])
    return marks if len(rows) and marks["id"].equals(rows["id"]) else marks[:0]


def cleaning_section(run: RunFiles) -> dict[str, Any]:
    """Counts by reason, the scores of each contrast with its threshold, and rows to unfold."""
    marks = marks_of(run)
    if not len(marks):
        return {"marked": None}
    detectors: dict[str, Row] = read_file(run.files.detectors, parse_json, {})
    why = np.asarray(marks["why"].to_pylist(), dtype=object)
    why[(why == "") & marks["repaired"].to_numpy(zero_copy_only=False).astype(bool)] = REWRITTEN
    names, counts = np.unique(why[why != ""].astype(str), return_counts=True)
    reasons = [str(names[i]) for i in np.argsort(-counts, kind="stable")]
    damage = damage_table(marks, run.corruption())
    cards = [reason(run, marks, why, name) for name in reasons]
    plots = {caption(name, row): score_plot(marks, name, row) for name, row in detectors.items()}
    return {
        "marked": to_html(reason_table(why, reasons, detectors)),
        "score_plots": {title: plot for title, plot in plots.items() if plot},
        "blind": [called for name, row in detectors.items() for called in blind(name, row)],
        "reasons": cards,
        "fates": sorted({card.label for each in cards for card in each.cards}),
        "damage": to_html(damage) if damage else None,
        "action": run.cleaning,
        "fate": FATES.get(run.cleaning, "Rows that are marked and not answered anew were dropped."),
    }


def caption(name: str, detector: Row) -> str:
    """What a plot of a detector's scores shows."""
    told = ", with the threshold of most rows; other groups have their own" if detector.get("elsewhere") else ""
    return f"{name}: rows that {reason_of(name)}{told}"


def blind(name: str, detector: Row) -> list[str]:
    """A detector's name where it could not tell, with the group of rows where that is not that of most."""
    others = [f"{name} ({group})" for group, row in detector.get("elsewhere", {}).items() if not row["can_tell"]]
    return [*([] if detector["can_tell"] else [name]), *others]


def reason_table(why: Any, reasons: list[str], detectors: dict[str, Row]) -> Table:
    """A row for each reason, and one for the rows that are not marked."""
    columns = [Column("Rows that …"), Column("Found by"), Column("Rows", digits=0), Column("Share", show=percent)]
    columns += [Column("AUC on self-made damage", digits=2)]
    rows: list[list[Any]] = []
    for name in reasons:
        count = int((why == name).sum())
        rows.append([reason_of(name), name, count, count / len(why), detectors.get(name, {}).get("auc")])
    right = int((why == "").sum())
    return Table(columns, [*rows, ["are not marked", None, right, right / len(why), None]])


def damage_table(marks: pyarrow.Table, damaged: dict[str, str]) -> Table | None:
    """How many rows were marked of each kind of damage that was made on purpose; None where there is none.

    Args:
        marks: What was found of each row.
        damaged: Id of each damaged row -> kind of damage; the cleaning has not seen it.
    """
    if not damaged:
        return None
    kinds = np.array([damaged.get(name, UNDAMAGED) for name in marks["id"].to_pylist()])
    wrong = marks["wrong"].to_numpy(zero_copy_only=False).astype(bool)
    repaired = marks["repaired"].to_numpy(zero_copy_only=False).astype(bool)
    columns = [Column("Rows that were"), *(Column(title, digits=0) for title in ("Rows", "Marked"))]
    columns += [Column("Share", show=percent), Column("Answered anew", digits=0)]
    rows: list[list[Any]] = []
    for kind in [*sorted(set(damaged.values())), UNDAMAGED]:
        own = kinds == kind
        found = int((own & wrong).sum())
        share = found / int(own.sum()) if own.any() else None
        rows.append([kind, int(own.sum()), found, share, int((own & wrong & repaired).sum())])
    return Table(columns, rows)


def found_sentences(run: RunFiles) -> list[str]:
    """Say how many rows were marked as wrong, and, where rows were damaged on purpose, how many of those."""
    marks = marks_of(run, columns=["id", "wrong", "repaired"])
    if not len(marks):
        return []
    wrong, repaired = (int(np.sum(marks[name].to_numpy(zero_copy_only=False))) for name in ("wrong", "repaired"))
    told = f"Cleaning marked {wrong:,} of {many(len(marks), 'training row')}"
    table = damage_table(marks, run.corruption())
    if table is not None:
        parts = [f"{row[2]:,} of the {row[1]:,} that were {row[0]}" for row in table.rows]
        told += f", without being told which are damaged: {', '.join(parts[:-1])}, and {parts[-1]}"
    return [f"{told}.", *([f"The teacher answered {repaired:,} anew."] if repaired else [])]


def score_plot(marks: pyarrow.Table, name: str, detector: Row) -> Markup:
    """How many rows have which score, those beyond the threshold shaded."""
    values = marks[name].to_numpy(zero_copy_only=False)
    values = values[np.isfinite(values)]
    if not len(values):
        return Markup("")
    low, high = (float(value) for value in np.percentile(values, [OUTERMOST, 100 - OUTERMOST]))
    counts, edges = np.histogram(values, BINS, (low, high) if high > low else (low - 1, low + 1))
    line = Series("rows", "var(--arm-srd)", list(zip((edges[:-1] + edges[1:]) / 2, counts.astype(float), strict=True)))
    bands = []
    if detector.get("threshold") is not None:
        edge = float(np.clip(bad_end(name) * detector["threshold"], edges[0], edges[-1]))
        bands = [Band(*((edge, float(edges[-1])) if bad_end(name) > 0 else (float(edges[0]), edge)), "wrong")]
    return line_plot([line], title=f"Rows by {name}", x_label=name, y_label="rows", bands=bands, from_zero=False)


def reason(run: RunFiles, marks: pyarrow.Table, why: Any, name: str) -> Reason:
    """The surest rows of a reason, with their response before and after."""
    places = np.flatnonzero(why == name)
    scores = np.zeros(len(places))
    if name in marks.column_names:
        sign = bad_end(name) if name in DETECTORS and DETECTORS.get(name).damage else 1.0
        scores = sign * marks[name].to_numpy(zero_copy_only=False)[places]
    surest = places[np.argsort(-scores, kind="stable")][:SUREST].tolist()
    rows = marks.take(surest).to_pylist()
    examples = by_id(read_parquet(run.files.examples("train"), [row["id"] for row in rows]))
    cards = []
    for row in rows:
        said = name if name == REWRITTEN else "marked" if run.cleaning == "report" else _fate(row)
        score = row.get(name)
        facts = [f"{name} {score:.2f}"] if isinstance(score, float) and math.isfinite(score) else []
        answers = [Answer(said.capitalize(), row["response_after"], "ours")] if row["repaired"] else []
        if row["id"] in examples:
            cards.append(card(said, examples[row["id"]], facts, answers))
    return Reason(f"Rows that {reason_of(name)}: {len(places):,}", cards)


def _fate(row: Row) -> str:
    """What became of a row that is wrong."""
    if row["repaired"]:
        return "repaired"
    return "dropped" if row["response_after"] is None else "kept, softened"
