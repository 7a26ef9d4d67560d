"""What ends a command: one message and a status for every kind of error, as the libraries really raise it."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from srd import cli
from srd.base import failures, parallel
from srd.base.console import console
from srd.base.errors import RunError, UserError
from srd.base.failures import disk_is_full, explain, memory_is_full
from srd.base.plugins import import_plugin
from srd.base.text import visible
from tests.tiny import tiny_tokenizer

FULL = "/dev/full"  # every write to it finds the disk full
TABLE = pa.table({"id": ["a"]})


def write_text() -> None:
    with open(FULL, "w") as file:
        file.write("x" * 100_000)


def saved_by_rust() -> None:
    tiny_tokenizer().backend_tokenizer.save(FULL)


def written_by_arrow() -> None:
    with open(FULL, "wb") as file:  # by its name Arrow would remove it when it fails
        pq.write_table(TABLE, file)


def in_a_library() -> None:
    """The cause lies behind an error that does not speak of it."""
    try:
        write_text()
    except OSError as error:
        raise RuntimeError("could not save the checkpoint") from error


WRITERS: dict[str, Callable[[], Any]] = {
    "Python": write_text,
    "torch": lambda: torch.save({"a": torch.zeros(100_000)}, FULL),
    "torch, small": lambda: torch.save({"a": torch.zeros(1)}, FULL),
    "tokenizers": saved_by_rust,
    "parquet": written_by_arrow,
    "csv": lambda: pacsv.write_csv(TABLE, FULL),
    "a library": in_a_library,
}


def error_of(work: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - what it is is the question
        work()
    return caught.value


@pytest.mark.skipif(not os.path.exists(FULL), reason="Linux has it")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_known_whoever_writes(writer: str) -> None:
    error = error_of(WRITERS[writer])
    assert disk_is_full(error)
    status, message = explain(error)
    assert status == 1 and message.startswith("the disk is full (") and "Traceback" not in message


@pytest.mark.parametrize(
    "error",
    [
        safetensors.SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        OSError(errno.EFBIG, "File too large"),
    ],
    ids=["a library", "the system"],
)
def test_a_file_that_may_not_be_so_large(error: Exception) -> None:
    status, message = explain(error)
    assert status == 1 and message.startswith(
        "a file is larger than its file system, or the limit `ulimit -f`, allows ("
    )


@pytest.mark.parametrize(
    "error",
    [
        safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        safetensors.SafetensorError("Error while serializing: IoError(Os { code: 122, message: Disk quota exceeded })"),
        RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file data/0"),
        RuntimeError("basic_ios::clear: iostream error"),
        OSError(errno.EDQUOT, "quota"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_a_full_disk_in_other_words(error: Exception) -> None:
    assert disk_is_full(error) and explain(error)[0] == 1


def test_reading_damaged_weights_is_no_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    assert not disk_is_full(error_of(lambda: torch.load(path)))
    assert not disk_is_full(UserError("the disk is fine: no space left on device is only quoted"))


@pytest.mark.parametrize(
    ("error", "status", "parts"),
    [
        (UserError("wrong: value"), 2, ["wrong: value"]),
        (RunError("failed"), 1, ["failed"]),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, ["'/a/b'", "permission denied"]),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"/a"), 2, ["'/a'", "folder"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), 2, ["'/a/b'", "below"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), 2, ["'/a'", "no such file"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a"), 2, ["'/a'", "too long"]),
        (OSError(errno.ELOOP, "Too many levels", "/a"), 2, ["'/a'", "circle"]),
        (OSError(errno.EROFS, "Read-only", "/a"), 2, ["'/a'", "read-only"]),
        (OSError(errno.EIO, "Input/output error", "/a"), 1, ["machine", "Input/output error", "'/a'"]),
        (OSError(errno.EMFILE, "Too many open files"), 1, ["machine", "Too many open files"]),
        (MemoryError(), 1, ["out of memory", "micro_batch_size"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, ["CUDA out of memory"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, ["out of memory"]),
        (pa.ArrowMemoryError("malloc of size 99 failed"), 1, ["out of memory"]),
        (RecursionError("maximum recursion depth exceeded"), 1, ["bug in srd", "nested too deeply"]),
        (KeyError("rows"), 1, ["bug in srd", "KeyError: 'rows'"]),
        (Exception(), 1, ["bug in srd", "Exception"]),
        (SystemExit(0), 1, ["a library has ended the program by sys.exit(0)"]),
        (AssertionError("x\ny" * 5000), 1, ["bug in srd", "AssertionError: x"]),
        (ExceptionGroup("several", [ValueError("a"), KeyError("b")]), 1, ["bug in srd", "several"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_status_and_message(
    error: BaseException, status: int, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_place", tmp_path)
    found, message = explain(error)
    assert found == status
    for part in parts:
        assert part in message
    assert len(message) < 800
    assert (tmp_path / "error.txt").exists() == (
        "bug" in message or "machine has failed" in message or "sys.exit" in message
    )


def test_what_fails_in_a_plugin_is_called_that(tmp_path: Path) -> None:
    """With its file and line, also where it fails beneath; a call of ours that fails elsewhere is still ours."""
    plugin = tmp_path / "failing.py"
    plugin.write_text(
        "import json\n\ndef broken(rows):\n    return rows['x']\n\ndef beneath():\n    json.loads('{')\n"
        "\ndef leaving():\n    raise SystemExit(0)\n"
    )
    import_plugin(str(plugin))
    mine = next(module for name, module in sys.modules.items() if name.startswith("srd_plugin_failing_"))
    for call, line, words in (
        (lambda: mine.broken({}), 4, "has failed: KeyError: 'x'"),
        (mine.beneath, 7, "has failed: JSONDecodeError"),
        (mine.leaving, 10, "has ended the program by sys.exit(0)"),
    ):
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - whichever it is
            call()
        status, told = explain(caught.value)
        assert status == 1 and f"the plugin {plugin}, line {line}, {words}" in told
        assert "bug in srd" not in told and "raceback" in told


def test_memory_is_not_the_disk() -> None:
    assert memory_is_full(MemoryError()) and not disk_is_full(MemoryError())
    assert not memory_is_full(ValueError("out of memory"))  # somebody's text


@pytest.mark.parametrize("place", ["the run directory", "temporary files", "nowhere"])
def test_where_the_traceback_is(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very program, from its command to its exit status."""
    temporary, run = tmp_path / "tmp", tmp_path / "run"
    for folder in (temporary, run):
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary if place != "nowhere" else tmp_path / "gone"))
    monkeypatch.setattr(failures, "_place", run if place == "the run directory" else None)
    monkeypatch.setattr(console, "_width", 10_000)

    def app(**options: Any) -> None:
        raise LookupError("the \x1b[31mcause\nand pages of it")

    monkeypatch.setattr(cli, "app", app)
    with console.capture() as captured, pytest.raises(SystemExit) as stop:
        cli.main()
    told = captured.get()
    assert stop.value.code == 1
    assert told.startswith("error: this is a bug in srd: LookupError: the \\x1b[31mcause") and "Traceback" not in told
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.parent for path in files] == {"the run directory": [run], "temporary files": [temporary]}.get(
        place, []
    )
    for path in files:
        assert str(path) in told
        assert "in app" in path.read_text() and "LookupError" in path.read_text()
    assert parallel.stopped_by() is None


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("on_all", [True, False])
def test_what_all_processes_have_is_said_once(rank: str, on_all: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "OTHERS_WAIT", 0.0)
    monkeypatch.setattr(console, "quiet", False)
    error = UserError("not so")
    error.on_all = on_all
    with console.capture() as captured:
        assert cli._status(error) == 2
    said = {"0": "error: not so\n", "1": "process 1: error: not so\n"}[rank]
    assert captured.get() == ("" if on_all and rank == "1" else said)


def test_a_program_that_a_library_ends_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cli.COMPLETION, raising=False)
    with console.capture() as captured:
        assert cli._status(SystemExit(0)) == 1
    assert "before the work was done" in captured.get()
    monkeypatch.setenv(cli.COMPLETION, "complete_bash")
    assert cli._status(SystemExit(0)) == 0


def test_nothing_acts_on_the_terminal() -> None:
    text = "a\x1b[31mb\x07c\rd\u202ee\x00f\x9bg\u2066h\ud800"
    assert visible(text) == r"a\x1b[31mb\x07c\rd\u202ee\x00f\x9bg\u2066h\ud800"
    assert visible("ordinary: äöü 日本語 🙂\n\tנכון") == "ordinary: äöü 日本語 🙂\n\tנכון"
    with console.capture() as captured:
        console.print(f"[bold]{text}[/]", soft_wrap=True)
    assert not re.search("[\x07\x00\u202e\r]", captured.get())
