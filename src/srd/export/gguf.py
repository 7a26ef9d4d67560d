"""A model of transformers as a GGUF file, of the families whose weights need no more than renaming and reordering.

The layout is that of llama.cpp (``gguf-py``): tensors by the names of ``gguf.get_tensor_name_map``, vectors in float32,
the rows of Llama's queries and keys interleaved for its rotary embedding, GPT-2's matrices transposed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srd.base.errors import UserError
from srd.data.turns import turns_of
from srd.export.base import KINDS, Exported
from srd.export.gguf_tokens import CONVERTER, vocabulary_of

#: Families by transformers' name -> llama.cpp's.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
BLOCK = 32  # numbers that q8_0 stores together
BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")


def check_gguf_export(exported: Exported) -> None:
    """Refuse a model that this writer would get wrong.

    Raises:
        UserError: with llama.cpp's own converter, which knows more families.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("writing GGUF files needs a package. Run: pip install gguf")
    kind, config = exported.settings.kind, exported.config
    if kind is not None and kind not in KINDS:
        raise UserError(f"--type: there is no '{kind}'. Known: {', '.join(KINDS)}; for others let llama.cpp's "
                        "llama-quantize make them of the f32 file.")  # fmt: skip
    refuse = f"{CONVERTER} {exported.folder}"
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(
            f"'{exported.folder}' is of the family '{config.model_type}', and GGUF is written here for {known}. "
            f"{refuse}"
        )
    if odd := next(_odd(config), None):
        raise UserError(f"'{exported.folder}' has {odd}, which is not written here. {refuse}")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"'{exported.folder}' has quantised weights. Export the model as it was before. {refuse}")
    vocabulary_of(exported)


def _odd(config: Any) -> Iterator[str]:
    """What a configuration has that the plain layout of its family does not hold."""
    if config.model_type == "gpt2":
        if config.activation_function != "gelu_new":
            yield f"the activation '{config.activation_function}'"
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx or config.add_cross_attention:
            yield "an attention of its own"
        return
    if config.hidden_act not in ("silu", "swish"):
        yield f"the activation '{config.hidden_act}'"
    rope = rope_of(config)["rope_type"]
    if rope not in ("default", "linear", "llama3"):
        yield f"rotary embeddings of the kind '{rope}'"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    if kinds or window:
        yield "attention within a sliding window"


def rope_of(config: Any) -> dict[str, Any]:
    """The rotary embedding of a configuration."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    return {"rope_type": "default", "rope_theta": getattr(config, "rope_theta", 10000.0), **found}


def write_gguf(exported: Exported, path: Path, kind: str) -> None:
    """Write a model as one GGUF file.

    Args:
        exported: What `check_gguf_export` has let pass.
        path: The file.
        kind: ``f32``, ``f16``, ``bf16`` or ``q8_0``: how matrices are stored.
    """
    import gguf

    config = exported.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_type("model")
    writer.add_name(exported.name)
    writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[kind]))
    if kind == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, config)
    _add_tokens(writer, exported)
    for name, values, stored in _tensors(exported, architecture, kind):
        writer.add_tensor(name, values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_sizes(writer: Any, config: Any) -> None:
    heads, width = config.num_attention_heads, config.hidden_size
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * width)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = _head_size(config)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    rope = rope_of(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _add_tokens(writer: Any, exported: Exported) -> None:
    tokenizer, found = exported.tokenizer, vocabulary_of(exported)
    writer.add_tokenizer_model("gpt2")  # byte-level byte pairs, of whatever family
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    writer.add_token_merges(found.merges)
    turns = turns_of(tokenizer)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
    ids |= {"pad": tokenizer.pad_token_id, "eot": turns.chat_end[-1] if tokenizer.chat_template else None}
    for name, number in ids.items():
        if number is not None and number < len(found.tokens):
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(bool(turns.before) and turns.before[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        writer.add_chat_template(template)


# ------------------------------------------------------------------------------------------------------------- tensors


def _tensors(exported: Exported, architecture: str, kind: str) -> Iterator[tuple[str, NDArray[Any], Any]]:
    """The tensors by llama.cpp's names, as they are stored, each with its type (None: as the array says)."""
    import gguf

    config = exported.config
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    state = exported.model.state_dict()
    for name, tensor in state.items():
        tied = name == "lm_head.weight" and config.tie_word_embeddings
        if tied or name.endswith(BUFFERS):
            continue
        renamed = known.get_name(name, (".weight", ".bias"))
        if renamed is None:
            raise UserError(
                f"'{exported.folder}': GGUF has no place for the tensor {name}. {CONVERTER} {exported.folder}"
            )
        values = _reordered(name, tensor.detach().float().numpy(), config)
        yield (renamed, *_stored(renamed, np.ascontiguousarray(values), kind))
    if rope_of(config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", _rope_factors(config), None


def _reordered(name: str, values: NDArray[Any], config: Any) -> NDArray[Any]:
    """Weights in llama.cpp's order."""
    if config.model_type == "gpt2":
        conv = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
        return values.T if name.endswith(conv) else values
    if ARCHITECTURES[config.model_type] == "llama" and (".q_proj." in name or ".k_proj." in name):
        # The two halves of a head, which transformers rotates against each other, become neighbours.
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    return values


def _stored(name: str, values: NDArray[Any], kind: str) -> tuple[NDArray[Any], Any]:
    """An array as it is stored: vectors, positions and rows that do not fill blocks stay float32."""
    import gguf

    exact = values.ndim < 2 or name == "position_embd.weight"
    if kind == "f32" or exact or (kind == "q8_0" and values.shape[-1] % BLOCK):
        return values.astype(np.float32), None
    if kind == "f16":
        largest = float(np.abs(values).max(initial=0.0))
        if largest > np.finfo(np.float16).max:
            raise UserError(f"the tensor {name} has values up to {largest:g}, which f16 cannot hold. Use --type bf16")
        return values.astype(np.float16), None
    stored = gguf.GGMLQuantizationType.BF16 if kind == "bf16" else gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.quantize(values.astype(np.float32), stored), stored


def _rope_factors(config: Any) -> NDArray[np.float32]:
    """By what Llama 3 divides its rotary frequencies, ``[head / 2]``."""
    rope = rope_of(config)
    head = _head_size(config)
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head, 2) / head)
    context = rope["original_max_position_embeddings"]
    low, high = context / rope["low_freq_factor"], context / rope["high_freq_factor"]
    smooth = (context / waves - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return np.where(waves < high, 1.0, np.where(waves > low, rope["factor"], between)).astype(np.float32)
