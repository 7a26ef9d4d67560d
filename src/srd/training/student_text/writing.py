"""How the student writes what it trains on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from srd.models.generation import Decoding
from srd.training.loss.schedules import Schedule
from srd.training.methods.base import Method
from srd.training.rollouts import Rollouts
from srd.training.student_text.refresh import Ahead

ROLLOUTS = "rollouts"  # the folder of what the student writes ahead


@dataclass
class Writing:
    """How the student writes what it trains on, and what of the loss changes as it does.

    Attributes:
        rollouts: Which batches it writes; None: none of them.
        decoding: How it chooses tokens.
        schedule: Of the loss; None: it stays as it is.
        ahead: How it writes ahead of its training; None: in every step.
    """

    rollouts: Rollouts | None = None
    decoding: Decoding = field(default_factory=Decoding)
    schedule: Schedule | None = None
    ahead: Ahead | None = None


def writing_of(method: Method, rollouts: Rollouts | None, schedule: Schedule | None, folder: Path) -> Writing:
    """How the student writes by a method's settings; what it writes ahead goes to ``folder``."""
    longest, every = method.longest_text(), method.refreshed()
    decoding = Decoding(longest, method.sampling_temperature()) if rollouts and longest else Decoding()
    return Writing(rollouts, decoding, schedule, Ahead(every, folder) if rollouts and every != "step" else None)
