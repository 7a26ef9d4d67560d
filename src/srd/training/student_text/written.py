"""What the student has written at a refresh: one file, written by all processes together, read by each.

A file ``<n>.parquet`` has a row for each prompt: ``id``, ``response`` (as text), ``tokens`` (with the one that ended
them), ``log_likelihood`` (log π₀ of each token under its writer, in nats, at temperature 1) and whether it ``ended`` by
itself. Batches are kept one by one until all are there, so that a killed refresh goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from srd.base import parallel
from srd.base.files import atomic_write, fingerprint, is_sealed, read_sealed, seal, write_sealed
from srd.base.tables import column, map_large, open_mapped
from srd.data.batching import Collator, EncodedExamples, TokenLists, length_sorted_batches, lengths_of
from srd.data.turns import without_end
from srd.models.generation import Decoding, answer_texts, decode_batch
from srd.models.head import response_losses
from srd.models.tokenizers.tokens import padding_id, stop_token_ids

SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("response", pa.string()), ("tokens", pa.list_(pa.int32())),
        ("log_likelihood", pa.list_(pa.float32())), ("ended", pa.bool_()),
    ]
)  # fmt: skip
ABOUT = b"srd"  # the key of what a file says of itself
JOINED = 64  # batches that become a row group


@dataclass
class Pen:
    """What text is written with.

    Attributes:
        student: In evaluation mode; says how likely its text is.
        writer: What decodes: the student itself, or an engine that has loaded it.
        tokenizer: Its tokenizer.
        collator: The training's.
        width: Ids from here on are never written.
        batch_size: Prompts at once.
    """

    student: Any
    writer: Any
    tokenizer: Any
    collator: Collator
    width: int
    batch_size: int

    @torch.no_grad()
    def answer(self, names: list[str], prompts: list[list[int]], decoding: Decoding) -> dict[str, list[Any]]:
        """Columns of `SCHEMA` for a batch of prompts."""
        stop = stop_token_ids(self.student, self.tokenizer)
        tokens, _ = decode_batch(
            self.writer, prompts, names, decoding, stop, padding_id(self.tokenizer), width=self.width
        )
        rows = [{"prompt_ids": prompt, "response_ids": own} for prompt, own in zip(prompts, tokens, strict=True)]
        device = next(self.student.parameters()).device
        batch = {name: value.to(device) for name, value in self.collator(rows).items()}
        nats = response_losses(self.student, batch).float().neg().split([len(own) for own in tokens])
        return {
            "id": names,
            "response": answer_texts(self.tokenizer, tokens, stop),
            "tokens": tokens,
            "log_likelihood": [own.tolist() for own in nats],
            "ended": [without_end(own, stop)[1] for own in tokens],
        }


def write_text(
    path: Path,
    about: dict[str, Any],
    examples: EncodedExamples,
    decoding: Decoding,
    pen: Pen,
    progress: Callable[[int, int], None],
) -> None:
    """Let the student answer the prompts of some examples; every process must take part.

    Args:
        path: Of the file; a folder beside it keeps finished batches until it is there.
        about: What the file says of itself, and what decides its content beside the prompts (JSON-like).
        examples: Their responses are not read.
        decoding: How tokens are chosen.
        pen: What writes.
        progress: Called with answers written by all processes, about, and answers to write.
    """
    parts = path.with_suffix(".parts")
    batches = length_sorted_batches(lengths_of(examples.prompts).tolist(), pen.batch_size)
    for number in range(parallel.process(), len(batches), parallel.processes()):
        names = [examples.ids[i] for i in batches[number]]
        prompts = [examples.prompts[i] for i in batches[number]]
        made_from = fingerprint(about, asdict(decoding), names, prompts)
        place = _part(parts, number)
        if read_sealed(place).get("made_from") != made_from:
            write_sealed(place, {"made_from": made_from, **pen.answer(names, prompts, decoding)})
        progress(min(pen.batch_size * (number + parallel.processes()), len(examples)), len(examples))
    parallel.barrier()
    parallel.on_main(lambda: _join(path, parts, len(batches), about))


def _part(parts: Path, number: int) -> Path:
    return parts / f"batch-{number:07d}.json"


def _join(path: Path, parts: Path, count: int, about: dict[str, Any]) -> None:
    """Put the batches together, some at a time."""
    schema = SCHEMA.with_metadata({ABOUT: json.dumps(about).encode()})
    with atomic_write(path) as partial, pq.ParquetWriter(partial, schema) as file:
        for start in range(0, count, JOINED):
            rows = [read_sealed(_part(parts, number)) for number in range(start, min(start + JOINED, count))]
            columns = {name: [value for row in rows for value in row[name]] for name in SCHEMA.names}
            file.write_table(pa.table(columns, schema=schema))
    seal(path)


def is_written(path: Path, about: dict[str, Any]) -> bool:
    """Whether a file is there, whole, and says this of itself."""
    return is_sealed(path) and read_about(path) == about


def read_about(path: Path) -> dict[str, Any]:
    """What a file says of itself."""
    return json.loads((pq.read_schema(path).metadata or {}).get(ABOUT, b"{}"))


class Text:
    """The text of a refresh.

    Args:
        path: Its file.
        mapped: Where a large file is copied to, to be read through a memory map.

    Attributes:
        places: Row of each example that the student has answered.
        tokens: Token ids by row.
        likelihoods: log π₀ of each token by row.
    """

    def __init__(self, path: Path, mapped: Path) -> None:
        parallel.on_main(lambda: map_large([path], mapped))
        rows = open_mapped(path, mapped)
        written = column(rows, "response")
        self.blank: NDArray[np.bool_] = np.asarray(pc.equal(pc.utf8_trim_whitespace(written), ""), dtype=bool)
        self.ended = np.asarray(column(rows, "ended"), dtype=bool)
        self.places = {name: row for row, name in enumerate(rows["id"])}
        self.tokens = _lists(rows, "tokens")
        self.likelihoods = _lists(rows, "log_likelihood")

    def __len__(self) -> int:
        return len(self.blank)

    def own(self, name: str) -> int | None:
        """The row of an example's answer; None where there is none, or an empty one."""
        place = self.places.get(name)
        return None if place is None or self.blank[place] else place

    def summary(self) -> dict[str, float]:
        """What is logged: answers, the shares that are empty and that ended by themselves, and their mean length."""
        if not len(self):
            return {"written": 0}
        return {
            "written": len(self),
            "empty_answers": round(float(self.blank.mean()), 6),
            "ended_answers": round(float(self.ended.mean()), 6),
            "answer_tokens": round(float(self.tokens.lengths.mean()), 3),
        }


def _lists(rows: datasets.Dataset, name: str) -> TokenLists:
    return TokenLists(rows.data.column(name))
