"""What a sweep's file says.

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

Every run (a *cell*) trains one student in a run directory of its own. What cells have in common (examples, fine-tuned
teacher, starting student, reflection, teacher cache, the teacher's answers) is made once. Running a sweep again makes
what is missing.

``extends: NAME`` starts from another sweep. A grid axis may also be a mapping of names to changes, where its values
differ in more than one field: ``method: {gkd: {training.method: gkd}, sft: {training.method: sft}}``. In a cell,
``equal_passes: CELL`` sets the epochs so that it makes as many passes over all the data as another cell, and
``only_at: {FIELD: [VALUE, …]}`` leaves it out at all other points of the grid.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from srd.base.errors import UserError
from srd.base.settings import FolderName, Section
from srd.recipe.files import find_file, read_recipe
from srd.recipe.mistakes import describe_mistakes

EQUAL_PASSES, ONLY_AT = "equal_passes", "only_at"


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


def shipped_sweeps() -> dict[str, Path]:
    """Name and file of every shipped sweep."""
    folder = Path(str(resources.files("srd") / "sweeps"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_sweep(name: str, beside: Path | None = None) -> Path:
    """The file of a sweep given by path, by a path beside the sweep that names it, or by a shipped name."""
    return find_file(name, "sweep", shipped_sweeps(), beside)


def load_sweep(path: Path) -> SweepConfig:
    """Read and check a sweep file.

    Raises:
        UserError: with all mistakes of the file.
    """
    content = read_recipe(path, kind="sweep", find=find_sweep)
    try:
        config = SweepConfig.model_validate(content, strict=True)
    except ValidationError as error:
        raise UserError(f"{path} has {describe_mistakes(error, SweepConfig)}") from error
    if empty := [key for key, values in config.grid.items() if not values]:
        raise UserError(f"{path}: grid.{empty[0]} has no values. List at least one, or remove it.")
    return config
