"""Plots: right places, well-formed SVG, nothing unescaped."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from benchmarks import plots as files
from benchmarks.plots import Interval, LogAxis

from srd.report.plots import (
    Band,
    Bar,
    Series,
    bar_plot,
    legend,
    line_plot,
    nice_ticks,
    padded_range,
    scatter_plot,
    thin,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.31, [0.15, 0.2, 0.25, 0.3]),
        (17.6, 26.9, [18, 20, 22, 24, 26]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0], (0, 0.1)), ([1, 11], (0, 12)), ([10, 20], (9, 21)), ([-1, 9], (-2, 10)), ([math.nan, 5], (4.5, 5.5))],
)
def test_an_axis_has_room_but_none_below_zero_for_what_is_never_below(
    values: list[float], expected: tuple[float, float]
) -> None:
    assert padded_range(values, room=0.1) == pytest.approx(expected)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_scatter_puts_points_where_they_belong() -> None:
    groups = [
        Series("kept", "red", [(0.0, 0.0), (2.0, 1.0)], ["first", "second"]),
        Series("dropped", "blue", [(9.0, 0.5), (math.nan, 0.5)], mark="ring"),
    ]
    tree = parse(scatter_plot(groups, title="map", x_label="x", y_label="y", x_range=(0, 4), y_range=(0, 2)))
    circles = [(c.get("cx"), c.get("cy"), c.get("class"), c.findtext("title")) for c in tree.iter("circle")]
    assert circles == [
        ("0.00%", "100.00%", "dot", "first"),
        ("50.00%", "50.00%", "dot", "second"),
        ("100.00%", "75.00%", "ring", "dropped"),  # beyond the axis: on its edge; the unknown one is left out
    ]
    assert tree.get("aria-label") == "map"


def test_line_breaks_where_a_value_is_missing() -> None:
    line = Series("loss", "red", [(0, 1), (1, 2), (2, math.nan), (3, 2), (4, 1)])
    tree = parse(line_plot([line], title="t", x_label="x", y_label="y"))
    [drawn] = [p.get("d") or "" for p in tree.iter("path")]
    assert drawn.count("M") == 2 and drawn.count("L") == 2
    assert drawn.startswith("M0.0 ") and "L1000.0 " in drawn


def test_an_axis_begins_where_the_points_begin_unless_it_counts_from_zero() -> None:
    line = Series("a", "red", [(6.0, 1.0), (7.0, 2.0)])
    for zero in (True, False):
        plot = line_plot([line], title="", x_label="x", y_label="y", from_zero=zero)
        ticks = re.findall(r">(\d(?:\.\d+)?)</text>", plot)
        assert ("0" in ticks) == zero and "6" in ticks
    assert line_plot([], title="", x_label="x", y_label="y", from_zero=False)


def test_bands_cover_the_axis() -> None:
    bands = [Band(0, 1, "stage 1"), Band(1, 4, "stage 2")]
    tree = parse(line_plot([Series("a", "red", [(0, 0), (4, 1)])], title="t", x_label="x", y_label="y", bands=bands))
    rectangles = [(r.get("x"), r.get("width")) for r in tree.iter("rect")]
    assert rectangles == [("0.00%", "25.00%"), ("25.00%", "75.00%")]


def test_bars_are_proportional_and_whiskers_fit() -> None:
    tree = parse(bar_plot([Bar("a", 10, "10", "red"), Bar("b", 20, "20", "red", std=4)], title="t"))
    widths = [float((r.get("width") or "").rstrip("%")) for r in tree.iter("rect") if r.get("class") is None]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.02)
    assert all(0 <= float((line.get("x2") or "").rstrip("%")) <= 100 for line in tree.iter("line"))


def test_bars_of_nothing_do_not_divide_by_zero() -> None:
    assert 'width="0.00%"' in bar_plot([Bar("a", 0.0, "0 s", "red")], title="t")


def test_texts_are_escaped() -> None:
    hostile = '"><script>alert(1)</script>'
    series = [Series(hostile, "red", [(0, 0), (1, 1)], [hostile, hostile], "cross")]
    for svg in (
        scatter_plot(series, title=hostile, x_label=hostile, y_label=hostile),
        line_plot(series, title=hostile, x_label=hostile, y_label=hostile, bands=[Band(0, 1, hostile)], markers=True),
        bar_plot([Bar(hostile, 1, hostile, "red")], title=hostile),
        legend(series),
    ):
        assert "<script" not in svg
        parse(svg)


def test_empty_plots_are_drawn() -> None:
    parse(line_plot([], title="t", x_label="x", y_label="y"))
    parse(scatter_plot([], title="t", x_label="x", y_label="y"))


def test_thinning_keeps_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned[0] == (4.5, 0.5)
    assert thin(points[:50], 100) == points[:50]


def test_logarithmic_axes() -> None:
    axis = LogAxis("rows", 10, 100_000)
    assert [axis.at(value) for value in (10, 1000, 100_000)] == pytest.approx([0, 50, 100])
    assert [text for _, text in axis.ticks] == ["10", "100", "1k", "10k", "100k"]
    assert [text for _, text in LogAxis("rows", 0.9, 5).ticks] == ["1", "2", "4"]


SVG = "{http://www.w3.org/2000/svg}"


def test_files_stand_alone() -> None:
    lines = [Series("ours", "var(--arm-srd)", [(1, 1), (10, 10), (100, 100)])]
    tree = parse(files.log_plot(lines, title="<speed>", x_label="rows", y_label="seconds"))
    assert tree.tag == f"{SVG}svg" and tree.get("aria-label") == "<speed>"
    assert "--arm-srd:" in (tree.findtext(f"{SVG}style") or "")
    assert [circle.get("cx") for circle in tree.iter(f"{SVG}circle") if circle.get("class")] == [
        "0.00%", "50.00%", "100.00%"]  # fmt: skip
    assert parse(files.bar_plot([Bar("a", 1, "1 s", "red")], title="t")).get("viewBox") == "0 0 640 156"


def test_intervals_beside_zero_are_in_colour() -> None:
    rows = [Interval("up", 1, 0.5, 2), Interval("level", 0, -1, 1), Interval("down", -1, -2, -0.5)]
    tree = parse(files.interval_plot(rows, title="t"))
    dots = [(dot.get("cx"), (dot.get("style") or "").split(":")[1]) for dot in tree.iter(f"{SVG}circle")]
    assert dots == [("75.00%", "var(--arm-srd)"), ("50.00%", "var(--soft)"), ("25.00%", "var(--dropped)")]
    assert tree.find(f".//{SVG}title") is not None
    assert "up: +1.00 (+0.50 to +2.00)" in [title.text for title in tree.iter(f"{SVG}title")]
