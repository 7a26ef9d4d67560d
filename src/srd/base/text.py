"""Text fit to be shown: numbers as a reader wants them, and nothing that moves a cursor or turns a line around."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Longest text of one place in a page: a whole file in one field would make a page that no browser opens.
LONGEST = 20_000

# What a terminal or a browser obeys instead of showing it: controls (but for tab and line feed), line and paragraph
# separators, marks and embeddings of direction, other formatting controls and tags, and the halves of surrogate pairs,
# which no output can encode. Joiners of letters and emoji are not among them.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Write control characters, direction marks and half characters as escapes such as ``\x1b`` or ``\u202e``."""
    return OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: a command line or a pipe in another encoding leaves halves of characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def escape_html(text: str, longest: int = LONGEST) -> str:
    """Write text for a page as it is: what would be obeyed made visible, a very long one cut, with a note."""
    if len(text) > longest:
        text = f"{text[:longest].rstrip()}… (cut: {len(text) - longest:,} more characters)"
    return html.escape(visible(text.replace("\r\n", "\n")))


def shorten(text: str, limit: int) -> str:
    """Cut ``text`` to ``limit`` characters at most, an ellipsis included."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def duration(seconds: float) -> str:
    """Write a time span with two units at most: ``4.2 s``, ``5 min 12 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def roughly(seconds: float) -> str:
    """Write an estimated time span no finer than anyone can know it: ``about 40 s``, ``about 3 min``."""
    if seconds < 57.5:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"about {minutes} min"
    hours, rest = divmod(5 * round(minutes / 5), 60)
    return f"about {hours} h" + (f" {rest:02d} min" if rest else "")


def many(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless it is one: ``1 stage``, ``1,200 rows``, ``2 queries``."""
    if number != 1:
        noun = f"{noun[:-1]}ies" if re.search("[^aeiou]y$", noun) else f"{noun}s"
    return f"{number:,} {noun}"


def verb(number: int, one: str = "is", more: str = "are") -> str:
    """The verb behind a number: ``1 of 20 rows is``."""
    return one if number == 1 else more


def count(number: float) -> str:
    """Write how many: ``11,430``, ``135 M``, ``1.5 B``."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{number:,.0f}"


def shown_bytes(count: float) -> str:
    """Write bytes with a decimal unit: ``815.6 kB``."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def signed(number: float, digits: int = 1) -> str:
    """Write a difference with its sign, a true minus included: ``+0.8``; zero has none."""
    text = f"{abs(number):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if number > 0 else "\N{MINUS SIGN}") + text


def percent(fraction: float, digits: int = 0) -> str:
    """Write a fraction (0..1) as a percentage: ``0.75`` -> ``75%``."""
    return "<1%" if digits == 0 and 0 < fraction < 0.005 else f"{100 * fraction:.{digits}f}%"


def change(new: float, old: float, *, less: str, more: str, same: str) -> str:
    """Say how a cost compares: ``28% less``; ``same`` within half a percent, nothing for an old of 0."""
    if old <= 0 or not math.isfinite(new / old):
        return ""
    ratio = new / old - 1
    if abs(ratio) < 0.005:
        return same
    return f"{percent(abs(ratio))} {less if ratio < 0 else more}"


def texts_in(value: Any) -> Iterator[str]:
    """The texts in plain data, whatever they lie in."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(inner)


def flattened(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flattened(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value})
    return flat
