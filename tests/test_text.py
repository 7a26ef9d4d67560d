"""What is obeyed instead of shown reaches no terminal, by whatever way it is printed, and no page."""

from __future__ import annotations

import io

import pytest
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from srd.base.console import Terminal
from srd.base.text import escape_html, visible
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
