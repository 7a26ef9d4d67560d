"""Two processes of which one is killed, a port that is taken, too few examples: a message, an end, and no loss."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from srd.base import parallel
from tests.run.test_parallel import ROOT, forked, launch, worker
from tests.run.test_resume import SHORT, assert_same
from tests.runs import TinyRun, in_turn

PATIENCE = 60  # seconds from a kill to the end of all
pytestmark = pytest.mark.xdist_group("parallel faults")  # one worker makes what all of these compare with


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """What two processes make that nobody kills."""
    run = TinyRun(tmp_path_factory.mktemp("faults"))
    run.set(training=SHORT, generation__batch_size=4, data__train_limit=16)
    worker("line", "distill", run.write_recipe(), "--run-dir", run.run_dir)
    return run


@pytest.mark.slow  # the launcher starts two programs; that one notices the other's end by itself is tried below
@pytest.mark.parametrize(("place", "call", "process"), [("reflection", 2, 1), ("cache", 2, 0)])
def test_a_killed_process_under_torchrun(
    place: str, call: int, process: int, undisturbed: TinyRun, tmp_path: Path
) -> None:
    """The launcher stops the other one, which may be busy with its own work; the same command then ends as it would."""
    recipe, folder = undisturbed.write_recipe(), tmp_path / "run"
    killed = launch(ROOT / "tests" / "parallel_worker.py", "kill", place, call, process, recipe, folder)
    assert time.time() - (tmp_path / "run.killed").stat().st_mtime < PATIENCE
    assert killed.returncode != 0
    assert "Signal 9 (SIGKILL)" in killed.stderr
    survivor = r"process 1: (.*\n)*" if process == 0 else ""
    lost = "stopped by the launcher" if place == "reflection" else "is lost|stopped by the launcher"
    assert re.search(rf"{survivor}.*({lost}).*\n?.*The same command continues", killed.stderr), killed.stderr
    assert "[rank" not in killed.stderr, "a traceback"
    statuses, said = forked(tmp_path, "line", "run", recipe, "--run-dir", folder)
    assert statuses == [0, 0], said
    assert_same(folder, undisturbed.run_dir)
    assert (folder / "report" / "index.html").exists()


@pytest.mark.parametrize("process", in_turn([0, 1], 1))
def test_a_killed_process_is_missed_by_the_other(process: int, undisturbed: TinyRun, tmp_path: Path) -> None:
    """Without a launcher: the survivor notices by itself."""
    recipe, folder = undisturbed.write_recipe(), tmp_path / "run"
    statuses, said = forked(tmp_path, "kill", "training", 4, process, recipe, folder)
    assert time.time() - (tmp_path / "run.killed").stat().st_mtime < PATIENCE
    assert statuses[process] == -9 and statuses[1 - process] == 1, said
    assert re.search(r"connection to another process is lost .*The same command continues", said), said
    if process == 0:  # what both leave is the same
        worker("line", "distill", recipe, "--run-dir", folder)
        assert_same(folder, undisturbed.run_dir)


@pytest.mark.slow
def test_fewer_examples_than_processes(tmp_path: Path) -> None:
    recipe = TinyRun(tmp_path).set(data__train_limit=1).write_recipe()
    statuses, said = forked(tmp_path, "line", "run", recipe, "--run-dir", tmp_path / "run")
    assert statuses == [2, 2]
    assert "2 processes are more than the 1 training examples. Start fewer" in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.parametrize(("process", "reason"), [(0, "address already in use"), (1, "no answer in 2 seconds")])
def test_a_port_in_use(process: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process cannot listen there; another one is connected with a program that does not answer."""
    monkeypatch.setattr(parallel, "MEETING", 2)
    recipe = TinyRun(tmp_path).write_recipe()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = ("line", "run", recipe, "--run-dir", tmp_path / "run")
        statuses, said = forked(tmp_path, *command, numbers=(process,), port=port)
    assert statuses == [2]
    assert f"error: process {process} cannot meet the others at 127.0.0.1:{port}" in said
    assert reason in said
    assert "--master-port" in said
    assert "Traceback" not in said
