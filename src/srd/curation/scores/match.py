"""Whether the response belongs to its prompt, by contrast with other prompts."""

from __future__ import annotations

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("match", harder="low", needs=["losses", "lengths", "endings", "mismatched"])
def match(inputs: ScoreInputs) -> Values:
    """ℓ(y|x_k), a mean over other rows' prompts, less ℓ(y|x); nats, the end left out, low where it is elsewhere.

    Our own: `pmi` with other prompts in place of none.
    """
    return inputs["mismatched_nll"] - (inputs["ce"] * inputs["length"] - inputs["end_nll"])
