"""Whether the response stops too early."""

from __future__ import annotations

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("eos", harder="high", needs=["endings"])
def ending(inputs: ScoreInputs) -> Values:
    """Nats of the end behind the whole reference, −log p(end | x, y): high where more was to come. Our own measure."""
    return inputs["end_nll"]
