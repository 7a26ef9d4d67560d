"""What a configuration says without its weights: the class, how many parameters, how long a text, which modules."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from srd.base.errors import UserError
from srd.models.loading.adapters import add_lora
from srd.models.loading.guard import first_lines, guarded
from srd.models.pruning import check_drop
from srd.models.settings import LoraConfig

# Masked language models that transformers lists among those that generate; each says so in its own forward pass.
SEES_WHAT_FOLLOWS = {
    "bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl",
    "xlnet", "xmod",
}  # fmt: skip


def generating(config: PreTrainedConfig) -> Any:
    """Configurations and the classes that generate text with them, of the kind that this one is."""
    return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING


def auto_class(config: PreTrainedConfig) -> Any:
    """The transformers class that generates text with this architecture."""
    if type(config) not in generating(config) and not hasattr(config, "auto_map"):
        raise UserError(
            f"architecture '{config.model_type}' does not generate text. Give a decoder-only language model "
            "(GPT-2, Llama, Qwen2, …) or an encoder-decoder one (T5, mT5, …)."
        )
    if config.model_type in SEES_WHAT_FOLLOWS and not getattr(config, "is_decoder", False):
        raise UserError(
            f"architecture '{config.model_type}' predicts masked tokens from both sides, so that it does not generate "
            "text. Give a decoder-only language model or an encoder-decoder one (or is_decoder: true in config.json of "
            "one that was trained so)."
        )
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


TRUSTED = "_code_is_trusted"  # on a configuration that was read with leave to run its repository's code
_counted: dict[str, dict[str, int]] = {}  # configuration -> its parameters: a run asks many times
_adapted: dict[str, int] = {}  # configuration and settings -> the adapter's parameters


def precision_of(config: PreTrainedConfig) -> str:
    """The precision in which a model is stored, as its configuration says it: ``bfloat16``."""
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def count_parameters(config: PreTrainedConfig) -> dict[str, int]:
    """Count a model's parameters from its configuration, without memory for any of them.

    Returns:
        ``total``; ``embedding`` (input embedding); ``head`` (output weights and bias, 0 where it is the
        embedding); ``layers`` (everything else: blocks, norms, positions).
    """
    key = _key(config)
    if key not in _counted:
        _counted[key] = _count(config)
    return dict(_counted[key])


def _key(config: PreTrainedConfig) -> str:
    return f"{type(config).__qualname__} {config.to_json_string()}"


def _count(config: PreTrainedConfig) -> dict[str, int]:
    model = without_weights(config)
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding_size = embedding.weight.numel()
    head_size = sum(p.numel() for p in head.parameters() if p is not embedding.weight)
    if head.weight is embedding.weight and _head_is_apart(config):
        head_size += embedding_size
        total += embedding_size
    return {
        "total": total,
        "embedding": embedding_size,
        "head": head_size,
        "layers": total - embedding_size - head_size,
    }


def _head_is_apart(config: PreTrainedConfig) -> bool:
    """MT5 and T5 v1.1 have a head of their own in their files, though the configuration always says tied."""
    return config.model_type in ("mt5", "umt5") or getattr(config, "scale_decoder_outputs", True) is False


def position_limit(config: PreTrainedConfig, part: Literal["encoder", "decoder"] = "decoder") -> int | None:
    """Tokens that a model has positions for; None where there is no limit (T5's are relative).

    Args:
        config: Of the model.
        part: The one of an encoder-decoder's two that is meant; LED reads sixteen times what it writes.
    """
    if hasattr(config, "relative_attention_num_buckets"):  # files of old T5s name n_positions all the same
        return None
    names = ("max_position_embeddings", "n_positions", f"max_{part}_position_embeddings")
    inner = config if config.is_encoder_decoder else config.get_text_config()
    places = (inner, getattr(inner, part, None))  # T5Gemma has a configuration of each part
    limits = [getattr(place, name, None) for place in places for name in names]
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def check_lora(config: PreTrainedConfig, settings: LoraConfig) -> int:
    """Refuse adapters that cannot be put on a model, before a weight is loaded: they are put on one without weights.

    Returns:
        How many parameters they have.
    """
    key = f"{_key(config)} {settings.model_dump_json()}"
    if key not in _adapted:
        model = without_weights(config)
        with torch.device("meta"):
            adapted = add_lora(model, settings)
        _adapted[key] = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    return _adapted[key]


def check_attention(config: PreTrainedConfig, name: str) -> None:
    """Refuse an ``attn_implementation`` that the library does not know, or that this architecture does not have."""
    model = without_weights(config)
    try:
        model.set_attn_implementation(name)
    except ImportError:  # told with the packages that are missing
        return
    except ValueError as error:
        raise UserError(
            f"attn_implementation is {name!r}, which '{config.model_type}' does not take: {first_lines(error)} "
            "Leave it out, or use sdpa or eager."
        ) from error


def check_depth(config: PreTrainedConfig, drop: int | list[int]) -> None:
    """Refuse layers to drop that a model does not have, before a weight is loaded."""
    check_drop(without_weights(config), drop)


def without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration, without memory for its parameters."""
    auto = auto_class(config)
    own = getattr(config, "auto_map", {}).get(auto.__name__) if getattr(config, TRUSTED, False) else None
    with guarded(getattr(config, "_name_or_path", "") or config.model_type), torch.device("meta"):
        if own:  # of the same commit, and not registered, as `from_config` would do: the weights may want other code
            revision = getattr(config, "_commit_hash", None)
            kind: Any = get_class_from_dynamic_module(own, config.name_or_path, revision=revision)
            return kind._from_config(config)  # type: ignore[no-any-return]
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
    return model
