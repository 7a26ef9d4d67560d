"""Names as readers see them."""

from __future__ import annotations

import pytest

from srd.report import words
from srd.report.html import unbroken


def test_step_names() -> None:
    assert words.step_name("train/kd") == "Training: Plain KD"
    assert words.step_name("reflection") == "Reflection"
    assert words.step_name("something new") == "something new"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("(11 s against 3.9 s)", "(11_s against 3.9_s)"),
        ("5 min 19 s", "5_min 19_s"),
        ("71.9 kB of 2 steps", "71.9_kB of 2 steps"),
    ],
)
def test_a_number_and_its_unit_stay_on_one_line(text: str, shown: str) -> None:
    assert unbroken(text) == shown.replace("_", "\N{NO-BREAK SPACE}")
