"""Files, the hub and named data sets give the same examples, or an error that can be acted on."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset, DatasetDict

from srd.base.errors import UserError
from srd.data.settings import SourceConfig
from srd.data.sources import read_rows, read_scores
from srd.tasks.base import data_sets, load_source

Row = dict[str, Any]
ROWS: list[Row] = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": 'Say "ü"', "input": "", "output": "ü\nü"},
    {"instruction": "Name a fish", "input": "", "output": "Cod"},
]


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(folder: Path, format: str) -> Path:
    path = folder / f"data.{format}"
    if format == "jsonl":
        return write_jsonl(path, ROWS)
    if format == "json":
        path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    elif format == "csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def load(**fields: Any) -> Dataset:
    found = load_source(SourceConfig(**{name: _text(value) for name, value in fields.items()}))
    assert isinstance(found, Dataset)
    return found


def load_splits(**fields: Any) -> DatasetDict:
    found = load_source(SourceConfig(**{name: _text(value) for name, value in fields.items()}))
    assert isinstance(found, DatasetDict)
    return found


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def message(**fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_source(SourceConfig(**{name: _text(value) for name, value in fields.items()}))
    return str(caught.value)


# -------------------------------------------------------------------------------- file formats


@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, format: str) -> None:
    expected = load(path=write(tmp_path, "jsonl"))
    path = write(tmp_path, format)
    assert load(path=path)[:] == expected[:]
    renamed = path.rename(tmp_path / "data.bin")
    assert load(path=renamed, format=format)[:] == expected[:]
    if format == "csv":
        assert "'.bin'" in message(path=renamed)
    else:  # the content tells
        assert load(path=renamed)[:] == expected[:]


def test_lines_are_where_rows_start(tmp_path: Path) -> None:
    assert [line for line, _ in read_rows(write(tmp_path, "csv"))] == [2, 3, 5]
    assert [line for line, _ in read_rows(write(tmp_path, "json"))] == [2, 7, 12]
    assert [line for line, _ in read_rows(write(tmp_path, "parquet"))] == [1, 2, 3]
    path = tmp_path / "gaps.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert list(read_rows(path)) == [(1, {"a": 1}), (3, {"a": 2})]
    path = tmp_path / "really_lines.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert list(read_rows(path)) == [(1, {"a": 1}), (2, {"a": 2})]
    path.write_text(" [ ] ")
    assert list(read_rows(path)) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            b'{"question": "q", "answer": "a"}\n{"question: 1}\n',
            ["a.jsonl:2", "not valid JSON", '{"question: 1}'],
        ),
        ("a.jsonl", b'{"question": "q", "answer": "a"}\n\n[1, 2]\n', ["a.jsonl:3", "list", "[1, 2]"]),
        ("a.jsonl", b'{"question": "q", "answer": "a"}\n\n{"question": "q"}\n', ["a.jsonl:3", "question"]),
        ("a.jsonl", b'{"question": "\xff"}\n', ["a.jsonl:1", "UTF-8"]),
        ("a.jsonl", b"\n\n", ["a.jsonl", "no rows"]),
        ("a.json", b'[{"question": "q", "answer": "a"},\n {"question" 1}]', ["a.json:2", "not valid JSON"]),
        ("a.json", b'[{"question": "q", "answer": "a"}\n {}]', ["a.json:2", "expected ',' or ']'"]),
        ("a.json", b'[{"question": "q", "answer": "a"}', ["a.json:1", "end of the file"]),
        ("a.json", b"[1]", ["a.json:1", "int"]),
        ("a.json", b'[{"question": "q", "answer": "a"}] x', ["a.json", "after the end"]),
        ("a.json", b"", ["a.json", "nothing"]),
        ("a.csv", b"question,answer\nq,a\nq,a,b\n", ["a.csv:3", "question, answer"]),
        ("a.csv", b"question,answer\nq\n", ["a.csv:2", "quote"]),
        ("a.csv", b"question,answer\n\xff,a\n", ["a.csv:", "UTF-8"]),
        ("a.csv", b'question,answer\n"q,a\n', ["a.csv:", "not valid CSV"]),
        ("a.csv", b"question,answer\nq,\n", ["a.csv:2", "'answer'", "empty"]),
        ("a.parquet", b"PAR1 or not", ["a.parquet", "parquet"]),
    ],
)
def test_broken_files_name_file_and_line(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    found = message(path=tmp_path / name)
    for word in words:
        assert word in found


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path, "jsonl")
    assert str(tmp_path / "data.jsonl") in message(path=tmp_path / "dat.jsonl")
    assert "no folder" in message(path=tmp_path / "nowhere" / "data.jsonl")
    assert "Near it are: gsm8k." in message(path="gsm8kk")
    with pytest.raises(UserError, match="folder"):
        list(read_rows(tmp_path))


def test_several_files_and_folders(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "my_train.jsonl", ROWS[:2])
    two = write_jsonl(tmp_path / "test.jsonl", ROWS[2:])
    assert load(path=[str(one), str(two)])["references"][:] == [[row["output"]] for row in ROWS]
    splits = load_splits(path=tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "test": 1}
    assert len(load(path=tmp_path, split="test")) == 1
    assert "did you mean 'test'" in message(path=tmp_path, split="tst")
    assert "no splits" in message(path=one, split="train")
    (tmp_path / "other").mkdir()
    assert "no file of rows" in message(path=tmp_path / "other")


def test_a_task_id_that_is_text_is_a_row_that_cannot_be_used(tmp_path: Path) -> None:
    row: Row = {"task_id": "11", "text": "Add.", "code": "def f(): pass", "test_list": ["f()"]}
    assert "expected a whole number, found '11'" in message(
        dataset="mbpp", path=write_jsonl(tmp_path / "m.jsonl", [row])
    )


def test_ids_used_in_two_files(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", [{"id": 1, **ROWS[0]}])
    two = write_jsonl(tmp_path / "b.jsonl", [{"id": 2, **ROWS[1]}, {"id": 1, **ROWS[2]}])
    found = message(path=[str(one), str(two)])
    assert "'1'" in found and "by a.jsonl:1" in found and f"{two}:2" in found


def test_columns_and_limit(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"task": f"t{n}", "solution": "s", "input": "i"} for n in range(5)])
    columns = {"instruction": "task", "output": "solution"}
    found = load(path=path, columns=columns, limit=2)
    assert [(row["instruction"], row["input"], row["references"]) for row in found] == [
        ("t0", "i", ["s"]),
        ("t1", "i", ["s"]),
    ]
    assert "did you mean 'task'" in message(path=path, columns={"instruction": "tasks", "output": "solution"})
    assert "did you mean 'instruction'" in message(path=path, columns={"instrucion": "task"})


# -------------------------------------------------------------------------------- named data sets


def test_registry_is_complete() -> None:
    assert set(data_sets()) == {"alpaca", "dolly", "gsm8k", "iwslt2017", "mbpp", "pydocs", "xsum"}
    for name, entry in data_sets().items():
        assert entry.name == name and entry.licence and entry.splits


def test_dolly_takes_the_first_thousand_for_validation(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "context": "c", "response": "r", "category": "qa"} for n in range(1003)]
    splits = load_splits(dataset="dolly", path=write_jsonl(tmp_path / "d.jsonl", rows))
    assert {name: len(split) for name, split in splits.items()} == {"validation": 1000, "train": 3}
    assert splits["train"][0]["instruction"] == "q1000" and splits["train"][0]["input"] == "c"
    limited = load_splits(dataset="dolly", path=tmp_path / "d.jsonl", limit=2)
    assert {name: len(split) for name, split in limited.items()} == {"validation": 2, "train": 2}


def test_mbpp_splits_by_task(tmp_path: Path) -> None:
    rows = [
        {"text": "Add.", "code": "def f(a):\r\n\treturn a", "task_id": n, "test_list": ["assert f(1) == 1"]}
        for n in (1, 10, 11, 510, 511, 600, 601, 974)
    ]
    splits = load_splits(dataset="mbpp", path=write_jsonl(tmp_path / "m.jsonl", rows))
    ids = {name: split["id"][:] for name, split in splits.items()}
    assert ids == {
        "prompt": ["mbpp-1", "mbpp-10"],
        "test": ["mbpp-11", "mbpp-510"],
        "validation": ["mbpp-511", "mbpp-600"],
        "train": ["mbpp-601", "mbpp-974"],
    }
    row = splits["train"][0]
    assert row["instruction"].startswith("Add.") and row["instruction"].endswith("\nassert f(1) == 1")
    assert row["references"] == ["def f(a):\n\treturn a"]


def test_iwslt2017_goes_in_the_direction_of_the_pair(tmp_path: Path) -> None:
    rows: list[Row] = [{"translation": {"en": "Good day", "de": "Guten Tag"}}]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    row = load(dataset="iwslt2017", path=path, language_pair="en-de")[0]
    assert row["instruction"] == "Translate from English to German."
    assert (row["input"], row["references"]) == ("Good day", ["Guten Tag"])
    back = load(dataset="iwslt2017", path=path, language_pair="de-en")[0]
    assert (back["input"], back["references"]) == ("Guten Tag", ["Good day"])
    assert "needs a language_pair" in message(dataset="iwslt2017", path=path)
    assert "'xx'" in message(dataset="iwslt2017", path=path, language_pair="en-xx")
    assert "pair of languages" in message(dataset="iwslt2017", path=path, language_pair="en")
    missing = message(dataset="iwslt2017", path=path, language_pair="en-fr")
    assert f"{path}:1" in missing and "'fr'" in missing


def test_other_named_data_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    xsum = write_jsonl(
        tmp_path / "x.jsonl",
        [{"id": "9", "document": "Long.", "summary": "Short."}, {"id": "8", "document": "", "summary": "x"}],
    )
    with caplog.at_level(logging.WARNING):
        row = load(dataset="xsum", path=xsum)[0]
    assert "left out 1 row without a text" in caplog.text
    assert (row["id"], row["input"], row["references"]) == ("9", "Long.", ["Short."])
    assert row["instruction"] == "Summarize the following article in one sentence."
    math = load(dataset="gsm8k", path=write_jsonl(tmp_path / "g.jsonl", [{"question": "1?", "answer": "#### 1"}]))
    assert math[0]["id"].startswith("gsm8k-")
    alpaca = load(dataset="alpaca", path=write_jsonl(tmp_path / "a.jsonl", [*ROWS, {**ROWS[0], "output": ""}]))
    assert len(alpaca) == 3
    wrong = message(dataset="mbpp", path=tmp_path / "g.jsonl")
    assert f"{tmp_path / 'g.jsonl'}:1" in wrong and "'mbpp'" in wrong
    assert "did you mean 'xsum'" in message(dataset="xsun")


@pytest.mark.xdist_group("pydocs")
def test_pydocs_by_name(pydocs_seconds: float) -> None:
    splits = load_splits(path="pydocs", limit=5)
    assert {name: len(split) for name, split in splits.items()} == {"train": 5, "validation": 5, "test": 5}
    assert "reads no file" in message(dataset="pydocs", path=__file__)


# -------------------------------------------------------------------------------- the hub


def fake_hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[Row]]) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None = None, **options: Any) -> DatasetDict:
        calls.append((path, name, options["revision"], options["streaming"]))
        return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, {"train": ROWS, "test": ROWS[:1]})
    assert {name: len(split) for name, split in load_splits(path="owner/name:part").items()} == {
        "train": 3,
        "test": 1,
    }
    assert len(load(path="owner/name", split="test", limit=1)) == 1
    assert calls == [("owner/name", "part", None, False), ("owner/name", None, None, True)]
    assert "did you mean 'train'" in message(path="owner/name", split="trian")


def test_configurations_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, {"train_sft": ROWS, "test_sft": ROWS[:1]})
    assert len(load(path="owner/name", config="en", split="train_sft")) == 3
    assert len(load(path="owner/name:en", config="en", split="train_sft")) == 3
    assert calls == [("owner/name", "en", None, False)] * 2
    assert "'en', and config another: 'de'. Remove one" in message(path="owner/name:en", config="de")


def test_named_data_sets_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = [{"translation": {"en": "Good day", "de": "Guten Tag"}}]
    calls = fake_hub(monkeypatch, {"train": rows, "test": rows})
    assert len(load(path="iwslt2017", split="test", language_pair="de-en")) == 1
    assert calls == [("IWSLT/iwslt2017", "iwslt2017-de-en", "refs/convert/parquet", False)]
    dolly = [{"instruction": f"q{n}", "context": "", "response": "r"} for n in range(1001)]
    fake_hub(monkeypatch, {"train": dolly})
    assert len(load(dataset="dolly", split="validation")) == 1000
    fake_hub(monkeypatch, {"train": ROWS})
    assert len(load(dataset="alpaca", split="train")) == 3


def test_hub_errors_say_where_the_row_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, {"train": [ROWS[0], {**ROWS[1], "output": ""}]})
    assert "owner/name train: row 2" in message(path="owner/name")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route"),
        ValueError("no such config"),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
)
def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*names: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = message(dataset="gsm8k")
    assert "openai/gsm8k" in found and str(error) in found and "`dataset: gsm8k`" in found and "path" in found


@pytest.mark.parametrize(
    "content", ["null", " null\n", "\ufeffnull", '{"id": "a"}\nnull\n', '{"id": "a"} null', "[null]"]
)
def test_a_row_that_is_null_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"rows\.jsonl:.*(expected an object|expected a JSON array|not valid JSON|found NoneType)"
    ):
        read_scores(path)
    path.write_text('{"id": "a", "text": "} null"}\n{"id": null, "text": null}\n')
    assert read_scores(path) == [{"id": "a", "text": "} null"}, {"id": None, "text": None}]


@pytest.mark.parametrize(
    ("ids", "ending"),
    [
        (["0001", "0002", "10"], ".csv"),
        (["2024-01-01", "2024-01-02T10:00:00Z"], ".csv"),
        (["2024-01-01", "2024-01-02 10:00:00"], ".jsonl"),
        (["0001", "1e3"], ".jsonl"),
        (["true", "1.50", "NA"], ".csv"),
        (["a b", "é"], ".csv"),
    ],
)
def test_ids_stay_as_they_are_written(ids: list[str], ending: str, tmp_path: Path) -> None:
    """Other columns are numbers where they can be."""
    path = tmp_path / f"scores{ending}"
    lines = [f"{name},{number}.5" for number, name in enumerate(ids)]
    if ending == ".jsonl":
        lines = [json.dumps({"id": name, "ce": number + 0.5}) for number, name in enumerate(ids)]
    path.write_text("\n".join(["id,ce", *lines] if ending == ".csv" else lines) + "\n", encoding="utf-8")
    assert read_scores(path) == [{"id": name, "ce": number + 0.5} for number, name in enumerate(ids)]


def test_ids_that_are_numbers_or_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "ce": 2}\n{"id": 2, "ce": 2}\n')
    assert [row["id"] for row in read_scores(tmp_path / "a.jsonl")] == [1, 2]
    (tmp_path / "a.csv").write_text("ce,id\n1,7\nNA,\nhigh,8\n")
    assert read_scores(tmp_path / "a.csv") == [
        {"ce": 1, "id": "7"},
        {"ce": None, "id": None},
        {"ce": "high", "id": "8"},
    ]
    (tmp_path / "b.csv").write_text("ce,rank\n1,7\n")
    assert read_scores(tmp_path / "b.csv") == [{"ce": 1, "rank": 7}]
