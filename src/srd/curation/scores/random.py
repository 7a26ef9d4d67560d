"""Chance: a control that knows nothing of the examples."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from srd.curation.scores.base import ScoreInputs, Values, register_score


@register_score("random", drawn=True)
def random(inputs: ScoreInputs) -> Values:
    """Uniform numbers, drawn in the order of the ids, so that the rows' order does not matter."""
    values = np.empty(len(inputs.table))
    by_id = pc.sort_indices(inputs.table, sort_keys=[("id", "ascending")]).to_numpy()
    values[by_id] = np.random.default_rng(inputs.seed).random(len(inputs.table))
    return values
