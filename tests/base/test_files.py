"""Files are whole or not there, and a step is redone only when what it was made from has changed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srd.base import locks
from srd.base.errors import RunError, UserError, nearest
from srd.base.files import (
    atomic_folder,
    atomic_write,
    content_of,
    digest_of,
    file_digest,
    fingerprint,
    is_as_noted,
    read_json,
    remove,
    replace,
    state_of,
    write_json,
)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write_half(target: Path, error: BaseException) -> None:
    """Fail within a write."""
    with atomic_write(target) as partial:
        partial.write_text("half")
        raise error


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_write(target) as partial:
        partial.write_text("half")
        assert not target.exists() and partial.parent == target.parent
        partial.write_text("whole")
    assert target.read_text() == "whole" and listing(tmp_path) == ["new", "new/file.txt"]


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for names in (["config.json", "merges.txt"], ["model.safetensors"]):
        with atomic_folder(target) as partial:
            partial.mkdir()
            for name in names:
                (partial / name).write_text(name)
    assert listing(tmp_path) == ["model", "model/model.safetensors"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("before")
    with pytest.raises(error):
        write_half(target, error())
    assert target.read_text() == "before" and listing(tmp_path) == ["file.txt"]


def partial_name(name: str, process: int, host: str | None = None) -> str:
    return f".partial-{name}-{host or socket.gethostname()}-{process}-0123abcd"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (tmp_path / partial_name("a.txt", killed.pid)).write_text("torn")
    folder = tmp_path / f"{partial_name('a.txt', killed.pid)}4"
    folder.mkdir()
    (folder / "x").write_text("torn")
    kept = [
        partial_name("b.txt", killed.pid),  # of another file
        partial_name("a.txt", os.getppid()),  # of a process that lives and may still be writing
        partial_name("a.txt", killed.pid, "elsewhere"),  # of another machine, whose processes cannot be asked
    ]
    for name in kept:
        (tmp_path / name).write_text("being written")
    with atomic_write(tmp_path / "a.txt") as partial:
        partial.write_text("a")
    assert listing(tmp_path) == sorted([*kept, "a.txt"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_is_free_and_keeps_the_rest(number: int, tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("before")
    with pytest.raises(RunError, match=r"disk is full: could not write .*file\.txt \([\d.]+ [MG]B free\).*to continue"):
        write_half(target, OSError(number, "no space"))
    assert target.read_text() == "before" and listing(tmp_path) == ["file.txt"]


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        write_half(tmp_path / "a", PermissionError(errno.EACCES, "no"))


@pytest.mark.parametrize(
    ("library", "number"),
    [
        (lambda file: PermissionError(errno.EACCES, "Permission denied", str(file)), errno.EACCES),
        (lambda file: OSError(errno.EROFS, "Read-only file system", os.fsencode(file / "weights")), errno.EROFS),
        (lambda file: OSError(f"Failed to open local file '{file}'. Detail: [errno 13] Permission"), errno.EACCES),
        (lambda file: RuntimeError("I/O error: Read-only file system (os error 30)"), errno.EROFS),
    ],
    ids=["python", "a folder's file", "arrow", "rust"],
)
def test_a_place_that_takes_nothing_is_named_as_the_user_knows_it(library: Any, number: int, tmp_path: Path) -> None:
    """And not by the name that a file has until it is whole."""
    with pytest.raises(OSError, match=r"file\.txt") as caught, atomic_write(tmp_path / "file.txt") as partial:
        raise library(partial)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "file.txt"))
    assert listing(tmp_path) == []
    others = [
        FileNotFoundError(errno.ENOENT, "No such file", "/other"), RuntimeError("No such file (os error 2)"),
        OSError(errno.EROFS, "Read-only file system", "/other.lock"),
    ]  # fmt: skip
    for other in others:  # what is read, or locked, while something is written
        with pytest.raises(type(other)) as caught_other, atomic_write(tmp_path / "file.txt"):
            raise other
        assert caught_other.value is other


def test_what_cannot_be_tidied_up_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only disk not even a file that is not there can be removed."""

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match=r"file\.txt") as caught, atomic_write(tmp_path / "file.txt") as partial:
        refuse(partial)
    assert caught.value.filename == str(tmp_path / "file.txt")


def test_replace_and_remove(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").touch()
    (tmp_path / "new").write_text("now a file")
    replace(tmp_path / "new", tmp_path / "old")
    assert listing(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "now a file"
    remove(tmp_path / "old")
    remove(tmp_path / "old")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "link").symlink_to(outside)
    remove(tmp_path / "link")
    assert listing(tmp_path) == ["outside"]


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"text": "blå 🐋", "numbers": [1, 2.5], "nothing": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value and "🐋" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "b.json") is None and read_json(tmp_path / "b.json", {}) == {}


def test_fingerprints() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    different = [
        fingerprint(*parts)
        for parts in (("a", "b"), ("ab",), (["a", "b"],), ("a", "b", None), (1,), (1.5,), ("1",), (True,))
    ]
    assert len(set(different)) == len(different) and all(len(item) == 32 for item in different)


def test_file_digest(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x" * 5_000_000)
    two.write_bytes(b"x" * 4_999_999 + b"y")
    assert file_digest(one) != file_digest(two)
    two.write_bytes(one.read_bytes())
    assert file_digest(one) == file_digest(two)


def test_a_file_is_hashed_again_only_where_it_may_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    first = digest_of(path)
    state = path.stat()
    path.write_text("two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # the same size and time of modification
    assert digest_of(path) == file_digest(path) != first


def test_a_file_is_as_it_was_noted_by_its_content_where_only_its_times_differ(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    noted = state_of(path)
    assert is_as_noted(path, noted)
    os.utime(path, ns=(0, 0))
    assert is_as_noted(path, noted) and state_of(path) != noted
    for other in ("two", "three"):
        path.write_text(other)
        assert not is_as_noted(path, noted)
    path.unlink()
    assert not is_as_noted(path, noted)


def test_content_of_files_folders_and_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_text("a")
    (folder / "deep" / "b.jsonl").write_text("b")
    (folder / ".hidden").write_text("c")
    content = content_of(folder)
    assert list(content) == ["a.jsonl", "deep/b.jsonl"] and content["a.jsonl"] == content_of(folder / "a.jsonl")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert content_of(tmp_path / "elsewhere") == content
    (folder / "deep" / "b.jsonl").write_text("B")
    assert content_of(folder) != content
    assert content_of(tmp_path / "nothing") is None


def test_links_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    """Two of them, each way to follow doubling at every level, would take for ever."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (data / "a.jsonl").write_text("a")
    (elsewhere / "b.jsonl").write_text("b")
    (data / "deep" / "up").symlink_to(data)
    (data / "deep" / "same").symlink_to(data / "deep")
    (data / "other").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(data)
    assert list(content_of(data)) == ["a.jsonl", "other/b.jsonl"]


@pytest.mark.parametrize("kind", ["folder", "link to a file", "link to nothing"])
def test_a_folder_or_a_link_is_not_replaced_by_a_file(tmp_path: Path, kind: str) -> None:
    target, other = tmp_path / "out.parquet", tmp_path / "other"
    if kind == "folder":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        other.write_text("mine") if kind == "link to a file" else None
        target.symlink_to(other)
    before = listing(tmp_path)
    with (
        pytest.raises(UserError, match=r"out\.parquet is a (folder|link), which is not replaced"),
        atomic_write(target),
    ):
        raise AssertionError("nothing may be written")
    assert listing(tmp_path) == before
    assert kind != "folder" or (target / "mine").read_text() == "mine"


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(UserError, match="model is a file"), atomic_folder(tmp_path / "model"):
        raise AssertionError("nothing may be written")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_in_any_librarys_words(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"disk is full: could not write .*file\.txt"):
        write_half(tmp_path / "file.txt", error)


def test_errors_name_what_is_near() -> None:
    assert nearest("epoch", ["epochs", "batch_size"]) == "did you mean 'epochs'? Known: batch_size, epochs"
    assert nearest("xyz", ["b", "a"]) == "Known: a, b"
    assert nearest("CE", ["ce", "eos"]) == "did you mean 'ce'? Known: ce, eos"
    assert nearest("kd", ["KD", "SFT"]) == "did you mean 'KD'? Known: KD, SFT"
    assert issubclass(UserError, ValueError) and issubclass(RunError, RuntimeError)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_noted_in_is_to_be_copied(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run on a read-only disk: another path is no remedy for who wants this one."""

    def refuse(path: Any, mode: str) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(locks, "open", refuse, raising=False)
    with pytest.raises(UserError, match=r"cannot be written to .* Copy it to where you may write, and name the copy"):
        locks.lock(tmp_path / ".lock", "--run-dir")
    with pytest.raises(UserError, match=r"cannot be written to .* Choose another folder"), locks.held(tmp_path, "-o"):
        pass  # there is nothing to copy in a folder for what is to be written
