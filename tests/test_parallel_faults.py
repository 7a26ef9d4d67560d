"""Two processes of which one is killed, a port that is taken, too few examples: a message, an end, and no loss."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TinyRun
from tests.test_parallel import ROOT, launch, worker
from tests.test_resume import SRD, assert_same

PATIENCE = 60  # seconds from a kill to the end of all


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """What two processes make that nobody kills."""
    run = TinyRun(tmp_path_factory.mktemp("faults"))
    run.set(training=SRD, generation__batch_size=4, evaluation__seeds=[1])
    worker("run", run.write_recipe(), run.run_dir)
    return run


@pytest.mark.parametrize(("place", "call", "process"), [("reflection", 2, 1), ("cache", 2, 0), ("training", 5, 1)])
def test_a_killed_process(place: str, call: int, process: int, undisturbed: TinyRun, tmp_path: Path) -> None:
    recipe, folder = undisturbed.write_recipe(), tmp_path / "run"
    killed = launch(ROOT / "tests" / "parallel_worker.py", "kill", place, call, process, recipe, folder)
    assert time.time() - (tmp_path / "run.killed").stat().st_mtime < PATIENCE
    assert killed.returncode != 0
    assert "Signal 9 (SIGKILL)" in killed.stderr
    survivor = r"process 1: (.*\n)*" if process == 0 else ""
    lost = "stopped by the launcher" if place == "reflection" else "is lost|stopped by the launcher"
    assert re.search(rf"{survivor}.*({lost}).*\n?.*The same command continues", killed.stderr), killed.stderr
    assert "[rank" not in killed.stderr, "a traceback"
    worker("run", recipe, folder)
    assert_same(folder, undisturbed.run_dir)


def test_fewer_examples_than_processes(tmp_path: Path) -> None:
    recipe = TinyRun(tmp_path).set(data__train_limit=1).write_recipe()
    done = launch("-m", "srd", "run", recipe, "--run-dir", tmp_path / "run")
    assert done.stderr.count("2 processes are more than the 1 training examples") == 1
    assert "exitcode  : 2" in done.stderr
    assert "[rank" not in done.stderr, "a traceback"


@pytest.mark.parametrize(("process", "reason"), [(0, "address already in use"), (1, "no answer in 5 seconds")])
def test_a_port_in_use(process: int, reason: str, tmp_path: Path) -> None:
    """Torchrun says it; a process that was started without a launcher says it itself.

    The main process cannot listen there; another one is connected with a program that does not answer.
    """
    recipe = TinyRun(tmp_path).write_recipe()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if process == 0:
            launched = launch("-m", "srd", "run", recipe, "--run-dir", tmp_path / "run", port=port)
            assert launched.returncode != 0
            assert re.search(rf"port: {port}.*address already in use", launched.stderr)
        started = {"RANK": f"{process}", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        impatient = "from srd import cli; from srd.base import parallel; parallel.MEETING = 5; cli.main()"
        alone = subprocess.run(
            [sys.executable, "-c", impatient, "run", str(recipe), "--run-dir", str(tmp_path / "run")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), **started,
                 "MASTER_PORT": str(port)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert alone.returncode == 2
    assert f"error: process {process} cannot meet the others at 127.0.0.1:{port}" in alone.stderr
    assert reason in alone.stderr
    assert "--master-port" in alone.stderr
    assert "Traceback" not in alone.stderr
