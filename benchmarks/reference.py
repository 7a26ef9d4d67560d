"""The pages of the reference that say what the code says: commands with their options, and the fields of a recipe.

python -m benchmarks.reference
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from srd.base.files import atomic_write
from srd.recipe.schema import Recipe

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
MADE = "<!-- Made by `python -m benchmarks.reference`: change the code, not this page. -->"
ABOUT_COMMANDS = (
    "Exit status: 0 done, 1 failed while running, 2 wrong input. `key.path=value` changes a field of the "
    "[recipe](recipe.md)."
)
ABOUT_FIELDS = (
    "What a recipe may say. Everything but `teacher`, `student` and `data` has a default. `srd recipes NAME` prints a "
    "recipe with all of its defaults, `srd recipes --schema` this page as a JSON schema, for editors."
)


def commands_page() -> str:
    """Every command with its arguments and options."""
    from srd.cli import app

    group: Any = typer.main.get_command(app)
    parts = [MADE, "# Commands", ABOUT_COMMANDS]
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        words = [part for parameter in command.params if (part := usage(parameter))]
        parts += [f"## srd {name}", f"`srd {' '.join([name, *words, '[OPTIONS]'])}`", plain(command.help or "")]
        rows = [f"| {cell(parameter)} | {text(parameter.help or '')} | {default(parameter)} |"
                for parameter in command.params if parameter.name != "help"]  # fmt: skip
        if rows:
            parts.append("\n".join(["| | what it is | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def usage(parameter: Any) -> str:
    """How an argument stands in a command line; nothing for an option."""
    if parameter.param_type_name != "argument":
        return ""
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def cell(parameter: Any) -> str:
    """The names of an option, or of an argument."""
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name.upper())}`".replace("|", "\\|")
    return ", ".join(f"`{name}`" for name in parameter.opts)


def default(parameter: Any) -> str:
    """The default of an option, where it has one worth saying."""
    value = parameter.default() if callable(parameter.default) else parameter.default
    if value is None or value is False or value == () or value == [] or repr(value).startswith("Sentinel"):
        return ""
    return f"`{value}`"


def plain(help_text: str) -> str:
    """A help text as Markdown shows it: what stands in angle brackets is no tag."""
    return " ".join(help_text.split()).replace("<", "&lt;")


def text(help_text: str) -> str:
    """The same in a cell of a table."""
    return plain(help_text).replace("|", "\\|")


def recipe_page() -> str:
    """Every section of a recipe with its fields."""
    schema = Recipe.model_json_schema()
    parts = [MADE, "# Recipe fields", ABOUT_FIELDS]
    shown: dict[str, dict[str, Any]] = {}
    for path, section in sections(schema):
        described, fields = " ".join(str(section.get("description", "")).split()), section.get("properties", {})
        same = next((other for other, own in shown.items() if own and own.items() <= fields.items()), None)
        shown[path] = fields
        if same:
            described = f"{described} All fields of `{same}`, and these:".strip()
        rows = [
            f"| `{name}` | {kind(field)} | {value(field)} | {text(str(field.get('description', '')))} |"
            for name, field in fields.items()
            if not same or name not in shown[same]
        ]
        parts += [f"## {path}", plain(described)] if described else [f"## {path}"]
        parts.append("\n".join(["| field | type | default | what it is |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def sections(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each section once, where it is first met, under the path that leads to it."""
    seen: set[str] = set()
    todo = [("The recipe", "", schema)]
    while todo:
        title, path, section = todo.pop(0)
        yield title, section
        for name, field in section.get("properties", {}).items():
            place = f"{path}.{name}" if path else name
            for reference in references(field):
                if reference not in seen:
                    seen.add(reference)
                    own = schema["$defs"][reference]
                    const = own.get("properties", {}).get("name", {}).get("const")
                    todo.append((f"{place}: {const}" if const else place, place, own))


def references(field: Any) -> Iterator[str]:
    """The sections that a field leads to."""
    if isinstance(field, dict):
        if "$ref" in field:
            yield str(field["$ref"]).rpartition("/")[2]
        for name, own in field.items():
            if name != "discriminator":
                yield from references(own)
    elif isinstance(field, list):
        for own in field:
            yield from references(own)


def kind(field: dict[str, Any]) -> str:
    """The type of a field in words."""
    return text(" or ".join(dict.fromkeys(kinds(field))))


def kinds(field: dict[str, Any]) -> Iterator[str]:
    if "$ref" in field:
        yield "section"
    elif "enum" in field:
        yield ", ".join(map(str, field["enum"]))
    elif "const" in field:
        yield str(field["const"])
    elif options := field.get("anyOf") or field.get("oneOf"):
        for option in options:
            yield from kinds(option)
    elif field.get("type") == "array":
        yield "list of " + (" or ".join(dict.fromkeys(kinds(field.get("items", {})))) or "values")
    else:
        named = {
            "string": "text",
            "integer": "whole number",
            "boolean": "true, false",
            "null": "none",
            "object": "mapping",
        }
        yield named.get(str(field.get("type")), str(field.get("type") or "any"))


def value(field: dict[str, Any]) -> str:
    """The default of a field; the word for none, and nothing for one that must be given or is a section."""
    if "default" not in field:
        return "must be given" if "$ref" not in field else ""
    own = field["default"]
    if isinstance(own, dict) and own:
        return "see the section"
    if own == "":
        return "empty"
    return f"`{'none' if own is None else str(own).lower() if isinstance(own, bool) else own}`"


PAGES = {"commands.md": commands_page, "recipe.md": recipe_page}


def main() -> None:
    for name, page in PAGES.items():
        with atomic_write(FOLDER / name) as partial:
            partial.write_text(page(), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
