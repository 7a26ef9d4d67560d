"""A saved model as other programs read it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from srd.base.files import read_json
from srd.models.loading.loading import load_model, load_tokenizer, save_model
from srd.models.loading.portable import portable_config
from tests.tiny import FAMILIES, save_tiny

TEXT = "What does the function <|im_end|>return? It is é 12 "


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mt5"])
def test_the_same_model_and_tokenizer_are_read_back(tmp_path: Path, family: str) -> None:
    source, target = str(save_tiny(tmp_path / "source", family)), tmp_path / "student"
    tokenizer = load_tokenizer(source)
    model = load_model(source, tokenizer=tokenizer)
    kept = copy.deepcopy(tokenizer)
    kept.chat_template = "{{ messages[0]['content'] }}"
    kept.add_special_tokens({"extra_special_tokens": [kept.eos_token]})
    save_model(model, kept, target, portable=True)
    again = load_tokenizer(str(target))
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert again.chat_template == kept.chat_template
    inputs: dict[str, Any] = {"input_ids": torch.tensor([tokenizer("a b c")["input_ids"]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 5]])
    assert torch.equal(load_model(str(target), tokenizer=again)(**inputs).logits, model(**inputs).logits)
    told = read_json(target / "tokenizer_config.json")
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"  # in version 4 and 5, and reads tokenizer.json as it is
    assert told["model_input_names"] == ["input_ids", "attention_mask"]  # version 4 would add token types
    assert told["chat_template"] == kept.chat_template
    assert not {"is_local", "local_files_only", "backend", "extra_special_tokens"} & set(told)
    config = read_json(target / "config.json")
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["use_cache"] is True
    modes = {path.stat().st_mode & 0o777 for path in target.iterdir()}
    assert len(modes) == 1  # whoever may read the configuration may read the weights


@pytest.mark.parametrize(
    ("positions", "old"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        ),
        (
            {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None},
        ),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
         {"rope_theta": 1e4, "partial_rotary_factor": 0.25, "rope_scaling": None}),
    ],
)  # fmt: skip
def test_positions_have_their_old_names_too(positions: dict[str, Any], old: dict[str, Any]) -> None:
    assert portable_config({"rope_parameters": positions, "_private": 1}) == {"rope_parameters": positions, **old}
    assert portable_config({"rope_parameters": positions, "rope_theta": 7})["rope_theta"] == 7  # as the model has it
