"""One run of a recipe: its directory, its steps, and the flow through them.

The room is called as what it does: ``srd.run(recipe, "training.epochs=2", run_dir="runs/one")`` runs a whole recipe,
and gives a `srd.Result`. ``recipe`` is the name of a shipped one, a YAML file or a mapping; then come changes of it;
``run_dir`` is where to work (``runs/<name of the recipe>``). The same call goes on where it was stopped, or returns at
once. It raises `srd.UserError` for what is wrong in the recipe and `srd.RunError` where the machine fails.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, recipe: Any, *overrides: str, run_dir: Any = None, **others: Any) -> Any:
        """Run a whole recipe: see `srd.api.run`."""
        if others:
            name = next(iter(others))
            raise importlib.import_module("srd.base.errors").UserError(
                f"srd.run: {name}: changes of a recipe are text, as in srd.run(recipe, 'training.epochs=2')"
            )
        return importlib.import_module("srd.api").run(recipe, *overrides, run_dir=run_dir)


sys.modules[__name__].__class__ = _Callable
