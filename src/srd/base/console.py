"""What a person sees while a run works: headings, progress bars, warnings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from srd.base import parallel
from srd.base.text import visible


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


def set_up_logging(warnings: list[str] | None = None) -> None:
    """Show our warnings, keep the libraries' chatter and their own progress bars away."""
    import datasets
    import transformers

    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=True)
    handler.setFormatter(_Formatter("%(message)s"))
    handler.addFilter(_Once())
    logger = logging.getLogger("srd")
    logger.handlers = [handler] if warnings is None else [handler, _Collect(warnings)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
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


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """Yield ``update(done, total or None, note="")``: a bar on a terminal, now and then a line elsewhere."""
    if console.is_terminal:
        columns = (
            TextColumn("  {task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task(description, total=None, note="")
            yield lambda done, total, note="": bars.update(task, completed=done, total=total, note=note)
        return
    last = time.monotonic()

    def update(done: float, total: float | None, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            console.print(f"  {description}: {done:g}{'' if total is None else f' of {total:g}'}  {note}".rstrip())

    yield update
