"""The files of a run directory, read for the report. All but ``recipe.yaml`` may be missing."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import yaml  # type: ignore[import-untyped]
from pyarrow import compute

from srd.base.errors import UserError

Row = dict[str, Any]

#: Columns of ``curriculum/ranked.parquet`` that the report shows.
RANKED = pyarrow.schema([
    ("id", pyarrow.string()), ("rouge_l", pyarrow.float64()), ("ce", pyarrow.float64()), ("rrf", pyarrow.float64()),
    ("rank", pyarrow.int64()), ("kept", pyarrow.bool_()), ("stage", pyarrow.int32()),
])  # fmt: skip

#: Arms that prepare the models; they are not compared with the distilled students.
PREPARATION_ARMS = ("teacher_sft", "warm_start")


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds, an empty container standing for what is missing.

    Args:
        run_dir: The run directory.
        recipe_text: ``recipe.yaml`` as it is.
        recipe: The same, parsed.
        manifest: ``manifest.json``: steps with seconds and summaries, warnings, versions, machine.
        ranked: ``curriculum/ranked.parquet`` in Arrow, since there may be millions, easiest first.
        metrics: Lines of ``metrics.jsonl``, in the order they were logged.
        evaluation: ``evaluation/metrics.json``: model -> task -> metric -> mean, std, seeds, in percent.
        comparisons: ``evaluation/comparisons.json``: paired differences and their intervals, in points.
    """

    run_dir: Path
    recipe_text: str
    recipe: Row
    manifest: Row
    ranked: pyarrow.Table
    metrics: list[Row]
    evaluation: dict[str, dict[str, dict[str, Row]]]
    comparisons: list[Row]

    @property
    def steps(self) -> dict[str, Row]:
        """Steps of the run in the order they finished, each with ``seconds`` and ``summary``."""
        return dict(self.manifest.get("steps") or {})

    def summary(self, step: str) -> Row:
        """Return the free-form numbers of a step, empty where it has not run."""
        return dict(self.steps.get(step, {}).get("summary") or {})

    def seconds(self, step: str) -> float | None:
        """Return how long a step took: its own measurement where it made one, else the manifest's."""
        value = self.summary(step).get("seconds", self.steps.get(step, {}).get("seconds"))
        return float(value) if value is not None else None

    @property
    def arms(self) -> dict[str, Row]:
        """The trainings that the recipe compares and their settings, by name, the main one last."""
        main = self.recipe.get("training") or {"curriculum": {}}
        method = main.get("method") or "kd"
        name = method.get("name") if isinstance(method, dict) else method
        return {
            **(self.recipe.get("baselines") or {}),
            "srd" if main.get("curriculum") is not None else str(name): main,
        }

    @property
    def main_arm(self) -> str:
        """Name of the main training, which the curriculum and the final student belong to."""
        return list(self.arms)[-1]

    @property
    def training_file(self) -> Path:
        """The training examples."""
        return self.run_dir / "examples" / "train.parquet"

    @property
    def training_examples(self) -> int:
        """How many there are."""
        return pyarrow.parquet.read_metadata(self.training_file).num_rows if self.training_file.is_file() else 0

    def corruption(self) -> dict[str, str]:
        """How training examples were corrupted on purpose, by id; the others are not in it."""
        table = read_parquet_table(self.training_file, columns=["id", "corruption"])
        if not len(table):
            return {}
        rows = table.filter(compute.fill_null(compute.not_equal(table["corruption"], ""), False)).to_pylist()
        return {str(row["id"]): row["corruption"] for row in rows}

    def command(self, name: str) -> str:
        """Return the shell command that makes a missing part of this run."""
        recipe = shlex.quote(str(self.run_dir / "recipe.yaml"))
        return f"srd {name} {recipe} --run-dir {shlex.quote(str(self.run_dir))}"


def read_run(run_dir: Path) -> RunFiles:
    """Read a run directory.

    Raises:
        UserError: ``run_dir`` has no ``recipe.yaml``, or a file in it cannot be read as what its name says.
    """
    recipe_path = run_dir / "recipe.yaml"
    if not recipe_path.is_file():
        raise UserError(
            f"{run_dir} is not a run directory: it has no recipe.yaml. "
            f"Make one with: srd run RECIPE --run-dir {shlex.quote(str(run_dir))}"
        )
    recipe_text = recipe_path.read_text(encoding="utf-8")
    ranked = read_parquet_table(run_dir / "curriculum" / "ranked.parquet", columns=RANKED.names)
    return RunFiles(
        run_dir=run_dir,
        recipe_text=recipe_text,
        recipe=parse_recipe(recipe_path, recipe_text),
        manifest=read_json_file(run_dir / "manifest.json", {}),
        ranked=ranked.sort_by("rank") if len(ranked) else RANKED.empty_table(),
        metrics=read_json_lines(run_dir / "metrics.jsonl"),
        evaluation=read_json_file(run_dir / "evaluation" / "metrics.json", {}),
        comparisons=read_json_file(run_dir / "evaluation" / "comparisons.json", []),
    )


def parse_recipe(path: Path, text: str) -> Row:
    """Parse the recipe; the report shows a few names from it and prints the rest as it is."""
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"{path} is not YAML: {' '.join(str(error).split())}. Run the recipe again to rewrite it"
        ) from error
    return recipe if isinstance(recipe, dict) else {}


def read_json_file(path: Path, default: Any) -> Any:
    """Read a JSON file, ``default`` where there is none."""
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}). Delete the file and run its step again"
        ) from error


def read_json_lines(path: Path) -> list[Row]:
    """Read a JSONL file, empty where there is none; a killed run's unfinished last line is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}: not JSON ({error.msg}). Remove the line, or run its step again"
            ) from error
    return rows


def read_parquet(path: Path, ids: Iterable[str] | None = None, columns: list[str] | None = None) -> list[Row]:
    """Read rows as `read_parquet_table` does."""
    return list(read_parquet_table(path, ids, columns).to_pylist())


def read_parquet_table(path: Path, ids: Iterable[str] | None = None, columns: list[str] | None = None) -> pyarrow.Table:
    """Read a parquet file, empty and without columns where there is none.

    Args:
        path: The file.
        ids: Read only the rows with these values of the column ``id``.
        columns: Read only these columns.
    """
    wanted = None if ids is None else set(ids)
    if not path.is_file() or wanted == set():
        return pyarrow.table({})
    filters = None if wanted is None else [("id", "in", wanted)]
    try:
        return pyarrow.parquet.read_table(path, columns=columns, filters=filters)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} cannot be read: {error}. Delete the file and run its step again") from error


def finite(row: Row, key: str) -> float:
    """Return a number of a row, NaN where it is missing or not a number."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
