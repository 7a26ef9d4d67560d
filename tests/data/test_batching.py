"""Batches of similar length: little padding, every example once, one order for all processes and restarts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srd.data.batching import (
    Collator,
    EncodedExamples,
    LengthBatches,
    length_sorted_batches,
    pad_left,
    pad_right,
)


def dolly_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Log-normal prompts of about 72 and responses of about 80 tokens, cut at 256 and 512 as the encoder does."""
    random = np.random.default_rng(seed)
    prompts = np.minimum(random.lognormal(np.log(60), 0.6, count), 256)
    responses = random.lognormal(np.log(55), 0.85, count)
    return np.maximum(np.minimum(prompts + responses, 512), 2).astype(int)


def padding(batches: list[list[int]], lengths: np.ndarray) -> float:
    """Share of positions that hold padding."""
    filled = sum(int(lengths[batch].sum()) for batch in batches)
    return 1 - filled / sum(len(batch) * int(lengths[batch].max()) for batch in batches)


@pytest.mark.parametrize("count", [11_435, 2_000])
def test_padding_is_at_most_five_percent_at_batch_16(count: int) -> None:
    lengths = dolly_lengths(count)
    assert 140 < lengths.mean() < 165
    batches = LengthBatches(lengths.tolist(), 16)
    shares = []
    for epoch in range(4):
        batches.set_epoch(epoch)
        shares.append(padding(list(batches), lengths))
    assert max(shares) <= 0.05, shares
    shuffled = np.random.default_rng(0).permutation(count)
    random = [shuffled[i : i + 16].tolist() for i in range(0, count, 16)]
    assert padding(random, lengths) > 0.3


def test_batches_are_shuffled_well() -> None:
    """Neighbours change from epoch to epoch, and length does not drift along an epoch."""
    lengths = dolly_lengths(4_000)
    batches = LengthBatches(lengths.tolist(), 16, seed=3)
    partners = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        order = list(batches)
        partners.append({frozenset((batch[0], other)) for batch in order for other in batch[1:]})
        means = [lengths[batch].mean() for batch in order]
        assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2
    assert len(partners[0] & partners[1]) < 0.1 * len(partners[0])


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_every_example_once_an_epoch(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    batches = LengthBatches(lengths, size, seed=seed)
    batches.set_epoch(epoch)
    order = list(batches)
    assert len(order) == len(batches) == -(-len(lengths) // size)
    assert sorted(index for batch in order for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in order)
    assert sum(len(batch) < size for batch in order) <= 1


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = dolly_lengths(300).tolist()

    def order(seed: int, epoch: int, before: int = 0) -> list[list[int]]:
        batches = LengthBatches(lengths, 8, seed=seed)
        for earlier in range(before):
            batches.set_epoch(earlier)
            list(batches)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(1, 2) == order(1, 2, before=2)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


@pytest.mark.parametrize("count", [64, 67, 3])
@pytest.mark.parametrize(("micro", "processes"), [(8, 1), (4, 1), (1, 1), (4, 2), (2, 2), (1, 8), (2, 4)])
def test_micro_batches_and_processes_partition_the_same_steps(micro: int, processes: int, count: int) -> None:
    lengths = dolly_lengths(count).tolist()
    steps = LengthBatches(lengths, 8, seed=5).batches()
    parts = [
        LengthBatches(lengths, 8, micro_batch_size=micro, seed=5, process=process, processes=processes)
        for process in range(processes)
    ]
    accumulation = 8 // (micro * processes)
    yielded = [list(part) for part in parts]
    assert all(len(own) == len(part) == accumulation * len(steps) for own, part in zip(yielded, parts, strict=True))
    for number, step in enumerate(steps):
        own = [batch for mine in yielded for batch in mine[number * accumulation : (number + 1) * accumulation]]
        assert all(len(batch) <= micro for batch in own)
        assert sorted(index for batch in own for index in batch) == sorted(step)


def test_a_subset_is_drawn_anew_in_every_epoch() -> None:
    batches = LengthBatches(dolly_lengths(100).tolist(), 8, subset=30)
    seen: Counter[int] = Counter()
    for epoch in range(200):
        batches.set_epoch(epoch)
        drawn = [index for batch in batches for index in batch]
        assert len(drawn) == len(set(drawn)) == 30 and len(batches) == 4
        seen.update(drawn)
    assert len(seen) == 100 and min(seen.values()) > 30 and max(seen.values()) < 90
    assert len(LengthBatches([5] * 10, 4, subset=99)) == 3


def test_length_sorted_batches_begin_with_the_longest() -> None:
    assert length_sorted_batches([3, 9, 1, 9, 5], 2) == [[1, 3], [4, 0], [2]]
    assert length_sorted_batches([], 2) == []


ROWS = [
    {"id": "a", "prompt_ids": [11, 12, 13], "response_ids": [14, 0]},
    {"id": "b", "prompt_ids": [21], "response_ids": [22, 23, 24, 0]},
]


def test_a_decoder_only_batch() -> None:
    """Pad is 0 and so is the end of sequence: masks and targets come from lengths, never from ids."""
    batch = Collator(0)(ROWS)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 14, 0], [21, 22, 23, 24, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch["index"].tolist() == [2, 3, 5, 6, 7, 8]
    assert batch["targets"].tolist() == [14, 0, 22, 23, 24, 0]
    assert batch["targets"].dtype == torch.long
    # A position predicts the token that follows it.
    following = batch["input_ids"].flatten()[batch["index"] + 1]
    assert torch.equal(following, batch["targets"])


def test_an_encoder_decoder_batch() -> None:
    batch = Collator(0, 9)(ROWS)
    assert batch["input_ids"].tolist() == [[11, 12, 13], [21, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["decoder_input_ids"].tolist() == [[9, 14, 0, 0], [9, 22, 23, 24]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["index"].tolist() == [0, 1, 4, 5, 6, 7]
    assert batch["targets"].tolist() == [14, 0, 22, 23, 24, 0]


@pytest.mark.parametrize("start", [None, 9])
def test_a_batch_without_examples_still_runs_through_a_model(start: int | None) -> None:
    batch = Collator(0, start)([])
    assert batch["index"].numel() == batch["targets"].numel() == 0
    assert batch["input_ids"].shape[0] == 1
    assert batch["targets"].dtype == batch["index"].dtype == torch.long


class Source:
    """Hidden states that say whose they are."""

    def hidden(self, prompt_ids: Any, response_ids: Any) -> torch.Tensor:
        return torch.tensor([[float(prompt_ids[0]), float(token)] for token in response_ids])


def test_teacher_states_stand_beside_their_targets() -> None:
    rows = {name: [row[name] for row in ROWS] for name in ("id", "prompt_ids", "response_ids")}
    examples = EncodedExamples(rows, Source())
    batch = Collator(0)(examples.__getitems__([1, 0]))
    assert batch["teacher_hidden"][:, 1].tolist() == batch["targets"].tolist()
    assert batch["teacher_hidden"][:, 0].tolist() == [21] * 4 + [11] * 2
    assert "teacher_hidden" not in Collator(0)(EncodedExamples(rows).__getitems__([0]))


def test_encoded_examples() -> None:
    rows = {name: [row[name] for row in ROWS] for name in ("id", "prompt_ids", "response_ids")}
    examples = EncodedExamples(rows)
    assert len(examples) == 2 and list(examples.lengths) == [5, 5] and list(examples.ids) == ["a", "b"]
    assert examples.__getitems__([]) == []
    chosen = examples.subset(["b", "a", "b"])
    assert [row["id"] for row in chosen.__getitems__([0, 1, 2])] == ["b", "a", "b"]
    assert list(chosen[0]["response_ids"]) == [22, 23, 24, 0]
    with pytest.raises(KeyError):
        examples.subset(["c"])


def test_padding_on_either_side() -> None:
    ids, mask = pad_left([[1, 2, 3], [4]], 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad_right([[1, 2, 3], [4], []], 7)
    assert ids.tolist() == [[1, 2, 3], [4, 7, 7], [7, 7, 7]] and mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_large_token_ids_do_not_wrap() -> None:
    """Qwen's ids need more than 16 bits."""
    batch = Collator(151_643)([{"id": "a", "prompt_ids": [151_644, 70_000], "response_ids": [65_537, 151_645]}])
    assert batch["input_ids"].tolist() == [[151_644, 70_000, 65_537, 151_645]]
    assert batch["targets"].tolist() == [65_537, 151_645]


def test_rows_without_cross_entropy_are_marked_token_by_token() -> None:
    rows = {"id": ["a", "b", "c"], "prompt_ids": [[1], [2, 3], [4]], "response_ids": [[5, 6], [7], [8, 9, 10]]}
    examples = EncodedExamples(rows)
    assert "reference" not in Collator(0)(examples.__getitems__([0, 1, 2]))
    examples.soft, examples.doubtful = frozenset({"b", "c"}), frozenset({"c"})
    assert [row.get("doubtful") for row in examples.subset(["a", "c", "b"])] == [None, True, None]
    batch = Collator(0)(examples.subset(["a", "c", "b"]).__getitems__([0, 1, 2]))
    assert batch["reference"].tolist() == [1, 1, 0, 0, 0, 0] and batch["targets"].tolist() == [5, 6, 8, 9, 10, 7]
    assert "reference" not in Collator(0)(examples.__getitems__([0]))
