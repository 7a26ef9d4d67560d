"""A sweep: one recipe run under many settings, compared in one table.

A sweep is a YAML file::

    name: objectives
    recipe: demo                       # a shipped recipe, or a file beside this one
    overrides: {training.epochs: 4}    # changes for all runs
    grid:                              # every combination of these ...
      training.objective: [fkl, srkl]
      training.seed: [0, 1]            # ... where seeds repeat a row of the table, and do not make one
    cells:                             # ... with each of these
      kd: {training.curriculum: null, equal_passes: srd}
      srd: {}
    reference: kd                      # what the others are compared with, at the same point of the grid

Every run (a *cell*) trains one student in ``DIR/cells/<cell>``, an ordinary run directory. What cells have in common
(examples, fine-tuned teacher, starting student, reflection, teacher cache, the teacher's answers) is made once and
lies in ``DIR/shared``. Running a sweep again makes what is missing.

``extends: NAME`` starts from another sweep. A grid axis may also be a mapping of names to changes, where its values
differ in more than one field: ``method: {gkd: {training.method: gkd}, sft: {training.method: sft}}``. In a cell,
``equal_passes: CELL`` sets the epochs so that it makes as many passes over all the data as another cell, and
``equal_time: {to: CELL, pace: CELL}`` so that it trains as long as one cell, its reflection counted, at the measured
pace of another.
"""

from __future__ import annotations

import gc
import itertools
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from rich.markup import escape

from srd.base import parallel
from srd.base.console import console, set_up_logging
from srd.base.errors import RunError, UserError, nearest
from srd.base.files import atomic_write, fingerprint, read_json, remove, write_json
from srd.base.yaml_text import dump_yaml, read_yaml
from srd.evaluation.predictions import PREDICTIONS, listed, read_scores
from srd.recipe.schema import (
    LONGEST_NAME,
    FolderName,
    Recipe,
    Section,
    TrainingConfig,
    describe_mistake,
    find_recipe,
    merge,
    parse_overrides,
    read_recipe,
    validate_recipe,
)
from srd.run.context import Run
from srd.run.flow import run_all
from srd.run.folder import lock
from srd.run.identity import recipe_identity

SEED_FIELDS = ("seed", "training.seed")  # values of these repeat a row of the table
EQUAL_TIME, EQUAL_PASSES = "equal_time", "equal_passes"
RESULT = "cell.json"
SELF_EXPLAINING = ("objective", "method", "order")  # fields whose values are known by their names


class SweepConfig(Section):
    """A sweep as its file says it."""

    name: FolderName = Field("sweep", description="name of the sweep; names the default folder")
    description: str = Field("", description="what the sweep asks, printed above its tables")
    recipe: str = Field(description="the recipe that all cells start from")
    overrides: dict[str, Any] = Field({}, description="changes to the recipe for all cells; keys may be dotted")
    grid: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(
        {}, description="recipe field -> its values, or axis -> {name: changes}; all combinations are run"
    )
    cells: dict[str, dict[str, Any]] = Field({}, description="label -> changes; each is run at every grid point")
    reference: str | None = Field(None, description="label that the others are compared with; none: the first")
    keep_students: bool = Field(False, description="keep the trained weights; else only answers and numbers")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        label: Its name among the ``cells``, empty where there is only a grid.
        point: Grid field -> value, without the seeds.
        seeds: Grid field -> value, the seeds only.
        content: The whole recipe as plain data.
        equal_time: (cell whose time to match, cell whose pace to assume), where it trains for as long as another.
        named: Axes of the grid whose values are names.
    """

    label: str
    point: dict[str, Any]
    seeds: dict[str, int]
    content: dict[str, Any] = field(repr=False)
    equal_time: tuple[str, str] | None = None
    named: tuple[str, ...] = ()

    @property
    def point_name(self) -> str:
        """The grid point in words, such as ``srkl, select 0.5``; a named axis by the name alone."""
        return ", ".join(
            str(value) if key in self.named else shown_setting(key, value) for key, value in self.point.items()
        )

    @property
    def row(self) -> str:
        """The line of the table that this cell belongs to; seeds share a line."""
        return ", ".join(part for part in (self.point_name, self.label) if part) or "run"

    @property
    def title(self) -> str:
        """Row and seeds."""
        return ", ".join([self.row, *(shown_setting(key, value) for key, value in self.seeds.items())])

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        return re.sub(r"[^\w.+-]+", "-", self.title).strip("-").lower()


@dataclass
class Outcome:
    """What has become of a cell.

    Attributes:
        cell: The cell.
        folder: Its run directory.
        state: done, failed or missing.
        error: The message of a failed cell.
    """

    cell: Cell
    folder: Path
    state: str = "missing"
    error: str = ""


def shown_setting(field_name: str, value: Any) -> str:
    """A grid value in words: an objective or a method by its name, everything else with its field."""
    last = field_name.rpartition(".")[2]
    if isinstance(value, dict):
        name = value.get("name")
        rest = [f"{key} {item}" for key, item in value.items() if key != "name"]
        shown = " ".join([str(name)] * bool(name) + rest)
    elif isinstance(value, list):
        shown = "-".join(str(item) for item in value)
    else:
        shown = "none" if value is None else str(value)
    return shown if last in SELF_EXPLAINING else f"{last} {shown}"


# ------------------------------------------------------------------------------------------------- reading a sweep


def shipped_sweeps() -> dict[str, Path]:
    """Name and file of every shipped sweep."""
    folder = Path(str(resources.files("srd") / "sweeps"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_sweep(name: str) -> Path:
    """The file of a sweep given by path or by a shipped name."""
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_sweeps()
    if name in shipped:
        return shipped[name]
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise UserError(f"no sweep file '{name}'. Give an existing YAML file or a shipped name: {', '.join(shipped)}")
    raise UserError(f"unknown sweep '{name}'; {nearest(name, shipped)}")


def load_sweep(path: Path) -> SweepConfig:
    """Read and check a sweep file.

    Raises:
        UserError: with all mistakes of the file.
    """
    content = {"name": path.stem, **_read(path)}
    try:
        config = SweepConfig.model_validate(content, strict=True)
    except ValidationError as error:
        lines = "\n".join(f"  {_sweep_mistake(item)}" for item in error.errors())
        raise UserError(f"{path} has {error.error_count()} mistake(s):\n{lines}") from error
    if empty := [key for key, values in config.grid.items() if not values]:
        raise UserError(f"{path}: grid.{empty[0]} has no values. List at least one, or remove it.")
    return config


def _read(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a sweep file with everything it extends, as plain data."""
    path = path.resolve()
    if path in chain:
        loop = " -> ".join(step.name for step in (*chain[chain.index(path) :], path))
        raise UserError(f"{path}: the sweep extends itself ({loop}). Remove one `extends:`.")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a sweep is a mapping of settings, but this is a {type(content).__name__}")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    beside = path.parent / str(parent)
    base = _read(beside if beside.is_file() else find_sweep(str(parent)), (*chain, path))
    return merge({key: value for key, value in base.items() if key != "name"}, content)


def _sweep_mistake(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return f"{item['loc'][-1]}: unknown key; {nearest(str(item['loc'][-1]), SweepConfig.model_fields)}"
    if item["type"] == "missing":
        key = str(item["loc"][-1])
        return f"{key}: missing. {SweepConfig.model_fields[key].description}"
    return describe_mistake(item)


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested data: ``{"training.epochs": 2}`` into ``{"training": {"epochs": 2}}``."""
    result: dict[str, Any] = {}
    for key, value in changes.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        result = merge(result, value)
    return result


def lay_out(config: SweepConfig, path: Path, overrides: list[str] | None = None) -> list[Cell]:
    """Spell out every cell of a sweep and check its recipe, so that nothing starts that cannot end.

    Args:
        config: The sweep.
        path: Its file, beside which its recipe may lie.
        overrides: ``key.path=value`` for all cells, on top of the sweep's own.

    Raises:
        UserError: a field that does not exist, a recipe that is not valid, two cells of one name or folder.
    """
    base = merge(read_recipe(find_recipe(config.recipe, beside=path)), nested(config.overrides))
    base = {**merge(base, parse_overrides(overrides or [])), "baselines": {}}
    named = tuple(key for key, axis in config.grid.items() if isinstance(axis, dict))
    cells: list[Cell] = []
    for values in itertools.product(*config.grid.values()):
        settings = dict(zip(config.grid, values, strict=True))
        point = {key: value for key, value in settings.items() if key not in SEED_FIELDS}
        seeds = {key: value for key, value in settings.items() if key in SEED_FIELDS}
        here = {}
        for label, changes in (config.cells or {"": {}}).items():
            content = merge(merge(base, _settings(config, settings)), nested(_without_measures(changes)))
            here[label] = cell = Cell(label, point, seeds, content, _equal_time(config, path, label), named)
            content["name"] = f"{config.name}.{cell.folder}"[:LONGEST_NAME].rstrip(". -")
            validate_recipe(content, f"{path}, cell '{cell.title}'")
        _match_passes(config, here, path)
        cells += here.values()
    _check_distinct(cells, path)
    reference_rows(config, cells, path)
    return sorted(cells, key=lambda cell: cell.equal_time is not None)  # they wait for what they are measured by


def _without_measures(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if key not in (EQUAL_TIME, EQUAL_PASSES)}


def _settings(config: SweepConfig, point: Mapping[str, Any]) -> dict[str, Any]:
    """A grid point as changes to the recipe; a value of a named axis stands for several changes."""
    changes: dict[str, Any] = {}
    for key, value in point.items():
        axis = config.grid[key]
        changes = merge(changes, nested(axis[value]) if isinstance(axis, dict) else nested({key: value}))
    return changes


def _match_passes(config: SweepConfig, cells: Mapping[str, Cell], path: Path) -> None:
    """Set the epochs of cells that are to make as many passes over all the data as another one."""
    for label, cell in cells.items():
        other = config.cells.get(label, {}).get(EQUAL_PASSES)
        if other is None:
            continue
        if other not in cells or EQUAL_PASSES in config.cells[other] or EQUAL_TIME in config.cells[other]:
            known = [name for name in cells if not {EQUAL_PASSES, EQUAL_TIME} & set(config.cells[name])]
            place = f"{path}, cells.{label}.{EQUAL_PASSES}"
            raise UserError(f"{place}: there is no cell '{other}' to match; {nearest(str(other), known)}")
        own, wanted = (validate_recipe(c.content, str(path)).training for c in (cell, cells[other]))
        epochs = round(wanted.epochs * _passes_an_epoch(wanted) / _passes_an_epoch(own), 4)
        cell.content["training"] = {**cell.content["training"], "epochs": epochs}


def _passes_an_epoch(training: TrainingConfig) -> float:
    """Passes over all the data when every stage makes one over its own: 1.5 for three stages of at most 75 %."""
    curriculum = training.curriculum
    return curriculum.select * (curriculum.stages + 1) / 2 if curriculum else 1.0


def _equal_time(config: SweepConfig, path: Path, label: str) -> tuple[str, str] | None:
    """Read ``equal_time: {to: srd, pace: kd}`` of a cell."""
    value = config.cells.get(label, {}).get(EQUAL_TIME)
    if value is None:
        return None
    place = f"{path}, cells.{label}.{EQUAL_TIME}"
    if not isinstance(value, dict) or set(value) != {"to", "pace"}:
        raise UserError(
            f"{place}: write {{to: CELL, pace: CELL}}: the cell whose time to match, and one that trains at the pace "
            f"of this one. It is {value!r}"
        )
    for name in value.values():
        if name not in config.cells or EQUAL_TIME in config.cells[name]:
            others = [other for other in config.cells if EQUAL_TIME not in config.cells[other]]
            raise UserError(f"{place}: there is no cell '{name}' to measure; {nearest(str(name), others)}")
    return str(value["to"]), str(value["pace"])


def _check_distinct(cells: list[Cell], path: Path) -> None:
    taken: dict[str, Cell] = {}
    for cell in cells:
        if cell.folder in taken:
            raise UserError(
                f"{path}: the cells '{taken[cell.folder].title}' and '{cell.title}' would write the same folder "
                f"'{cell.folder}'. Give them different names, or list a grid value only once."
            )
        taken[cell.folder] = cell


def reference_rows(config: SweepConfig, cells: list[Cell], path: Path) -> dict[str, str]:
    """Row -> the row that it is compared with: the reference at the same grid point, or one row for all.

    Raises:
        UserError: the reference is no label and no row of the sweep.
    """
    rows = list(dict.fromkeys(cell.row for cell in cells))
    reference = config.reference or (next(iter(config.cells)) if config.cells else rows[0])
    if reference in config.cells:
        at = {cell.point_name: cell.row for cell in cells if cell.label == reference}
        return {cell.row: at[cell.point_name] for cell in cells}
    if reference in rows:
        return dict.fromkeys(rows, reference)
    known = nearest(reference, [*config.cells, *rows])
    raise UserError(f"{path}: reference '{reference}' is no cell of the sweep; {known}")


# --------------------------------------------------------------------------------------------------- running a sweep


class Sweep:
    """A sweep and the folder it works in.

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
            name = read_yaml(note).get("name")
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
                content = self.config.model_dump(mode="json")
                partial.write_text(dump_yaml(content), encoding="utf-8")
        parallel.barrier()

    def outcomes(self) -> list[Outcome]:
        """What has become of every cell, in the order of the sweep's file."""
        return [self.outcome(cell) for cell in sorted(self.cells, key=self._place)]

    def _place(self, cell: Cell) -> tuple[int, int]:
        """Cells that wait for others run last, but stand where the file has them."""
        points = list(dict.fromkeys(other.point_name for other in self.cells))
        labels = list(self.config.cells) or [""]
        return points.index(cell.point_name), labels.index(cell.label)

    def outcome(self, cell: Cell) -> Outcome:
        """What has become of one cell."""
        folder = self.folder / "cells" / cell.folder
        noted = read_json(folder / RESULT, {})
        return Outcome(cell, folder, noted.get("state", "missing"), noted.get("error", ""))

    def run(self) -> list[Outcome]:
        """Run the cells that are not done, go on past those that fail, and write the tables after each."""
        from srd.report.sweep import write_sweep_report

        for number, cell in enumerate(self.cells, start=1):
            console.rule(f"{number} of {len(self.cells)}: {cell.title}", align="left", style="dim")
            if self._run_cell(cell) and parallel.is_main():
                write_sweep_report(self.folder, self.config, self.outcomes(), self.references)
            gc.collect()  # a model that only a cycle holds would still be in memory when the next one is loaded
        if parallel.is_main():
            write_sweep_report(self.folder, self.config, self.outcomes(), self.references)
        return self.outcomes()

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
            self._note(folder, {"state": "done", "identity": identity})
            if not self.config.keep_students and parallel.is_main():
                _drop_weights(run)
        except Exception as error:  # one cell's failure must not cost the others; it is shown, kept and counted
            expected = isinstance(error, UserError | RunError)
            message = str(error) if expected else f"{type(error).__name__}: {error}"
            failed = {"state": "failed", "error": message}
            if not parallel.can_go_on(error):
                if not parallel.is_lost(error):  # then it is the other process that knows why
                    write_json(folder / RESULT, failed)
                raise
            shown = escape(message if expected else traceback.format_exc())
            console.print(f"[bold red]failed:[/] {shown}", soft_wrap=True)
            self._note(folder, failed)
        return True

    def _note(self, folder: Path, result: dict[str, Any]) -> None:
        """Keep how a cell ended, beside its run directory's files."""
        if parallel.is_main():
            if result:
                write_json(folder / RESULT, result)
            else:
                remove(folder / RESULT)
        parallel.barrier()

    def _recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell; where it is to take as long as another, with the epochs that fill that time."""
        shared = {"cache": {"dir": str(self.folder / "shared" / "cache")}}
        content = merge(shared, cell.content)
        if cell.equal_time is not None:
            epochs = self._epochs_for_equal_time(cell, *cell.equal_time)
            content = merge(content, {"training": {"epochs": epochs}})
        return validate_recipe(content, f"cell '{cell.title}'")

    def _epochs_for_equal_time(self, cell: Cell, to: str, pace: str) -> float:
        """Passes that take as long as another cell's training with its reflection, at the pace of a third."""
        from srd.report.rows import cost_of

        here = (cell.point, cell.seeds)
        by_label = {other.label: other for other in self.cells if (other.point, other.seeds) == here}
        costs = {}
        for label in (to, pace):
            outcome = self.outcome(by_label[label])
            if outcome.state != "done":
                raise RunError(f"cell '{outcome.cell.title}' is not done, so its time cannot be matched")
            costs[label] = cost_of(outcome)
        # One student trains in every cell, so its time is proportional to the passes it makes over all the data.
        epochs = costs[to].seconds / (costs[pace].training_seconds / costs[pace].passes)
        known = self.folder / "cells" / f"{cell.folder}.epochs.json"
        basis = [self.outcome(by_label[label]).folder.name for label in (to, pace)]
        identity = fingerprint(basis, [read_json(self.folder / "cells" / name / RESULT) for name in basis])
        noted = read_json(known, {})
        if noted.get("identity") != identity and parallel.is_main():
            write_json(known, {"identity": identity, "epochs": round(max(epochs, 0.01), 2)})
        parallel.barrier()
        return float(read_json(known)["epochs"])


def _is_done(folder: Path, identity: str) -> bool:
    """Whether a cell has been run from this recipe and these files, and its answers are as they were."""
    noted = read_json(folder / RESULT, {})
    if noted.get("state") != "done" or noted.get("identity") != identity:
        return False
    evaluation = folder / "evaluation"
    changed = [name for name in listed(evaluation) if read_scores(evaluation / PREDICTIONS / name) is None]
    if changed:
        console.print(f"{escape(changed[0])} was changed or is missing: the cell is run again")
    return not changed


def _drop_weights(run: Run) -> None:
    """Delete the weights of a cell that has been evaluated: a student takes 4 bytes a parameter, and there are many."""
    for path in [run.folder / "student", run.folder / "start", run.folder / "teacher"]:
        remove(path)
    for stage in (run.folder / "stages").glob("*/model"):
        remove(stage)
