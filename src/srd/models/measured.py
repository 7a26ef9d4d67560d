"""What was measured of a model, kept for the next time that this process loads the same files.

A run loads its teacher and its student several times, and a sweep does for every cell. That the files are the same is
known by their digests. Where these are not known yet, nothing is kept: hashing takes longer than measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from srd.base.files import fingerprint, known_digest

Measure = TypeVar("Measure")

_kept: dict[tuple[str, str], Any] = {}  # by what stands for files and the way they were loaded, and by what is measured
_loaded: WeakKeyDictionary[nn.Module, tuple[str, list[Any]]] = WeakKeyDictionary()


def note_loaded(model: Any, files: Iterable[Path], *how: Any) -> None:
    """Note what a model was loaded from, and how: all that decides what it computes; no files: that is not known."""
    digests = [known_digest(file) for file in files]
    if digests and None not in digests:
        _loaded[model] = fingerprint(digests, settings_of(model.config), *map(str, how)), _state(model)


def settings_of(config: Any) -> dict[str, Any]:
    """What a configuration says, wherever its file lies."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def measured(core: Any, name: str, measure: Callable[[], Measure]) -> Measure:
    """What was measured of the same files before, where the model is still as it was loaded; else it is measured."""
    key, state = _loaded.get(core, ("", []))
    if not key or state != _state(core):
        return measure()
    if (key, name) not in _kept:
        _kept[key, name] = measure()
    return _kept[key, name]


def _state(model: Any) -> list[Any]:
    """What differs once weights were trained or exchanged, adapters put in, or attention is computed another way."""
    weights = [(id(weight), weight.data_ptr(), weight._version, weight.dtype) for weight in model.parameters()]
    return [weights, [type(module) for module in model.modules()], model.config._attn_implementation]
