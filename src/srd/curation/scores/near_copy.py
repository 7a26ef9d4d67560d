"""Whether another row says nearly the same."""

from __future__ import annotations

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("near_copy", harder="high", needs=["likeness"])
def near_copy(inputs: ScoreInputs) -> Values:
    """Jaccard similarity of the word 3-grams to those of the nearest other row, 0 to 1 (by MinHash, Broder 1997)."""
    return inputs["likeness"]
