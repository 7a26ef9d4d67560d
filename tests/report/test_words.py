"""Numbers and names as readers see them."""

from __future__ import annotations

import pytest

from srd.report import words


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
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(675, "675"), (11_430, "11,430"), (134_515_008, "135 M"), (63.7e6, "63.7 M"), (1.5e9, "1.5 B")],
)
def test_count(number: float, text: str) -> None:
    assert words.count(number) == text


def test_signed_has_no_sign_at_zero() -> None:
    assert words.signed(0.84) == "+0.8"
    assert words.signed(-0.84) == "\N{MINUS SIGN}0.8"
    assert words.signed(-0.04) == "0.0"


def test_change_names_the_direction() -> None:
    wording = {"less": "less time", "more": "more time", "same": "as much time"}
    assert words.change(72, 100, **wording) == "28% less time"
    assert words.change(112, 100, **wording) == "12% more time"
    assert words.change(100.2, 100, **wording) == "as much time"
    assert words.change(5, 0, **wording) == ""


def test_shorten_keeps_the_limit() -> None:
    assert words.shorten("abcdef", 6) == "abcdef"
    assert words.shorten("abcdefg", 6) == "abcde…"


def test_percent_does_not_round_something_to_nothing() -> None:
    assert [words.percent(x) for x in (0, 0.001, 0.75)] == ["0%", "<1%", "75%"]


def test_step_names() -> None:
    assert words.step_name("train/kd") == "Training: Plain KD"
    assert words.step_name("reflection") == "Reflection"
    assert words.step_name("something new") == "something new"
