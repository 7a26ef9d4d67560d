"""Fixtures of all tests. Nothing heavy is imported before a test: the process that hands out tests reads this, too."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.runs import TinyRun

FOLDERS = itertools.count()

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On a GPU the last bits are others every time, a fork cannot use it, and two processes cannot share it. To test on one
# all the same: CUDA_VISIBLE_DEVICES=0 make test
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_configure(config: pytest.Config) -> None:
    """Let `make test` make up a fifth of the examples that `make test-all` makes up."""
    from hypothesis import settings

    settings.register_profile("quick", max_examples=24, deadline=None)
    settings.register_profile("all", max_examples=120, deadline=None)
    settings.load_profile("quick" if config.option.markexpr == "not slow" else "all")


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig

    torch.set_num_threads(1)
    # Words for a log that nobody reads: the library writes out every configuration that it opens.
    PreTrainedConfig.__repr__ = GenerationConfig.__repr__ = object.__repr__  # type: ignore[method-assign]
    gc.enable()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a syntax tree, or a model, is no garbage either


@pytest.fixture(autouse=True)
def _what_stays_is_no_garbage() -> Iterator[None]:
    """Keep the Trainer, which looks for garbage at every end, from what libraries leave behind on their first use.

    What `torch.compile` alone leaves would make every later training in a process three times as long.
    """
    start = time.process_time()
    yield
    if time.process_time() - start > 0.1:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _plugins_end_with_their_test() -> Iterator[None]:
    """Forget what a test registers; what comes with the library stays, since a module is imported once."""
    from srd.curation.fusion import FUSIONS
    from srd.curation.scores.base import SCORES
    from srd.tasks.base import TASKS
    from srd.training.divergences.base import DIVERGENCES
    from srd.training.methods.base import METHODS

    registries = (SCORES, FUSIONS, METHODS, DIVERGENCES, TASKS)
    before = [dict(registry._registered) for registry in registries]
    yield
    for registry, known in zip(registries, before, strict=True):
        for name in {*registry._registered} - {*known, *registry._files}:
            del registry._registered[name]
        registry.aliases = {alias: name for alias, name in registry.aliases.items() if name in registry._registered}


@pytest.fixture(autouse=True)
def _settings_end_with_their_test() -> Iterator[None]:
    """What a command leaves behind: a training's precision, and a log that `caplog` does not hear of."""
    yield
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    logging.getLogger("srd").propagate = True


@pytest.fixture(scope="session")
def pydocs_seconds() -> float:
    """The standard library's documentation is read once a worker; the seconds of work that this took."""
    from srd.tasks import pydocs

    pydocs.documented_rows.cache_clear()
    start = time.process_time()
    pydocs.load_pydocs()
    return time.process_time() - start


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own. pytest's looks through those of all tests so far to find a number that is free."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    return tmp_path_factory.mktemp(f"{name}-{next(FOLDERS)}", numbered=False)


@pytest.fixture
def tiny_run(tmp_path: Path) -> TinyRun:
    """A run of two tiny Llamas."""
    from tests.runs import TinyRun

    return TinyRun(tmp_path)


@pytest.fixture
def make_tiny_run(tmp_path: Path) -> Callable[..., TinyRun]:
    """Make runs of any family, each in a folder of its own."""
    from tests.runs import TinyRun

    made = 0

    def make(family: str = "llama", **sizes: Any) -> TinyRun:
        nonlocal made
        made += 1
        folder = tmp_path / f"{family}-{made}"
        folder.mkdir()
        return TinyRun(folder, family, **sizes)

    return make


@pytest.fixture
def own_names() -> Iterator[None]:
    """What a test registers of detectors, divergences, scores, tasks and templates is gone behind it."""
    from srd.base.code import HANDED
    from srd.curation.detectors.base import DETECTORS
    from srd.curation.scores.base import SCORES
    from srd.data.templates.base import TEMPLATES
    from srd.tasks.base import TASKS
    from srd.training.divergences.base import DIVERGENCES

    before = set(HANDED)
    yield
    registries: dict[str, Any] = {each.kind: each for each in (DETECTORS, DIVERGENCES, SCORES, TASKS, TEMPLATES)}
    for kind, name in set(HANDED) - before:
        del HANDED[kind, name], registries[kind]._registered[name]
