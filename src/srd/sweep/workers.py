"""Cells side by side: processes that each take the next cell, for a machine with a GPU or many cores.

Starting Python with torch takes seconds, so a process runs many cells. Each has a pipe of its own: one that is killed
leaves no other waiting. What two cells have in common is made by the one that comes first (`srd.base.locks.by_turns`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from srd.base.console import console, set_up_logging
from srd.base.files import write_sealed
from srd.base.text import duration
from srd.sweep.cells import Cell
from srd.sweep.one import RESULT, CellRunner

START = "spawn"  # how a process is made: a fork would share the GPU's state
LOGS = "logs"  # beside the cells: what each process prints
TIDYING = 5.0  # seconds that a process has to end once it is told to
REPORTS = 0.02  # share of the time that writing the tables between two cells may take


@dataclass
class Worker:
    """A process that runs cells.

    Attributes:
        process: The process.
        pipe: Takes cells, and gives how each has ended.
        cell: The one that it runs; None: it is idle.
        since: When that began.
    """

    process: Any
    pipe: Connection
    cell: Cell | None = None
    since: float = 0.0


@dataclass
class _Progress:
    """Tells how far a sweep is, and writes its tables now and then."""

    total: int
    tell: Callable[[], None]
    done: int = 0
    _last: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    def ended(self, worker: Worker, said: str) -> None:
        """Say that a cell has ended, and how."""
        assert worker.cell is not None
        self.done += 1
        took = duration(time.monotonic() - worker.since)
        console.print(f"{said} {self.done} of {self.total}: {worker.cell.title} [dim]({took})[/]", soft_wrap=True)
        if (began := time.monotonic()) - self._last > self._took / REPORTS:
            self.tell()
            self._last = time.monotonic()
            self._took = self._last - began


def run_side_by_side(cells: Sequence[Cell], runner: CellRunner, jobs: int, tell: Callable[[], None]) -> None:
    """Run cells, so many at a time, in their order.

    Args:
        cells: What is to be run, the most important first.
        runner: Runs one.
        jobs: Processes.
        tell: Called now and then when a cell has ended.
    """
    left, progress = list(cells), _Progress(len(cells), tell)
    jobs = min(jobs, len(left))
    console.print(f"{jobs} cells at a time; what each process says is in {runner.folder / LOGS}", soft_wrap=True)
    with _workers(runner, jobs) as (workers, start):
        for worker in workers:
            _give(worker, left)
        while busy := [worker for worker in workers if worker.cell is not None]:
            ready = wait([each for worker in busy for each in (worker.pipe, worker.process.sentinel)])
            for worker in busy:
                if worker.pipe in ready and (answer := _answer(worker)):
                    progress.ended(worker, answer)
                elif worker.process.sentinel in ready:
                    progress.ended(worker, _lost(worker, runner))
                    workers.remove(worker)
                    if not left:
                        continue
                    workers.append(worker := start())
                else:
                    continue
                _give(worker, left)


def _give(worker: Worker, left: list[Cell]) -> None:
    """Give a process its next cell, or let it end."""
    worker.cell = left.pop(0) if left else None
    worker.since = time.monotonic()
    with contextlib.suppress(OSError):  # it has ended: its sentinel says so
        worker.pipe.send(worker.cell)


def _answer(worker: Worker) -> str:
    """What a process says of its cell; nothing where it has ended in the middle of it."""
    try:
        return {"done": "[green]✓[/]", "before": "[green]✓[/] [dim](done before)[/]"}.get(
            worker.pipe.recv(), "[bold red]failed[/]"
        )
    except (EOFError, OSError):
        return ""


def _lost(worker: Worker, runner: CellRunner) -> str:
    """Keep that a cell's process was ended from outside."""
    worker.process.join()
    code = worker.process.exitcode
    reason = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with status {code}"
    why = f"its process was ended {reason}; if memory ran out, run fewer side by side (--jobs)"
    assert worker.cell is not None
    write_sealed(runner.place(worker.cell) / RESULT, {"state": "failed", "error": why})
    return f"[bold red]failed[/] ({why})"


@contextlib.contextmanager
def _workers(runner: CellRunner, jobs: int) -> Iterator[tuple[list[Worker], Callable[[], Worker]]]:
    """So many processes, and what starts another; all are ended with the block."""
    context: Any = multiprocessing.get_context(START)
    workers: list[Worker] = []
    started: list[Worker] = []
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def start() -> Worker:
        ours, theirs = context.Pipe()
        log = runner.folder / LOGS / f"{len(started) + 1}.txt"
        setting = Setting(runner, log, threads, _device(len(started)))
        process = context.Process(target=work, args=(theirs, setting), name=f"srd cells {len(started) + 1}")
        with _fewer_threads(threads):
            process.start()
        theirs.close()
        started.append(worker := Worker(process, ours))
        return worker

    try:
        workers += [start() for _ in range(jobs)]
        yield workers, start
    finally:
        _end(started)


@contextlib.contextmanager
def _fewer_threads(threads: int) -> Iterator[None]:
    """Let libraries in new processes take so many threads each, unless the user has said how many."""
    ours = "OMP_NUM_THREADS" not in os.environ
    if ours:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if ours:
            del os.environ["OMP_NUM_THREADS"]


def _device(number: int) -> str | None:
    """The GPU of a process, where there are several: one after the other."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = given.split(",") if given else [str(each) for each in range(torch.cuda.device_count())]
    return devices[number % len(devices)] if len(devices) > 1 else None


def _end(workers: Sequence[Worker]) -> None:
    """End processes: idle ones by closing their pipe, the others at once, as a killed cell can be continued."""
    for worker in workers:
        if worker.cell is not None:
            worker.process.terminate()
        worker.pipe.close()
    until = time.monotonic() + TIDYING
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


# ------------------------------------------------------------------------------------------------ in the other process


@dataclass(frozen=True)
class Setting:
    """What a process is told at its start.

    Attributes:
        runner: Runs a cell.
        log: Where what it prints goes.
        threads: That it may use.
        device: The GPU that it may see; None: all.
    """

    runner: CellRunner
    log: Path
    threads: int
    device: str | None = None


def work(pipe: Connection, setting: Setting) -> None:
    """Run the cells that come through a pipe until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that has started this one, which ends it
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if setting.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = setting.device
    setting.log.parent.mkdir(parents=True, exist_ok=True)
    with open(setting.log, "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    torch.set_num_threads(setting.threads)
    set_up_logging()
    with contextlib.suppress(EOFError):
        while (cell := pipe.recv()) is not None:
            console.rule(cell.title, align="left", style="dim")
            done = setting.runner.run(cell)
            pipe.send(setting.runner.state(cell) if done else "before")


def _end_with(sentinel: int) -> None:
    """End this process where the one that has started it is gone."""
    wait([sentinel])
    os._exit(1)
