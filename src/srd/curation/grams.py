"""Words and word 3-grams of many texts at once, as numbers, and how much two rows have of them in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from srd.base.tables import parts_of, taken
from srd.data.messages import plain_text

CHUNK_ROWS = 500
# What stands in so many rows is a frame, and says nothing of a row: a share of them, and a count.
FRAME_SHARE, FRAME_ROWS, SAMPLE = 0.05, 20, 20_000
COLUMNS = ["instruction", "input", "messages", "references"]

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]
Grams = NDArray[np.uint32]
Ints = NDArray[np.int64]

PARTS = 3  # of a row: instruction, input, response


def _bytes(signs: str) -> NDArray[np.bool_]:
    """Which bytes are one of some signs, ``[256]``."""
    return np.isin(np.arange(256), [ord(sign) for sign in signs])


SIGNS, DIGITS, LINE = _bytes("+-*/=<>!&|%^~"), _bytes("0123456789"), ord("\n")  # calculate and compare
LETTERS = _bytes("abcdefghijklmnopqrstuvwxyz_") | (np.arange(256) >= 0x80)  # in lower case
INSIDE = LETTERS | DIGITS  # of words


def _codes(*ranges: tuple[int, int]) -> NDArray[np.bool_]:
    """Which characters of three bytes lie in some ranges, by their code."""
    found = np.zeros(1 << 16, bool)
    for start, end in ranges:
        found[start:end] = True
    return found


# Of scripts with spaces: from Arabic and Devanagari to Sinhala, without the danda; Georgian, Hangul, Ethiopic without
# its full stops, Cherokee and other small ones; letters with two accents, as in Vietnamese; Hangul.
SPACED = _codes((0x800, 0x964), (0x966, 0xE00), (0x10A0, 0x1361), (0x1369, 0x1780), (0x1C80, 0x1CC0), (0x1E00, 0x2000),
                (0x2C00, 0x2E00), (0x3131, 0x3190), (0xAC00, 0xD7FC))  # fmt: skip
# Scripts whose words have no spaces between, and that have few letters: Thai, Lao, Tibetan, Myanmar, Khmer, Tai.
FEW = _codes((0xE00, 0x10A0), (0x1780, 0x1800), (0x1950, 0x1AB0))

BASE = 0x9E3779B97F4A7C15  # of the words' hashes; odd, so that it has an inverse
MIX = np.array([0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], dtype=np.uint64)


def texts_of(rows: Sequence[Dataset], places: Ints | None = None) -> Iterator[list[list[str]]]:
    """The instructions, the inputs and the responses of the rows, a chunk at a time.

    With ``places``: of those rows, in ascending order.

    The rows of several data sets count as those of one. To make one of them would take longer than a few rows take.
    """
    whole = (part for each in rows for part in parts_of(each, COLUMNS, CHUNK_ROWS))
    for part in whole if places is None else taken(rows, COLUMNS, places):
        texts = [_text(*row) for row in zip(*(part.column(name).to_pylist() for name in COLUMNS), strict=True)]
        yield [[row[part] for row in texts] for part in range(PARTS)]


def _text(instruction: str, context: str, messages: str, references: list[str]) -> tuple[str, str, str]:
    """What a row asks, its input, and its response; of a conversation the turns before the last one, and that."""
    if messages:
        *before, last = map(plain_text, json.loads(messages))
        instruction, context = ("\n".join(before), last) if before else (last, "")
    return instruction, context, (references or [""])[0]


def words_of(texts: list[str]) -> tuple[Hashes, Ints, NDArray[np.bool_], Hashes]:
    """The words of some texts as hashes, one text's behind the other's.

    A word is a run of letters and digits, whatever their case; a sign that takes three bytes of UTF-8, as those of
    scripts without spaces do, is a word of its own, but for letters of scripts with spaces. Its hash is the polynomial
    of its bytes modulo 2 ** 64.

    Returns:
        The words; how many each text has; which of them are letters of a script that has `FEW`; and `_signs`.
    """
    encoded = [text.lower().encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"\n".join([*encoded, b""]), np.uint8)
    inside = INSIDE[data]
    leads = (data & 0xF0) == 0xE0
    three = np.flatnonzero(leads)
    codes = (data[three[:, None] + np.arange(3)] & np.array([15, 63, 63])) @ np.array([1 << 12, 1 << 6, 1])
    leads[three[SPACED[codes]]] = False
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
        hashes = spread((sums[stops] - sums[starts]) * np.cumprod(inverse)[starts] + np.uint64(1))
    few = np.zeros(len(data), bool)
    few[three] = FEW[codes]
    return hashes, counts, few[starts], _signs(data, starts, borders)


def _signs(data: Bytes, starts: Ints, borders: Ints) -> Hashes:
    """What stands for signs that calculate or compare, before each word and behind the last one of each text.

    A number that is 0 where there are none; its lowest bit says whether a number is negative. These count as none: a
    bullet, with which a line begins; what makes a dash or a rule longer; an exclamation mark that negates nothing.

    Args:
        data: Texts, a line break behind each.
        starts: Where words begin.
        borders: Where each text is over, with its line break.
    """
    places = np.flatnonzero(SIGNS[data])
    # The bytes before each, as far as there are any.
    one, two, three = (np.where(places >= shift, data[np.maximum(places - shift, 0)], LINE) for shift in (1, 2, 3))
    sign, behind = data[places], data[np.minimum(places + 1, len(data) - 1)]
    by_itself = ~INSIDE[one] & (one != ord(")"))
    word = LETTERS[two] & LETTERS[three]
    number = (sign == ord("-")) & DIGITS[behind] & by_itself
    number &= (one != ord(" ")) | word | (~INSIDE[two] & (two != ord(")")))  # x -3 is a difference
    idle = (one == LINE) & (behind == ord(" "))
    idle |= (sign == one) & ((sign == two) | (sign == ord("-")))
    idle |= (sign == ord("!")) & (behind != ord("=")) & ~(by_itself & (INSIDE[behind] | (behind == ord("("))))
    places, number = places[~idle], number[~idle]
    gaps = np.searchsorted(starts, places, "right") + np.searchsorted(borders, places, "right")
    found = np.zeros(len(starts) + len(borders), np.uint64)
    new = np.flatnonzero(np.diff(gaps, prepend=-1))
    if len(new):
        rank = np.arange(len(gaps)) - np.repeat(new, np.diff(np.append(new, len(gaps))))
        with np.errstate(over="ignore"):
            values = spread(data[places].astype(np.uint64) | rank.astype(np.uint64) << np.uint64(8))
            found[gaps[new]] = np.add.reduceat(values, new) << np.uint64(1)
        found[gaps[new]] |= np.logical_or.reduceat(number, new)
    return found


def _later(flags: NDArray[np.bool_], places: int) -> NDArray[np.bool_]:
    """Flags, each some places later."""
    return np.concatenate([np.zeros(places, bool), flags[:-places]])[: len(flags)]


def spread(values: Hashes) -> Hashes:
    """Spread the bits of numbers (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Rows:
    """The words of some rows.

    Attributes:
        words: As hashes, one row's behind the other's: those of its instruction, its input and its response.
        counts: How many each of the three has, ``[N, 3]``.
        few: Which of them are letters of a script that has `FEW`.
        signs: What stands for signs before each word, and behind the last one of each of the three; see `_signs`.
    """

    words: Hashes
    counts: Ints
    few: NDArray[np.bool_]
    signs: Hashes

    @classmethod
    def of(cls, *texts: list[str]) -> Rows:
        """Of so many instructions, inputs and responses."""
        words, counts, few, signs = words_of([text for row in zip(*texts, strict=True) for text in row])
        return cls(words, counts.reshape(-1, PARTS), few, signs)

    def part(self, number: int) -> tuple[Hashes, Ints]:
        """The words of the instructions (0), inputs (1) or responses (2), and how many each has."""
        own = self._of(number)
        return self.words[own], self.counts[:, number]

    def answers(self) -> tuple[Hashes, Ints]:
        """The words of the responses; two neighbours for each letter of a script that has few: all texts have those."""
        own = self._of(PARTS - 1)
        words, few, counts = self.words[own], self.few[own], self.counts[:, -1]
        last = np.zeros(len(words) + 1, bool)
        last[np.cumsum(counts)[counts > 0] - 1] = True
        first = np.flatnonzero(few & np.append(few[1:], False) & ~last[:-1])
        with np.errstate(over="ignore"):
            words[first] = spread(words[first] * MIX[0] + words[first + 1] * MIX[1])
        return words, counts

    def _of(self, number: int) -> NDArray[np.bool_]:
        """Which words are those of a part."""
        return np.repeat(np.arange(self.counts.size) % PARTS == number, self.counts.ravel())

    def in_their_order(self) -> tuple[Hashes, Hashes]:
        """What stands for the words of each prompt in their order, and of each response; 0 for one without words."""
        counts = np.stack([self.counts[:, :-1].sum(1), self.counts[:, -1]], 1).ravel()
        found = _in_order(self.words, counts)
        return found[::2], found[1::2]

    def calculations(self) -> Hashes:
        """What stands for the signs of each row and their places among its words, ``[N]``."""
        return _in_order(self.signs, self.counts.sum(1) + PARTS)

    def calculate_otherwise(self, one: Ints, other: Ints) -> NDArray[np.bool_]:
        """Which pairs of rows have the same words in the same order, and somewhere other signs between them ``[P]``.

        Signs against none are a dash, a hyphen or emphasis, unless they make a number negative.
        """
        asked, answered = self.in_their_order()
        same = (asked[one] == asked[other]) & (answered[one] == answered[other])
        pairs = np.flatnonzero(same & (self.counts[one] == self.counts[other]).all(1))
        sizes = self.counts.sum(1) + PARTS
        starts, sizes = np.cumsum(sizes) - sizes, sizes[one[pairs]]
        inside = _inside(sizes)
        ours, theirs = (self.signs[np.repeat(starts[side[pairs]], sizes) + inside] for side in (one, other))
        lowest = np.uint64(1)
        differ = (np.minimum(ours, theirs) > lowest) & (ours >> lowest != theirs >> lowest)
        differ |= (ours ^ theirs) & lowest == lowest
        found = np.zeros(len(one), bool)
        found[np.repeat(pairs, sizes)[differ]] = True
        return found

    def grams(self) -> tuple[Grams, Ints]:
        """The word 3-grams of the rows as numbers, and how many each row has.

        A row of one or two words has one of them; a row without words has none.
        """
        return grams_of(self.words, self.counts.sum(1))

    def other_words(self, one: Ints, other: Ints) -> tuple[Hashes, Ints]:
        """What is left of the prompts of each pair without the words that both begin with and that both end with.

        Returns:
            The words, those of each first row and then those of each other one, and how many each has, ``[2 P]``.
        """
        sizes, starts = self.counts[:, :-1].sum(1), np.cumsum(self.counts.sum(1)) - self.counts.sum(1)
        sides, pairs = np.concatenate([one, other]), np.tile(np.arange(len(one)), 2)
        most = np.minimum(sizes[one], sizes[other])
        head = _alike(self.words, starts[one], starts[other], most)
        ends = len(self.words) - (starts + sizes)  # of the prompts, counted from the last word of all
        tail = _alike(self.words[::-1], ends[one], ends[other], most - head)
        left = sizes[sides] - (head + tail)[pairs]
        return self.words[np.repeat(starts[sides] + head[pairs], left) + _inside(left)], left


def _inside(sizes: Ints) -> Ints:
    """The place of each value among those of its row, of which each has so many."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _alike(words: Hashes, one: Ints, other: Ints, most: Ints) -> Ints:
    """How many words are the same from two places of each pair on, at most so many, ``[P]``."""
    pair, inside = np.repeat(np.arange(len(most)), most), _inside(most)
    differ = words[one[pair] + inside] != words[other[pair] + inside]
    found = most.copy()
    np.minimum.at(found, pair[differ], inside[differ])
    return found


def grams_of(words: Hashes, counts: Ints) -> tuple[Grams, Ints]:
    """The 3-grams of words, of which each row has so many, and how many of them it has; see `Rows.grams`."""
    sizes = np.where(counts > 0, np.maximum(counts - 2, 1), 0)
    owner = np.repeat(np.arange(len(counts)), sizes)
    ends = np.cumsum(counts)
    first = (ends - counts - np.cumsum(sizes) + sizes)[owner] + np.arange(len(owner))
    last = ends[owner] - 1
    padded = np.append(words, np.uint64(0))  # what stands in the place of a third word that is not there
    with np.errstate(over="ignore"):
        mixed = sum(padded[np.where(first + i <= last, first + i, len(words))] * MIX[i] for i in range(3))
    return (spread(mixed) >> np.uint64(32)).astype(np.uint32), sizes


def _in_order(values: Hashes, counts: Ints) -> Hashes:
    """What stands for so many values each in their order; 0 for none."""
    ends, place = np.cumsum(counts), _inside(counts)
    with np.errstate(over="ignore"):
        summands = spread(values + place.astype(np.uint64) * MIX[0])
        sums = np.concatenate([[np.uint64(0)], np.cumsum(summands)])
        return sums[ends] - sums[ends - counts]


def frames_of(rows: Sequence[Dataset]) -> Grams:
    """The 3-grams that stand in so many rows that they say nothing of one, in ascending order."""
    count, found = sum(map(len, rows)), [np.zeros(0, np.uint64)]
    sample = np.linspace(0, count - 1, SAMPLE).astype(np.int64) if count > SAMPLE else None
    for texts in texts_of(rows, sample):
        grams, sizes = Rows.of(*texts).grams()
        once = np.unique(np.repeat(np.arange(len(sizes)), sizes).astype(np.uint64) << np.uint64(32) | grams)
        found.append(once & np.uint64(0xFFFFFFFF))
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    return values[counts > max(FRAME_ROWS, FRAME_SHARE * min(count, SAMPLE))].astype(np.uint32)


def without(grams: Grams, counts: Ints, frames: Grams) -> tuple[Grams, Ints]:
    """Leave out what says nothing, but for rows of which nothing else would be left."""
    if not len(frames):
        return grams, counts
    row = np.repeat(np.arange(len(counts)), counts)
    kept = frames[np.minimum(np.searchsorted(frames, grams), len(frames) - 1)] != grams
    kept |= np.bincount(row[kept], minlength=len(counts))[row] == 0
    return grams[kept], np.bincount(row[kept], minlength=len(counts))


# --------------------------------------------------------------------------------------------------- sets of many rows

LOW = np.int64(0xFFFFFFFF)


@dataclass(frozen=True)
class Sets:
    """A set of numbers for each row.

    Attributes:
        values: Of all rows, one row's behind the other's; as places among the different ones.
        sizes: Of each row's set, ``[N]``.
    """

    values: Ints
    sizes: Ints

    @classmethod
    def of(cls, values: NDArray[np.unsignedinteger], counts: Ints) -> Sets:
        """The different ones of each row's values.

        Args:
            values: One row's behind the other's.
            counts: Of each row, ``[N]``.
        """
        _, places = np.unique(values, return_inverse=True)
        keys = np.unique(np.repeat(np.arange(len(counts)), counts) << 32 | places)
        return cls(keys & LOW, np.bincount(keys >> 32, minlength=len(counts)))

    def shared(self, one: Ints, other: Ints) -> Ints:
        """How many values the sets of two rows have in common, for each pair ``[P]``."""
        keys = np.concatenate([self._of(one), self._of(other)])
        keys.sort()
        return np.bincount(keys[1:][keys[1:] == keys[:-1]] >> 32, minlength=len(one))

    def jaccard(self, one: Ints, other: Ints) -> NDArray[np.float64]:
        """The similarity of the sets of two rows, for each pair ``[P]``; two empty ones are the same."""
        shared = self.shared(one, other)
        together = self.sizes[one] + self.sizes[other] - shared
        return np.where(together > 0, shared / np.maximum(1, together), 1.0)

    def _of(self, rows: Ints) -> Ints:
        """The values of some rows, each with the number of the row among these in its upper half."""
        sizes, starts = self.sizes[rows], (np.cumsum(self.sizes) - self.sizes)[rows]
        number = np.repeat(np.arange(len(rows)), sizes)
        return number << 32 | self.values[starts[number] + _inside(sizes)]
