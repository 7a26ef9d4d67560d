"""Rows of the data that a model is shown before it reads one: what is asked here, and what answers are like.

A small model that has seen six questions with their answers tells far better which answer belongs to which question,
and where an answer ends. Some of the six may be wrong themselves. No row is read behind itself: there are two sets, and
the rows of the first are read behind the second.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from srd.base.errors import UserError
from srd.curation.likelihoods import Joined, Tokens
from srd.data.batching import lengths_of
from srd.data.encoding import Encoder
from srd.data.messages import conversation_of, extra_of, plain_text

SHOTS = 6  # rows that are shown
LONGEST = 100  # tokens of one, its frame included: they are read before everything


class _Behind(Sequence[list[int]]):
    """Prompts with the same tokens put into each of some, behind so many of its own."""

    def __init__(self, prompts: Joined, place: int, before: list[int], where: NDArray[np.bool_]) -> None:
        self.prompts, self.place, self.before, self.where = prompts, place, before, where
        self.lengths = lengths_of(prompts) + where * len(before)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: Any) -> Any:
        own = self.prompts[index]
        if not self.where[index]:
            return own
        return [*own[: self.place], *self.before, *own[self.place :]]


@dataclass(frozen=True)
class Shown:
    """Prompts as a model reads them.

    Attributes:
        prompts: Those of the rows, then the empty ones; where rows are shown, once behind each set of them.
        first: Places of the rows of the first set, which are read behind the second.
        shots: How many rows stand before the prompt of each row, ``[N]``.
    """

    prompts: Sequence[list[int]]
    first: NDArray[np.int64]
    shots: NDArray[np.int64]

    def pairs(self, pairs: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs of a prompt and a response of these rows ``[P, 2]``, with the prompt that is read."""
        return pairs + np.stack([np.isin(rows, self.first) * (len(self.prompts) // 2), np.zeros_like(rows)], 1)


def shown(encoder: Encoder, examples: datasets.Dataset, tokens: Tokens) -> Shown:
    """Put rows of the data before each prompt, as earlier turns of one conversation.

    Where that cannot be, there are none: with an encoder-decoder, with too few short rows, where the template tells a
    conversation otherwise than a row, or the model has no place for more tokens. Nor are there before rows that are
    read in another frame than most.

    Args:
        encoder: Has made the tokens.
        examples: Training rows, of the example schema.
        tokens: Of these rows.
    """
    prompts, rows = Joined(tokens.prompts, tokens.blank), len(tokens.prompts)
    nothing = Shown(prompts, np.zeros(0, np.int64), np.zeros(rows, np.int64))
    usual = np.array(tokens.frames) == min(set(tokens.frames), key=lambda frame: (-tokens.frames.count(frame), frame))
    where = np.concatenate([usual, np.isin(np.arange(len(tokens.blank)), tokens.empty[usual])])
    chosen = [] if encoder.encoder_decoder else _chosen(examples, tokens, usual)
    if len(chosen) < 2 * SHOTS:
        return nothing
    sets = chosen[:SHOTS], chosen[SHOTS:]
    told = [_told_before(encoder, examples, tokens, own, other[0]) for own, other in (sets, sets[::-1])]
    if None in told:
        return nothing
    (place, before), (other_place, other) = [each for each in told if each is not None]
    start = tokens.prompts[chosen[0]][:place]
    longest = encoder.max_length + max(len(before), len(other))
    fits = encoder.positions is None or longest <= encoder.positions
    if not fits or place != other_place or any(prompts[i][:place] != start for i in np.flatnonzero(where)):
        return nothing
    behind = [_Behind(prompts, place, each, where) for each in (before, other)]
    return Shown(Joined(*behind), np.array(sets[0], np.int64), SHOTS * usual)


def _chosen(examples: datasets.Dataset, tokens: Tokens, usual: NDArray[np.bool_]) -> list[int]:
    """Rows of both sets, by a draw that follows the ids: short ones that each ask something else, once."""
    lengths = lengths_of(tokens.prompts) + lengths_of(tokens.responses)
    by_draw = sorted(range(len(tokens.ids)), key=lambda row: hashlib.blake2b(tokens.ids[row].encode()).digest())
    chosen: dict[str, int] = {}
    for row in by_draw:
        if usual[row] and lengths[row] <= LONGEST and len(tokens.responses[row]) > 1 and tokens.ended[row]:
            asked = _question(examples[row])
            if asked:
                chosen.setdefault(asked, row)
        if len(chosen) == 2 * SHOTS:
            break
    return list(chosen.values())


def _question(row: dict[str, Any]) -> str:
    """What a row asks, as one turn; nothing where it is more than that."""
    turns = conversation_of(row)
    if row["prompt"] or len(turns) > 1 or extra_of(row).keys() - {"teacher"}:
        return ""
    return plain_text(turns[0]) if turns else "\n\n".join(filter(None, (row["instruction"], row["input"])))


def _told_before(
    encoder: Encoder, examples: datasets.Dataset, tokens: Tokens, rows: list[int], asked: int
) -> tuple[int, list[int]] | None:
    """The tokens of rows as earlier turns before a row's question, and behind how many of its prompt's they stand."""
    turns = []
    for row in map(examples.__getitem__, rows):
        turns += [{"role": "user", "content": _question(row)}, {"role": "assistant", "content": row["references"][0]}]
    example = examples[asked]
    turns.append({"role": "user", "content": _question(example)})
    wide = copy.copy(encoder)
    wide.max_prompt_length = 10 * SHOTS * LONGEST
    try:
        (whole,), _, _ = wide.prompts([{**example, "messages": json.dumps(turns), "instruction": "", "input": ""}])
    except UserError:  # a template without earlier turns
        return None
    own = tokens.prompts[asked]
    same = next((i for i in range(1, len(own) + 1) if own[-i] != whole[-i]), len(own) + 1) - 1
    place = len(own) - same
    return (place, whole[place : len(whole) - same]) if whole[:place] == own[:place] else None
