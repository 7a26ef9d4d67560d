"""Cells side by side: in their order, whatever becomes of a process; and the same bytes as one after the other."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from srd.base.files import read_sealed, write_sealed
from srd.base.locks import by_turns
from srd.sweep import workers
from srd.sweep.cells import Cell
from srd.sweep.one import RESULT, CellRunner
from srd.sweep.runner import Sweep
from srd.sweep.workers import run_side_by_side
from tests.sweep.conftest import KD_AND_SRD, write_sweep


@dataclass(frozen=True)
class Fake(CellRunner):
    """Notes who ran a cell; what a cell's name says happens."""

    def run(self, cell: Cell) -> bool:
        place = self.place(cell)
        place.mkdir(parents=True)
        with by_turns(self.folder / "turns"), open(self.folder / "order.txt", "a") as file:
            file.write(f"{cell.label}\n")
        print(f"{cell.label} speaks")
        if "killed" in cell.label:
            os.kill(os.getpid(), signal.SIGKILL)
        if "endless" in cell.label:
            time.sleep(600)
        write_sealed(place / RESULT, {"state": "failed" if "wrong" in cell.label else "done"})
        return "before" not in cell.label


def cells(*labels: str) -> list[Cell]:
    return [Cell(label, {}, {}, {}) for label in labels]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "START", "fork")  # a fresh Python would import torch first


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_cell_is_run_once_whatever_becomes_of_its_process(
    tmp_path: Path, jobs: int, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = ["a", "killed 1", "wrong", "killed 2", "before", "z"]
    told: list[int] = []
    run_side_by_side(cells(*labels), Fake(tmp_path), jobs, lambda: told.append(1))
    assert sorted((tmp_path / "order.txt").read_text().splitlines()) == sorted(labels)
    states = {cell.label: read_sealed(Fake(tmp_path).place(cell) / RESULT) for cell in cells(*labels)}
    assert [label for label in labels if states[label]["state"] == "done"] == ["a", "before", "z"]
    assert "was ended by SIGKILL; if memory ran out" in states["killed 1"]["error"]
    said = capfd.readouterr().err
    assert said.count("of 6: ") == 6
    assert "done before" in said
    assert told
    logs = sorted((tmp_path / workers.LOGS).iterdir())
    # a log for each worker: those of the beginning, and one in the place of each that was killed while cells were left
    assert jobs + (2 if jobs == 1 else 0) <= len(logs) <= jobs + 2
    assert "".join(log.read_text() for log in logs).count("speaks") == 6


@pytest.mark.usefixtures("forks")
def test_one_process_keeps_to_the_order(tmp_path: Path) -> None:
    run_side_by_side(cells("c", "a", "b"), Fake(tmp_path), 1, lambda: None)
    assert (tmp_path / "order.txt").read_text().split() == ["c", "a", "b"]


@pytest.mark.usefixtures("forks")
def test_all_processes_end_with_the_command(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(cells("endless 1", "a", "endless 2", "b"), Fake(tmp_path), 3, stop)
    assert time.monotonic() - began < 20
    assert not multiprocessing_children()


def multiprocessing_children() -> list[object]:
    import multiprocessing

    return list(multiprocessing.active_children())


@pytest.mark.slow
def test_the_same_bytes_as_one_after_the_other(tmp_path: Path, recipe_file: Path) -> None:
    path = write_sweep(tmp_path, recipe_file, grid={"training.seed": [0, 1]}, cells=KD_AND_SRD, reference="kd")
    sweeps = {jobs: Sweep(path, tmp_path / str(jobs)) for jobs in (1, 2)}
    for jobs, sweep in sweeps.items():
        assert [outcome.state for outcome in sweep.run(jobs)] == ["done"] * 4
    for name in (
        "evaluation/metrics.json",
        "evaluation/predictions/student.test.10.jsonl",
        "reflection/scores.parquet",
    ):
        for cell in sweeps[1].cells:
            alone, beside = ((sweep.folder / "cells" / cell.folder / name) for sweep in sweeps.values())
            assert alone.exists() == beside.exists()
            assert not alone.exists() or alone.read_bytes() == beside.read_bytes()
    made = [len(list((sweep.folder / "shared").glob("[a-z]*-*"))) for sweep in sweeps.values()]
    assert made[0] == made[1] > 0
