"""What is wrong in a recipe, in words: every mistake with its key, and the nearest known one."""

from __future__ import annotations

import itertools
import re
import typing
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from srd.base.errors import nearest
from srd.base.settings import Section
from srd.base.text import many
from srd.recipe.schema import Recipe
from srd.training.methods.base import METHODS

LONG_WORD = re.compile(r"(\S{100})\S{100,}")  # a value that is too long to show
# What pydantic puts into a place beside the recipe's own keys: the alternatives of a field that takes several kinds.
ALTERNATIVE = re.compile(r"str|int|float|bool|(constrained-|list\[|dict\[|literal\[|function-).*")


def describe_mistakes(error: ValidationError, root: type[BaseModel] | None = None) -> str:
    """All mistakes in a recipe, or in what ``root`` describes, a line for each key."""
    by_key: dict[str, list[str]] = {}
    for item in error.errors():
        key, _, message = describe_mistake(item, root).partition(": ")
        by_key.setdefault(key, []).append(message)
    for key, messages in list(by_key.items()):  # a baseline has what `training` says: what is wrong there is told once
        section, _, rest = key.partition(".")
        told = by_key.get(f"training.{rest.partition('.')[2]}", [])
        if section == "baselines" and list(map(_what_is_wrong, told)) == list(map(_what_is_wrong, messages)):
            del by_key[key]
    lines = "".join(f"\n  {key}: {'; or '.join(dict.fromkeys(messages))}" for key, messages in by_key.items())
    return f"{many(len(by_key), 'mistake')}:{lines}"


def _what_is_wrong(message: str) -> str:
    """A message without the keys that are known there: a baseline takes some of its own."""
    return message.partition(" Known: ")[0]


def describe_mistake(item: Any, root: type[BaseModel] | None = None) -> str:
    """One line for one pydantic error: key, value, what is wrong, what is meant."""
    location = list(item["loc"])
    # Under `method` pydantic puts the method's name, which is no key of the recipe; a baseline's name is one.
    keys = [part for before, part in itertools.pairwise([None, *location]) if _is_key(before, part)]
    key = ".".join(str(part) for part in keys) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_meant(str(location[-1]), key, known_keys(location[:-1], root), root)}"
    if item["type"] == "missing":
        return f"{key}: missing. {field_description(location, root)}".rstrip()
    message = re.sub(r" or (instance of \w+|object to extract fields from)$", "", item["msg"])
    message = LONG_WORD.sub(r"\1…", message.removeprefix("Value error, "))
    value = item.get("input")
    shown = f" (is {value!r:.100})" if isinstance(value, str | int | float | bool) or value is None else ""
    if item["type"] == "union_tag_not_found":
        return f"{key}: give a mapping with its name, or the name alone{shown}"
    if item["type"] in ("dict_type", "model_type", "model_attributes_type"):
        own = _sections_at(location, root) != _sections_at([], root)
        known = f". Known: {', '.join(sorted(known_keys(location, root)))}" if own else ""
        return f"{key}: give a mapping{shown}{known}"
    if item["type"] == "string_type" and isinstance(value, int | float) and root is None:
        shown += f""". In quotes it is one: {keys[-1]}: "{value}", or on the command line {key}='"{value}"'"""
    if item["type"] == "list_type" and isinstance(value, str) and root is None:
        shown += f". In brackets it is one: {keys[-1]}: [{value}], or on the command line {key}='[{value}]'"
    return f"{key}: {message[0].lower() + message[1:]}{shown}"


def _is_key(before: Any, part: Any) -> bool:
    """Whether a part of a place stands in the recipe, and not in pydantic's alternatives alone."""
    if before == "method" and part in METHODS:
        return False
    return before in ("baselines", "columns", "cells", "grid") or not (
        isinstance(part, str) and ALTERNATIVE.fullmatch(part)
    )


def _section_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's annotation can hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return list(annotation.alternatives())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _section_of(part)]


def _sections_at(location: list[Any], root: type[BaseModel] | None = None) -> list[type[BaseModel]]:
    sections: list[type[BaseModel]] = [root or Recipe]
    for part in location:
        found = [
            inner
            for section in sections
            if part in section.model_fields
            for inner in _section_of(section.model_fields[part].annotation)
        ]
        tagged = [section for section in sections if "name" in section.model_fields]
        sections = found or [each for each in tagged if each.model_fields["name"].default == part] or sections
    return sections


def _meant(key: str, here: str, known: set[str], root: type[BaseModel] | None) -> str:
    """What an unknown key may mean: one beside it that is hardly another, itself elsewhere, or one beside it."""
    there = "" if get_close_matches(key, known, cutoff=0.8) else _elsewhere(key, here, root)
    return f"did you mean {there}? Known: {', '.join(sorted(known))}" if there else nearest(key, known, cutoff=0.6)


def _elsewhere(key: str, here: str, root: type[BaseModel] | None) -> str:
    """Where a key, or one that it abbreviates (`lr`), stands in the uppermost sections that have it; empty: nowhere."""
    level: list[tuple[list[str], type[BaseModel]]] = [([], root or Recipe)]
    while level:
        fields = [([*path, name], section) for path, section in level for name in section.model_fields]
        found = [(path, section) for path, section in fields if key in (path[-1], _initials(path[-1]))]
        # A method has its own settings in a baseline as in `training`.
        if found := [each for each in found if each[0][-2:] != here.split(".")[-2:]]:
            *above, name = found[0][0]
            short = getattr(found[0][1], "short_for", "")
            example = f"{{{short}: …, {name}: …}}"
            for part in above[:0:-1]:
                example = f"{{{part}: {example}}}"
            shown = f" (`{above[0]}: {example}`)" if above and short not in ("", name) else ""
            return " or ".join(dict.fromkeys(".".join(path) for path, _ in found)) + shown
        level = [
            (path, inner)
            for path, section in fields
            if typing.get_origin(annotation := section.model_fields[path[-1]].annotation) not in (list, dict)
            for inner in _section_of(annotation)
        ]
    return ""


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_")) if "_" in name else name


def known_keys(location: list[Any], root: type[BaseModel] | None = None) -> set[str]:
    """The keys that are allowed at a place in the recipe."""
    return {key for section in _sections_at(location, root) for key in section.model_fields}


def field_description(location: list[Any], root: type[BaseModel] | None = None) -> str:
    """What the field at a place is for."""
    for section in _sections_at(location[:-1], root):
        if location and location[-1] in section.model_fields:
            return section.model_fields[location[-1]].description or ""
    return ""
