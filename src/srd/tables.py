"""Tables in files by their ending: parquet, CSV, JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from srd.artifacts import atomic_write
from srd.errors import UserError


def read_table(path: Path) -> pa.Table:
    """Read a parquet, CSV or JSONL file.

    Raises:
        UserError: no such file, an unknown ending, or content that is not what the ending says.
    """
    if not path.is_file():
        raise UserError(f"no file '{path}'")
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        if path.suffix == ".csv":
            return pacsv.read_csv(path)
        if path.suffix in (".jsonl", ".json"):
            return pajson.read_json(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    raise UserError(f"{path}: unknown ending '{path.suffix}'. Use .parquet, .csv or .jsonl")


def write_table(rows: datasets.Dataset, path: Path) -> None:
    """Write parquet, CSV or JSONL, by the ending, whole or not at all."""
    table: Any = rows.with_format("arrow")[:]
    if path.suffix not in (".parquet", ".csv", ".jsonl"):
        raise UserError(f"{path}: unknown ending '{path.suffix}'. Use .parquet, .csv or .jsonl")
    with atomic_write(path) as partial:
        if path.suffix == ".parquet":
            pq.write_table(table, partial)
        elif path.suffix == ".csv":
            pacsv.write_csv(table, partial)
        else:
            datasets.Dataset(table).to_json(partial, lines=True)
