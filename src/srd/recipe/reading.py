"""A recipe, checked, and written out again."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from srd.base.errors import UserError
from srd.base.files import write_text
from srd.base.text import flattened
from srd.base.yaml_text import dump_yaml, read_yaml
from srd.recipe.files import find_recipe, parse_overrides, read_recipe
from srd.recipe.merging import merge
from srd.recipe.mistakes import describe_mistakes
from srd.recipe.schema import AS_PLAIN, PLUS, Recipe

PRESET = "training.curriculum.preset"
RUN_RECIPE = "recipe.yaml"  # a run's own
UNKNOWN = re.compile(r"unknown (objective|score|teacher) |there is no (template|task) |the expected tags")


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load, complete and check a recipe by file or shipped name.

    Raises:
        UserError: with all mistakes, each with its key and, for unknown keys, the nearest known one.
    """
    path, overrides = find_recipe(name), list(overrides)
    changes = parse_overrides(overrides)
    origin = f"{path} with {textwrap.shorten(' '.join(overrides), 200)}" if overrides else str(path)
    content = read_recipe(path)
    recipe = validate_recipe(merge(content, changes), origin)
    _refuse_idle_preset(content, changes, path)
    refuse_idle(recipe, read_yaml(path) or {}, whole=True)
    refuse_idle(recipe, changes)
    return recipe


def refuse_idle(recipe: Recipe, said: dict[str, Any], *, whole: bool = False) -> None:
    """Refuse a temperature or weight where every training that it is for takes its curriculum's instead.

    Args:
        recipe: With all defaults.
        said: What of it was said.
        whole: Whether that may be a recipe that says everything, as a run's own does: beside a curriculum that it
            spells out it is no fault then.

    Raises:
        UserError: with what to set in its place.
    """
    trained = {"training": [*recipe.variants.values()]}
    trained |= {f"baselines.{name}": [training] for name, training in recipe.baselines.items()}
    for place, variants in trained.items():
        given, curricula = _at(said, place), [training.curriculum for training in variants if training.curriculum]
        if len(curricula) < len(variants) or (whole and "curriculum" in given):
            continue
        for key in AS_PLAIN:
            if key in given and all(set(each.schedule(key)) != {given[key]} for each in curricula):
                raise UserError(
                    f"{place}.{key} ({given[key]}) has no effect: the curriculum has a {key} for each stage. Set "
                    f"{place}.curriculum.{key} instead, or {place}.curriculum=null for plain distillation"
                )


def _at(content: dict[str, Any], place: str) -> dict[str, Any]:
    found: Any = content
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _refuse_idle_preset(content: dict[str, Any], changes: dict[str, Any], path: Path) -> None:
    """Refuse a change to another preset where the file, such as a run's own, sets all that a preset would change."""
    before, wanted = (flattened(each).get(PRESET) for each in (content, changes))
    there = flattened(merge(content, changes))
    fields = list(flattened(PLUS))
    if wanted in (None, before or "paper") or not all(
        {each, each.removesuffix(".action")} & {*there} for each in fields
    ):
        return
    raise UserError(
        f"{PRESET}={wanted} changes nothing: all that a preset is about is set in {path}, and what is set wins. Name "
        f"the short recipe that it was made from, or a copy of it without {', '.join(fields)}"
    )


def validate_recipe(content: dict[str, Any], origin: str) -> Recipe:
    """Check plain data against the schema; ``origin`` is named in the message."""
    load_plugins(content.get("plugins"))
    try:
        return Recipe.model_validate(content, strict=True)
    except ValidationError as error:
        raise UserError(f"{origin} has {describe_mistakes(error)}{_of_a_script(error, origin)}") from error


def _of_a_script(error: ValidationError, origin: str) -> str:
    """What helps where a run was made by a script that had registered a name itself."""
    if Path(origin).name != RUN_RECIPE or not any(UNKNOWN.search(each["msg"]) for each in error.errors()):
        return ""
    return f"\nHad a script registered it? Put that into a file of its own, and name it under plugins in {origin}."


def load_plugins(plugins: Any) -> None:
    """Import the user's own modules, which register their objectives."""
    from srd.base.plugins import import_plugin

    for plugin in plugins if isinstance(plugins, list) else []:
        import_plugin(str(plugin))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every default spelled out."""
    write_text(path, recipe_yaml(recipe))


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, in the order of the schema."""
    return dump_yaml(recipe.model_dump(mode="json"))
