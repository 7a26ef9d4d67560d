"""Files are what their content says, in any usual compression and encoding; what is broken is named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as parquet
import pytest
from datasets import Json, List, Value

from srd.base.errors import UserError
from srd.data.examples import as_examples
from srd.data.files import read_lines, title_of
from srd.data.nested import reader_of, without_nulls
from srd.data.settings import SourceConfig
from srd.data.sources import read_rows
from srd.tasks.base import load_source

Row = dict[str, Any]
ROWS: list[Row] = [{"id": n, "instruction": f"Say ü {n}", "output": f"ü {n}"} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = "id,instruction,output\n" + "".join(f"{row['id']},{row['instruction']},{row['output']}\n" for row in ROWS)


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


def streamed(content: bytes) -> bytes:
    """As the command line of zstd writes: in frames whose headers do not say their length."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return bytes(sink.getvalue())


def table(write: Callable[[pa.Table, Any], Any], rows: list[Row] = ROWS) -> bytes:
    sink = pa.BufferOutputStream()
    write(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def arrow(content: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, content.schema) as file:
        file.write_table(content, max_chunksize=2)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pretty(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def case_name(part: object) -> str | None:
    """The name of a case without the bytes of its file, in which the time may stand (gzip)."""
    return "" if isinstance(part, bytes) else None


#: Name and content of files that all hold ROWS, and what they are called.
FILES: list[tuple[str, bytes, str]] = [
    ("a.jsonl", LINES.encode(), "JSON lines"),
    ("a.ndjson", LINES.encode("utf-8-sig"), "JSON lines"),
    ("a.jsonl", LINES.replace("\n", "\r\n\r\n").encode(), "JSON lines"),
    ("a.jsonl", LINES.rstrip("\n").encode("utf-16"), "JSON lines"),
    ("a.jsonl", LINES.encode("utf-16-le"), "JSON lines"),
    ("a.jsonl", LINES.encode("utf-16-be"), "JSON lines"),
    ("a.jsonl", LINES.encode("utf-32"), "JSON lines"),
    ("a.jsonl.gz", gzip.compress(LINES.encode()), "JSON lines, gzip"),
    ("a.jsonl.gz", gzip.compress(LINES[:70].encode()) + gzip.compress(LINES[70:].encode()), "JSON lines, gzip"),
    ("a.jsonl.bz2", bz2.compress(LINES.encode()), "JSON lines, bzip2"),
    ("a.jsonl.xz", lzma.compress(LINES.encode()), "JSON lines, xz"),
    ("a.jsonl.zst", zstd(LINES.encode()), "JSON lines, zstd"),
    ("a.jsonl.zst", streamed(LINES.encode()), "JSON lines, zstd"),
    ("a.jsonl.zst", zstd(LINES[:70].encode()) + zstd(LINES[70:].encode()), "JSON lines, zstd"),
    ("a.zip", zipped({"in/b.csv": TABLE.encode(), "README.md": b"#", "__MACOSX/in/._b.csv": b"x"}), "CSV, zip"),
    ("a.jsonl.zip", zipped({"b": LINES.encode()}), "JSON lines, zip"),
    ("a.zip", zipped({"b.parquet": table(parquet.write_table)}), "parquet, zip"),
    ("a.jsonl", gzip.compress(LINES.encode()), "JSON lines, gzip"),  # the ending is left out, or wrong
    ("a.jsonl.gz", LINES.encode(), "JSON lines"),
    ("a.json", LINES.encode(), "JSON lines"),
    ("a.txt", LINES.encode(), "JSON lines"),
    ("a", LINES.encode(), "JSON lines"),
    ("a.csv.gz", gzip.compress(TABLE.encode("utf-8-sig")), "CSV, gzip"),
    ("a.csv", TABLE.replace(",", ";").replace("\n", "\r\n").encode(), "CSV"),
    ("a.csv", TABLE.encode("utf-16"), "CSV"),
    ("a.csv.zst", streamed(TABLE.encode()), "CSV, zstd"),
    ("a.tsv", TABLE.replace(",", "\t").encode(), "CSV with tabs"),
    ("a.json", json.dumps(ROWS).encode(), "JSON"),
    ("a.json", pretty(ROWS), "JSON"),
    ("a.json.xz", lzma.compress(pretty(ROWS)), "JSON, xz"),
    ("a.json", pretty(ROWS).decode().encode("utf-16"), "JSON"),
    ("a.jsonl", pretty(ROWS), "JSON"),
    ("a.json", pretty({"version": 2, "about": ["x"], "data": ROWS}), "JSON"),
    ("a.json", json.dumps({"data": ROWS}).encode(), "JSON"),
    ("a.jsonl", pretty({"data": ROWS}), "JSON"),
    ("a.json", b"\n".join(map(pretty, ROWS)), "JSON"),
    ("a.parquet", table(parquet.write_table), "parquet"),
    ("a.jsonl", table(parquet.write_table), "parquet"),
    ("a.parquet", LINES.encode(), "JSON lines"),
    ("a.parquet.gz", gzip.compress(table(parquet.write_table)), "parquet, gzip"),
    ("a.arrow", table(arrow), "Arrow"),
    ("a.feather", table(pyarrow.feather.write_feather), "Arrow"),
    ("a.arrow.zst", zstd(table(arrow)), "Arrow, zstd"),
]


def load(path: Path, **fields: Any) -> datasets.Dataset:
    found = load_source(SourceConfig(path=str(path), **fields))
    assert isinstance(found, datasets.Dataset)
    return found


@pytest.mark.parametrize(("name", "content", "title"), FILES, ids=case_name)
def test_every_file_holds_the_same_examples(tmp_path: Path, name: str, content: bytes, title: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert title_of(path) == title
    found = load(path)
    assert found["id"][:] == ["0", "1", "2"]
    assert found["references"][:] == [[row["output"]] for row in ROWS]


def test_rows_without_ids_are_called_the_same_however_they_are_compressed(tmp_path: Path) -> None:
    line = b'{"instruction": "a", "output": "b"}\n'
    (tmp_path / "rows.jsonl").write_bytes(line)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(line))
    first, second = (load(tmp_path / name)["id"][0] for name in ("rows.jsonl", "rows.jsonl.gz"))
    assert first == second and first.startswith("rows-")


def test_one_object_is_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{"a": 1}]}
    asked = {"query": "a", "response": "b", "tools": [{"a": 1}]}
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps(asked))
        assert [got for _, got in read_rows(tmp_path / name)] == [asked]
    for content in (json.dumps(row), json.dumps(row, indent=1), json.dumps({**row, "tools": []})):
        (tmp_path / "a.json").write_text(content)
        assert [got["messages"] for _, got in read_rows(tmp_path / "a.json")] == [row["messages"]]


def test_places_in_nested_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(pretty({"about": {"a": [1, 2]}, "data": [{"a": 1}, 7, {"a": 2}]}))
    assert [line for line, _ in read_lines(path)] == [1]  # a list of objects and others is none of rows
    path.write_bytes(pretty({"about": {"a": [1, 2]}, "data": [{"a": 1}, {"a": 2}], "more": "x"}))
    assert list(read_lines(path)) == [(9, {"a": 1}), (12, {"a": 2})]


BROKEN: list[tuple[str, bytes, list[str]]] = [
    ("a.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-30], ["a.jsonl.gz", "end-of-stream", "whole"]),
    ("a.jsonl.gz", gzip.compress(LINES.encode())[:12] + b"junk" * 9, ["a.jsonl.gz", "whole"]),
    ("a.jsonl.xz", lzma.compress(LINES.encode() * 99)[:-30], ["a.jsonl.xz", "whole"]),
    ("a.jsonl.bz2", bz2.compress(LINES.encode() * 99)[:-30], ["a.jsonl.bz2", "whole"]),
    ("a.jsonl.zst", streamed(LINES.encode() * 99)[:-30], ["a.jsonl.zst", "whole"]),
    ("a.jsonl", bytes(range(256)) * 9, ["a.jsonl", "binary"]),
    ("a.csv", b"\x00\x01\x02" * 99, ["a.csv", "binary"]),
    ("a.jsonl", b"PK\x03\x04" + b"x" * 99, ["a.jsonl", "whole"]),
    ("a.zip", zipped({"a.jsonl": b"{}", "b.csv": b"a"}), ["zip archive of 2 files (a.jsonl, b.csv)", "Unpack"]),
    ("a.xlsx", zipped({"[Content_Types].xml": b"", "xl/workbook.xml": b""}), ["spreadsheet", "Save it as CSV"]),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["a.parquet", "git lfs pull"]),
    ("a.bin", bytes(range(256)), ["'.bin'", "format"]),
    ("a.txt", b"Once upon a time", ["'.txt'", "Once upon", "format"]),
    ("a.json", pretty({"train": ROWS, "test": ROWS}), ["train, test", "file of its own"]),
    ("a.json", b"{", ["a.json:1", "not valid JSON"]),
    ("a.json", b'{"a" 1}', ["a.json:1", "':'"]),
    ("a.json", b'"text"', ["a.json", "expected a JSON array", "text"]),
    ("a.parquet", table(parquet.write_table)[:-20], ["a.parquet", "parquet"]),
    ("a.arrow", table(arrow)[:-60], ["a.arrow", "Arrow"]),
    ("a.jsonl", LINES.encode("latin-1"), ["a.jsonl:1", "not UTF-8", "iconv"]),
    ("a.csv", "instruction,output\na,b\nc,it’s\n".encode("cp1252"), ["a.csv:3", "not UTF-8", "iconv -f CP1252"]),
    ("a.json", b'[{"id": 1, "prompt": "a", "response": "b"}, {"id": 2, "prompt": "a"}]', ["a.json:1 (row 2): "]),
    ("a.json", b'[{"prompt": "a", "response": "b"}, 7]', ["a.json:1 (row 2): expected an object"]),
]


@pytest.mark.parametrize(("name", "content", "words"), BROKEN, ids=case_name)
def test_what_is_broken_is_named(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(tmp_path / name)
    for word in [str(tmp_path / name), *words]:
        assert word in str(caught.value)


def test_zstd_without_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(LINES.encode()))
    monkeypatch.setattr(pa, "Codec", SimpleNamespace(is_available=lambda name: False))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="pip install zstandard"):
        load(tmp_path / "a.jsonl.zst")


def test_nested_columns_of_a_table(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": None}]
    rows = [{"id": 1, "talk": {"turns": talk}, "about": {"level": 3}}]
    (tmp_path / "a.parquet").write_bytes(table(parquet.write_table, rows))
    (example,) = load(tmp_path / "a.parquet", columns={"messages": "talk.turns"})
    assert json.loads(example["messages"]) == [{"role": "user", "content": "a"}] and example["references"] == ["b"]


def with_tool(name: str, properties: Row) -> Row:
    call = {"type": "function", "function": {"name": name, "arguments": dict.fromkeys(properties)}}
    talk = [{"role": "user", "content": name}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    function = {"name": name, "parameters": {"type": "object", "properties": properties}}
    return {"id": name, "messages": talk, "tools": [{"type": "function", "function": function}]}


FUNCTION = {"name": Value("string"), "parameters": {"type": Value("string"), "properties": Json()}}
DEEP = {"messages": List(Json()), "tools": List({"type": Value("string"), "function": FUNCTION})}


@pytest.mark.parametrize("kinds", [DEEP, {"messages": Json(), "tools": Json()}])
def test_columns_of_the_type_json_are_what_their_text_says(tmp_path: Path, kinds: Row) -> None:
    """As `datasets` infers it where objects in one place have different keys."""
    rows = [with_tool("f", {"a": {"default": None}}), with_tool("g", {"b": {"enum": ["x", None]}})]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = load(tmp_path / "a.jsonl").to_list()
    assert json.loads(expected[0]["extra"])["tools"] == rows[0]["tools"]
    kept = datasets.Dataset.from_list(rows, features=datasets.Features({"id": Value("string"), **kinds}))
    kept.save_to_disk(str(tmp_path / "saved"))
    parquet.write_table(kept.data.table, tmp_path / "a.parquet")
    for found in (load(tmp_path / "saved"), load(tmp_path / "a.parquet"), as_examples(kept)):
        assert found.to_list() == expected
    assert as_examples(kept.to_iterable_dataset()).to_list() == expected


def test_columns_without_json_cost_no_more() -> None:
    assert reader_of(pa.string()) is None and reader_of(pa.list_(pa.struct([("a", pa.string())]))) is without_nulls


# ------------------------------------------------------------------------------------------------------------ folders


def put(folder: Path, names: dict[str, int], **more: str) -> Path:
    """Write files of so many rows, no two alike."""
    for name, count in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"instruction": f"{name} {number}", "output": "a"} for number in range(count)]
        if path.suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    for name, text in more.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def sizes(path: Path | str, **fields: Any) -> dict[str, int]:
    found = load_source(SourceConfig(path=str(path), **fields))
    return {name: len(rows) for name, rows in found.items()} if isinstance(found, dict) else {"": len(found)}


SHARDS = "train-0000{}-of-00002.parquet"
FOLDERS: list[tuple[dict[str, int], dict[str, int]]] = [
    ({"train.jsonl": 3, "test.jsonl": 2}, {"train": 3, "test": 2}),
    ({"my_train.jsonl.gz": 3, "my-dev.jsonl": 2}, {"train": 3, "validation": 2}),
    ({SHARDS.format(0): 3, SHARDS.format(1): 2, "validation-00000-of-00001.parquet": 1}, {"train": 5, "validation": 1}),
    ({f"data/{SHARDS.format(0)}": 3, f"data/{SHARDS.format(1)}": 2, "data/test-00000-of-00001.parquet": 1},
     {"train": 5, "test": 1}),
    ({"data/train/a.parquet": 3, "data/train/b.parquet": 2, "data/test/a.parquet": 1}, {"train": 5, "test": 1}),
    ({"train/part.0.jsonl": 3, "train/part.1.jsonl": 2, "eval/part.0.jsonl": 1}, {"train": 5, "test": 1}),
    ({"part-00000-ab12.jsonl": 3, "part-00001-ab12.jsonl": 2, "_SUCCESS": 0, ".part.crc": 9}, {"": 5}),
    ({"0000.parquet": 3, "0001.parquet": 2}, {"": 5}),
    ({"shard_0.jsonl": 3, "deep/er/shard_1.jsonl": 2, "dataset_info.json": 1}, {"": 5}),
    ({"train.00.jsonl": 3, "train.01.jsonl": 2}, {"train": 5}),
    ({"training.jsonl": 3, "val.jsonl": 2, "testing.jsonl": 1}, {"train": 3, "validation": 2, "test": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("names", "expected"), FOLDERS)
def test_folders(tmp_path: Path, names: dict[str, int], expected: dict[str, int]) -> None:
    folder = put(tmp_path / "set", names, LICENSE="free", README__md="# About\n")
    assert sizes(folder) == expected
    if "test" in expected:
        assert sizes(folder, split="test") == {"": expected["test"]}


def test_what_a_folder_leaves_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = put(tmp_path / "set", {"train.jsonl": 3, "more.jsonl": 2})
    assert sizes(folder) == {"train": 3}
    assert "1 file left out" in caplog.text and "more.jsonl" in caplog.text


def test_a_link_to_nothing_is_called_that(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", {"train-0.jsonl": 3})
    (folder / "train-1.jsonl").symlink_to("gone.jsonl")
    for path in (folder, folder / "train-1.jsonl"):
        with pytest.raises(UserError, match=r"train-1\.jsonl: this link leads to gone\.jsonl, where nothing is"):
            sizes(path)


CONFIGS = """---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: en/a-*.parquet
  - {split: test, path: [en/b.parquet]}
- config_name: de
  data_files: de/*.jsonl
- config_name: fr
  data_files: {train: fr/x.jsonl, dev_set: [fr/y.jsonl, fr/z.jsonl]}
- config_name: all
  data_dir: all
---
# About
"""


def test_configurations_of_a_snapshot(tmp_path: Path) -> None:
    names = {"en/a-0.parquet": 1, "en/a-1.parquet": 2, "en/b.parquet": 3, "de/a.jsonl": 4, "fr/x.jsonl": 5,
             "fr/y.jsonl": 6, "fr/z.jsonl": 7, "all/train.jsonl": 8, "all/test.jsonl": 9}  # fmt: skip
    folder = put(tmp_path / "set", names, README__md=CONFIGS)
    assert sizes(folder, config="en") == {"train": 3, "test": 3}
    assert sizes(folder, config="en", split="test") == {"": 3}
    assert sizes(folder, config="de") == {"": 4}
    assert sizes(folder, config="fr") == {"train": 5, "dev_set": 13}
    assert sizes(folder, config="all") == {"train": 8, "test": 9}
    with pytest.raises(UserError, match=r"several configurations \(en, de, fr, all\).*config: en"):
        sizes(folder)
    with pytest.raises(UserError, match="did you mean 'en'"):
        sizes(folder, config="eng")
    (folder / "README.md").write_text(CONFIGS.replace("config_name: de", "config_name: de\n  default: true"))
    assert sizes(folder) == {"": 4}
    (folder / "README.md").write_text(CONFIGS.replace("de/*", "nowhere/*"))
    with pytest.raises(UserError, match=r"README\.md names the files 'nowhere/\*\.jsonl'"):
        sizes(folder, config="de")
    (folder / "README.md").unlink()
    assert sizes(folder, config="all") == {"train": 8, "test": 9}
    with pytest.raises(UserError, match="no folder 'al'; did you mean 'all'"):
        sizes(folder, config="al")


def test_patterns(tmp_path: Path) -> None:
    put(tmp_path, {"a-0.jsonl": 1, "a-1.jsonl.gz": 2, "b/c/a-2.jsonl": 4, "d/train-0.jsonl": 8, "d/test-0.jsonl": 16})
    assert sizes(f"{tmp_path}/a-*") == {"": 3}
    assert sizes(f"{tmp_path}/**/a-*.jsonl") == {"": 5}
    assert sizes(f"{tmp_path}/*/*/a-[0-9].jsonl") == {"": 4}
    assert sizes(f"{tmp_path}/d/*") == {"train": 8, "test": 16}  # not all mixed up
    both = SourceConfig(path=[f"{tmp_path}/a-*", f"{tmp_path}/b/c/a-2.jsonl"])
    assert len(load_source(both)) == 7
    twice = SourceConfig(path=[f"{tmp_path}/a-*", f"{tmp_path}/a-[01].jsonl"])
    assert len(load_source(twice)) == 3
    with pytest.raises(UserError, match=r"d: a folder among several paths. .*d/\*\*/\*\.jsonl"):
        load_source(SourceConfig(path=[f"{tmp_path}/a-*", f"{tmp_path}/d"]))
    with pytest.raises(UserError, match=r"no file matches '.*c-\*'"):
        sizes(f"{tmp_path}/c-*")
    with pytest.raises(UserError, match=r"config \('en'\) is for folders"):
        sizes(tmp_path / "a-0.jsonl", config="en")


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(
        [{"id": n, **row} for n, row in enumerate([{"question": "a", "answer": "b"}] * 5)]
    )
    rows.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert sizes(tmp_path / "one") == {"": 5}
    assert load(tmp_path / "one")["id"][:] == [str(n) for n in range(5)]
    splits = datasets.DatasetDict({"train": rows, "test": rows.select([0])})
    splits.save_to_disk(str(tmp_path / "two"))
    assert sizes(tmp_path / "two") == {"train": 5, "test": 1} and sizes(tmp_path / "two" / "test") == {"": 1}
    bad = datasets.Dataset.from_list([{"question": "a", "answer": "b"}, {"question": "a", "answer": ""}])
    bad.save_to_disk(str(tmp_path / "three"))
    with pytest.raises(UserError, match="three: row 2"):
        sizes(tmp_path / "three")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"x")
    with pytest.raises(UserError, match="one"):
        sizes(tmp_path / "one")


def test_what_a_file_is_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = put(tmp_path / "set", {"train-0.jsonl.gz": 1200, "train-1.parquet": 1}, README__md=CONFIGS)
    with caplog.at_level(logging.INFO, "srd"):
        sizes(tmp_path / "set" / "train-*")
    assert caplog.messages == [f"{folder}/train-*: 1 × JSON lines, gzip, 1 × parquet: 1,201 instructions with answers"]


def test_a_pipe_is_refused_without_waiting_for_who_writes_into_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="a pipe or a device"):
        title_of(tmp_path / "rows.jsonl")
