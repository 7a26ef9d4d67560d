"""Generation that wastes nothing: length-sorted batches, rows that have stopped leave the batch, no stored scores.

Sampling draws one uniform number per token from a stream of its own for every example and seed, so that an answer
does not depend on which other prompts share its batch, on resuming, or on the number of processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from srd.base import parallel
from srd.base.errors import RunError
from srd.base.files import fingerprint, read_sealed
from srd.data.batching import length_sorted_batches
from srd.data.turns import without_end
from srd.models.cluster import Shard
from srd.models.finite import non_finite_tensor, not_finite
from srd.models.reading import Reader, Scored, abilities, groups
from srd.models.shards import BATCH, make_shards, own_shards
from srd.models.tokenizers.pair import token_count
from srd.models.tokenizers.tokens import padding_id, stop_token_ids

BLOCK = 512  # ids whose probabilities are added up before one of them is drawn
NO_TOKEN = -1  # in place of one that no finite logit could choose
UNKNOWN = Scored(math.nan, math.nan)


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: Longest answer, end of sequence included.
        temperature: 0 is greedy.
        top_p: Keep the smallest set of tokens with this much probability.
        seed: Fixes the samples.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@runtime_checkable
class Engine(Protocol):
    """What stands where a model does and decodes batches by itself (see `srd.models.engines.base`)."""

    def decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str],
        decoding: Decoding,
        stop: Sequence[int],
        references: Sequence[Sequence[int]] | None,
        width: int | None = None,
    ) -> tuple[list[list[int]], list[Scored]]:
        """What `decode_batch` of this module gives for a batch."""
        ...


def sample_seed(name: str, seed: int) -> int:
    """A seed of its own for every example, in 32 bits, for engines that draw by themselves."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=4).digest(), "little")


def _uniforms(names: Sequence[str], decoding: Decoding) -> np.ndarray:
    """One uniform number per example and token ``[B, max_new_tokens]``, from streams named by seed and example."""
    rows = []
    for name in names:
        key = hashlib.blake2b(f"{decoding.seed}\0{name}".encode(), digest_size=16).digest()
        rows.append(
            np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(decoding.max_new_tokens)
        )
    return np.stack(rows)


def choose(logits: Tensor, decoding: Decoding, uniform: Tensor | None) -> Tensor:
    """The next tokens ``[B]`` from logits ``[B, V]``: the best, or sampled with ``uniform [B]`` above temperature 0.

    A row whose logits are not finite gets `NO_TOKEN`, so that the caller sees it where it reads the tokens anyway.
    """
    if decoding.temperature == 0:
        tokens = logits.argmax(-1)  # the place of a NaN, where there is one
        return torch.where(torch.isfinite(logits.gather(-1, tokens[:, None])[:, 0]), tokens, NO_TOKEN)
    assert uniform is not None
    probabilities = torch.softmax(logits.float() / decoding.temperature, -1)
    order = None
    if decoding.top_p < 1:
        probabilities, order = probabilities.sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= decoding.top_p, 0)
    drawn, total = _draw(probabilities, uniform[:, None].double())
    tokens = (drawn if order is None else order.gather(-1, drawn))[:, 0]
    return torch.where(torch.isfinite(total), tokens, NO_TOKEN)


def _draw(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where numbers from 0 to 1 ``[B, 1]`` fall among weights ``[B, V]``: places ``[B, 1]``, and the sums ``[B]``.

    A block of the vocabulary is drawn first, and then one of its ids: running sums over all of it are slow on a GPU.
    """
    width = weights.shape[-1]
    whole = width // BLOCK * BLOCK
    blocks = weights[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1, dtype=torch.float64)
    blocks = torch.cat([blocks, weights[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], -1)
    ends = blocks.cumsum(-1)
    aim = uniform * ends[:, -1:]
    block = torch.searchsorted(ends, aim, right=True).clamp_(max=blocks.shape[-1] - 1)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    places = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(-1, places.clamp(max=width - 1)).double().masked_fill_(places >= width, 0)
    place = torch.searchsorted(before + inside.cumsum(-1), aim, right=True).clamp_(max=BLOCK - 1)
    return (block * BLOCK + place).clamp_(max=width - 1), ends[:, -1]


@torch.no_grad()
def decode_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    decoding: Decoding,
    stop: Sequence[int],
    pad_id: int,
    *,
    width: int | None = None,
    references: Sequence[Sequence[int]] | None = None,
) -> tuple[list[list[int]], list[Scored]]:
    """Answer one batch of prompts.

    Args:
        model: In evaluation mode, or an `Engine`.
        prompts: Token ids.
        names: Name each prompt's random stream (its example id).
        decoding: How tokens are chosen.
        stop: Ids that end an answer; the answer keeps the one that ended it.
        pad_id: Any valid id.
        width: Ids from here on are padding rows of the head and never chosen.
        references: Score these answers too (teacher forcing, same pass over the prompts).

    Returns:
        The answers' token ids, and of each reference what the model says (none without references).

    Raises:
        RunError: logits are not finite. Where the weights are, and references are scored, such a row gets no further
            token and a score of NaN instead, which its reader has to deal with.
    """
    if isinstance(model, Engine):
        answers, scores = model.decode_batch(prompts, names, decoding, stop, references, width)
    else:
        answers, scores = [[] for _ in prompts], [] if references is None else [UNKNOWN for _ in prompts]
        able = abilities(model)
        for rows in groups(prompts, able):
            batch = Reader(model, [prompts[i] for i in rows], pad_id, able)
            logits = batch.prefill()
            if references is not None:
                for i, score in zip(rows, batch.score(logits, [references[i] for i in rows]), strict=True):
                    scores[i] = score
            for i, answer in zip(
                rows, _answers(batch, logits, [names[i] for i in rows], decoding, stop, width), strict=True
            ):
                answers[i] = answer
    return _checked(model, names, answers, scores)


def _answers(
    batch: Reader, logits: Tensor, names: Sequence[str], decoding: Decoding, stop: Sequence[int], width: int | None
) -> list[list[int]]:
    """Decode from the logits of the first new tokens; an answer with `NO_TOKEN` at its end met NaN."""
    answers: list[list[int]] = [[] for _ in names]
    rows, ended = list(range(len(names))), {*stop, NO_TOKEN}  # rows: whose answer each of the batch is
    alive = [True for _ in names]
    sampled = decoding.temperature > 0
    uniform = torch.from_numpy(_uniforms(names, decoding)).to(batch.device) if sampled else None
    for position in range(decoding.max_new_tokens):
        scored = logits[:, :width] if width else logits
        tokens = choose(scored, decoding, None if uniform is None else uniform[:, position])
        for place, token in enumerate(tokens.tolist()):  # all that a GPU is asked for a step
            if alive[place]:
                answers[rows[place]].append(token)
                alive[place] = token not in ended
        count = sum(alive)
        if count == 0 or position + 1 == decoding.max_new_tokens:
            break
        # Compacting copies what was read, so it waits until it pays.
        if batch.able.leaving and count <= 0.75 * len(alive):
            kept = [place for place, live in enumerate(alive) if live]
            places = torch.tensor(kept, device=batch.device)
            batch.keep(places)
            rows, alive, tokens = [rows[place] for place in kept], [True for _ in kept], tokens[places]
            uniform = None if uniform is None else uniform[places]
        logits = batch.step(tokens.clamp(min=0))
    return answers


@torch.no_grad()
def stream_tokens(
    model: Any, prompt: Sequence[int], name: str, decoding: Decoding, stop: Sequence[int], pad_id: int, *, width: int
) -> Iterator[int]:
    """Answer one prompt token by token, the one that ends the answer included: the tokens that `decode_batch` gives.

    Args:
        model: In evaluation mode.
        prompt: Token ids.
        name: Names the random stream.
        decoding: How tokens are chosen.
        stop: Ids that end an answer.
        pad_id: Any valid id.
        width: Ids from here on are never chosen.

    Raises:
        RunError: logits are not finite.
    """
    batch = Reader(model, [prompt], pad_id, abilities(model))
    logits = batch.prefill()
    uniform = torch.from_numpy(_uniforms([name], decoding)).to(batch.device)
    for position in range(decoding.max_new_tokens):
        token = choose(logits[:, :width], decoding, uniform[:, position])
        _checked(model, [name], [token.tolist()], [])
        yield int(token)
        if int(token) in stop or position + 1 == decoding.max_new_tokens:
            return
        logits = batch.step(token)


def _checked(
    model: Any, names: Sequence[str], answers: list[list[int]], scores: list[Scored]
) -> tuple[list[list[int]], list[Scored]]:
    """Say whose fault it is where logits were not finite."""
    bad = {i for i, answer in enumerate(answers) if answer[-1:] == [NO_TOKEN]}
    bad |= {i for i, score in enumerate(scores) if not math.isfinite(score.mean)}
    if not bad:
        return answers, scores
    if not scores or (isinstance(model, nn.Module) and non_finite_tensor(model)):
        raise RunError(not_finite(model, [names[i] for i in bad]))
    for i in bad:
        answers[i] = [token for token in answers[i] if token != NO_TOKEN]
        scores[i] = UNKNOWN if math.isfinite(scores[i].mean) else scores[i]
    return answers, scores


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    decoding: Decoding,
    **options: Any,
) -> list[str]:
    """Answer prompts; the answers of `generate_tokens` as text, without special tokens."""
    answers = generate_tokens(model, tokenizer, prompts, names, decoding, **options)
    return answer_texts(tokenizer, answers, stop_token_ids(model, tokenizer))


def answer_texts(tokenizer: Any, answers: Sequence[Sequence[int]], stop: Sequence[int]) -> list[str]:
    """What answers say: without the stop token, whatever it is, and without special tokens."""
    return tokenizer.batch_decode([without_end(ids, stop)[0] for ids in answers], skip_special_tokens=True)


def generate_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    decoding: Decoding,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    share: bool = False,
    folder: Path | None = None,
) -> list[list[int]]:
    """Answer prompts.

    Args:
        model: A causal or sequence-to-sequence language model; its mode is restored afterwards.
        tokenizer: Of that model.
        prompts: Token ids of each prompt, its frame included.
        names: Example ids; they name the random streams.
        decoding: How tokens are chosen.
        batch_size: Prompts at once.
        progress: Called with how many prompts this process has answered, and how many it has to answer.
        share: Divide the batches among the processes and gather the answers on all of them.
        folder: Keeps every finished batch of this model, so that killed work goes on where it was, and processes share
            them; None: memory only.

    Returns:
        The answers' token ids in the order of the prompts, each with the stop token that ended it, if one did.
    """
    batches = length_sorted_batches([len(prompt) for prompt in prompts], batch_size)
    mine = own_shards(len(batches), share or folder is not None)
    done, total = 0, sum(len(batches[number]) for number in mine)

    def told(number: int) -> None:
        nonlocal done
        done += len(batches[number])
        if progress:
            progress(done, total)

    def shard_of(number: int) -> tuple[str, Shard]:
        asked = [prompts[i] for i in batches[number]], [names[i] for i in batches[number]]
        return fingerprint(*asked, vars(decoding)) if folder else "", asked

    shared = (decoding, stop_token_ids(model, tokenizer), padding_id(tokenizer), token_count(tokenizer))
    parts = make_shards(model, _decode, shared, mine, shard_of, folder, BATCH, told)
    if folder:
        parts = {number: read_sealed(folder / BATCH.format(number)) for number in range(len(batches))}
    elif share:
        parts = {number: part for own in parallel.gather(parts) for number, part in own.items()}
    answers: list[list[int]] = [[] for _ in prompts]
    for number, part in parts.items():
        for i, ids in zip(batches[number], part["answers"], strict=True):
            answers[i] = ids
    return answers


def _decode(
    model: Any,
    decoding: Decoding,
    stop: Sequence[int],
    pad_id: int,
    width: int,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
) -> dict[str, list[Any]]:
    return {"answers": decode_batch(model, prompts, names, decoding, stop, pad_id, width=width)[0]}
