"""Plots as inline SVG: lines with shaded bands, scatters and bars, with nothing to load.

Positions inside the frame are percentages, and only lines live in a stretched coordinate system (their
strokes do not scale), so a plot fills the width it is given and its text keeps its size on a telephone.
Colours are CSS values such as ``var(--arm-srd)``; light and dark are the style sheet's business. Tooltips are
SVG titles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from srd.base.text import escape_html as escape

Mark = Literal["dot", "ring", "cross"]


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
    points: Sequence[tuple[float, float]]
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


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten) within ``low..high``."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def padded_range(values: Sequence[float], *, zero: bool = False, room: float = 0.06) -> tuple[float, float]:
    """Return the range of ``values`` with some room at both ends; from 0 with ``zero``."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if zero:
        low = min(low, 0.0)
    span = (high - low) or abs(high) or 1.0
    return (low if zero and low == 0 else low - room * span), high + room * span


@dataclass(frozen=True)
class Frame:
    """The rectangle of a plot in data units; turns data into percentages of width and height."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Return the percentage from the left, kept within 0..100."""
        return min(max(100 * (value - self.x_low) / (self.x_high - self.x_low), 0.0), 100.0)

    def y(self, value: float) -> float:
        """Return the percentage from the top, kept within 0..100."""
        return min(max(100 - 100 * (value - self.y_low) / (self.y_high - self.y_low), 0.0), 100.0)


def line_plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    markers: bool = False,
    height: int = 260,
) -> str:
    """Draw lines over shaded bands.

    Args:
        series: The lines; a point that is not finite interrupts its line.
        title: What a screen reader says.
        x_label: Written under the axis.
        y_label: Written above the axis.
        bands: Shaded stretches of the x axis.
        markers: Draw each point, with its tooltip.
        height: Height of the frame in pixels.
    """
    xs = [x for line in series for x, _ in line.points] + [edge for band in bands for edge in (band.start, band.end)]
    x_low, x_high = min(xs, default=0.0), max(xs, default=1.0)
    y_low, y_high = padded_range([y for line in series for _, y in line.points], room=0.12)
    frame = Frame(min(x_low, 0.0), x_high if x_high > min(x_low, 0.0) else x_low + 1.0, y_low, y_high)
    parts = [
        draw_bands(frame, bands),
        draw_axes(frame, x_label, y_label),
        '<svg class="stretched" width="100%" ',
    ]
    parts.append('height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none">')
    for line in series:
        parts.append(
            f'<path class="line" style="stroke:{escape(line.color)}" d="{path(frame, line.points)}">'
            f"<title>{escape(line.name)}</title></path>"
        )
    parts.append("</svg>")
    if markers:
        parts += [draw_points(frame, line, radius=3.5) for line in series]
    return canvas("".join(parts), title=title, height=height)


def scatter_plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    height: int = 420,
) -> str:
    """Draw points, the first series at the bottom; those beyond a given range lie on its edge.

    Args:
        series: Groups of points, each with its colour and mark.
        title: What a screen reader says.
        x_label: Written under the axis.
        y_label: Written above the axis.
        x_range: Lowest and highest x shown; all points by default.
        y_range: Lowest and highest y shown; all points by default.
        height: Height of the frame in pixels.
    """
    x_low, x_high = x_range or padded_range([x for group in series for x, _ in group.points], zero=True)
    y_low, y_high = y_range or padded_range([y for group in series for _, y in group.points], zero=True)
    frame = Frame(x_low, x_high, y_low, y_high)
    points = "".join(draw_points(frame, group, radius=3.0) for group in series)
    return canvas(draw_axes(frame, x_label, y_label, x_grid=True) + points, title=title, height=height)


def bar_plot(bars: Sequence[Bar], *, title: str) -> str:
    """Draw horizontal bars from zero, each under its label, the spread as a whisker.

    Args:
        bars: The bars, top to bottom; values are 0 or more.
        title: What a screen reader says.
    """
    row_height = 46
    reach = max((bar.value + 1.5 * (bar.std or 0.0) for bar in bars), default=1.0) or 1.0
    parts = []
    for index, bar in enumerate(bars):
        top = index * row_height
        width = 100 * max(bar.value, 0.0) / reach
        color = escape(bar.color)
        parts.append(
            f'<text class="bar-label" x="0" y="{top + 14}">{escape(bar.label)}</text>'
            f'<text class="bar-value" x="100%" y="{top + 14}">{escape(bar.shown)}</text>'
            f'<rect class="bar-track" x="0" y="{top + 21}" width="100%" height="10" rx="2"/>'
            f'<rect x="0" y="{top + 21}" width="{width:.2f}%" height="10" rx="2" style="fill:{color}">'
            f"<title>{escape(bar.title or f'{bar.label}: {bar.shown}')}</title></rect>"
        )
        if bar.std:
            low, high = 100 * max(bar.value - bar.std, 0.0) / reach, 100 * (bar.value + bar.std) / reach
            parts.append(
                f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="{top + 26}" y2="{top + 26}"/>'
                f'<line class="whisker" x1="{low:.2f}%" x2="{low:.2f}%" y1="{top + 22}" y2="{top + 30}"/>'
                f'<line class="whisker" x1="{high:.2f}%" x2="{high:.2f}%" y1="{top + 22}" y2="{top + 30}"/>'
            )
    return canvas("".join(parts), title=title, height=max(len(bars) * row_height - 10, 1), css_class="bars")


def legend(series: Sequence[Series]) -> str:
    """Write the legend of a plot: a mark of each colour and its name, wrapping over lines."""
    items = "".join(
        f'<li><svg width="12" height="12" aria-hidden="true">'
        f"{mark_svg(item.mark, '50%', '50%', item.color, 4.0, '')}</svg>"
        f"{escape(item.name)}</li>"
        for item in series
    )
    return f'<ul class="legend">{items}</ul>'


def canvas(content: str, *, title: str, height: int, css_class: str = "") -> str:
    """Wrap the parts of a plot into its SVG element."""
    return (
        f'<svg class="canvas {css_class}" role="img" aria-label="{escape(title)}" '
        f'width="100%" height="{height}">'
        f"{content}</svg>"
    )


def draw_axes(frame: Frame, x_label: str, y_label: str, *, x_grid: bool = False) -> str:
    """Draw grid lines, tick labels and axis labels."""
    parts = []
    for value in nice_ticks(frame.y_low, frame.y_high):
        at = f"{frame.y(value):.2f}%"
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick y" x="0" y="{at}" dx="-8" dy="4">{tick_text(value)}</text>')
    for value in nice_ticks(frame.x_low, frame.x_high):
        at = f"{frame.x(value):.2f}%"
        if x_grid:
            parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="100%"/>')
        parts.append(f'<text class="tick x" x="{at}" y="100%" dy="18">{tick_text(value)}</text>')
    parts.append('<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>')
    parts.append(f'<text class="axis-label x" x="50%" y="100%" dy="38">{escape(x_label)}</text>')
    parts.append(f'<text class="axis-label y" x="0" y="0" dx="-42" dy="-12">{escape(y_label)}</text>')
    return "".join(parts)


def draw_bands(frame: Frame, bands: Sequence[Band]) -> str:
    """Draw every second band and the label of each that is wide enough to carry it."""
    parts = []
    for index, band in enumerate(bands):
        left, right = frame.x(band.start), frame.x(band.end)
        css_class = "band odd" if index % 2 else "band"
        parts.append(
            f'<rect class="{css_class}" x="{left:.2f}%" y="0" width="{max(right - left, 0):.2f}%" height="100%"/>'
        )
        # At 300 pixels a percent is three pixels: what does not fit is cut to the last word, the number.
        text = band.label if right - left >= 2.2 * len(band.label) else band.label.split()[-1]
        parts.append(f'<text class="band-label" x="{left:.2f}%" y="0" dx="6" dy="15">{escape(text)}</text>')
    return "".join(parts)


def draw_points(frame: Frame, series: Series, radius: float) -> str:
    """Draw the points of a series with their tooltips."""
    titles = series.titles or [series.name] * len(series.points)
    return "".join(
        mark_svg(series.mark, f"{frame.x(x):.2f}%", f"{frame.y(y):.2f}%", series.color, radius, title)
        for (x, y), title in zip(series.points, titles, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    )


def mark_svg(mark: Mark, x: str, y: str, color: str, radius: float, title: str) -> str:
    """Draw one point: a filled dot, a ring or a cross."""
    tooltip = f"<title>{escape(title)}</title>" if title else ""
    if mark == "cross":
        return (
            f'<svg x="{x}" y="{y}" class="cross"><path style="stroke:{escape(color)}" '
            f'd="M-{radius} -{radius}L{radius} {radius}M-{radius} {radius}L{radius} -{radius}">'
            f"{tooltip}</path></svg>"
        )
    paint = f"stroke:{escape(color)}" if mark == "ring" else f"fill:{escape(color)}"
    return f'<circle class="{mark}" cx="{x}" cy="{y}" r="{radius:g}" style="{paint}">{tooltip}</circle>'


def path(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    """Write the path of a line in thousandths of the frame, interrupted where a point is not finite."""
    commands = []
    pen_down = False
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{10 * frame.x(x):.1f} {10 * frame.y(y):.1f}")
        pen_down = True
    return "".join(commands)


def tick_text(value: float) -> str:
    """Write a tick without needless zeros, with thousands as they are spoken: ``2.5``, ``20k``."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def thin(points: Sequence[tuple[float, float]], limit: int = 300) -> list[tuple[float, float]]:
    """Average neighbouring points so that at most ``limit`` are left; x and y are averaged alike."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / limit)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (math.fsum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group)) for group in groups
    ]
