"""Rows that nearly repeat another row: word 3-grams of prompt and response, MinHash, and then the exact similarity.

MinHash suggests pairs (Broder 1997): 128 permutations in 16 bands of 8, so that of two rows that share 80 % of their
3-grams 95 % are looked at, and of two that share half of them 6 %. What is suggested is compared exactly. All of it is
numpy on whole chunks of text: a million rows of eighty words take about a minute and 0.6 GB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from srd.data.messages import plain_text

PERMUTATIONS, BANDS = 128, 16
COPY = 0.8  # Jaccard similarity of two rows that are copies
CHAINED = 0.5  # that of any two rows of a group, at least
SAME_ANSWER = 0.5  # share of words that the responses of two copies have in common
CHUNK_ROWS = 500
NEIGHBOURS = 11  # rows of its bucket that a row is compared with
# What stands in so many rows is a frame, and says nothing of a row: a share of them, and a count.
FRAME_SHARE, FRAME_ROWS, SAMPLE = 0.05, 20, 20_000
COLUMNS = ["instruction", "input", "messages", "references"]

Hashes = NDArray[np.uint64]
Grams = NDArray[np.uint32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Which rows nearly repeat which.

    Attributes:
        likeness: The greatest similarity of each row to another one that was found, 0 to 1, ``[N]``.
        groups: The group of each row, ``[N]``; a row that repeats none has a group of its own.
        held_out: Likewise the likeness to rows that are held out, ``[N]``.
    """

    likeness: NDArray[np.float64]
    groups: Ints
    held_out: NDArray[np.float64]

    def spare(self, worse: NDArray[np.float64]) -> NDArray[np.bool_]:
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
    their responses share at least half of their words: to the same question, *yes* and *no* are no copies. Where they
    ask different things, what stands in more than one row of twenty is a frame and does not count. Where they ask the
    same, they are also copies if the words of their responses are so alike, or are the same but for one: in a short row
    one word decides over many 3-grams.

    Args:
        rows: Of the example schema.
        held_out: Likewise.
    """
    index, count = _index_of(rows, held_out), len(rows)
    likeness, groups = _grouped(index, count, list(_alike(index, _pairs_within(index, count))))
    return Copies(likeness, groups, _likeness_across(index, count))


def copies_of(rows: Dataset, held_out: Dataset) -> NDArray[np.float64]:
    """The greatest similarity of each row to a row that is held out, 0 where that is none's copy, ``[N]``."""
    return _likeness_across(_index_of(rows, held_out), len(rows))


def _pairs_within(index: _Index, count: int) -> Ints:
    """Pairs of the first so many rows that share a band: each row with the next ones that do."""
    rows, found = index.filled[index.filled < count], [np.zeros((0, 2), np.int64)]
    for band in index.bands:
        order = rows[np.argsort(band[rows], kind="stable")]
        for shift in range(1, NEIGHBOURS + 1):
            alike = band[order[:-shift]] == band[order[shift:]]
            if not alike.any():
                break
            found.append(np.stack([order[:-shift][alike], order[shift:][alike]], 1))
    return np.concatenate(found)


def _likeness_across(index: _Index, count: int) -> NDArray[np.float64]:
    """The greatest similarity of each of the first so many rows to one of the others."""
    ours, theirs = index.filled[index.filled < count], index.filled[index.filled >= count]
    found = [np.zeros((0, 2), np.int64)]
    for band in index.bands if len(theirs) else ():
        order = theirs[np.argsort(band[theirs], kind="stable")]
        first, end = (np.searchsorted(band[order], band[ours], side) for side in ("left", "right"))
        for shift in range(NEIGHBOURS + 1):
            alike = first + shift < end
            if not alike.any():
                break
            found.append(np.stack([ours[alike], order[first[alike] + shift]], 1))
    likeness = np.zeros(count)
    for row, _, similarity in _alike(index, np.concatenate(found)):
        likeness[row] = max(likeness[row], similarity)
    return likeness


# ------------------------------------------------------------------------------------------------ words and 3-grams

BASE = 0x9E3779B97F4A7C15  # of the words' hashes; odd, so that it has an inverse
MIX = np.array([0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], dtype=np.uint64)


def _texts(rows: Dataset) -> Iterator[tuple[list[str], list[str]]]:
    """The prompts and the responses of the rows, a chunk at a time."""
    for batch in rows.select_columns(COLUMNS).iter(CHUNK_ROWS):
        texts = [_text(*row) for row in zip(*(batch[name] for name in COLUMNS), strict=True)]
        yield [prompt for prompt, _ in texts], [response for _, response in texts]


def _text(instruction: str, context: str, messages: str, references: list[str]) -> tuple[str, str]:
    """The prompt and the response of a row."""
    return f"{_said(messages) if messages else instruction}\n{context}", (references or [""])[0]


def _said(messages: str) -> str:
    return "\n".join(plain_text(turn) for turn in json.loads(messages))


def _words(texts: list[str]) -> tuple[Hashes, Ints]:
    """The words of some texts as hashes, one text's behind the other's, and how many each text has.

    A word is a run of letters and digits, whatever their case; a sign that takes three bytes of UTF-8, as those of
    scripts without spaces do, is a word of its own. Its hash is the polynomial of its bytes modulo 2 ** 64.
    """
    encoded = [text.lower().encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"\n".join([*encoded, b""]), np.uint8)
    inside = (data >= 0x80) | ((data >= 97) & (data <= 122)) | ((data >= 48) & (data <= 57)) | (data == 95)
    leads = (data & 0xF0) == 0xE0
    whole = leads | _later(leads, 1) | _later(leads, 2)  # bytes of a sign that is a word of its own
    begins = inside & (~_later(inside, 1) | leads | (_later(whole, 1) & ~whole))
    ends = inside & ~(np.append(inside[1:], False) & ~np.append(begins[1:], False))
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1
    borders = np.cumsum([len(text) + 1 for text in encoded])
    counts = np.diff(np.searchsorted(starts, borders), prepend=0)
    with np.errstate(over="ignore"):
        powers = np.full(len(data) + 1, BASE, np.uint64)
        powers[0] = 1
        inverse = np.full(len(data) + 1, pow(BASE, -1, 2**64), np.uint64)
        inverse[0] = 1
        sums = np.concatenate([[np.uint64(0)], np.cumsum(data * np.cumprod(powers)[:-1])])
        return _spread((sums[stops] - sums[starts]) * np.cumprod(inverse)[starts] + np.uint64(1)), counts


def _later(flags: NDArray[np.bool_], places: int) -> NDArray[np.bool_]:
    """Flags, each some places later."""
    return np.concatenate([np.zeros(places, bool), flags[:-places]])[: len(flags)]


def _spread(values: Hashes) -> Hashes:
    """Spread the bits of numbers (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _grams(prompts: list[str], responses: list[str]) -> tuple[Grams, Ints]:
    """The word 3-grams of some rows as numbers, and how many each row has.

    A row of one or two words has one of them; a row without words has none.
    """
    texts = [f"{prompt}\n{response}" for prompt, response in zip(prompts, responses, strict=True)]
    words, counts = _words(texts)
    sizes = np.where(counts > 0, np.maximum(counts - 2, 1), 0)
    owner = np.repeat(np.arange(len(texts)), sizes)
    ends = np.cumsum(counts)
    first = (ends - counts - np.cumsum(sizes) + sizes)[owner] + np.arange(len(owner))
    last = ends[owner] - 1
    padded = np.append(words, np.uint64(0))  # what stands in the place of a third word that is not there
    with np.errstate(over="ignore"):
        mixed = sum(padded[np.where(first + i <= last, first + i, len(words))] * MIX[i] for i in range(3))
    return (_spread(mixed) >> np.uint64(32)).astype(np.uint32), sizes


def _frames(rows: Dataset) -> Grams:
    """The 3-grams that stand in so many rows that they say nothing of one, in ascending order."""
    sample = rows.select(np.linspace(0, len(rows) - 1, SAMPLE).astype(int)) if len(rows) > SAMPLE else rows
    found = [np.zeros(0, np.uint64)]
    for texts in _texts(sample):
        grams, sizes = _grams(*texts)
        once = np.unique(np.repeat(np.arange(len(sizes)), sizes).astype(np.uint64) << np.uint64(32) | grams)
        found.append(once & np.uint64(0xFFFFFFFF))
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    return values[counts > max(FRAME_ROWS, FRAME_SHARE * len(sample))].astype(np.uint32)


# ---------------------------------------------------------------------------------------------------------- MinHash


@dataclass(frozen=True)
class _Index:
    """The 3-grams of all rows, and what finds rows with the same ones.

    Attributes:
        rows: The rows.
        grams: One row's behind the other's.
        starts: Where each row's begin, ``[N + 1]``.
        bands: Of their signatures, and at the end what stands for the words of their prompts, ``[BANDS + 1, N]``.
    """

    rows: Dataset
    grams: Grams
    starts: Ints
    bands: Hashes
    known: dict[int, Words] = field(default_factory=dict)

    @property
    def filled(self) -> Ints:
        """The rows that have 3-grams at all."""
        return np.flatnonzero(np.diff(self.starts) > 0)

    def similarity(self, first: int, second: int) -> float:
        """How alike two rows are, 0 to 1; see `near_copies`."""
        one, other = self._of(first), self._of(second)
        answers = _jaccard(one.response, other.response)
        if answers < SAME_ANSWER:
            return 0.0
        if not self.bands[-1, first] == self.bands[-1, second] != 0:
            return _jaccard(one.telling, other.telling)
        difference = len(np.setxor1d(one.response, other.response, assume_unique=True))
        but_for_one = difference <= 1 and min(len(one.response), len(other.response)) > 1
        return max(answers, COPY if but_for_one else 0.0, _jaccard(one.grams, other.grams))

    def _of(self, row: int) -> Words:
        if row not in self.known:
            if len(self.known) > 10_000:
                self.known.clear()
            content = self.rows[row]
            prompt, response = _text(*(content[name] for name in COLUMNS))
            telling = self.grams[self.starts[row] : self.starts[row + 1]]
            grams, words = _grams([prompt], [response])[0], _words([response])[0]
            self.known[row] = Words(np.unique(telling), np.unique(grams), np.unique(words))
        return self.known[row]


class Words(NamedTuple):
    """The different 3-grams of a row, without those of frames and with them, and the words of its response."""

    telling: Grams
    grams: Grams
    response: Hashes


def _jaccard(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Of two sets; two empty ones are the same."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared) if len(one) or len(other) else 1.0


def _index_of(rows: Dataset, held_out: Dataset | None) -> _Index:
    """The rows, and behind them those that are held out."""
    parts = [part.select_columns(COLUMNS) for part in (rows, held_out) if part is not None and len(part)]
    return _index(concatenate_datasets(parts))


def _index(rows: Dataset) -> _Index:
    frames = _frames(rows)
    draw = np.random.default_rng(0)
    factors = draw.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64) << np.uint64(1) | np.uint64(1)
    summands = draw.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    all_grams, all_counts, bands = [], [], []
    for prompts, responses in _texts(rows):
        grams, counts = _without(*_grams(prompts, responses), frames)
        all_grams.append(grams)
        all_counts.append(counts)
        bands.append(np.concatenate([_bands(grams, counts, factors, summands), _asked(prompts)[None]]))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(all_counts))])
    return _Index(rows.select_columns(COLUMNS), np.concatenate(all_grams), starts, np.concatenate(bands, axis=1))


def _asked(prompts: list[str]) -> Hashes:
    """What stands for the words of each prompt in their order, ``[rows]``; 0 for one without words."""
    words, counts = _words(prompts)
    place = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
    with np.errstate(over="ignore"):
        sums = np.concatenate([[np.uint64(0)], np.cumsum(_spread(words + place.astype(np.uint64) * MIX[0]))])
    ends = np.cumsum(counts)
    return sums[ends] - sums[ends - counts]


def _without(grams: Grams, counts: Ints, frames: Grams) -> tuple[Grams, Ints]:
    """Leave out what says nothing, but for rows of which nothing else would be left."""
    if not len(frames):
        return grams, counts
    row = np.repeat(np.arange(len(counts)), counts)
    kept = frames[np.minimum(np.searchsorted(frames, grams), len(frames) - 1)] != grams
    kept |= np.bincount(row[kept], minlength=len(counts))[row] == 0
    return grams[kept], np.bincount(row[kept], minlength=len(counts))


def _bands(grams: Grams, counts: Ints, factors: Hashes, summands: Hashes) -> Hashes:
    """The bands of the signatures of some rows, ``[BANDS, rows]``; those of a row without 3-grams mean nothing."""
    bands = np.zeros((BANDS, len(counts)), dtype=np.uint64)
    filled = counts > 0
    if not filled.any():
        return bands
    starts, values = (np.cumsum(counts) - counts)[filled], grams.astype(np.uint64)
    with np.errstate(over="ignore"):
        for number in range(PERMUTATIONS):
            least = np.minimum.reduceat((values * factors[number] + summands[number]) >> np.uint64(32), starts)
            band = bands[number // (PERMUTATIONS // BANDS)]
            band[filled] = _spread(band[filled] + least)
    return bands


# ------------------------------------------------------------------------------------------------- exact comparison


def _alike(index: _Index, pairs: Ints) -> Iterator[tuple[int, int, float]]:
    """Of some pairs of rows those that are copies, the smaller number first, with their similarity."""
    count = len(index.starts) - 1
    keys = np.unique(pairs.min(1, initial=count) * count + pairs.max(1, initial=0))
    for first, second in zip((keys // count).tolist(), (keys % count).tolist(), strict=True):
        if (similarity := index.similarity(first, second)) >= COPY:
            yield first, second, similarity


def _grouped(index: _Index, count: int, pairs: list[tuple[int, int, float]]) -> tuple[NDArray[np.float64], Ints]:
    """Join pairs into groups, the most alike first, but no two groups whose first rows are not alike themselves."""
    likeness, groups = np.zeros(count), np.arange(count)

    def root(row: int) -> int:
        while groups[row] != row:
            groups[row] = groups[groups[row]]
            row = int(groups[row])
        return row

    for first, second, similarity in sorted(pairs, key=lambda pair: (-pair[2], pair)):
        likeness[[first, second]] = np.maximum(likeness[[first, second]], similarity)
        one, other = sorted((root(first), root(second)))
        if one != other and index.similarity(one, other) >= CHAINED:
            groups[other] = one
    return likeness, np.array([root(row) for row in range(count)], dtype=np.int64)
