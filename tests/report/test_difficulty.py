"""Which examples are shown, and whether the corrupted ones are found."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from srd.curation.inspect import examples_to_show, sample_evenly
from srd.report.difficulty import corruption_table, detection_auc
from srd.report.reading import RANKED
from srd.sweep.page import corruption_rows


def ranked_rows(count: int, kept: int) -> pa.Table:
    """Rows whose hardness by every score is their rank."""
    rows = [
        {
            "id": f"e{i}",
            "rank": i + 1,
            "kept": i < kept,
            "stage": 0 if i < kept else -1,
            "rrf": 1 / (i + 1),
            "ce": float(i),
            "rouge_l": 1 - i / count,
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=RANKED)


def test_auc_by_hand() -> None:
    # Pairs (positive, negative): 3>1, 3>2, 2>1, 2=2 -> 3.5 of 4.
    assert detection_auc([3, 2, 1, 2], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert math.isnan(detection_auc([1.0, 2.0], [True, True]))


def test_samples_include_both_ends() -> None:
    rows = ranked_rows(101, 101)
    sample = sample_evenly(rows, 11)
    assert sample["rank"].to_pylist() == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101]
    assert sample_evenly(rows, 500) == rows


def test_shown_examples_do_not_overlap_however_few_there_are() -> None:
    assert examples_to_show(ranked_rows(20, 15), 2) == {
        "easiest": ["e0", "e1"],
        "hardest": ["e13", "e14"],
        "dropped": ["e15", "e19"],
    }
    few = examples_to_show(ranked_rows(3, 3), 2)
    assert few == {"easiest": ["e0", "e1"], "hardest": ["e2"], "dropped": []}
    assert examples_to_show(RANKED.empty_table()) == {"easiest": [], "hardest": [], "dropped": []}


def test_shown_examples_follow_the_rank_not_the_row_order() -> None:
    rows = ranked_rows(20, 15)
    assert examples_to_show(rows.sort_by([("rank", "descending")]), 2) == examples_to_show(rows, 2)


def test_corruption_table_by_hand() -> None:
    # Four of ten dropped (e6 to e9); corrupted: e8, e9 (swapped), e0 (truncated).
    corruption = {"e8": "swapped", "e9": "swapped", "e0": "truncated"}
    table = corruption_table(ranked_rows(10, 6), corruption)
    assert table is not None
    assert [column.title for column in table.columns][1:] == [
        "Precision",
        "Recall",
        "AUC",
        "AUC, swapped",
        "AUC, truncated",
    ]
    assert table.rows[0] == ["What was dropped", 0.5, pytest.approx(2 / 3), None, None, None]
    for row in table.rows[1:]:
        assert row[1:] == [0.5, pytest.approx(2 / 3), pytest.approx(14 / 21), 1.0, 0.0]
    assert table.caption.startswith("30% of the training examples were corrupted on purpose; 40% were dropped;")


def test_what_was_dropped_is_that_whatever_chose_it() -> None:
    """As where `score: random` chose: the hardest by the student's answers are other rows."""
    ranked = (
        ranked_rows(10, 6).drop("kept").append_column("kept", pa.array([i >= 4 for i in range(10)]))
    )  # e0 to e3 are dropped
    table = corruption_table(ranked, {"e8": "swapped", "e9": "swapped", "e0": "truncated"})
    assert table is not None
    assert table.rows[0][:3] == ["What was dropped", 0.25, pytest.approx(1 / 3)]
    assert [row[1:3] for row in table.rows[1:]] == [[0.5, pytest.approx(2 / 3)]] * 3
    results: list[Any] = [
        SimpleNamespace(
            outcome=SimpleNamespace(cell=SimpleNamespace(row=row)),
            run=SimpleNamespace(
                ranked=ranked, corruption=lambda: {"e9": "swapped"}, training_examples=10, chosen_otherwise=otherwise
            ),
        )
        for row, otherwise in (("random", ""), ("fresh", "Every pass drew anew."))
    ]
    shown = corruption_rows(results)
    assert shown is not None
    assert [row[:3] for row in shown.rows] == [["random", 0.1, 0.0], ["fresh", 0.1, None]]


def test_no_corruption_no_table() -> None:
    assert corruption_table(ranked_rows(4, 3), {}) is None
    assert corruption_table(ranked_rows(4, 3), {"not ranked": "swapped"}) is None
    assert corruption_table(RANKED.empty_table(), {"e0": "swapped"}) is None
