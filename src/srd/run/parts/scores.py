"""Scores of a run's training rows, and the ranking by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from srd.base.tables import column, data_set, positions
from srd.curation.curriculum import Curriculum
from srd.curation.likelihoods import Pairs, pair_losses
from srd.curation.ranking import RANKS, finite_rows, rank
from srd.curation.reflection import reflect
from srd.curation.scores.base import columns_of, scores_of
from srd.run.context import Run
from srd.run.parts.loading import lists_of, load_reader
from srd.run.parts.teacher_caches import caches_of


def longest_answer(run: Run) -> int:
    """Tokens of an answer in reflection."""
    return run.recipe.reflection.max_new_tokens or run.recipe.generation.max_new_tokens


def reflect_on(run: Run, model: Any, folder: Path, places: NDArray[np.int64] | None = None) -> datasets.Dataset:
    """Let a student answer the training prompts, or those at some places; ``folder`` keeps what is done of it."""
    rows, encoded = run.split("train"), run.token_ids("train")
    if places is not None:
        rows, encoded = rows.select(places), encoded.select(places).flatten_indices()
    with run.progress("student answers") as update:
        return reflect(
            model,
            run.tokenizer,
            rows,
            encoded=encoded,
            max_new_tokens=longest_answer(run),
            batch_size=run.recipe.generation.batch_size,
            words=run.words,
            folder=folder,
            progress=update,
        )


def ranked_scores(run: Run, curriculum: Curriculum, path: Path | None = None) -> datasets.Dataset:
    """Rank by what a curriculum goes by; ``path``: other scores than those of the starting student."""
    reflected, bad_rows = pq.read_table(path or run.files.scores, columns=["id", *RANKS]), run.recipe.data.bad_rows
    table = data_set(finite_rows(reflected, [*RANKS], bad_rows))  # whatever ranks: without a loss nothing is learnt
    columns = columns_of(scores_of(curriculum.score))
    if "length" in columns:
        examples = run.encoded("train")
        lengths = {name: len(response) for name, response in zip(examples.ids, examples.responses, strict=True)}
        table = table.add_column("length", [lengths[name] for name in table["id"]])
    if more := [name for name in columns if name not in table.column_names]:
        measured = data_set(pq.read_table(run.files.measures, columns=["id", *more]))
        measured = measured.select(positions(column(table, "id"), measured)).select_columns(more)
        table = datasets.concatenate_datasets([table, measured], axis=1)
    return rank(
        table, k=curriculum.k, by=curriculum.score, fusion=curriculum.fusion, seed=curriculum.seed,
        bad_rows=bad_rows,
    )  # fmt: skip


def with_marks(run: Run, laid_out: datasets.Dataset) -> datasets.Dataset:
    """The ranking with what the cleaning has found: of every row, also of those that were dropped and have no rank.

    A score of both has two columns: the ranking's, of rows as they are learnt, and ``NAME_before``, which marked them.
    """
    marks = pq.read_table(run.files.marked).drop_columns(["response_before", "response_after"])
    ranked = laid_out.with_format("arrow")[:]
    gone = marks.filter(pc.invert(pc.is_in(marks["id"], value_set=ranked["id"].combine_chunks()))).select(["id"])
    rest = {
        "rank": pa.array(np.arange(len(ranked) + 1, len(ranked) + len(gone) + 1)),
        "kept": pa.array(np.zeros(len(gone), bool)),
        "stage": pa.array(np.full(len(gone), -1, np.int32)),
    }
    rest |= {name: pa.array(np.full(len(gone), np.nan)) for name in ranked.column_names if name not in ("id", *rest)}
    table = pa.concat_tables([ranked, pa.table({"id": gone["id"], **rest}).select(ranked.column_names)])
    place = pc.index_in(table["id"], value_set=marks["id"].combine_chunks())
    found = marks.take(place).drop_columns("id")
    for name in found.column_names:
        table = table.append_column(f"{name}_before" if name in table.column_names else name, found[name])
    return data_set(table.combine_chunks())


def teacher_losses(run: Run, folder: Path) -> NDArray[np.float64]:
    """The teacher's mean nats a token of each training response, ``[N]``: from its cache where there is one.

    Where its tokens are not the student's, they are nats for each of the student's: so scores can compare the two.
    """
    examples = run.read_by_teacher("train")
    tokens = np.maximum([len(response) for response in run.encoded("train").responses], 1)
    if "cache" not in run.keys and run.recipe.teacher.endpoint is not None:
        ask = lists_of(run, folder, 0)
        with run.progress("teacher reads") as update:
            told = ask.mean_losses([examples.tokens(i) for i in range(len(examples))], update)
        return told * np.maximum(examples.learnt, 1) / tokens if run.apart else told
    if "cache" not in run.keys:
        model = load_reader(run.teacher_source, run, run.teacher_options())
        rows = np.arange(len(examples))
        pairs = Pairs(examples.prompts, examples.responses, np.stack([rows, rows], 1))
        with run.progress("teacher reads") as update:
            totals, _ = pair_losses(
                model,
                run.teacher_tokenizer if run.apart else run.tokenizer,
                pairs,
                batch_size=run.recipe.generation.batch_size,
                folder=folder,
                progress=update,
            )
        return totals / tokens
    cache = caches_of(run)
    head = cache.head().cut(run.teacher_width)
    losses = (cache.losses(head, *examples.tokens(i).values()) for i in range(len(examples)))
    means = [float(nats.double().sum()) / count if run.apart else float(nats.double().mean())
             for nats, count in zip(losses, tokens, strict=True)]  # fmt: skip
    return np.array(means)


def mean_scores(scores: datasets.Dataset) -> dict[str, float]:
    """Means of a reflection, for its summary."""
    return {f"mean_{name}": round(float(np.mean(scores[name])), 4) for name in ("rouge_l", "ce")}
