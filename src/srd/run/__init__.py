"""One run of a recipe: its directory, its steps, and the flow through them.

The room is called as what it does: ``srd.run(recipe)`` is `srd.api.run`, and ``srd.run.flow`` stays a module.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, recipe: Any, *overrides: str, run_dir: Any = None) -> Any:
        """Run a whole recipe: see `srd.api.run`."""
        return importlib.import_module("srd.api").run(recipe, *overrides, run_dir=run_dir)


sys.modules[__name__].__class__ = _Callable
