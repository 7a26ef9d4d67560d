"""What a step is, and how one is done: kept where its files are still those that it wrote, else made."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.markup import escape

from srd.base import parallel
from srd.base.console import console
from srd.base.files import fingerprint
from srd.base.locks import by_turns
from srd.base.text import duration
from srd.run.context import Clock, Run
from srd.run.outline.order import Outline

Summary = dict[str, Any]  # numbers for the report: what a step did


class Step(Outline):
    """A step of a run. Its result is decided by the steps it comes after and by its other inputs.

    Attributes:
        shares: Whether other runs of a sweep may take its files.
    """

    shares = True

    def inputs(self, run: Run) -> list[Any]:
        """What else decides the result (JSON-like). The main process alone is asked: it must not wait for others."""
        return []

    def outputs(self, run: Run) -> list[Path]:
        """The files and folders that it writes, its own alone."""
        return []

    def scratch(self, run: Run) -> list[Path]:
        """Unfinished work, which is worth keeping only while the inputs stay the same."""
        return []

    def needed(self, run: Run) -> list[Path]:
        """Files that it writes where others may write too (a shared cache, answers): checked, never removed here."""
        return []

    def borrowed(self, run: Run) -> list[Path]:
        """Files that it writes into the folders of steps before it, which then answer for them no longer."""
        return []

    def turns(self, run: Run, key: str) -> list[str]:
        """What the runs of a sweep that work side by side make one at a time: names of files to lock, sorted."""
        return [f"{self.name.replace('/', '-')}-{key}"] if self.shares else []

    def is_idle(self, run: Run) -> bool:
        """Whether there turns out to be nothing to do."""
        return False

    def spoilt(self, run: Run, damaged: list[Path]) -> list[Path]:
        """What to remove before damaged files are made again: all of an output that is damaged in part."""
        roots = [root for root in self.outputs(run) if any(file.is_relative_to(root) for file in damaged)]
        return [*roots, *(file for file in damaged if not any(file.is_relative_to(root) for root in roots))]

    def work_out(self, run: Run) -> None:
        """What comes before the last result goes. Here a step refuses what is the user's to mend, and all stays."""

    def make(self, run: Run) -> Summary:
        """Load, compute, save."""
        raise NotImplementedError

    def told(self, run: Run, summary: Summary) -> str:
        """What it came to, for the screen: words without a full stop, or none."""
        return ""

    def open(self, run: Run) -> None:
        """What every command does once the step is done."""


def key_of(run: Run, step: Step, inputs: list[Any] | None = None) -> str:
    """What stands for all that decides a step's result, the steps before it having theirs; of other ``inputs``, too."""
    inputs = step.inputs(run) if inputs is None else inputs
    return fingerprint(step.name, [run.keys.get(name) for name in step.after(run.recipe)], *inputs)


def do(run: Run, step: Step) -> None:
    """Do a step unless what it wrote is still there, made from the same inputs. ``run.keys`` gets its fingerprint."""
    if parallel.on_main(lambda: step.is_idle(run)):
        return
    key = parallel.on_main(lambda: key_of(run, step))  # files are hashed by one process
    kept = _is_kept(run, step, key)
    if not kept:
        parallel.on_main(lambda: run.note(over=False))
        with _by_turns(run, step, key):
            if not _is_taken(run, step, key):
                _make(run, step, key)
    parallel.on_main(lambda: run.manifest.tidy(step.name, step.scratch(run)))
    run.kept.append((step.name, step.after(run.recipe)))
    if not kept:
        parallel.on_main(run.settle)
    run.keys[step.name] = key
    step.open(run)


@contextlib.contextmanager
def _by_turns(run: Run, step: Step, key: str) -> Iterator[None]:
    """Wait while another run of a sweep makes the same: then it can be taken."""
    with contextlib.ExitStack() as stack:
        if run.shared is not None and parallel.is_main():
            for name in step.turns(run, key):
                stack.enter_context(by_turns(run.shared.folder / ".turns" / name))
        yield


def _is_kept(run: Run, step: Step, key: str) -> bool:
    """Whether a step is done already; what is damaged of it is named and removed."""
    manifest, outputs = run.manifest, step.outputs(run)

    def look() -> list[str] | None:
        if not manifest.finished(step.name, key):
            return None
        if not all(manifest.has_written(step.name, path) for path in step.needed(run)):  # it is wanted elsewhere now
            return None
        manifest.bring(step.name, [*outputs, *step.scratch(run)])
        damaged = manifest.damaged(step.name)
        manifest.clear(step.name, step.spoilt(run, damaged) if damaged else [])
        return [str(path.relative_to(run.folder)) if path.is_relative_to(run.folder) else str(path) for path in damaged]

    damaged = parallel.on_main(look)
    if damaged == []:
        console.print(f"[green]✓[/] {run.called(step.name)} [dim](kept: nothing it depends on has changed)[/]")
    elif damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        console.print(
            f"[yellow]![/] {run.called(step.name)}: {', '.join(damaged[:3])}{more}: missing, or not what this step "
            "wrote. It is made again.", soft_wrap=True,
        )  # fmt: skip
    return damaged == []


def _is_taken(run: Run, step: Step, key: str) -> bool:
    """Take a step that another run has made from the same inputs, if there is one."""
    shared = run.shared
    if shared is None or not step.shares:
        return False
    entry = parallel.on_main(lambda: shared.entry(step.name, key))
    if entry is None:
        return False
    if parallel.is_main():
        places = _clear_the_way(run, step, key)
        run.manifest.begin(step.name, key, places)
        shared.take(step.name, key, step.outputs(run))
        run.manifest.steps[step.name].update(seconds=entry["seconds"], shared=True)
        run.manifest.finish(step.name, entry["summary"], step.outputs(run), step.needed(run), step.scratch(run))
    parallel.barrier()
    console.print(f"[green]✓[/] {run.called(step.name)} [dim](shared: another run has made it)[/]")
    return True


def _fetch_unfinished(run: Run, step: Step, key: str) -> None:
    """Bring the unfinished work of a step back from where another step has put it aside."""
    places = [*step.outputs(run), *step.scratch(run)]
    if run.manifest.interrupted(step.name, key) and len(run.manifest.places(step.name)) == len(places):
        run.manifest.bring(step.name, places)


def _clear_the_way(run: Run, step: Step, key: str) -> list[Path]:
    """Remove what the step wrote from other inputs, and put aside what other steps wrote in its places."""
    manifest, places = run.manifest, [*step.outputs(run), *step.scratch(run)]
    if not manifest.interrupted(step.name, key) and not manifest.finished(step.name, key):
        manifest.clear(step.name, manifest.places(step.name))
    manifest.make_room(step.name, places)
    run.settle()
    return places


def _make(run: Run, step: Step, key: str) -> None:
    """Make a step, keep the time it takes, and note what it wrote."""
    manifest = run.manifest
    run.step = run.called(step.name)
    place = run.forecast.place(run.step) if run.forecast else ""
    console.print(f"[bold]• {run.step}[/]" + (f" [dim]{place}[/]" if place else ""))

    def spend(seconds: float) -> None:
        if parallel.is_main():
            manifest.spent(step.name, seconds)
            manifest.save()

    clock = Clock(spend)
    step.work_out(run)
    parallel.on_main(lambda: _fetch_unfinished(run, step, key))
    parallel.on_main(lambda: manifest.begin(step.name, key, _clear_the_way(run, step, key), step.borrowed(run)))
    run.clock = clock
    try:
        summary = step.make(run)
        rest = run.clock.rest()
    finally:
        run.clock = None
    _give_memory_back()
    if parallel.is_main():
        manifest.spent(step.name, rest)
        manifest.finish(step.name, summary, step.outputs(run), step.needed(run), step.scratch(run))
        if run.shared is not None and step.shares:
            run.shared.give(step.name, key, manifest.steps[step.name], step.outputs(run))
    parallel.barrier()
    if parallel.is_main():
        _tell(run, step, summary)


def _tell(run: Run, step: Step, summary: Summary) -> None:
    """Say that a step is done, how long it took and what it came to."""
    seconds = run.manifest.steps[step.name]["seconds"]
    if run.forecast:
        run.forecast.seconds[run.called(step.name)] = seconds
    told = f"{duration(seconds)}: {step.told(run, summary)}".rstrip(": ") + "."
    console.print(f"[green]✓[/] {run.called(step.name)} [dim]in {escape(told)}[/]", soft_wrap=True)


def _give_memory_back() -> None:
    """Return what was freed to the system: of the import of a million rows the allocators would keep 0.6 GB."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
