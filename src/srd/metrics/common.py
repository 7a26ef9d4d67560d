"""What the metrics share: arrays of scores, references that are one text or several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def as_list(references: str | Sequence[str]) -> Sequence[str]:
    """References as a list; one text is a list of one."""
    if isinstance(references, str):
        return (references,)
    if not references:
        raise ValueError("no reference to score against: give at least one")
    return references


def check_lengths(first: Sequence[object], second: Sequence[object]) -> None:
    """Refuse predictions and references that are not one to one."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} predictions but {len(second)} references: they must be one to one")
