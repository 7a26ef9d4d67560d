"""The house rules that no tool checks: rooms that stay small, functions that fit a screen, few arguments."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("house")  # one worker reads all of the source
SOURCE = Path(__file__).parents[1] / "src" / "srd"
LONGEST_FUNCTION = 60  # lines, docstring included
MOST_ARGUMENTS = 10  # of a constructor, without self

#: Lines of Python in each room. A change that needs more raises the number here and says in its commit what for.
BUDGETS = {
    "base": 2735, "metrics": 815, "data": 5715, "models": 6570, "tasks": 1755, "sandbox": 1055, "curation": 3390,
    "training": 7885, "evaluation": 1125, "recipe": 1170, "run": 7980, "report": 2615, "export": 2340,
    "integrations": 325, "api": 635, "sweep": 1485, "cli": 945, "__init__": 110, "__main__": 5,
}  # fmt: skip


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


@cache
def functions() -> dict[str, tuple[str, int, int]]:
    """Of each function its name, its lines and its arguments, by its place."""
    found = {}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                arguments = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
                found[f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"] = node.name, lines, arguments
    return found


def test_functions_fit_a_screen() -> None:
    assert len(functions()) > 1000
    assert {place: lines for place, (_, lines, _) in functions().items() if lines > LONGEST_FUNCTION} == {}


def test_constructors_take_few_arguments() -> None:
    found = {place: arguments - 1 for place, (name, _, arguments) in functions().items() if name == "__init__"}
    assert len(found) > 20
    assert {place: count for place, count in found.items() if count > MOST_ARGUMENTS} == {}


def test_nothing_is_patched_by_a_dotted_string() -> None:
    """A name in a string is not moved with what it names."""
    dotted = re.compile(r"""(setattr|patch)\(\s*["']srd\.""")
    assert [path.name for path in Path(__file__).parent.rglob("*.py") if dotted.search(path.read_text("utf-8"))] == []


REGISTRIES = (
    "curation/scores", "curation/detectors", "training/methods", "training/divergences", "training/teachers",
    "training/tiers", "data/templates", "models/engines", "tasks", "export/formats", "export/trainers",
)  # fmt: skip
#: Columns, steps, formats and values of settings that are called as something registered is.
NAMESAKES = {"auto", "cache", "ce", "instruction", "length", "random", "rouge_l"}


def test_no_part_is_told_by_its_name() -> None:
    """What is in a registry is asked for an attribute, not for its name: to add to it touches nothing else."""
    files = [path for each in REGISTRIES for path in (SOURCE / each).glob("[!_]*.py")]
    names = {path.stem for path in files} - {"base", "common"} - NAMESAKES | {"fused"}
    by_class = re.compile(r"isinstance\([a-z.]*(method|tier|detector|template|score|task|engine)\b")
    found = {}
    for path, tree in trees().items():
        text = path.read_text(encoding="utf-8")
        compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
        sides = [side for node in compared for side in (node.left, *node.comparators)]
        values = [each for side in sides for each in getattr(side, "elts", [side]) if isinstance(each, ast.Constant)]
        found[path.name] = [each.value for each in values if each.value in names] + by_class.findall(text)
    assert {name: what for name, what in found.items() if what} == {}


def test_rooms_keep_to_their_budgets() -> None:
    found = dict.fromkeys(BUDGETS, 0)
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        found[room] += len(path.read_text(encoding="utf-8").splitlines())
    assert {room: lines for room, lines in found.items() if lines > BUDGETS[room]} == {}
    assert all(lines > 0.9 * BUDGETS[room] for room, lines in found.items()), "a room has shrunk: lower its budget"
