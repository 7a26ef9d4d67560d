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


@register_rule("looping", "repeat themselves", least=0.5)
def looping(responses: Sequence[str]) -> NDArray[np.float64]:
    """The share of a response's words that lie in one stretch said at least four times in a row, 0 to 1.

    In a script without spaces each letter counts as a word.
    """
    return np.array([_share(pieces(response)) for response in responses])


def _share(words: list[str]) -> float:
    if len(words) < SHORTEST or len(set(words)) > VARIED * len(words) + 1:
        return 0.0
    known: dict[str, int] = {}
    ids = np.array([known.setdefault(word, len(known)) for word in words])
    longest = 0
    for period in range(1, min(LONGEST, len(ids) // TIMES) + 1):
        same = np.concatenate([[False], ids[period:] == ids[:-period], [False]])
        borders = np.flatnonzero(np.diff(same.astype(np.int8)))
        runs = borders[1::2] - borders[::2] + period  # words that repeat those a period before, and the first period
        runs = runs[(runs >= TIMES * period) & (runs >= SHORTEST)]
        longest = max(longest, int(runs.max(initial=0)))
    return longest / len(words)
