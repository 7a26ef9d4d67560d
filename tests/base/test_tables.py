"""Tables in files, by their ending."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srd.base import tables
from srd.base.errors import UserError
from srd.base.tables import map_large, open_mapped, parts_of, positions, reopened, taken, write_table
from srd.data.sources import read_scores

ROWS = datasets.Dataset.from_dict({"id": ["a", "é"], "rrf": [1 / 60.5, 1 / 3], "rank": [1, 2]})


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl", ".PARQUET", ".Csv", ".JSONL"])
def test_what_is_written_is_read_to_the_last_digit(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"ranked{ending}"
    write_table(ROWS, path)
    assert read_scores(path) == ROWS.to_list()


@pytest.mark.parametrize("places", [[2, 0, 4999, 1], list(range(4999, -1, -1)), list(range(0, 5000, 3)), []])
def test_rows_in_another_order_are_written_as_if_one_by_one(places: list[int], tmp_path: Path) -> None:
    """The bytes are those of a piece for each row, of which Arrow fills its pages; they are there ten times sooner."""
    count, draw = 5000, np.random.default_rng(0)
    columns = {"id": [f"row-{i}" for i in range(count)], "text": [draw.bytes(300).hex() for _ in range(count)],
               "references": [["a"] * (i % 3) for i in range(count)], "rank": list(range(count))}  # fmt: skip
    table = pa.table(columns)
    rows = datasets.Dataset(pa.concat_tables([table.slice(0, 1200), table.slice(1200, 1), table.slice(1201)]))
    ours, theirs = tmp_path / "ours.parquet", tmp_path / "theirs.parquet"
    with pq.ParquetWriter(theirs, rows.features.arrow_schema) as writer:
        if places:
            writer.write_table(pa.concat_tables([table.slice(place, 1) for place in places]))
    write_table(rows.select(np.array(places, dtype=np.int64)), ours)
    assert ours.read_bytes() == theirs.read_bytes()


def test_large_tables_are_read_through_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tmp_path / "rows.parquet", tmp_path / "mapped"
    write_table(ROWS, path)
    small = open_mapped(path, folder)
    assert small.cache_files == [] and reopened(small) is small
    monkeypatch.setattr(tables, "LARGE_BYTES", 0)
    map_large([path], folder)
    mapped = open_mapped(path, folder)
    again = reopened(mapped)
    assert again is not mapped and again.cache_files == mapped.cache_files != []
    for part in (mapped.select([1]), mapped.select([1, 0]), mapped.select_columns(["id"])):
        assert reopened(part) is part
    assert small.to_dict() == mapped.to_dict() == again.to_dict() == ROWS.to_dict()
    file = Path(mapped.cache_files[0]["filename"])
    for damage in (file.read_bytes()[:-9], b""):  # it is written again
        file.unlink()
        file.write_bytes(damage)
        map_large([path], folder)
        assert open_mapped(path, folder).to_dict() == ROWS.to_dict()


def test_rows_are_found_by_id() -> None:
    rows = datasets.Dataset.from_dict({"id": ["b", "é", "a", "c"]}).select([3, 0, 1])  # c, b, é
    assert positions(["é", "c", "é"], rows).tolist() == [2, 0, 2]
    assert positions([], rows).tolist() == []
    with pytest.raises(KeyError, match="no row has the id a"):
        positions(["b", "a"], rows)


def test_wrong_endings_are_named(tmp_path: Path) -> None:
    for name in ("x.txt", "x.csv.gz", "x"):
        with pytest.raises(UserError, match=r"unknown ending '.*'\. Use \.parquet, \.csv or \.jsonl"):
            write_table(ROWS, tmp_path / name)


@pytest.mark.parametrize("places", [None, [3, 1, 2], [4, 4, 0, 1], []])
def test_parts_are_the_rows_in_their_order(places: list[int] | None) -> None:
    table = pa.concat_tables(
        [pa.table({"id": ["a", "b"], "n": [0, 1]}), pa.table({"id": ["c", "d", "e"], "n": [2, 3, 4]})]
    )
    rows = datasets.Dataset(table)
    rows = rows if places is None else rows.select(places)
    for count in (1, 2, 10):
        parts = list(parts_of(rows, ["n"], count))
        assert [value for part in parts for value in part["n"].to_pylist()] == rows["n"][:]
        assert all(0 < len(part) <= count and part.column_names == ["n"] for part in parts)
    assert [row for part in parts_of(rows) for row in part.to_pylist()] == rows.to_list()


@pytest.mark.parametrize("places", [[0], [1, 2, 3, 7], [4, 5], [6, 8], list(range(9)), []])
def test_rows_are_taken_by_their_places_in_all_of_several_data_sets(places: list[int]) -> None:
    numbers = pa.chunked_array([[0, 1], [2, 3, 4]])
    first = datasets.Dataset(pa.table({"n": numbers, "id": numbers}))
    both = [
        first,
        datasets.Dataset(pa.table({"n": pa.chunked_array([[5], [6, 7]])})).select([2, 0, 1]),
        first.select([4]),
    ]
    whole = [value for part in both for value in part["n"][:]]
    found = list(taken(both, ["n"], np.array(places, dtype=np.int64)))
    assert [value for part in found for value in part["n"].to_pylist()] == [whole[place] for place in places]
    assert all(part.column_names == ["n"] and len(part) for part in found)
