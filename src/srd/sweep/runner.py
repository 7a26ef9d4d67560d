"""Running a sweep: its folder, its cells one after the other or side by side, and what has become of each."""

from __future__ import annotations

import contextlib
from pathlib import Path

from srd.base import parallel
from srd.base.console import console
from srd.base.errors import UserError
from srd.base.files import read_sealed, write_text
from srd.base.locks import held
from srd.base.yaml_text import dump_yaml, read_yaml
from srd.sweep.cells import Cell, Outcome, lay_out, reference_rows
from srd.sweep.one import RESULT, CellRunner, check_places, is_made_from, is_whole
from srd.sweep.page import write_sweep_report
from srd.sweep.settings import load_sweep
from srd.sweep.workers import run_side_by_side

NOTE = "sweep.yaml"  # in the folder: whose it is


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
        folder: Where; made when it is run. None: ``sweeps/<name>``.
        overrides: ``key.path=value`` for the recipe of all cells.

    Raises:
        UserError: the sweep is wrong, or the folder is another sweep's.
    """

    def __init__(self, path: Path, folder: Path | None = None, overrides: list[str] | None = None) -> None:
        self.config = load_sweep(path)
        self.folder = folder or Path("sweeps") / self.config.name
        self.cells = lay_out(self.config, path, overrides)
        self.references = reference_rows(self.config, self.cells, path)
        self._check()

    def _check(self) -> None:
        """Refuse a folder that is another sweep's, or nobody's."""
        note = self.folder / NOTE
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

    def _claim(self, stack: contextlib.ExitStack) -> None:
        """Make the folder ours: of this sweep, and of one command at a time."""
        stack.enter_context(held(self.folder, "--dir"))
        write_text(self.folder / NOTE, dump_yaml(self.config.model_dump(mode="json")))

    def outcomes(self) -> list[Outcome]:
        """What has become of every cell, row by row."""
        return [self.outcome(cell) for cell in self._in_order()]

    def outcome(self, cell: Cell) -> Outcome:
        """What has become of one cell."""
        runner = CellRunner(self.folder)
        folder = runner.place(cell)
        noted = read_sealed(folder / RESULT)
        state = noted.get("state", "missing")
        if state == "done" and not (is_whole(folder) and is_made_from(runner.recipe(cell), noted)):
            # It is run again when its turn comes.
            state = "missing"
        return Outcome(cell, folder, state, noted.get("error", ""))

    def run(self, jobs: int = 1) -> list[Outcome]:
        """Run the cells that are not done, go on past those that fail, and write the tables after each.

        Args:
            jobs: How many at a time, each in a process of its own; see `srd.sweep.workers`.

        Raises:
            UserError: another command works in the folder, or several at a time in each of several processes.
        """
        if jobs > 1 and parallel.processes() > 1:
            raise UserError(
                "--jobs starts processes of its own. Start the sweep without a launcher, or without --jobs."
            )
        with contextlib.ExitStack() as stack:
            parallel.on_main(lambda: self._claim(stack))
            self._run_cells(jobs)
        return self.outcomes()

    def _run_cells(self, jobs: int) -> None:
        place = CellRunner(self.folder, self.config.keep_students)
        parallel.on_main(lambda: check_places([place.place(cell) for cell in self.cells]))
        if jobs > 1:
            run_side_by_side(self._in_order(), place, jobs, tell=self.write_report)
        for number, cell in enumerate(self._in_order() if jobs == 1 else [], start=1):
            console.rule(f"{number} of {len(self.cells)}: {cell.title}", align="left", style="dim")
            if place.run(cell):
                self.write_report()
        self.write_report()

    def _in_order(self) -> list[Cell]:
        """The cells row by row: a sweep that is cut off has all seeds of its first rows, and none of its last."""
        rows = list(dict.fromkeys(cell.row for cell in self.cells))
        return sorted(self.cells, key=lambda cell: rows.index(cell.row))

    def write_report(self) -> None:
        """Write the page and the tables of what is done."""
        if parallel.is_main():
            write_sweep_report(self.folder, self.config, self.outcomes(), self.references)
