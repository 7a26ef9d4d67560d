"""Checkpoints and kept models: whole, or not used.

What was written is noted beside it, file by file with size and digest, when all of it is on the disk. So a kill while
writing leaves something without a note, and damage after it shows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from srd.base.errors import RunError, UserError
from srd.base.files import discard, file_digest, read_json, write_json
from srd.base.ours import strangers
from srd.base.text import shown_bytes

logger = logging.getLogger(__name__)

FILES = "files.json"  # written last
TRAINER_STATE = "trainer_state.json"
STATE_FILE = "distillation.json"  # what a checkpoint of ours holds beside the Trainer's own files; written first
NAME = re.compile(r"checkpoint-\d+")

Listing = dict[str, tuple[int, str]]  # relative path -> size, digest


def list_files(folder: Path, *places: str) -> Listing:
    """Size and digest of every file of a folder, or of some places in it."""
    roots = [folder / place for place in places] if places else [folder]
    found = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
    names = sorted(str(path.relative_to(folder)) for path in found)
    return {name: (path.stat().st_size, file_digest(path)) for name in names if (path := folder / name).name != FILES}


def damage(folder: Path, files: Any) -> str | None:
    """The first file that is not as it was listed, and why; None where all are. Sizes are compared first."""
    if not isinstance(files, dict) or not files:
        return "the list of its files cannot be read"
    with contextlib.suppress(TypeError, ValueError):
        expected = {name: (int(size), str(digest)) for name, (size, digest) in files.items()}
        for name, (size, _) in expected.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (folder / name).stat().st_size != size:
                return f"{name} has another size"
        changed = (name for name, (_, digest) in expected.items() if file_digest(folder / name) != digest)
        return next((f"{name} has another content" for name in changed), None)
    return "the list of its files cannot be read"


def readable_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return read_json(path)
    return None


def seal(checkpoint: Path, *beside: Path) -> None:
    """Note that a checkpoint is complete, and which files beside it training goes on from."""
    others = {f"../{path.relative_to(checkpoint.parent)}": (path.stat().st_size, file_digest(path)) for path in beside}
    write_json(checkpoint / FILES, list_files(checkpoint) | others)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step of a checkpoint; 0 where there is none."""
    return int(read_json(checkpoint / TRAINER_STATE)["global_step"]) if checkpoint else 0


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were completed, oldest first; unfinished ones of ours are removed."""
    found = _named(folder)
    for path in found:
        if not (path / FILES).exists() and (path / STATE_FILE).exists():
            _drop(path)
    whole = (path for path in found if (path / FILES).exists())
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))  # some may be damaged


def _drop(checkpoint: Path) -> None:
    """Delete a checkpoint; a file of it that somebody has given another name is still ours."""
    files = readable_json(checkpoint / FILES)
    kept = (
        {str(state[-1]) for state in files.values() if isinstance(state, list) and state}
        if isinstance(files, dict)
        else ()
    )
    renamed = [path for path in strangers(checkpoint) if path.is_file() and file_digest(path) in kept]
    discard(checkpoint, renamed)


def _named(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]


def remove_all(folder: Path) -> None:
    """Remove all checkpoints of a stage that is done, or begins again."""
    for path in _named(folder):
        _drop(path)


def check_place(folder: Path) -> None:
    """Refuse a folder with checkpoints of another program, which ours would be written into.

    Raises:
        UserError: with the first of them.
    """
    for path in _named(folder):
        if not (path / STATE_FILE).exists() and not (path / FILES).exists() and any(path.glob("[!.]*")):
            raise UserError(f"{path} was not written by this training. Move it away, or choose another folder.")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, as is the best one that it names; what is newer is removed, saying so."""
    for path in reversed(checkpoints(folder)):
        reason = damage(path, readable_json(path / FILES))
        if reason is None:
            state = json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
            best = folder / Path(state.get("best_model_checkpoint") or path).name
            if best == path or (reason := damage(best, readable_json(best / FILES))) is None:
                return path
            reason = f"{reason} in {best.name}, the best of them"
        logger.warning(
            f"{path} is not used: {reason}. Training goes on from the checkpoint before it, or this stage begins again."
        )
        _drop(path)
    return None


def forget_older(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove all checkpoints but the newest ``keep``, the best among them whatever its age; None keeps all."""
    if not keep:
        return
    found = checkpoints(folder)[::-1]
    protected = [path for path in found if path == found[0] or (best and path.name == Path(best).name)]
    others = [path for path in found if path not in protected]
    for path in others[max(0, keep - len(protected)) :]:
        _drop(path)


def needed_disk(parameters: int) -> int:
    """Bytes that a stage's two checkpoints (weights, two moments) and the kept models take at most."""
    return parameters * 4 * (2 * 3 + 2)


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to begin a training whose checkpoints, of so many bytes, cannot be written."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"training needs {shown_bytes(needed)} for checkpoints in {folder}, and {shown_bytes(free)} are free. "
            "Free some space, or choose another --run-dir."
        )
