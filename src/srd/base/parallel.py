"""Processes that work on one run together (torchrun, accelerate launch); alone, everything here does nothing.

Two rules keep them in step. What decides where the flow goes is asked of the main process (`on_main`), never found out
by each for itself; and what every process does (`together`) fails on all of them when it fails on one.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from srd.base.errors import RunError, UserError
from srd.base.text import flattened

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

T = TypeVar("T")

# One process may work for hours (scoring, merging) while the others wait for it. A process that fails is noticed by the
# launcher, which stops the others, and not by this limit.
PATIENCE = timedelta(days=2)
# Longer than processes of one run start apart. Torch waits without end for an answer from another program at its port.
MEETING = 15 * 60.0  # seconds
# gloo's threads give the tensors of the last exchange back a moment after it. If Python is ending by then, the process
# aborts, with its work done (seen once in fifty runs, torch 2.13).
SETTLING = 0.2  # seconds
TIDYING = 5.0  # seconds that a process that was told to stop has to end by itself

_stopped: list[int] = []  # the signal that has stopped this process, if one has


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
    """Whether accelerate is told to stay on the CPU; not with DeepSpeed, which chooses devices by itself."""
    import torch

    return not torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true"


def own_gpu() -> torch.device | None:
    """The GPU of this process; None where there is none."""
    import torch

    return state().device if torch.cuda.is_available() else None


def state() -> PartialState:
    """The accelerate state, which joins the process group at its first use.

    Raises:
        UserError: the processes do not find each other, there are more of them than GPUs, or accelerate takes each of
            them for a run of its own.
    """
    from accelerate import PartialState
    from torch.distributed import DistNetworkError

    if PartialState._shared_state:
        return PartialState()
    check_gpus()
    giving_up = threading.Timer(MEETING, _give_up)
    giving_up.daemon = True
    giving_up.start()
    try:
        made = PartialState(cpu=on_cpu(), timeout=PATIENCE)
    except DistNetworkError as error:
        raise UserError(_not_met(str(error))) from error
    finally:
        giving_up.cancel()
    if processes() > 1:
        atexit.register(time.sleep, SETTLING)
    if made.num_processes != processes():
        raise UserError(
            f"accelerate sees {made.num_processes} process where {processes()} were started: it takes up DeepSpeed on "
            "GPUs only, and there is none here. Use torchrun or ddp.yaml."
        )
    return made


def check_gpus() -> None:
    """Refuse processes that would have to share a GPU, which NCCL cannot.

    Raises:
        UserError: launchers started more processes on this machine than it has GPUs.
    """
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there and here > there:
        raise UserError(
            f"{here} processes were started on this machine, and torch sees {there} GPU{'s' * (there > 1)}: each needs "
            f"one of its own. Start {there} (--nproc-per-node of torchrun, --num_processes of accelerate launch), or "
            "hide the GPUs (CUDA_VISIBLE_DEVICES='')."
        )


def _give_up() -> None:
    """End the process from beside the thread that waits for the others."""
    sys.stderr.write(f"error: {_not_met(f'no answer in {MEETING:.0f} seconds')}\n")
    sys.stderr.flush()
    os._exit(2)


def _not_met(reason: str) -> str:
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return (
        f"process {process()} cannot meet the others at {place}: {reason}. If the port is in use, give another one "
        "(--master-port of torchrun, --main_process_port of accelerate launch)."
    )


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process does not answer any more (gloo has no kind of error for it)."""
    if processes() == 1:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


@contextmanager
def stoppable(tell: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: with a message, and nothing half done.

    A process that works alone gets a KeyboardInterrupt, so that it tidies up. Python raises it between two of its own
    instructions, which a library may keep from coming, or may swallow; so a thread listens beside it and ends the
    process where it has not ended by itself after `TIDYING` seconds. One of several processes may wait for a dead one
    and never come back from that: there the thread speaks and ends it at once.

    Args:
        tell: Says that the process was stopped, where the thread ends it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    ended = threading.Event()
    threading.Thread(target=_listen, args=(reading, ended, tell), daemon=True).start()
    # A signal that is ignored stays ignored: that is how nohup and shells in the background protect a program.
    handlers = {number: signal.getsignal(number) for number in _stopping()}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in handlers:
        signal.signal(number, _interrupt)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=stop_silently)
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writing)
        _stopped.clear()


def _stopping() -> list[signal.Signals]:
    """The signals that stop a process. Ctrl-C reaches all processes of a launcher, and it is Python's own."""
    names = ("SIGTERM", "SIGHUP", *(("SIGINT",) if processes() == 1 else ()))
    return [signal.Signals[name] for name in names if hasattr(signal, name)]


def _interrupt(number: int, frame: Any) -> None:
    if _stopped or processes() > 1:
        return
    _stopped.append(number)
    raise KeyboardInterrupt


def _listen(reading: int, ended: threading.Event, tell: Callable[[], None]) -> None:
    """Wait for a signal that stops this process, or for the end of the command, which closes the pipe."""
    while (received := os.read(reading, 1)) and received[0] not in _stopping():
        pass
    if received and not ended.wait(TIDYING if processes() == 1 else 0):
        tell()
        os._exit(128 + received[0])
    os.close(reading)


def stopped_by() -> int | None:
    """The signal that has stopped this process; None: it works."""
    return _stopped[0] if _stopped else None


def stop_silently() -> None:
    """Undo `stoppable`: this process is about to end, or is a child that leaves messages to its parent."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
        for number in _stopping():
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


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


def can_go_on(error: BaseException) -> bool:
    """Whether all processes have this error, so that they are still in step and may try something else.

    An error of one process alone leaves the others where they wait for it: it has to end, and the launcher ends them.
    """
    return processes() == 1 or (isinstance(error, UserError | RunError) and error.on_all)


def check_same(what: dict[str, Any]) -> None:
    """Refuse processes that were not started alike, such as nodes with different recipes or versions.

    Args:
        what: Nested names and values (JSON-like) that must be the same on every process.

    Raises:
        UserError: one of them differs, with both values.
    """
    everyone = gather((socket.gethostname(), flattened(what)))
    host, expected = everyone[0]
    for number, (other_host, values) in enumerate(everyone):
        for name in sorted(expected.keys() | values.keys()):
            ours, theirs = expected.get(name, "nothing"), values.get(name, "nothing")
            if ours != theirs:
                raise UserError(
                    f"{name} differs between the processes of this run: {ours!r} in process 0 on {host}, {theirs!r} in "
                    f"process {number} on {other_host}. Start all of them with the same recipe, options and versions."
                )


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
            error.on_all = True
            raise error
    return outcomes[0][0]
