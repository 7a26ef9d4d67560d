"""What stands for code in a fingerprint changes with what the code does, and with nothing else."""

from __future__ import annotations

import importlib
import sys
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


def read_by(module: str, tmp_path: Path, **files: str) -> Any:
    """What stands for a function that asks a module, of the files of a folder that can be imported from."""
    for name, text in files.items():
        path = (tmp_path / name.replace(".", "/")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(tmp_path))
        known = set(sys.modules)
        importlib.invalidate_caches()
        try:
            return code_of(importlib.import_module(module).thing)
        finally:
            for name in set(sys.modules) - known:
                del sys.modules[name]


BY_NAME = {"asking": "import asked\ndef thing(x):\n    return asked.double(x)"}
IN_A_PACKAGE = {"asking": "import deep.asked\ndef thing(x):\n    return deep.asked.double(x)", "deep.__init__": ""}
EACH_OTHER = {"asking": "import asked\ndef thing(x):\n    return asked.asking.asked.double(x)"}


@pytest.mark.parametrize(("files", "asked"), [(BY_NAME, "asked"), (IN_A_PACKAGE, "deep.asked"), (EACH_OTHER, "asked")])
def test_what_is_asked_of_a_module_counts_and_nothing_else_of_it(
    files: dict[str, str], asked: str, tmp_path: Path
) -> None:
    double = "import asking\nFACTOR = {}\ndef double(x):\n    return FACTOR * x\ndef other():\n    return {}\n"
    first, again, more, beside = (
        read_by("asking", tmp_path / str(number), **files, **{asked: double.format(*values)})
        for number, values in enumerate([(2, 1), (2, 1), (3, 1), (2, 7)])
    )
    assert first == again == beside != more


def test_code_that_many_ways_lead_to_is_looked_at_once(tmp_path: Path) -> None:
    """Forty modules of three functions, each of which asks all three of the next: 3 to the 39th ways."""
    files = {}
    for number in range(40):
        asked = " + ".join(f"layer{number + 1}.{name}(x)" for name in ("thing", "b", "c")) if number < 39 else "x"
        functions = [f"def {name}(x):\n    return {asked}\n" for name in ("thing", "b", "c")]
        files[f"layer{number}"] = (f"import layer{number + 1}\n" if number < 39 else "") + "".join(functions)
    last = files["layer39"]
    first = read_by("layer0", tmp_path / "1", **files)
    assert len(str(first)) < 100_000
    assert read_by("layer0", tmp_path / "2", **files) == first
    assert (
        read_by(
            "layer0",
            tmp_path / "3",
            **{**files, "layer39": last.replace("c(x):\n    return x", "c(x):\n    return -x")},
        )
        != first
    )
