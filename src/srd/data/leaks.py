"""Leaks: prompts that are trained on and also asked where models are compared.

Prompts are compared as a person would read them: without the white space around and between words, and whatever the
shape of the row. The texts stay in Arrow, some rows at a time, so that a million rows take seconds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from srd.base.errors import UserError
from srd.base.remedies import warn
from srd.base.tables import parts_of
from srd.base.text import many, verb
from srd.data.messages import plain_text

logger = logging.getLogger(__name__)

CHUNK_ROWS = 50_000


def without_leaks(
    splits: Mapping[str, Dataset], benchmarks: Mapping[str, Dataset], action: Literal["error", "drop", "warn"]
) -> dict[str, Dataset]:
    """Look for equal prompts in the splits and the benchmarks, say how many there are, and drop them from training.

    Args:
        splits: ``train``, ``validation`` and ``test``.
        benchmarks: Examples of what the models are evaluated on beside ``test``, by name.
        action: ``drop`` from training, refuse (``error``), or only ``warn``.

    Returns:
        The splits.

    Raises:
        UserError: there are leaks and ``action`` is ``error``, or dropping them leaves nothing to train on.
    """
    held_out = {**{name: splits[name] for name in ("validation", "test") if name in splits}, **benchmarks}
    prompts = {name: _distinct(rows) for name, rows in held_out.items()}
    train = splits["train"]
    found = _among(train, prompts)
    leaked = np.logical_or.reduce([np.zeros(len(train), bool), *found.values()])
    told = _told("training", found)
    if "validation" in splits:
        others = {name: texts for name, texts in prompts.items() if name != "validation"}
        told += _told("validation", _among(splits["validation"], others))
    if not told:
        return dict(splits)
    said = "; ".join(told)
    if not are_dropped(said, action, trained_on=bool(leaked.any())):
        return dict(splits)
    if leaked.all():
        raise UserError(
            f"{said}: dropping them leaves nothing to train on. Give other files, or set data.leaks=warn to keep them."
        )
    warn(
        logger,
        f"{said}: {many(int(leaked.sum()), 'row')} dropped from training (data.leaks=drop).",
        "Nothing needs to be done; remove them from the training file to hear no more of them.",
    )
    return {**splits, "train": train.select(np.flatnonzero(~leaked))}


def are_dropped(said: str, action: Literal["error", "drop", "warn"], *, trained_on: bool = True) -> bool:
    """Whether rows that are known before are to be dropped from training; else they are refused, or told of.

    Args:
        said: Which rows, for messages.
        action: What happens to them.
        trained_on: Whether there are training rows among them.

    Raises:
        UserError: ``action`` is ``error``.
    """
    if action == "error":
        raise UserError(f"data.leaks: {said}. Remove them from the files, or set data.leaks to drop or warn.")
    if action == "drop" and trained_on:
        return True
    remedy = "data.leaks=drop leaves them out of training." if trained_on else "Remove them from one of the two."
    warn(logger, f"{said}. What a model scores there is no measure of what it has learnt (data.leaks).", remedy)
    return False


def leaked_ids(rows: Dataset, benchmarks: Mapping[str, Dataset]) -> list[str]:
    """The ids of the rows whose prompt is also in one of the benchmarks, in the order of the rows."""
    found = _among(rows, {name: _distinct(examples) for name, examples in benchmarks.items()})
    leaked = np.logical_or.reduce([np.zeros(len(rows), bool), *found.values()])
    return list(rows.select(np.flatnonzero(leaked))["id"])


def _distinct(rows: Dataset) -> pa.Array:
    return pa.chunked_array([*_prompts(rows)], pa.string()).unique()


def _told(split: str, found: Mapping[str, NDArray[np.bool_]]) -> list[str]:
    return [
        f"{rows.sum()} of the {len(rows)} {split} prompts {verb(int(rows.sum()))} also in {name}"
        for name, rows in found.items()
        if rows.any()
    ]


def _among(rows: Dataset, prompts: Mapping[str, pa.Array]) -> dict[str, NDArray[np.bool_]]:
    """Which rows have a prompt that is also there, for each set of prompts, ``[rows]``."""
    found: dict[str, list[NDArray[np.bool_]]] = {name: [np.zeros(0, bool)] for name in prompts}
    for texts in _prompts(rows):
        for name, values in prompts.items():
            found[name].append(pc.is_in(texts, value_set=values).to_numpy(zero_copy_only=False))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _prompts(rows: Dataset) -> Iterator[pa.Array]:
    """The prompts of the rows as they are compared, some at a time."""
    names = ["instruction", "input", "messages", "references"]
    for table in parts_of(rows, names, CHUNK_ROWS):
        table = table.combine_chunks()
        instruction, context, messages, references = (_whole(table[name]) for name in names)
        texts = pc.binary_join_element_wise(instruction, context, "\n")
        spoken = pc.not_equal(messages, "")
        if pc.any(spoken).as_py():
            conversations = pa.array([_conversation(text) for text in messages.filter(spoken).to_pylist()], pa.string())
            texts = pc.replace_with_mask(texts, spoken, conversations)
        # Running text has no prompt: there the text itself is what may repeat.
        bare = pc.equal(pc.utf8_trim_whitespace(texts), "")
        if pc.any(bare).as_py():
            texts = pc.replace_with_mask(texts, bare, pc.list_element(references.filter(bare), 0))
        yield pc.binary_join(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts)), " ")


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _conversation(messages: str) -> str:
    """What a conversation asks: its one question, or all that was said where there are several turns."""
    turns = [turn for turn in json.loads(messages) if turn["role"] != "system"]
    texts = [plain_text(turn) for turn in turns]
    return (
        texts[0]
        if len(turns) == 1
        else "\n".join(f"{turn['role']}: {text}" for turn, text in zip(turns, texts, strict=True))
    )
