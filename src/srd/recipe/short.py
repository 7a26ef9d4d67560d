"""A recipe in few lines: what it says beyond the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srd.recipe.merging import merge
from srd.recipe.schema import FINE_TUNING, Recipe


def shortest(recipe: Recipe) -> dict[str, Any]:
    """The settings that make this recipe out of the defaults, as plain data."""
    given = recipe.model_dump(mode="json")
    plain = Recipe.model_validate(_least(given), strict=True).model_dump(mode="json")
    tuned = Recipe.model_validate({**_least(given), "training": {"curriculum": None, **FINE_TUNING}}, strict=True)
    unsaid = {**plain, "teacher": {**plain["teacher"], "sft": tuned.training.model_dump(mode="json")}}
    unsaid["student"] = {**plain["student"], "warm_start": unsaid["teacher"]["sft"]}
    unsaid["baselines"] = dict.fromkeys(given["baselines"], given["training"])
    found: dict[str, Any] = _beyond(given, unsaid)
    for section, key in (("teacher", "sft"), ("student", "warm_start")):
        if given[section][key] is None:
            found.get(section, {}).pop(key, None)
        elif key not in found.get(section, {}):
            found.setdefault(section, {})[key] = {}
    for name in given["baselines"]:
        found.setdefault("baselines", {}).setdefault(name, {})
    for section, content in _least(given).items():
        told = {key: value for key, value in content.items() if value is not None}
        if section == "data":
            told = {"train": {key: value for key, value in content["train"].items() if value is not None}}
        found[section] = merge(told, found.get(section, {}))
    return {key: found[key] for key in given if key in found}


def _least(given: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest recipe with these models and data."""
    student = given["student"]
    named = {"model": student["model"]} if student["model"] else {"drop_layers": student["drop_layers"]}
    source = {key: given["data"]["train"][key] for key in ("path", "dataset")}
    return {"teacher": {"model": given["teacher"]["model"]}, "student": named, "data": {"train": source}}


def _beyond(value: Any, default: Any) -> Any:
    """What a value says that its default does not; of a mapping key by key, without what is nothing."""
    if not isinstance(value, Mapping) or not isinstance(default, Mapping):
        return value
    found = {}
    for key, inner in value.items():
        own = _beyond(inner, default[key]) if key in default else inner
        if key in default and (own == {} or inner == default[key]):
            continue
        if key in default or inner not in (None, {}, []):
            found[key] = own
    return found
