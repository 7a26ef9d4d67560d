"""A recipe from its file, with all that it extends; checked, and written out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from srd.base.errors import UserError, nearest
from srd.base.files import atomic_write
from srd.base.yaml_text import dump_yaml, parse_yaml, read_yaml
from srd.recipe.merging import merge, nested
from srd.recipe.mistakes import describe_mistakes
from srd.recipe.schema import Recipe


def recipe_folder() -> Path:
    """The folder of the shipped recipes."""
    return Path(str(resources.files("srd") / "recipes"))


@cache
def shipped_recipes() -> dict[str, Path]:
    """Name and file of every shipped recipe, families and their methods included."""
    return {path.stem: path for path in sorted(recipe_folder().glob("**/*.yaml")) if not path.stem.startswith("_")}


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe given by path, by a path beside the recipe that names it, or by a shipped name."""
    hidden = recipe_folder() / f"{name}.yaml"
    shipped = {**({name: hidden} if hidden.is_file() else {}), **shipped_recipes()}
    return find_file(name, "recipe", shipped, beside, " `srd recipes` describes them.")


def find_file(name: str, kind: str, shipped: Mapping[str, Path], beside: Path | None, hint: str = "") -> Path:
    """The file of a recipe or a sweep given by path, by a path beside the file that names it, or by a shipped name."""
    for path in (Path(name), *([beside.parent / name] if beside else [])):
        if path.is_file():
            return path
    if name in shipped:
        return shipped[name]
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise UserError(f"no {kind} file '{name}'. Give an existing YAML file or a shipped name: {', '.join(shipped)}")
    raise UserError(f"unknown {kind} '{name}'; {nearest(name, shipped)}{'.' if hint else ''}{hint}")


def read_recipe(
    path: Path, chain: tuple[Path, ...] = (), kind: str = "recipe", find: Callable[..., Path] = find_recipe
) -> dict[str, Any]:
    """Read a recipe file (or a sweep's) with everything it extends, as plain data."""
    path = path.resolve()
    if path in chain:
        loop = " -> ".join(step.name for step in (*chain[chain.index(path) :], path))
        raise UserError(f"{path}: the {kind} extends itself ({loop}). Remove one `extends:`.")
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {kind} is a mapping of settings, but this is a {type(content).__name__}")
    parents = content.pop("extends", None)
    parents = [] if parents is None else [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) and parent.strip() for parent in parents):
        raise UserError(f"{path}: extends: give the name of a {kind}, or a list of names, not {parents!r:.80}")
    base: dict[str, Any] = {}
    for parent in parents:
        base = merge(base, read_recipe(find(parent, beside=path), (*chain, path), kind, find))
    content.setdefault("name", path.stem)
    return merge(base, content)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Turn ``["training.epochs=2"]`` into nested data; values are YAML."""
    result: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise UserError(f"'{text}' is no override. Write key.path=value, such as training.learning_rate=1e-4")
        parsed = parse_yaml(value, f"'{text}': the value")
        result = merge(result, nested({key.strip(): parsed}))
    return result


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load, complete and check a recipe by file or shipped name.

    Raises:
        UserError: with all mistakes, each with its key and, for unknown keys, the nearest known one.
    """
    path = find_recipe(name)
    changes = parse_overrides(overrides)
    recipe = validate_recipe(merge(read_recipe(path), changes), str(path))
    own = (read_yaml(path) or {}).get("training") or {}
    if isinstance(own, dict) and "curriculum" not in own:
        _refuse_idle(recipe, own)
    _refuse_idle(recipe, changes.get("training") or {})
    return recipe


def _refuse_idle(recipe: Recipe, given: Any) -> None:
    """Refuse a temperature or weight of `training` where every training takes its curriculum's instead."""
    if not isinstance(given, dict) or not all(training.curriculum for training in recipe.arms.values()):
        return
    for key in ("temperature", "weight"):
        if key in given:
            raise UserError(
                f"training.{key} ({given[key]}) has no effect: the curriculum has a {key} for each stage. Set "
                f"training.curriculum.{key} instead, or training.curriculum=null for plain distillation"
            )


def validate_recipe(content: dict[str, Any], origin: str) -> Recipe:
    """Check plain data against the schema; ``origin`` is named in the message."""
    load_plugins(content.get("plugins"))
    try:
        return Recipe.model_validate(content, strict=True)
    except ValidationError as error:
        raise UserError(f"{origin} has {describe_mistakes(error)}") from error


def load_plugins(plugins: Any) -> None:
    """Import the user's own modules, which register their objectives."""
    from srd.base.plugins import import_plugin

    for plugin in plugins if isinstance(plugins, list) else []:
        import_plugin(str(plugin))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every default spelled out."""
    with atomic_write(path) as partial:
        partial.write_text(recipe_yaml(recipe), encoding="utf-8")


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, in the order of the schema."""
    return dump_yaml(recipe.model_dump(mode="json"))
