"""From what score on is a row wrong, when nobody knows how many are?

We can make the damage that we look for. The scores of self-made damage are those that wrong rows have; the data's own
scores are a mixture of theirs and of the clean rows'. Behind every threshold the data has at least the wrong rows that
lie there, so ``share ≤ P(data beyond) / P(damage beyond)``, and the least of these ratios bounds the share (Blanchard
et al. 2010; Elkan and Noto 2008). With it, ``share · damage density > p · data density`` is where a row is wrong with
more than the chance p, and the threshold that wins most by that rule needs no densities, only counts.

A detector that cannot tell its own damage from the data says nothing. But rows that are wrong already score as that
damage does: among 40 % of them the best detector tells no more than 80 %. So it is also asked how well it tells damage
from the rows that remain when the share is taken out.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST = 20  # rows, and self-made damage, below which nothing is said
CANNOT_TELL = 0.75  # the area under the curve below which a detector says nothing
# … unless wrong rows hide what it can: it has this much among them, and this much without them. A detector that is weak
# by itself comes to 0.87 at the most, where scores are normal.
HIDDEN, SURE = 0.65, 0.9
LEAST_SHARE, LEAST_SHARE_IF_WEAK = 0.05, 0.1
IN_REACH = 0.4  # share of the damage beyond every threshold that bounds the share: few rows beyond say little


@dataclass(frozen=True)
class Bar:
    """How sure one must be.

    Attributes:
        marked: How likely wrong a row is that is marked.
        weak: The area under the curve below which a detector needs a larger share of wrong rows.
    """

    marked: float
    weak: float


# A row that is wrong and stays costs nearly three times what a right one does that goes: so about one in twenty of the
# right ones is marked. A model that was shown no rows of the data tells so much less that it would be twice as many.
SHOWN, NOT_SHOWN = Bar(marked=0.27, weak=0.85), Bar(marked=0.5, weak=0.9)


def rules() -> list[Any]:
    """All that a threshold goes by beside the scores: a run that was marked by other rules is marked anew."""
    marking = [LEAST_SHARE, LEAST_SHARE_IF_WEAK, IN_REACH, astuple(SHOWN), astuple(NOT_SHOWN)]
    return [FEWEST, CANNOT_TELL, HIDDEN, SURE, *marking]


@dataclass(frozen=True)
class Calibration:
    """What a detector can do on this data.

    Attributes:
        auc: How often self-made damage scores worse than a row of the data, ½ being chance. Rows that are wrong
            already count against it.
        share: The share of wrong rows that the scores allow.
        threshold: Rows that score at least this badly are wrong; infinite where none is.
        rows: Of the data.
        damaged: Self-made.
    """

    auc: float
    share: float
    threshold: float
    rows: int
    damaged: int

    @property
    def power(self) -> float:
        """The area under the curve with the share of wrong rows taken out, of which half counts as chance does."""
        return (self.auc - self.share / 2) / (1 - self.share) if self.share < 1 else 0.5

    @property
    def has_enough(self) -> bool:
        """Whether there were enough scores to find anything out."""
        return min(self.rows, self.damaged) >= FEWEST

    @property
    def can_tell(self) -> bool:
        """Whether it is worth asking."""
        hidden = self.auc >= HIDDEN and self.power >= SURE
        return self.has_enough and (self.auc >= CANNOT_TELL or hidden)

    def as_json(self) -> dict[str, float | int | bool | None]:
        """Everything as plain data, null for what is not finite."""
        values = {name: value if math.isfinite(value) else None for name, value in vars(self).items()}
        return {**values, "can_tell": self.can_tell}


def calibrate(values: Floats, damaged: Floats, bar: Bar = SHOWN) -> Calibration:
    """Find out from what score on rows are wrong.

    Args:
        values: Scores of the data, high where they are bad, ``[N]``.
        damaged: Scores of self-made damage, ``[M]``.
        bar: How sure one must be.
    """
    values, damaged = np.sort(values[np.isfinite(values)]), np.sort(damaged[np.isfinite(damaged)])
    counts = len(values), len(damaged)
    if min(counts) < FEWEST:
        return Calibration(float("nan"), 0.0, float("inf"), *counts)
    below = np.searchsorted(values, damaged, "left") + np.searchsorted(values, damaged, "right")
    auc = float(below.mean() / (2 * len(values)))
    share = _share(values, damaged)
    found = Calibration(auc, share, float("inf"), *counts)
    if not found.can_tell or share < (LEAST_SHARE if auc >= bar.weak else LEAST_SHARE_IF_WEAK):
        return found
    return replace(found, threshold=_threshold(values, damaged, share, bar.marked))


def _beyond(scores: Floats, thresholds: Floats) -> Floats:
    """The share of scores at or beyond each threshold; the scores are sorted."""
    return 1 - np.searchsorted(scores, thresholds, "left") / len(scores)


def _share(values: Floats, damaged: Floats) -> float:
    thresholds = np.unique(damaged)
    beyond = _beyond(damaged, thresholds)
    ratios = (_beyond(values, thresholds) / beyond)[beyond >= IN_REACH]
    return float(min(1.0, ratios.min()))


def _threshold(values: Floats, damaged: Floats, share: float, marked: float) -> float:
    """Where ``share · P(damage beyond) − marked · P(data beyond)`` is greatest; of equals the mildest."""
    thresholds = np.append(np.unique(values), np.inf)
    won = share * _beyond(damaged, thresholds) - marked * _beyond(values, thresholds)
    return float(thresholds[len(won) - 1 - int(np.argmax(won[::-1]))])
