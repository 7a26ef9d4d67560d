"""What a person sees while a run works: headings, progress bars, warnings."""

from __future__ import annotations

import logging
import sys
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


def set_up_logging(warnings: list[str] | None = None, *, libraries: bool = True) -> None:
    """Show our warnings, keep the libraries' chatter and their own progress bars away.

    Args:
        warnings: Gets the warnings, too.
        libraries: False: where they may not be needed; `quiet_libraries` comes before they are.
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
    if not sys.warnoptions:  # python -W shows them
        simplefilter("ignore", FutureWarning)  # what libraries say of each other's next versions


def quiet_libraries() -> None:
    """Import the libraries that say much, and keep them from it."""
    import datasets
    import transformers

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
        message = record.getMessage()
        new = message not in self.seen
        self.seen.add(message)
        return new


class _Collect(logging.Handler):
    """Keeps warnings for the report."""

    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.warnings:
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
        self.started = self.seen = clock()
        self.first: float | None = None

    def words(self, done: float, total: float | None) -> str:
        """Say what has passed, what is left, and what is left of all: ``1 min 20 s so far, about 3 min left``."""
        now = self.clock()
        if self.first is None or done < self.first:  # what a former command has done took none of this time
            self.first, self.seen = done, now
        said = f"{duration(now - self.started)} so far"
        made, seconds = done - self.first, now - self.seen
        if not total or made <= 0 or seconds <= 0 or done >= total:
            return said
        left = max(total - done, 0) * seconds / made
        after = self.after(made / total, seconds) if self.after else None
        return f"{said}, {roughly(left)} left" + (f", {roughly(left + after)} of the whole run" if after else "")


class _Bar(Progress):
    """A bar with a note under it, which a narrow terminal cuts."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(f"    {visible(task.fields['note'])}", style="dim", no_wrap=True, overflow="ellipsis")


def _of(done: float, total: float | None) -> str:
    return f"{done:,g}" if total is None else f"{done:,g} of {total:,g}"


@contextmanager
def progress_bar(description: str, after: After | None = None) -> Iterator[Callable[..., None]]:
    """Yield ``update(done, total or None, note="")``: a bar on a terminal, now and then a line elsewhere.

    Args:
        description: What is being done.
        after: Tells the time of what comes after it; see `Pace`.
    """
    pace = Pace(after)
    if console.is_terminal:
        columns = (
            TextColumn("  {task.description}", markup=False), BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"), TextColumn("{task.fields[pace]}"),
        )  # fmt: skip
        with _Bar(*columns, console=console, transient=True) as bars:
            task = bars.add_task(description, total=None, note="", pace="", count="")
            yield lambda done, total, note="": bars.update(
                task, completed=done, total=total, note=note, pace=pace.words(done, total), count=_of(done, total)
            )
        return
    last = time.monotonic()

    def update(done: float, total: float | None, note: str = "") -> None:
        nonlocal last
        said = pace.words(done, total)
        if time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            console.print(
                f"  {description}: {_of(done, total)}, {said}{note and f' ({note})'}", soft_wrap=True, markup=False
            )

    yield update
