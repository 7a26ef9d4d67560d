"""How much the prompt says about the response."""

from __future__ import annotations

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("pmi", harder="low", needs=["losses", "lengths", "unprompted"])
def information(inputs: ScoreInputs) -> Values:
    """Pointwise mutual information ℓ(y|∅) − ℓ(y|x), nats: low where the response belongs to another prompt.

    A sum over tokens, as of PVI (arXiv 2110.08420) without its fine-tuning.
    """
    return inputs["unprompted_nll"] - inputs["ce"] * inputs["length"]
