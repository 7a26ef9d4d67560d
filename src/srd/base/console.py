"""What a person sees while a run works: headings, progress bars, warnings."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from warnings import simplefilter

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn
from rich.segment import Segment
from rich.text import Text

from srd.base import parallel
from srd.base.text import duration, roughly, visible


class Terminal(Console):
    """A console on which no text of ours, whatever names and values it quotes, acts on the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)  # before it is laid out

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _Formatter(logging.Formatter):
    """The same for log messages."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


console = Terminal(stderr=True, highlight=False, quiet=not parallel.is_main())
QUIET_SECONDS = 20.0  # a log file, unlike a terminal, gets a line every so often
SILENT_SECONDS = 60.0  # ... and also where nothing was finished for so long


def set_up_logging(warnings: list[str] | None = None, *, libraries: bool = True) -> None:
    """Show our warnings, which a list may get too, and keep away the libraries' chatter and progress bars.

    Without ``libraries``, which may not be needed, `quiet_libraries` comes before they are.
    """
    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=True)
    handler.setFormatter(_Formatter("%(message)s"))
    handler.addFilter(_Once())
    logger = logging.getLogger("srd")
    logger.handlers = [handler] if warnings is None else [handler, _Collect(warnings)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if libraries:
        quiet_libraries()
        if not gc.isenabled():  # the command line has put it off until all is imported, which is no garbage
            gc.freeze()
            gc.enable()
    if not sys.warnoptions:  # python -W shows them
        simplefilter("ignore", FutureWarning)  # what libraries say of each other's next versions


def quiet_libraries() -> None:
    """Import the libraries that log much, and let them log errors alone."""
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # or each try to reach the hub is told of, above our message
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()


class _Once(logging.Filter):
    """Lets a message through once: several steps encode the same examples and would each say what was cut."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        before = len(self.seen)
        self.seen.add(record.getMessage())
        return len(self.seen) > before


class _Collect(logging.Handler):
    """Keeps warnings for the report."""

    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        if (message := record.getMessage()) not in self.warnings:
            self.warnings.append(message)


#: ``(share that is done, seconds that it took) -> seconds of what comes after``, or None where nobody can tell.
After = Callable[[float, float], float | None]


class Pace:
    """How long something has taken, and will take if it goes on as it did since it was first looked at.

    Args:
        after: What comes after it and takes time too.
        clock: Seconds.
    """

    def __init__(self, after: After | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.after = after
        self.clock = clock
        self.started = self.seen = self.updated = clock()
        self.first: float | None = None
        self.done: float = 0
        self.total: float | None = None

    def update(self, done: float, total: float | None) -> None:
        """Take down how far it has come."""
        self.updated, self.done, self.total = self.clock(), done, total
        if self.first is None or done < self.first:  # what a former command has done took none of this time
            self.first, self.seen = done, self.updated

    @property
    def count(self) -> str:
        """How much is done: ``3 of 40``; nothing before that is known."""
        if self.first is None:
            return ""
        return f"{self.done:,g}" + (f" of {self.total:,g}" if self.total is not None else "")

    def __str__(self) -> str:
        """What has passed, what is left, and what is left of all: ``1 min 20 s so far, about 3 min left``."""
        now = self.clock()
        said = f"{duration(now - self.started)} so far"
        made, seconds = self.done - (self.first or 0), self.updated - self.seen
        if not self.total or made <= 0 or seconds <= 0 or self.done >= self.total:
            return said
        left = (self.total - self.done) * seconds / made - (now - self.updated)
        if left <= 0:  # what is being done takes longer than all before it
            return said
        after = self.after(made / self.total, seconds) if self.after else None
        return f"{said}, {roughly(left)} left" + (f", {roughly(left + after)} of the whole run" if after else "")


class _Bar(Progress):
    """A bar with a note under it, which a narrow terminal cuts."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(f"    {visible(task.fields['note'])}", style="dim", no_wrap=True, overflow="ellipsis")


class _Lines:
    """Lines in place of a bar, for a log file: where something is done, and where nothing is for a while."""

    def __init__(self, description: str, pace: Pace) -> None:
        self.description, self.pace, self.note = description, pace, ""
        self.last = time.monotonic()
        self.ended, self.one = threading.Event(), threading.Lock()

    def say(self, quiet: float) -> None:
        """A line, unless the last one was said less than so many seconds ago."""
        with self.one:
            if time.monotonic() - self.last <= quiet:
                return
            self.last = time.monotonic()
            said = ", ".join(filter(None, [self.pace.count, str(self.pace)]))
            note = f" ({self.note})" if self.note else ""
            console.print(f"  {self.description}: {said}{note}", soft_wrap=True, markup=False)

    def watch(self) -> None:
        """Say from time to time that it goes on, until it has ended."""
        while not self.ended.wait(SILENT_SECONDS / 4):
            self.say(SILENT_SECONDS)


@contextmanager
def progress_bar(description: str, after: After | None = None) -> Iterator[Callable[..., None]]:
    """Yield ``update(done, total or None, note="")``: a bar on a terminal, now and then a line elsewhere.

    Args:
        description: What is being done.
        after: Tells the time of what comes after it; see `Pace`.
    """
    pace = Pace(after)
    if console.is_terminal:
        # The pace is made into words whenever the bar is drawn: the time goes on while a long batch is being made.
        columns = (
            TextColumn("  {task.description}", markup=False), BarColumn(bar_width=20),
            TextColumn("{task.fields[pace].count}"), TextColumn("{task.fields[pace]}"),
        )  # fmt: skip
        with _Bar(*columns, console=console, transient=True) as bars:
            task = bars.add_task(description, total=None, note="", pace=pace)

            def draw(done: float, total: float | None, note: str = "") -> None:
                pace.update(done, total)
                bars.update(task, completed=done, total=total, note=note)

            yield draw
        return
    lines = _Lines(description, pace)

    def update(done: float, total: float | None, note: str = "") -> None:
        pace.update(done, total)
        lines.note = note
        lines.say(QUIET_SECONDS)

    watch = threading.Thread(target=lines.watch, daemon=True)
    watch.start()
    try:
        yield update
    finally:
        lines.ended.set()
        watch.join()
