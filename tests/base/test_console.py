"""What a run says while it works: what has passed, what is left, and how a narrow terminal shows it."""

from __future__ import annotations

import io
import re
import time
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

    def words(done: float, total: float | None) -> str:
        pace.update(done, total)
        return str(pace)

    assert pace.count == ""
    clock.now += 30
    assert words(10, 90) == "30 s so far"  # of which ten were done by a former command
    clock.now += 60
    assert words(20, 90) == "1 min 30 s so far, about 7 min left"
    assert words(30, None) == "1 min 30 s so far"
    assert words(90, 90) == "1 min 30 s so far"
    assert words(32.5, 90) == "1 min 30 s so far, about 3 min left, about 13 min of the whole run"
    assert pace.count == "32.5 of 90"
    clock.now += 60  # nothing was finished meanwhile
    assert str(pace) == "2 min 30 s so far, about 2 min left, about 12 min of the whole run"
    clock.now += 600
    assert str(pace) == "12 min 30 s so far"
    assert words(0, 90) == "12 min 30 s so far"  # begun anew


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
    assert re.fullmatch(r"  answers: 3,000 of 40,000, \d\.\d s so far \(teacher on test, seed 10\)", first)
    assert re.fullmatch(r"  answers: 1, \d\.\d s so far", second)


def test_a_long_batch_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a log file nor on a terminal does it take an update for the time to go on."""
    output = io.StringIO()
    monkeypatch.setattr(console_module, "console", Terminal(file=output, width=80))
    monkeypatch.setattr(console_module, "SILENT_SECONDS", 0.04)
    with progress_bar("answers") as update:
        time.sleep(0.2)
        update(0, 12, "training rows")
        time.sleep(0.2)
    lines = output.getvalue().splitlines()
    assert re.fullmatch(r"  answers: \d\.\d s so far", lines[0])
    assert re.fullmatch(r"  answers: 0 of 12, \d\.\d s so far \(training rows\)", lines[-1])
    monkeypatch.setattr(console_module, "console", Terminal(file=output, width=80, force_terminal=True))
    with progress_bar("answers"):
        time.sleep(0.3)
    assert len(set(re.findall(r"\d\.\d s so far", output.getvalue().rpartition("training rows")[2]))) > 1


def test_what_libraries_say_of_their_next_versions_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, shown in (([], 0), (["default"], 1)):
        monkeypatch.setattr("sys.warnoptions", asked)
        with warnings.catch_warnings(record=True) as told:
            warnings.resetwarnings()
            console_module.set_up_logging([])
            warnings.warn("`old` is deprecated and will be removed", FutureWarning, stacklevel=1)
        assert len(told) == shown
