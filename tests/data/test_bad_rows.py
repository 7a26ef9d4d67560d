"""Rows that cannot become examples are found all together, and told by reason."""

from __future__ import annotations

import itertools
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.data import examples as data_examples
from srd.data.bad_rows import BadRows
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.settings import SourceConfig
from srd.data.templates.base import get_template
from srd.tasks.base import load_source
from tests.runs import write_rows
from tests.tiny import tiny_tokenizer

GOOD = {"instruction": "Name the whale.", "output": "The whale."}


def talk(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "The sky is blue."} for role in roles]}


TURNS = talk("user", "assistant")["messages"]
#: Lines of a file, each with what its reason says; None: nothing is wrong with it.
LINES: list[tuple[str, str | None]] = [
    (json.dumps(GOOD), None),
    (json.dumps({**GOOD, "output": ""}), "'output' holds an empty response"),
    (json.dumps({**GOOD, "output": None}), "Fields found: instruction; null: output."),
    (json.dumps({**GOOD, "output": 7}), "expected text, found int 7"),
    (json.dumps({**GOOD, "instruction": " "}), "'instruction' is empty"),
    (json.dumps({**GOOD, "id": 1.5}), "found float 1.5"),
    (json.dumps({**GOOD, "output": 12}), "expected text, found int 12"),
    ("{broken", "not valid JSON"),
    ("[1, 2]", "expected an object"),
    (json.dumps(talk("user", "assistant")), None),
    (json.dumps(talk("user", "user")), "no assistant message"),
    (json.dumps(talk("critic", "assistant")), "'critic'"),
    (json.dumps(talk("user", "user", "assistant")), "turns must alternate"),  # the template says so
    (json.dumps({"prompt": "Why? " * 9 + "\nAnswer:", "completion": "So."}), None),
    (json.dumps({"messages": [{"role": "system", "content": "Be kind. " * 30}, *TURNS]}),
     "the frame of the prompt alone has"),
    (json.dumps(GOOD), None),
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def encoder() -> Encoder:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = TEMPLATE
    return Encoder(tokenizer, get_template("auto", tokenizer), max_length=128, max_prompt_length=96)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(line + "\n" for line, _ in LINES))
    return path


def read(path: Path, action: Any, **fields: Any) -> tuple[Any, BadRows]:
    bad = BadRows(action, of_recipe=True)
    rows = load_source(SourceConfig(path=str(path), **fields), bad=bad, check=encoder().refused)
    bad.settle()
    return rows, bad


def test_all_are_found_and_told_by_reason(path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(path, "error")
    told = str(caught.value)
    wrong = [reason for _, reason in LINES if reason]
    assert told.startswith(f"{len(wrong)} of {len(LINES)} rows cannot become examples")
    assert f"2 × {path}:4, {path}:7: field 'output': expected text" in told
    for line, (_, reason) in enumerate(LINES, start=1):
        assert bool(re.search(f":{line}[,:]", told)) == bool(reason)
        assert reason is None or reason in told or "int 12" in reason
    assert "data.bad_rows=drop" in told


def test_dropped_rows_are_listed(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows, bad = read(path, "drop")
    assert len(rows) == bad.good == sum(reason is None for _, reason in LINES)
    assert f"{bad.count} of {len(LINES)} rows cannot become examples and are left out" in caplog.text
    bad.write(tmp_path / "dropped.jsonl")
    records = {record["place"]: record for record in map(json.loads, (tmp_path / "dropped.jsonl").open())}
    expected = {f"{path}:{line}": reason for line, (_, reason) in enumerate(LINES, start=1) if reason}
    assert set(records) == set(expected)
    assert all(reason in records[place]["reason"] for place, reason in expected.items())
    assert records[f"{path}:2"]["row"] == "Name the whale." and records[f"{path}:8"]["row"] == "{broken"
    assert records[f"{path}:13"]["id"].startswith("rows-")
    assert records[f"{path}:13"]["row"] == "The sky is blue. The sky is blue."


def test_places_are_three_and_reasons_are_few() -> None:
    rows = [GOOD, *({"instruction": "a", "output": n} for n in range(5)), *({"messages": [n]} for n in range(4))]
    with pytest.raises(UserError) as caught:
        examples_from_rows(rows, "memory")
    assert "bad_rows" not in str(caught.value)  # here it is no recipe's to set
    assert "5 × memory: row 2, memory: row 3, memory: row 4, …: field 'output'" in str(caught.value)
    assert "4 × memory: row 7, memory: row 8, memory: row 9, …: messages[0]" in str(caught.value)
    with pytest.raises(UserError, match=r"3 × memory: row 2, .*: no question .*Fields found: a\.") as caught:
        examples_from_rows([GOOD, *({name: "x"} for name in "abc")], "memory")
    assert str(caught.value).count("×") == 1
    bad = BadRows()
    for word in itertools.islice(itertools.permutations("abcd"), 24):
        for other in ("x", "y"):
            bad.add("memory", {}, UserError(f"{''.join(word)} {other}"))
    assert bad.told().count("1 ×") == 30 and "18 × 18 other reasons" in bad.told()


@pytest.mark.parametrize("form", ["{rows}", '{{"version": 1, "data": {rows}}}'])
def test_an_object_of_no_use_in_an_array_is_one_bad_row(form: str, tmp_path: Path) -> None:
    """Where it ends is known, unlike that of one which is no JSON."""
    odd = [
        '{"instruction": "a", "instruction": "b", "output": "c"}',
        '{"instruction": "a", "output": ' + "9" * 5000 + "}",
    ]
    path = tmp_path / "rows.json"
    path.write_text(form.format(rows="[" + ",\n".join([json.dumps(GOOD), *odd, json.dumps(GOOD)]) + "]"))
    rows, bad = read(path, "drop")
    assert (len(rows), bad.count) == (2, 2)
    for line, reason in ((2, "the key 'instruction' is there twice"), (3, "a number of thousands of digits")):
        assert re.search(rf"rows.json:{line}: not usable JSON: .*{reason}", bad.told())
    path.write_text(f"[{odd[0]},\n {odd[0][:-1]}, x")
    with pytest.raises(UserError, match=r"rows\.json:2: not valid JSON"):
        read(path, "drop")


def test_a_limit_counts_what_can_be_used(path: Path) -> None:
    rows, bad = read(path, "drop", limit=3)
    assert len(rows) == 3 and bad.count == 11 and rows[2]["prompt"].startswith("Why?")


NAMED = [{**GOOD, "instruction": f"{n}?", "id": name} for n, name in enumerate(["a", "b", "a", None, "c", "b", "d"])]


@pytest.mark.parametrize("limit", [None, *range(1, 8)])
def test_ids_that_cannot_stay_are_bad_rows(limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One id twice or one that is missing does not end a run that may go on; a limit counts what is left."""
    path = write_rows(tmp_path / "rows.jsonl", NAMED)
    monkeypatch.setattr(data_examples, "CHUNK_ROWS", 2)
    rows, bad = read(path, "drop", **({"limit": limit} if limit else {}))
    good = ["a", "b", "c", "d"][:limit]
    assert (rows["id"][:], bad.good) == (good, len(good))
    bad.write(tmp_path / "dropped.jsonl")
    records = [json.loads(line) for line in (tmp_path / "dropped.jsonl").open()]
    twice, none = "is used twice, first by rows.jsonl:", "the row has no id, but others have one"
    expected = [(3, "a", f"'a' {twice}1"), (4, None, none), (6, "b", f"'b' {twice}2")]
    found = [(record["place"], record["id"], record["reason"]) for record in records]
    assert all(place == f"{path}:{line}" and name == own and says in reason
               for (place, own, reason), (line, name, says) in zip(found, expected, strict=False))  # fmt: skip
    assert len(found) == {None: 3, 1: 0, 2: 0, 3: 2, 4: 3}.get(limit, 3)
    with pytest.raises(UserError, match=r"3 of 7 rows(.|\n)*2 × .*:3, .*:6: the id 'a'(.|\n)*data.bad_rows=drop"):
        read(path, "error")


def test_a_source_without_one_usable_row_is_refused_either_way(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"task": "a", "solution": "b"}\n' * 5)
    for action in ("error", "drop"):
        with pytest.raises(UserError, match=r"none of its rows can become an example(.|\n)*5 × .*columns") as caught:
            read(path, action)
        assert "bad_rows" not in str(caught.value)
    rows, _ = read(path, "drop", columns={"instruction": "task", "output": "solution"})
    assert len(rows) == 5


def test_a_table_without_names_of_columns_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("What is 1 and 1?,It is 2.\n" * 5)
    with pytest.raises(UserError, match=r"Fields found: It is 2.(.|\n)*first line.*instruction,output"):
        read(path, "error")
    path.write_text("instruction,output\n" + path.read_text())
    assert len(read(path, "error")[0]) == 5


def test_what_stands_for_the_dropped_rows(path: Path, tmp_path: Path) -> None:
    digest = read(path, "drop")[1].digest
    (tmp_path / "elsewhere").mkdir()
    assert read(path.rename(tmp_path / "elsewhere" / "rows.jsonl"), "drop")[1].digest == digest
    assert read(tmp_path / "elsewhere" / "rows.jsonl", "drop", limit=3)[1].digest not in ("", digest)
    assert BadRows().digest == ""


@pytest.mark.parametrize(
    ("template", "train_on"), [("auto", "last"), ("auto", "all"), ("alpaca", "last"), ("plain", "last")]
)
def test_what_is_tried_out_is_what_encoding_refuses(template: str, train_on: Any) -> None:
    """Without tokens, by frames, and yet the same rows with the same words."""
    tokenizer = tiny_tokenizer("qwen2")
    rows = [{"instruction": "Why? " * length, "input": "So. " * (length % 3), "output": "a"} for length in (1, 20, 90)]
    systems = [
        {"messages": [{"role": "system", "content": "Be kind. " * n}, *TURNS]} for n in (1, 5, 9, 12, 13, 14, 15, 40)
    ]
    prompts = [{"prompt": text, "completion": "b"} for text in (" ", "a\n" + "b" * 200, "Why? " * 90 + "\nAnswer:")]
    talks = [talk(*["user", "assistant"] * turns) for turns in (2, 3)] + [
        talk("user", "user", "assistant", "assistant")
    ]
    examples = list(
        examples_from_rows(
            [*rows, *prompts, *(talks if template == "auto" else []), *(systems if template == "auto" else [])],
            "memory",
        )
    )
    refused = 0
    for longest in (8, 40, 64, 96):
        made = Encoder(
            tokenizer, get_template(template, tokenizer), max_length=128, max_prompt_length=longest, train_on=train_on
        )
        expected = {}
        for position, example in enumerate(examples):
            try:
                made.encode_rows([example])
            except UserError as error:
                expected[position] = str(error)
        for _ in range(2):
            assert {position: str(error) for position, error in made.refused(examples).items()} == expected
        refused += len(expected)
    assert refused or template == "plain"
