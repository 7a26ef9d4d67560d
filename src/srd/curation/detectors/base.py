"""What a detector is: it says which rows are wrong, for one kind of damage each.

There are two kinds. A *rule* looks at the response and marks what has at least a value (`register_rule`). A *contrast*
takes a score, is shown damage that was made of the user's own rows, and works out from that where wrong begins
(`register_contrast`). Kinds of damage are disjoint, so the detectors are never fused: a row is wrong if one says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from srd.base.errors import UserError
from srd.base.failures import first_line
from srd.base.handed import check_call
from srd.base.registry import Registry
from srd.curation.scores.base import PASSES, SCORES

MOST = 600  # rows that are damaged for one detector
REPAIRS = 4  # answers of the teacher's that a wrong row gets, beside the greedy one

READ = {"losses", "lengths", *PASSES}  # what a contrast may need
Damage = Literal["swapped", "cut", "garbled"]
Rule = Callable[[Sequence[str]], NDArray[np.float64]]

#: What is said of a row that no detector has marked: the user has, or it repeats one that is held out.
NAMED, HELD_OUT = "named", "held_out"
REASONS = {NAMED: "are named in data.cleaning.drop", HELD_OUT: "nearly repeat a validation or test row"}

#: What the report says of a row that is not wrong, and has an answer of the teacher.
REWRITTEN = "rewritten"
REASONS |= {REWRITTEN: "are not wrong, and have an answer of the teacher"}


@dataclass(frozen=True)
class Detector:
    """A registered detector.

    Attributes:
        name: Its name in recipes; of a contrast that of its score.
        reason: What is wrong with the rows that it marks: what "these rows …" goes on with.
        damage: What a contrast is shown.
        rule: Of a rule: a value for each response.
        least: Of a rule: the value from which on a row is wrong.
        of_copies: Whether it marks near copies, found by `srd.curation.copies`: their text is right, but there once.
        of_nothing: Whether what it marks has no text, which could be learnt less of.
    """

    name: str
    reason: str
    damage: Damage | None = None
    rule: Rule | None = None
    least: float = 0.0
    of_copies: bool = False
    of_nothing: bool = False

    def values(self, responses: Sequence[str]) -> NDArray[np.float64]:
        """Of a rule: a number for each response.

        Raises:
            UserError: it gives something else.
        """
        assert self.rule is not None
        wanted = f"the detector '{self.name}' must give one finite number for each of {len(responses)} responses"
        given = self.rule(responses)
        try:
            found = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{wanted}: {first_line(error)}") from error
        if found.shape != (len(responses),) or not np.isfinite(found).all():
            raise UserError(f"{wanted}, but gives {str(given)[:80]}")
        return found


DETECTORS: Registry[Detector] = Registry("detector", "srd.curation.detectors")


def register_rule(name: str, reason: str, *, least: float, of_nothing: bool = False) -> Callable[[Rule], Rule]:
    """Register ``function(responses) -> values``: rows with at least the value ``least`` are wrong.

    Raises:
        UserError: the name is taken, or it is no such function.
    """

    def decorate(function: Rule) -> Rule:
        check_call(f"the detector '{name}'", function, "responses")
        detector = Detector(name, reason, rule=function, least=least, of_nothing=of_nothing)
        DETECTORS.register(name, of=function)(detector)
        return function

    return decorate


def register_contrast(score: str, reason: str, *, damage: Damage) -> None:
    """Register a detector by a score of that name, which is calibrated on self-made damage.

    Args:
        score: A registered score.
        reason: What is wrong with the rows that it marks.
        damage: ``swapped`` (the response of another row), ``cut`` (at a random word) or ``garbled`` (its letters
            in random order).

    Raises:
        UserError: the name is taken, there is no such damage, or the score needs what is not read of it.
    """
    if damage not in get_args(Damage):
        raise UserError(f"the detector '{score}' has damage={damage!r}: say {', '.join(get_args(Damage))}")
    if score in SCORES:
        _needs_of(score)
    DETECTORS.register(score, of=score)(Detector(score, reason, damage=damage))


def reason_of(why: str) -> str:
    """What is wrong with a row, in a few words."""
    return REASONS[why] if why in REASONS else DETECTORS.get(why).reason


def is_superfluous(why: str) -> bool:
    """Whether rows of this reason are dropped whatever the action: their text is right, but there once or held out."""
    return why == HELD_OUT or (why in DETECTORS and DETECTORS.get(why).of_copies)


def can_soften(why: str) -> bool:
    """Whether rows of this reason can keep their text and lose their cross-entropy."""
    return why in DETECTORS and not (is_superfluous(why) or DETECTORS.get(why).of_nothing)


def _needs_of(score: str) -> frozenset[str]:
    """What the score of a contrast is computed from; UserError where it needs more than is read of damage."""
    if strange := sorted(SCORES.get(score).needs - READ):
        raise UserError(
            f"the score '{score}' needs '{strange[0]}', which there is none of where rows are cleaned, so that no "
            f"contrast can be made of it. Register another score, which needs {', '.join(sorted(READ))} alone"
        )
    return SCORES.get(score).needs


def needs_of_scores(detectors: Sequence[str]) -> set[str]:
    """What the scores of the contrasts among them are computed from."""
    contrasts = [each for each in map(DETECTORS.get, detectors) if each.damage is not None]
    return {need for each in contrasts for need in _needs_of(each.name)}


def needs_of_damage(detectors: Sequence[str], kind: str) -> set[str]:
    """What is to be read of a kind of damage, beside the losses of every text, for those that are shown it."""
    needs = needs_of_scores([name for name in detectors if DETECTORS.get(name).damage == kind])
    return needs & PASSES.keys() - {"endings"} | ({"unprompted"} if "mismatched" in needs else set())


def work_for(detectors: Sequence[str]) -> tuple[set[str], set[str]]:
    """What detectors need a model to read: the needs of their scores, and kinds of damage."""
    needs = needs_of_scores(detectors)
    if "mismatched" in needs:  # the empty prompt is one of those that a response is compared with
        needs.add("unprompted")
    return {"losses", *needs}, {each.damage for each in map(DETECTORS.get, detectors) if each.damage is not None}
