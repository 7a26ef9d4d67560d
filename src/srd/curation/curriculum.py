"""Selection and curriculum: drop the hardest examples, feed the rest easy to hard in growing stages (Baby Step)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from srd.base.errors import UserError, nearest
from srd.base.tables import data_set
from srd.curation.settings import PLUS_CURRICULUM, CurriculumConfig
from srd.data.rows import as_table, with_ids, with_numbers

Places = NDArray[np.int64]

#: What an order makes of the places of the kept rows, which come easiest first; ``fresh`` draws anew for every pass.
ORDERS: dict[str, Callable[[Places, int], Places]] = {
    "easy_to_hard": lambda rows, seed: rows,
    "hard_to_easy": lambda rows, seed: rows[::-1],
    "random": lambda rows, seed: rows[np.random.default_rng(seed).permutation(len(rows))],
    "fresh": lambda rows, seed: rows,
}


def paced(done: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights p (1 − p) of mean 1 for rows of which a student does p (PACED, arXiv 2603.11178).

    There p is the share of several answers that pass; here it is the ROUGE-L of the one that reflection has. Where no
    row has a weight, as the student does all or nothing of each, all have 1.

    Args:
        done: p of each row, 0 to 1, ``[N]``.
    """
    weights = done * (1 - done)
    return weights / weights.mean() if weights.mean() > np.finfo(np.float64).tiny else np.ones_like(done)


#: The weights of a stage's rows in the loss, by how much of each the student does.
ROW_WEIGHTS = {"paced": paced}


@dataclass(frozen=True)
class Stage:
    """What one stage trains on.

    Attributes:
        index: 0 for the first stage.
        ids: The examples, in the order of the curriculum.
        temperature: Softmax temperature of the divergence.
        weight: Weight of the divergence; cross-entropy has the rest.
        subset: Draw so many of ``ids`` anew for every pass; None: all of them.
        row_weights: What each example counts in the loss; None, and for those that it does not name: 1.
    """

    index: int
    ids: list[str]
    temperature: float
    weight: float
    subset: int | None = None
    row_weights: dict[str, float] | None = None

    @property
    def size(self) -> int:
        """Examples in one pass."""
        return self.subset or len(self.ids)

    def without(self, left_out: Collection[str]) -> Stage:
        """The stage but for some examples."""
        ids = [name for name in self.ids if name not in left_out]
        return replace(self, ids=ids, subset=None if self.subset is None else min(self.subset, len(ids)))


class Curriculum(CurriculumConfig):
    """Ranked data in stages. The defaults are the paper's for GPT-2.

    ``srd.Curriculum(stages=3, select=0.75).split(ranked)`` gives stages of 25 %, 50 % and 75 % of the data.

    Examples:
        >>> ranked = [{"id": name, "rank": place} for place, name in enumerate("abcd")]
        >>> [stage.ids for stage in Curriculum(stages=3, select=0.75).split(ranked)]
        [['a'], ['a', 'b'], ['a', 'b', 'c']]

    Raises:
        UserError: an unknown setting, or a value out of its range.
    """

    def __init__(self, **settings: Any) -> None:
        preset = PLUS_CURRICULUM if settings.get("preset") == "plus" else {}
        try:
            super().__init__(**{**preset, **settings})
            self.__pydantic_fields_set__.intersection_update(settings)  # in a recipe a preset is more than this
        except ValidationError as error:
            mistake = error.errors()[0]
            name = ".".join(str(part) for part in mistake["loc"][:1])
            given = f"{name}={settings.get(name)!r}" if name else ""
            said = mistake["msg"].removeprefix("Value error, ")
            if mistake["type"] == "extra_forbidden":
                said = f"there is no setting '{name}'; {nearest(name, type(self).model_fields)}"
            raise UserError(f"Curriculum({given}): {said}") from error

    def _places(self, table: pa.Table) -> Places:
        """The places of the kept rows, in the order in which the stages take them up."""
        keys = [("rank", "ascending"), ("id", "ascending")]
        easiest = pc.sort_indices(with_numbers(table.select(["id", "rank"]), "rank"), keys).to_numpy()
        return ORDERS[self.order](easiest[: self.sizes(len(table))[-1]].astype(np.int64), self.seed)

    def split(self, ranked: Any) -> list[Stage]:
        """Split ranked examples into stages.

        Args:
            ranked: What `srd.rank` returns, or anything that it takes with ``id`` and ``rank`` (of equal ranks the
                smaller id is first).

        Raises:
            UserError: no rows, fewer kept examples than stages, missing columns, ids that repeat, ranks that are no
                numbers.
        """
        table = _ranked_table(ranked, *(["rouge_l"] if self.row_weights in ROW_WEIGHTS else []))
        ids = table["id"].take(pa.array(self._places(table))).to_pylist()
        everything = table["id"].to_pylist() if self.order == "fresh" else []
        temperatures, weights = self.schedule("temperature"), self.schedule("weight")
        stages = [
            Stage(index, sorted(everything), temperatures[index], weights[index], subset=size)
            if self.order == "fresh"
            else Stage(index, ids[:size], temperatures[index], weights[index])
            for index, size in enumerate(self.sizes(len(table)))
        ]
        return [self._weighed(stage, table) for stage in stages]

    def _weighed(self, stage: Stage, table: pa.Table) -> Stage:
        """A stage with what each of its examples counts."""
        if self.row_weights not in ROW_WEIGHTS:
            return stage
        done = table["rouge_l"].to_numpy()[pc.index_in(pa.array(stage.ids), table["id"].combine_chunks()).to_numpy()]
        weights = ROW_WEIGHTS[self.row_weights](done)
        return replace(stage, row_weights=dict(zip(stage.ids, weights.tolist(), strict=True)))

    def assign(self, ranked: Any) -> datasets.Dataset:
        """Add ``kept`` and ``stage`` (the first stage that has the example, -1 for dropped ones) to ranked examples."""
        table = _ranked_table(ranked)
        places, stage = self._places(table), np.full(len(table), -1, dtype=np.int32)
        stage[places] = np.searchsorted(self.sizes(len(table)), np.arange(len(places)), side="right")
        table = table.append_column("kept", pa.array(stage >= 0)).append_column("stage", pa.array(stage))
        return data_set(table)


def _ranked_table(ranked: Any, *scores: str) -> pa.Table:
    """Ranked examples as a table; UserError where ids repeat, or a rank or another score is no finite number."""
    table = with_ids(as_table(ranked, ["id", "rank", *scores], "ranks"), "ranks")
    for column in ("rank", *scores):
        numbers = with_numbers(table, column)
        values = numbers[column].to_numpy()
        if not np.isfinite(values).all():
            name = table["id"][int(np.flatnonzero(~np.isfinite(values))[0])]
            raise UserError(
                f"the {column} of example '{name}' is not a finite number. Rank the examples anew with srd.rank."
            )
        table = numbers if column in scores else table
    return table
