"""The ids that begin an answer, end it, and fill up batches: one rule for training, cache, generation and scoring."""

from __future__ import annotations

from typing import Any

from srd.base.errors import UserError
from srd.base.files import fingerprint
from srd.models.adapters import base_model


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
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return fingerprint(type(tokenizer).__name__, rules, special, tokenizer.chat_template)
