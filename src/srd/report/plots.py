"""Plots as SVG with nothing to load, for a page: lines with shaded bands, scatters, and bars.

Positions inside the frame are percentages, so a plot fills the width it is given and its text keeps its size on a
telephone. Colours are CSS values such as ``var(--arm-srd)``, which the style sheet knows for light and for dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from srd.report.html import macro

Mark = Literal["dot", "ring", "cross"]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Args:
        name: What the legend says.
        color: A CSS colour.
        points: (x, y) in data units; points that are not finite are left out.
        titles: A tooltip for each point, or none at all.
        mark: How ``scatter_plot`` draws a point.
    """

    name: str
    color: str
    points: Points
    titles: Sequence[str] = ()
    mark: Mark = "dot"


@dataclass(frozen=True)
class Band:
    """A shaded stretch of the x axis with a label."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: label, length in data units, the text at its end, colour, spread, and tooltip."""

    label: str
    value: float
    shown: str
    color: str
    std: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis in data units, which turns values into percentages of its length.

    Args:
        label: Written beside it.
        low: Value at 0 %.
        high: Value at 100 %.
        up: Whether it points up, while SVG counts from the top.
    """

    label: str
    low: float
    high: float
    up: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value, kept within 0..100."""
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return 100 * (1 - share if self.up else share)

    @property
    def ticks(self) -> list[tuple[str, str]]:
        """Places and texts of the ticks."""
        return [(f"{self.at(value):.2f}", tick_text(value)) for value in nice_ticks(self.low, self.high)]


def nice_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers (1, 2, 2.5 or 5 times a power of ten) within ``low..high``."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Write a tick without needless zeros, large numbers as they are spoken: ``2.5``, ``20k``."""
    size, unit = next((each for each in ((1e6, "M"), (1e3, "k")) if abs(value) >= 10 * each[0]), (1, ""))
    return f"{value / size:g}{unit}".replace("-", "\N{MINUS SIGN}")


def padded_range(values: Sequence[float], *, zero: bool = False, room: float = 0.06) -> tuple[float, float]:
    """Return the range of ``values`` with some room at both ends, but none below 0 where no value is.

    With ``zero`` it begins at 0 at the latest.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if zero:
        low = min(low, 0.0)
    span = (high - low) or abs(high) or 1.0
    return (max(low - room * span, 0.0) if low >= 0 else low - room * span), high + room * span


def line_plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    markers: bool = False,
    from_zero: bool = True,
) -> Markup:
    """Draw lines over shaded bands.

    Args:
        series: The lines; a point that is not finite interrupts its line.
        title: What a screen reader says.
        x_label: Written under the axis.
        y_label: Written above the axis.
        bands: Shaded stretches of the x axis.
        markers: Draw each point, with its tooltip.
        from_zero: Begin the x axis at 0 at the latest; else where the points begin.
    """
    xs = [x for line in series for x, _ in line.points] + [edge for band in bands for edge in (band.start, band.end)]
    x_low, x_high = min([*xs, 0.0] if from_zero else xs, default=0.0), max(xs, default=1.0)
    y_low, y_high = padded_range([y for line in series for _, y in line.points], room=0.12)
    x = Axis(x_label, x_low, x_high if x_high > x_low else x_low + 1.0)
    y = Axis(y_label, y_low, y_high, up=True)
    return _canvas(framed(series, x, y, bands=bands, lines=True, radius=3.5 if markers else 0), title, 260)


def scatter_plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Draw points, the first series at the bottom; those beyond a given range lie on its edge.

    Args:
        series: Groups of points, each with its colour and mark.
        title: What a screen reader says.
        x_label: Written under the axis.
        y_label: Written above the axis.
        x_range: Lowest and highest x shown; all points by default.
        y_range: Lowest and highest y shown; all points by default.
    """
    x_range = x_range or padded_range([x for group in series for x, _ in group.points], zero=True)
    y_range = y_range or padded_range([y for group in series for _, y in group.points], zero=True)
    x, y = Axis(x_label, *x_range), Axis(y_label, *y_range, up=True)
    return _canvas(framed(series, x, y, radius=3, x_grid=True), title, 420)


def bar_plot(bars: Sequence[Bar], *, title: str) -> Markup:
    """Draw horizontal bars from zero, each under its label, the spread as a whisker.

    Args:
        bars: The bars, top to bottom; values are 0 or more.
        title: What a screen reader says.
    """
    drawn, height = bars_and_height(bars)
    return _canvas(drawn, title, height, "bars")


def bars_and_height(bars: Sequence[Bar]) -> tuple[Markup, int]:
    """The bars without a frame, and how high they are."""
    reach = max((bar.value + 1.5 * (bar.std or 0.0) for bar in bars), default=1.0) or 1.0

    def place(value: float) -> str:
        return f"{100 * max(value, 0.0) / reach:.2f}"

    rows = []
    for number, bar in enumerate(bars):
        whisker = (place(bar.value - bar.std), place(bar.value + bar.std)) if bar.std else None
        tooltip = bar.title or f"{bar.label}: {bar.shown}"
        rows.append((46 * number, bar.label, bar.shown, bar.color, tooltip, place(bar.value), whisker))
    return macro("plots.j2", "bars", rows=rows), max(46 * len(bars) - 10, 1)


def legend(series: Sequence[Series]) -> Markup:
    """Write the legend of a plot: a mark of each colour and its name, wrapping over lines."""
    return macro("plots.j2", "legend", entries=[(item.name, item.mark, item.color) for item in series])


def framed(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    bands: Sequence[Band] = (),
    lines: bool = False,
    radius: float = 0,
    x_grid: bool = False,
) -> Markup:
    """Draw axes, bands, lines, and points where they have a radius."""
    paths = [(line.name, line.color, path(line.points, x, y)) for line in series] if lines else []
    groups = [(group.mark, group.color, _points(group, x, y)) for group in series] if radius else []
    stretches = []
    for band in bands:
        left, width = x.at(band.start), max(x.at(band.end) - x.at(band.start), 0.0)
        # At 300 pixels a percent is three pixels: what does not fit is cut to the last word, the number.
        label = band.label if width >= 2.2 * len(band.label) else band.label.split()[-1]
        stretches.append((f"{left:.2f}", f"{width:.2f}", label))
    drawn = {"bands": stretches, "lines": paths, "groups": groups, "radius": radius, "x_grid": x_grid}
    return macro("plots.j2", "plot", x=x, y=y, **drawn)


def _points(series: Series, x: Axis, y: Axis) -> list[tuple[str, str, str]]:
    """Places and tooltips of the finite points of a series."""
    titles = series.titles or [series.name] * len(series.points)
    return [
        (f"{x.at(left):.2f}%", f"{y.at(top):.2f}%", title)
        for (left, top), title in zip(series.points, titles, strict=True)
        if math.isfinite(left) and math.isfinite(top)
    ]


def path(points: Points, x: Axis, y: Axis) -> str:
    """Write the path of a line in thousandths of the frame, interrupted where a point is not finite."""
    commands = []
    pen_down = False
    for left, top in points:
        if not (math.isfinite(left) and math.isfinite(top)):
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{10 * x.at(left):.1f} {10 * y.at(top):.1f}")
        pen_down = True
    return "".join(commands)


def _canvas(content: Markup, title: str, height: int, kind: str = "") -> Markup:
    return macro("plots.j2", "canvas", content=content, title=title, height=height, kind=kind)


def thin(points: Points, limit: int = 300) -> list[tuple[float, float]]:
    """Average neighbouring points so that at most ``limit`` are left; x and y are averaged alike."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / limit)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (math.fsum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group)) for group in groups
    ]
