"""What the teacher can teach."""

from __future__ import annotations

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("gap", harder="low", needs=["losses", "teacher"])
def gap(inputs: ScoreInputs) -> Values:
    """Cross-entropy of the student less the teacher's, nats a token: low where the teacher knows no better.

    RHO-loss (arXiv 2206.07137) with the teacher as the held-out model.
    """
    return inputs["ce"] - inputs["teacher_ce"]
