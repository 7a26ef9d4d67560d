"""Things that are found by name: scores, methods, divergences, tasks.

A name is a file of the registry's package, which registers what it holds when it is imported. Listing the names looks
at the folder and imports nothing; asking for one imports its file alone. A user's plugin registers more, and so do
installed packages, by an entry point in the group ``srd.<kind>s``.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from srd.base.code import HANDED, Handed, place_of_call
from srd.base.errors import UserError, nearest
from srd.base.failures import first_line
from srd.base.handed import check_name

T = TypeVar("T")
NO_NAMES = ("base", "common")  # files of a package that are no names


@cache
def _installed() -> Any:
    """What installed packages offer: looked for once, as all of them are read for it."""
    return entry_points()


class Registry(Generic[T]):
    """What there is of one kind, by name.

    Args:
        kind: One word, such as ``score``.
        package: Whose files are the names.
        unknown: How a name that is not there is refused; ``{}`` stands for it.
        hyphens: Whether names are said with hyphens, as a command line has them, where a file has underscores. Both
            are taken.
        check: Takes the name and what is to be registered under it, and refuses what cannot serve.
    """

    def __init__(
        self, kind: str, package: str, unknown: str = "", hyphens: bool = False,
        check: Callable[[str, Any], None] | None = None,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.hyphens = hyphens
        self.check = check
        self.package = package
        self.unknown = unknown or f"unknown {kind} '{{}}'"
        self.aliases: dict[str, str] = {}  # of what is registered by now: alias -> name
        self._registered: dict[str, T] = {}

    @cached_property
    def _files(self) -> tuple[str, ...]:
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        names = [module.name for module in pkgutil.iter_modules(folders)]
        return tuple(name for name in names if name not in NO_NAMES and not name.startswith("_"))

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {self._key(point.name): point for point in _installed().select(group=f"srd.{self.kind}s")}

    def _key(self, name: str) -> str:
        return name.replace("-", "_") if self.hyphens else name

    def _said(self, name: str) -> str:
        return name.replace("_", "-") if self.hyphens else name

    def register(self, name: str, *, aliases: Iterable[str] = (), of: Any = None) -> Callable[[T], T]:
        """Register what it decorates under ``name``, and under other names that mean the same.

        What is registered once more by the same code, as a notebook's cell that is run again, takes the place of what
        it registered before.

        Args:
            name: Of what is registered.
            aliases: The other names.
            of: What its author wrote, where that is only a part of it.

        Raises:
            UserError: a name is taken, or is none; or what it decorates cannot serve.
        """
        check_name(self.kind, name)
        aliases = [aliases] if isinstance(aliases, str) else list(aliases)

        def decorate(value: T) -> T:
            self._add(value, [name, *aliases], value if of is None else of, place_of_call())
            return value

        return decorate

    def _add(self, value: T, names: list[str], written: Any, place: str | None) -> None:
        """Keep something under its names; ``place``: where it was registered, if not in srd."""
        if self.check is not None:
            self.check(names[0], value)
        first, *others = names = list(map(self._key, names))
        if f"{self.package}.{first}" not in sys.modules:  # from elsewhere: our files come first, and know their aliases
            self._read_files()
        beside = {} if written is value else {key: each for key, each in vars(value).items() if each is not written}
        handed = None if place is None else Handed(written, place, beside)
        if handed is not None and handed.is_again(HANDED.get((self.kind, first))):
            self._registered.pop(first, None)
            self.aliases = {alias: name for alias, name in self.aliases.items() if name != first}
        for each in names:
            if each in self._registered or each in self.aliases or (each in self._files and each != first):
                said = self._said(each)
                raise UserError(f"there is a {self.kind} '{said}' already: register yours under another name")
        self._registered[first] = value
        self.aliases.update(dict.fromkeys(others, first))
        if handed is not None:
            HANDED[self.kind, first] = handed

    def _read_files(self) -> None:
        for file in self._files:
            importlib.import_module(f"{self.package}.{file}")

    def names(self) -> list[str]:
        """All names, without aliases."""
        return sorted(map(self._said, {*self._files, *self._registered, *self._entry_points}))

    def __contains__(self, name: object) -> bool:  # to look at what is installed takes longest, so that comes last
        name = self._key(str(name))
        return name in self._files or name in self._registered or name in self._entry_points

    def name_of(self, name: str) -> str:
        """The name that an alias stands for, and any other name itself; with underscores, as its file has it.

        Raises:
            UserError: there is none; the message suggests the nearest.
        """
        name, asked = self._key(name), name
        if name in self._files or name in self._registered:
            return name
        if name in self._entry_points:
            self._load(self._entry_points[name])
            return name
        self._read_files()  # an alias is known when its file is read
        if name not in self.aliases:
            known = [*self.names(), *map(self._said, self.aliases)]
            raise UserError(f"{self.unknown.format(asked)}; {nearest(self._said(name), known)}")
        return self.aliases[name]

    def get(self, name: str) -> T:
        """What has this name or alias; its file is imported.

        Raises:
            UserError: there is none; the message suggests the nearest name.
        """
        name = self.name_of(name)
        if name not in self._registered:
            importlib.import_module(f"{self.package}.{name}")
        return self._registered[name]

    def _load(self, point: EntryPoint) -> None:
        """Import what an entry point names: a module that registers it, or the very thing that is registered."""
        place = f"the {self.kind} '{point.name}' of an installed package"
        try:
            value = point.load()
        except Exception as error:
            raise UserError(f"{place} cannot be imported: {first_line(error)} ({point.value})") from error
        if self._key(point.name) in self._registered:
            return
        if isinstance(value, ModuleType):
            raise UserError(f"{place}: {point.value} registers none of that name. Call srd.register_{self.kind} in it.")
        self._add(value, [point.name], value, point.value)
