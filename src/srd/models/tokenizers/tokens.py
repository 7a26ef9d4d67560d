"""The ids that begin an answer, end it, and fill up batches: one rule for training, cache, generation and scoring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from srd.base.errors import UserError
from srd.base.files import fingerprint
from srd.data.turns import turns_of
from srd.models.adapted import base_model

if TYPE_CHECKING:
    from peft import PeftModel


def padding_id(tokenizer: Any) -> int:
    """An id to fill up batches with; it never counts, so end of sequence will do."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def decoder_prefix(model: Any) -> list[int]:
    """The ids that the decoder of a loaded model begins with; none for a decoder-only model."""
    core = base_model(model)
    return prefix_of(core.config, core.generation_config)


def prefix_of(config: Any, generation: Any) -> list[int]:
    """The ids that a decoder begins with: its start, and the first token where that is always the same.

    The generation config decides, then the configuration. A forced first token (the language of mBART and NLLB, the
    BOS of BART) is read by the decoder and predicted by nobody: neither loss nor score counts it.

    Raises:
        UserError: an encoder-decoder says nowhere what its decoder begins with.
    """
    if not config.is_encoder_decoder:
        return []
    start, forced = (_named(name, generation, config) for name in ("decoder_start_token_id", "forced_bos_token_id"))
    if start is None:
        start = _named("bos_token_id", generation, config)
    if start is None:
        raise UserError(
            f"architecture '{config.model_type}' is an encoder-decoder, but neither generation_config.json nor "
            "config.json says what its decoder begins with. Set decoder_start_token_id there."
        )
    return [start] if forced is None else [start, forced]


def _named(name: str, generation: Any, config: Any) -> int | None:
    for place in (generation, config):
        value = getattr(place, name, None)
        if value is not None:
            return int(value)
    return None


def tokenizer_identity(tokenizer: Any) -> str:
    """Hash of what decides how a tokenizer reads and writes: its rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with without_last_call(tokenizer):
        rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return fingerprint(type(tokenizer).__name__, rules, special, tokenizer.chat_template)


@contextmanager
def without_last_call(tokenizer: Any) -> Iterator[None]:
    """Leave out how the last call has padded and cut: a fast tokenizer keeps that, writes it, and needs it no more."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    padding, truncation = getattr(backend, "padding", None), getattr(backend, "truncation", None)
    try:
        if padding:
            backend.no_padding()
        if truncation:
            backend.no_truncation()
        yield
    finally:
        if padding:
            backend.enable_padding(**padding)
        if truncation:
            backend.enable_truncation(**truncation)


def stop_token_ids(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Ids that end an answer, ascending: those of the generation config (or config), tokenizer and chat template."""
    inner = base_model(model)
    # Where it is not set, the generation config is of the model's own making and says what its config says.
    named = getattr(inner.generation_config, "eos_token_id", None)
    named = getattr(inner.config, "eos_token_id", None) if named is None else named
    ids = set() if named is None else {named} if isinstance(named, int) else set(named)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids |= turns_of(tokenizer).stops
    return sorted(ids)


def set_generation_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Give the model a generation config that says where to start, stop and pad, and nothing else.

    Hub models bring beams, repetition penalties, ``no_repeat_ngram_size`` and sampling settings of their own:
    left on, they would change the student's answers in reflection and every score after it.
    """
    inner = base_model(model)
    old = inner.generation_config
    stops = stop_token_ids(inner, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer is not None else getattr(old, "pad_token_id", None)
    if pad is None:
        pad = getattr(inner.config, "pad_token_id", None)
    if pad is None and stops:
        pad = stops[0]
    kept = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
    inner.generation_config = GenerationConfig(
        eos_token_id=stops or None, pad_token_id=pad, **{name: getattr(old, name, None) for name in kept}
    )
    if inner.config.is_encoder_decoder:
        # It stands for masked labels in the decoder's input. In decoder-only models the configuration's pad
        # only sets padding_idx, which must not meet a stop token.
        inner.config.pad_token_id = pad


def let_stop_tokens_learn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Unset padding_idx where pad is a stop token, which would get no gradient; masks do that job."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding) and embedding.padding_idx in stop_token_ids(model, tokenizer):
        embedding.padding_idx = None
