"""Files are whole or not there, and a step is redone only when what it was made from has changed."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from srd.artifacts import Manifest, atomic_write, file_digest, fingerprint, read_json, remove, replace, write_json
from srd.errors import RunError, UserError, nearest


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
    for names in (["a", "b"], ["c"]):
        with atomic_write(target) as partial:
            partial.mkdir()
            for name in names:
                (partial / name).write_text(name)
    assert listing(tmp_path) == ["model", "model/c"]


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
    with pytest.raises(RunError, match=r"disk is full: could not write .*file\.txt \(\d+ MB free\).*--run-dir"):
        write_half(target, OSError(number, "no space"))
    assert target.read_text() == "before" and listing(tmp_path) == ["file.txt"]


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        write_half(tmp_path / "a", PermissionError(errno.EACCES, "no"))


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


def test_a_step_is_fresh_with_the_same_inputs_and_all_its_files(tmp_path: Path) -> None:
    output = tmp_path / "scores.parquet"
    manifest = Manifest(tmp_path)
    assert not manifest.fresh("reflection", "abc", [output])
    manifest.begin("reflection", "abc")
    output.touch()
    assert not Manifest(tmp_path).fresh("reflection", "abc", [output])
    manifest.finish("reflection", {"examples": 3})
    again = Manifest(tmp_path)
    assert again.fresh("reflection", "abc", [output])
    assert not again.fresh("reflection", "other", [output])
    assert not again.fresh("ranking", "abc", [output])
    assert again.steps["reflection"]["summary"] == {"examples": 3}
    output.unlink()
    assert not again.fresh("reflection", "abc", [output])


def test_an_interrupted_step_keeps_its_time_and_another_starts_anew(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin("training", "abc")
    manifest.spent("training", 2.5)
    manifest.save()
    again = Manifest(tmp_path)
    again.begin("training", "abc")
    again.spent("training", 1.5)
    assert again.steps["training"]["seconds"] == 4.0
    again.begin("training", "changed")
    assert again.steps["training"] == {"fingerprint": "changed", "seconds": 0.0}
    again.finish("training", {})
    again.begin("training", "changed")  # made anew although it was done: its files are gone
    assert again.steps["training"] == {"fingerprint": "changed", "seconds": 0.0}
    assert json.loads((tmp_path / "manifest.json").read_text())["steps"] == again.steps


def test_errors_name_what_is_near() -> None:
    assert nearest("epoch", ["epochs", "batch_size"]) == "did you mean 'epochs'? Known: batch_size, epochs"
    assert nearest("xyz", ["b", "a"]) == "Known: a, b"
    assert issubclass(UserError, ValueError) and issubclass(RunError, RuntimeError)
