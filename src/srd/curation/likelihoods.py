"""How likely a model finds responses: behind their own prompt, behind none, and behind prompts of other rows.

Every number comes from the same kind of work: a prompt, a response, and the nats of its tokens. So all that is asked
for is put into one list of pairs. A prompt is read once for all responses that are read behind it, and those of similar
length share a batch. What several scores need is there once: one pass over (prompt, response) gives both its loss and
the loss of its end; and where the reflection has made that pass, none.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from srd.base.errors import RunError, UserError
from srd.base.files import fingerprint, read_sealed
from srd.curation.groups import Groups, frames_of, of_each
from srd.curation.scores.base import PASSES
from srd.data.batching import TokenLists, length_sorted_batches, lengths_of
from srd.data.encoding import Encoder
from srd.models.cluster import Shard
from srd.models.finite import blame, non_finite_tensor
from srd.models.reading import Reader, abilities, groups
from srd.models.shards import make_shards, own_shards
from srd.models.tokenizers.tokens import padding_id

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]

BLOCK = "block-{:07d}.json"  # what was read of a block
RESPONSES = 8  # in a block, for each of its prompts
START = 64  # tokens that prompts begin with alike, from which on it is worth reading them once
OTHERS = int(PASSES["mismatched"])  # prompts of other rows that a response is read behind


# --------------------------------------------------------------------------------------------------- pairs, in blocks


@dataclass(frozen=True)
class Pairs:
    """Responses behind prompts.

    Attributes:
        prompts: Token ids.
        responses: Token ids.
        which: Of each pair the places of its prompt and its response, ``[P, 2]``.
    """

    prompts: Sequence[list[int]]
    responses: Sequence[list[int]]
    which: NDArray[np.int64]

    def tokens(self, places: NDArray[np.int64]) -> list[tuple[list[int], list[int]]]:
        """Some of the pairs, as token ids."""
        return [(self.prompts[prompt], self.responses[response]) for prompt, response in self.which[places].tolist()]

    def part(self, places: NDArray[np.int64]) -> Pairs:
        """Some of the pairs, with the texts that they need and no others."""
        (asked, prompts), (read, responses) = (
            np.unique(self.which[places, side], return_inverse=True) for side in (0, 1)
        )
        return Pairs(
            [self.prompts[int(i)] for i in asked],
            [self.responses[int(i)] for i in read],
            np.stack([prompts.reshape(-1), responses.reshape(-1)], 1),
        )

    def blocks(self, size: int) -> list[NDArray[np.int64]]:
        """Places in ``which``, in blocks of at most so many prompts of similar length, which are read once a block."""
        lengths, prompts = lengths_of(self.prompts), self.which[:, 0]
        order = np.lexsort((lengths_of(self.responses)[self.which[:, 1]], prompts, -lengths[prompts]))
        blocks: list[list[int]] = []
        seen: set[int] = set()
        for place in order.tolist():
            prompt = int(prompts[place])
            if not blocks or (prompt not in seen and len(seen) == size) or len(blocks[-1]) == RESPONSES * size:
                blocks.append([])
                seen = set()
            blocks[-1].append(place)
            seen.add(prompt)
        return [np.array(block, dtype=np.int64) for block in blocks]


def pair_losses(
    model: Any,
    tokenizer: Any,
    pairs: Pairs,
    *,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Floats, Floats]:
    """Negative log-likelihood of responses.

    Args:
        model: A causal or sequence-to-sequence language model; its mode is restored afterwards.
        tokenizer: Of that model.
        pairs: What is read.
        batch_size: Prompts, and then responses, in one forward pass.
        folder: Keeps every finished block, so that killed work goes on where it was and processes share it; None:
            memory only, and each process does all of it.
        progress: Called with pairs done and pairs to do.

    Returns:
        Of each pair the nats of all tokens, and of the last token, ``[P]`` both. NaN where the model gives none; 0 for
        a response without tokens.

    Raises:
        RunError: the model's weights are not finite.
    """
    blocks = pairs.blocks(batch_size)
    mine = own_shards(len(blocks), folder is not None)
    done = itertools.count(1)

    def shard_of(number: int) -> tuple[str, Shard]:
        return fingerprint(pairs.tokens(blocks[number])) if folder else "", (pairs.part(blocks[number]),)

    found = make_shards(
        model, _read, (tokenizer, batch_size), mine, shard_of, folder, BLOCK,
        lambda number: progress(next(done), len(mine)) if progress else None,
    )  # fmt: skip
    totals, lasts = np.zeros(len(pairs.which)), np.zeros(len(pairs.which))
    for number, places in enumerate(blocks):
        part = read_sealed(folder / BLOCK.format(number)) if folder else found[number]
        totals[places], lasts[places] = part["totals"], part["lasts"]
    return totals, lasts


@torch.no_grad()
def _read(model: Any, tokenizer: Any, batch_size: int, pairs: Pairs) -> dict[str, list[float]]:
    """Read a block's prompts once, and behind them its responses, those of similar length together."""
    nats: list[list[float]] = [[] for _ in pairs.which]
    able = abilities(model)
    for some in (part for equal in groups(pairs.prompts, able) for part in _by_start(pairs.prompts, equal)):
        shared = _shared([pairs.prompts[i] for i in some])
        reader = Reader(model, [pairs.prompts[i] for i in some], padding_id(tokenizer), able, shared=shared)
        logits = reader.prefill()
        row_of = {prompt: row for row, prompt in enumerate(some)}
        responses = {place: pairs.responses[response] for place, (prompt, response) in enumerate(pairs.which.tolist())
                     if prompt in row_of}  # fmt: skip
        filled = [place for place, response in responses.items() if response]
        for batch in length_sorted_batches([len(responses[place]) for place in filled], batch_size):
            places = [filled[i] for i in batch]
            rows = torch.tensor([row_of[int(pairs.which[place, 0])] for place in places], device=reader.device)
            for place, found in zip(places, reader.behind(logits, rows, [responses[p] for p in places]), strict=True):
                nats[place] = found
    totals, lasts = [math.fsum(each) for each in nats], [each[-1] if each else 0.0 for each in nats]
    if not all(map(math.isfinite, totals)) and non_finite_tensor(model):
        raise RunError(f"the model gives logits that are not finite. {blame({'model': model})}")
    return {"totals": totals, "lasts": lasts}


def _by_start(prompts: Sequence[list[int]], places: Sequence[int]) -> list[list[int]]:
    """Places of prompts that begin alike for long, together, and of all others."""
    parts: dict[tuple[int, ...], list[int]] = {}
    for place in places:
        start = tuple(prompts[place][:START])
        parts.setdefault(start if len(start) == START else (), []).append(place)
    alike = [part for start, part in parts.items() if start and len(part) > 1]
    others = set(places).difference(*alike)
    return [part for part in [[place for place in places if place in others], *alike] if part]


def _shared(prompts: Sequence[list[int]]) -> int:
    """So many tokens all prompts begin with, the last of each left out; 0 where that is not worth a pass."""
    shortest = min(map(len, prompts)) - 1
    starts = np.array([each[:shortest] for each in prompts])
    differ = (starts != starts[0]).any(0)
    same = int(differ.argmax()) if differ.any() else shortest
    return same if len(prompts) > 1 and same >= START - 1 else 0


# ----------------------------------------------------------------------------------------------- what scores ask for


class Joined(Sequence[list[int]]):
    """Sequences of token lists, one behind the other, each left where it is."""

    def __init__(self, *parts: Sequence[list[int]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])
        self.lengths = np.concatenate([lengths_of(part) for part in parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part][int(index - self.starts[part])]


@dataclass(frozen=True)
class Tokens:
    """Encoded rows, and the empty prompts in their frames.

    Attributes:
        ids: Of the rows.
        prompts: Token ids.
        responses: Token ids.
        ended: Whether each response has its end; one that was cut to fit has none.
        frames: The name of the template that renders each row.
        blank: Empty prompts, token ids.
        empty: Which of them has each row's frame, ``[N]``.
    """

    ids: list[str]
    prompts: Sequence[list[int]]
    responses: Sequence[list[int]]
    ended: NDArray[np.bool_]
    frames: list[str]
    blank: list[list[int]]
    empty: NDArray[np.int64]

    @classmethod
    def of(cls, encoder: Encoder, examples: datasets.Dataset, encoded: datasets.Dataset | None = None) -> Tokens:
        """Encode examples, unless they are; what is amiss with them was said where they were to be learnt."""
        encoded = encoder.encode(examples, split=None) if encoded is None else encoded
        prompts, responses = (TokenLists(encoded.data.column(name)) for name in ("prompt_ids", "response_ids"))
        ended = ~np.asarray(encoded["response_cut"], dtype=bool)
        frames = frames_of(encoder, examples)
        return cls(list(encoded["id"]), prompts, responses, ended, frames, *blank_prompts(encoder, examples, frames))

    @property
    def lengths(self) -> Floats:
        """Tokens of each response, ``[N]``."""
        return lengths_of(self.responses).astype(np.float64)

    def cut_to(self, rooms: NDArray[np.int64]) -> Tokens:
        """The same with responses of at most so many tokens, ``[N]``."""
        fits = lengths_of(self.responses) <= rooms
        if fits.all():
            return self
        cut = [self.responses[row][:room] for row, room in enumerate(rooms.tolist())]
        return replace(self, responses=cut, ended=self.ended & fits)


def groups_for(tokens: Tokens, needs: Collection[str], others: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The pairs that some needs take, by the kind of prompt; prompts are those of the rows, then the empty ones."""
    rows = np.arange(len(tokens.ids))
    groups = {}
    if {"losses", "endings"} & set(needs):
        groups["own"] = np.stack([rows, rows], 1)
    if "unprompted" in needs:
        groups["unprompted"] = np.stack([len(rows) + tokens.empty, rows], 1)
    if "mismatched" in needs:
        groups["mismatched"] = np.stack([others.ravel(), np.repeat(rows, others.shape[1])], 1)
    return groups


def groups_in_place(
    rows: Tokens, places: NDArray[np.int64], texts: Tokens, needs: Collection[str], others: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """`groups_for` of texts in the place of some rows' responses, behind the prompts that those rows are read behind.

    Args:
        rows: All of them.
        places: Of the row of each text, ``[T]``.
        texts: Encoded, with an own prompt each, which is not used.
        needs: What the groups are for.
        others: Of all rows, as `groups_for` takes them.
    """
    groups = groups_for(texts, needs, others[places])
    groups["own"] = np.stack([places, np.arange(len(places))], 1)
    if "unprompted" in groups:
        groups["unprompted"][:, 0] = len(rows.ids) + rows.empty[places]
    return groups


def fitted(
    texts: Sequence[Tokens], prompts: Sequence[list[int]], groups: Mapping[str, NDArray[np.int64]], encoder: Encoder
) -> list[Tokens]:
    """Texts whose responses fit behind every prompt that they are read behind, where the model has a limit.

    An encoded row fits behind its own prompt, but others are longer. A response is cut alike for all of them: what is
    compared is then the same text.

    Args:
        texts: The responses that the groups count, one text's behind the other's.
        prompts: That the groups count.
        groups: Pairs, by name.
        encoder: Knows how many positions there are.
    """
    if encoder.positions is None or encoder.encoder_decoder:
        return list(texts)
    ends, lengths = np.cumsum([len(each.ids) for each in texts]), lengths_of(prompts)
    rooms = np.full(ends[-1], encoder.positions)
    for pairs in groups.values():
        np.minimum.at(rooms, pairs[:, 1], np.maximum(0, encoder.positions - lengths[pairs[:, 0]]))
    return [each.cut_to(part) for each, part in zip(texts, np.split(rooms, ends[:-1]), strict=True)]


Found = dict[str, tuple[Floats, Floats]]  # by group: nats of all tokens and of the last one


def read_groups(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    groups: Mapping[str, NDArray[np.int64]],
    **options: Any,
) -> Found:
    """`pair_losses` of several groups of pairs at once; of none, no model is needed."""
    if not groups:
        return {}
    which = np.concatenate(list(groups.values()))
    totals, lasts = pair_losses(model, tokenizer, Pairs(prompts, responses, which), **options)
    cuts = np.cumsum([len(each) for each in groups.values()])[:-1]
    return dict(zip(groups, zip(np.split(totals, cuts), np.split(lasts, cuts), strict=True), strict=True))


def columns_from(found: Found, lengths: Floats, ended: NDArray[np.bool_]) -> dict[str, Floats]:
    """What was read, in the columns of the scores' table (see `likelihoods`), ``[N]`` each."""
    columns = {"length": lengths}
    if "own" in found:
        total, last = found["own"]
        columns |= {"ce": total / np.maximum(lengths, 1), "end_nll": np.where(ended, last, 0.0)}
    if "unprompted" in found:
        columns["unprompted_nll"] = found["unprompted"][0]
    if "mismatched" in found:
        total, last = (values.reshape(len(lengths), -1) for values in found["mismatched"])
        without_end = total - np.where(ended[:, None], last, 0.0)
        # Where nobody asks anything else, nothing speaks against a row.
        own = columns["ce"] * lengths - columns["end_nll"] if "ce" in columns else np.zeros(len(lengths))
        columns["mismatched_nll"] = without_end.mean(1) if without_end.shape[1] else own
    return columns


def likelihoods(
    model: Any,
    encoder: Encoder,
    examples: datasets.Dataset,
    needs: Collection[str],
    *,
    encoded: datasets.Dataset | None = None,
    own: tuple[Floats, Floats] | None = None,
    **options: Any,
) -> dict[str, Floats]:
    """What scores need to know of a model's likelihoods, one forward pass for each pair of prompt and response.

    Args:
        model: Reads.
        encoder: Turns examples into tokens; of the model's tokenizer.
        examples: Rows of the example schema.
        needs: Of ``losses``, ``endings``, ``unprompted``, ``mismatched`` (`srd.curation.scores.base.NEEDS`).
        encoded: The examples as the encoder gives them; None: encoded here.
        own: Of each row what the model is known to say of its response behind its own prompt: mean nats a token, and
            nats of the last token. It is read where responses must be cut to fit behind other prompts.
        options: ``batch_size``, ``folder`` and ``progress`` of `pair_losses`.

    Returns:
        By column, ``[N]`` each: ``length`` (tokens), ``ce`` (mean nats a token), ``end_nll`` (nats of the end; 0 of a
        response that was cut to fit, which has none), ``unprompted_nll`` (nats of the response behind an empty prompt
        in the same frame), ``mismatched_nll`` (mean nats, the end left out, behind `OTHERS` prompts of other rows).
        Of `ce`, `end_nll` and `mismatched_nll` the first two come with each other and with the third.
    """
    needs = {*needs, *({"losses"} if "mismatched" in needs else ())}
    tokens = Tokens.of(encoder, examples, encoded)
    others = other_prompts(tokens.ids, tokens.prompts, OTHERS) if "mismatched" in needs else np.zeros((0, 0), np.int64)
    groups = groups_for(tokens, needs, others)
    prompts = Joined(tokens.prompts, tokens.blank)
    (fits,) = fitted([tokens], prompts, groups, encoder)
    known: Found = {}
    if own is not None and fits is tokens and groups.pop("own", None) is not None:
        known["own"] = own[0] * tokens.lengths, own[1]
    found = known | read_groups(model, encoder.tokenizer, prompts, fits.responses, groups, **options)
    return columns_from(found, fits.lengths, fits.ended)


def blank_prompts(
    encoder: Encoder, examples: datasets.Dataset, frames: Sequence[str]
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Empty prompts in the frames of the rows: the token ids of each, and which of them belongs to each row, ``[N]``.

    Where the frame has no token of its own, the prompt is what the tokenizer begins a text with.
    """
    shapes = np.zeros(len(examples), dtype=np.int64)
    for number, name in enumerate(("messages", "prompt"), start=1):
        shapes[np.array([bool(text) for text in examples[name]]) & (shapes == 0)] = number
    nothing = {"id": "empty", "instruction": "", "input": "", "messages": "", "prompt": "", "corruption": ""}
    without = [{"instruction": ""}, {"messages": json.dumps([{"role": "user", "content": ""}])}, {"prompt": ""}]
    _, first, empty = np.unique(
        np.stack([shapes, np.unique(frames, return_inverse=True)[1]]), axis=1, return_index=True, return_inverse=True
    )
    # A template may go by the id, which is that of a row in this frame.
    used = [
        {**nothing, "references": [""], "id": examples[row]["id"], **without[shapes[row]]} for row in first.tolist()
    ]
    return [_blank(encoder, row) for row in used], empty.reshape(-1)


def _blank(encoder: Encoder, row: dict[str, Any]) -> list[int]:
    try:
        (ids,), _, _ = encoder.prompts([row])
    except UserError:  # a prompt without tokens
        start = encoder.tokenizer.bos_token_id
        ids = [encoder.tokenizer.eos_token_id if start is None else start]
    return ids


def other_prompts(
    ids: Sequence[str], prompts: Sequence[list[int]], count: int, groups: Groups | None = None
) -> NDArray[np.int64]:
    """`_other_prompts`, of rows of the same group where that asks enough things; then it is no other script's."""
    chosen = _other_prompts(ids, prompts, count)
    for own in of_each(groups).values() if groups is not None else ():
        others = _other_prompts([ids[row] for row in own], [prompts[row] for row in own], count)
        if others.shape[1] == chosen.shape[1]:
            chosen[own] = own[others]
    return chosen


def _other_prompts(ids: Sequence[str], prompts: Sequence[list[int]], count: int) -> NDArray[np.int64]:
    """For each row the places of ``count`` rows that each ask something else, drawn by its id, ``[N, count]``.

    The draw depends on the ids and on what is asked, not on the order of the rows. Where fewer things are asked, there
    are fewer columns.
    """
    first: dict[bytes, int] = {}  # what is asked -> the row with the smallest id that asks it
    asked = [hashlib.blake2b(np.asarray(prompts[i], np.int64).tobytes()).digest() for i in range(len(ids))]
    for row in sorted(range(len(ids)), key=lambda row: ids[row]):
        first.setdefault(asked[row], row)
    place = {question: number for number, question in enumerate(first)}
    rows, count = list(first.values()), max(0, min(count, len(first) - 1))
    chosen = np.zeros((len(ids), count), dtype=np.int64)
    for row, name in enumerate(ids):
        drawn = random.Random(name).sample(range(len(rows) - 1), count)
        chosen[row] = [rows[number + (number >= place[asked[row]])] for number in drawn]
    return chosen
