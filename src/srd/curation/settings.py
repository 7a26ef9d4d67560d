"""Settings of the curation: the reflection, and the curriculum that comes from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from srd.base.errors import UserError
from srd.base.limits import LARGEST_K, temperature_problem
from srd.base.settings import OffIsAWord, Section
from srd.curation.fusion import FUSIONS
from srd.curation.scores.base import measured_needs, scores_of

OutOfSample = Annotated[Literal["auto", "before", "cross_fit", "off"], OffIsAWord]
SHOWN = 4  # training rows that the report prints of each group: the easiest, the hardest that is kept, the dropped
LATER = ("optimizer", "row_weights")  # settings that came later: fingerprints of trainings without them stay
#: What the preset `plus` makes of a curriculum: nothing is left of one, so that its weight and temperature are those of
#: plain distillation, too; in a recipe those of its training.
PLUS_CURRICULUM: dict[str, Any] = {"select": 1.0, "stages": 1, "weight": 1.0, "temperature": 1.0}
Order = Literal["easy_to_hard", "hard_to_easy", "random", "fresh"]


def _known(score: str | list[str]) -> str | list[str]:
    scores_of(score)
    return score


class ReflectionConfig(Section):
    """How the student reflects on the training data."""

    max_new_tokens: int | None = Field(None, ge=1, description="longest answer; none: generation.max_new_tokens")
    out_of_sample: OutOfSample = Field(
        "off",
        description="who reflects where the student is warmed up on the same rows: before: the student before that; "
        "cross_fit: students warmed up on the other rows; auto: cross_fit for one that lost layers, else before",
    )
    folds: int = Field(2, ge=2, le=20, description="of cross_fit")


class CurriculumConfig(BaseModel):
    """How ranked data becomes stages. The defaults are the paper's for GPT-2.

    Fractions of an example are rounded down.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    preset: Literal["paper", "plus"] = Field(
        "paper",
        description="plus: wrong rows are repaired before any training and no others dropped, the reflection is out of "
        "sample, and there is one stage, of all rows, with training's own weight and temperature; what is set beside "
        "it wins",
    )
    stages: int = Field(3, ge=1, le=100, description="stage i trains on the easiest (i+1)/stages of what is kept")
    select: float = Field(0.75, gt=0, le=1, description="share of the data that is kept, the easiest")
    score: Annotated[str | list[str], AfterValidator(_known)] = Field(
        "fused",
        description="what ranks: fused (rouge_l and ce), rouge_l, ce, eos, pmi, ifd, match, gap, near_copy, length, "
        "wording, random, one that you registered, or several",
    )
    fusion: Annotated[str, AfterValidator(FUSIONS.name_of)] = Field(
        "rrf", description="how several scores are fused: rrf, mean_rank, max_rank"
    )
    order: Order = Field(
        "easy_to_hard",
        description="order of what is kept; random: shuffled once; fresh: a new subset of all the data every pass",
    )
    k: float = Field(60, ge=0, le=LARGEST_K, description="constant of reciprocal rank fusion")
    temperature: float | list[float] = Field([1.0, 2.0], description="constant, [first, last], or one for every stage")
    weight: float | list[float] = Field([0.8, 1.0], description="distillation weight, likewise")
    row_weights: Literal["equal", "paced"] = Field(
        "equal",
        description="of the rows in the loss; paced: p (1 - p) of a student that does p of a row (its ROUGE-L), so "
        "that what it knows and what is beyond it counts little",
    )
    reflect_again: bool = Field(False, description="rank anew before each stage, by the student that learns these rows")
    optimizer: Literal["restart", "keep"] = Field(
        "restart",
        description="keep: one optimizer and one learning-rate schedule over all stages; restart: each has its own",
    )
    seed: int = Field(0, ge=0, description="for random and fresh")

    @model_validator(mode="after")
    def _can_reflect_again(self) -> Self:
        if self.reflect_again and (needs := measured_needs(self.score)):
            names = sorted(score.name for score in scores_of(self.score) if score.needs & needs)
            raise ValueError(
                f"reflect_again ranks by what a reflection gives (rouge_l, ce, length), not by {', '.join(names)}. "
                "Remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _schedules_fit(self) -> Self:
        for name in ("temperature", "weight"):
            values = self.schedule(name)
            if name == "temperature" and (problem := next(filter(None, map(temperature_problem, values)), None)):
                raise ValueError(f"temperature {problem}, but is {values}")
            if name == "weight" and not all(0 <= value <= 1 for value in values):
                raise ValueError(f"weight must be within 0 and 1, but is {values}")
        return self

    def decides(self) -> dict[str, Any]:
        """The settings that its result follows from; one that came later is left out where it changes nothing."""
        idle = {name for name in LATER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude=idle)

    def schedule(self, name: Literal["temperature", "weight"] | str) -> list[float]:
        """The values of ``temperature`` or ``weight`` over the stages, ``[stages]``."""
        value = getattr(self, name)
        if not isinstance(value, list) or len(value) == 1:
            return [float(value[0] if isinstance(value, list) else value)] * self.stages
        if len(value) == self.stages:
            return [float(item) for item in value]
        if len(value) == 2:
            return [float(item) for item in np.linspace(value[0], value[1], self.stages)]
        raise ValueError(
            f"{name} has {len(value)} values for {self.stages} stages: give one, two (first, last) or {self.stages}"
        )

    def sizes(self, count: int) -> list[int]:
        """Examples in each stage when there are ``count`` examples.

        Raises:
            UserError: fewer kept examples than stages.
        """
        kept = int(self.select * count + 1e-9)  # 0.29 * 100 is 28.999… in floating point
        if kept < self.stages:
            raise UserError(
                f"{kept} of {count} examples are kept (select {self.select}), which is fewer than the "
                f"{self.stages} stages. Use more data, fewer curriculum.stages or a larger curriculum.select."
            )
        return [kept * (stage + 1) // self.stages for stage in range(self.stages)]
