"""Folders that one command works in at a time."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srd.base.errors import UserError
from srd.base.failures import PATH_REASONS

COPY = "Copy it to where you may write, and name the copy."


def lock(path: Path, option: str, remedy: str = COPY) -> Any:
    """Hold a directory until this process ends, however it ends; ``option`` is what names another one.

    ``remedy`` is what helps where nobody may write there.

    Raises:
        UserError: another process holds it, or nobody may write there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        file = open(path, "a")  # noqa: SIM115 - held open on purpose; whatever the file holds stays
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise UserError(
            f"{path.parent} cannot be written to ({PATH_REASONS[error.errno]}), and srd keeps notes there while it "
            f"works with it. {remedy}"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(
            f"another srd command works in {path.parent}. Wait for it, or choose another {option}."
        ) from error
    return file


@contextlib.contextmanager
def told_if_held(folder: Path) -> Iterator[None]:
    """Go through a block that reads a folder without holding it: what it lacks may be in the making.

    Raises:
        UserError: as the block does; while another process holds the folder, that it is to be waited for.
    """
    try:
        yield
    except UserError as error:
        if _is_held(folder / ".lock"):
            raise UserError(
                f"another srd command works in {folder}, and what is to be read there is not finished. Wait for it."
            ) from error
        raise


def _is_held(path: Path) -> bool:
    with contextlib.suppress(ImportError, OSError), open(path) as file:  # none, Windows, a file system without locks
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def by_turns(path: Path) -> Iterator[None]:
    """Go through the block while no other process is in a block of the same path; wait for it, if one is.

    The file stays: were it removed, a process that waits for it and one that makes it anew would both go on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        with contextlib.suppress(ImportError, OSError):  # Windows, or a file system without locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def held(folder: Path, option: str, remedy: str = "Choose another folder.") -> Iterator[None]:
    """Make a folder if it is not there, and hold it while the block runs; gone again if that writes nothing into it.

    ``option`` and ``remedy`` are those of `lock`.

    Raises:
        UserError: another command works in it, or there can be no such folder.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock(folder / ".lock", option, remedy)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise UserError(f"{option} {folder} cannot be used: {reason}. Choose another folder.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if [*folder.iterdir()] == [folder / ".lock"]:
                (folder / ".lock").unlink()
                for each in made:
                    each.rmdir()
        if file is not None:
            file.close()
