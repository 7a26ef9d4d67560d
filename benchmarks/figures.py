"""Plots as SVG files that stand alone: lines over logarithmic axes, horizontal bars, and intervals around zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from srd.base.files import atomic_write

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 44, 52
COLORS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626")
INK = "#6b7280"  # readable on white and on black alike

Line = tuple[str, Sequence[tuple[float, float]]]
Interval = tuple[str, float, float, float]  # label, value, low, high


def _document(title: str, body: Sequence[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}" role="img" aria-label="{escape(title)}">'
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold">{escape(title)}</text>{"".join(body)}</svg>\n'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the range; of two where there is less than a decade and a half."""
    base = 10.0 if high / low > 30 else 2.0
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    return [base**power for power in range(first, last + 1)]


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def log_lines(path: Path, title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> None:
    """Write lines with their points over two logarithmic axes; values are above 0."""
    lines = [(name, points) for name, points in lines if points]
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    if not xs:
        return
    x_low, x_high = min(xs), max(max(xs), min(xs) * 1.01)
    y_low, y_high = min(ys) / 1.3, max(ys) * 1.3

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / x_low) / math.log(x_high / x_low)
        up = math.log(y / y_low) / math.log(y_high / y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    body = []
    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        body.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-opacity="0.25"/>')
        body.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in sorted(set(xs)):
        x, _ = place(tick, y_low)
        body.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_short(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    body.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>')
    body.append(f'<text x="8" y="{TOP - 8}">{escape(y_label)}</text>')
    for number, (name, points) in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        spots = [place(x, y) for x, y in points]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        body.append(f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        body += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"><title>{escape(name)}: {b:.3g}</title></circle>'
            for (x, y), (_, b) in zip(spots, points, strict=True)
        ]
        legend_y = TOP + 12 + 16 * number
        body.append(f'<path d="M{LEFT + 10} {legend_y - 4}h16" stroke="{color}" stroke-width="3"/>')
        body.append(f'<text x="{LEFT + 32}" y="{legend_y}">{escape(name)}</text>')
    _write(path, _document(title, body, HEIGHT))


def bars(path: Path, title: str, values: Sequence[tuple[str, float, str]]) -> None:
    """Write horizontal bars from 0: (label, value, the text at its end)."""
    longest = max(value for _, value, _ in values)
    body, room = [], WIDTH - 200 - RIGHT - 80
    for number, (label, value, shown) in enumerate(values):
        y = TOP + 26 * number
        width = max(1.0, room * value / longest)
        color = COLORS[0] if label.startswith("ours") else INK
        body.append(f'<text x="190" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
        body.append(f'<rect x="200" y="{y}" width="{width:.1f}" height="18" rx="2" fill="{color}"/>')
        body.append(f'<text x="{206 + width:.1f}" y="{y + 13}">{escape(shown)}</text>')
    _write(path, _document(title, body, TOP + 26 * len(values) + 12))


def intervals(path: Path, title: str, rows: Sequence[Interval]) -> None:
    """Write a line for each row with its value and interval; one whose interval leaves out zero is in colour."""
    low, high = min(0.0, *(row[2] for row in rows)), max(0.0, *(row[3] for row in rows))

    def place(value: float) -> float:
        return 200 + (value - low) / (high - low) * (WIDTH - 200 - RIGHT)

    height = TOP + 20 * len(rows) + 30
    body = []
    for tick in range(math.ceil(low), math.floor(high) + 1):
        strong = "0.8" if tick == 0 else "0.2"
        line = f"M{place(tick):.1f} {TOP - 8}V{height - 30}"
        body.append(f'<path d="{line}" stroke="{INK}" stroke-opacity="{strong}"/>')
        body.append(f'<text x="{place(tick):.1f}" y="{height - 12}" text-anchor="middle">{tick:+d}</text>')
    for number, (label, value, lower, upper) in enumerate(rows):
        y = TOP + 20 * number
        color = COLORS[0] if lower > 0 else COLORS[4] if upper < 0 else INK
        body.append(f'<text x="190" y="{y + 9}" text-anchor="end">{escape(label)}</text>')
        body.append(f'<path d="M{place(lower):.1f} {y + 5}H{place(upper):.1f}" stroke="{color}" stroke-width="2"/>')
        body.append(
            f'<circle cx="{place(value):.1f}" cy="{y + 5}" r="4" fill="{color}">'
            f"<title>{escape(label)}: {value:+.2f} ({lower:+.2f} to {upper:+.2f})</title></circle>"
        )
    _write(path, _document(title, body, height))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
