"""Plots: right places, well-formed SVG, nothing unescaped."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from srd.report.plots import Band, Bar, Series, bar_plot, legend, line_plot, nice_ticks, scatter_plot, thin


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
