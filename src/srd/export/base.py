"""What a run made, for other tools: a registry of formats, and the one way in which a format is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from srd.base.errors import UserError
from srd.base.locks import held, told_if_held
from srd.base.owned import OwnedFiles
from srd.base.registry import Registry
from srd.models.loading.loading import load_config, load_model, load_tokenizer
from srd.recipe.reading import load_recipe
from srd.run.context import Run, made_options
from srd.run.manifest import check_as_written, student_of

WRITTEN = "srd-export-{}.json"  # what `srd export` has written into a folder in some format
KINDS = ("f32", "f16", "bf16", "q8_0")
OPTIONS = {"kind": "--type", "top_k": "--top-k"}  # settings as the command line calls them


@dataclass(frozen=True)
class Settings:
    """What the command line says of an export.

    Attributes:
        kind: How weights are stored in a GGUF file, of `KINDS`; None: as the format has it.
        top_k: Likeliest tokens that are kept of each of the teacher's distributions; None: 64.
    """

    kind: str | None = None
    top_k: int | None = None

    def check(self, form: Format, to: str) -> None:
        """Refuse what a format has no use for: it would go unnoticed that it changes nothing.

        Raises:
            UserError: there is such an option.
        """
        for field, option in OPTIONS.items():
            if getattr(self, field) is not None and field not in form.takes:
                raise UserError(f"{option} means nothing to --to {to}. Leave it out.")


class Exported:
    """What is exported: a run's student, or a model that lies in a folder alone.

    Raises:
        UserError: it is neither.
    """

    def __init__(self, source: Path, settings: Settings) -> None:
        self.source = source
        self.settings = settings
        self._run: Run | None = None
        self.is_run = (source / "recipe.yaml").is_file()
        if not self.is_run and not (source / "config.json").is_file():
            raise UserError(
                f"'{source}' is no run directory (it has no recipe.yaml) and no model folder (no config.json). Name "
                "the folder that srd run wrote, such as runs/mine."
            )

    @cached_property
    def name(self) -> str:
        """What the model is called in files."""
        return self.source.resolve().name if not self.is_run else self.run.recipe.name

    @property
    def run(self) -> Run:
        """The run, claimed until `close`.

        Raises:
            UserError: it is a model alone, or another command works in it.
        """
        if not self.is_run:
            raise UserError(
                f"'{self.source}' is a model alone, but this format needs what its run has made. Name the run "
                "directory."
            )
        if self._run is None:
            with told_if_held(self.source):
                self._run = Run(load_recipe(str(self.source / "recipe.yaml")), self.source)
            check_as_written(self.source)
        return self._run

    def close(self) -> None:
        """Release the run directory."""
        if self._run is not None:
            self._run.close()

    @cached_property
    def folder(self) -> Path:
        """Where the model lies.

        Raises:
            UserError: the run has not made it yet, or not with the settings that it has now.
        """
        return student_of(self.source, self.run.recipe.training.label) if self.is_run else self.source

    @cached_property
    def _found(self) -> dict[str, Any]:
        """How it is loaded: a run's student by the run's recipe."""
        return made_options(self.run.recipe) if self.is_run else {}

    @cached_property
    def config(self) -> Any:
        """The model's configuration."""
        return load_config(str(self.folder), **self._found)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(str(self.folder), **self._found)

    @cached_property
    def model(self) -> Any:
        """The model in float32, an adapter merged."""
        return load_model(str(self.folder), tokenizer=self.tokenizer, dtype="float32", role="student", **self._found)


@dataclass(frozen=True)
class Format:
    """A form that a run can be exported in.

    Attributes:
        title: As it is called.
        names: The files it writes, as paths below the folder; it refuses what it cannot write.
        write: Writes them into the folder.
        next: What to do with them, a line.
        takes: Which of the `Settings` it goes by.
    """

    title: str
    names: Callable[[Exported], list[str]]
    write: Callable[[Exported, Path], None]
    next: Callable[[Exported, Path], str]
    takes: tuple[str, ...] = ()


FORMATS: Registry[Format] = Registry("format", "srd.export.formats", "--to: there is no format '{}'", hyphens=True)


def export(source: Path, to: str, target: Path, settings: Settings | None = None) -> tuple[list[Path], str]:
    """Write a run, or a model, in the form of another tool.

    Args:
        source: A run directory; for a model's own formats also a model's folder.
        to: Of `FORMATS`.
        target: The folder to write into; nothing in it is written over that this command has not written.
        settings: Of the command line.

    Returns:
        The files, and what to do next.

    Raises:
        UserError: an unknown format, a model that it cannot hold, a file that is in the way.
    """
    form, settings = FORMATS.get(to), settings or Settings()
    settings.check(form, to)
    with contextlib.closing(Exported(source, settings)) as exported, held(target, "-o"):
        inside = target.resolve().is_relative_to(source.resolve())
        if inside and (target.resolve() == source.resolve() or not exported.is_run):
            raise UserError(f"-o {target} is where the model lies. Choose another folder.")
        record = WRITTEN.format(FORMATS.name_of(to))
        files, names = OwnedFiles(target, record, f"srd export --to {to}"), form.names(exported)
        then = form.next(exported, target)  # may be refused, too
        files.check(names)
        files.begin(names)
        form.write(exported, target)
        files.finish(names, format=form.title, source=str(source))
        return [target / name for name in names], then
