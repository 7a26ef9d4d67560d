"""Tables in files, by their ending."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from srd.errors import UserError
from srd.tables import positions, read_table, write_table

ROWS = datasets.Dataset.from_dict({"id": ["a", "é"], "rrf": [1 / 60.5, 1 / 3], "rank": [1, 2]})


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_what_is_written_is_read_to_the_last_digit(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"ranked{ending}"
    write_table(ROWS, path)
    assert read_table(path).to_pydict() == ROWS.to_dict()


def test_rows_are_found_by_id() -> None:
    rows = datasets.Dataset.from_dict({"id": ["b", "é", "a", "c"]}).select([3, 0, 1])  # c, b, é
    assert positions(["é", "c", "é"], rows).tolist() == [2, 0, 2]
    assert positions([], rows).tolist() == []
    with pytest.raises(KeyError, match="no row has the id a"):
        positions(["b", "a"], rows)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_table(tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"unknown ending '\.txt'"):
        write_table(ROWS, tmp_path / "x.txt")
    broken = tmp_path / "broken.parquet"
    broken.write_text("no parquet")
    with pytest.raises(UserError, match=r"broken\.parquet cannot be read as parquet"):
        read_table(broken)
