"""Rows whose scores can be compared: those of one script, read in one frame.

A model ends what it writes in a script that it has seen little of less surely, finds it likelier or less likely
throughout, and is told less by its prompt. So it is in a frame that it does not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np
from numpy.typing import NDArray

from srd.base.text import shorten
from srd.data.encoding import Encoder
from srd.metrics.scripts import script_of

MAIN = ""  # the group that most rows are of
Kind = tuple[str, str]  # a script, and a frame
Groups = NDArray[np.object_]


def frames_of(encoder: Encoder, examples: datasets.Dataset) -> list[str]:
    """The name of the template that renders each row."""
    found: list[str] = []
    for batch in examples.select_columns(["id", "instruction", "messages", "prompt"]).iter(10_000):
        rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        found += [encoder.template.for_row(row).name for row in rows]
    return found


def kinds_of(examples: datasets.Dataset, frames: Sequence[str]) -> list[Kind]:
    """The script of each response, and the frame of its row."""
    return [(script_of((texts or [""])[0]), frame) for texts, frame in zip(examples["references"], frames, strict=True)]


def groups_of(kinds: Sequence[Kind], among: Sequence[Kind] | None = None) -> Groups:
    """The group of each kind, by what it differs in from that of most rows: ``MAIN``, ``Thai``, …, ``[N]``.

    A response without a letter counts as one of the most frequent script.

    Args:
        kinds: Of some rows.
        among: Of all rows, where these are not all.
    """
    counts = Counter(kind for kind in (kinds if among is None else among) if kind[0])
    script, frame = min(counts, key=lambda kind: (-counts[kind], kind), default=("", ""))
    labels = {
        (own, read): ", ".join([
            *([own] if own not in ("", script) else []),
            *([f"read in the template {shorten(read, 30)}"] if frame and read != frame else []),
        ])
        for own, read in set(kinds)
    }  # fmt: skip
    return np.array([labels[kind] for kind in kinds], dtype=object)


def of_each(groups: Groups) -> dict[str, NDArray[np.int64]]:
    """The places of the rows of each group, that of most rows first."""
    return {str(group): np.flatnonzero(groups == group) for group in np.unique(groups)}
