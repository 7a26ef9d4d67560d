"""Responses that say nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srd.curation.detectors.base import register_rule

PLACEHOLDERS = frozenset(".…-–—_*")  # what stands where an answer was to come


@register_rule("empty", "say nothing", least=1.0, of_nothing=True)
def empty(responses: Sequence[str]) -> NDArray[np.float64]:
    """1 for a response of spaces, invisible characters, dots, dashes, underscores and asterisks alone, else 0."""
    return np.array([float(not any(map(_says_something, response))) for response in responses])


def _says_something(character: str) -> bool:
    return character not in PLACEHOLDERS and unicodedata.category(character)[0] not in "ZC"
