"""Rows of tables as dictionaries: what lies in others is there as it is in files of lines."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def rows_of(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a table, without the fields inside of others that are null: a table has all rows' fields in each."""
    rows = table.to_pylist()
    for name in (field.name for field in table.schema if pa.types.is_nested(field.type)):
        for row in rows:
            row[name] = without_nulls(row[name])
    return rows


def without_nulls(value: Any) -> Any:
    """What lies in others, without the fields that are null; of a list every element stays."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
