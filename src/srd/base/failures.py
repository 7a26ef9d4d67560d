"""What leaves a command as an error: the exit status it means, and one message. No traceback reaches the terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from srd.base.errors import RunError, UserError
from srd.base.text import shown_bytes

# What the operating system says where a path cannot be what it was named for, in words; anything else is the machine's.
PATH_REASONS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "the system does not permit that",
    errno.EISDIR: "it is a folder, where a file is expected",
    errno.ENOTDIR: "it lies below something that is no folder",
    errno.EEXIST: "something else is there already",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.EROFS: "the file system is read-only",
    errno.EXDEV: "it lies on another file system",
    errno.ENXIO: "it is a device or a pipe, where a file is expected",
    errno.ENODEV: "it is a device or a pipe, where a file is expected",
    errno.ESPIPE: "it is a device or a pipe, where a file is expected",
    errno.EINVAL: "the system does not take it",
}
# How the libraries say that the disk is full: the system's words, Rust's number of the error, torch's archive writer,
# and numpy, which only counts.
DISK_IS_FULL = re.compile(
    r"no space left on device|disk quota exceeded|\bos error (28|122)\b|basic_ios::clear"
    r"|\d+ requested and \d+ written|inline_container(?!.*StreamReader)|StreamWriter failed|unexpected pos \d+ vs",
    re.IGNORECASE | re.DOTALL,
)
FILE_TOO_LARGE = re.compile(r"file too large|\bos error 27\b", re.IGNORECASE)
# How Rust and Arrow put the number of the system's error into words.
SYSTEM_ERROR = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|failed to allocate|malloc of size \d+ failed"
    r"|unable to allocate",
    re.IGNORECASE,
)
ERROR_FILE = "error.txt"

_place: Path | None = None  # where the traceback of a bug is written: the run directory, once there is one


def work_in(folder: Path) -> None:
    """Name the folder a command works in, for the traceback of a bug."""
    global _place
    _place = folder


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and what was being handled then."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__context__, each.__cause__]


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, in whatever form a library says it."""
    return any(_says_full(each) for each in causes(error))


def _says_full(error: BaseException) -> bool:
    if isinstance(error, UserError | RunError):
        return False  # says itself what it means
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, Exception) and DISK_IS_FULL.search(str(error)) is not None


def _says_too_large(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.EFBIG
    return not isinstance(error, UserError | RunError) and FILE_TOO_LARGE.search(str(error)) is not None


def refusal(error: BaseException, place: Path) -> int | None:
    """Why the system lets nobody write to a place, as one of `PATH_REASONS`; None where the error is about another one.

    Args:
        error: Whatever a library raised while it wrote.
        place: The file or folder that was written.
    """
    file = error.filename if isinstance(error, OSError) else None
    named = str(error) if file is None else os.fsdecode(file)
    number = SYSTEM_ERROR.search(str(error))
    code = error.errno if isinstance(error, OSError) and error.errno else int(number[1]) if number else None
    # Nothing but writing ends in EROFS, so that it need not name the file; but it may name another one.
    ours = place.name in named or (file is None and code == errno.EROFS)
    return code if code in PATH_REASONS and ours else None


def memory_is_full(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of its GPU is used up."""
    return any(
        isinstance(each, MemoryError)
        or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        or (isinstance(each, RuntimeError) and OUT_OF_MEMORY.search(str(each)) is not None)
        for each in causes(error)
        if not isinstance(each, UserError | RunError)
    )


#: Source files of the plugins that were imported: what fails in them is no fault of ours.
USER_CODE: set[Path] = set()


def _in_user_code(error: BaseException) -> str:
    """The plugin's line in which an error arose, or from which; empty where none is involved."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in USER_CODE]
    return f"the plugin {frames[-1].filename}, line {frames[-1].lineno}," if frames else ""


def path_problem(error: BaseException) -> str:
    """What is wrong with a path that the system does not take; empty where an error is of another kind."""
    if isinstance(error, OSError) and error.errno in PATH_REASONS and error.filename is not None:
        return f"cannot use {os.fsdecode(error.filename)!r}: {PATH_REASONS[error.errno]}. Name another path."
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "a path begins with ~ and a name that this machine does not know. Write the whole path."
    return ""


def explain(error: BaseException) -> tuple[int, str]:
    """The exit status and the message of an error: 2 for wrong input, 1 where the machine or the program failed."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, RunError):
        return 1, str(error)
    if disk_is_full(error):
        return 1, f"the disk is full ({_full_place(error)}). Free some space and run the same command again."
    if any(_says_too_large(each) for each in causes(error)):
        return 1, (
            f"a file is larger than its file system, or the limit `ulimit -f`, allows ({_full_place(error)}). "
            "Lift the limit, or write to another disk, and run the same command again."
        )
    if memory_is_full(error):
        return 1, (
            f"out of memory: {first_line(error)}. Use a smaller training.micro_batch_size or generation.batch_size, "
            "set training.gradient_checkpointing=true, or a larger machine; then run the same command again."
        )
    if problem := path_problem(error):
        return 2, problem
    kept = f"The traceback is in {written}. " if (written := _write_traceback(error)) else ""
    if isinstance(error, OSError):
        place = f" ({os.fsdecode(error.filename)!r})" if error.filename is not None else ""
        return 1, (
            f"the machine has failed: {error.strerror or first_line(error)}{place}. {kept}"
            "When that is corrected, run the same command again."
        )
    if isinstance(error, SystemExit):  # with whatever status: the work is not done
        place = _in_user_code(error) or "a library"
        return 1, f"{place} has ended the program by sys.exit({error.code!r}), before the work was done. {kept}".strip()
    if place := _in_user_code(error):
        said = f"{place} has failed: {type(error).__name__}: {first_line(error)}"
        return 1, f"{said}. {kept}Correct it, then run the same command again."
    return 1, f"this is a bug in srd: {type(error).__name__}: {first_line(error)}. {kept}Please report it."


@contextlib.contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Turn whatever a library raises over a file that it cannot read into one UserError that names the file.

    Args:
        path: The file, with the line or row where that is known.
        kind: What it was to be, such as ``JSONL``.
    """
    try:
        yield
    except (UserError, RunError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None and error.errno not in PATH_REASONS:
            raise  # the machine's fault, not the file's
        reason = first_line(error) if error.errno is None else PATH_REASONS[error.errno]
        raise _unreadable(path, kind, reason) from error
    except Exception as error:
        raise _unreadable(path, kind, first_line(error)) from error


def _unreadable(path: Path | str, kind: str, reason: str) -> UserError:
    return UserError(f"{path}: cannot be read as {kind}: {reason}. Check that the file is whole.")


def first_line(error: BaseException) -> str:
    """What an error says, without the rest: libraries go on for pages."""
    if isinstance(error, RecursionError):
        return "something is nested too deeply"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else type(error).__name__).rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."


def _full_place(error: BaseException) -> str:
    """The file that could not be written, where the library says so, and what is free there."""
    names = [os.fsdecode(each.filename) for each in causes(error) if isinstance(each, OSError) and each.filename]
    if names:
        return names[0]
    temporary = tempfile.gettempdir()
    told = []
    for folder, title in ((_place, "the run directory"), (Path(temporary), "temporary files, which TMPDIR can move")):
        with contextlib.suppress(OSError):
            if folder is not None:
                told.append(f"{folder}, {title}: {shown_bytes(shutil.disk_usage(folder).free)} free")
    return "; ".join(told) or temporary


def _write_traceback(error: BaseException) -> Path | None:
    """Keep the traceback in the run directory, else where temporary files go; None where neither can be written."""
    text = "".join(traceback.format_exception(error))
    rank = os.environ.get("RANK", "0")
    name = ERROR_FILE if rank == "0" else f"error-{rank}.txt"
    if _place is not None and _place.is_dir():
        with contextlib.suppress(OSError):
            (_place / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return _place / name
    with contextlib.suppress(OSError):
        handle, file = tempfile.mkstemp(prefix="srd-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as opened:
            opened.write(text)
        return Path(file)
    return None
