"""Tables in four formats."""

from __future__ import annotations

import csv
import io
import math
from xml.etree import ElementTree

import pytest

from srd.report.tables import (
    MISSING,
    Column,
    Measure,
    Table,
    best_cells,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
)

TABLE = Table(
    columns=[Column("model"), Column("ROUGE-L", best="max"), Column("seconds", digits=0, best="min")],
    rows=[
        ["teacher", Measure(27.2, 0.2), None],
        ["kd_a", Measure(23.34, 0.4), 324.0],
        ["srd", Measure(24.1), 207.0],
    ],
    outside=frozenset({0}),
)


def test_markdown() -> None:
    assert to_markdown(TABLE) == (
        "| model | ROUGE-L | seconds |\n"
        "|---|---:|---:|\n"
        f"| teacher | 27.2 ± 0.2 | {MISSING} |\n"
        "| kd\\_a | 23.3 ± 0.4 | 324 |\n"
        "| srd | **24.1** | **207** |\n"
    )


def test_csv_is_unrounded_with_the_spread_apart() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows[0] == ["model", "ROUGE-L mean", "ROUGE-L std", "seconds"]
    assert rows[1] == ["teacher", "27.2", "0.2", ""]
    assert rows[2] == ["kd_a", "23.34", "0.4", "324.0"]
    assert rows[3] == ["srd", "24.1", "", "207.0"]


def test_latex_escapes_and_captions() -> None:
    latex = to_latex(Table(TABLE.columns, TABLE.rows, caption="50% & more", outside=TABLE.outside))
    assert "\\begin{tabular}{lrr}" in latex
    assert "kd\\_a & 23.3 $\\pm$ 0.4 & 324 \\\\" in latex
    assert "srd & \\textbf{24.1} & \\textbf{207} \\\\" in latex
    assert "\\caption{50\\% \\& more}" in latex
    assert "\\begin{table}" not in to_latex(TABLE)


def test_html_is_well_formed_and_escaped() -> None:
    hostile = Table([Column("<b>"), Column("x", best="max")], [["<script>", 1.0], ["a & b", 2.0]], caption="<i>")
    html = to_html(hostile)
    tree = ElementTree.fromstring(f"<div>{html}</div>")
    assert "<script" not in html and "<b>" not in html and "<i>" not in html
    assert [cell.text for cell in tree.iter("th")] == ["<b>", "x", "<script>", "a & b"]
    assert [cell.text for cell in tree.iter("strong")] == ["2.0"]


def test_markdown_cell_stays_in_its_cell() -> None:
    text = to_markdown(Table([Column("a|b")], [["one\ntwo | *three*"]]))
    assert text.splitlines()[2] == "| one two \\| \\*three\\* |"


def test_equal_shown_values_share_the_bold() -> None:
    table = Table([Column("x", best="max")], [[1.04], [1.01], [0.9]])
    assert best_cells(table) == {(0, 0), (1, 0)}


@pytest.mark.parametrize("rows", [[[1.0]], [[1.01], [1.02]], [[None], [2.0]], [[math.nan], [2.0]], [[2.0], [math.inf]]])
def test_no_bold_without_a_contest(rows: list[list[float | None]]) -> None:
    assert best_cells(Table([Column("x", best="max")], rows)) == set()


def test_what_is_not_finite_is_shown_as_missing() -> None:
    assert to_markdown(Table([Column("x")], [[math.nan], [Measure(math.nan, 0.1)]])).count(f"| {MISSING} |") == 2


def test_ragged_row_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 2 cells, the table has 1 columns"):
        Table([Column("x")], [[1], [1, 2]])


def test_columns_can_be_picked() -> None:
    table = Table([Column("a"), Column("b"), Column("c")], [[1, None, 3]], outside=frozenset({0}))
    assert table.without_empty_columns().rows == [[1, 3]]
    picked = table.pick(lambda column: column.title != "a")
    assert ([column.title for column in picked.columns], picked.rows, picked.outside) == (
        ["b", "c"],
        [[None, 3]],
        {0},
    )


def test_a_column_of_unknowns_stands_as_its_numbers_would() -> None:
    columns = [
        Column("name"),
        Column("text"),
        Column("share", show=str),
        Column("score", digits=2),
        Column("best", best="max"),
    ]
    assert Table(columns, [["a", None, None, None, None]]).numeric() == [False, False, True, True, True]
