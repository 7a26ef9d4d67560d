"""Rows in any container that people keep them in, as an Arrow table: what the public functions take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.interchange
from datasets import IterableDataset

from srd.base.errors import UserError
from srd.base.tables import repeated
from srd.base.text import many, verb
from srd.data.nested import reader_of, rows_of, without_nulls

TAKEN = "a datasets.Dataset, a pandas, polars or pyarrow table, or a list of dicts"
ITER_ROWS = 1_000


def as_table(
    rows: Any, columns: list[str], what: str = "scores", *, only: bool = False, also: Sequence[str] = ()
) -> pa.Table:
    """Turn a container of rows into an Arrow table with (at least) ``columns``.

    Args:
        rows: a ``datasets.Dataset`` in any order, an Arrow table, any frame, or an iterable of dicts.
        columns: what must be there.
        what: how messages call the rows.
        only: leave other columns out; what they hold does not matter then.
        also: but for these, where they are there.

    Raises:
        UserError: it is no such container, has no rows, lacks a column, or a column holds values of several kinds.
    """
    frame = hasattr(rows, "__arrow_c_stream__") and not isinstance(rows, pa.Table | pa.RecordBatch)
    if only and frame and set(columns) <= set(named := list(getattr(rows, "columns", ()))):
        rows = rows[_with(columns, also, named)]  # of pandas or polars
    table = _from_frame(rows, what)
    if table is None:
        listed = list(row_dicts(rows, what))
        names = dict.fromkeys(name for row in listed for name in row)
        wanted = _with(columns, also, names) if only and set(columns) <= set(names) else names
        table = pa.table({str(name): _column([row.get(name) for row in listed], name, what) for name in wanted})
    missing = [name for name in columns if name not in table.column_names]
    if missing and table.column_names:
        raise UserError(f"the {what} lack the columns {missing}; they have {table.column_names}")
    if not len(table):
        raise UserError(f"the {what} have no rows. Give at least one.")
    return table.select(_with(columns, also, table.column_names)) if only else table


def _with(columns: list[str], also: Sequence[str], there: Iterable[str]) -> list[str]:
    known = set(there)
    return [*columns, *(name for name in also if name in known and name not in columns)]


def row_dicts(rows: Any, what: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a container as dicts, some at a time.

    Raises:
        UserError: as `as_table`.
    """
    table = rows if isinstance(rows, datasets.Dataset) else _from_frame(rows, what)
    if isinstance(table, datasets.Dataset):
        for part in table.with_format("arrow").iter(ITER_ROWS) if len(table) else ():
            yield from rows_of(part)
        return
    if table is not None:
        for batch in table.to_batches(ITER_ROWS):
            yield from rows_of(batch)
        return
    if isinstance(rows, Mapping):
        splits = isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict)
        remedy = "Choose one split" if splits else "Put a single row into a list"
        raise UserError(
            f"cannot take a {type(rows).__name__} ({', '.join(map(str, rows))}) as {what}. {remedy}. Taken are {TAKEN}."
        )
    if isinstance(rows, IterableDataset):  # of columns, too
        kinds = rows.features.arrow_schema if rows.features else ()
        found = ((field.name, reader_of(field.type, lambda value: value)) for field in kinds)  # JSON is read already
        readers = {name: read for name, read in found if read}
        yield from ({name: readers.get(name, without_nulls)(value) for name, value in row.items()} for row in rows)
        return
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise UserError(f"cannot take a {type(rows).__name__} as {what}: give {TAKEN}.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise UserError(f"row {number} of the {what} is a {type(row).__name__}, expected a dict: give {TAKEN}.")
        yield row


def _from_frame(rows: Any, what: str) -> pa.Table | None:
    """The table of a container that has columns; None where it has rows one by one."""
    if isinstance(rows, IterableDataset):
        return None
    try:
        if isinstance(rows, datasets.Dataset):
            return rows.with_format("arrow")[:] if len(rows) else rows.features.arrow_schema.empty_table()
        if isinstance(rows, pa.Table | pa.RecordBatch):
            return pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        if hasattr(rows, "collect") and hasattr(rows, "collect_schema"):  # a lazy frame of polars
            rows = rows.collect()
        if hasattr(rows, "__arrow_c_stream__"):
            return pa.table(rows)
        if hasattr(rows, "to_arrow"):
            return pa.table(rows.to_arrow())
        if hasattr(rows, "__dataframe__"):
            return pyarrow.interchange.from_dataframe(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"the {what} cannot be read: {error}. Give a table with one name and one kind of values for each column."
        ) from error
    return None


def _column(values: list[Any], name: str, what: str) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise UserError(
            f"the column {name!r} of the {what} holds values that do not go together ({kinds}): {error}. "
            "Make them all numbers, or all valid text."
        ) from error


def with_ids(table: pa.Table, what: str = "scores") -> pa.Table:
    """The table with its ``id`` as text.

    Raises:
        UserError: an id is missing, occurs twice, or is neither text nor a whole number.
    """
    kind = table["id"].type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    names = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_null)
    if not any(is_kind(kind) for is_kind in names):
        raise UserError(f"the column 'id' does not hold names: it is of type {kind}. Make it text, in every row.")
    table = table.set_column(table.column_names.index("id"), "id", table["id"].cast(kind).cast(pa.string()))
    if missing := table["id"].null_count:
        raise UserError(f"{many(missing, 'row')} of the {what} {verb(missing, 'has', 'have')} no id")
    if len(twice := repeated(table["id"])):
        shown = ", ".join(map(str, twice[:5].to_pylist()))
        found = f"{many(len(twice), 'id')} {verb(len(twice), 'occurs', 'occur')} more than once in the {what}"
        raise UserError(f"{found}: {shown}. Ids must be unique.")
    return table


def with_numbers(table: pa.Table, name: str) -> pa.Table:
    """The table with a column as float64, NaN where it is missing.

    Raises:
        UserError: it does not hold numbers.
    """
    kind = table[name].type
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    try:
        if not any(is_kind(kind) for is_kind in numbers):
            raise pa.ArrowInvalid(f"it is of type {kind}")
        column = pc.fill_null(table[name].cast(pa.float64()), float("nan"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"the column '{name}' does not hold numbers: {error}") from error
    return table.set_column(table.column_names.index(name), name, column)
