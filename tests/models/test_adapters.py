"""LoRA adapters: what they train, that merging changes nothing, and that a wrong one is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.models.adapted import base_model
from srd.models.loading.adapters import add_lora, load_adapter
from srd.models.loading.architecture import check_lora
from srd.models.loading.loading import load_model, save_model
from srd.models.loading.merging import merge_adapter
from srd.models.settings import LoraConfig as LoraSettings
from srd.models.tokenizers.tokens import stop_token_ids
from tests.models.test_every_family import tiny_config
from tests.tiny import ENCODER_DECODER, FAMILIES, save_tiny, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 9, 200, 130, 77]])


def logits(model: torch.nn.Module, family: str) -> torch.Tensor:
    extra = {"decoder_input_ids": IDS} if family in ENCODER_DECODER else {}
    with torch.no_grad():
        return model(input_ids=IDS, **extra).logits


def settings(**changes: object) -> LoraSettings:
    return LoraSettings(**({"r": 4, "alpha": 8, "dropout": 0.0} | changes))


def trained(family: str, **changes: object) -> torch.nn.Module:
    """An adapter that does something: a new one multiplies by zero."""
    adapted = add_lora(tiny_model(family), settings(**changes)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    return adapted


ON_HEAD = [
    ("qwen2", ["lm_head"]), ("qwen2", ["embed_tokens", "q_proj"]), ("qwen2", ["embed_tokens", "lm_head"]),
    ("gemma2", ["lm_head"]), ("llama", ["lm_head"]), ("gpt2", ["lm_head"]), ("t5", ["lm_head"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "targets"),
    [*((family, targets) for targets in (None, "all-linear") for family in FAMILIES), *ON_HEAD],
)
def test_merging_keeps_the_logits(family: str, targets: str | list[str] | None, tmp_path: Path) -> None:
    adapted = trained(family, targets=targets)
    plain = logits(tiny_model(family), family)
    with_adapter = logits(adapted, family)
    assert not torch.allclose(with_adapter, plain, atol=1e-3)
    merged = merge_adapter(adapted)
    torch.testing.assert_close(logits(merged, family), with_adapter, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    save_model(merged, tiny_tokenizer(family), tmp_path / "merged")
    again = load_model(str(tmp_path / "merged"))
    torch.testing.assert_close(logits(again, family), with_adapter, atol=1e-4, rtol=1e-4)


def test_a_merge_that_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = trained("llama")
    monkeypatch.setattr(adapted.base_model, "merge_and_unload", lambda **_: adapted.unload())
    with pytest.raises(UserError, match=r"gives other logits than beside them.*lora\.merge: false"):
        merge_adapter(adapted)


def count_trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_only_the_adapter_trains() -> None:
    adapted = add_lora(tiny_model("llama"), settings(targets=["q_proj"]))
    # Two layers; A is [4, 32] and B is [32, 4].
    assert count_trainable(adapted) == 2 * (4 * 32 + 32 * 4)
    assert all("lora_" in name for name, parameter in adapted.named_parameters() if parameter.requires_grad)
    merged = merge_adapter(adapted)
    assert count_trainable(merged) == sum(parameter.numel() for parameter in merged.parameters())


def test_scale_is_alpha_over_rank() -> None:
    one, two = trained("llama", targets=["o_proj"], alpha=4), trained("llama", targets=["o_proj"], alpha=8)
    name = "model.layers.0.self_attn.o_proj.weight"
    plain = tiny_model("llama").get_parameter(name)
    change = [merge_adapter(adapted).get_parameter(name) - plain for adapted in (one, two)]
    torch.testing.assert_close(change[1], 2 * change[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_a_saved_adapter_comes_back(family: str, tmp_path: Path) -> None:
    adapted = trained(family)
    save_model(adapted, tiny_tokenizer(family), tmp_path / "adapter")
    again = load_adapter(tiny_model(family), str(tmp_path / "adapter"))
    assert torch.equal(logits(again, family), logits(adapted, family))
    assert count_trainable(load_adapter(tiny_model(family), str(tmp_path / "adapter"), trainable=True)) > 0
    folder = save_tiny(tmp_path / "base", family)
    merged = load_model(str(folder), adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(merged, family), logits(adapted, family), atol=1e-4, rtol=1e-4)


def test_a_saved_adapter_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """peft holds the names of its targets in a set, whose order another process does not share."""
    names = ["q_proj", "v_proj", "o_proj", "k_proj", "up_proj", "gate_proj", "down_proj"]
    adapted = add_lora(tiny_model("llama"), settings(targets=names))
    save_model(adapted, tiny_tokenizer("llama"), tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["target_modules"] == sorted(names)


def test_the_model_inside_is_reached() -> None:
    model = tiny_model("llama")
    assert base_model(model) is model is merge_adapter(model)
    adapted = add_lora(model, settings())
    assert base_model(adapted) is model
    assert stop_token_ids(adapted, tiny_tokenizer("llama")) == [2]


def test_a_target_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'query_proj'.*did you mean 'q_proj'.*v_proj"):
        add_lora(tiny_model("llama"), settings(targets=["v_proj", "query_proj"]))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mamba", {"targets": None}, "no default for architecture 'mamba'. Use 'all-linear', or a list of: dt_proj"),
        ("mamba", {"targets": "all-linear"}, None),
        ("mamba", {"targets": ["out_proj"]}, "'mamba' cannot be adapted so: .*out_proj.* Use 'all-linear', or a list"),
        ("mamba", {"targets": ["dt_proj", "in_proj", "x_proj"]}, None),
        ("qwen3_moe", {"targets": "all-linear"}, "lora.dropout is 0.1, but .* take no dropout. Set lora.dropout: 0"),
        ("qwen3_moe", {"targets": "all-linear", "dropout": 0.0}, None),
        ("granitemoehybrid", {"targets": "all-linear"}, None),
        ("lfm2", {"targets": ["q_projector"]}, "no module of the model is called 'q_projector'; did you mean 'q_proj'"),
    ],
)
def test_what_can_be_adapted_is_known_without_weights(family: str, changes: Any, message: str | None) -> None:
    config, lora = tiny_config(family), settings(**{"dropout": 0.1, **changes})
    with contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message):
        check_lora(config, lora)


class NewKindConfig(LlamaConfig):
    """An architecture that peft has no defaults for."""

    model_type = "new_kind"


def test_an_architecture_without_default_targets() -> None:
    model = tiny_model("llama")
    model.config = NewKindConfig(**{**model.config.to_dict(), "model_type": "new_kind"})
    with pytest.raises(UserError, match=r"no default for architecture 'new_kind'.*all-linear.*q_proj"):
        add_lora(model, settings())


def test_adapters_that_are_missing_or_belong_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_model(trained("llama"), tiny_tokenizer("llama"), folder)
    with pytest.raises(UserError, match=r"does not fit the model.*another model"):
        load_adapter(tiny_model("llama", hidden=64), str(folder))
    with pytest.raises(UserError, match=r"does not fit the model.*4 tensors"):
        load_adapter(tiny_model("llama", layers=3), str(folder))
    with pytest.raises(UserError, match="does not fit the model"):
        load_adapter(tiny_model("gpt2"), str(folder))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors.*pickle"):
        load_adapter(tiny_model("llama"), str(folder))
    with pytest.raises(UserError, match="there is no folder"):
        load_adapter(tiny_model("llama"), str(tmp_path / "missing"))
