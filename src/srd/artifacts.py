"""Files of a run: written whole or not at all, and redone only when what they were made from has changed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from srd.errors import RunError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (file or folder); it takes the final name when the block succeeds.

    A killed process leaves only a ``.partial-*`` entry, which nothing reads and the next writer removes.
    A full disk raises RunError with what is free and keeps what was written before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".partial-{path.name}-*"):
        if _is_abandoned(leftover):
            remove(leftover)
    partial = partial_path(path)
    try:
        yield partial
        replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise RunError(
                f"the disk is full: could not write {path} ({free / 1e6:.0f} MB free). "
                "Free some space, or choose another --run-dir; then run the same command again to continue."
            ) from error
        raise
    finally:
        remove(partial)


def partial_path(path: Path) -> Path:
    """A temporary name beside ``path`` that says which process of which machine writes it."""
    return path.parent / f".partial-{path.name}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _is_abandoned(partial: Path) -> bool:
    """Whether the process that wrote it is gone; what another machine writes in a shared folder is left alone."""
    rest, process, _ = partial.name.rsplit("-", 2)
    if not process.isdigit() or not rest.endswith(socket.gethostname()):
        return False
    try:
        os.kill(int(process), 0)  # signal 0 only asks
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(process) == os.getpid()


def replace(source: Path, target: Path) -> None:
    """Move a file or a folder over ``target``; a folder in the way goes aside first, as rename cannot replace it."""
    if target.is_dir():
        aside = partial_path(target)
        os.replace(target, aside)
        os.replace(source, target)
        remove(aside)
    else:
        os.replace(source, target)


def link(source: Path, target: Path) -> None:
    """Give a file or a whole folder a second name without a second copy on disk, where the file system can.

    Files of a run are replaced, never changed in place, so what happens to one name does not show under the other.
    """
    with atomic_write(target) as partial:
        if source.is_dir():
            shutil.copytree(source, partial, copy_function=_link_or_copy)
        else:
            _link_or_copy(source, partial)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another device, or a file system without links
        shutil.copy2(source, target)


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON; ``default`` where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def fingerprint(*parts: Any) -> str:
    """Hash JSON-like values (dicts are order-independent) to 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Hash the content of one file to 32 hexadecimal digits, without reading it into memory at once."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


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
        """The manifest entry of a step that another run has finished; None where there is none."""
        found: dict[str, Any] | None = read_json(self._place(step, key) / "step.json")
        return found

    def give(self, step: str, key: str, outputs: Iterable[Path], entry: dict[str, Any]) -> None:
        """Offer a finished step to other runs. Steps that leave no file in the run directory cost nothing: not kept."""
        outputs = list(outputs)
        if not outputs or not all(path.is_relative_to(self.run_folder) for path in outputs):
            return
        with atomic_write(self._place(step, key)) as partial:
            for path in outputs:
                link(path, partial / path.relative_to(self.run_folder))
            write_json(partial / "step.json", entry)

    def take(self, step: str, key: str, outputs: Iterable[Path]) -> None:
        """Put the files of a step that another run has finished into this run's directory."""
        for path in outputs:
            link(self._place(step, key) / path.relative_to(self.run_folder), path)


class Manifest:
    """What a run directory holds, and from which inputs each step made its part: ``manifest.json``.

    Args:
        folder: The run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "manifest.json"
        self.content: dict[str, Any] = {"steps": {}, "warnings": [], **read_json(self.path, {})}

    @property
    def steps(self) -> dict[str, Any]:
        """Every step that was begun: fingerprint, seconds, whether it is done, and its summary."""
        steps: dict[str, Any] = self.content["steps"]
        return steps

    def fresh(self, step: str, inputs: str, outputs: Iterable[Path]) -> bool:
        """Whether a step was finished from these very inputs and all its files are there."""
        entry = self.steps.get(step, {})
        return entry.get("fingerprint") == inputs and bool(entry.get("finished")) and all(p.exists() for p in outputs)

    def interrupted(self, step: str, inputs: str) -> bool:
        """Whether a step was begun with these very inputs and not finished, so that its unfinished work counts."""
        entry = self.steps.get(step, {})
        return entry.get("fingerprint") == inputs and not entry.get("finished")

    def begin(self, step: str, inputs: str) -> None:
        """Note that a step is being made; an interrupted one goes on, with the time it has taken so far."""
        if not self.interrupted(step, inputs):
            self.steps[step] = {"fingerprint": inputs, "seconds": 0.0}
        self.save()

    def spent(self, step: str, seconds: float) -> None:
        """Add to the time a step has taken, over all attempts."""
        self.steps[step]["seconds"] = round(self.steps[step].get("seconds", 0.0) + seconds, 3)

    def finish(self, step: str, summary: dict[str, Any]) -> None:
        """Note that a step is done, and in numbers what it did."""
        self.steps[step].update(finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), summary=summary)
        self.save()

    def adopt(self, step: str, entry: dict[str, Any]) -> None:
        """Note that a step was taken from another run, which says what it took to make it."""
        self.steps[step] = {**entry, "shared": True}
        self.save()

    def save(self) -> None:
        """Write the manifest."""
        write_json(self.path, self.content)
