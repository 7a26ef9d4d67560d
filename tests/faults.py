"""Faults on order: a process that dies, a disk that is full, at any write of a run.

`srd.base.files.seam` is called three times at every file that is written: before it is begun, when it is whole under
its partial name, and when it has its own. A run that is started again and again, each time failing at the first place
where none has failed before, goes through every place there is.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from srd.base import files
from srd.base.errors import RunError
from srd.base.files import read_json

Place = tuple[str, str]


class Places:
    """Lets a fault happen at each place once.

    Args:
        folder: The run directory, in which places are named.
        moments: Which of begin, replace and done.
        part: Which places, by their names, of how many parts: ``(0, 2)`` is one half.
    """

    def __init__(
        self, folder: Path, moments: tuple[str, ...] = ("begin", "replace", "done"), part: tuple[int, int] = (0, 1)
    ) -> None:
        self.part = part
        self.folder = folder
        self.moments = moments
        self.seen: set[Place] = set()
        self.wanted: Callable[[Place], bool] = lambda place: True

    @contextmanager
    def failing(self, fault: Callable[[Place], None]) -> Iterator[None]:
        """Call ``fault`` at the first place that is new."""
        hit: list[Place] = []

        def seam(moment: str, path: Path) -> None:
            place = self._name(path), moment
            here = zlib.crc32(place[0].encode()) % self.part[1] == self.part[0]
            if here and self.wanted(place) and moment in self.moments and place not in self.seen and not hit:
                hit.append(place)
                fault(place)

        before, files.seam = files.seam, seam
        try:
            yield
        finally:
            files.seam = before
            self.seen.update(hit)

    @contextmanager
    def noted(self) -> Iterator[list[Place]]:
        """The places that a work without faults comes by, in order, each once."""
        passed: dict[Place, None] = {}

        def seam(moment: str, path: Path) -> None:
            if moment in self.moments:
                passed[self._name(path), moment] = None

        listed: list[Place] = []
        before, files.seam = files.seam, seam
        try:
            yield listed
        finally:
            files.seam = before
            listed += passed

    def _name(self, path: Path) -> str:
        name = str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else path.name
        name = re.sub(r"\.partial-(.+?)-[^-/]+-\d+-[0-9a-f]{8}", r".partial-\1", name)  # the rest is another each time
        if name.endswith("manifest.json"):  # written many times: once for every state of the steps
            steps = (read_json(self.folder / "manifest.json") or {}).get("steps", {})
            name += f" {[(step, 'finished' in entry) for step, entry in steps.items()]}"
        return name


def in_a_process_of_its_own(work: Callable[[], object]) -> tuple[int, str]:
    """Do something in a forked process.

    Returns:
        Its exit status (minus the signal, if one killed it) and the traceback of an exception.
    """
    return ended(*begun(work))


def begun(work: Callable[[], object]) -> tuple[int, int]:
    """Begin something in a forked process; its number and where to read what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 0
        try:
            work()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4000:])
            status = 1
        finally:
            os._exit(status)
    os.close(writing)
    return child, reading


def ended(child: int, reading: int) -> tuple[int, str]:
    """Wait for a forked process."""
    with open(reading, encoding="utf-8") as file:
        said = file.read()
    _, state = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(state), said


def kill_at_every_place(work: Callable[[], object], places: Places, most: int = 400) -> int:
    """Start ``work`` until it ends, killed by SIGKILL at every new place; how often it was killed."""
    note = places.folder.parent / f"{places.folder.name}.killed-at"

    def die(place: Place) -> None:
        note.write_text("\t".join(place), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)

    def attempt() -> None:
        with places.failing(die):
            work()

    for count in range(most):
        status, said = in_a_process_of_its_own(attempt)
        if status == 0:
            return count
        assert status == -signal.SIGKILL, said
        name, moment = note.read_text(encoding="utf-8").split("\t")
        places.seen.add((name, moment))
    raise AssertionError(f"still not done after {most} kills")


def killed_in(part: str, work: Callable[[Path], object], folder: Path, count: int | None) -> tuple[Path, Path]:
    """Do ``work(run_dir)`` undisturbed, and again with a SIGKILL at places of one part of it.

    Args:
        part: What is in the names of these places.
        work: In a run directory; it is started again after each kill.
        folder: For both directories.
        count: How many places: the first, the last, and as many between them; None: all.

    Returns:
        The two run directories.
    """
    whole, killed = (Places(folder / name, ("replace", "done")) for name in ("whole", "killed"))
    with whole.noted() as passed:
        work(whole.folder)
    places = [place for place in passed if part in place[0]]
    if count is not None:
        assert len(places) > 2 * count
        places = [places[round(i * (len(places) - 1) / (count - 1))] for i in range(count)]
    killed.wanted = set(places).__contains__
    assert kill_at_every_place(lambda: work(killed.folder), killed) == len(places) == len(killed.seen)
    return whole.folder, killed.folder


def disk_full(place: Place) -> None:
    """What Python says when a disk is full."""
    raise OSError(errno.ENOSPC, "No space left on device", place[0])


def fail_at_every_place(work: Callable[[], object], places: Places, fault: Callable[[Place], None]) -> list[str]:
    """Start ``work`` until it ends, failing with a RunError at every new place; what each of them said."""
    said = []
    while True:
        try:
            with places.failing(fault):
                work()
        except RunError as error:
            said.append(str(error))
        else:
            return said


@contextmanager
def cache_killed_after(shards: int) -> Iterator[None]:
    """A build of a teacher cache that is killed when so many shards are written, and another is begun."""
    from srd.training.cache import building as cache_building

    write, written = cache_building.write_shard, []

    def dies(folder: Path, name: str, *rest: Any) -> None:
        if len(written) == shards:
            files.partial_path(folder / f"{name}.safetensors").write_bytes(b"torn")
            raise KeyboardInterrupt
        write(folder, name, *rest)
        written.append(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_building, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            yield
