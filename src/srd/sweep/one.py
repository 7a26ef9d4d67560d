"""Running one cell of a sweep, in its own run directory, and keeping how it ended."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from srd.base import parallel
from srd.base.console import console, set_up_logging
from srd.base.errors import UserError
from srd.base.failures import ERROR_FILE, explain, work_in
from srd.base.files import content_of, discard, fingerprint, read_sealed, write_sealed
from srd.recipe.merging import merge
from srd.recipe.reading import validate_recipe
from srd.recipe.schema import Recipe
from srd.report.page import build_report
from srd.run.context import Run
from srd.run.flow import advance
from srd.run.identity import named_paths, recipe_identity
from srd.run.manifest import Manifest
from srd.run.steps.cleaning import marking_rules
from srd.sweep.cells import Cell

RESULT = "cell.json"  # beside the run directory's own files: how the cell ended


@dataclass(frozen=True)
class CellRunner:
    """Runs cells; several processes may do so in one folder, as each cell is locked and common steps are by turns.

    Attributes:
        folder: The sweep's.
        keep_students: Whether the trained weights stay.
    """

    folder: Path
    keep_students: bool = False

    def place(self, cell: Cell) -> Path:
        """The run directory of a cell."""
        return self.folder / "cells" / cell.folder

    def state(self, cell: Cell) -> str:
        """How a cell has ended: done, failed, or missing."""
        return str(read_sealed(self.place(cell) / RESULT).get("state", "missing"))

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell, which has the teacher's cache where all cells find it."""
        shared = {"cache": {"dir": str(self.folder / "shared" / "cache")}}
        return validate_recipe(merge(shared, cell.content), f"cell '{cell.title}'")

    def run(self, cell: Cell) -> bool:
        """Run a cell unless it is done; False if there was nothing to do."""
        try:
            return self._run(cell)
        finally:
            gc.collect()  # a model that only a cycle holds would still be in memory when the next one is loaded
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # others may share the device

    def _run(self, cell: Cell) -> bool:
        folder = self.place(cell)
        work_in(self.folder)  # not in the cell before this one
        try:
            recipe = parallel.together(lambda: self.recipe(cell))
            done = {"state": "done", **parallel.on_main(lambda: _made_from(recipe))}
            noted = parallel.on_main(lambda: read_sealed(folder / RESULT))
            if parallel.on_main(lambda: _is_done(folder, done["identity"])):
                self._end(folder, Manifest(folder), done, noted.get("weights"))  # an older note lacks something
                console.print("[green]✓[/] done before")
                return False
            self._note(folder, {})
            run = Run(recipe, folder, shared=self.folder / "shared")
            work_in(folder)
            set_up_logging(run.warnings)
            advance(run)
            if parallel.is_main():
                build_report(folder)
            self._end(folder, run.manifest, done)
        except (Exception, SystemExit) as error:  # it must not cost the others; it is shown, kept and counted
            self._note_failure(folder, error)
        return True

    def _end(self, folder: Path, manifest: Manifest, done: dict[str, Any], weights: str | None = None) -> None:
        """Note that a cell is done, then drop its weights or keep them; once, as what comes later is the user's."""
        done = {**done, "steps": _keys(manifest)}
        if weights is None:
            self._note(folder, done)
            weights = "kept" if self.keep_students else "dropped"
            if parallel.is_main() and not self.keep_students:
                _drop_weights(manifest)
        self._note(folder, {**done, "weights": weights})

    def _note_failure(self, folder: Path, error: Exception | SystemExit) -> None:
        """Show and keep why a cell failed; what the others cannot go on after is raised."""
        _, message = explain(error)
        failed = {"state": "failed", "error": message}
        if not parallel.can_go_on(error):
            if not parallel.is_lost(error):  # then it is the other process that knows why
                write_sealed(folder / RESULT, failed)
            raise error
        console.print(f"[bold red]failed:[/] {escape(message)}", soft_wrap=True)
        self._note(folder, failed)

    def _note(self, folder: Path, result: dict[str, Any]) -> None:
        """Keep how a cell ended."""
        if parallel.is_main():
            write_sealed(folder / RESULT, result) if result else discard(folder / RESULT)
        parallel.barrier()


def _settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe but for where its cache lies, which is below the sweep: that may be named otherwise, or be moved."""
    return recipe.model_dump(exclude={"cache": {"dir"}})


def _identity(recipe: Recipe) -> str:
    return fingerprint(_settings(recipe), recipe_identity(recipe), *marking_rules(recipe))


def _near_identity(recipe: Recipe) -> str:
    """What can be told of `_identity` without the hub: the recipe, and the files it names."""
    contents = {field: content_of(path) for field, path in named_paths(recipe).items()}
    return fingerprint(_settings(recipe), contents, *marking_rules(recipe))


def _made_from(recipe: Recipe) -> dict[str, Any]:
    """What is noted of a cell that is made from a recipe."""
    return {"identity": _identity(recipe), "near": _near_identity(recipe)}


def is_made_from(recipe: Recipe, noted: dict[str, Any]) -> bool:
    """Whether a finished cell was made from this recipe and these files, by what is noted of it."""
    if "near" in noted:
        return bool(noted["near"] == _near_identity(recipe))
    try:  # from before that was noted
        return bool(noted.get("identity") == _identity(recipe))
    except UserError:  # a model of the hub that cannot be asked about: running the cell says it
        return False


def _is_done(folder: Path, identity: str) -> bool:
    """Whether a cell has been run from this recipe and these files, and what it keeps is as it was."""
    noted = read_sealed(folder / RESULT)
    if noted.get("state") != "done" or noted.get("identity") != identity:
        return False
    try:
        manifest = Manifest(folder)
    except UserError:  # running the cell says it
        return False
    if _is_of_another(manifest, noted):
        console.print("another command has worked in its folder: the cell is run again")
        return False
    changed = _changed(manifest)
    if changed:
        name = escape(str(changed[0].relative_to(folder)))
        console.print(f"{name} was changed or is missing: the cell is run again")
    return not changed


def _keys(manifest: Manifest) -> dict[str, str]:
    """The fingerprints of a cell's steps."""
    return {name: str(step["fingerprint"]) for name, step in manifest.steps.items()}


def _is_of_another(manifest: Manifest, noted: dict[str, Any]) -> bool:
    """Whether a cell's folder holds what another recipe has made since the cell was done."""
    return bool(noted.get("steps", _keys(manifest)) != _keys(manifest))


def _changed(manifest: Manifest) -> list[Path]:
    """Files of a cell that are not as its steps wrote them; weights that are gone were dropped."""
    own = [path for step in manifest.steps for path in manifest.damaged(step) if path.is_relative_to(manifest.folder)]
    return [path for path in own if path.exists() or not _is_weight(path.relative_to(manifest.folder))]


def is_whole(folder: Path) -> bool:
    """Whether what a finished cell keeps is as it was, so that its numbers count."""
    try:
        manifest = Manifest(folder)
    except UserError:
        return False
    return not _is_of_another(manifest, read_sealed(folder / RESULT)) and not _changed(manifest)


def check_places(folders: Iterable[Path]) -> None:
    """Refuse what lies in the place of a cell and is no cell.

    Raises:
        UserError: with the first file, or folder with files of somebody else.
    """
    for folder in folders:
        if folder.is_file():
            raise UserError(
                f"{folder} is a file, and a cell of the sweep goes there. Move it, or choose another --dir."
            )
        names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
        if read_sealed(folder / RESULT):  # of a cell that has failed at once, all there is
            names -= {RESULT, ERROR_FILE}
        if names and not names & {"recipe.yaml", "manifest.json"}:
            raise UserError(
                f"{folder} holds other files ({', '.join(sorted(names)[:3])}), where a cell of the sweep goes. Move "
                "it, or choose another --dir."
            )


def _is_weight(path: Path) -> bool:
    """Whether a file of a run directory is of a model, which is dropped."""
    return path.parts[0] in ("student", "start", "teacher") or (path.parts[0] == "stages" and "model" in path.parts)


def _drop_weights(manifest: Manifest) -> None:
    """Delete the weights of a cell that has been evaluated: a student takes 4 bytes a parameter, and there are many.

    Files that no step wrote stay, with the folders that they lie in.
    """
    for name in [name for step in manifest.steps for name in manifest.written(step)]:
        if _is_weight(Path(name)):
            path = manifest.folder / name
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something is left in it
                path.parent.rmdir()
