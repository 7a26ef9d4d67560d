"""Processes that work on one run together (torchrun, accelerate launch); alone, everything here does nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def processes() -> int:
    """How many processes share this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process() -> int:
    """This process's number."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes the files."""
    return process() == 0


def state() -> PartialState:
    """The accelerate state, which joins the process group at its first use."""
    from accelerate import PartialState

    return PartialState()


def barrier() -> None:
    """Wait until every process has come here."""
    if processes() > 1:
        state().wait_for_everyone()


@contextlib.contextmanager
def main_first() -> Iterator[bool]:
    """Run a block on the main process (it gets True) and let the others (False) go on when its files are there.

    When the main process fails, its error ends the others too: the launcher stops them.
    """
    yield is_main()
    barrier()
