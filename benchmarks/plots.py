"""Plots as files of their own, for the documents: lines over plain or logarithmic axes, bars, intervals around zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srd.base.files import write_text
from srd.report.html import environment
from srd.report.plots import Axis, Bar, Series, bars_and_height, framed, padded_range


@dataclass(frozen=True)
class Interval:
    """A value with the two ends of its interval."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LogAxis(Axis):
    """A logarithmic axis.

    Args:
        marked: Values with a tick; none: powers of ten, or of two where there is less than a decade and a half.
    """

    marked: Sequence[float] = ()

    def at(self, value: float) -> float:
        """The place of a value, kept within 0..100."""
        return Axis(self.label, math.log(self.low), math.log(self.high), self.up).at(math.log(value))

    @property
    def ticks(self) -> list[tuple[str, str]]:
        """Places and texts of the ticks."""
        return [(f"{self.at(value):.2f}", short(value)) for value in self.marked or self._powers()]

    def _powers(self) -> list[float]:
        base = 10.0 if self.high / self.low > 30 else 2.0
        first, last = math.ceil(math.log(self.low, base) - 1e-9), math.floor(math.log(self.high, base) + 1e-9)
        return [base**power for power in range(first, last + 1)]


def short(value: float) -> str:
    """A number in three digits: ``2.5``, ``20k``."""
    size, unit = next((each for each in ((1e6, "M"), (1e3, "k")) if abs(value) >= each[0]), (1, ""))
    return f"{value / size:.3g}{unit}"


def write_plot(path: Path, drawing: str) -> None:
    """Write a plot as a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{drawing.strip()}\n")


def line_plot(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> str:
    """Lines with their points, from 0 on."""
    xs, ys = ([point[axis] for line in series for point in line.points] for axis in (0, 1))
    x, y = Axis(x_label, 0.0, max(xs)), Axis(y_label, *padded_range(ys, room=0.12), up=True)
    return _file(framed(series, x, y, lines=True, radius=3.5), title, 264, 70, series)


def log_plot(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> str:
    """Lines with their points over two logarithmic axes; values are above 0."""
    xs, ys = ({point[axis] for line in series for point in line.points} for axis in (0, 1))
    x = LogAxis(x_label, min(xs), max(max(xs), min(xs) * 1.01), marked=sorted(xs))
    y = LogAxis(y_label, min(ys) / 1.3, max(ys) * 1.3, up=True)
    return _file(framed(series, x, y, lines=True, radius=3.5), title, 264, 70, series)


def bar_plot(bars: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars from zero."""
    drawn, height = bars_and_height(bars)
    return _file(drawn, title, height, 20)


def interval_plot(intervals: Sequence[Interval], *, title: str) -> str:
    """Each interval with its value; one that leaves out zero is in colour."""
    x = Axis("", min([0.0, *(row.low for row in intervals)]), max([0.0, *(row.high for row in intervals)]))
    rows = []
    for number, row in enumerate(intervals):
        color = "var(--arm-srd)" if row.low > 0 else "var(--dropped)" if row.high < 0 else "var(--soft)"
        tooltip = f"{row.label}: {row.value:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        places = [f"{x.at(value):.2f}" for value in (row.value, row.low, row.high)]
        rows.append((20 * number, row.label, color, tooltip, *places))
    drawn = _macros().intervals(rows=rows, x=x, zero=f"{x.at(0.0):.2f}")
    return _file(drawn, title, 20 * len(rows) + 10, 200)


def _file(content: str, title: str, height: int, left: int, series: Sequence[Series] = ()) -> str:
    entries = [(item.name, item.color) for item in series]
    return str(_macros().file(content=content, title=title, height=height, left=left, entries=entries))


def _macros() -> Any:
    return environment("benchmarks").get_template("files.j2").module
