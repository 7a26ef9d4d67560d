"""Selection and curriculum: drop the hardest examples, feed the rest easy to hard in growing stages (Baby Step)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from srd.base.errors import UserError
from srd.curation.fusion import FUSIONS
from srd.curation.scores.base import scores_of
from srd.data.rows import as_table, with_ids, with_numbers

Order = Literal["easy_to_hard", "hard_to_easy", "random", "fresh"]
#: What an order makes of the kept ids, which come easiest first; ``fresh`` draws anew for every pass.
ORDERS: dict[str, Callable[[list[str], int], list[str]]] = {
    "easy_to_hard": lambda ids, seed: ids,
    "hard_to_easy": lambda ids, seed: ids[::-1],
    "random": lambda ids, seed: [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))],
    "fresh": lambda ids, seed: ids,
}


@dataclass(frozen=True)
class Stage:
    """What one stage trains on.

    Attributes:
        index: 0 for the first stage.
        ids: The examples, in the order of the curriculum.
        temperature: Softmax temperature of the divergence.
        weight: Weight of the divergence; cross-entropy has the rest.
        subset: Draw so many of ``ids`` anew for every pass; None: all of them.
    """

    index: int
    ids: list[str]
    temperature: float
    weight: float
    subset: int | None = None

    @property
    def size(self) -> int:
        """Examples in one pass."""
        return self.subset or len(self.ids)


class Curriculum(BaseModel):
    """How ranked data becomes stages. The defaults are the paper's for GPT-2.

    ``srd.Curriculum(stages=3, select=0.75).split(ranked)`` gives stages of 25 %, 50 % and 75 % of the data.
    Fractions of an example are rounded down.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    stages: int = Field(3, ge=1, le=100, description="stage i trains on the easiest (i+1)/stages of what is kept")
    select: float = Field(0.75, gt=0, le=1, description="share of the data that is kept, the easiest")
    score: str | list[str] = Field(
        "fused", description="what ranks: fused, rouge_l, ce, length, random, one that you registered, or several"
    )
    fusion: str = Field("rrf", description="how several scores are fused: rrf, mean_rank, max_rank")
    order: Order = Field(
        "easy_to_hard",
        description="order of what is kept; random: shuffled once; fresh: a new subset of all the data every pass",
    )
    k: float = Field(60, ge=0, description="constant of reciprocal rank fusion")
    temperature: float | list[float] = Field([1.0, 2.0], description="constant, [first, last], or one for every stage")
    weight: float | list[float] = Field([0.8, 1.0], description="distillation weight, likewise")
    reflect_again: bool = Field(False, description="rank anew before every stage, with the student as it is then")
    seed: int = Field(0, ge=0, description="for random and fresh")

    @field_validator("score")
    @classmethod
    def _scores_are_known(cls, value: str | list[str]) -> str | list[str]:
        scores_of(value)
        return value

    @field_validator("fusion")
    @classmethod
    def _fusion_is_known(cls, value: str) -> str:
        return FUSIONS.name_of(value)

    @model_validator(mode="after")
    def _schedules_fit(self) -> Curriculum:
        for name in ("temperature", "weight"):
            values = self.schedule(name)
            if name == "temperature" and not all(0 < value < math.inf for value in values):
                raise ValueError(f"temperature must be above 0 and finite, but is {values}")
            if name == "weight" and not all(0 <= value <= 1 for value in values):
                raise ValueError(f"weight must be within 0 and 1, but is {values}")
        return self

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

    def arrange(self, ranked: Any) -> list[str]:
        """The kept ids in the order in which the stages take them up."""
        table = with_numbers(_ranked_table(ranked), "rank").sort_by([("rank", "ascending"), ("id", "ascending")])
        ids: list[str] = table["id"].to_pylist()
        kept = ids[: self.sizes(len(ids))[-1]]
        return ORDERS[self.order](kept, self.seed)

    def split(self, ranked: Any) -> list[Stage]:
        """Split ranked examples into stages.

        Args:
            ranked: What `srd.rank` returns, or anything that it takes with ``id`` and ``rank`` (of equal ranks the
                smaller id is first).

        Raises:
            UserError: no rows, fewer kept examples than stages, missing columns, ids that repeat, ranks that are no
                numbers.
        """
        table = _ranked_table(ranked)
        ids = self.arrange(table)
        everything = table["id"].to_pylist() if self.order == "fresh" else []
        temperatures, weights = self.schedule("temperature"), self.schedule("weight")
        return [
            Stage(index, sorted(everything), temperatures[index], weights[index], subset=size)
            if self.order == "fresh"
            else Stage(index, ids[:size], temperatures[index], weights[index])
            for index, size in enumerate(self.sizes(len(table)))
        ]

    def assign(self, ranked: Any) -> datasets.Dataset:
        """Add ``kept`` and ``stage`` (the first stage that has the example, -1 for dropped ones) to ranked examples."""
        table = _ranked_table(ranked)
        ids = self.arrange(table)
        first_stage = dict(
            zip(ids, np.searchsorted(self.sizes(len(table)), np.arange(len(ids)), side="right"), strict=True)
        )
        stage = np.array([first_stage.get(name, -1) for name in table["id"].to_pylist()], dtype=np.int32)
        table = table.append_column("kept", pa.array(stage >= 0)).append_column("stage", pa.array(stage))
        return datasets.Dataset(table)


def _ranked_table(ranked: Any) -> pa.Table:
    """Ranked examples as a table; UserError where ids repeat or a rank is no finite number."""
    table = with_ids(as_table(ranked, ["id", "rank"], "ranks"), "ranks")
    ranks = with_numbers(table, "rank")["rank"].to_numpy()
    if not np.isfinite(ranks).all():
        name = table["id"][int(np.flatnonzero(~np.isfinite(ranks))[0])]
        raise UserError(f"the rank of example '{name}' is not a finite number. Rank the examples anew with srd.rank.")
    return table
