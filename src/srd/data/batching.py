"""Batches of similar length, in an order that depends on seed and epoch alone, and their padding to tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from srd.base.errors import UserError

Spans = list[tuple[int, int]]

POOL = 64  # batches sorted by length together: enough for little padding, few enough to stay random


class HiddenSource(Protocol):
    """Where the teacher's hidden states come from, by token ids."""

    def hidden(self, prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> Tensor:
        """The teacher's last hidden states at all positions that are learnt, ``[N, d]`` (see `learnt_spans`)."""
        ...


class LengthBatches(Sampler[list[int]]):
    """Yields batches of indices of similar length.

    Each epoch shuffles the examples, sorts pools of `POOL` batches by length, cuts them into batches, and shuffles
    the batches. The order depends on ``seed`` and the epoch alone, so that a resumed run sees the same batches.
    With ``micro_batch_size`` each batch is cut into micro-batches that follow one another: accumulated by one
    process or dealt out to several, they are the same optimizer step.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples in an optimizer step.
        micro_batch_size: Examples in one yielded list; None: the whole batch.
        seed: Fixes the order.
        subset: Draw so many examples anew in every epoch; None: all.
        process: This process's number; micro-batches are dealt out in turn.
        processes: Processes that share each optimizer step.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        micro_batch_size: int | None = None,
        seed: int = 0,
        subset: int | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size or batch_size
        self.seed = seed
        self.draw(subset)
        self.process = process
        self.processes = processes
        self.epoch = 0

    def draw(self, subset: int | None) -> None:
        """Draw so many examples anew in every epoch; None: all."""
        self.count = min(subset or len(self.lengths), len(self.lengths))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def order(self, random: np.random.Generator | None = None) -> NDArray[np.int64]:
        """The examples of this epoch, shuffled."""
        random = random or np.random.default_rng([self.seed, self.epoch])
        return random.permutation(len(self.lengths))[: self.count]

    def batches(self) -> list[list[int]]:
        """The optimizer steps of this epoch, as lists of indices."""
        random = np.random.default_rng([self.seed, self.epoch])
        return self.cut(self.order(random), self.lengths, random)

    def cut(self, order: NDArray[np.int64], lengths: NDArray[np.int64], random: np.random.Generator) -> list[list[int]]:
        """Cut shuffled examples into batches of similar length, which come in a random order.

        Args:
            order: Indices of examples, shuffled.
            lengths: Tokens of every example, by its index.
            random: Shuffles the batches.
        """
        pool = self.batch_size * POOL
        batches = []
        for start in range(0, len(order), pool):
            chunk = order[start : start + pool]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            batches += [chunk[i : i + self.batch_size].tolist() for i in range(0, len(chunk), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches():
            yield from self.own_part(batch)

    def own_part(self, batch: list[Any]) -> list[list[Any]]:
        """This process's micro-batches of an optimizer step, some of them empty where the step is a short one."""
        starts = [(step * self.processes + self.process) * self.micro_batch_size for step in range(self.accumulation)]
        return [batch[start : start + self.micro_batch_size] for start in starts]

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in an optimizer step; a short last step has as many, some of them empty."""
        return -(-self.batch_size // (self.micro_batch_size * self.processes))

    def __len__(self) -> int:
        return -(-self.count // self.batch_size) * self.accumulation


class TokenLists(Sequence[list[int]]):
    """Lists of token ids that stay in Arrow's memory, often a memory-mapped file, until one of them is read.

    A million Python lists of integers take tens of gigabytes; these take four bytes a token, on disk where the data set
    is on disk.

    Args:
        column: An Arrow column of integer lists.
        order: Rows of the column in the order of this sequence; None: as they are.
    """

    def __init__(self, column: pa.ChunkedArray, order: NDArray[np.int64] | None = None) -> None:
        self._column = column
        self._offsets = [chunk.offsets.to_numpy() for chunk in column.chunks]
        self._values = [chunk.values.to_numpy() for chunk in column.chunks]
        self._starts = np.cumsum([0, *map(len, column.chunks)])
        self._order = np.arange(len(column)) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...

    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._order[index]
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - self._starts[chunk]
        start, end = self._offsets[chunk][place : place + 2]
        return self._values[chunk][start:end].tolist()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each list, without reading any."""
        parts = [np.diff(offsets) for offsets in self._offsets]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])[self._order]

    def take(self, rows: Sequence[int]) -> TokenLists:
        """The lists at these places, in this order."""
        return TokenLists(self._column, self._order[np.asarray(rows, dtype=np.int64)])


def learnt_spans(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Where the tokens that are learnt stand in prompt and response together: first and behind the last of each answer.

    Args:
        row: ``prompt_ids``, ``response_ids``, and ``earlier`` where answers within the prompt are learnt, too: their
            spans in it, one behind the other.
    """
    prompt, earlier = len(row["prompt_ids"]), row.get("earlier") or []
    return [*zip(earlier[::2], earlier[1::2], strict=True), (prompt, prompt + len(row["response_ids"]))]


def learnt_count(row: Mapping[str, Any]) -> int:
    """How many tokens of a row are learnt."""
    return sum(end - start for start, end in learnt_spans(row))


def learnt_answers(row: Mapping[str, Any]) -> list[list[int]]:
    """The tokens of each answer of a row that is learnt."""
    text = [*row["prompt_ids"], *row["response_ids"]]
    return [text[start:end] for start, end in learnt_spans(row)]


class EncodedExamples(Dataset[dict[str, Any]]):
    """Encoded examples as a torch data set, with the teacher's hidden states where there is a cache.

    Args:
        rows: ``id, prompt_ids, response_ids`` of `srd.data.encoding.Encoder.encode`, left where they are; or lists.
            ``earlier`` says where answers within the prompt are learnt, too.
        teacher: The teacher cache, or None.
    """

    def __init__(self, rows: Any, teacher: HiddenSource | None = None) -> None:
        self.ids: list[str] = list(rows["id"])
        self.prompts: Sequence[list[int]] = _token_lists(rows, "prompt_ids")
        self.responses: Sequence[list[int]] = _token_lists(rows, "response_ids")
        columns = rows.column_names if hasattr(rows, "column_names") else rows
        self.earlier: Sequence[list[int]] | None = _token_lists(rows, "earlier") if "earlier" in columns else None
        self.teacher = teacher
        self.soft: frozenset[str] = frozenset()  # ids of examples without cross-entropy
        self.doubtful: frozenset[str] = frozenset()  # of those whose own text has the teacher's whole weight for it

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, index: int) -> dict[str, list[int]]:
        """The token ids of an example, as `Collator` takes them."""
        row = {"prompt_ids": self.prompts[index], "response_ids": self.responses[index]}
        return row if self.earlier is None else {**row, "earlier": self.earlier[index]}

    def marks(self, name: str) -> dict[str, bool]:
        """How an example is learnt from its own text, where otherwise than most."""
        return {mark: True for mark in ("soft", "doubtful") if name in getattr(self, mark)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.tokens(index)
        row: dict[str, Any] = {"id": self.ids[index], **tokens, **self.marks(self.ids[index])}
        if self.teacher is not None:
            row["teacher_hidden"] = self.teacher.hidden(*tokens.values())
        return row

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Fetch a batch; an empty one is fine."""
        return [self[index] for index in indices]

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and response of each example."""
        return (lengths_of(self.prompts) + lengths_of(self.responses)).tolist()

    @property
    def learnt(self) -> list[int]:
        """Tokens of each example that are learnt."""
        responses: list[int] = lengths_of(self.responses).tolist()
        if self.earlier is None:
            return responses
        return [sum(spans[1::2]) - sum(spans[::2]) + own for spans, own in zip(self.earlier, responses, strict=True)]

    @property
    def response_tokens(self) -> int:
        """Tokens of all responses."""
        return sum(self.learnt)

    def subset(self, ids: Sequence[str]) -> EncodedExamples:
        """The examples with these ids, in this order."""
        position = {name: index for index, name in enumerate(self.ids)}
        chosen = [position[name] for name in ids]
        tokens = {"prompt_ids": _take(self.prompts, chosen), "response_ids": _take(self.responses, chosen)}
        if self.earlier is not None:
            tokens["earlier"] = _take(self.earlier, chosen)
        examples = EncodedExamples({"id": list(ids), **tokens}, self.teacher)
        examples.soft, examples.doubtful = self.soft, self.doubtful
        return examples


def _token_lists(rows: Any, column: str) -> Sequence[list[int]]:
    if hasattr(rows, "flatten_indices"):  # a `datasets.Dataset`, which is left where it is
        rows = rows if rows._indices is None else rows.flatten_indices()
        return TokenLists(rows.data.column(column))
    lists: Sequence[list[int]] = rows[column]
    return lists if isinstance(lists, TokenLists) else list(lists)


def _take(lists: Sequence[list[int]], rows: list[int]) -> Sequence[list[int]]:
    return lists.take(rows) if isinstance(lists, TokenLists) else [lists[row] for row in rows]


def lengths_of(lists: Sequence[list[int]]) -> NDArray[np.int64]:
    """Tokens of each list, ``[N]``: where they are known, no list is read for it."""
    known: NDArray[np.int64] | None = getattr(lists, "lengths", None)
    return np.array([len(tokens) for tokens in lists], dtype=np.int64) if known is None else known


class Collator:
    """Pads examples to a batch of tensors. Masks come from lengths, never from token ids: pad may be end of sequence.

    For a decoder-only model the batch holds ``input_ids, attention_mask [B, L]``; for an encoder-decoder the encoder's
    ``input_ids, attention_mask`` and the decoder's ``decoder_input_ids, decoder_attention_mask``. Both hold

    - ``index [N]``: the response positions whose logits count, in the flattened ``[B · L]`` (decoder) positions,
    - ``targets [N]``: the token each of them must predict, end of sequence included,
    - ``teacher_hidden [N, d]``: where the data set has a teacher cache,
    - ``reference [N]``: where there are examples without cross-entropy, 0 for their tokens and 1 for the others.

    Args:
        pad_id: Any valid id; it never counts.
        decoder_start_id: What an encoder-decoder's decoder begins with, one id or several; None: decoder-only.
        packed: Put all examples into one row without padding: ``input_ids, position_ids [1, L]``, where positions begin
            anew with each example. For decoder-only models whose attention kernel keeps such examples apart.
    """

    def __init__(
        self, pad_id: int, decoder_start_id: int | Sequence[int] | None = None, *, packed: bool = False
    ) -> None:
        self.pad_id = pad_id
        self.decoder_start_id = decoder_start_id
        self.packed = packed

    def check(self, examples: EncodedExamples) -> None:
        """Refuse an example whose first token no position predicts: one without a prompt, of a decoder-only model."""
        for place in np.flatnonzero(lengths_of(examples.prompts) == 0) if self.decoder_start_id is None else ():
            raise UserError(
                f"row {place + 1} (id {examples.ids[place]!r}) has no prompt_ids, and before the first token of its "
                "response there must be one that predicts it. Give at least the beginning-of-sequence token."
            )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        # A process without examples takes part in the step with one that counts nothing.
        rows = rows or [{"prompt_ids": [self.pad_id], "response_ids": []}]
        make = self._decoder_only if self.decoder_start_id is None else self._encoder_decoder
        texts = [[*row["prompt_ids"], *row["response_ids"]] for row in rows]
        spans = [learnt_spans(row) for row in rows]
        batch = self._in_one_row(texts, spans) if self.packed else make(texts, spans)
        learnt = [token for row in rows for answer in learnt_answers(row) for token in answer]
        batch["targets"] = torch.tensor(learnt, dtype=torch.long)
        if any(row.get("soft") for row in rows):
            batch["reference"] = torch.tensor(
                [float(not row.get("soft")) for row in rows for _ in range(learnt_count(row))]
            )
        hidden = [row["teacher_hidden"] for row in rows if row.get("teacher_hidden") is not None]
        if hidden:
            batch["teacher_hidden"] = torch.cat(hidden)
        return batch

    def _decoder_only(self, texts: list[list[int]], spans: list[Spans]) -> dict[str, Any]:
        ids, mask = pad_right(texts, self.pad_id)
        width = ids.shape[1]
        index = [
            torch.arange(row * width + start - 1, row * width + end - 1)
            for row, own in enumerate(spans)
            for start, end in own
        ]
        return {"input_ids": ids, "attention_mask": mask, "index": torch.cat(index)}

    def _in_one_row(self, texts: list[list[int]], spans: list[Spans]) -> dict[str, Any]:
        ids: list[int] = []
        positions: list[int] = []
        index: list[int] = []
        for text, own in zip(texts, spans, strict=True):
            for start, end in own:
                index += range(len(ids) + start - 1, len(ids) + end - 1)
            ids += text
            positions += range(len(text))
        row = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}
        return {**row, "index": torch.tensor(index).long()}

    def _encoder_decoder(self, texts: list[list[int]], spans: list[Spans]) -> dict[str, Any]:
        prompts = [text[: own[-1][0]] for text, own in zip(texts, spans, strict=True)]
        responses = [text[own[-1][0] :] for text, own in zip(texts, spans, strict=True)]
        start = self.decoder_start_id
        assert start is not None
        prefix = [start] if isinstance(start, int) else list(start)
        before = len(prefix) - 1  # read by the decoder, predicted by nobody
        ids, mask = pad_right(prompts, self.pad_id)
        decoder_ids, decoder_mask = pad_right([[*prefix, *response[:-1]] for response in responses], self.pad_id)
        width = decoder_ids.shape[1]
        first = [row * width + before for row in range(len(responses))]
        index = [torch.arange(place, place + len(r)) for place, r in zip(first, responses, strict=True)]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "decoder_input_ids": decoder_ids,
            "decoder_attention_mask": decoder_mask,
            "index": torch.cat(index),
        }


def pad_right(sequences: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Pad to the longest: ids ``[B, L]`` and mask ``[B, L]`` (1 for real tokens)."""
    return _pad(sequences, value, left=False)


def pad_left(sequences: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Pad to the longest on the left, as generation needs it: ids ``[B, L]`` and mask ``[B, L]``."""
    return _pad(sequences, value, left=True)


def _pad(sequences: Sequence[Sequence[int]], value: int, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), value, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, place] = torch.tensor(list(sequence), dtype=torch.long)
        mask[row, place] = 1
    return ids, mask


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut indices into batches of similar length, longest first (memory runs out at once or never)."""
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
