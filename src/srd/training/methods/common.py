"""What a method gives, looked at: a plugin's may give anything."""

from __future__ import annotations

from srd.base.handed import check_kind
from srd.training.loss.schedules import Schedule
from srd.training.methods.base import Method
from srd.training.rollouts import Rollouts


def rollouts_of(method: Method, seed: int) -> Rollouts | None:
    """Who writes the responses, as a method says.

    Raises:
        UserError: it gives something else.
    """
    rollouts = method.rollouts(seed)
    if rollouts is not None:
        check_kind(f"what {type(method).__name__}.rollouts gives", rollouts, Rollouts, "give srd.OnPolicy(share, seed)")
    return rollouts


def schedule_of(method: Method) -> Schedule | None:
    """What of the loss changes as the training goes on, as a method says.

    Raises:
        UserError: it gives something else.
    """
    schedule = method.schedule()
    if schedule is not None:
        instead = "give an instance of a subclass of srd.training.loss.schedules.Schedule"
        check_kind(f"what {type(method).__name__}.schedule gives", schedule, Schedule, instead)
    return schedule
