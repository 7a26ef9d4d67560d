"""How surprised the student is by the reference."""

from __future__ import annotations

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("ce", harder="high", needs=["losses"])
def cross_entropy(inputs: ScoreInputs) -> Values:
    """Cross-entropy of the reference, nats a token (SRD, arXiv 2508.06135)."""
    return inputs["ce"]
