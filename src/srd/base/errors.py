"""The one error a person sees: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Wrong input or configuration. The command line prints its message and exits with status 2.

    The message says the value, the place (file, line, field) and the remedy.

    Attributes:
        on_all: Whether every process of the run has raised it, so that all may go on together.
        fault: What messages about the same fault have in common, where each shows another text.
    """

    on_all = False
    fault = ""


class RunError(RuntimeError):
    """Something failed while running, through no fault of the configuration: exit status 1, no traceback."""

    on_all = False


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """Say which known name is meant, and which ones there are.

    Returns a sentence such as ``did you mean 'srkl'? Known: fkl, rkl, srkl``.
    """
    known = sorted(choices)
    folded = {each.casefold(): each for each in reversed(known)}
    close = get_close_matches(str(name).casefold(), folded, n=1, cutoff=cutoff)  # from Python it may be anything
    hint = f"did you mean '{folded[close[0]]}'? " if close else ""
    return f"{hint}Known: {', '.join(known)}"
