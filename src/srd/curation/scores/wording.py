"""How surprising the words of the reference are, wherever they end."""

from __future__ import annotations

import numpy as np

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("wording", harder="high", needs=["losses", "lengths", "endings"])
def wording(inputs: ScoreInputs) -> Values:
    """Cross-entropy of the reference without its end, nats a token: high where it is garbled, not where it is cut.

    Our own: `ce` counts a cut response as a garbled one.
    """
    words = np.maximum(inputs["length"] - (inputs["end_nll"] > 0), 1)
    return (inputs["ce"] * inputs["length"] - inputs["end_nll"]) / words
