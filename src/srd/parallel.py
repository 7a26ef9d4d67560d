"""Processes that work on one run together (torchrun, accelerate launch); alone, everything here does nothing.

Two rules keep them in step. What decides where the flow goes is asked of the main process (`on_main`), never found out
by each for itself; and what every process does (`together`) fails on all of them when it fails on one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from srd.errors import RunError, UserError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

# One process may work for hours (scoring, merging) while the others wait for it. A process that fails is noticed by the
# launcher, which stops the others, and not by this limit.
PATIENCE = timedelta(days=2)


def processes() -> int:
    """How many processes share this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process() -> int:
    """This process's number."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes the files."""
    return process() == 0


def on_cpu() -> bool:
    """Whether accelerate should be told to stay on the CPU. DeepSpeed has its own idea of devices and is not told."""
    import torch

    return not torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true"


def state() -> PartialState:
    """The accelerate state, which joins the process group at its first use."""
    from accelerate import PartialState

    if PartialState._shared_state:
        return PartialState()
    return PartialState(cpu=on_cpu(), timeout=PATIENCE)


def barrier() -> None:
    """Wait until every process has come here."""
    if processes() > 1:
        gather(None)


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their numbers, on every process."""
    if processes() == 1:
        return [value]
    import torch.distributed

    state()
    values: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(values, value)
    return values


def on_main(work: Callable[[], T]) -> T:
    """Let the main process do something; every process gets its result, or its error.

    Raises:
        UserError, RunError: what ``work`` raised on the main process. Another error ends the main process alone, and
            with it the others: the launcher stops them.
    """
    if processes() == 1:
        return work()
    return _outcome(gather(_attempt(work) if is_main() else None)[:1])


def together(work: Callable[[], T]) -> T:
    """Let every process do the same thing; when it fails on one of them, all raise its error.

    Returns:
        This process's own result.
    """
    if processes() == 1:
        return work()
    result, error = _attempt(work)
    _outcome(gather((None, error)))
    return result  # type: ignore[return-value]  # without an error there is a result


def check_same(what: dict[str, Any]) -> None:
    """Refuse processes that were not started alike, such as nodes with different recipes or versions.

    Args:
        what: Nested names and values (JSON-like) that must be the same on every process.

    Raises:
        UserError: one of them differs, with both values.
    """
    everyone = gather((socket.gethostname(), _flat(what)))
    host, expected = everyone[0]
    for number, (other_host, values) in enumerate(everyone):
        for name in sorted(expected.keys() | values.keys()):
            ours, theirs = expected.get(name, "nothing"), values.get(name, "nothing")
            if ours != theirs:
                raise UserError(
                    f"{name} differs between the processes of this run: {ours!r} in process 0 on {host}, {theirs!r} in "
                    f"process {number} on {other_host}. Start all of them with the same recipe, options and versions."
                )


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value})
    return flat


def leave() -> None:
    """Leave the process group at the end of a run."""
    if processes() == 1:
        return
    import torch.distributed

    if torch.distributed.is_initialized():
        barrier()
        torch.distributed.destroy_process_group()


Outcome = tuple[T | None, UserError | RunError | None]


def _attempt(work: Callable[[], T]) -> Outcome[T]:
    try:
        return work(), None
    except (UserError, RunError) as error:
        return None, error


def _outcome(outcomes: list[Any]) -> Any:
    """The first result, unless one of the attempts failed."""
    for _, error in outcomes:
        if error is not None:
            raise error
    return outcomes[0][0]
