"""How long the reference is: a control that asks no student."""

from __future__ import annotations

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("length", harder="high", needs=["lengths"])
def length(inputs: ScoreInputs) -> Values:
    """Tokens of the reference."""
    return inputs["length"]
