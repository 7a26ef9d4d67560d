"""Work on a model that is cut into shards, each of which is kept in a file of its own as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from srd.base import parallel
from srd.base.files import read_sealed, write_sealed
from srd.models.cluster import Shard, spread

BATCH = "batch-{:07d}.json"  # name of a shard that is a batch of prompts


def own_shards(count: int, are_shared: bool) -> range:
    """Of so many shards the numbers of those that this process makes: all, unless the processes share them."""
    return range(parallel.process(), count, parallel.processes()) if are_shared else range(count)


def make_shards(
    model: Any,
    function: Callable[..., dict[str, list[Any]]],
    shared: Shard,
    numbers: Iterable[int],
    shard_of: Callable[[int], tuple[str, Shard]],
    folder: Path | None,
    name: str,
    told: Callable[[int], None],
) -> dict[int, dict[str, list[Any]]]:
    """Make the shards that are missing, and wait until the other processes have made theirs.

    Args:
        model: A model, or one of a cluster; see `srd.models.cluster.spread`. Its mode is restored afterwards.
        function: Called with the model, ``shared`` and a shard.
        shared: What is the same for all.
        numbers: Of the shards that this process makes (`own_shards`).
        shard_of: Gives what stands for all that decides a shard's result, and the shard.
        folder: Of their files; None: they are kept in memory.
        name: Of a shard's file, with a place for its number.
        told: Called with the number of each shard that is done, also of one that was done before.

    Returns:
        What was made and has no file, by number.
    """
    asked: list[tuple[int, Path | None, str]] = []
    found: dict[int, dict[str, list[Any]]] = {}

    def missing() -> Iterator[Shard]:
        for number in numbers:
            path, (made_from, shard) = folder / name.format(number) if folder else None, shard_of(number)
            if path is not None and read_sealed(path).get("made_from") == made_from:
                told(number)
                continue
            asked.append((number, path, made_from))
            yield shard

    training = model.training
    model.eval()
    try:
        for place, part in spread(model, function, shared, missing()):
            number, path, made_from = asked[place]
            if path is None:
                found[number] = part
            else:
                write_sealed(path, {"made_from": made_from, **part})
            told(number)
    finally:
        model.train(training)
    if folder:
        parallel.barrier()
    return found
