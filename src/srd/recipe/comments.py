"""A recipe as YAML with what each setting means beside it, for people who are about to change it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from srd.base.yaml_text import dump_yaml

WIDEST = 118  # columns of a line with its comment; a longer comment stands above its setting
COLUMN = 40  # where comments begin, if the settings leave room


def commented(recipe: BaseModel, values: Mapping[str, Any] | None = None) -> str:
    """YAML of a recipe, or of the part of it that ``values`` has, that reads as it does without the comments."""
    dumped = recipe.model_dump(mode="json")
    return "\n".join(_lines(recipe, dumped if values is None else values, "")) + "\n"


def _lines(section: Any, values: Mapping[str, Any], margin: str) -> Iterator[str]:
    for key, value in values.items():
        inner, told = _inside(section, key)
        if isinstance(value, Mapping) and value and _is_section(inner):
            yield from [f"{margin}# {told}"] if told else []
            yield f"{margin}{_key(key)}:"
            yield from _lines(inner, value, f"{margin}  ")
        else:
            yield from _setting(key, value, told, margin)


def _inside(section: Any, key: str) -> tuple[Any, str]:
    """What a setting holds, and what it means."""
    if isinstance(section, Mapping):
        return section.get(key), ""
    field = type(section).model_fields.get(key)
    return getattr(section, key, None), " ".join((field.description or "").split()) if field else ""


def _is_section(value: Any) -> bool:
    return isinstance(value, BaseModel) or (
        isinstance(value, Mapping) and any(isinstance(each, BaseModel) for each in value.values())
    )


def _text(key: str, value: Any) -> str:
    if isinstance(value, list) and value:  # a list of plain values stands on one line
        inner = dump_yaml({key: value}, short_lists=True)
        return inner if inner.startswith(_key(key)) else dump_yaml({key: value})
    return dump_yaml({key: value})


def _key(key: str) -> str:
    return dump_yaml({key: None}).rpartition(":")[0]


def _setting(key: str, value: Any, told: str, margin: str) -> Iterator[str]:
    """A setting on a line of its own, its meaning behind it where there is room, else above it."""
    lines = [f"{margin}{line}" for line in _text(key, value).splitlines()]
    single = f"{lines[0]:<{COLUMN}}  # {told}"
    if not told:
        yield from lines
    elif len(lines) == 1 and len(single) <= WIDEST and not re.search(r"[|>][+-]?\d?$", lines[0]):
        yield single
    else:
        yield f"{margin}# {told}"
        yield from lines
