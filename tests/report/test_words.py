"""Names as readers see them."""

from __future__ import annotations

from srd.report import words


def test_step_names() -> None:
    assert words.step_name("train/kd") == "Training: Plain KD"
    assert words.step_name("reflection") == "Reflection"
    assert words.step_name("something new") == "something new"
