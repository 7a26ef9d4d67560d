"""What is obeyed instead of shown reaches no terminal, by whatever way it is printed, and no page."""

from __future__ import annotations

import io

import pytest
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from srd.base.console import Terminal
from srd.base.text import change, count, duration, escape_html, many, percent, roughly, shorten, signed, visible
from tests.report.test_page import OBEYED

HOSTILE = "".join(f"{chr(code)}x" for code in OBEYED)


def progress(terminal: Terminal) -> None:
    with Progress(TextColumn("{task.description}"), console=terminal) as bars:
        bars.add_task(escape(HOSTILE), total=1)


def table(terminal: Terminal) -> None:
    lines = Table(escape(HOSTILE), title=escape(HOSTILE))
    lines.add_row(Text(HOSTILE))
    lines.add_row(escape(HOSTILE))
    terminal.print(lines)


@pytest.mark.parametrize(
    "say",
    [
        lambda terminal: terminal.print(f"[bold]{escape(HOSTILE)}[/]"),
        lambda terminal: terminal.print(Text(HOSTILE)),
        lambda terminal: terminal.rule(escape(HOSTILE)),
        table,
        progress,
    ],
)
@pytest.mark.parametrize("colours", [False, True])
def test_whatever_is_printed(say: object, colours: bool) -> None:
    assert callable(say)
    output = io.StringIO()
    say(Terminal(file=output, width=5000, force_terminal=colours))
    own = {0x0D, 0x1B}  # what a terminal needs for colours, and a bar to go back to its start
    got = [f"{code:x}" for code in OBEYED if chr(code) in output.getvalue() and not (colours and code in own)]
    assert got == []
    assert r"\x05x" in output.getvalue()
    assert "\x1bx" not in output.getvalue()


def test_what_is_no_command_stays() -> None:
    for text in ("äöü 日本語 🙂\n\tנכון", "👩‍👩‍👧 می‌خواهم", ""):  # joiners belong to their text
        assert visible(text) == text
    assert escape_html('<a\r\nb & "c"') == "&lt;a\nb &amp; &quot;c&quot;"
    assert escape_html("abcdef", longest=4) == "abcd… (cut: 2 more characters)"
    assert visible("\ud800\ufeff\U000e0041") == r"\ud800\ufeff\U000e0041"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.21, "4.2 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (312, "5 min 12 s"),
        (7490, "2 h 05 min"),
    ],
)
def test_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(675, "675"), (11_430, "11,430"), (134_515_008, "135 M"), (63.7e6, "63.7 M"), (1.5e9, "1.5 B")],
)
def test_count(number: float, text: str) -> None:
    assert count(number) == text


def test_signed_has_no_sign_at_zero() -> None:
    assert signed(0.84) == "+0.8"
    assert signed(-0.84) == "\N{MINUS SIGN}0.8"
    assert signed(-0.04) == "0.0"


def test_change_names_the_direction() -> None:
    wording = {"less": "less time", "more": "more time", "same": "as much time"}
    assert change(72, 100, **wording) == "28% less time"
    assert change(112, 100, **wording) == "12% more time"
    assert change(100.2, 100, **wording) == "as much time"
    assert change(5, 0, **wording) == ""


def test_shorten_keeps_the_limit() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"


def test_percent_does_not_round_something_to_nothing() -> None:
    assert [percent(x) for x in (0, 0.001, 0.75)] == ["0%", "<1%", "75%"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "about 5 s"), (42, "about 40 s"), (57, "about 55 s"), (59, "about 1 min"), (89, "about 1 min"),
        (200, "about 3 min"), (3599, "about 1 h"), (7300, "about 2 h"), (7500, "about 2 h 05 min"),
    ],
)  # fmt: skip
def test_an_estimate_is_no_finer_than_it_is_known(seconds: float, said: str) -> None:
    assert roughly(seconds) == said


def test_a_number_with_its_noun() -> None:
    assert [many(number, "row") for number in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]
    assert [many(number, noun) for number, noun in ((2, "query"), (1, "query"), (2, "day"))] == [
        "2 queries",
        "1 query",
        "2 days",
    ]
