"""Rows that nearly repeat another row: word 3-grams of prompt and response, MinHash, and then the exact similarity.

MinHash suggests pairs (Broder 1997): 128 permutations in 16 bands of 8, so that of two rows that share 80 % of their
3-grams 95 % are looked at, and of two that share half of them 6 %. What is suggested is compared exactly. All of it is
numpy on whole chunks of rows, whose texts are read when they are needed: of a row stay 17 numbers. `datasketch` hashes
row by row and keeps sets of keys: a million rows would take it longer than all of the cleaning, and gigabytes.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from srd.curation.grams import PARTS, Grams, Hashes, Ints, Rows, Sets, frames_of, grams_of, spread, texts_of, without

PERMUTATIONS, BANDS = 128, 16
COPY = 0.8  # Jaccard similarity of two rows that are copies
CHAINED = 0.5  # that of any two rows of a group, at least
SAME_ANSWER = 0.5  # share of words that the responses of two copies have in common
A_WORD_OR_TWO = 2  # in which two prompts may differ and ask the same
NEIGHBOURS = 11  # rows of its bucket that a row is compared with
ENOUGH = 32  # copies of a row; one that has so many looks for no more
AT_ONCE = 100_000  # rows whose neighbours are looked at
PAIRS = 10_000  # that are compared at a time
AHEAD = 2_000  # pairs whose groups are compared at a time

Floats = NDArray[np.float64]
Found = tuple[Ints, Ints, Floats]  # pairs of rows and their similarity, [P] each


@dataclass(frozen=True)
class Copies:
    """Which rows nearly repeat which.

    Attributes:
        likeness: The greatest similarity of each row to another one that was found, 0 to 1, ``[N]``.
        groups: The group of each row, ``[N]``; a row that repeats none has a group of its own.
        held_out: Likewise the likeness to rows that are held out, ``[N]``.
    """

    likeness: Floats
    groups: Ints
    held_out: Floats

    def spare(self, worse: Floats) -> NDArray[np.bool_]:
        """The rows that are not needed: of each group all but the one with the lowest number, or the first of equals.

        Args:
            worse: How bad each row is, ``[N]``; infinite where it is not to stay.
        """
        order = np.lexsort((np.arange(len(worse)), worse, self.groups))
        first = np.concatenate([[True], self.groups[order][1:] != self.groups[order][:-1]])
        spare = np.zeros(len(worse), dtype=bool)
        spare[order] = ~first
        return spare


def near_copies(rows: Dataset, held_out: Dataset | None = None) -> Copies:
    """Find the rows that nearly repeat another one, or one that is held out.

    Two rows are copies where the word 3-grams of prompt and response have a Jaccard similarity of at least `COPY`, and
    their responses share at least half of their words: to the same question, *yes* and *no* are no copies. Nor are
    rows that calculate otherwise with the same words, or that ask other things and have a long text in common: a
    passage, an instruction, earlier turns (`_ask_otherwise`). Where their prompts differ, what stands in more than one
    row of twenty is a frame and does not count. Where they ask the same, they are also copies if the words of their
    responses are so alike, or are the same but for one: in a short row one word decides over many 3-grams.
    """
    index, count = _index_of(rows, *([] if held_out is None else [held_out])), len(rows)
    firsts = _firsts(index, count)
    likeness, groups = _grouped(index, _pairs_within(index, firsts), firsts)
    return Copies(likeness, groups, _likeness_across(index, firsts))


def repeating(rows: Dataset, new: NDArray[np.bool_], held_out: Dataset | None) -> NDArray[np.bool_]:
    """The new rows that nearly repeat one that is to stay, or one that is held out, ``[N]``.

    Args:
        rows: All that would be learnt from, old and new.
        new: Which of them are new, ``[N]``; old ones stay, and of new ones that are alike the first.
        held_out: Rows that none of them may repeat.
    """
    copies = near_copies(rows, held_out)
    return new & (copies.spare(new.astype(np.float64)) | (copies.held_out >= COPY))


def copies_of(rows: Dataset, *held_out: Dataset) -> Floats:
    """The greatest similarity of each row to a row that is held out, 0 where that is none's copy, ``[N]``."""
    index = _index_of(rows, *held_out)
    return _likeness_across(index, _firsts(index, len(rows)))


# -------------------------------------------------------------------------------------------------- what is suggested


def _firsts(index: _Index, count: int) -> Ints:
    """Of each of the first so many rows the first one with the same words in the same order: they are compared once."""
    firsts, filled = np.arange(count), np.flatnonzero(index.filled[:count])
    keys = index.texts[filled]
    order = np.argsort(keys, kind="stable")
    new = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])[: len(order)]
    firsts[filled[order]] = filled[order][np.flatnonzero(new)][np.cumsum(new) - 1]
    return firsts


def _pairs_within(index: _Index, firsts: Ints) -> Found:
    """The copies among rows that share a band: each row with the next ones that do, until it has enough."""
    rows = np.flatnonzero(index.filled[: len(firsts)] & (firsts == np.arange(len(firsts))))
    copies, found = np.zeros(len(firsts), np.int32), [_nothing()]
    for number, band in enumerate(index.bands):
        open_rows = rows[(copies[rows] < ENOUGH) & index.has_band(number, rows)]
        order = open_rows[np.argsort(band[open_rows], kind="stable")]
        for start in range(0, len(order), AT_ONCE):
            pairs = _neighbours(band, order, start)
            found.append(_copies(index, *pairs, number))
            for side in found[-1][:2]:
                np.add.at(copies, side, 1)
    first, second, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, similarity


def _neighbours(band: Hashes, order: Ints, start: int) -> tuple[Ints, Ints]:
    """Pairs of rows that share a band, the first among so many from a place of their order on, ``[P]`` each."""
    one, other = [], []
    for shift in range(1, NEIGHBOURS + 1):
        first = order[start : start + AT_ONCE][: max(0, len(order) - start - shift)]
        second = order[start + shift : start + shift + len(first)]
        alike = band[first] == band[second]
        if not alike.any():
            break
        one.append(first[alike])
        other.append(second[alike])
    return np.concatenate([order[:0], *one]), np.concatenate([order[:0], *other])


def _likeness_across(index: _Index, firsts: Ints) -> Floats:
    """The greatest similarity of each of the first rows to one of the others."""
    count = len(firsts)
    ours = np.flatnonzero(index.filled[:count] & (firsts == np.arange(count)))
    theirs = np.flatnonzero(index.filled[count:]) + count
    likeness = np.zeros(count)
    for number, band in enumerate(index.bands) if len(theirs) else ():
        asking = ours[index.has_band(number, ours)]
        order = theirs[np.argsort(band[theirs], kind="stable")]
        first, end = (np.searchsorted(band[order], band[asking], side) for side in ("left", "right"))
        many = np.minimum(end - first, NEIGHBOURS + 1)
        for start in range(0, len(asking), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            place = np.arange(many[part].sum()) - np.repeat(np.cumsum(many[part]) - many[part], many[part])
            found = order[np.repeat(first[part], many[part]) + place]
            rows, _, similarity = _copies(index, np.repeat(asking[part], many[part]), found, number)
            np.maximum.at(likeness, rows, similarity)
    return likeness[firsts]


def _nothing() -> Found:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)


def _copies(index: _Index, one: Ints, other: Ints, number: int) -> Found:
    """Of pairs that share a band those that are copies, the smaller row first.

    Those that share an earlier band too were compared there.
    """
    new = np.ones(len(one), bool)
    for band in index.bands[:number]:
        new &= band[one] != band[other]
    first, second = np.minimum(one, other)[new], np.maximum(one, other)[new]
    order = np.lexsort((second, first))  # so that a row's text is read for many pairs at once
    first, second = first[order], second[order]
    found = [_nothing()]
    for start in range(0, len(first), PAIRS):
        pairs = first[start : start + PAIRS], second[start : start + PAIRS]
        similarity = index.similarities(*pairs)
        alike = similarity >= COPY
        found.append((pairs[0][alike], pairs[1][alike], similarity[alike]))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------------- MinHash


@dataclass(frozen=True)
class _Index:
    """What finds rows with the same 3-grams.

    Attributes:
        rows: The rows, and behind them those that are held out.
        bands: Of their signatures, and at the end what stands for the words of their prompts, ``[BANDS + 1, N]``.
        texts: What stands for the words of prompt and response in their order, and the signs between, ``[N]``.
        filled: Whether they have 3-grams at all, ``[N]``.
        frames: 3-grams that say nothing of a row, in ascending order.
    """

    rows: tuple[Dataset, ...]
    bands: Hashes
    texts: Hashes
    filled: NDArray[np.bool_]
    frames: Grams

    def has_band(self, number: int, rows: Ints) -> NDArray[np.bool_]:
        """Whether a band means something of each of these rows: prompts without words are not alike for that."""
        return self.bands[number, rows] != 0 if number == BANDS else np.ones(len(rows), bool)

    def similarities(self, first: Ints, second: Ints) -> Floats:
        """How alike the rows of each pair are, 0 to 1, ``[P]``; see `near_copies`."""
        if not len(first):
            return np.zeros(0)
        rows, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        one, other = places.reshape(2, -1)
        parts = [*texts_of(self.rows, rows)]
        told = Rows.of(*([text for part in parts for text in part[side]] for side in range(PARTS)))
        words, (grams, counts) = Sets.of(*told.answers()), told.grams()
        answers = words.jaccard(one, other)
        smaller, larger = np.sort([words.sizes[one], words.sizes[other]], axis=0)
        but_for_one = (smaller + larger - 2 * words.shared(one, other) <= 1) & (smaller > 1)
        asked = self.bands[-1]
        same = (asked[first] == asked[second]) & (asked[first] != 0)
        telling = Sets.of(*without(grams, counts, self.frames)).jaccard(one, other)
        likeness = np.maximum(np.maximum(answers, COPY * but_for_one), Sets.of(grams, counts).jaccard(one, other))
        differ = (answers < SAME_ANSWER) | told.calculate_otherwise(one, other)
        found = np.where(differ, 0.0, np.where(same, likeness, telling))
        asked_apart = np.flatnonzero(~same & (found >= CHAINED))
        otherwise = _ask_otherwise(told, one[asked_apart], other[asked_apart])
        found[asked_apart[otherwise]] = 0.0
        return found


def _ask_otherwise(told: Rows, one: Ints, other: Ints) -> NDArray[np.bool_]:
    """Which pairs of rows ask other things, with a text in common that alone makes most of their 3-grams.

    That is an input, an instruction, or turns before the last one, where the other part of the prompt is not alike; or
    words that both prompts begin and end with, where more than two words stand between them that are not alike. A
    prompt that has words more than another one asks the same.
    """
    asked, inputs = Sets.of(*told.part(0)), Sets.of(*told.part(1))
    parted = (asked.sizes[[one, other]] > 0).all(0) & (inputs.sizes[[one, other]] > 0).all(0)
    parted &= (inputs.jaccard(one, other) >= COPY) != (asked.jaccard(one, other) >= COPY)
    words, left = told.other_words(one, other)
    grams, pairs, sizes = Sets.of(*grams_of(words, left)), np.arange(len(one)), left.reshape(2, -1)
    between = (sizes.min(0) > 0) & (sizes.max(0) > A_WORD_OR_TWO) & (grams.jaccard(pairs, pairs + len(pairs)) < COPY)
    return parted | between


def _index_of(*rows: Dataset) -> _Index:
    frames, count, start = frames_of(rows), sum(map(len, rows)), 0
    draw = np.random.default_rng(0)
    factors = draw.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64) << np.uint64(1) | np.uint64(1)
    summands = draw.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    bands, texts = np.zeros((BANDS + 1, count), np.uint64), np.zeros(count, np.uint64)
    filled = np.zeros(count, bool)
    for parts in texts_of(rows):
        here = slice(start, start := start + len(parts[0]))
        told = Rows.of(*parts)
        grams, counts = without(*told.grams(), frames)
        filled[here] = counts > 0
        _write_bands(bands[:BANDS, here], grams, counts, factors, summands)
        asked, answered = told.in_their_order()
        bands[BANDS, here], texts[here] = asked, spread(spread(asked) + answered + spread(told.calculations()))
    return _Index(rows, bands, texts, filled, frames)


def _write_bands(bands: Hashes, grams: Grams, counts: Ints, factors: Hashes, summands: Hashes) -> None:
    """Write the bands of the signatures of some rows, ``[BANDS, rows]``; a row without 3-grams keeps its zeros."""
    filled = counts > 0
    if not filled.any():
        return
    starts, values = (np.cumsum(counts) - counts)[filled], grams.astype(np.uint64)
    with np.errstate(over="ignore"):
        for number in range(PERMUTATIONS):
            least = np.minimum.reduceat((values * factors[number] + summands[number]) >> np.uint64(32), starts)
            band = bands[number // (PERMUTATIONS // BANDS)]
            band[filled] = spread(band[filled] + least)


# ------------------------------------------------------------------------------------------------------------- groups


def _grouped(index: _Index, found: Found, firsts: Ints) -> tuple[Floats, Ints]:
    """Join copies into groups, the most alike first, but no two groups whose first rows are not alike themselves.

    Args:
        index: Of the rows.
        found: Copies among different rows.
        firsts: Of each row the first that is the same.

    Returns:
        The likeness of each row to another, and its group, ``[N]`` each.
    """
    one, other, similarity = found
    likeness, groups = np.zeros(len(firsts)), np.arange(len(firsts))
    repeats = firsts != groups
    for rows in (one, other):
        np.maximum.at(likeness, rows, similarity)
    order = np.lexsort((other, one, -similarity))
    parents = _joined(index, one[order], other[order])
    groups[np.fromiter(parents.keys(), np.int64)] = np.fromiter(parents.values(), np.int64)
    while not np.array_equal(further := groups[groups], groups):
        groups = further
    likeness[repeats] = likeness[firsts[repeats]] = 1.0
    return likeness, groups[firsts]


def _joined(index: _Index, one: Ints, other: Ints) -> dict[int, int]:
    """An earlier row of its group of each row that is not the first of one.

    Args:
        index: Of the rows.
        one: One row of each pair of copies, the most alike first.
        other: The other row.
    """
    parents: dict[int, int] = {}
    alike: dict[tuple[int, int], bool] = {}
    for place in range(len(one)):
        pair = _roots(parents, one[place], other[place])
        if pair[0] == pair[1]:
            continue
        if pair not in alike:
            alike = _alike(index, parents, one[place : place + AHEAD], other[place : place + AHEAD])
        if alike[pair]:
            parents[pair[1]] = pair[0]
    return parents


def _alike(index: _Index, parents: dict[int, int], one: Ints, other: Ints) -> dict[tuple[int, int], bool]:
    """Whether the first rows of the groups are alike that are met next, if all that are met are joined."""
    met, ahead = [], ChainMap({}, parents)
    for pair in zip(one, other, strict=True):
        first, second = _roots(ahead, *pair)
        if first != second:
            met.append((first, second))
            ahead[second] = first
    near = index.similarities(*np.array(met).T) >= CHAINED
    return dict(zip(met, near.tolist(), strict=True))


def _roots(parents: MutableMapping[int, int], *rows: int) -> tuple[int, int]:
    """The first rows of the groups of two rows, the smaller first; shortens the way there."""
    found = []
    for row in map(int, rows):
        while (up := parents.get(row, row)) != row:
            parents[row] = row = parents.get(up, up)
        found.append(row)
    return min(found), max(found)
