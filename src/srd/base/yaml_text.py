"""YAML as recipes and sweeps use it: text, numbers, true and false, null, lists and mappings; nothing else.

What YAML has beside that either hides a mistake (a key that is there twice, ``1:30`` for 90) or has no use here (tags,
several documents). Every mistake of a file is told with its line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from srd.base.errors import UserError
from srd.base.text import is_text, many, visible

LONGEST = 1 << 20  # bytes: the longest shipped recipe has about 1,500
DEEPEST = 50  # lists and mappings inside each other
MOST_NODES = 100_000  # values, those that an alias repeats counted each time
LARGEST_INTEGER = 2**63 - 1  # what Arrow, numpy and torch can hold
UNSPACED = re.compile(r"\s*(?:- )?([A-Za-z_][\w.-]*):([^\s/:].{,80})")
VALUE = re.compile(r"[ -]*[^\s:#'\"{\[][^:]*:\s+(\S.*)")  # what stands behind a key
MARKS = "{[&*|>@`%"  # what no text without quotes begins with

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """PyYAML's safe loader with other rules of what a plain word means: those of JSON, and yes, no, on, off."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also puts a text in quotes that the loader above would take for a number."""


class _QuickDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The same in a fifth of the time; what it writes with escapes, or alone, is written in another way."""


def _quoted(dumper: Any, text: str) -> Any:
    """Put a text that acts on a terminal in double quotes, in which its letters can be written as escapes."""
    style = None if visible(text) == text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _class in (_Dumper, _QuickDumper):
    _class.add_representer(str, _quoted)


for _kind, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    for _class in (_Loader, _Dumper, _QuickDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def dump_yaml(value: Any, *, short_lists: bool = False) -> str:
    """Write plain data so that `parse_yaml` reads the same; ``short_lists``: lists of plain values on one line."""
    flow = None if short_lists else False
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 110, "default_flow_style": flow}
    text = yaml.dump(value, Dumper=_QuickDumper, **options)
    if "\\" in text or not isinstance(value, dict | list):
        text = yaml.dump(value, Dumper=_Dumper, **options)
    return visible(text)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is no YAML of the kind above; with the line.
    """
    try:
        if path.stat().st_size > LONGEST:
            raise UserError(f"{path} is not YAML of a recipe or a sweep: it has more than {LONGEST >> 20} MiB.")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not YAML: not UTF-8 ({error.reason} at byte {error.start}). Convert it.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, place: str) -> Any:
    """Turn YAML into plain data; ``place`` is named in the message of a mistake.

    Raises:
        UserError: it is no YAML, or has something beyond what recipes and sweeps need; with the line.
    """
    try:
        _check_depth(text, place)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _Check(place).visit(root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        told = " ".join(str(error).split()).replace(' in "<unicode string>"', "")
        raise UserError(f"{place} is not YAML: {_slip(text, error) or told}") from error


def unspaced(text: str) -> str:
    """The first line such as ``key:value``, which YAML takes for a text without a key, with its remedy; or nothing."""
    for number, line in enumerate(text.split("\n"), start=1):
        if found := UNSPACED.match(line):
            return f"line {number}: no space behind the colon. Write {found[1]}: {found[2].strip()}"
    return ""


def _slip(text: str, error: Exception) -> str:
    """The usual slip where YAML finds a mistake, with its remedy; nothing where it is none of those."""
    mark, lines = getattr(error, "problem_mark", None), [*text.split("\n"), ""]
    if (
        mark is None
        or mark.line >= len(lines)
        or not isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
    ):
        return ""
    line, place = lines[mark.line], f"line {mark.line + 1}"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{place}: a tab in the indent. Use spaces."
    found = VALUE.match(line)
    if found and mark.column >= found.start(1):
        value = found[1].strip()[:80]
        if value[0] in MARKS:
            return f"{place}: a text that begins with {value[0]} needs quotes around it; else mend brackets: {value}"
        if ": " in value:
            return f"{place}: a text with a colon and a space in it needs quotes around it: {value}"
    first = max(0, min((getattr(error, "context_mark", None) or mark).line, mark.line - 1))
    return unspaced("\n" * first + "\n".join(lines[first : mark.line + 1]))


def _check_depth(text: str, place: str) -> None:
    """Refuse what is nested deeply before anything is built from it, which takes a call for each level."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(f"{place}, {_line(event)}: nested more than {DEEPEST} levels deep. Check the brackets.")


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"


class _Check:
    """Looks at every node once, and finds all that is not allowed."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.mistakes: list[str] = []
        self.sizes: dict[int, int] = {}  # nodes below a node; 0 while it is being visited

    def visit(self, root: yaml.Node) -> None:
        """Raise UserError with all mistakes below ``root``."""
        self._size(root)
        if self.mistakes:
            lines = "\n".join(f"  {mistake}" for mistake in dict.fromkeys(self.mistakes))
            count = many(len(self.mistakes), "mistake")
            raise UserError(f"{self.place} is not YAML as recipes use it, {count}:\n{lines}")

    def _size(self, node: yaml.Node) -> int:
        known = self.sizes.get(id(node))
        if known == 0:
            raise UserError(f"{self.place}, {_line(node)}: the alias stands for what it is part of. Remove it.")
        if known is not None:
            return known
        self.sizes[id(node)] = 0
        if isinstance(node, yaml.ScalarNode):
            self._look_at_scalar(node)
            inside = 0
        elif isinstance(node, yaml.MappingNode):
            self._look_at_tag(node, "map")
            self._look_at_keys(node)
            inside = sum(self._size(key) + self._size(value) for key, value in node.value)
        else:
            self._look_at_tag(node, "seq")
            inside = sum(self._size(item) for item in node.value)
        self.sizes[id(node)] = 1 + inside
        if inside > MOST_NODES:
            raise UserError(f"{self.place}, {_line(node)}: its aliases stand for more than {MOST_NODES:,} values.")
        return 1 + inside

    def _look_at_tag(self, node: yaml.Node, *usual: str) -> None:
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if kind not in usual:
            self.mistakes.append(f"{_line(node)}: the tag '{kind}' has no meaning here. Remove it.")

    def _look_at_scalar(self, node: yaml.ScalarNode) -> None:
        self._look_at_tag(node, "str", "int", "float", "bool", "null", "merge")
        shown = node.value if len(node.value) <= 40 else node.value[:37] + "..."
        if node.tag.endswith(":int") and (len(node.value) > 25 or abs(int(node.value)) > LARGEST_INTEGER):
            self.mistakes.append(f"{_line(node)}: the number {shown} is too large.")
        if "\0" in node.value or not is_text(node.value):
            self.mistakes.append(f"{_line(node)}: {shown!r} holds a character that is no text. Remove it.")

    def _look_at_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, str] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                shown = f"'{key.value}' " if isinstance(key, yaml.ScalarNode) else ""
                self.mistakes.append(f"{_line(key)}: the key {shown}is no text. Put it in quotes, or remove it.")
            elif key.value in lines:
                twice = f"{_line(key)}: the key '{key.value}' is there twice (first in {lines[key.value]})"
                self.mistakes.append(f"{twice}. Remove one.")
            else:
                lines[key.value] = _line(key)
