"""The cells of a sweep: every combination of its settings, each a recipe of its own."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srd.base.errors import UserError, nearest
from srd.base.files import fingerprint
from srd.base.settings import LONGEST_NAME
from srd.base.text import visible
from srd.recipe.files import find_recipe, parse_overrides, read_recipe
from srd.recipe.merging import merge, nested
from srd.recipe.reading import idle_setting, refuse_idle_preset, validate_recipe
from srd.recipe.schema import Recipe
from srd.sweep.settings import EQUAL_PASSES, ONLY_AT, SweepConfig
from srd.training.settings import TrainingConfig

SEED_FIELDS = ("seed", "training.seed")  # values of these repeat a row of the table
LONGEST_FOLDER = 255  # bytes, on every file system in use
IDLE = ("name", "baselines")  # of a recipe: a cell is named by its settings, and it is cells that are compared
SELF_EXPLAINING = ("objective", "method", "order")  # fields whose values are known by their names


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        label: Its name among the ``cells``, empty where there is only a grid.
        point: Grid field -> value, without the seeds.
        seeds: Grid field -> value, the seeds only.
        content: The whole recipe as plain data.
        named: Axes of the grid whose values are names.
    """

    label: str
    point: dict[str, Any]
    seeds: dict[str, int]
    content: dict[str, Any] = field(repr=False)
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
        return visible(", ".join(part for part in (self.point_name, self.label) if part)) or "run"

    @property
    def title(self) -> str:
        """Row and seeds."""
        return ", ".join([self.row, *(shown_setting(key, value) for key, value in self.seeds.items())])

    @property
    def folder(self) -> str:
        """Name of its run directory; one that no file system takes is cut, and told from others by its hash."""
        name = re.sub(r"[^\w.+-]+", "-", self.title).strip("-").lower()
        if len(whole := name.encode()) <= LONGEST_FOLDER:
            return name
        return f"{whole[:LONGEST_NAME].decode(errors='ignore')}-{fingerprint(name)[:8]}"


@dataclass(frozen=True)
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


def lay_out(config: SweepConfig, path: Path, overrides: list[str] | None = None) -> list[Cell]:
    """Spell out every cell of a sweep and check its recipe, so that nothing starts that cannot end.

    Args:
        config: The sweep.
        path: Its file, beside which its recipe may lie.
        overrides: ``key.path=value`` for all cells, on top of the sweep's own.

    Raises:
        UserError: a field that does not exist or has no effect, a recipe that is not valid, two cells of one folder.
    """
    source = find_recipe(config.recipe, beside=path)
    base, common = read_recipe(source), {f"{path}: ": nested(config.overrides), "": parse_overrides(overrides or [])}
    for place, changes in common.items():
        base = _laid_over(base, changes, place, source)
    base["baselines"] = {}
    named = tuple(key for key, axis in config.grid.items() if isinstance(axis, dict))
    _check_only_at(config, path)
    cells: list[Cell] = []
    said: list[tuple[Recipe, dict[str, Any]]] = []  # recipes of cells, and by its place what each change to them says
    for values in itertools.product(*config.grid.values()):
        settings = dict(zip(config.grid, values, strict=True))
        at_point = _laid_over(base, _changes(config, settings), f"{path}, grid: ", source)
        point = {key: value for key, value in settings.items() if key not in SEED_FIELDS}
        seeds = {key: value for key, value in settings.items() if key in SEED_FIELDS}
        here = {}
        for label, changes in (config.cells or {"": {}}).items():
            if any(settings[key] not in values for key, values in changes.get(ONLY_AT, {}).items()):
                continue
            own = nested({key: value for key, value in changes.items() if key not in (EQUAL_PASSES, ONLY_AT)})
            content = _laid_over(at_point, own, f"{path}, cells.{label}: ", source)
            here[label] = cell = Cell(label, point, seeds, content, named)
            content["name"] = f"{config.name}.{cell.folder}"[:LONGEST_NAME].rstrip(". -")
            recipe = validate_recipe(content, f"{path}, cell '{cell.title}'")
            at = {f"{path}, grid.{key}: {value}: ": _changes(config, {key: value}) for key, value in settings.items()}
            said.append((recipe, {**common, **at, f"{path}, cells.{label}: ": own}))
        _match_passes(config, here, path)
        cells += here.values()
    _check_effects(said, path)
    _check_distinct(cells, path)
    reference_rows(config, cells, path)
    return cells


def _laid_over(content: dict[str, Any], changes: dict[str, Any], place: str, source: Path) -> dict[str, Any]:
    """A recipe with changes that have an effect on cells."""
    if idle := [name for name in IDLE if name in changes]:
        raise UserError(f"{place}{idle[0]} has no effect in a sweep, whose cells are what is compared. Leave it out.")
    try:
        refuse_idle_preset(content, changes, str(source))
    except UserError as error:
        raise UserError(f"{place}{error}") from error
    return merge(content, changes)


def _changes(config: SweepConfig, point: Mapping[str, Any]) -> dict[str, Any]:
    """A grid point as changes to the recipe; a value of a named axis stands for several changes."""
    changes: dict[str, Any] = {}
    for key, value in point.items():
        axis = config.grid[key]
        changes = merge(changes, nested(axis[value] if isinstance(axis, dict) else {key: value}))
    return changes


def _check_effects(said: list[tuple[Recipe, dict[str, Any]]], path: Path) -> None:
    """Refuse a change that has no effect in any cell that it is for: these would be the same as without it."""
    idle = defaultdict(list)
    for recipe, changes in said:
        idle[f"{path}, recipe: "].append(idle_setting(recipe, {}, whole=True))
        for place, each in changes.items():
            idle[place].append(idle_setting(recipe, each))
    for place, told in idle.items():
        if all(told):
            raise UserError(f"{place}{told[0]}")


def _check_only_at(config: SweepConfig, path: Path) -> None:
    """Refuse a cell that is to be at points that the grid has not."""
    for label, changes in config.cells.items():
        place, points = f"{path}, cells.{label}.{ONLY_AT}", changes.get(ONLY_AT, {})
        if not isinstance(points, dict):
            raise UserError(f"{place} is {points!r}. Write {{FIELD OF THE GRID: [VALUE, …]}}.")
        for key, values in points.items():
            if key not in config.grid:
                raise UserError(f"{place}: {key} is no field of the grid; {nearest(str(key), config.grid)}")
            known = list(config.grid[key])
            if not isinstance(values, list) or not values or any(value not in known for value in values):
                raise UserError(f"{place}.{key} is {values!r}. List some of the grid's values: {known}.")


def _match_passes(config: SweepConfig, cells: Mapping[str, Cell], path: Path) -> None:
    """Set the epochs of cells that are to make as many passes over all the data as another one."""
    for label, cell in cells.items():
        other = config.cells.get(label, {}).get(EQUAL_PASSES)
        if other is None:
            continue
        if other not in cells or EQUAL_PASSES in config.cells[other]:
            known = [name for name in cells if EQUAL_PASSES not in config.cells[name]]
            place = f"{path}, cells.{label}.{EQUAL_PASSES}"
            raise UserError(f"{place}: there is no cell '{other}' to match; {nearest(str(other), known)}")
        own, wanted = (validate_recipe(c.content, str(path)).training for c in (cell, cells[other]))
        epochs = round(wanted.epochs * _passes_an_epoch(wanted) / _passes_an_epoch(own), 4)
        cell.content["training"] = {**cell.content["training"], "epochs": epochs}


def _passes_an_epoch(training: TrainingConfig) -> float:
    """Passes over all the data when every stage makes one over its own: 1.5 for three stages of at most 75 %."""
    curriculum = training.curriculum
    return curriculum.select * (curriculum.stages + 1) / 2 if curriculum else 1.0


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
        if missing := [cell.point_name for cell in cells if cell.point_name not in at]:
            raise UserError(
                f"{path}: reference '{reference}' is not at {missing[0]}. Leave {ONLY_AT} out of that cell."
            )
        return {cell.row: at[cell.point_name] for cell in cells}
    if reference in rows:
        return dict.fromkeys(rows, reference)
    known = nearest(reference, [*config.cells, *rows])
    raise UserError(f"{path}: reference '{reference}' is no cell of the sweep; {known}")
