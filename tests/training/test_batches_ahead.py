"""Batches that a thread makes while the GPU works are the same, in time, and end as others do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from srd.training import trainer
from srd.training.batches import AheadLoader, made_ahead
from tests.training.test_trainer import run


def test_the_next_batch_is_made_while_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(3)]

    def batches() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    ahead = made_ahead(batches())
    assert not made[0].is_set(), "what the first depends on may still be set: the epoch"
    assert next(ahead) == 0
    assert made[1].wait(10) and not made[2].is_set(), "one, and not more: they take memory"
    assert list(ahead) == [1, 2]


def test_what_a_thread_meets_is_told_and_one_that_is_left_ends() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    ahead = made_ahead(broken())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    left = made_ahead(iter(range(100)))
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_training_ahead_is_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("llama", tmp_path, 4, 2)
    asked: list[int] = []

    class Watched(AheadLoader):
        def __iter__(self) -> Iterator[object]:  # type: ignore[override]
            asked.append(1)
            return super().__iter__()

    monkeypatch.setattr(trainer, "DataLoader", Watched)
    found = run("llama", tmp_path, 4, 2)
    assert asked and found[0][0]["loss"] == expected[0][0]["loss"]
    for name, gradient in found[1][0].items():
        assert torch.equal(gradient, expected[1][0][name])
