"""Rows of tables as dictionaries: what lies in others is there as it is in files of lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

Reader = Callable[[Any], Any]


def rows_of(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a table, without the fields inside of others that are null: a table has all rows' fields in each.

    Values of the type JSON, which tables keep as text, are what that text says, with their nulls.
    """
    rows = table.to_pylist()
    for field in table.schema:
        if read := reader_of(field.type):
            for row in rows:
                row[field.name] = read(row[field.name])
    return rows


def from_text(value: str | None) -> Any:
    """What a text of JSON says; one that is none stays as it is, for what reads the row to judge."""
    try:
        return value if value is None else json.loads(value)
    except (ValueError, RecursionError):
        return value


def reader_of(kind: pa.DataType, of_json: Reader = from_text) -> Reader | None:
    """What makes of a value of a type what it is in files of lines; None: it is that already.

    Args:
        kind: of the values.
        of_json: reads those of the type JSON.
    """
    if _is_json(kind):
        return of_json
    if not _holds_json(kind):
        return without_nulls if pa.types.is_nested(kind) else None
    readers = {field.name: reader_of(field.type, of_json) or (lambda value: value) for field in _inside(kind)}
    if pa.types.is_struct(kind):
        return lambda value: value and {name: readers[name](each) for name, each in value.items() if each is not None}
    (read,) = readers.values()
    return lambda value: value and [read(each) for each in value]


def without_nulls(value: Any) -> Any:
    """What lies in others, without the fields that are null; of a list every element stays."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _is_json(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.json"


def _holds_json(kind: pa.DataType) -> bool:
    return _is_json(kind) or any(_holds_json(field.type) for field in _inside(kind))


def _inside(kind: pa.DataType) -> list[pa.Field]:
    """The fields of a struct, or the one of a list."""
    if pa.types.is_map(kind) or pa.types.is_union(kind):
        return []
    return [kind.field(number) for number in range(kind.num_fields)]
