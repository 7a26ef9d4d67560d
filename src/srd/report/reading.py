"""The files of a run directory, read for the report. All but the recipe may be missing."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import yaml  # type: ignore[import-untyped]
from pyarrow import compute

from srd.base.errors import UserError
from srd.curation.inspect import ranked_rows
from srd.curation.scores.base import asks_student
from srd.data.settings import changes_rows
from srd.report.words import model_name
from srd.run.folder import RunFolder
from srd.run.manifest import standing

Row = dict[str, Any]

#: Columns of the ranking that the report shows.
RANKED = pyarrow.schema([
    ("id", pyarrow.string()), ("rouge_l", pyarrow.float64()), ("ce", pyarrow.float64()), ("rrf", pyarrow.float64()),
    ("rank", pyarrow.int64()), ("kept", pyarrow.bool_()), ("stage", pyarrow.int32()),
])  # fmt: skip

#: Trainings that prepare the models; they are not compared with the distilled students.
PREPARATIONS = ("teacher_sft", "warm_start")
QUICK: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # what libyaml reads, where it is there
REMEDY = "Delete the file and run its step again"


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds, an empty container standing for what is missing.

    Args:
        run_dir: The run directory.
        recipe_text: The recipe as it is.
        recipe: The same, parsed.
        manifest: Steps with seconds and summaries, warnings, versions, machine.
        ranked: The ranking in Arrow, since there may be millions of rows, easiest first.
        metrics: What trainings logged, in the order of logging.
        evaluation: Model -> task -> metric -> mean, std, seeds, in percent.
        comparisons: Paired differences and their intervals, in points.
        details: How the scores of each task came about.
        former: Steps that have left files here which do not tell of the run as it is, and are not read.
    """

    run_dir: Path
    recipe_text: str
    recipe: Row
    manifest: Row
    ranked: pyarrow.Table
    metrics: list[Row]
    evaluation: dict[str, dict[str, dict[str, Row]]]
    comparisons: list[Row]
    details: Row = field(default_factory=dict)
    former: frozenset[str] = frozenset()

    @property
    def files(self) -> RunFolder:
        """The names in the run directory."""
        return RunFolder(self.run_dir, self.main_variant)

    @property
    def steps(self) -> dict[str, Row]:
        """Steps of the run in the order they finished, each with ``seconds`` and ``summary``."""
        return dict(self.manifest.get("steps") or {})

    @property
    def uncleaned_steps(self) -> dict[str, Row]:
        """The steps before a training that were made a second time, for baselines on the rows as they came."""
        steps = read_file(RunFolder(self.files.uncleaned, "").manifest, parse_json, {}).get("steps") or {}
        return {name: step for name, step in steps.items() if not name.startswith("train/")}

    @property
    def cleaning(self) -> str:
        """What becomes of rows that are wrong."""
        return str(self._cleaning.get("action", "off"))

    @property
    def detectors(self) -> list[str]:
        """Those that look for them."""
        return list(self._cleaning.get("find", ()))

    @property
    def _cleaning(self) -> Row:
        return (self.recipe.get("data") or {}).get("cleaning") or {}

    def takes_uncleaned(self, variant: str) -> bool:
        """Whether a training has the rows as they came, where others have cleaned ones."""
        return self.variants.get(variant, {}).get("cleaning") is False and changes_rows(self.cleaning)

    def name_of(self, variant: str) -> str:
        """What a reader sees of a model or training everywhere."""
        return model_name(variant, self.takes_uncleaned(variant))

    def summary(self, step: str) -> Row:
        """Return the free-form numbers of a step, empty where it has not run."""
        return dict(self.steps.get(step, {}).get("summary") or {})

    def seconds(self, step: str) -> float | None:
        """Return how long a step took: its own measurement where it made one, else the manifest's."""
        value = self.summary(step).get("seconds", self.steps.get(step, {}).get("seconds"))
        return float(value) if value is not None else None

    @property
    def variants(self) -> dict[str, Row]:
        """The trainings that the recipe compares and their settings, by name, the main one last."""
        main = self.recipe.get("training") or {"curriculum": {}}
        chosen = main.get("method") or "kd"
        name = chosen.get("name") if isinstance(chosen, dict) else chosen
        return {
            **(self.recipe.get("baselines") or {}),
            "srd" if main.get("curriculum") is not None else str(name): main,
        }

    @property
    def main_variant(self) -> str:
        """Name of the main training, which the curriculum and the final student belong to."""
        return list(self.variants)[-1]

    def reflection_seconds(self, variant: str) -> float | None:
        """Return what reflection and ranking took, for a training that learns from them and where it was measured."""
        curriculum = self.variants.get(variant, {}).get("curriculum")
        if curriculum is None or curriculum.get("order") == "fresh":
            return None  # fresh: drawn from all the data, whatever the ranks
        if not asks_student(curriculum.get("score") or "fused"):
            return None
        known = [
            seconds for step in ("reflection", "measures", "ranking") if (seconds := self.seconds(step)) is not None
        ]
        return math.fsum(known) if known else None

    @property
    def chosen_otherwise(self) -> str:
        """Why what the main training learnt from is not what the ranking kept, as a sentence; empty where it is."""
        curriculum = self.variants[self.main_variant].get("curriculum") or {}
        if curriculum.get("order") == "fresh":
            return "Every pass drew its rows anew from all of them, whatever their rank (`order: fresh`)."
        if curriculum.get("reflect_again") and curriculum.get("stages", 1) > 1:
            return (
                "Before every stage but the first the student ranked the rows anew (`reflect_again`), in part by what "
                "it knew by heart of the stages before; the ranking on this page is the first."
            )
        return ""

    @property
    def way(self) -> str:
        """In which order the main training went through its stages."""
        order = (self.variants[self.main_variant].get("curriculum") or {}).get("order", "easy_to_hard")
        return order.replace("_", " ") if "_to_" in order else "one after the other, whatever their rank"

    @property
    def training_examples(self) -> int:
        """How many training examples there are."""
        path = self.files.examples("train")
        return pyarrow.parquet.read_metadata(path).num_rows if path.is_file() else 0

    @cached_property
    def train_samples(self) -> list[Row]:
        """Answers of the trained student to some of its training prompts."""
        return [] if "evaluation" in self.former else read_json_lines(self.files.train_samples)

    def corruption(self) -> dict[str, str]:
        """How training examples were corrupted on purpose, by id; the others are not in it."""
        table = read_parquet(self.files.examples("train"), columns=["id", "corruption"])
        if not len(table):
            return {}
        rows = table.filter(compute.fill_null(compute.not_equal(table["corruption"], ""), False)).to_pylist()
        return {str(row["id"]): row["corruption"] for row in rows}

    def command(self, name: str) -> str:
        """Return the shell command that makes a missing part of this run."""
        return f"srd {name} {shlex.quote(str(self.files.recipe))} --run-dir {shlex.quote(str(self.run_dir))}"


def read_run(run_dir: Path) -> RunFiles:
    """Read a run directory.

    Raises:
        UserError: ``run_dir`` has no recipe, or a file in it cannot be read as what its name says.
    """
    files, rewrite = RunFolder(run_dir, ""), "Run the recipe again to rewrite it"
    if not files.recipe.is_file():
        raise UserError(
            f"{run_dir} is not a run directory: it has no {files.recipe.name}. "
            f"Make one with: srd run RECIPE --run-dir {shlex.quote(str(run_dir))}"
        )
    recipe_text = str(read_file(files.recipe, _text, "", rewrite))
    recipe = read_file(files.recipe, lambda path: yaml.load(_text(path), QUICK), {}, rewrite)
    manifest = read_file(files.manifest, parse_json, {})
    steps = standing(manifest)
    former = frozenset(manifest.get("steps") or {}) - steps.keys()
    ranked = pyarrow.table({}) if "ranking" in former else read_parquet(files.ranked, columns=RANKED.names)

    def evaluated(path: Path, nothing: Any) -> Any:
        return nothing if "evaluation" in former else read_file(path, parse_json, nothing)

    return RunFiles(
        run_dir=run_dir,
        recipe_text=recipe_text,
        recipe=recipe if isinstance(recipe, dict) else {},
        manifest={**manifest, "steps": steps},
        ranked=ranked_rows(ranked).sort_by("rank") if len(ranked) else RANKED.empty_table(),
        metrics=[row for row in read_json_lines(files.metrics) if f"train/{row.get('arm')}" not in former],
        evaluation=evaluated(files.results, {}),
        comparisons=evaluated(files.comparisons, []),
        details=evaluated(files.details, {}),
        former=former,
    )


def read_file(path: Path, parse: Callable[[Path], Any], default: Any, remedy: str = REMEDY) -> Any:
    """Read a file, ``default`` where there is none.

    Raises:
        UserError: it is not what its name says.
    """
    if not path.is_file():
        return default
    try:
        return parse(path)
    except json.JSONDecodeError as error:
        reason = f", line {error.lineno}: not JSON ({error.msg})"
    except yaml.YAMLError as error:
        reason = f" is not YAML: {' '.join(str(error).split())}"
    except (UnicodeDecodeError, pyarrow.ArrowException) as error:
        reason = f" cannot be read: {error}"
    raise UserError(f"{path}{reason}. {remedy}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def parse_json(path: Path) -> Any:
    """Read a file as JSON."""
    return json.loads(_text(path))


def _json_lines(path: Path) -> list[Row]:
    text, rows, place = _text(path), [], 0
    for line in text.split("\n"):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            if place + len(line) < len(text):  # else a killed run's last one
                raise json.JSONDecodeError(error.msg, text, place) from error
        place += len(line) + 1
    return rows


def read_json_lines(path: Path) -> list[Row]:
    """Read a JSONL file, empty where there is none; a killed run's unfinished last line is left out."""
    return read_file(path, _json_lines, [], "Remove the line, or run its step again")


def read_parquet(path: Path, ids: Iterable[str] | None = None, columns: list[str] | None = None) -> pyarrow.Table:
    """Read a parquet file, empty and without columns where there is none.

    Args:
        path: The file.
        ids: Read only the rows with these values of the column ``id``.
        columns: Read only these columns.
    """
    wanted = None if ids is None else set(ids)
    filters = None if wanted is None else [("id", "in", wanted)]
    none = pyarrow.table({})
    if wanted == set():
        return none
    return read_file(path, lambda path: pyarrow.parquet.read_table(path, columns=columns, filters=filters), none)


def finite(row: Row, key: str) -> float:
    """Return a number of a row, NaN where it is missing or not a number."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
