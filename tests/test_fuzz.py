"""Random recipes, rows, scores and command lines: a command ends with status 0 or 2,
and never hangs or leaks an error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srd import cli
from srd.base import console
from srd.base.errors import UserError
from srd.data.settings import SourceConfig
from srd.tasks.base import load_source
from tests.test_wrong_inputs import COMMANDS, WRONG_VALUES

fuzz = settings(
    # as many examples as the profile says: tests/conftest.py
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# No text here is the name of a module, since plugins are imported.
WORDS = st.sampled_from(
    ["", " ", "kd", "srkl", "no such thing", "1", "é", "日本", "\x07", "\u202e", "a/b", "../x", "~", "{", "x" * 300]
)
NUMBERS = st.one_of(
    st.integers(-2, 3), st.sampled_from([2**31, 2**32, 2**63, 10**30, -(2**63)]), st.floats(allow_nan=True, width=32),
    st.sampled_from([1e308, 1e-308, 0.5, float("inf")]),
)  # fmt: skip
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
JUNK = st.recursive(PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner,
max_size=3)),
                    max_leaves=6)  # fmt: skip

RECIPE: dict[str, Any] = {
    "name": "fuzz", "seed": 1, "description": "words", "plugins": [],
    "teacher": {"model": "big", "dtype": "auto", "sft": {"epochs": 1, "lora": {"r": 4, "targets": ["q_proj"]}}},
    "student": {"model": "small", "drop_layers": [1, 2], "warm_start": {"method": "kd"}},
    "data": {"train": {"path": ["a.jsonl", "b.csv"], "columns": {"output": "answer"}, "limit": 5}, "test": "t.jsonl",
             "validation_size": 0.1, "corruption": {"share": 0.5, "kinds": ["swapped"]}},
    "generation": {"batch_size": 4}, "reflection": {"max_new_tokens": 8}, "cache": {"dir": "c", "limit_gb": 1.5},
    "training": {"method": {"name": "gkd", "student_share": 0.5}, "objective": {"name": "jsd", "lam": 0.1},
                 "curriculum": {"stages": 2, "temperature": [1, 2.0], "weight": 0.5}, "optimizer": "sgd", "log_to": []},
    "baselines": {"kd": {"curriculum": None, "epochs": 2}},
    "evaluation": {"seeds": [1, 2], "tasks": ["dolly", {"name": "gsm8k", "limit": 2}], "models": ["teacher"]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quietly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "app", COMMANDS)
    monkeypatch.setattr(console.console, "_width", 1000)
    monkeypatch.chdir(tmp_path)


def ends_well(*arguments: str) -> int:
    """Run a command; its status is 0 or 2, and what it tells is one message."""
    with pytest.MonkeyPatch.context() as patch, console.console.capture() as captured:
        patch.setattr("sys.argv", ["srd", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    told = captured.get()
    assert stop.value.code in (0, 2), (arguments, told)
    assert "Traceback" not in told and "bug in srd" not in told
    assert (stop.value.code == 2) == ("error: " in told), told
    return int(stop.value.code or 0)


def loads_or_says(name: str) -> None:
    """Read a file as examples; what is wrong with it is told with its name."""
    told = name
    try:
        load_source(SourceConfig(path=name))
    except UserError as error:
        told = str(error)
    assert name in told


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside nested data."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(recipe: Any, path: tuple[Any, ...], how: str, junk: Any) -> Any:
    """Replace, remove or add a value at a place."""
    if not path:
        return {**recipe, "junk": junk} if how == "add" else recipe
    recipe = copy.deepcopy(recipe)
    inside = recipe
    for key in path[:-1]:
        if key not in (inside if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()):
            return recipe  # an earlier change took it away
        inside = inside[key]
    if how == "remove" and isinstance(inside, dict):
        inside.pop(path[-1], None)
    elif how == "add" and isinstance(inside, dict):
        inside["junk"] = junk
    elif isinstance(inside, dict) or (
        isinstance(inside, list) and isinstance(path[-1], int) and path[-1] < len(inside)
    ):
        inside[path[-1]] = junk
    return recipe


CHANGES = st.lists(
    st.tuples(st.sampled_from(list(places(RECIPE))), st.sampled_from(["replace", "replace", "remove", "add"]), JUNK),
    min_size=1, max_size=3,
)  # fmt: skip


def test_the_recipe_that_is_changed_is_right() -> None:
    Path("fuzz.yaml").write_text(yaml.safe_dump(RECIPE))
    assert ends_well("recipes", "fuzz.yaml") == 0


@fuzz
@given(CHANGES)
def test_recipes(changes: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    recipe: Any = RECIPE
    for change in changes:
        recipe = changed(recipe, *change)
    Path("fuzz.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    ends_well("recipes", "fuzz.yaml")


def mutated(text: bytes) -> st.SearchStrategy[bytes]:
    """A text with some pieces put in, taken out or written over."""
    pieces = st.one_of(
        st.sampled_from([b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\0", b"\xff", b"\\ud800", b"null", b"1e999",
                         b"NaN", b"9" * 5000, b"[" * 3000, b"\xef\xbb\xbf", b"- ", b"  ", b"&a ", b"*a", b"!!int ",
                         b"#"]),
        st.binary(max_size=3),
    )  # fmt: skip
    edits = st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, 4), pieces), min_size=1, max_size=4)

    def apply(chosen: list[tuple[int, int, bytes]]) -> bytes:
        result = text
        for place, length, piece in chosen:
            result = result[:place] + piece + result[place + length :]
        return result

    return edits.map(apply)


@fuzz
@given(mutated(yaml.safe_dump(RECIPE).encode()))
def test_texts_of_recipes(text: bytes) -> None:
    Path("fuzz.yaml").write_bytes(text)
    ends_well("recipes", "fuzz.yaml")


ROWS = [
    {"id": "a", "instruction": "one", "input": "", "output": "two", "text": "two"},
    {"id": "b", "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
    {"id": "c", "prompt": "one", "completion": ["two", "three"], "text": "three"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@fuzz
@given(mutated(LINES), st.sampled_from(["rows.jsonl", "rows.json", "rows.csv"]))
def test_texts_of_rows(text: bytes, name: str) -> None:
    Path(name).write_bytes(text)
    ends_well("score", name, "--references", name)
    loads_or_says(name)


@fuzz
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["id", *ROWS[0], "messages", "prompt", "answer"]), JUNK), min_size=1, max_size=3
    )
)
def test_rows(rows: list[dict[str, Any]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ends_well("score", "rows.jsonl", "--references", "rows.jsonl")
    loads_or_says("rows.jsonl")


SCORE = st.fixed_dictionaries({"id": PLAIN, "rouge_l": st.one_of(NUMBERS, PLAIN), "ce": st.one_of(NUMBERS, JUNK)})


@fuzz
@given(st.lists(SCORE, min_size=1, max_size=4), st.sampled_from([".jsonl", ".csv", ".parquet"]),
       st.sampled_from(["fused", "random", "ce", "length"]), st.booleans())  # fmt: skip
def test_scores(rows: list[dict[str, Any]], ending: str, by: str, drop: bool) -> None:
    path = Path(f"scores{ending}")
    if ending == ".parquet":
        try:
            pq.write_table(pa.Table.from_pylist(rows), path)
        except (pa.ArrowException, OverflowError, TypeError):
            return  # Arrow has no such table
    elif ending == ".csv":
        path.write_text("id,rouge_l,ce\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ends_well("rank", "--scores", str(path), "-o", "ranked.jsonl", "--by", by, *(["--drop-bad"] if drop else []))


OPTIONS = ["--run-dir", "-o", "--scores", "--references", "--task", "--k", "--by", "--seed", "--limit", "--seeds",
           "--schema",
           "--drop-bad", "--samples", "--temperature", "--template", "--list", "--dir", "--json", "--nope", "-h",
           "--", "-x"]  # fmt: skip
VALUES = ["rows.jsonl", "mine.yaml", "x.jsonl", "folder", "", "-1", "0", "nan", "gsm8k", "gsm8k=rows.jsonl", "1,2",
          "a=b",
          "training.epochs=x", "x" * 300, "é", "random", "seed=1", "\u202e"]  # fmt: skip


@fuzz
@given(st.sampled_from(["run", "rank", "reflect", "evaluate", "score", "recipes", "sweep", "curate", "report", "nope"]),
       st.lists(st.sampled_from([*OPTIONS, *VALUES]), max_size=6))  # fmt: skip
def test_command_lines(command: str, arguments: list[str]) -> None:
    Path("mine.yaml").write_text("teacher: nowhere/big\nstudent: nowhere/small\ndata: rows.jsonl\n")
    Path("rows.jsonl").write_text('{"id": "a", "rouge_l": 1, "ce": 1, "text": "a", "output": "b", "answer": "d"}\n')
    Path("folder").mkdir(exist_ok=True)
    ends_well(command, *arguments)


def test_the_tables_of_wrong_values_are_large() -> None:
    assert sum(map(len, WRONG_VALUES.values())) > 200
