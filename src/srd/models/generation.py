"""Generation that wastes nothing: length-sorted batches, rows that have stopped leave the batch, no stored scores.

Sampling draws one uniform number per token from a stream of its own for every example and seed, so that an answer
does not depend on which other prompts share its batch, on resuming, or on the number of processes.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srd import parallel
from srd.data.batching import length_sorted_batches, pad_left, pad_right
from srd.data.turns import without_end
from srd.models.head import cross_entropy, head_input, head_weights
from srd.models.loading import stop_token_ids
from srd.models.vllm_engine import VllmEngine


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


class _Batch:
    """Prompts of one batch and their key-value cache while they are decoded."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        self.model = model
        self.encoder_decoder = bool(model.config.is_encoder_decoder)
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        known = inspect.signature(core.forward).parameters
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.takes_positions = "position_ids" in known
        self.device = next(model.parameters()).device
        ids, mask = (pad_right if self.encoder_decoder else pad_left)(prompts, pad_id)
        self.ids, self.mask = ids.to(self.device), mask.to(self.device)
        self.cache: Any = None
        self.encoded: Any = None
        self.pad_id = pad_id

    def prefill(self) -> Tensor:
        """Read the prompts; logits of the first new token ``[B, V]``."""
        if self.encoder_decoder:
            self.encoded = self.model.get_encoder()(input_ids=self.ids, attention_mask=self.mask)
            return self.step(torch.full((len(self.ids),), decoder_start(self.model), device=self.device))
        positions = {"position_ids": (self.mask.cumsum(-1) - 1).clamp_(min=0)} if self.takes_positions else {}
        output = self.model(input_ids=self.ids, attention_mask=self.mask, use_cache=True, **positions, **self.last_only)
        self.cache = output.past_key_values
        return output.logits[:, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """Feed the chosen tokens ``[B]``; logits of the next ones ``[B, V]``."""
        if self.encoder_decoder:
            output = self.model(
                encoder_outputs=self.encoded,
                attention_mask=self.mask,
                decoder_input_ids=tokens[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        else:
            output = self._continue(tokens[:, None], torch.ones_like(tokens[:, None]), self.last_only)
            self.mask = torch.cat([self.mask, torch.ones_like(tokens[:, None])], 1)
        self.cache = output.past_key_values
        return output.logits[:, -1]

    def _continue(self, ids: Tensor, mask: Tensor, arguments: dict[str, Any]) -> Any:
        """Run a decoder-only model over further tokens ``[B, R]`` behind the cache."""
        full = torch.cat([self.mask, mask], 1)
        positions = {}
        if self.takes_positions:
            positions = {"position_ids": (full.cumsum(-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]}
        return self.model(
            input_ids=ids, attention_mask=full, past_key_values=self.cache, use_cache=True, **positions, **arguments
        )

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)
        if self.encoded is not None:
            self.encoded.last_hidden_state = self.encoded.last_hidden_state[rows]

    def score(self, first_logits: Tensor, references: Sequence[Sequence[int]]) -> list[float]:
        """Mean negative log-likelihood of each reference behind its prompt, reusing what was read already.

        Args:
            first_logits: What `prefill` returned.
            references: Token ids, end of sequence included; the decoding goes on afterwards as if nothing had been
                (but where the cache cannot forget: see `can_forget`).
        """
        if self.encoder_decoder:
            return self._score_decoder(references)
        head = head_weights(self.model)
        lengths = torch.tensor([len(reference) for reference in references], device=self.device)
        first = torch.tensor([reference[0] for reference in references], device=self.device)
        total = torch.logsumexp(first_logits.float(), -1) - first_logits.float().gather(-1, first[:, None])[:, 0]
        if lengths.max() > 1:
            ids, mask = pad_right([list(reference[:-1]) or [self.pad_id] for reference in references], self.pad_id)
            targets, _ = pad_right([list(reference[1:]) or [self.pad_id] for reference in references], self.pad_id)
            valid = mask.bool().to(self.device) & (lengths > 1)[:, None]
            hidden = self._last_hidden(ids.to(self.device), mask.to(self.device))
            losses = cross_entropy(hidden[valid], head, targets.to(self.device)[valid])
            rows = valid.nonzero()[:, 0]
            total = total.double().index_add_(0, rows, losses.double())
            if self.can_forget:
                self.cache.crop(-ids.shape[1])
        return [float(value) for value in (total / lengths)]

    def _last_hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        with head_input(self.model) as seen:
            self._continue(ids, mask, {})
        return seen[0]

    def _score_decoder(self, references: Sequence[Sequence[int]]) -> list[float]:
        start = decoder_start(self.model)
        ids, mask = pad_right([[start, *reference[:-1]] for reference in references], self.pad_id)
        targets, _ = pad_right(references, self.pad_id)
        valid = mask.bool().to(self.device)
        with head_input(self.model) as seen:
            self.model(
                encoder_outputs=self.encoded,
                attention_mask=self.mask,
                decoder_input_ids=ids.to(self.device),
                use_cache=False,
            )
        losses = cross_entropy(seen[0][valid], head_weights(self.model), targets.to(self.device)[valid])
        rows = valid.nonzero()[:, 0]
        total = torch.zeros(len(references), dtype=torch.float64, device=self.device)
        total.index_add_(0, rows, losses.double())
        return [float(value) for value in total / valid.sum(-1)]

    @property
    def can_forget(self) -> bool:
        """Whether the cache can be cut back to the prompt after a reference was read."""
        layers = getattr(self.cache, "layers", None) or []
        return bool(layers) and not any(getattr(layer, "is_sliding", False) for layer in layers)


def _uniforms(names: Sequence[str], decoding: Decoding) -> np.ndarray:
    """One uniform number per example and token ``[B, max_new_tokens]``, from streams named by seed and example."""
    rows = []
    for name in names:
        key = hashlib.blake2b(f"{decoding.seed}\0{name}".encode(), digest_size=16).digest()
        rows.append(
            np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(decoding.max_new_tokens)
        )
    return np.stack(rows)


def choose(logits: Tensor, decoding: Decoding, uniform: Tensor) -> Tensor:
    """The next tokens ``[B]`` from logits ``[B, V]``: the best, or sampled with ``uniform [B]``."""
    if decoding.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / decoding.temperature, -1)
    order = None
    if decoding.top_p < 1:
        probabilities, order = probabilities.sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= decoding.top_p, 0)
    cumulative = probabilities.double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniform[:, None].double() * cumulative[:, -1:], right=True)
    drawn = drawn.clamp_(max=logits.shape[-1] - 1)
    return (drawn if order is None else order.gather(-1, drawn))[:, 0]


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
) -> tuple[list[list[int]], list[float]]:
    """Answer one batch of prompts.

    Args:
        model: In evaluation mode.
        prompts: Token ids.
        names: Name each prompt's random stream (its example id).
        decoding: How tokens are chosen.
        stop: Ids that end an answer; the answer keeps the one that ended it.
        pad_id: Any valid id.
        width: Ids from here on are padding rows of the head and never chosen.
        references: Score these answers too (teacher forcing, same pass over the prompts).

    Returns:
        The answers' token ids, and the references' mean negative log-likelihood (empty without references).
    """
    if isinstance(model, VllmEngine):
        return model.decode_batch(prompts, names, decoding, stop, references, width)
    batch = _Batch(model, prompts, pad_id)
    logits = batch.prefill()
    scores: list[float] = []
    if references is not None:
        if batch.encoder_decoder or batch.can_forget:
            scores = batch.score(logits, references)
        else:  # a sliding window has forgotten part of the prompt: read it again
            again = _Batch(model, prompts, pad_id)
            scores = again.score(again.prefill(), references)
    answers: list[list[int]] = [[] for _ in prompts]
    active = torch.arange(len(prompts), device=batch.device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=batch.device)
    stops = torch.tensor(list(stop), device=batch.device)
    sampled = decoding.temperature > 0
    uniform = torch.from_numpy(_uniforms(names, decoding)).to(batch.device) if sampled else None
    for position in range(decoding.max_new_tokens):
        scored = logits[:, :width] if width else logits
        tokens = choose(scored, decoding, uniform[active, position] if uniform is not None else active)
        for row, token, live in zip(active.tolist(), tokens.tolist(), alive.tolist(), strict=True):
            if live:
                answers[row].append(token)
        alive &= ~torch.isin(tokens, stops)
        count = int(alive.sum())
        if count == 0 or position + 1 == decoding.max_new_tokens:
            break
        if count <= 0.75 * len(alive):  # compacting copies the cache, so it waits until it pays
            rows = alive.nonzero()[:, 0]
            batch.keep(rows)
            active, alive, tokens = active[rows], alive[rows], tokens[rows]
        logits = batch.step(tokens)
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
    texts: list[str] = tokenizer.batch_decode([without_end(ids, stop)[0] for ids in answers], skip_special_tokens=True)
    return texts


def generate_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    decoding: Decoding,
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    share: bool = False,
) -> list[list[int]]:
    """Answer prompts.

    Args:
        model: A causal or sequence-to-sequence language model; its mode is restored afterwards.
        tokenizer: Of that model.
        prompts: Token ids of each prompt, its frame included.
        names: Example ids; they name the random streams.
        decoding: How tokens are chosen.
        batch_size: Prompts at once.
        progress: Called with the number of prompts answered by each batch.
        share: Divide the batches among the processes and gather the answers on all of them.

    Returns:
        The answers' token ids in the order of the prompts, each with the stop token that ended it, if one did.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    stop, pad_id, width = stop_token_ids(model, tokenizer), padding_id(tokenizer), len(tokenizer)
    training = model.training
    model.eval()
    batches = length_sorted_batches([len(prompt) for prompt in prompts], batch_size)
    try:
        for rows in batches[parallel.process() :: parallel.processes()] if share else batches:
            tokens, _ = decode_batch(
                model, [prompts[i] for i in rows], [names[i] for i in rows], decoding, stop, pad_id, width=width
            )
            for i, ids in zip(rows, tokens, strict=True):
                answers[i] = ids
            if progress:
                progress(len(rows))
    finally:
        model.train(training)
    return _gathered(answers, batches) if share and parallel.processes() > 1 else answers


def _gathered(answers: list[list[int]], batches: list[list[int]]) -> list[list[int]]:
    """Put together what each process has answered."""
    everyone = parallel.gather(answers)
    for number, rows in enumerate(batches):
        for row in rows:
            answers[row] = everyone[number % parallel.processes()][row]
    return answers


def decoder_start(model: Any) -> int:
    """The id that a decoder starts with: the generation config's, or else the configuration's."""
    start = model.generation_config.decoder_start_token_id
    return int(model.config.decoder_start_token_id if start is None else start)


def padding_id(tokenizer: Any) -> int:
    """An id to fill up batches with; it never counts, so end of sequence will do."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
