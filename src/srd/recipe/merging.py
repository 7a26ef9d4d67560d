"""Changes to a recipe, laid over another, section by section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Sections that may be written as one plain value, and the key that the value then stands for.
SHORT_FORMS = {
    "teacher": "model", "student": "model", "data": "train", "train": "path", "validation": "path", "test": "path",
    "objective": "name", "method": "name", "cleaning": "action",
}  # fmt: skip
# … and those of which it changes no more than that key, where the whole section is there: a path is another data set,
# but another action leaves what is found, and the user's lists, as they were.
LAID_OVER = ("cleaning",)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``changes`` over ``base``, section by section; lists and values are replaced.

    A section with another ``name`` (another method, another objective) replaces the old one whole, because its
    parameters mean something else.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        plain = isinstance(old, str | list) or (isinstance(old, bool) and key in LAID_OVER)  # `off` is false in YAML
        if isinstance(value, dict) and plain and key in SHORT_FORMS:
            old = {SHORT_FORMS[key]: old}
        if isinstance(value, str | bool) and isinstance(old, dict) and key in LAID_OVER:
            value = {SHORT_FORMS[key]: value}
        if isinstance(value, dict) and isinstance(old, dict) and not _another(key, old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _another(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a section names another objective or method than before."""
    return key in ("objective", "method") and new.get("name", old.get("name")) != old.get("name")


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested data: ``{"training.epochs": 2}`` into ``{"training": {"epochs": 2}}``."""
    result: dict[str, Any] = {}
    for key, value in changes.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        result = merge(result, value)
    return result
