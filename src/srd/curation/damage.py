"""Damage that is made of the user's own rows, for detectors to be calibrated on."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from srd.curation.detectors.base import MOST
from srd.metrics.scripts import pieces, places

FEWEST_WORDS = {"cut": 2, "garbled": 2}
WORD = re.compile(r"\S+")


def cut(text: str, draw: random.Random) -> str:
    """The text up to the end of a word, any but the last; of a letter, in a script without spaces."""
    ends = [end for _, end in places(text)]
    return text[: ends[draw.randrange(len(ends) - 1)]]


def garbled(text: str, draw: random.Random) -> str:
    """The letters of each word in random order; of all that stands between spaces, in a script without them."""
    return WORD.sub(lambda match: "".join(draw.sample(match[0], len(match[0]))), text)


TEXTS: dict[str, Callable[[str, random.Random], str]] = {"cut": cut, "garbled": garbled}


def chosen_rows(ids: list[str], seed: int) -> NDArray[np.int64]:
    """At most `MOST` rows, drawn by seed, whatever the order of the rows; ascending."""
    by_id = np.array(sorted(range(len(ids)), key=lambda row: ids[row]), dtype=np.int64)
    return np.sort(by_id[np.random.default_rng(seed).permutation(len(ids))[:MOST]])


def damaged(examples: Dataset, rows: NDArray[np.int64], kind: str, seed: int) -> tuple[Dataset, NDArray[np.int64]]:
    """Rows with their response cut or garbled.

    Args:
        examples: Rows of the example schema.
        rows: Which of them to damage; those whose response is too short for it are left out.
        kind: ``cut`` or ``garbled``.
        seed: Of the damage; each row has a stream of its own by its id.

    Returns:
        The damaged rows, and which rows they were.
    """
    made: list[dict[str, Any]] = []
    which = []
    for place, row in zip(rows.tolist(), examples.select(rows), strict=True):
        text = row["references"][0]
        if len(pieces(text)) >= FEWEST_WORDS[kind]:
            made.append({**row, "references": [TEXTS[kind](text, random.Random(f"{seed}:{kind}:{row['id']}"))]})
            which.append(place)
    rows_made = Dataset.from_list(made, features=examples.features) if made else examples.select([])
    return rows_made, np.array(which, dtype=np.int64)
