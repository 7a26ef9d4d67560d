"""How near the student's answer is to the reference."""

from __future__ import annotations

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("rouge_l", harder="low", needs=["answers"])
def rouge_l(inputs: ScoreInputs) -> Values:
    """ROUGE-L of the student's answer, 0 to 1 (SRD, arXiv 2508.06135)."""
    return inputs["rouge_l"]
