"""The user's own modules: a Python file or a module name that a recipe lists under ``plugins``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

from srd.base.errors import UserError
from srd.base.failures import USER_CODE, first_line
from srd.base.files import file_digest, fingerprint

#: Plugin -> files of the modules that came with it.
IMPORTED: dict[str, set[Path]] = {}
#: Plugin -> content of its files when they were imported.
CONTENTS: dict[str, list[str]] = {}
OURS = Path(__file__).parent.parent


def import_plugin(name: str) -> None:
    """Import a module by file path or by name, and note which files came with it; anew where they were changed since.

    Raises:
        UserError: there is none, or running it fails; with the file and line where it does.
    """
    if name in CONTENTS and CONTENTS[name] != _contents(name):
        _forget(set(plugin_files(name)))
        IMPORTED.pop(name)
    before, keeps_none = set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # no __pycache__ in the user's folder
    try:
        _import(name)
    finally:
        sys.dont_write_bytecode = keeps_none
        new = [getattr(sys.modules[module], "__file__", None) for module in set(sys.modules) - before]
        IMPORTED.setdefault(name, {Path(file).resolve() for file in new if file})
        CONTENTS[name] = _contents(name)
    USER_CODE.update(plugin_files(name))


def _contents(name: str) -> list[str]:
    return [file_digest(file) if file.is_file() else "" for file in plugin_files(name)]


def _forget(files: set[Path]) -> None:
    """Let the modules of these files be imported anew."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name != "__main__" and Path(file).resolve() in files:
            del sys.modules[name]
    importlib.invalidate_caches()


def _import(name: str) -> None:
    if not name.strip(" ."):
        raise UserError(f"plugins: {name!r} names nothing. Give a .py file or an installed module.")
    if name.endswith(".py"):
        _import_file(name)
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"plugins: no module named '{error.name}'. Give a .py file or an installed module.") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"plugins: the module '{name}' cannot be imported: {_reason(error)}") from error


def _import_file(name: str) -> None:
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"plugins: no file '{name}' (looked for as {path}: relative paths begin in the current folder)")
    module_name = f"srd_plugin_{path.stem}_{fingerprint(str(path))[:8]}"  # two folders may have one of that name
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"plugins: '{name}' cannot be imported: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What went wrong while a module was read or run, and the last line of it that its author wrote."""
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    frames = [frame for frame in frames if frame.filename != __file__]
    if not frames:
        return said
    home = Path(frames[0].filename).parent  # the module's own first line is where its running begins
    own = [frame for frame in frames if _is_beside(Path(frame.filename), home)]
    return f"{said} ({own[-1].filename}, line {own[-1].lineno})"


def _is_beside(file: Path, home: Path) -> bool:
    """Whether a file lies in a folder or below it, and belongs to no library that is installed there."""
    if not file.is_relative_to(home) or file.is_relative_to(OURS):
        return False
    return "site-packages" not in file.relative_to(home).parts


def plugin_files(name: str) -> list[Path]:
    """The source files of an imported plugin: its own, and those beside or below it that came with it."""
    if name.endswith(".py"):
        own = Path(name).expanduser().resolve()
    else:
        own = Path(str(getattr(sys.modules.get(name), "__file__", None) or name)).resolve()
    return sorted({own, *(file for file in IMPORTED.get(name, set()) if file.is_relative_to(own.parent))})
