"""The user's own modules: a Python file or a module name that a recipe lists under ``plugins``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from srd.errors import UserError


def import_plugin(name: str) -> None:
    """Import a module by file path or by name, once."""
    if not name.endswith(".py"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"plugins: no module named '{error.name}'. Give a .py file or an installed module."
            ) from error
        return
    path = Path(name).resolve()
    module_name = f"srd_plugin_{path.stem}"
    if not path.is_file():
        raise UserError(f"plugins: no file '{name}'")
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
