"""The standard library's documentation as a data set."""

from __future__ import annotations

import re

import pytest

from srd.data.examples import EXAMPLE_FEATURES
from srd.tasks import pydocs
from srd.tasks.pydocs import first_paragraph, load_pydocs, pydocs_splits

pytestmark = pytest.mark.xdist_group("pydocs")  # read once by one worker


@pytest.fixture(scope="module")
def rows(pydocs_seconds: float) -> list[dict[str, str]]:
    return load_pydocs()


def test_size_order_and_content(rows: list[dict[str, str]]) -> None:
    assert 3000 < len(rows) < 9000
    ids = [row["id"] for row in rows]
    assert ids == sorted(set(ids))
    by_id = {row["id"]: row for row in rows}
    join = by_id["pydocs-os.path.join"]
    assert join["instruction"] == "What does `os.path.join` do?"
    assert join["output"].startswith("Join two or more pathname components")
    assert by_id["pydocs-math.sqrt"]["output"] == "Return the square root of x."
    assert by_id["pydocs-json"]["kind"] == "module"
    assert by_id["pydocs-list.append"]["instruction"] == "What does the method `list.append` do?"
    assert {row["kind"] for row in rows} == set(pydocs.QUESTIONS)


def test_answers_are_clean_and_names_public(rows: list[dict[str, str]]) -> None:
    for row in rows:
        answer, name = row["output"], row["id"].removeprefix("pydocs-")
        assert answer == " ".join(answer.split()) and " " in answer and len(answer) <= 400
        assert not any(part.startswith("_") for part in name.split(".")), name
        assert name.split(".")[0] not in pydocs.SKIPPED_MODULES and ".test." not in name


def test_splits_share_no_group_and_no_answer(rows: list[dict[str, str]]) -> None:
    splits = pydocs_splits(0)
    assert {name: split.features for name, split in splits.items()} == dict.fromkeys(
        ("train", "validation", "test"), EXAMPLE_FEATURES
    )
    assert sum(map(len, splits.values())) == len(rows)
    assert len(splits["test"]) == len(splits["validation"]) == round(0.1 * len(rows))
    group_of = {row["id"]: row["group"] for row in rows}
    groups = {name: {group_of[i] for i in split["id"]} for name, split in splits.items()}
    plain = {
        name: {re.sub(r"[^a-z0-9]", "", references[0].lower()) for references in split["references"]}
        for name, split in splits.items()
    }
    for found in (groups, plain):
        assert not found["train"] & found["test"]
        assert not found["train"] & found["validation"]
        assert not found["validation"] & found["test"]


def test_near_duplicates_are_one_group() -> None:
    answers = [
        "Return the size of the file.",
        "Returns the size of the file",
        "Open a socket.",
        "the file size of Return",
    ]
    assert pydocs._groups(answers) == [0, 0, 2, 0]


def test_loads_in_seconds(pydocs_seconds: float) -> None:
    assert 0 < pydocs_seconds < 30  # about 4 on a laptop


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One line.", "One line."),
        ("Two\n    lines.\n\n    More.", "Two lines."),
        (
            "range(stop) -> range object\nrange(start, stop[, step]) -> range object\n\nReturn it.",
            "Return it.",
        ),
        ("join(a, *p) -> str\nJoin paths.", "Join paths."),
        ("D.clear() -> None.  Remove all items from D.", "Remove all items from D."),
        ("S.pop() -- take the last one", "take the last one"),
        ("f(x)", ""),
        ("\n\n", ""),
    ],
)
def test_first_paragraph(docstring: str, expected: str) -> None:
    assert first_paragraph(docstring) == expected
