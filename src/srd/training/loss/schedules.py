"""What of the loss changes as the training goes on, step by step; a method names it, a checkpoint keeps it.

A schedule is asked before each optimizer step and told after it, with numbers that all processes share: so all have the
same, and a resumed training goes on with what it had.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from srd.training.loss.settings import LossSettings

Gather = Callable[[Any], list[Any]]


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass
class Schedule:
    """A loss that stays as it is; subclasses change it.

    Attributes:
        steps_before: Optimizer steps of the stages before this one, whose steps begin at 0.
        steps_in_all: Of all stages; 0: of this one.
        whole: Whether it needs the teacher's probabilities of all tokens, whatever the divergence.
        wants_likelihoods: Whether it says something of each text by what the models think of it: see `of_rows`.
        kept: Names of the attributes that a checkpoint keeps.
    """

    whole: ClassVar[bool] = False
    wants_likelihoods: ClassVar[bool] = False
    kept: ClassVar[tuple[str, ...]] = ()
    steps_before: int = 0
    steps_in_all: int = 0

    def goes_on(self, steps_before: int, steps_in_all: int) -> None:
        """Take a stage as a part of the whole training, whose steps are counted through; it takes up `state`."""
        self.steps_before, self.steps_in_all = steps_before, steps_in_all

    def done(self, step: int, total_steps: int) -> float:
        """The share of the whole training that lies before a step of this stage."""
        return (self.steps_before + step) / max(1, self.steps_in_all or total_steps)

    def begin_step(self, step: int, total_steps: int, entropies: Callable[[], NDArray[np.float32]]) -> None:
        """Make ready for an optimizer step.

        Args:
            step: From 0, in this stage.
            total_steps: Of this stage.
            entropies: The teacher's, in nats, at all positions of the step, of all processes, at the divergence's
                temperature.
        """

    def settings(self, settings: LossSettings) -> LossSettings:
        """What is minimised in this step."""
        return settings

    def of_rows(
        self, own: NDArray[np.bool_], teacher: NDArray[np.float64], student: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """What the divergence is given for each text of a micro-batch, where it ``wants_likelihoods``.

        Args:
            own: Whether the student wrote it, ``[B]``.
            teacher: The teacher's mean log-likelihood of a token, ``[B]``.
            student: The student's.
        """
        return {}

    def end_step(self, divergence: float, step: int, total_steps: int, gather: Gather = _alone) -> None:
        """Take note of a step's divergence, in nats a token.

        Args:
            divergence: Of the whole step, before its factor.
            step: From 1: steps taken in this stage.
            total_steps: Of this stage.
            gather: Gives a value of each process, on all of them.
        """

    def logged(self) -> dict[str, float]:
        """What stands in the log beside the loss."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, and a stage hands on to the next: the attributes in ``kept``."""
        return {name: getattr(self, name) for name in self.kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        for name in self.kept:
            setattr(self, name, copy.deepcopy(state[name]))


@dataclass
class InterpolatedTeacher(Schedule):
    """TAID's adaptive interpolation: see `srd.training.methods.taid`.

    Attributes:
        start: The teacher's share t at the start.
        end: The highest share.
        rate: α, how far a step goes at most.
        inertia: β, of the momentum.
        share: The teacher's share t now; None: the first step is to come.
        momentum: Of the relative fall of the divergence.
        before: The divergence of the step before.
    """

    whole: ClassVar[bool] = True
    kept: ClassVar[tuple[str, ...]] = ("share", "momentum", "before")
    start: float = 0.4
    end: float = 1.0
    rate: float = 5e-4
    inertia: float = 0.99
    share: float | None = None
    momentum: float = 0.0
    before: float | None = None

    def settings(self, settings: LossSettings) -> LossSettings:
        return replace(settings, teacher_share=self.start if self.share is None else self.share)

    def end_step(self, divergence: float, step: int, total_steps: int, gather: Gather = _alone) -> None:
        share = self.start if self.share is None else self.share
        if self.before:
            fall = (self.before - divergence) / self.before
            self.momentum = self.inertia * self.momentum + (1 - self.inertia) * fall
        self.before = divergence
        way = self.rate / (1 + math.exp(-self.momentum)) * (1 - share)
        line = self.start + (self.end - self.start) * self.done(step, total_steps)
        self.share = min(self.end, max(line, share + way))

    def logged(self) -> dict[str, float]:
        return {"teacher_share": self.start if self.share is None else self.share}


@dataclass
class UncertainTeacher(Schedule):
    """Forward KL where the teacher's entropy is among the highest of a step: see `srd.training.methods.entropy_aware`.

    Attributes:
        quantile: The share of a step's positions that lie below the threshold.
        threshold: Of this step, in nats.
    """

    whole: ClassVar[bool] = True
    quantile: float = 0.8
    threshold: float = math.inf

    def begin_step(self, step: int, total_steps: int, entropies: Callable[[], NDArray[np.float32]]) -> None:
        self.threshold = quantile_between(entropies(), self.quantile)

    def settings(self, settings: LossSettings) -> LossSettings:
        return replace(settings, objective="entropy_aware", parameters={"threshold": self.threshold})

    def logged(self) -> dict[str, float]:
        return {"entropy_threshold": self.threshold} if math.isfinite(self.threshold) else {}


@dataclass
class Contrast(Schedule):
    """DistiLLM-2's α for each text, and the weight of the two kinds: see `srd.training.methods.distillm2`.

    Attributes:
        alpha: α₀.
        anchor: The share of the steps in which the mean difference of likelihoods is measured.
        gradual: Whether the student's texts count more and more.
        differences: What was measured so far on the teacher's texts and on the student's: sum and count of each.
    """

    alpha: float = 0.1
    anchor: float = 0.1
    gradual: bool = False
    differences: list[list[float]] = field(default_factory=lambda: [[0.0, 0], [0.0, 0]])
    wants_likelihoods: ClassVar[bool] = True
    kept: ClassVar[tuple[str, ...]] = ("differences",)

    def __post_init__(self) -> None:
        self._fresh: list[tuple[bool, float]] = []  # of this step, of this process
        self._measures, self._balance = True, 1.0

    def begin_step(self, step: int, total_steps: int, entropies: Callable[[], NDArray[np.float32]]) -> None:
        done = self.done(step, total_steps)
        self._measures = not done or done < self.anchor
        self._balance = 1 + 0.5 * min(1.0, 2 * done) if self.gradual else 1.0

    def settings(self, settings: LossSettings) -> LossSettings:
        return replace(settings, objective="distillm2", parameters={})

    def of_rows(
        self, own: NDArray[np.bool_], teacher: NDArray[np.float64], student: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        ahead = np.where(own, -1.0, 1.0) * (np.exp(teacher) - np.exp(student))
        alpha = np.full(len(own), self.alpha)
        if self._measures:
            self._fresh += zip(own.tolist(), ahead.tolist(), strict=True)
        else:
            means = np.array([total / max(1, count) for total, count in self.differences])[own.astype(int)]
            alpha = np.clip(1 - (1 - self.alpha) * means / (ahead + 1e-5), 0.01, self.alpha)
        share = np.where(own, self._balance, 2 - self._balance)
        return {"alpha": alpha, "own": own.astype(np.float64), "share": share}

    def end_step(self, divergence: float, step: int, total_steps: int, gather: Gather = _alone) -> None:
        fresh, self._fresh = self._fresh, []
        if self._measures:
            everyone = [each for part in gather(fresh) for each in part]
            for kind, sums in enumerate(self.differences):
                values = [ahead for own, ahead in everyone if own == bool(kind)]
                sums[0], sums[1] = math.fsum([sums[0], *values]), sums[1] + len(values)


def quantile_between(values: NDArray[np.float32], quantile: float) -> float:
    """A threshold halfway between two values, with a ``quantile`` of all below it: none lies on it by rounding."""
    ordered = np.sort(values.astype(np.float64))
    below = round(quantile * len(ordered))
    if below == 0:
        return -1.0  # an entropy is at least 0
    return float(ordered[below - 1 : below + 1].mean()) if below < len(ordered) else math.inf
