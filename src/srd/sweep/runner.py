"""Running a sweep: its folder, its cells one after the other, and what has become of each."""

from __future__ import annotations

import gc
import traceback
from pathlib import Path
from typing import Any

from rich.markup import escape

from srd.base import parallel
from srd.base.console import console, set_up_logging
from srd.base.errors import RunError, UserError
from srd.base.files import atomic_write, fingerprint, read_sealed, remove, write_sealed
from srd.base.locks import lock
from srd.base.yaml_text import dump_yaml, read_yaml
from srd.recipe.merging import merge
from srd.recipe.reading import validate_recipe
from srd.recipe.schema import Recipe
from srd.report.page import build_report
from srd.run.context import Run
from srd.run.flow import run_all
from srd.run.folder import RunFolder
from srd.run.identity import recipe_identity
from srd.run.manifest import Manifest
from srd.sweep.cells import Cell, Outcome, lay_out, reference_rows
from srd.sweep.page import write_sweep_report
from srd.sweep.settings import load_sweep

RESULT = "cell.json"  # beside the run directory's own files: how the cell ended


def _owner(note: Path, name: str) -> str:
    """The name of the sweep that a folder belongs to."""
    try:
        return str(read_yaml(note)["name"])
    except (UserError, TypeError, KeyError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{note} names no sweep"
        remedy = f"To go on with '{name}' there, write `name: {name}` into it; or choose another --dir."
        raise UserError(f"{reason.rstrip('.')}. {remedy}") from error


class Sweep:
    """A sweep and the folder it works in: a run directory for each cell in ``cells``, common steps in ``shared``.

    Args:
        path: The sweep's file.
        folder: Where; made if it is not there. None: ``sweeps/<name>``.
        overrides: ``key.path=value`` for the recipe of all cells.

    Raises:
        UserError: the sweep is wrong, the folder is another sweep's, or another process works in it.
    """

    def __init__(self, path: Path, folder: Path | None = None, overrides: list[str] | None = None) -> None:
        self.config = load_sweep(path)
        self.folder = folder or Path("sweeps") / self.config.name
        self.cells = lay_out(self.config, path, overrides)
        self.references = reference_rows(self.config, self.cells, path)
        self._claim()

    def _claim(self) -> None:
        """Make the folder ours: of this sweep, and of one command at a time."""
        note = self.folder / "sweep.yaml"
        if note.exists():
            name = _owner(note, self.config.name)
            if name != self.config.name:
                raise UserError(
                    f"{self.folder} is the folder of the sweep '{name}', not of '{self.config.name}'. "
                    "Choose another --dir, or delete it."
                )
        elif self.folder.is_file() or (
            self.folder.is_dir() and any(not entry.name.startswith(".") for entry in self.folder.iterdir())
        ):
            raise UserError(f"{self.folder} holds other files. Choose an empty --dir.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if parallel.is_main():
            self._lock = lock(self.folder / ".lock", "--dir")
            with atomic_write(note) as partial:
                partial.write_text(dump_yaml(self.config.model_dump(mode="json")), encoding="utf-8")
        parallel.barrier()

    def outcomes(self) -> list[Outcome]:
        """What has become of every cell, row by row."""
        rows = list(dict.fromkeys(cell.row for cell in self.cells))
        return [self.outcome(cell) for cell in sorted(self.cells, key=lambda cell: rows.index(cell.row))]

    def outcome(self, cell: Cell) -> Outcome:
        """What has become of one cell."""
        folder = self.folder / "cells" / cell.folder
        noted = read_sealed(folder / RESULT)
        return Outcome(cell, folder, noted.get("state", "missing"), noted.get("error", ""))

    def run(self) -> list[Outcome]:
        """Run the cells that are not done, go on past those that fail, and write the tables after each."""
        for number, cell in enumerate(self.cells, start=1):
            console.rule(f"{number} of {len(self.cells)}: {cell.title}", align="left", style="dim")
            if self._run_cell(cell):
                self._write_report()
            gc.collect()  # a model that only a cycle holds would still be in memory when the next one is loaded
        self._write_report()
        return self.outcomes()

    def _write_report(self) -> None:
        if parallel.is_main():
            write_sweep_report(self.folder, self.config, self.outcomes(), self.references)

    def _run_cell(self, cell: Cell) -> bool:
        """Run one cell unless it is done; False if there was nothing to do."""
        folder = self.folder / "cells" / cell.folder
        try:
            recipe = parallel.together(lambda: self._recipe(cell))
            identity = parallel.on_main(lambda: fingerprint(recipe.model_dump(), recipe_identity(recipe)))
            if parallel.on_main(lambda: _is_done(folder, identity)):
                console.print("[green]✓[/] done before")
                return False
            self._note(folder, {})
            run = Run(recipe, folder, shared=self.folder / "shared")
            set_up_logging(run.warnings)
            run_all(run)
            if parallel.is_main():
                build_report(folder)
            self._note(folder, {"state": "done", "identity": identity})
            if not self.config.keep_students and parallel.is_main():
                _drop_weights(run.files)
        except Exception as error:  # one cell's failure must not cost the others; it is shown, kept and counted
            self._note_failure(folder, error)
        return True

    def _note_failure(self, folder: Path, error: Exception) -> None:
        """Show and keep why a cell failed; what the others cannot go on after is raised."""
        expected = isinstance(error, UserError | RunError)
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        failed = {"state": "failed", "error": message}
        if not parallel.can_go_on(error):
            if not parallel.is_lost(error):  # then it is the other process that knows why
                write_sealed(folder / RESULT, failed)
            raise error
        shown = escape(message if expected else traceback.format_exc())
        console.print(f"[bold red]failed:[/] {shown}", soft_wrap=True)
        self._note(folder, failed)

    def _note(self, folder: Path, result: dict[str, Any]) -> None:
        """Keep how a cell ended."""
        if parallel.is_main():
            if result:
                write_sealed(folder / RESULT, result)
            else:
                remove(folder / RESULT)
        parallel.barrier()

    def _recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell, which caches the teacher where all cells find it."""
        shared = {"cache": {"dir": str(self.folder / "shared" / "cache")}}
        return validate_recipe(merge(shared, cell.content), f"cell '{cell.title}'")


def _is_done(folder: Path, identity: str) -> bool:
    """Whether a cell has been run from this recipe and these files, and what it keeps is as it was."""
    noted = read_sealed(folder / RESULT)
    if noted.get("state") != "done" or noted.get("identity") != identity:
        return False
    try:
        manifest = Manifest(folder)
    except UserError:  # running the cell says it
        return False
    own = [path for step in manifest.steps for path in manifest.damaged(step) if path.is_relative_to(folder)]
    changed = [path for path in own if path.exists() or not _is_weight(path.relative_to(folder))]
    if changed:
        name = escape(str(changed[0].relative_to(folder)))
        console.print(f"{name} was changed or is missing: the cell is run again")
    return not changed


def _is_weight(path: Path) -> bool:
    """Whether a file of a run directory is of a model, which is dropped."""
    return path.parts[0] in ("student", "start", "teacher") or (path.parts[0] == "stages" and "model" in path.parts)


def _drop_weights(files: RunFolder) -> None:
    """Delete the weights of a cell that has been evaluated: a student takes 4 bytes a parameter, and there are many."""
    for path in [files.student(files.main), files.start, files.teacher, *files.stages(files.main).glob("*/model")]:
        remove(path)
