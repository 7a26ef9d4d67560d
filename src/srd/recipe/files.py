"""Where recipes lie, and what their files say with all that they extend: plain data, not yet checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from srd.base.errors import UserError, nearest
from srd.base.yaml_text import parse_yaml, read_yaml, unspaced
from srd.recipe.merging import merge, nested


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
    return find_file(name, "recipe", shipped, beside, " `srd recipes` describes them, `srd init` writes one.")


def find_file(name: str, kind: str, shipped: Mapping[str, Path], beside: Path | None, hint: str = "") -> Path:
    """The file of a recipe or a sweep given by path, by a path beside the file that names it, or by a shipped name."""
    folders = (Path(), *([beside.parent] if beside else []))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    if name in shipped:
        return shipped[name]
    for meant in (Path(f"{name}.yaml"), Path(name, "recipe.yaml")):
        if kind == "recipe" and any((folder / meant).is_file() for folder in folders):
            raise UserError(f"'{name}' is no recipe file; did you mean '{meant}'?")
    if name.endswith((".yaml", ".yml")) or "/" in name:
        known = "" if hint else f": {', '.join(shipped)}"
        raise UserError(f"no {kind} file '{name}'. Give an existing YAML file or a shipped name{known}.{hint}")
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
        what = "list" if isinstance(content, list) else "text" if isinstance(content, str) else "single value"
        told = unspaced(path.read_text(encoding="utf-8-sig")) or "Write a line `key: value` for each."
        raise UserError(f"{path}: a {kind} is a mapping of settings, but this is a {what}. {told}")
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
