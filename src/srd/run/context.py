"""A run directory: its recipe, what each step made from what, and what the steps have in common."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch

from srd.base import parallel
from srd.base.console import progress_bar
from srd.base.errors import UserError
from srd.base.failures import ERROR_FILE
from srd.base.files import fingerprint, link
from srd.base.locks import COPY, held
from srd.base.remedies import warn
from srd.base.tables import map_large, open_mapped, reopened
from srd.base.version import VERSION
from srd.base.yaml_text import read_yaml
from srd.curation.curriculum import Curriculum
from srd.curation.reflection import words_of
from srd.data.batching import EncodedExamples
from srd.data.messages import owners_of
from srd.metrics.scripts import BY_SCRIPT, COMPARE_WITHIN, EXTENDED, PUBLISHED, Words, words_note
from srd.models.generation import Decoding
from srd.models.settings import ModelConfig
from srd.recipe.reading import write_recipe
from srd.recipe.schema import Recipe
from srd.run.folder import SPLITS, UNCLEANED, RunFolder
from srd.run.identity import check_begun_here, named_paths
from srd.run.manifest import Manifest, SharedSteps, noted_in
from srd.run.models import RecipeModels
from srd.run.outline.forecast import Forecast
from srd.run.outline.order import planned
from srd.training.arguments import micro_batch_size
from srd.training.settings import TrainingConfig
from srd.training.validation import Validation

logger = logging.getLogger(__name__)

KEEP_SECONDS = 5.0  # the manifest is written no more often than this while a step works
BESIDE_A_TRAINING = ("description", "training", "baselines", "evaluation")  # sections: it has settings of its own


class Clock:
    """The time that a step takes, kept while it is made so that a killed run does not forget it.

    It belongs to the step that is being made: where none is, a look at it does nothing.

    Args:
        spend: Takes the seconds since the last look.
    """

    def __init__(self, spend: Callable[[float], None]) -> None:
        self.spend = spend
        self.last = time.monotonic()

    def look(self, at_least: float = 0.0) -> None:
        """Give the time since the last look away, if it is at least so many seconds."""
        if time.monotonic() - self.last >= at_least:
            self.spend(self.rest())

    def rest(self) -> float:
        """The time since the last look, which this is one of."""
        before, self.last = self.last, time.monotonic()
        return self.last - before


class Run(RecipeModels):
    """A recipe and the directory it runs in.

    Args:
        recipe: What to do.
        folder: Where; made if it is not there.
        shared: Folder of steps that several runs have in common, as in a sweep.

    Raises:
        UserError: the directory belongs to another recipe, another process works in it, or an input lies in it.
    """

    def __init__(self, recipe: Recipe, folder: Path, shared: Path | None = None) -> None:
        super().__init__(recipe)
        self.folder = folder
        self.option = "--dir" if shared else "--run-dir"  # what names another one
        self.files = RunFolder(folder, recipe.training.label)
        self._claim = contextlib.ExitStack()  # of the main process
        self.shared = SharedSteps(shared, folder) if shared else None
        self.keys: dict[str, str] = {}  # fingerprints of the steps that this command has been through
        self.kept: list[
            tuple[str, Sequence[str]]
        ] = []  # which of these are still to be noted, with what they come after
        self.clock: Clock | None = None  # of the step that is being made
        self.forecast: Forecast | None = None  # once the examples are known, where there is something to wait for
        self.step = ""  # the name of the one that is being made
        self.cleaned: Path | None = None  # the training rows, once they were cleaned
        self.suffix = ""  # behind the names of its steps, where it makes some of another run's
        self._encoded: dict[tuple[str, bool], datasets.Dataset] = {}
        parallel.on_main(self.claim)
        try:
            self._take_up()
        except BaseException:
            self.close()
            raise

    def _take_up(self) -> None:
        """See what is there already."""
        recipe, folder = self.recipe, self.folder
        _check_shared(folder)
        # By the main process, as there may be moves to finish.
        self.manifest = parallel.on_main(lambda: Manifest(folder, named_paths(recipe).values()))
        check_begun_here(recipe, self.manifest.content.get("begun in"))
        self.manifest.content["begun in"] = str(Path.cwd())
        self.day = self.manifest.day
        self.warnings: list[str] = self.manifest.content["warnings"]
        self.manifest.content["name"] = recipe.name
        self.manifest.content["versions"] = versions()
        self.manifest.content["machine"] = _machine()
        self._noted = False
        if parallel.is_main() and self.manifest.steps:
            self.note(over=False)
        parallel.barrier()

    @cached_property
    def identity(self) -> str:
        """What stands for the recipe's settings: not for where the work is done, nor for a cleaning that only looks."""
        return fingerprint(self._settings)

    @cached_property
    def trainings(self) -> dict[str, str]:
        """By step what stands for a training's settings: not for other trainings, nor for what compares them."""
        common = {name: value for name, value in self._settings.items() if name not in BESIDE_A_TRAINING}
        own = {label: each.model_dump(exclude={"log_to"}) for label, each in self.recipe.variants.items()}
        return {f"train/{label}": fingerprint(common, each) for label, each in own.items()}

    @property
    def _settings(self) -> dict[str, Any]:
        idle: dict[str, Any] = {} if self.recipe.data.cleaning.changes_rows else {"data": {"cleaning"}}
        return self.recipe.model_dump(exclude={"cluster": True, **idle})

    def note(self, over: bool = True) -> None:
        """Write the recipe beside what is made by it; over another one only when a step is done, so not if refused."""
        if not self._noted and (over or not self.files.recipe.is_file()):
            write_recipe(self.recipe, self.files.recipe)
            self.manifest.content["planned"] = [step.name for step in planned(self.recipe)]
            self.manifest.content.update(recipe=self.identity, trainings=self.trainings)
            self.manifest.save()
            self._noted = True

    def settle(self) -> None:
        """Note that what this command has kept is of its recipe: once that makes something, or has nothing to make.

        Not before: where it is refused, all that lies there still tells of the recipe that it is of.
        """
        for step, names in self.kept:
            self.manifest.came_after(step, names, self.trainings.get(step, self.identity))
            self.note()
        self.kept.clear()

    def claim(self) -> None:
        """Make the directory ours: of this recipe, and of one command at a time."""
        before = self.files.recipe
        if self.folder.is_file():
            raise UserError(f"{self.option} {self.folder} is a file. Name a folder.")
        noted = noted_in(self.folder)  # a run's own, though its recipe may be gone
        name = (_name_in(before) if before.is_file() else None) or noted.get("name")
        if name is not None and name != self.recipe.name:
            raise UserError(
                f"{self.folder} is the run directory of the recipe '{name}', not of '{self.recipe.name}'. "
                f"Choose another {self.option}, or delete it."
            )
        unknown = not before.is_file() and not noted and self.folder.is_dir()
        strange = [path.name for path in self.folder.iterdir() if path.name[0] != "."] if unknown else []
        if strange and strange != [ERROR_FILE]:  # a bug met before any step
            found = ", ".join(strange[:3])
            raise UserError(f"{self.folder} holds other files ({found} …). Choose an empty {self.option}.")
        check_inputs_outside(self.recipe, self.folder, self.option)
        for config in self.recipe.variants.values():
            micro_batch_size(config)  # refuses a number of processes that does not fit
        self._claim.enter_context(held(self.folder, self.option, COPY))

    def close(self) -> None:
        """Release the directory, so that another run can open it; it goes if it is new and no step has begun."""
        self._claim.close()
        if "uncleaned" in self.__dict__:
            self.uncleaned.close()

    def called(self, step: str) -> str:
        """What a step is called on the screen and in a forecast."""
        return f"{step}{self.suffix}"

    @cached_property
    def uncleaned(self) -> Run:
        """The run of the baselines that take the rows as they came, in a folder of its own: the same, not cleaned."""
        other = Run(self.recipe.without_cleaning, self.files.uncleaned, self.shared.folder if self.shared else None)
        other.suffix, other.forecast = UNCLEANED, self.forecast
        other.keys["examples"] = self.keys["examples"]
        if parallel.is_main():
            for name in SPLITS:
                link(self.files.examples(name), other.files.examples(name))
            map_large([other.files.examples(name) for name in SPLITS], other.files.mapped)
        parallel.barrier()
        return other

    def tick(self) -> None:
        """Keep the time spent by the step that is being made, now and then."""
        if self.clock is not None:
            self.clock.look(KEEP_SECONDS)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[..., None]]:
        """A progress bar that also keeps the time, and knows what comes after it."""

        def after(share: float, seconds: float) -> float | None:
            return self.forecast.after(self.step, share, seconds) if self.forecast else None

        with progress_bar(title, after) as update:

            def both(done: float, total: float, note: str = "") -> None:
                update(done, total, note)
                self.tick()

            yield both

    # ------------------------------------------------------------------------------------------------------- files

    def split(self, name: str, *, cleaned: bool = True) -> datasets.Dataset:
        """The examples of a split; of the training rows those that were cleaned, once they are."""
        path = self.cleaned if name == "train" and cleaned and self.cleaned else self.files.examples(name)
        return open_mapped(path, self.files.mapped)

    def soft_rows(self) -> set[str]:
        """Training rows that keep their text and lose their cross-entropy: in doubt, and not dropped."""
        if self.cleaned is None or self.recipe.data.cleaning.action != "soften":
            return set()
        marks = pq.read_table(self.files.marked, columns=["id", "wrong"])
        return set(marks.filter(marks["wrong"])["id"].to_pylist()) & set(self.split("train")["id"])

    @property
    def owners(self) -> list[int]:
        """Of each training row, the number of its teacher, where each row has one."""
        return owners_of(self.split("train").select_columns(["extra"]), [each.title for each in self.recipe.teachers])

    def forget_tokens(self) -> None:
        """Read the training rows anew where they are next asked for."""
        for for_teacher in (False, True):
            self._encoded.pop(("train", for_teacher), None)

    @cached_property
    def words(self) -> Words:
        """How ROUGE-L reads the texts of this run, in every step and for every model: as any of its splits asks for."""
        found = {words_of(self.split(name)) for name in SPLITS}
        if EXTENDED not in found:
            return PUBLISHED
        warn(logger, BY_SCRIPT, COMPARE_WITHIN)
        return EXTENDED

    def reading(self, config: TrainingConfig | None = None) -> list[str]:
        """What stands for `words` in the fingerprint of a step, or of a training that is chosen by ROUGE-L."""
        matters = config is None or config.select_by == "rouge_l"
        return [*words_note(self.words).values()] if matters else []

    # ------------------------------------------------------------------------------------------------------- seeds

    def seed_of(self, config: TrainingConfig) -> int:
        """The seed of a training: its own, or the recipe's."""
        return self.recipe.seed if config.seed is None else config.seed

    def curriculum_of(self, config: TrainingConfig) -> Curriculum | None:
        """A training's curriculum; what is random in it follows the seed of the training."""
        if config.curriculum is None:
            return None
        seed = config.curriculum.seed + self.seed_of(config)
        return Curriculum(**{**config.curriculum.model_dump(), "seed": seed})

    # ------------------------------------------------------------------------------------------------------ models

    @property
    def teacher_source(self) -> str:
        """The teacher as training uses it; a served one by its name and address, which nothing is loaded from."""
        if self.recipe.teacher.endpoint is not None:
            return f"{self.recipe.teacher.model} at {self.recipe.teacher.endpoint}"
        return str(self.files.teacher) if self.recipe.teacher.sft else self.recipe.teacher.model

    def teacher_options_of(self, number: int) -> tuple[str, dict[str, Any]]:
        """One of several teachers, by its number: where it is, and how it is loaded; 0 is the first or the only one."""
        if number == 0:
            return self.teacher_source, self.teacher_options()
        teacher = self.recipe.teachers[number]
        return teacher.model, load_options(teacher)

    @property
    def start_source(self) -> str:
        """The student as the compared trainings start from it."""
        student = self.recipe.student
        if student.drop_layers or student.warm_start:
            return str(self.files.start)
        assert student.model is not None
        return student.model

    def teacher_options(self) -> dict[str, Any]:
        """How the teacher is loaded."""
        return load_options(self.recipe.teacher, loose=not self.recipe.teacher.sft)

    def start_options(self) -> dict[str, Any]:
        """How the starting student is loaded."""
        student = self.recipe.student
        return load_options(student, loose=not (student.drop_layers or student.warm_start)) | made_options(self.recipe)

    # ----------------------------------------------------------------------------------------------------- encoding

    def encoded(self, split: str, written: datasets.Dataset | None = None) -> EncodedExamples:
        """A split as torch examples; with ``written``, what a model wrote in place of the references."""
        if written is not None:
            with self.progress("tokens") as update:
                return EncodedExamples(self.encoder.encode(self.split(split), written, update))
        return EncodedExamples(self.token_ids(split))

    def encoded_for_teacher(self, split: str) -> EncodedExamples:
        """A split as the teacher reads it where it writes text."""
        if self.teacher_encoder is self.encoder:
            return self.encoded(split)
        return EncodedExamples(self.token_ids(split, for_teacher=True))

    def read_by_teacher(self, split: str) -> EncodedExamples:
        """A split as the teacher reads it where it says what follows: as the student does, unless they are `apart`."""
        return self.encoded_for_teacher(split) if self.apart else self.encoded(split)

    def token_ids(self, split: str, *, for_teacher: bool = False) -> datasets.Dataset:
        """The rows of `Encoder.encode` for a split, tokenised once a command, mapped anew by each that asks."""
        key = (split, for_teacher)
        if key not in self._encoded:
            encoder = self.teacher_encoder if for_teacher else self.encoder
            with self.progress("tokens") as update:
                rows, called = self.split(split), "" if split == "train" else split
                if for_teacher and self.apart and "tokens" in rows.column_names:
                    rows = rows.remove_columns("tokens")  # they are the student's
                self._encoded[key] = encoder.encode(rows, progress=update, split=called)
        return reopened(self._encoded[key])

    def validation(self, config: TrainingConfig, *, of_teacher: bool = False) -> Validation:
        """What checkpoints of a training are chosen by."""
        generation = self.recipe.generation
        return Validation(
            self.read_by_teacher("validation") if of_teacher else self.encoded("validation"),
            list(self.split("validation")["references"]),
            Decoding(generation.max_new_tokens),
            generation.batch_size,
            generate=config.select_by == "rouge_l",
            words=self.words,
        )


def load_options(model: ModelConfig, loose: bool = True) -> dict[str, Any]:
    """How a model of the recipe is loaded; one that lies in the run directory has its adapter merged already."""
    keys = ("dtype", "attn_implementation", "trust_remote_code", *(("revision", "adapter") if loose else ()))
    bits = getattr(model, "bits", None) if loose else None
    return {"dtype": model.dtype, **{key: getattr(model, key) for key in keys}, **({"bits": bits} if bits else {})}


def made_options(recipe: Recipe) -> dict[str, Any]:
    """How a student is loaded that a run has made: code that came with its origin is kept beside it."""
    return {"trust_remote_code": recipe.models_here[-1].trust_remote_code}


def _name_in(path: Path) -> str | None:
    """The name in a run directory's recipe; None where it cannot be read, as it is written anew."""
    try:
        content = read_yaml(path)
    except UserError:
        content = None
    if isinstance(content, dict) and isinstance(content.get("name"), str):
        return str(content["name"])
    logger.warning("%s is damaged and is written again", path)
    return None


def check_inputs_outside(recipe: Recipe, folder: Path, option: str) -> None:
    """Refuse inputs that lie in the run directory, whose files are this run's to replace, and the other way round."""
    root = folder.resolve()
    for field, path in named_paths(recipe).items():
        place = path.resolve()
        if place == root or place.is_relative_to(root):
            raise UserError(
                f"{field}: '{path}' lies in the run directory {folder}, whose files this run writes. Copy it to "
                f"another place and name that, or choose another {option}."
            )
        if path.is_dir() and root.is_relative_to(place):
            raise UserError(
                f"{field}: the run directory {folder} lies in the folder '{path}', which is read. "
                f"Choose a {option} outside of it."
            )


def _check_shared(folder: Path) -> None:
    """Refuse processes that do not see the main process's files."""

    def look() -> None:
        if not folder.is_dir():
            raise UserError(
                f"process {parallel.process()} does not see {folder.absolute()}, where process 0 writes. "
                "On several machines --run-dir must lie on a file system that all of them share."
            )

    parallel.together(look)


@cache
def versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    names = ("torch", "transformers", "accelerate", "peft", "datasets")
    own = {"python": platform.python_version(), "srd": VERSION}
    return {**own, **{name: version(name) for name in names}}


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "gpu": gpu, "processes": parallel.processes(),
    }  # fmt: skip
