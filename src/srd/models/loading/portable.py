"""A saved model as other programs read it: older transformers, vLLM, SGLang, the hub.

What transformers 5 writes is for transformers 5: names of classes that others lack, settings of positions under a new
name, notes about where a tokenizer was loaded. Others overlook what they do not know, and then are another model. So
the old names are written beside the new ones, which transformers 5 goes by.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from srd.base.files import read_json, write_json

CONFIG, TOKENIZER, RULES = "config.json", "tokenizer_config.json", "tokenizer.json"
PRIVATE = ("is_local", "local_files_only", "backend", "files_loaded", "name_or_path", "cache_dir", "token")
ANY_TOKENIZER = "PreTrainedTokenizerFast"  # reads tokenizer.json as it stands, in every version


def make_portable(folder: Path, tokenizer: Any) -> None:
    """Change the JSON files of a saved model so that other programs read the same model."""
    for name, change in ((CONFIG, portable_config), (TOKENIZER, lambda values: _tokenizer(values, folder, tokenizer))):
        if (folder / name).is_file():
            write_json(folder / name, change(read_json(folder / name)))
    for path in folder.glob("*.safetensors"):  # written for their owner's eyes only, unlike the rest
        shutil.copymode(next(folder.glob("*config.json")), path)


def portable_config(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the names of version 4 beside those of version 5, and nothing private."""
    kept = {name: value for name, value in values.items() if not name.startswith("_")}
    if "dtype" in kept:
        kept.setdefault("torch_dtype", kept["dtype"])
    positions = kept.get("rope_parameters")
    if isinstance(positions, dict):
        kept |= {name: value for name, value in _old_positions(positions).items() if name not in kept}
    return dict(sorted(kept.items()))


def _old_positions(positions: dict[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``; models with two kinds of layers have another base in their local ones."""
    if "full_attention" in positions:
        local = positions.get("sliding_attention") or {}
        found = _old_positions(positions["full_attention"] or {})
        return found | ({"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {})
    found = {name: positions[name] for name in ("rope_theta", "partial_rotary_factor") if name in positions}
    scaling = {name: value for name, value in positions.items() if name not in found}
    return {**found, "rope_scaling": scaling if scaling.get("rope_type", "default") != "default" else None}


def _tokenizer(values: dict[str, Any], folder: Path, tokenizer: Any) -> dict[str, Any]:
    """A tokenizer's settings without what only one version, or only this machine, knows."""
    kept = {
        name: value
        for name, value in values.items()
        if name not in PRIVATE and not name.startswith("_") and (value is not None or name.endswith("_token"))
    }
    if (folder / RULES).is_file() and "auto_map" not in kept:
        kept["tokenizer_class"] = ANY_TOKENIZER
        kept["clean_up_tokenization_spaces"] = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        kept["model_input_names"] = list(tokenizer.model_input_names)
        kept["padding_side"] = tokenizer.padding_side
    if isinstance(kept.get("extra_special_tokens"), list):  # a mapping in version 4
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    if isinstance(tokenizer.chat_template, str):
        kept["chat_template"] = tokenizer.chat_template  # beside its file, which older programs do not read
    return dict(sorted(kept.items()))
