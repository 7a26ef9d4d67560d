"""Responses that repeat themselves to the end, as models do that have lost the thread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srd.curation.detectors.base import register_rule
from srd.metrics.scripts import pieces

TIMES = 4  # a stretch that comes so often in a row is a loop
SHORTEST = 12  # words of a loop; "no, no, no, no" is emphasis
LONGEST = 200  # words of a stretch
VARIED = 0.5  # share of different words from which on nothing can be half a loop
UNSPACED = 48  # signs of a loop that has no spaces, at least: not those of a rule or a large number


@register_rule("looping", "repeat themselves", least=0.5)
def looping(responses: Sequence[str]) -> NDArray[np.float64]:
    """The share of a response's words that lie in one stretch said at least four times in a row, 0 to 1.

    In a script without spaces each letter counts as a word. Or the share of its signs, where they lie in a stretch
    without spaces that is long.
    """
    return np.array([_share(pieces(response)) for response in responses])


def _share(words: list[str]) -> float:
    of_words = _longest(words, SHORTEST) / max(1, len(words))
    of_signs = max((_longest(word, UNSPACED) for word in words if len(word) >= UNSPACED), default=0)
    return max(of_words, of_signs / max(1, sum(map(len, words))))


def _longest(words: Sequence[str], shortest: int) -> int:
    """How many words the longest loop has, of those of at least so many; 0 where there is none."""
    if len(words) < shortest or len(set(words)) > VARIED * len(words) + 1:
        return 0
    known: dict[str, int] = {}
    ids = np.array([known.setdefault(word, len(known)) for word in words])
    longest = 0
    for period in range(1, min(LONGEST, len(ids) // TIMES) + 1):
        same = np.concatenate([[False], ids[period:] == ids[:-period], [False]])
        borders = np.flatnonzero(np.diff(same.astype(np.int8)))
        runs = borders[1::2] - borders[::2] + period  # words that repeat those a period before, and the first period
        runs = runs[(runs >= TIMES * period) & (runs >= shortest)]
        longest = max(longest, int(runs.max(initial=0)))
    return longest
