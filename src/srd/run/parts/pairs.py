"""Both texts of a training prompt: the teacher's and the student's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
import pyarrow.parquet as pq

from srd.base.tables import column, data_set, positions
from srd.curation.curriculum import Stage
from srd.data.batching import EncodedExamples
from srd.run.context import Run
from srd.training.settings import TrainingConfig

PAIR = ("teacher", "student")  # who writes the two texts of a prompt
OWN = " (student)"  # behind the id of an example: its text is the student's


def pair_examples(run: Run, config: TrainingConfig) -> EncodedExamples:
    """Every training prompt twice: with the teacher's text, and with the student's, which has no cross-entropy."""
    both = []
    for who in PAIR:
        with run.progress("tokens") as update:
            both.append(
                run.encoder.encode(run.split("train"), responses(run, config, run.files.pair_text(who)), update)
            )
    texts, own = both
    names = [f"{name}{OWN}" for name in own["id"]]
    own = own.remove_columns("id").add_column("id", names).select_columns(texts.column_names).cast(texts.features)
    examples = EncodedExamples(datasets.concatenate_datasets([texts, own]))
    examples.soft = frozenset(names)
    return examples


def in_pairs_of(stage: Stage) -> Stage:
    """A stage with both texts of its prompts."""
    ids = [text for name in stage.ids for text in (name, name + OWN)]
    weights = stage.row_weights and {text: stage.row_weights[name] for name in stage.ids for text in (name, name + OWN)}
    return replace(stage, ids=ids, subset=None if stage.subset is None else 2 * stage.subset, row_weights=weights)


def responses(run: Run, config: TrainingConfig, path: Path) -> datasets.Dataset:
    """What a model answered to the training prompts, in the order of the training examples.

    Args:
        run: The run.
        config: Of the training, which cuts them; they are as long as the one that wants most of them wants.
        path: The file with the answers.

    Returns:
        ``tokens`` without what ended them, and whether they ``ended``.
    """
    answers = data_set(pq.read_table(path))
    order = positions(column(run.split("train"), "id"), answers)
    answers = answers.select_columns(["tokens", "ended"]).select(order)
    lengths = pc.list_value_length(answers.data.column("tokens")).to_numpy()
    longest = config.method.longest_text()
    if longest is None or lengths.max(initial=0) < longest:  # the end is a token, too
        return answers

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": row["tokens"][:longest], "ended": row["ended"] and len(row["tokens"]) < longest}

    return datasets.Dataset.from_list([cut(row) for row in answers], features=answers.features)
