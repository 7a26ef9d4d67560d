"""Tables in Arrow, in memory and in files: parquet, CSV, JSON lines by the ending."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from datasets.formatting import query_table
from numpy.typing import NDArray

from srd.base.errors import UserError
from srd.base.files import atomic_write, digest_of, discard, is_sealed, seal

LARGE_BYTES = 16 << 20  # a parquet file of this size takes many times as much memory
MAP_ROWS = 1_000
WRITE_ROWS = 10_000
WRITTEN = (".parquet", ".csv", ".jsonl")  # endings that say how a table is written


def map_large(paths: list[Path], folder: Path) -> None:
    """Copy large parquet files to ``folder`` in Arrow's own format, which can be read through a memory map."""
    for path in paths:
        target = _mapped(path, folder)
        if path.stat().st_size < LARGE_BYTES or is_sealed(target):
            continue
        for older in [*folder.glob(f"{path.stem}-*"), *folder.glob(f".{path.stem}-*")]:
            discard(older)
        source = pq.ParquetFile(path)
        with atomic_write(target) as partial, pa.ipc.new_stream(str(partial), source.schema_arrow) as stream:
            for batch in source.iter_batches(MAP_ROWS):
                stream.write_batch(batch)
        seal(target)


def open_mapped(path: Path, folder: Path) -> datasets.Dataset:
    """Open a parquet file: through the memory map that `map_large` made, or in memory where there is none."""
    mapped = _mapped(path, folder)
    if mapped.exists():
        return datasets.Dataset.from_file(str(mapped))
    # With a name of its own; else one is made from all of the bytes.
    return data_set(pq.ParquetFile(path).read(), digest_of(path))


def data_set(table: pa.Table, name: str = "") -> datasets.Dataset:
    """A table as a data set, with a name, else one by chance: the library would make one from all of the bytes."""
    return datasets.Dataset(table, fingerprint=name or secrets.token_hex(8))


def reopened(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows through a memory map of their own, whose pages leave the process with it; else as they are."""
    files = [file["filename"] for file in rows.cache_files]
    if len(files) != 1 or rows._indices is not None:
        return rows
    again = datasets.Dataset.from_file(files[0])  # all of the file, where ``rows`` may be a slice of it
    return again if (len(again), again.column_names) == (len(rows), rows.column_names) else rows


def _mapped(path: Path, folder: Path) -> Path:
    return folder / f"{path.stem}-{digest_of(path)}.arrow"


def positions(ids: pa.Array | pa.ChunkedArray | list[str], rows: datasets.Dataset) -> NDArray[np.int64]:
    """Where ``rows`` has these ids. They stay in Arrow: a million texts of Python's take 0.1 GB.

    Raises:
        KeyError: an id is not there.
    """
    if isinstance(ids, list):
        ids = pa.array(ids, pa.string())
    found = pc.index_in(ids, value_set=column(rows, "id").combine_chunks())
    if found.null_count:
        raise KeyError(f"no row has the id {ids.filter(found.is_null())[0]}")
    return found.to_numpy().astype(np.int64)


def column(rows: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """A column of a data set in Arrow, without a copy where its rows are in the order of its table."""
    if rows._indices is None:
        return rows.data.column(name)
    return query_table(rows.data.select([name]), slice(len(rows)), rows._indices).column(name)


def parts_of(rows: datasets.Dataset, names: list[str] | None = None, count: int = WRITE_ROWS) -> Iterator[pa.Table]:
    """Columns of a data set in Arrow, so many rows at a time, without a data set of their own for it.

    Rows in another order than their table's come in one piece, where the library gives a piece for each.
    """
    table = rows.data if names is None else rows.data.select(names)
    if rows._indices is None:
        for first in range(0, len(rows), count):
            yield query_table(table, slice(first, min(first + count, len(rows))))
        return
    pieces = table.to_batches()
    starts = np.cumsum([0, *map(len, pieces)])
    for first in range(0, len(rows), count):
        yield _rows_at(pieces, starts, rows._indices.slice(first, count).column(0).to_numpy())


def taken(parts: Sequence[datasets.Dataset], names: list[str], places: NDArray[np.int64]) -> Iterator[pa.Table]:
    """Columns of some rows of several data sets in Arrow, a table of each: in places counted through all of them."""
    begin = 0
    for part in parts:
        own = places[(begin <= places) & (places < begin + len(part))] - begin
        begin += len(part)
        if len(own):
            there = own if part._indices is None else part._indices.column(0).take(pa.array(own)).to_numpy()
            pieces = part.data.select(names).to_batches()
            yield _rows_at(pieces, np.cumsum([0, *map(len, pieces)]), there)


def _rows_at(pieces: list[pa.RecordBatch], starts: NDArray[np.int64], places: NDArray[Any]) -> pa.Table:
    """Rows of a table's pieces by their places in all of it; Arrow itself would join the pieces first."""
    places = places.astype(np.int64)
    order = np.argsort(places, kind="stable")
    used, begins = np.unique(np.searchsorted(starts, places[order], side="right") - 1, return_index=True)
    parts = [
        pieces[piece].take(own - starts[piece])
        for piece, own in zip(used, np.split(places[order], begins[1:]), strict=True)
    ]
    return pa.Table.from_batches(parts).combine_chunks().take(np.argsort(order))


def check_target(path: Path) -> None:
    """Refuse to write a table where something else is: what is there is the user's.

    Raises:
        UserError: a folder or a link lies there, or the ending is not known.
    """
    if path.suffix.lower() not in WRITTEN:
        raise UserError(f"{path}: unknown ending '{path.suffix}'. Use {', '.join(WRITTEN[:-1])} or {WRITTEN[-1]}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "no file"
        raise UserError(f"{path} is {kind}, and would be replaced by a file. Name another file.")


def write_table(rows: datasets.Dataset, path: Path) -> None:
    """Write parquet, CSV or JSONL, by the ending, whole or not at all, and some rows at a time."""
    check_target(path)
    schema, ending = rows.features.arrow_schema, path.suffix.lower()
    with atomic_write(path) as partial:
        if ending == ".jsonl":
            with open(partial, "w", encoding="utf-8") as file:
                for table in parts_of(rows):
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
        else:
            with pacsv.CSVWriter(partial, schema) if ending == ".csv" else _parquet(rows, partial) as writer:
                for table in parts_of(rows):
                    writer.write_table(table.cast(schema))


def _parquet(rows: datasets.Dataset, path: Path) -> pq.ParquetWriter:
    """A writer whose pages end behind any row where rows are put into another order, else behind any 1,024."""
    return pq.ParquetWriter(path, rows.features.arrow_schema, write_batch_size=None if rows._indices is None else 1)


def repeated(values: pa.ChunkedArray) -> pa.Array:
    """The values that occur more than once, in the order of their first occurrence."""
    counts = pc.value_counts(values)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))
