"""How much harder the response is with its prompt than without."""

from __future__ import annotations

import numpy as np

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("ifd", harder="high", needs=["losses", "lengths", "unprompted"])
def difficulty(inputs: ScoreInputs) -> Values:
    """Instruction-following difficulty ℓ(y|x) / ℓ(y|∅) (Cherry LLM, arXiv 2308.12032)."""
    nothing = 1e-9  # a response that is certain without a prompt has no nats to divide by
    return inputs["ce"] * inputs["length"] / np.maximum(inputs["unprompted_nll"], nothing)
