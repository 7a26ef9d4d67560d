"""Warnings: each with what helps against it, so that a person reads both and `srd doctor` can show them apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Warned:
    """A warning and what helps against it."""

    what: str
    remedy: str


@dataclass
class Collected:
    """What was said, warnings apart from notes, each once."""

    warnings: list[Warned] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def warn(logger: logging.Logger, what: str, remedy: str) -> None:
    """Log a warning, a sentence each: what it is about, and what to do."""
    logger.warning("%s %s", what, remedy, extra={"what": what, "remedy": remedy})


@contextmanager
def collecting() -> Iterator[Collected]:
    """Collect what is logged within, in place of showing it."""
    collected, logger = Collected(), logging.getLogger("srd")
    before = logger.handlers
    logger.handlers = [_Collector(collected)]
    try:
        yield collected
    finally:
        logger.handlers = before


class _Collector(logging.Handler):
    def __init__(self, collected: Collected) -> None:
        super().__init__(logging.INFO)
        self.collected = collected

    def emit(self, record: logging.LogRecord) -> None:
        said = getattr(record, "what", record.getMessage())
        if record.levelno < logging.WARNING:
            self.collected.notes += [said] if said not in self.collected.notes else []
            return
        warned = Warned(said, getattr(record, "remedy", "See the documentation."))
        self.collected.warnings += [warned] if warned not in self.collected.warnings else []
