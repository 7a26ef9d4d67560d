"""Code that was registered from outside of srd: where that was, and what stands for it in a fingerprint."""

from __future__ import annotations

import functools
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

OURS = Path(__file__).parent.parent
PLUMBING = ("registry.py", "base.py")  # of ours: what a call to register goes through
LIBRARIES = tuple(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib"))
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...))


@dataclass(frozen=True)
class Handed:
    """What was registered from outside of srd.

    Attributes:
        value: As its author wrote it; a name, of what was made of something that has it.
        place: The file in which it was registered; of a notebook ``__main__``.
        said: What was said beside it when it was registered, such as which end of a score is hard.
    """

    value: Any
    place: str
    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> list[Any]:
        """What stands for it in a fingerprint."""
        return [code_of(self.value), *([code_of(self.said)] if self.said else [])]

    def is_again(self, before: Handed | None) -> bool:
        """Whether it is the same code of the same place once more: a cell or a plugin that was changed and run anew."""
        if before is None or self.place != before.place:
            return False
        if isinstance(self.value, str):
            return bool(self.value == before.value)
        if not _is_users(_named(self.value), ""):
            return False
        return _called(self.value) == _called(before.value)


def _named(value: Any) -> Any:
    """The function or class that a thing is, or is made by."""
    return value if hasattr(value, "__qualname__") else type(value)


def _called(value: Any) -> tuple[str, int]:
    """What a function or a class is called; as all lambdas are called the same, the line of one, too."""
    name = _named(value).__qualname__
    return name, value.__code__.co_firstlineno if name.endswith("<lambda>") else 0


#: By kind and name.
HANDED: dict[tuple[str, str], Handed] = {}


def place_of_call() -> str | None:
    """Where somebody is registering something; None: in srd itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_plumbing(Path(frame.f_code.co_filename)):
        frame = frame.f_back
    if Path(frame.f_code.co_filename).is_relative_to(OURS):
        return None
    file = frame.f_globals.get("__file__")
    return str(Path(file).resolve()) if file else str(frame.f_globals.get("__name__"))


def _is_plumbing(file: Path) -> bool:
    return file.name in PLUMBING and file.is_relative_to(OURS)


def code_of(value: Any) -> Any:
    """What stands for a function, a class or an object in a fingerprint: its code, and what of its author's that uses.

    That is plain values, functions and classes that it finds in its module or around it. What else it holds counts by
    its type; libraries are not looked into.
    """
    module = str(getattr(value, "__module__", None) or type(value).__module__)
    return _code(value, module.partition(".")[0], set(), {})


def _code(value: Any, package: str, seen: set[int], done: dict[int, int]) -> Any:
    # seen: ids of what it lies in; done: of functions and classes, numbered: what many of them use is looked at once.
    if isinstance(value, PLAIN):
        return repr(value)
    if id(value) in seen:
        return "again"
    if id(value) in done:
        return f"again {done[id(value)]}"
    if isinstance(value, BuiltinFunctionType | ModuleType):
        return value.__name__
    if isinstance(value, FunctionType | type) and not _is_users(value, package):
        return f"{value.__module__}.{value.__qualname__}"
    inner = next((parts(value) for kind, parts in PARTS if isinstance(value, kind)), None)
    if inner is None:  # an object
        inner = [type(value), vars(value) if hasattr(value, "__dict__") and _is_users(type(value), package) else {}]
    found = [_code(each, package, {*seen, id(value)}, done) for each in inner]
    if isinstance(value, FunctionType | type):
        done[id(value)] = len(done)
    return found


def _parts_of_function(value: FunctionType) -> list[Any]:
    """What decides what a function does: its code, its defaults, what it finds around it and in its module."""
    around = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    found = _looked_up(_names(value.__code__), value.__globals__, value.__module__.partition(".")[0])
    return [value.__code__, value.__defaults__, value.__kwdefaults__, around, found]


def _looked_up(names: set[str], among: Mapping[str, Any], package: str) -> dict[str, Any]:
    """What code with these names finds in a module, and in those of its author that it reaches through that."""
    found = {name: among[name] for name in sorted(names & among.keys())}
    theirs = {name for name, each in found.items() if isinstance(each, ModuleType) and _is_users(each, package)}
    return found | {name: _looked_up(names - {name}, vars(found[name]), package) for name in sorted(theirs)}


#: Kinds of things, and what each consists of.
PARTS: tuple[tuple[Any, Callable[[Any], list[Any]]], ...] = (
    (Mapping, lambda value: [part for pair in value.items() for part in pair]),
    ((list, tuple), list),
    ((set, frozenset), lambda value: sorted(map(repr, value))),
    (CodeType, lambda code: [code.co_code.hex(), code.co_exceptiontable.hex(), code.co_names, code.co_consts]),
    (functools.partial, lambda value: [value.func, value.args, value.keywords]),
    (property, lambda value: [value.fget]),
    (functools.cached_property, lambda value: [value.func]),
    ((staticmethod, classmethod, MethodType), lambda value: [value.__func__]),
    (FunctionType, _parts_of_function),
    (type, lambda value: [value.__qualname__, value.__bases__, _written(value)]),
)


def _is_users(value: Any, package: str) -> bool:
    """Whether a function, class or module is its author's own: of the package that is looked at, or of no library."""
    module = str(value.__name__ if isinstance(value, ModuleType) else value.__module__)
    if module.partition(".")[0] in (package, "__main__"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not any(Path(file).is_relative_to(folder) for folder in (OURS, *LIBRARIES))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _names(code: CodeType) -> set[str]:
    """The names that a piece of code, and what is written within it, looks up."""
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def _written(value: type) -> dict[str, Any]:
    """What a class is written with: functions, plain values, and the types and defaults of settings."""
    kinds = (FunctionType, staticmethod, classmethod, property, functools.cached_property, *PLAIN, list, dict, tuple)
    found = {name: each for name, each in vars(value).items() if isinstance(each, kinds) and name[:2] != "__"}
    found |= {name: each for name, each in vars(value).items() if name in ("__init__", "__call__")}
    fields = getattr(value, "__pydantic_fields__", {})
    return {**found, "settings": {name: ADDRESS.sub("", repr(field)) for name, field in fields.items()}}
