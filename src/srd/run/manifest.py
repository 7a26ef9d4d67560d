"""What a run directory holds: which step wrote which files, with which content, from which inputs.

A step is done when the files that it wrote are still those files. Size and times tell quickly; where they differ, the
content does. A file or folder belongs to the step that wrote it: nothing else is ever replaced or removed here.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterable, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from srd.base.errors import UserError
from srd.base.files import (
    atomic_folder,
    discard,
    file_times,
    is_as_noted,
    known_digests,
    link,
    read_sealed,
    remove,
    state_of,
    walk,
    write_sealed,
)
from srd.base.ours import strangers
from srd.run.folder import RunFolder

logger = logging.getLogger(__name__)

NAME, COPY = "manifest.json", ".manifest.json"
DISPLACED = "displaced"  # where the files of a step go whose place another step takes


def noted_in(run: Path) -> dict[str, Any]:
    """What the manifest of a run directory says, or its copy; empty where neither can be read."""
    return read_sealed(run / NAME) or read_sealed(run / COPY)


def standing(content: Mapping[str, Any]) -> dict[str, Any]:
    """The steps of a manifest that tell of the run as it is: of its recipe, and made after its other steps as they are.

    An evaluation that came after another training than the one that lies there is none of them, nor is the ranking of
    a recipe that has no curriculum any more, nor a training that no command with its settings has come to yet.
    """
    steps: dict[str, Any] = content.get("steps") or {}
    wanted, recipe = content.get("planned") or steps, content.get("recipe")
    trainings = content.get("trainings") or {}  # which a part of the recipe decides

    @cache
    def holds(name: str) -> bool:
        before = steps[name].get("after") or {}
        return all(steps.get(each, {}).get("fingerprint") == key and holds(each) for each, key in before.items())

    def is_ours(name: str) -> bool:
        return name in wanted and steps[name].get("recipe", recipe) in (recipe, trainings.get(name))

    return {name: step for name, step in steps.items() if is_ours(name) and holds(name)}


def _damaged(run: Path, step: dict[str, Any], below: Path | None = None) -> list[Path]:
    """The files of a finished step, all or those below a folder, that are missing or are not what it wrote."""
    wrong = []
    for name, state in {**step.get("outputs", {}), **step.get("needed", {})}.items():
        path = run / name
        if below is not None and not path.is_relative_to(below):
            continue
        if is_as_noted(path, state):
            state[:3] = file_times(path)
        else:
            wrong.append(path)
    return wrong


def check_as_written(run: Path, below: Path | None = None) -> None:
    """Refuse to read files of a run that are not what its steps wrote; what is missing is no hindrance.

    Args:
        run: The run directory, which stays as it is.
        below: The folder in it that is to be read; None: all.

    Raises:
        UserError: with the first of them and its step.
    """
    for name, step in noted_in(run).get("steps", {}).items():
        if not step.get("finished") or name == "cards":  # a card and how to answer may be changed by hand
            continue
        if changed := [path for path in _damaged(run, step, below) if path.exists()]:
            raise UserError(
                f"{changed[0]} is not what the step {name} wrote, and what is made of it would be wrong. srd run makes "
                "it again; or choose another --run-dir. To use what you have changed, name a copy of its folder."
            )


def student_of(run: Path, label: str) -> Path:
    """The student of a run's main training, for whoever takes it as what the recipe there describes.

    Of a run without a manifest nothing is known, and what lies there is taken.

    Raises:
        UserError: there is none yet, it is not what its training wrote, or is not of the settings that lie there now.
    """
    files = RunFolder(run, label)
    place, again = files.student(label), shlex.join(["srd", "run", str(files.recipe), "--run-dir", str(run)])
    if not place.is_dir():
        raise UserError(f"{place} is not there: this run has trained no student yet. Train it: {again}")
    check_as_written(run, place)
    noted = noted_in(run)
    made = {name for name, step in (noted.get("steps") or {}).items() if place.name in step.get("places", [])}
    if made - {name for name, step in standing(noted).items() if step.get("finished")}:
        raise UserError(
            f"{place} is not known to be the student of {files.recipe}: a command has changed settings or rows since, "
            f"or the training was stopped. Train that one, or have this one kept if nothing that decides it has "
            f"changed: {again}. The former recipe, run again, brings this one back. srd chat, srd evaluate --task and "
            f"srd export --to gguf or ollama also take {place} by itself."
        )
    return place


class Manifest:
    """``manifest.json`` and its copy ``.manifest.json``.

    Args:
        folder: The run directory.
        inputs: Files and folders that the run reads; their digests are kept, so that large models are hashed once.

    Raises:
        UserError: neither of the two can be read, so that it is not known which files are this run's.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path] = ()) -> None:
        self.folder = folder
        self.inputs = [str(path.absolute()) for path in inputs]
        self.path, self.copy = folder / NAME, folder / COPY
        begun = {"day": date.today().isoformat(), "steps": {}, "warnings": [], "moves": [], "digests": {}}
        self.content: dict[str, Any] = {**begun, **self._read()}
        known_digests.update(self.content.pop("digests"))
        self._finish_moves()

    def _read(self) -> dict[str, Any]:
        content = read_sealed(self.path)
        if content or not (self.path.exists() or self.copy.exists()):
            return content
        content = read_sealed(self.copy)
        if not content:
            raise UserError(
                f"{self.path} is damaged, or was written by another version, and so is its copy {self.copy.name}: "
                "which files here are this run's cannot be told, and none is touched. Choose another --run-dir, or "
                "delete this one."
            )
        logger.warning("%s was damaged or missing: its copy %s is used", self.path, self.copy.name)
        return content

    @property
    def day(self) -> date:
        """When the run was begun. Chat templates that write a date write this one, however long the run takes."""
        return date.fromisoformat(self.content["day"])

    @property
    def steps(self) -> dict[str, Any]:
        """Every step that was begun: fingerprint, places, seconds; when done also its files and its summary."""
        return self.content["steps"]

    def save(self) -> None:
        """Write the manifest, and its copy; of all that this process has hashed, the digests of this run's inputs."""
        below = tuple(place + os.sep for place in self.inputs)
        inputs = [name for name in known_digests if name in self.inputs or name.startswith(below)]
        content = {**self.content, "digests": {name: known_digests[name] for name in inputs}}
        write_sealed(self.path, content, self.copy)

    # ------------------------------------------------------------------------------------------------- what is done

    def finished(self, step: str, key: str) -> bool:
        """Whether a step was finished from these very inputs; whether its files are still there is another question."""
        entry = self.steps.get(step, {})
        return entry.get("fingerprint") == key and bool(entry.get("finished"))

    def interrupted(self, step: str, key: str) -> bool:
        """Whether a step was begun from these very inputs and not finished, so that its unfinished work counts."""
        entry = self.steps.get(step, {})
        return entry.get("fingerprint") == key and not entry.get("finished")

    def damaged(self, step: str) -> list[Path]:
        """The files of a finished step that are missing or are not what the step wrote."""
        return _damaged(self.folder, self.steps[step])

    def written(self, step: str) -> list[str]:
        """The names of all files that a finished step wrote."""
        return [*self.steps[step].get("outputs", {}), *self.steps[step].get("needed", {})]

    def has_written(self, step: str, path: Path) -> bool:
        """Whether a finished step has written a file that others may write too, or anything into such a folder."""
        name = self._name(path)
        return any(each == name or each.startswith(f"{name}/") for each in self.steps[step].get("needed", {}))

    def files(self, step: str, folder: Path) -> list[Path]:
        """What a finished step wrote below a folder."""
        files = [self.folder / name for name in self.steps[step].get("outputs", {})]
        return [file for file in files if file.is_relative_to(folder)]

    def places(self, step: str) -> list[Path]:
        """The files and folders that belong to a step."""
        return [self.folder / name for name in self.steps.get(step, {}).get("places", [])]

    # --------------------------------------------------------------------------------------------- a step's progress

    def begin(self, step: str, key: str, places: Iterable[Path], borrowed: Iterable[Path] = ()) -> None:
        """Note that a step is being made, and where; an interrupted one goes on, with the time it has taken so far.

        ``borrowed`` are files that it writes into the folders of other steps, which answer for them no longer.
        """
        for entry in self.steps.values():
            for path in borrowed:
                entry.get("outputs", {}).pop(self._name(path), None)
        if not self.interrupted(step, key):
            seconds = self.steps[step].get("seconds", 0.0) if self.finished(step, key) else 0.0
            self.steps[step] = {"fingerprint": key, "seconds": seconds}
        self.steps[step]["places"] = [self._name(path) for path in places]
        self.save()

    def tidy(self, step: str, scratch: Iterable[Path]) -> None:
        """Remove what a finished step has left of its unfinished work; once, as what comes later is the user's."""
        if self.steps[step].get("tidied"):
            return
        for path in scratch:
            discard(path)
        self.steps[step]["tidied"] = True
        self.save()

    def spent(self, step: str, seconds: float) -> None:
        """Add to the time a step has taken, over all attempts."""
        self.steps[step]["seconds"] = round(self.steps[step].get("seconds", 0.0) + seconds, 3)

    def came_after(self, step: str, names: Iterable[str], recipe: str) -> None:
        """Note of a finished step what it comes after, by fingerprints, and what recipe has come to it: `standing`."""
        keys = {name: self.steps[name]["fingerprint"] for name in names if name in self.steps}
        if (entry := self.steps[step]) != (noted := {**entry, "after": keys, "recipe": recipe}):
            self.steps[step] = noted
            self.save()

    def finish(
        self,
        step: str,
        summary: dict[str, Any],
        outputs: Iterable[Path],
        needed: Iterable[Path],
        scratch: Iterable[Path],
    ) -> None:
        """Note that a step is done, in numbers what it did, and what each of its files is.

        Where it has left no unfinished work, there is nothing to `tidy`.
        """
        self.steps[step].update(
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            summary=summary,
            outputs=self._states(outputs),
            needed=self._states(needed),
            tidied=not any(os.path.lexists(path) for path in scratch),
        )
        self.save()

    def _states(self, paths: Iterable[Path]) -> dict[str, list[Any]]:
        files = [file for path in paths for file in (walk(path) if path.is_dir() else [path]) if file.is_file()]
        return {self._name(file): state_of(file) for file in files}

    def _name(self, path: Path) -> str:
        """A path as the manifest has it: relative, so that a run directory can be moved; absolute outside of it."""
        inside = path.absolute().is_relative_to(self.folder.absolute())
        return str(path.absolute().relative_to(self.folder.absolute()) if inside else path.absolute())

    # ------------------------------------------------------------------------------------- whose a file or folder is

    def clear(self, step: str, paths: Iterable[Path]) -> None:
        """Remove files and folders of a step that is to be made again.

        Raises:
            UserError: among them are files that this run did not write, which stay as they are, like all others.
        """
        entry, paths = self.steps.get(step, {}), [path for path in paths if path.exists() or path.is_symlink()]
        for path in paths:
            if path.is_symlink():
                self._refuse(path, f"{step} is to be made again")
            finished = entry.get("finished")
            for strange in self._strangers(path, entry["outputs"]) if finished else strangers(path):
                self._refuse(strange, f"{step} is to be made again")
        for path in paths:
            remove(path)
            known_digests.pop(str(path.absolute()), None)

    def _strangers(self, path: Path, ours: Iterable[str]) -> list[Path]:
        """What a finished step has not written of a file or folder that is to be removed, nor another one into it."""
        if not path.is_dir():
            return []
        states = {name: state for entry in self.steps.values() for name, state in entry.get("needed", {}).items()}
        kept = [name for entry in self.steps.values() for name in (entry.get("summary") or {}).get("by hand", [])]
        files = [file for file in walk(path) if self._name(file) not in ours]
        files = [
            file for file in files
            if (name := self._name(file)) in kept or name not in states or not is_as_noted(file, states[name])
        ]  # fmt: skip
        return [path, *files] if self._name(path) in ours else files  # a folder in the place of a file

    def make_room(self, step: str, places: Iterable[Path]) -> None:
        """Put aside what other steps have written where a step is to write.

        Raises:
            UserError: something lies there that no step of this run has written.
        """
        places = list(places)
        for other, entry in self.steps.items():
            taken = [name for name in entry.get("places", []) if self.folder / name in places]
            if other != step and taken:
                slug = other.replace("/", "-").replace(" ", "-")
                self._move(other, {name: f"{DISPLACED}/{slug}/{name}" for name in taken})
        for path in places:
            if (path.exists() or path.is_symlink()) and path not in self.places(step):
                self._refuse(path, f"it lies where the step {step} writes")
            for strange in [] if self.steps.get(step, {}).get("finished") else strangers(path):
                self._refuse(strange, f"it lies in unfinished work of the step {step}")

    def bring(self, step: str, places: list[Path]) -> None:
        """Move what a finished step wrote elsewhere (another step had its place) to where it belongs now."""
        wanted = [self._name(path) for path in places]
        have = self.steps[step].get("places", [])
        if have != wanted:
            self.make_room(step, [path for path, name in zip(places, wanted, strict=True) if name not in have])
            moves = list(zip(have, wanted, strict=False))
            if len(have) != len(wanted):  # by their names, as it has come to write more than it did
                moves = [(old, new) for old in have for new in wanted if f"/{old}".endswith(f"/{new}")]
            self._move(step, dict(moves))
            self.steps[step]["places"] = wanted

    def _move(self, step: str, names: dict[str, str]) -> None:
        """Move files and folders of a step; noted before it is done, so that a killed run can finish it."""
        entry = self.steps[step]
        names = {old: new for old, new in names.items() if old != new}
        entry["places"] = [names.get(name, name) for name in entry["places"]]
        entry["outputs"] = {_renamed(name, names): state for name, state in entry.get("outputs", {}).items()}
        self.content["moves"] = [[old, new] for old, new in names.items()]
        for name in [name for entry in self.steps.values() for name in entry.get("needed", {})]:
            if name.startswith(tuple(f"{old}/" for old in names)):  # what a later step has put there is made again
                discard(self.folder / name)
        for new in names.values():  # what an earlier displacement of the same step has left there is outdated
            if new.startswith(f"{DISPLACED}/"):
                discard(self.folder / new)
        self.save()
        self._finish_moves()

    def _finish_moves(self) -> None:
        for old, new in self.content["moves"]:
            source, target = self.folder / old, self.folder / new
            if source.exists() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
        if self.content["moves"]:
            self.content["moves"] = []
            self.save()

    def _refuse(self, path: Path, why: str) -> None:
        raise UserError(
            f"{path} was not written by this run, but {why}. Nothing is touched: move it away, or choose another "
            "--run-dir; then run the same command again."
        )


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if name == old or name.startswith(f"{old}/"):
            return new + name[len(old) :]
    return name


class SharedSteps:
    """Finished steps that several runs have in common: ``<folder>/<step>-<fingerprint>/`` holds what a step made.

    The fingerprint stands for everything a step's result depends on, so a run may take a step that another run has
    made, files and measured time alike, instead of making it again.

    Args:
        folder: Where the steps lie, on one file system with the runs if linking is to save space.
        run_folder: The run directory that takes and gives.
    """

    def __init__(self, folder: Path, run_folder: Path) -> None:
        self.folder = folder
        self.run_folder = run_folder

    def _place(self, step: str, key: str) -> Path:
        return self.folder / f"{step.replace('/', '-').replace(' ', '-')}-{key}"

    def entry(self, step: str, key: str) -> dict[str, Any] | None:
        """The manifest entry of a step that another run has finished, its files checked; None where there is none."""
        place = self._place(step, key)
        if place.is_file() or place.is_symlink():
            raise UserError(f"{place} is in the way: a folder of the sweep goes there. Move it away.")
        found = read_sealed(place / "step.json")
        if not found:
            if place.exists():
                logger.warning("%s is damaged: %s is made again", place, step)
                discard(place)
            return None
        for name, state in found["outputs"].items():
            if not is_as_noted(place / name, state):
                logger.warning("%s is damaged: %s is made again", place / name, step)
                discard(place, [place / each for each in found["outputs"]])
                return None
        return found

    def give(self, step: str, key: str, entry: dict[str, Any], roots: Iterable[Path]) -> None:
        """Offer a finished step to other runs. Steps that leave no file in the run directory cost nothing: not kept."""
        if not entry["outputs"] or self._place(step, key).exists():
            return
        with atomic_folder(self._place(step, key)) as partial:
            for path in (path for path in roots if path.exists()):
                link(path, partial / path.relative_to(self.run_folder))
            write_sealed(partial / "step.json", entry)

    def take(self, step: str, key: str, roots: Iterable[Path]) -> None:
        """Put the files of a step that another run has finished into this run's directory."""
        for path in roots:
            source = self._place(step, key) / path.relative_to(self.run_folder)
            if source.exists():
                link(source, path)
