"""What stands for code in a fingerprint changes with what the code does, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from srd.base.code import code_of

FUNCTION = """
import srd, numpy
FACTOR = 2.0
WORDS = {{"whale": 1}}
def helper(x):
    return x + {helper}
class Base:
    bias = {bias}
    def shift(self):
        return {shift}
def made(power):
    def inner(x):
        return x ** power
    return inner
def thing(x, floor={floor}):
    {comment}
    return helper(x) * FACTOR + numpy.sum(x) + Base().shift() + (x in {{"a", "b", "c"}}) + len(WORDS)
class Thing(Base, srd.Method):
    title = "A thing"
    size: int = {size}
    @property
    def long(self):
        return lambda: {inner}
    @staticmethod
    def still():
        return {still}
around = made({power})
"""
USUAL = {
    "helper": 1, "bias": 0.5, "shift": 0, "floor": 0.0, "comment": "pass", "size": 3, "inner": 1, "still": 1,
    "power": 2,
}  # fmt: skip


def written(name: str, **changes: Any) -> Any:
    module = ModuleType("code_of_a_test")
    exec(FUNCTION.format(**{**USUAL, **changes}), module.__dict__)
    return code_of(getattr(module, name))


@pytest.mark.parametrize("name", ["thing", "Thing", "around"])
def test_the_same_code_elsewhere_is_the_same(name: str) -> None:
    assert written(name) == written(name, comment="# more\n    # lines\n    pass")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("thing", {"helper": 2}), ("thing", {"bias": 0.25}), ("thing", {"shift": "self.bias"}), ("thing", {"floor": 1}),
        ("thing", {"comment": "x = 2 * x"}), ("Thing", {"size": 4}), ("Thing", {"inner": 2}), ("Thing", {"still": 2}),
        ("Thing", {"shift": 1}), ("around", {"power": 3}),
    ],
)  # fmt: skip
def test_code_that_does_something_else_is_another(name: str, change: dict[str, Any]) -> None:
    assert written(name, **change) != written(name)


@pytest.mark.parametrize("change", [{"size": 4}, {"power": 3}, {"inner": 2}])
def test_what_a_function_does_not_use_does_not_count(change: dict[str, Any]) -> None:
    assert written("thing", **change) == written("thing")


def test_libraries_and_what_refers_to_itself_are_taken_by_name() -> None:
    def own() -> Any:
        return Path

    assert code_of(own)[-1] == ["'Path'", "pathlib.Path"]
    circle: list[Any] = []
    circle.append(circle)
    assert code_of(circle) == ["again"]
