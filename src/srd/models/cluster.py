"""Work that falls into shards, and models that other machines hold while it is done (Ray, an extra).

Reflection, likelihoods, the teacher's texts and cache, and evaluation ask one thing of a model again and again, for
shards of the rows that were cut beforehand. `spread` asks it for each: the model that is here, one shard after another,
or the actors of a Ray cluster, whichever is free. What a shard gives depends on the shard alone, and the process that
asks writes the files, so that one process, two actors and five make the same bytes, and a killed run continues as ever.

What an actor has not answered when it is lost with its machine is done by others, and another is started where there is
room.
"""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import os
import socket
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srd.base.errors import RunError, UserError
from srd.models.never_trains import NeverTrains

if TYPE_CHECKING:  # settings need pydantic, which the benchmark for a GPU does without
    from srd.models.settings import ClusterConfig

logger = logging.getLogger(__name__)

Shard = tuple[Any, ...]

AHEAD = 2  # shards that an actor has been given: one that it works on, one that waits
TRIES = 3  # actors that a shard may lose before the run gives up
STARTS = 4  # that may fail for each actor, without one that succeeds, before the run gives up
PAUSE = 1.0  # seconds after a start that failed: its machine may be on its way out
KNOCKING = 10.0  # seconds for a cluster to answer
LOCAL = "local"  # Ray's word for a cluster of its own on this machine
PATIENCE = 30.0  # seconds without an actor after which that is said


def spread(
    model: Any, function: Callable[..., Any], shared: Shard, shards: Iterable[Shard]
) -> Iterator[tuple[int, Any]]:
    """Call ``function(model, *shared, *shard)`` for each shard.

    Args:
        model: A model, or a `RemoteModel`.
        function: Of a module, so that other processes can find it.
        shared: What is the same for all.
        shards: Made one by one, as they are needed.

    Yields:
        The number of a shard and what it gave, as they are done.
    """
    if isinstance(model, RemoteModel):
        yield from model.spread(function, shared, shards)
        return
    if (groups := getattr(model, "layer_groups", None)) is not None:  # many at once: see `srd.models.loading.offload`
        yield from enumerate(groups.run(functools.partial(function, model, *shared, *shard) for shard in shards))
        return
    for number, shard in enumerate(shards):
        yield number, function(model, *shared, *shard)


def ask(model: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """`spread` with one shard."""
    return next(result for _, result in spread(model, function, (), [arguments]))


class _Holder:
    """What an actor is: it holds one model at a time, which it loads when it is first asked something of it."""

    def __init__(self) -> None:
        self.name, self.model = "", None

    def call(self, name: str, load: Load, function: Callable[..., Any], shared: Shard, shard: Shard) -> Any:
        if self.name != name:
            self.forget()
            import torch

            torch.set_num_threads(load.threads)
            self.model, self.name = load.model().eval(), name
        return function(self.model, *shared, *shard)

    def forget(self) -> None:
        """Give the model's memory back."""
        self.name, self.model = "", None
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Load:
    """How an actor comes by a model.

    Attributes:
        model: Loads it; it travels, so that it must not hold anything of this process.
        threads: That it computes with: as many as the asking process, since sums depend on it.
    """

    model: Callable[[], Any]
    threads: int


class _Actors:
    """The actors that this process has in a cluster; models come and go, and they stay."""

    def __init__(self, settings: ClusterConfig) -> None:
        self.ray = ray = connect(settings)
        held = ray.cluster_resources()
        gpus = settings.gpus if settings.gpus is not None else float(held.get("GPU", 0) > 0)
        machines = sum(node["Alive"] for node in ray.nodes())
        wanted = settings.actors or max(1, int(held.get("GPU", 0) // gpus) if gpus else machines)
        memory = {"memory": int(settings.memory_gb * 1e9)} if settings.memory_gb else {}
        takes = {"num_cpus": settings.cpus, "num_gpus": gpus, **memory}
        self._kind = ray.remote(_Holder).options(scheduling_strategy="SPREAD", **takes)
        self.there: dict[Any, int] = {}  # and how many shards each has been given
        self.coming: dict[Any, Any] = {}  # of those that wait for room in the cluster, by what says that they are there
        self.wanted, self.failed = wanted, 0  # starts that have failed since one has succeeded
        for _ in range(wanted):
            self.start()

    def start(self) -> None:
        """Start one more, as soon as there is room."""
        actor = self._kind.remote()
        self.coming[actor.__ray_ready__.remote()] = actor

    def welcome(self, reference: Any) -> None:
        """Take up an actor that has said that it is there, or has failed to.

        Raises:
            RunError: none can be started.
        """
        actor = self.coming.pop(reference)
        try:
            self.ray.get(reference)
            self.there[actor], self.failed = 0, 0
        except self.ray.exceptions.RayError as error:
            self.failed += 1
            if self.failed == STARTS * self.wanted:
                raise RunError(
                    f"no actor of the cluster starts ({self.failed} tries), the last one so: {_reason(error)} Its "
                    "machines need Python, srd and what srd imports in the versions of this one."
                ) from error
            time.sleep(PAUSE)
            self.start()

    def lose(self, actor: Any) -> None:
        """Replace one that is gone."""
        if self.there.pop(actor, None) is not None:
            logger.warning("an actor of the cluster was lost; others do its shards")
            self.start()

    def forget(self) -> None:
        """Let them give the memory of their models back."""
        if self.ray.is_initialized():
            for actor in self.there:
                actor.forget.remote()

    def end(self) -> None:
        """Free their places in the cluster."""
        if self.ray.is_initialized():
            for actor in [*self.there, *self.coming.values()]:
                self.ray.kill(actor)


_in_use: list[tuple[ClusterConfig, _Actors]] = []  # of this process: none, or one


def _actors(settings: ClusterConfig) -> _Actors:
    """Those that this process has; others where it asks for others."""
    if _in_use and (_in_use[0][0] != settings or not _in_use[0][1].ray.is_initialized()):
        _in_use.pop()[1].end()
    if not _in_use:
        _in_use.append((settings, _Actors(settings)))
    return _in_use[0][1]


def _frame_of(model: Any) -> tuple[Any, Any]:
    return model.config, getattr(model, "generation_config", None)


class RemoteModel(NeverTrains):
    """A model that actors of a Ray cluster hold; it is read and writes, and never trains.

    Args:
        settings: Of the recipe.
        load: Loads it there; it travels, so that it must not hold anything of this process.

    Raises:
        UserError: Ray is not installed, no cluster answers, or the model cannot be loaded.
    """

    _number = itertools.count()

    def __init__(self, settings: ClusterConfig, load: Callable[[], Any]) -> None:
        import torch

        self.actors = _actors(settings)
        self.name = f"{os.getpid()}-{next(self._number)}"
        self.load = Load(load, torch.get_num_threads())
        weakref.finalize(self, self.actors.forget)
        self.config, self.generation_config = ask(self, _frame_of)

    def spread(self, function: Callable[..., Any], shared: Shard, shards: Iterable[Shard]) -> Iterator[tuple[int, Any]]:
        """See `spread`."""
        ray = self.actors.ray
        asked = (self.name, ray.put(self.load), function, ray.put(shared))
        yield from _Round(self.actors, asked, enumerate(shards)).results()


class _Round:
    """Shards on their way through the actors."""

    def __init__(self, actors: _Actors, asked: Shard, shards: Iterator[tuple[int, Shard]]) -> None:
        self.actors, self.ray, self.asked, self.shards = actors, actors.ray, asked, shards
        self.again: list[tuple[int, Shard]] = []
        self.tries: dict[int, int] = {}
        self.given: dict[Any, tuple[Any, int, Shard]] = {}  # of each answer that is awaited: who, number, shard

    def results(self) -> Iterator[tuple[int, Any]]:
        """Numbers and what the shards gave, as they are done."""
        try:
            while self._give() or self.given:
                done, _ = self.ray.wait([*self.given, *self.actors.coming], num_returns=1, timeout=PATIENCE)
                if not done and not self.actors.there:
                    logger.warning("no actor has room in the cluster: waiting for it")
                for reference in done:
                    if reference in self.actors.coming:
                        self.actors.welcome(reference)
                    elif (answer := self._answer(reference)) is not None:
                        yield answer
        finally:  # whoever stops early leaves nothing behind
            for reference, (actor, *_) in self.given.items():
                self.ray.cancel(reference)
                if actor in self.actors.there:
                    self.actors.there[actor] = 0

    def _give(self) -> bool:
        """Give the actors as much as they take; whether there is more to do."""
        there = self.actors.there
        while True:
            actor = min(there, key=there.__getitem__, default=None)
            if actor is None or there[actor] >= AHEAD:
                return True
            following = self.again.pop() if self.again else next(self.shards, None)
            if following is None:
                return False
            number, shard = following
            self.given[actor.call.remote(*self.asked, shard)] = actor, number, shard
            there[actor] += 1

    def _answer(self, reference: Any) -> tuple[int, Any] | None:
        """What a shard gave; None where its actor is gone, and it has to be done again."""
        actor, number, shard = self.given.pop(reference)
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RunError | UserError) else error) from None
        except self.ray.exceptions.RayError as error:
            self.actors.lose(actor)
            self.tries[number] = self.tries.get(number, 0) + 1
            if self.tries[number] == TRIES:
                raise RunError(
                    f"shard {number} has ended {TRIES} actors of the cluster, the last one so: {_reason(error)} "
                    "Give each more memory (cluster.memory_gb), or make shards smaller (generation.batch_size)."
                ) from error
            self.again.append((number, shard))
            return None
        self.actors.there[actor] -= 1
        return number, result


def _reason(error: Exception) -> str:
    """The first line of what Ray says, and the last, which has the exception where there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " … ".join(dict.fromkeys((lines[0], lines[-1])))


def check_installed() -> None:
    """Refuse to go on without Ray.

    Raises:
        UserError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise UserError("cluster.engine=ray needs Ray, which is not installed: pip install 'ray[default]'")


def connect(settings: ClusterConfig) -> Any:
    """Join the cluster, or make one of this machine; the module ``ray``.

    Raises:
        UserError: Ray is not installed, or no cluster answers at the address.
    """
    check_installed()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray.exceptions

    if not ray.is_initialized():
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            _knock(_place(settings))
            ray.init(_place(settings), log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except Exception as error:  # of a node that does not start in time Ray raises no other
            raise _no_cluster(settings, error) from error
    return ray


def check_address(settings: ClusterConfig) -> None:
    """Refuse to begin where nothing listens at the cluster's address: else that is found out behind hours of training.

    Raises:
        UserError: nothing does.
    """
    try:
        _knock(_place(settings))
    except OSError as error:
        raise _no_cluster(settings, error) from error


def _no_cluster(settings: ClusterConfig, error: Exception) -> UserError | RunError:
    """Why there is no cluster, and what helps."""
    if (place := _place(settings)) == LOCAL:
        return RunError(
            f"Ray does not start on this machine: {_reason(error)} The same command tries again. A machine at work may "
            "be too slow for it; without cluster.engine=ray (--engine ray) all is done in this process."
        )
    return UserError(
        f"{'cluster.address' if settings.address else 'RAY_ADDRESS'} '{place}': no Ray cluster answers there "
        f"({_reason(error)}). Start one with `ray start --head` and give the address that it prints, or none for this "
        "machine alone."
    )


def _place(settings: ClusterConfig) -> str:
    """The address that is meant. Ray by itself would join any cluster that was started on this machine last."""
    return settings.address or os.environ.get("RAY_ADDRESS") or LOCAL


def _knock(address: str) -> None:
    """Try to connect, for some seconds: Ray itself would try for an hour."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), KNOCKING).close()
