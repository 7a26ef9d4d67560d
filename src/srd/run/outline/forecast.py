"""How long the rest of a run will take: what its steps cost, and how fast those before them went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from srd.run.outline.costs import Phase


@dataclass
class Forecast:
    """Time from floating-point operations, at the speed of the steps that were timed so far, this one included.

    Attributes:
        costs: What each step of the run takes, in their order.
        seconds: What those took that are done.
    """

    costs: Sequence[Phase]
    seconds: dict[str, float] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """The place of a step among all of them, ``step 3 of 9``; empty for one that is not among them."""
        names = [cost.name for cost in self.costs]
        return f"step {names.index(name) + 1} of {len(names)}" if name in names else ""

    def after(self, name: str, share: float, seconds: float) -> float | None:
        """Seconds of all that comes after a step; None where nothing says how fast things go.

        Args:
            name: The step that is being made.
            share: Of it that is done, 0 to 1.
            seconds: That this share has taken.
        """
        flops = {cost.name: cost.flops for cost in self.costs}
        timed = {other: spent for other, spent in self.seconds.items() if flops.get(other) and other != name}
        done = sum(flops[other] for other in timed) + share * flops.get(name, 0.0)
        spent = sum(timed.values()) + (seconds if flops.get(name) else 0.0)
        if done <= 0 or spent <= 0:
            return None
        names = list(flops)
        later = names[names.index(name) + 1 :] if name in flops else []
        return sum(flops[other] for other in later if other not in self.seconds) * spent / done
