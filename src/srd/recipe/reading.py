"""A recipe, checked, and written out again."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
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
from srd.training.settings import TrainingConfig

PRESET = "training.curriculum.preset"
OF_CLEANING = ("drop", "keep", "find")
RUN_RECIPE = "recipe.yaml"  # a run's own
UNKNOWN = re.compile(r"unknown (objective|score|teacher) |there is no (template|task) |the expected tags")


def load_recipe(name: str, overrides: Iterable[str] = (), *, effects: bool = True) -> Recipe:
    """Load, complete and check a recipe by file or shipped name.

    Raises:
        UserError: with all mistakes, each with its key and, for unknown keys, the nearest known one.
    """
    path = find_recipe(name)
    return changed_recipe(read_recipe(path), list(overrides), str(path), read_yaml(path) or {}, effects=effects)


def changed_recipe(
    content: dict[str, Any], overrides: Sequence[str], place: str, own: dict[str, Any] | None = None,
    *, effects: bool = True,
) -> Recipe:  # fmt: skip
    """A recipe with changes, checked, where all that is said has an effect.

    Args:
        content: The recipe as plain data.
        overrides: ``key.path=value``.
        place: What messages call the recipe.
        own: What it says itself, where the rest comes from others that it extends.
        effects: Whether what has no effect is refused.
    """
    changes = parse_overrides(overrides)
    origin = f"{place} with {textwrap.shorten(' '.join(overrides), 200)}" if overrides else place
    recipe = validate_recipe(merge(content, changes), origin)
    if effects:
        refuse_idle_preset(content, changes, place)
        refuse_idle(recipe, content if own is None else own, whole=True)
        refuse_idle(recipe, changes)
    return recipe


def refuse_idle(recipe: Recipe, said: dict[str, Any], *, whole: bool = False) -> None:
    """Refuse what `idle_setting` finds."""
    if told := idle_setting(recipe, said, whole=whole):
        raise UserError(told)


def idle_setting(recipe: Recipe, said: dict[str, Any], *, whole: bool = False) -> str:
    """What has no effect beside what else was said, and what to set instead; nothing where all has one.

    It is a temperature or weight where every training that it is for takes its curriculum's; or what rows are cleaned
    by, where they are not.

    Args:
        recipe: With all defaults.
        said: What of it was said.
        whole: Whether that may be a recipe that says everything, as a run's own does: beside a curriculum that says
            its own it is no fault then.
    """
    places: dict[str, tuple[TrainingConfig, list[TrainingConfig]]]  # where a setting stands, and whom it is for
    places = {"training": (recipe.training, [*recipe.variants.values()])}
    places |= {f"baselines.{name}": (training, [training]) for name, training in recipe.baselines.items()}
    for place, (own, variants) in places.items():
        given, curricula = _at(said, place), [training.curriculum for training in variants if training.curriculum]
        if whole and given.get("curriculum", "") is None:  # a change brings one, and all was said of the plain training
            continue
        beside = _at(said, f"{place}.curriculum") if whole else {}
        plain = [training for training in variants if not training.curriculum]
        for key in AS_PLAIN:
            if key not in given or key in beside or given[key] != getattr(own, key):  # a later change has replaced it
                continue
            takes_it = any(getattr(each, key) == given[key] for each in plain)  # others have a value of their own
            if not takes_it and all(set(each.schedule(key)) != {given[key]} for each in curricula):
                return (
                    f"{place}.{key} ({given[key]}) has no effect: the curriculum has a {key} for each stage. Set "
                    f"{place}.curriculum.{key} instead, or {place}.curriculum=null for plain distillation"
                )
    return _idle_cleaning(recipe, said, whole)


def _idle_cleaning(recipe: Recipe, said: dict[str, Any], whole: bool) -> str:
    """Of `idle_setting` what rows would be cleaned by, had anybody said that they are."""
    there = recipe.data.cleaning
    given = there.model_dump(exclude_unset=True) if whole else _at(said, "data.cleaning")  # or a recipe that it extends
    names = [name for name in OF_CLEANING if given.get(name)]
    told = (f"data.cleaning.{names[0]} has no effect: rows are not cleaned. Say what becomes of wrong ones, too: "
            "data.cleaning.action=report, drop, soften or repair" if names else "")  # fmt: skip
    return told if there.action == "off" and "action" not in given else ""


def _at(content: dict[str, Any], place: str) -> dict[str, Any]:
    found: Any = content
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def refuse_idle_preset(content: dict[str, Any], changes: dict[str, Any], place: str) -> None:
    """Refuse a change to another preset where the recipe, such as a run's own, sets all that a preset would change."""
    there, changed, fields = flattened(content), flattened(changes), list(flattened(PLUS))
    before, wanted = there.get(PRESET), changed.get(PRESET)
    names = [{each, each.removesuffix(".action")} for each in fields]  # `cleaning: drop` says the action
    left = [each for each in names if not each & {*changed}]
    if wanted in (None, before or "paper") or not left or not all(each & {*there} for each in left):
        return
    raise UserError(
        f"{PRESET}={wanted} changes nothing: all that a preset is about is set in {place}, and what is set wins. Name "
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
