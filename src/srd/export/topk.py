"""The teacher's likeliest tokens wherever something is learnt, from the exact cache: what offline distillers read."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from srd.base.errors import UserError
from srd.base.files import atomic_write, write_text
from srd.base.remedies import warn
from srd.base.yaml_text import dump_yaml
from srd.curation.curriculum import Stage
from srd.data.batching import EncodedExamples, learnt_spans
from srd.export.base import Exported
from srd.recipe.schema import Recipe
from srd.run.checks.models import check_recipe
from srd.run.curate import Curated, curriculum_of, learnt_stages
from srd.run.flow import advance
from srd.run.outline.order import may_cache
from srd.run.parts.scores import ranked_scores
from srd.run.parts.teacher_caches import place_of_cache, tier_of_run
from srd.training.cache.teacher_cache import TeacherCache
from srd.training.divergences.base import DIVERGENCES

logger = logging.getLogger(__name__)

TOP_K = 64  # tokens of a distribution, unless the command line says otherwise
IGNORED = -100  # label of positions that do not count, as in transformers
ROWS_AT_ONCE = 256  # examples that are written together


@dataclass(frozen=True)
class Taught:
    """An example with what the teacher says of it.

    Attributes:
        ids: Tokens of prompt and response, ``[T]``.
        labels: Those that are learnt, at their own positions; `IGNORED` elsewhere, ``[T]``.
        positions: From where the learnt tokens are predicted, ``[N]``: the positions before theirs.
        tokens: The teacher's likeliest tokens there, likeliest first, ``[N, k]``.
        logprobs: Their log-probabilities over the whole vocabulary, ``[N, k]``.
    """

    ids: list[int]
    labels: list[int]
    positions: NDArray[np.int64]
    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]


def nearest_beta(recipe: Recipe, betas: Sequence[float]) -> tuple[float, bool]:
    """Of the divergences that a trainer has, as GKD's β, the nearest to the recipe's, and whether it is the same."""
    objective = recipe.training.objective
    divergence = DIVERGENCES.get(objective.name)
    exact = divergence.beta_with(objective.parameters)
    wanted = divergence.near_beta if exact is None else exact
    found = min(betas, key=lambda beta: abs(beta - wanted))
    return found, found == exact


def check_taught(exported: Exported, betas: Sequence[float]) -> None:
    """Refuse a run without a cache of its teacher, before anything is computed.

    Args:
        exported: The run.
        betas: The divergences of the trainer, as GKD's β.

    Raises:
        UserError: an encoder-decoder, a teacher whose text the student is yet to write, or a cache that is off.
    """
    run = exported.run
    check_recipe(run)
    if run.encoder_decoder:
        raise UserError("the models are encoder-decoders, which these trainers do not read. Use srd's own training.")
    if not may_cache(run.recipe):
        raise UserError(
            "this run keeps no cache of its teacher (cache.enabled, teacher.source), from which its answers would be "
            "exported. Run the recipe with cache.enabled=true and without teacher.source, then export that run."
        )
    if len(run.recipe.all_teachers) > 1:
        raise UserError(
            "several teachers have a cache each, and these trainers read one. Export a run with one teacher."
        )
    if run.apart:
        raise UserError(
            f"teacher and student read different tokens ({run.apart}), and these trainers compare them one by one. Use "
            "srd's own training, which aligns them, or a teacher with the student's tokenizer."
        )
    if not tier_of_run(run).with_head:
        raise UserError(
            f"cache.tier is {run.recipe.cache.tier}, which has not kept what the teacher's whole distributions are "
            "made of. Run the recipe with cache.tier=exact (a teacher behind a server has none), then export that run."
        )
    if run.recipe.training.teacher_writes or run.recipe.training.on_pairs:
        warn(
            logger,
            f"the method {run.recipe.training.method.name} learns from texts that the teacher writes; the rows that "
            "are exported have the references.",
            "Use srd's own training for this method.",
        )
    beta, exact = nearest_beta(run.recipe, betas)
    if not exact:
        direction = "reverse" if beta == 1 else "forward"
        warn(
            logger,
            f"the objective is {run.recipe.training.objective.name}, which this trainer does not have; it is told to "
            f"learn by {direction} KL.",
            "To train by the recipe's objective, use srd run.",
        )


class TaughtStages:
    """The stages of a run, with what the teacher says of their examples.

    Args:
        exported: What `check_taught` has let pass; missing steps of the run are made.

    Raises:
        UserError: the cache would be too large to be kept.
    """

    def __init__(self, exported: Exported) -> None:
        self.run, wanted = exported.run, exported.settings.top_k or TOP_K
        advance(self.run, "ranking", "cache")
        if "cache" not in self.run.keys:
            raise UserError("the teacher's cache is larger than cache.limit_gb, so that there is none. Raise it.")
        self.examples: EncodedExamples = self.run.encoded("train")
        cache = self.examples.teacher = TeacherCache(place_of_cache(self.run))
        # In half precision the product would be rounded.
        self.head = cache.head().cut(self.run.width).changed(torch.Tensor.float)
        self.k = min(wanted, self.head.vocabulary)
        self.place = {name: number for number, name in enumerate(self.examples.ids)}
        curriculum = curriculum_of(self.run)
        self.stages = learnt_stages(self.run, curriculum.split(ranked_scores(self.run, curriculum)))
        if any(stage.subset is not None for stage in self.stages):
            warn(
                logger,
                "with order: fresh every pass draws its own rows, but a stage is exported once.",
                "Its files have the rows of its first pass.",
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(self.examples.lengths)

    def rows(self, stage: Stage, temperature: float) -> Iterator[Taught]:
        """The examples of a stage, in its order, with distributions at a temperature."""
        for name in Curated(self.run, self.stages, Path()).first_pass(stage):
            yield self._taught(self.examples[self.place[name]], temperature)

    @torch.no_grad()
    def _taught(self, row: dict[str, Any], temperature: float) -> Taught:
        ids = [*row["prompt_ids"], *row["response_ids"]]
        learnt = [place for start, end in learnt_spans(row) for place in range(start, end)]
        labels = [IGNORED] * len(ids)
        for place in learnt:
            labels[place] = ids[place]
        logits = self.head.logits(row["teacher_hidden"]).double() / temperature
        best = torch.log_softmax(logits, -1).topk(self.k)
        return Taught(
            ids, labels, np.array(learnt, np.int64) - 1, best.indices.numpy(), best.values.numpy().astype(np.float32)
        )


def taught_files(exported: Exported, names: Sequence[str], betas: Sequence[float]) -> list[str]:
    """The files of every stage, ``{}`` in their names being its number, of a run that `check_taught` lets pass."""
    check_taught(exported, betas)
    return [name.format(stage) for stage in range(curriculum_of(exported.run).stages) for name in names]


def write_stages(
    taught: TaughtStages,
    folder: Path,
    names: Sequence[str],
    schema: pa.Schema,
    rows_of: Callable[[Stage], Iterator[Taught]],
    table_of: Callable[[list[Taught]], pa.Table],
    settings_of: Callable[[Stage], Iterator[tuple[str, Any]]],
) -> None:
    """Write rows (parquet) and a configuration (YAML) for every stage.

    Args:
        taught: The stages.
        folder: Where to.
        names: Of both, with ``{}`` for the stage's number.
        schema: Of the rows.
        rows_of: The examples of a stage.
        table_of: Some of them, as the tool reads them.
        settings_of: What the configuration says.
    """
    for stage in taught.stages:
        rows_file, config_file = (folder / name.format(stage.index) for name in names)
        rows = rows_of(stage)
        with atomic_write(rows_file) as partial, pq.ParquetWriter(partial, schema) as writer:
            while part := list(itertools.islice(rows, ROWS_AT_ONCE)):
                writer.write_table(table_of(part))
        write_text(config_file, dump_yaml(dict(settings_of(stage))))
