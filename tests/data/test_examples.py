"""Rows become examples, with stable ids, and are split without leaks."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.data.examples import EXAMPLE_FEATURES, examples_from_rows, split_by_group, split_examples

Row = dict[str, Any]

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
    {"role": "user", "content": "Still there?"},
]


def test_columns_are_the_documented_ones() -> None:
    examples = examples_from_rows([{"question": "1+1?", "answer": "2"}], "memory")
    assert examples.features == EXAMPLE_FEATURES
    assert examples.column_names == list(EXAMPLE_FEATURES)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            {"instruction": "Add.", "input": "1 2", "references": ["3"]},
        ),
        (
            {"instruction": "Who?", "context": "Ann ran.", "response": "Ann"},
            {"instruction": "Who?", "input": "Ann ran.", "references": ["Ann"]},
        ),
        (
            {"prompt": "Q: 1+1\nA:", "completion": " 2"},
            {"instruction": "Q: 1+1\nA:", "prompt": "Q: 1+1\nA:", "references": [" 2"]},
        ),
        ({"prompt": "Hi", "response": "Ho"}, {"instruction": "Hi", "prompt": "Hi", "references": ["Ho"]}),
        ({"question": "1+1?", "answer": "2"}, {"instruction": "1+1?", "references": ["2"]}),
        # MiniLLM: the instruction wins over the prompt, and there may be several references.
        (
            {"instruction": "Add.", "input": "", "prompt": "### Add.", "output": ["3", "three"]},
            {"instruction": "Add.", "references": ["3", "three"]},
        ),
        (
            {"instruction": "", "prompt": "Say", "output": "x"},
            {"instruction": "Say", "prompt": "Say", "references": ["x"]},
        ),
        # A null counts as missing, as in a table that holds rows of several shapes.
        (
            {"instruction": None, "question": "1+1?", "answer": "2", "input": None},
            {"instruction": "1+1?", "input": "", "references": ["2"]},
        ),
        (
            {"messages": CHAT},
            {"instruction": "Bye", "messages": json.dumps(CHAT[:4]), "references": ["See you"]},
        ),
        (
            {"messages": json.dumps(CHAT[:3])},
            {"instruction": "Hello", "messages": json.dumps(CHAT[:2]), "references": ["Hi"]},
        ),
        (
            {"prompt": CHAT[:2], "completion": CHAT[2:3]},
            {"instruction": "Hello", "messages": json.dumps(CHAT[:2]), "references": ["Hi"]},
        ),
    ],
)
def test_every_accepted_shape(row: Row, expected: Row) -> None:
    example = examples_from_rows([row], "memory")[0]
    empty = {"input": "", "messages": "", "prompt": "", "corruption": "", "extra": ""}
    assert {name: value for name, value in example.items() if name != "id"} == {**empty, **expected}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"text": "a", "label": "b"},
            ["data.jsonl: row 2", "label, text", "instruction + output", "columns"],
        ),
        ({"instruction": "a", "output": " \n"}, ["row 2", "'output'", "empty"]),
        ({"instruction": "a", "output": []}, ["row 2", "'output'", "empty list"]),
        ({"instruction": "a", "output": ["b", ""]}, ["row 2", "'output'", "empty"]),
        ({"instruction": " ", "output": "b"}, ["row 2", "'instruction'", "empty"]),
        ({"instruction": "a", "output": 42}, ["row 2", "'output'", "int 42", "expected text"]),
        ({"instruction": "a", "input": ["x"], "output": "b"}, ["row 2", "'input'", "list"]),
        ({"instruction": "a", "output": "half \ud83d"}, ["row 2", "'output'", "surrogate", "5"]),
        ({"id": 1.5, "instruction": "a", "output": "b"}, ["row 2", "'id'", "float 1.5"]),
        ({"prompt": CHAT[:2]}, ["row 2", "completion"]),
        ({"messages": []}, ["row 2", "'messages'"]),
        ({"messages": "not json"}, ["row 2", "'messages'", "JSON"]),
        ({"messages": CHAT[:2]}, ["row 2", "'messages'", "no assistant"]),
        ({"messages": CHAT[2:3]}, ["row 2", "'messages'", "no user"]),
        ({"messages": [{"role": "critic", "content": "a"}]}, ["messages[0].role", "'critic'", "user"]),
        ({"messages": [{"role": "user", "content": None}]}, ["messages[0].content", "NoneType"]),
        ({"messages": ["hello", {"role": "user", "content": "a"}]}, ["messages[0]", "'hello'"]),
    ],
)
def test_errors_say_place_field_and_remedy(row: Row, words: list[str]) -> None:
    good = {"id": "x", "instruction": "a", "output": "b"}
    with pytest.raises(UserError) as caught:
        examples_from_rows([good, row], "data.jsonl")
    for word in words:
        assert word in str(caught.value)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(UserError, match=r"data\.jsonl: there are no rows"):
        examples_from_rows([], "data.jsonl")


def test_own_ids_are_kept_and_must_be_unique() -> None:
    rows: list[Row] = [{"id": 7, "question": "a", "answer": "b"}, {"id": "x", "question": "a", "answer": "b"}]
    assert examples_from_rows(rows, "memory")["id"][:] == ["7", "x"]
    with pytest.raises(UserError, match=r"f: row 3: the id '7' is used twice, first by f: row 1"):
        examples_from_rows([*rows, {"id": "7", "question": "c", "answer": "d"}], "f")


def test_ids_from_content_do_not_depend_on_position() -> None:
    rows = [{"question": f"q{number}", "answer": "a"} for number in range(5)]
    rows[3] = dict(rows[1])
    ids = examples_from_rows(rows, "memory", id_prefix="p")["id"][:]
    assert all(name.startswith("p-") and len(name.split("-")[1]) == 16 for name in ids)
    assert ids[3] == f"{ids[1]}-2"
    assert examples_from_rows(rows[::-1], "other file", id_prefix="p")["id"][:][0] == ids[4]


@pytest.mark.parametrize("nothing", [{}, {"id": None}, {"id": ""}])
@pytest.mark.parametrize("first", [0, 1])
def test_ids_of_ones_own_are_for_all_rows_or_none(nothing: dict[str, Any], first: int) -> None:
    """Leaving them out without a word would break every join on them."""
    rows = [{"question": f"q{number}", "answer": "a", "id": f"mine-{number}"} for number in range(5)]
    del rows[3 * first]["id"]
    rows[3 * first].update(nothing)
    missing, there = 3 * first + 1, 2 - first
    reason = rf"memory: row {missing}: the row has no id, but others have one .such as memory: row {there}.*or none"
    with pytest.raises(UserError, match=reason):
        examples_from_rows(rows, "memory")
    for row in (row for row in rows if row.get("id") != "mine-4"):
        row.pop("id", None)
    with pytest.raises(UserError, match=r"memory: row 5: the row has an id, 'mine-4', but most have none .*or none"):
        examples_from_rows(rows, "memory")


def test_each_repetition_is_counted() -> None:
    rows = [{"question": question, "answer": "a"} for question in "xyxxy"]
    x, y = (examples_from_rows([row], "memory")["id"][0] for row in rows[:2])
    assert examples_from_rows(rows, "memory")["id"][:] == [x, y, f"{x}-2", f"{x}-3", f"{y}-2"]


def test_rows_beyond_one_chunk_keep_their_order() -> None:
    examples = examples_from_rows(({"question": f"q{n}", "answer": f"a{n}"} for n in range(20_500)), "memory")
    assert len(examples) == len(set(examples["id"])) == 20_500
    assert examples[20_499]["references"] == ["a20499"]


def test_groups_go_to_splits_in_the_order_of_a_hash() -> None:
    """Against dictionaries and lists: another split would make every published number another."""
    draw = random.Random(0)
    groups = [f"é{draw.randrange(400)}" for _ in range(1000)]
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    expected: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    sizes = {"validation": 150, "test": 77}
    for group in sorted(members, key=lambda group: hashlib.blake2b(f"5:{group}".encode(), digest_size=16).digest()):
        fits = (name for name, size in sizes.items() if len(expected[name]) + len(members[group]) <= size)
        expected[next(fits, "train")] += members[group]
    found = split_by_group(groups, sizes, seed=5)
    assert {name: rows.tolist() for name, rows in found.items()} == {n: sorted(rows) for n, rows in expected.items()}
    assert len(found["validation"]) > 140


def test_split_is_exact_and_independent_of_order() -> None:
    rows = [{"id": str(number), "question": f"q{number}", "answer": "a"} for number in range(200)]
    splits = split_examples(examples_from_rows(rows, "memory"), 20, 0.1, seed=3)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 160,
        "validation": 20,
        "test": 20,
    }
    assert len({name for split in splits.values() for name in split["id"]}) == 200
    shuffled = random.Random(0).sample(rows, 200)
    again = split_examples(examples_from_rows(shuffled, "memory"), 20, 0.1, seed=3)
    assert all(set(splits[name]["id"]) == set(again[name]["id"]) for name in splits)
    other = split_examples(examples_from_rows(rows, "memory"), 20, 0.1, seed=4)
    assert set(other["test"]["id"]) != set(splits["test"]["id"])
    assert list(split_examples(examples_from_rows(rows, "memory"), 0, 0, seed=0)) == ["train"]


def test_split_keeps_repeated_prompts_together() -> None:
    rows = [{"question": f"q{number % 30}", "answer": f"a{number}"} for number in range(90)]
    splits = split_examples(examples_from_rows(rows, "memory"), 0.2, 0.2, seed=0)
    prompts = {name: set(split["instruction"]) for name, split in splits.items()}
    assert not prompts["train"] & prompts["test"] and not prompts["train"] & prompts["validation"]
    assert len(splits["test"]) == 18


@pytest.mark.parametrize(("validation", "test"), [(5, 5), (0.5, 0.5), (-1, 0), (1.0, 0)])
def test_impossible_splits_are_refused(validation: float, test: float) -> None:
    rows = [{"question": f"q{number}", "answer": "a"} for number in range(10)]
    with pytest.raises(UserError):
        split_examples(examples_from_rows(rows, "memory"), validation, test, seed=0)
