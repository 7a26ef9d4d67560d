"""What a run says while it works: what has passed, what is left, and how a narrow terminal shows it."""

from __future__ import annotations

import io
import warnings

import pytest

from srd.base import console as console_module
from srd.base.console import Pace, Terminal, progress_bar


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pace_says_what_has_passed_and_what_is_left() -> None:
    clock = Clock()
    pace = Pace(lambda share, seconds: 600.0 if share == 0.25 else None, clock)
    clock.now += 30
    assert pace.words(10, 90) == "30 s so far"  # of which ten were done by a former command
    clock.now += 60
    assert pace.words(20, 90) == "1 min 30 s so far, about 7 min left"
    assert pace.words(30, None) == "1 min 30 s so far"
    assert pace.words(90, 90) == "1 min 30 s so far"
    assert pace.words(32.5, 90) == "1 min 30 s so far, about 3 min left, about 13 min of the whole run"
    assert pace.words(0, 90) == "1 min 30 s so far"  # begun anew


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_bar_says_what_it_does_within_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    output = io.StringIO()
    monkeypatch.setattr(console_module, "console", Terminal(file=output, force_terminal=True, width=width))
    with progress_bar("srd[x]") as update:
        update(3, 40, "stage 1 of 3, \x1b]0;loss 1.234")
    text = output.getvalue()
    assert "srd[x]" in text and "3 of 40" in text and "stage 1 of 3" in text
    assert "\x1b]0" not in text


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(console_module, "console", Terminal(file=output, width=80))
    monkeypatch.setattr(console_module, "QUIET_SECONDS", -1.0)
    with progress_bar("answers") as update:
        update(3000, 40000, "teacher on test, seed 10")
        update(1, None)
    first, second = output.getvalue().splitlines()
    assert first == "  answers: 3,000 of 40,000, 0.0 s so far (teacher on test, seed 10)"
    assert second == "  answers: 1, 0.0 s so far"


def test_what_libraries_say_of_their_next_versions_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, shown in (([], 0), (["default"], 1)):
        monkeypatch.setattr("sys.warnoptions", asked)
        with warnings.catch_warnings(record=True) as told:
            warnings.resetwarnings()
            console_module.set_up_logging([])
            warnings.warn("`old` is deprecated and will be removed", FutureWarning, stacklevel=1)
        assert len(told) == shown
