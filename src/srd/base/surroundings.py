"""What a call from Python gives back as it was: state that the whole process shares, and that a run sets for itself."""

from __future__ import annotations

import gc
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from srd.base import parallel

LOGGERS = ("srd", "transformers", "datasets", "huggingface_hub")


@contextmanager
def as_it_was() -> Iterator[None]:
    """Give back, however the work ends, what it has changed of the process that it runs in.

    Random states, environment variables, filters of warnings, what loggers and progress bars show, and what accelerate
    has chosen: a precision that stays there would be that of the user's next training.
    """
    import numpy as np
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, numpy, collects = random.getstate(), np.random.get_state(), gc.isenabled()
    environment, shown, chosen = dict(os.environ), _shown(), _chosen()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for name in {*os.environ, *environment}:
            if name not in environment:
                del os.environ[name]
            elif os.environ.get(name) != environment[name]:
                os.environ[name] = environment[name]
        _show(*shown)
        for state, content in chosen:
            state.clear()
            state.update(content)
        if not collects:
            gc.disable()


def _shown() -> tuple[list[tuple[Any, ...]], list[tuple[Any, bool]]]:
    """What loggers let through and where to, and whose progress bars are shown."""
    import datasets
    import huggingface_hub.utils
    import transformers

    hub: Any = huggingface_hub.utils
    loggers = [(each, each.level, each.propagate, each.handlers) for each in map(logging.getLogger, LOGGERS)]
    bars = [
        (transformers.utils.logging.enable_progress_bar, transformers.utils.logging.is_progress_bar_enabled()),
        (datasets.enable_progress_bars, not datasets.are_progress_bars_disabled()),
        (hub.enable_progress_bars, not hub.are_progress_bars_disabled()),
    ]
    return loggers, bars


def _show(loggers: list[tuple[Any, ...]], bars: list[tuple[Any, bool]]) -> None:
    for logger, level, propagate, handlers in loggers:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers
    for enable, enabled in bars:
        if enabled:
            enable()


def _chosen() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What accelerate keeps for the process, and its content; of several processes it stays, as they are joined."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kinds = (AcceleratorState, GradientState, PartialState) if parallel.processes() == 1 else ()
    return [(kind._shared_state, dict(kind._shared_state)) for kind in kinds]
