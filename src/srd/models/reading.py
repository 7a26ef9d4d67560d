"""What a model has read of a batch of prompts, and what it can be relied on for while it goes on reading.

Families differ: some carry a key-value cache, some a recurrent state, some nothing; some take prompts of different
length in one batch, some let the padding into their state; some let rows leave. None of this is assumed. It is measured
once for every model, on three short texts, against the plain forward pass of each text alone: `abilities`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from srd.base.errors import UserError
from srd.data.batching import Collator, pad_left, pad_right
from srd.models.adapted import base_model
from srd.models.finite import name_of, not_finite
from srd.models.head import (
    hold_weights,
    in_evaluation,
    logits_alone,
    probe_ids,
    response_losses,
    same_logits,
    token_losses,
)
from srd.models.measured import measured
from srd.models.tokenizers.tokens import decoder_prefix

logger = logging.getLogger(__name__)

STATES = ("past_key_values", "cache_params", "state")  # by which name families hand on what they have read
LENGTHS = (8, 3, 6)  # of the texts a model is measured with


@dataclass(frozen=True)
class Abilities:
    """What decoding can rely on.

    Attributes:
        state: Name of the argument that carries what was read; None: everything is read again for every token.
        padding: Whether prompts of different length may share a batch.
        leaving: Whether rows can leave a batch.
    """

    state: str | None
    padding: bool = True
    leaving: bool = True


class Scored(NamedTuple):
    """What a model says of a reference behind its prompt: the mean nats a token, and the nats of its last token."""

    mean: float
    last: float


class Reader:
    """The prompts of one batch, read once and continued token by token.

    Args:
        model: In evaluation mode.
        prompts: Token ids; of equal length where the model's abilities say so.
        pad_id: Any valid id.
        able: From `abilities`.
        shared: So many tokens all prompts begin with: they are read once, where what was read can be taken further.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int, able: Abilities, *, shared: int = 0
    ) -> None:
        self.model = model
        self.able = able
        self.prompts = prompts
        self.encoder_decoder = bool(model.config.is_encoder_decoder)
        known = inspect.signature(base_model(model).forward).parameters
        self.alone = logits_alone(model)
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.takes_positions = "position_ids" in known
        self.device = next(model.parameters()).device
        ids, mask = (pad_right if self.encoder_decoder else pad_left)(prompts, pad_id)
        self.ids, self.mask = ids.to(self.device), mask.to(self.device)
        self.shared = 0 if self.encoder_decoder or able.state != STATES[0] or not able.padding else shared
        self.state: Any = None
        self.encoded: Any = None
        self.pad_id = pad_id
        self.prefix = decoder_prefix(model)
        self.written = torch.tensor([self.prefix], device=self.device).repeat(len(prompts), 1)  # an encoder-decoder's

    def prefill(self) -> Tensor:
        """Read the prompts; logits of the first new token ``[B, V]``."""
        if self.encoder_decoder:
            self.encoded = self.model.get_encoder()(input_ids=self.ids, attention_mask=self.mask)
            return self._decode(self.written)
        if self.able.state is None:
            return self._forward(self.ids, self.mask, use_cache=False, **self.last_only)
        state = {STATES[0]: self._shared_state()} if self.shared and self._reads_shared() else {}
        return self._forward(self.ids, self.mask, use_cache=True, **state, **self.last_only)

    def _reads_shared(self) -> bool:
        """Read what all prompts begin with; whether that can be taken further, and only the rest is left to read."""
        start = torch.tensor([list(self.prompts[0][: self.shared])], device=self.device)
        self._forward(start, torch.ones_like(start), use_cache=True, **self.last_only)
        if not self.can_forget:
            return False
        ids, mask = pad_left([prompt[self.shared :] for prompt in self.prompts], self.pad_id)
        before = torch.ones((len(ids), self.shared), dtype=mask.dtype)
        self.ids, self.mask = ids.to(self.device), torch.cat([before, mask], 1).to(self.device)
        return True

    def _shared_state(self) -> DynamicCache:
        """What was read of one, for all prompts."""
        state = DynamicCache()
        for number, layer in enumerate(self.state.layers):
            own = (each.expand(len(self.prompts), *each.shape[1:]) for each in (layer.keys, layer.values))
            state.update(*own, number)
        return state

    def step(self, tokens: Tensor) -> Tensor:
        """Feed the chosen tokens ``[B]``; logits of the next ones ``[B, V]``."""
        new = tokens[:, None]
        if self.encoder_decoder:
            self.written = torch.cat([self.written, new], 1) if self.able.state is None else new
            return self._decode(self.written)
        mask = torch.cat([self.mask, torch.ones_like(new)], 1)
        if self.able.state is None:
            self.ids = torch.cat([self.ids, new], 1)
            logits = self._forward(self.ids, mask, use_cache=False, **self.last_only)
        else:
            logits = self._forward(new, mask, use_cache=True, **{self.able.state: self.state}, **self.last_only)
        self.mask = mask
        return logits

    def _forward(self, ids: Tensor, mask: Tensor, **arguments: Any) -> Tensor:
        """Run a decoder-only model over tokens ``[B, R]``, the last of those that ``mask [B, L]`` covers."""
        arguments |= self._positions(mask, ids.shape[1])
        if self.able.state != STATES[0]:  # a recurrent state holds no places that a mask could cover
            mask = mask[:, -ids.shape[1] :]
        output = self.model(input_ids=ids, attention_mask=mask, **arguments, **self.alone)
        self.state = getattr(output, self.able.state) if self.able.state and arguments["use_cache"] else None
        return output.logits[:, -1]

    def _positions(self, mask: Tensor, count: int) -> dict[str, Tensor]:
        """The positions of the last tokens that a mask covers, for a model that takes them."""
        return {"position_ids": (mask.cumsum(-1) - 1).clamp_(min=0)[:, -count:]} if self.takes_positions else {}

    def _decode(self, ids: Tensor) -> Tensor:
        """Run an encoder-decoder's decoder over tokens ``[B, R]``."""
        state = {} if self.able.state is None else {self.able.state: self.state}
        output = self.model(
            input_ids=self.ids,
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=ids,
            use_cache=self.able.state is not None,
            **state,
            **self.alone,
        )
        self.state = getattr(output, self.able.state) if self.able.state else None
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.mask, self.ids, self.written = self.mask[rows], self.ids[rows], self.written[rows]
        if self.state is not None:
            self.state.reorder_cache(rows)
        if self.encoded is not None:
            self.encoded.last_hidden_state = self.encoded.last_hidden_state[rows]

    # ----------------------------------------------------------------------------------------------------- references

    def score(self, first_logits: Tensor, references: Sequence[Sequence[int]]) -> list[Scored]:
        """Negative log-likelihood of each reference behind its prompt, reusing what was read already.

        Args:
            first_logits: What `prefill` returned.
            references: Token ids, end of sequence included; the decoding goes on afterwards as if nothing had been.
        """
        if self.encoder_decoder:
            losses, rows = self._decoder_losses(references)
        elif self.can_forget:
            losses, rows = self._continued_losses(first_logits, references)
        else:  # what was read cannot be cut back to the prompt: read it again
            losses, rows = self._fresh_losses(references)
        total = torch.zeros(len(references), dtype=torch.float64, device=self.device)
        total.index_add_(0, rows, losses.double())
        lengths = torch.tensor([len(reference) for reference in references], device=self.device)
        lasts = _by_row(losses, rows)[lengths.cumsum(0) - 1].double()
        return [Scored(*each) for each in zip((total / lengths).tolist(), lasts.tolist(), strict=True)]

    def behind(self, first_logits: Tensor, rows: Tensor, references: Sequence[Sequence[int]]) -> list[list[float]]:
        """Nats of each token of references behind some of the prompts, one prompt as often as there are references.

        Args:
            first_logits: What `prefill` returned.
            rows: The prompt of each reference, ``[R]``.
            references: Token ids, at least one each.
        """
        part = copy.copy(self)
        part.prompts = [self.prompts[row] for row in rows.tolist()]
        part.mask, part.ids, part.written = self.mask[rows], self.ids[rows], self.written[rows]
        if self.encoder_decoder:
            part.encoded = copy.copy(self.encoded)
            part.encoded.last_hidden_state = self.encoded.last_hidden_state[rows]
            losses, places = part._decoder_losses(references)
        elif self.can_forget:
            part.state = DynamicCache()
            for number, layer in enumerate(self.state.layers):
                part.state.update(layer.keys[rows], layer.values[rows], number)
            losses, places = part._continued_losses(first_logits[rows], references)
        else:
            losses, places = part._fresh_losses(references)
        lengths = [len(reference) for reference in references]
        return [part.tolist() for part in _by_row(losses, places).double().split(lengths)]

    def _continued_losses(self, first_logits: Tensor, references: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Losses ``[N]`` of all reference tokens and their rows, behind the prompts that were read already."""
        lengths = torch.tensor([len(reference) for reference in references], device=self.device)
        first = torch.tensor([reference[0] for reference in references], device=self.device)
        logits = first_logits if first_logits.dtype == torch.float64 else first_logits.float()
        start = torch.logsumexp(logits, -1) - logits.gather(-1, first[:, None])[:, 0]
        places = torch.arange(len(references), device=self.device)
        if lengths.max() == 1:
            return start, places
        ids, mask = pad_right([list(reference[:-1]) or [self.pad_id] for reference in references], self.pad_id)
        targets, _ = pad_right([list(reference[1:]) or [self.pad_id] for reference in references], self.pad_id)
        valid = mask.bool().to(self.device) & (lengths > 1)[:, None]

        def forward() -> Any:
            full = torch.cat([self.mask, mask.to(self.device)], 1)
            return self.model(
                input_ids=ids.to(self.device), attention_mask=full, past_key_values=self.state, use_cache=True,
                **self._positions(full, ids.shape[1]), **self.alone,
            )  # fmt: skip

        index = valid.flatten().nonzero()[:, 0]
        losses = token_losses(self.model, forward, index, targets.to(self.device)[valid], ids)
        self.state.crop(-ids.shape[1])
        return torch.cat([start, losses]), torch.cat([places, index // ids.shape[1]])

    def _fresh_losses(self, references: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        rows = [
            {"prompt_ids": prompt, "response_ids": reference}
            for prompt, reference in zip(self.prompts, references, strict=True)
        ]
        batch = {name: value.to(self.device) for name, value in Collator(self.pad_id)(rows).items()}
        return response_losses(self.model, batch), batch["index"] // batch["input_ids"].shape[1]

    def _decoder_losses(self, references: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        before = len(self.prefix) - 1
        ids, mask = pad_right([[*self.prefix, *reference[:-1]] for reference in references], self.pad_id)
        targets, valid = pad_right(references, self.pad_id)
        places = mask.clone()
        places[:, :before] = 0  # what the decoder begins with is not predicted
        index = places.flatten().nonzero()[:, 0].to(self.device)

        def forward() -> Any:
            return self.model(
                input_ids=self.ids,  # which FSMT wants to see, though the encoder has read it
                encoder_outputs=self.encoded,
                attention_mask=self.mask,
                decoder_input_ids=ids.to(self.device),
                use_cache=False,
                **self.alone,
            )

        losses = token_losses(self.model, forward, index, targets[valid.bool()].to(self.device), ids)
        return losses, index // ids.shape[1]

    @property
    def can_forget(self) -> bool:
        """Whether what was read can be cut back to the prompt after a reference: key-value caches that lose nothing."""
        # A class of its own may hide more behind such layers (MiniMax).
        return type(self.state) is DynamicCache and all(type(layer) is DynamicLayer for layer in self.state.layers)


def _by_row(losses: Tensor, rows: Tensor) -> Tensor:
    """Losses of tokens, row after row; each row's tokens are in their order already."""
    return losses[torch.argsort(rows, stable=True)]


# ------------------------------------------------------------------------------------------------------- measuring

_abilities: WeakKeyDictionary[nn.Module, Abilities] = WeakKeyDictionary()


def abilities(model: Any) -> Abilities:
    """What decoding with this model can rely on, measured at the first call and remembered with the model.

    Raises:
        UserError: not even reading each text anew for every token agrees with the model's plain forward pass.
    """
    core = base_model(model)
    able = _abilities.get(core)
    if able is None:
        hold_weights(core)
        with in_evaluation(model):
            able = _abilities[core] = measured(core, "abilities", lambda: _measure(model))
        if able.state is None:
            logger.warning(
                "%s keeps no state that could be relied on: every new token reads the whole text again, which is slow.",
                name_of(model),
            )
        elif not able.padding:
            logger.warning("%s does not bear padding: only prompts of equal length share a batch.", name_of(model))
    return able


def _measure(model: Any) -> Abilities:
    texts = [probe_ids(model, length + 2, shift=number) for number, length in enumerate(LENGTHS)]
    equal = [probe_ids(model, LENGTHS[0] + 2, shift=number) for number in range(len(LENGTHS))]
    probes = {True: (texts, LENGTHS), False: (equal, LENGTHS[:1] * len(LENGTHS))}  # by whether padding is borne

    @functools.cache
    def expected(padding: bool) -> Tensor:
        logits = _alone(model, *probes[padding])
        if not torch.isfinite(logits).any() or torch.isnan(logits).any():
            raise UserError(not_finite(model))
        return logits

    known = inspect.signature(base_model(model).forward).parameters
    tried = [
        Abilities(state, padding, leaving)
        for padding in (True, False)
        for state in STATES
        if state in known or state == STATES[0]
        for leaving in (True, False)
    ]
    for able in [*tried, Abilities(None), Abilities(None, padding=False)]:
        if _agrees(model, able, *probes[able.padding], expected(able.padding)):
            return able
    raise UserError(
        f"{name_of(model)} ({type(model).__name__}) cannot be decoded here: read token by token, its logits differ "
        "from those of its own forward pass over the same text. Use a model of another family."
    )


def _inputs(model: Any, text: list[int], length: int) -> dict[str, Tensor]:
    """A text alone: its first ``length`` tokens are the prompt, for an encoder-decoder the encoder's."""
    device = next(model.parameters()).device
    ids = torch.tensor([text], device=device)
    if not model.config.is_encoder_decoder:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    prompt = ids[:, :length]
    start = torch.tensor([decoder_prefix(model)], device=device)
    return {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "decoder_input_ids": torch.cat([start, ids[:, length:]], 1),
    }


def _alone(model: Any, texts: list[list[int]], lengths: Sequence[int]) -> Tensor:
    """Logits at the end of each prompt and after each of two more tokens, without batch or state, ``[rows, 3, V]``."""
    rows = [
        model(**_inputs(model, text, length), use_cache=False, **logits_alone(model)).logits[0, -3:]
        for text, length in zip(texts, lengths, strict=True)
    ]
    return torch.stack(rows).float()


def _agrees(model: Any, able: Abilities, texts: list[list[int]], lengths: Sequence[int], expected: Tensor) -> bool:
    """Whether prompts that are read together, continued, and left by a row agree with each text alone."""
    prompts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    following = torch.tensor([text[-2:] for text in texts], device=next(model.parameters()).device)
    rows = torch.tensor([0, 2], device=following.device) if able.leaving else torch.arange(len(texts))
    with contextlib.suppress(Exception):  # whatever a family raises, it means that it cannot
        reader = Reader(model, prompts, texts[0][0], able)
        ours = [reader.prefill(), reader.step(following[:, 0])]
        if able.leaving:
            reader.keep(rows)
        ours.append(reader.step(following[rows, 1]))
        theirs = [expected[:, 0], expected[:, 1], expected[rows, 2]]
        return all(same_logits(model, one.float(), other) for one, other in zip(ours, theirs, strict=True))
    return False


def bears_packing(model: Any) -> bool:
    """Whether texts that lie in one row, told apart by their positions alone, are read as each alone.

    Attention of some kernels goes by the positions; a recurrent state goes on from one text to the next. A model whose
    kernels do not run here counts as one that bears it: it will say so itself.
    """
    if "position_ids" not in inspect.signature(base_model(model).forward).parameters:
        return False
    device = next(model.parameters()).device
    texts = [probe_ids(model, length, shift=number) for number, length in enumerate(LENGTHS)]
    ids = torch.tensor([[token for text in texts for token in text]], device=device)
    positions = torch.tensor([[place for text in texts for place in range(len(text))]], device=device)
    quiet = {"use_cache": False, **logits_alone(model)}
    with in_evaluation(model), contextlib.suppress(Exception):
        together = model(input_ids=ids, position_ids=positions, **quiet).logits[0]
        alone = [model(input_ids=torch.tensor([text], device=device), **quiet).logits[0] for text in texts]
        return same_logits(model, together.float(), torch.cat(alone).float())
    return True


def groups(prompts: Sequence[Sequence[int]], able: Abilities) -> list[list[int]]:
    """Which prompts may share a batch: all, or those of equal length."""
    if able.padding:
        return [list(range(len(prompts)))]
    lengths = sorted({len(prompt) for prompt in prompts}, reverse=True)
    return [[i for i, prompt in enumerate(prompts) if len(prompt) == length] for length in lengths]
