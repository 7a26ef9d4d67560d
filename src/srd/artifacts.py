"""Files of a run: written whole or not at all, and redone only when what they were made from has changed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
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
        remove(leftover)
    partial = Path(tempfile.mktemp(prefix=f".partial-{path.name}-", dir=path.parent))
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


def replace(source: Path, target: Path) -> None:
    """Move a file or a folder over ``target``; a folder in the way is moved aside first, as rename cannot replace it."""
    if target.is_dir():
        aside = Path(tempfile.mktemp(prefix=f".partial-{target.name}-old-", dir=target.parent))
        os.replace(target, aside)
        os.replace(source, target)
        remove(aside)
    else:
        os.replace(source, target)


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

    def begin(self, step: str, inputs: str) -> bool:
        """Note that a step is being made; True if it goes on with the same inputs as an interrupted one."""
        entry = self.steps.get(step, {})
        same = entry.get("fingerprint") == inputs and not entry.get("finished")
        if not same:
            self.steps[step] = {"fingerprint": inputs, "seconds": 0.0}
        self.steps[step].pop("finished", None)
        self.save()
        return same

    def spent(self, step: str, seconds: float) -> None:
        """Add to the time a step has taken, over all attempts."""
        self.steps[step]["seconds"] = round(self.steps[step].get("seconds", 0.0) + seconds, 3)

    def finish(self, step: str, summary: dict[str, Any]) -> None:
        """Note that a step is done, and in numbers what it did."""
        self.steps[step].update(finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), summary=summary)
        self.save()

    def save(self) -> None:
        """Write the manifest."""
        write_json(self.path, self.content)
