"""Files of a run: written whole or not at all, and redone only when what they were made from has changed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from srd.base.errors import RunError, UserError
from srd.base.failures import disk_is_full, refusal
from srd.base.ours import strangers
from srd.base.text import shown_bytes


def seam(moment: str, path: Path) -> None:
    """Called at every file that is written: ``begin``, ``replace`` (whole, under its partial name), ``done``.

    Tests of kills and full disks put something in its place.
    """


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file takes its final name when the block succeeds.

    A killed process leaves only a ``.partial-*`` entry, which nothing reads and the next writer removes.

    Raises:
        UserError: ``path`` is a folder or a link: neither is replaced.
        RunError: the disk is full, whichever library says so; what was written before is kept.
        OSError: nobody may write there, whichever library says so; it names ``path``.
    """
    path = Path(path)
    _refuse(path, path.is_symlink(), "a link")
    _refuse(path, path.is_dir(), "a folder")
    with _replacing(path) as partial:
        yield partial


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As `atomic_write`, for a whole folder. One of that name is replaced, if all that it holds may be ours.

    Raises:
        UserError: ``path`` is a file or a link, or something of somebody else lies in it.
        RunError: the disk is full.
    """
    path = Path(path)
    _refuse(path, path.is_symlink(), "a link")
    _refuse(path, path.is_file(), "a file")
    for stranger in strangers(path):
        _refuse(stranger, True, "in the way")
    with _replacing(path) as partial:
        yield partial


def _refuse(path: Path, wrong: bool, kind: str) -> None:
    if wrong:
        raise UserError(f"{path} is {kind}, which is not replaced. Move it away, or write somewhere else.")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".partial-{glob.escape(path.name)}-*"):
            if _is_abandoned(leftover) and not any(strangers(leftover)):
                remove(leftover)
        partial = partial_path(path)
        try:
            seam("begin", path)
            yield partial
            seam("replace", path)
            replace(partial, path)
            seam("done", path)
        except Exception as error:
            if reason := refusal(error, partial):
                raise OSError(reason, os.strerror(reason), str(path)) from error  # the name that the user knows
            raise
        finally:
            with contextlib.suppress(OSError):  # on a read-only disk, which the error at hand speaks of already
                remove(partial)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say which file a full disk has no room for, whichever library notices it.

    Raises:
        RunError: in place of the library's error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | RunError) or not disk_is_full(error):
            raise
        free = next(shutil.disk_usage(folder).free for folder in path.parents if folder.is_dir())
        raise RunError(
            f"the disk is full: could not write {path} ({shown_bytes(free)} free). "
            "Free some space, or write to another disk; then run the same command again to continue."
        ) from error


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
    with (atomic_folder if source.is_dir() else atomic_write)(target) as partial:
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


def discard(path: Path, listed: Collection[Path] = ()) -> None:
    """Delete unfinished work, if it is there, after a look at all of it.

    Args:
        path: A file or a folder of a step.
        listed: Files that are known to be the step's own, whatever their names.

    Raises:
        UserError: something of somebody else lies there; nothing is deleted.
    """
    for stranger in strangers(path, listed):
        raise UserError(
            f"{stranger} was not written by this run, but lies in unfinished work that is made again. Nothing is "
            "touched: move it away, then run the same command again."
        )
    remove(path)


def write_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *copies: Path) -> None:
    """Write ``value`` as indented JSON, atomically; to other places, too."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    for place in (path, *copies):
        write_text(place, text)


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON object a line, atomically."""
    with atomic_write(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON; ``default`` where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def fingerprint(*parts: Any) -> str:
    """Hash JSON-like values (dicts are order-independent) to 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Hash the content of one file to 32 hexadecimal digits, without reading it into memory at once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


# ------------------------------------------------------------------------------------------ what a file's content is

#: Path -> the state of every file that was hashed: one of the same size and times is not read again. A run keeps these
#: in its manifest, so that the weights of a large teacher are hashed once and not at every command.
known_digests: dict[str, list[Any]] = {}


def file_times(path: Path) -> list[int]:
    """What tells cheaply that a file may have changed: size, and times of modification and of any change."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def state_of(path: Path) -> list[Any]:
    """Size, times and digest of a file, hashed again only where one of the others has changed."""
    name, times = str(path.absolute()), file_times(path)
    known = known_digests.get(name)
    if known is None or known[:3] != times:
        known = known_digests[name] = [*times, file_digest(path)]
    return list(known)


def known_digest(path: Path) -> str | None:
    """The digest of a file that was hashed before and has not changed since; None: that would take reading it."""
    known = known_digests.get(str(path.absolute()))
    return str(known[3]) if known is not None and path.is_file() and known[:3] == file_times(path) else None


def is_as_noted(path: Path, state: list[Any]) -> bool:
    """Whether a file is there and is what `state_of` said: its content is looked at where only its times differ."""
    if not path.is_file() or (times := file_times(path))[0] != state[0]:
        return False
    return times == state[:3] or digest_of(path) == state[3]


def digest_of(path: Path) -> str:
    """The digest of a file, by its `state_of`."""
    return str(state_of(path)[3])


def _leads_back(path: Path) -> bool:
    return path.is_symlink() and path.resolve() in {above.resolve() for above in path.parents}


def walk(folder: Path) -> list[Path]:
    """All files below a folder in the order of their names, hidden ones and Python's caches left out.

    A link to a folder is followed, unless it leads back to a folder that it lies in.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        wanted = (name for name in folders if not name.startswith(".") and name != "__pycache__")
        folders[:] = sorted(name for name in wanted if not _leads_back(Path(place, name)))
        found += [Path(place) / name for name in sorted(names) if not name.startswith(".")]
    return found


def content_of(path: Path) -> Any:
    """The content of a path for fingerprints, wherever it lies: a digest, in a folder one a file; None for nothing."""
    if path.is_dir():
        return {str(file.relative_to(path)): digest_of(file) for file in walk(path) if file.is_file()}
    return digest_of(path) if path.is_file() else None


def write_sealed(path: Path, content: dict[str, Any], *copies: Path) -> None:
    """Write JSON with a checksum of its content; to other places, too."""
    write_json(path, {**content, "seal": fingerprint(content)}, *copies)


def seal(path: Path) -> None:
    """Note beside a file or a folder what it holds: for work of a step that may be killed before it is done."""
    write_sealed(_seal_of(path), {"content": content_of(path)})


def is_sealed(path: Path) -> bool:
    """Whether a file or a folder is there and holds what it held when it was sealed."""
    return path.exists() and read_sealed(_seal_of(path)).get("content") == content_of(path)


def _seal_of(path: Path) -> Path:
    return path.parent / f".{path.name}.seal"


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote; nothing where it is missing or damaged."""
    try:
        content: dict[str, Any] = dict(read_json(path, {}))
        seal = content.pop("seal", None)
    except (OSError, ValueError, TypeError, RecursionError):  # not to be read, no JSON, no object
        return {}
    return content if seal == fingerprint(content) else {}
