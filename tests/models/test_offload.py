"""A teacher that does not fit into memory: its cache is the ordinary one, byte for byte, at few reads of its files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from srd.models.head import head_is_enough, response_hidden, same_logits
from srd.models.loading import offload as module
from srd.models.loading.loading import load_model
from srd.models.loading.offload import LayerGroups, free_memory, reading_speed, weight_bytes
from srd.recipe.schema import TeacherConfig
from srd.run.context import load_options
from srd.run.identity import model_identity
from srd.training.batches import make_collator
from srd.training.cache import building as cache_building
from srd.training.cache.building import build_cache
from tests.runs import in_turn
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.test_trainer import encoded

EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}


def saved(folder: Path, family: str) -> str:
    """The folder of a tiny model of a family, of four layers."""
    if family not in EXPERTS:
        return str(save_tiny(folder / family, family, layers=4, seed=1))
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        family, vocab_size=400, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, output_router_logits=True, bos_token_id=0, eos_token_id=1, **EXPERTS[family],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / family)
    tiny_tokenizer("llama").save_pretrained(folder / family)
    return str(folder / family)


def tokenizer_of(family: str) -> Any:
    return tiny_tokenizer("llama" if family in EXPERTS else family)


def on_disk(source: str, family: str, folder: Path, memory: int = 1) -> Any:
    model: Any = load_model(source, tokenizer=tokenizer_of(family), offload=folder / "written")
    model.layer_groups = LayerGroups(model, memory)
    return model


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.mark.parametrize("family", in_turn(["llama", "gemma2", "t5", *EXPERTS], "gemma2", "t5"))
def test_the_cache_is_the_ordinary_one(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_building, "SHARD_BATCHES", 2)
    monkeypatch.setattr(module, "MOST_PASSES", 3)
    source, tokenizer = saved(tmp_path, family), tokenizer_of(family)
    whole, examples = load_model(source, tokenizer=tokenizer), encoded(13, tokenizer)
    collator = make_collator(whole, tokenizer)
    build_cache(tmp_path / "whole", lambda: whole, examples, collator, batch_size=2)
    model = on_disk(source, family, tmp_path)
    build_cache(tmp_path / "parts", lambda: model, examples, collator, batch_size=2)
    expected = everything(tmp_path / "whole")
    assert len(expected) == 5 and everything(tmp_path / "parts") == expected
    layers = [parameter for group in model.layer_groups.groups for layer in group for parameter in layer.parameters()]
    assert layers and all(parameter.is_meta for parameter in layers)


def test_each_group_is_read_once_for_many_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, tokenizer = saved(tmp_path, "llama"), tokenizer_of("llama")
    whole = load_model(source, tokenizer=tokenizer)
    rows, collator = encoded(7, tokenizer), make_collator(whole, tokenizer)
    batches = [collator([rows.tokens(i)]) for i in range(7)]
    layer = sum(p.numel() * p.element_size() for p in whole.model.layers[0].parameters())
    for memory, groups in ((1, 4), (2 * layer, 2), (3 * layer, 2), (9 * layer, 1)):
        assert len(LayerGroups(whole, memory).groups) == groups
    model, read = on_disk(source, "llama", tmp_path, 2 * layer), []
    bring = LayerGroups._bring
    monkeypatch.setattr(LayerGroups, "_bring", lambda self, group: (read.append(group), bring(self, group))[1])
    monkeypatch.setattr(module, "MOST_PASSES", 4)
    found = list(model.layer_groups.run(lambda batch=batch: response_hidden(model, batch) for batch in batches))
    assert read == [0, 1, None, 0, 1, None]
    assert model.layer_groups.reads(7) == 2 * 4 * layer == 2 * model.layer_groups.bytes
    for batch, states in zip(batches, found, strict=True):
        assert torch.equal(states, response_hidden(whole, batch)) and not states.requires_grad


def test_a_pass_that_fails_ends_them_all(tmp_path: Path) -> None:
    source, tokenizer = saved(tmp_path, "llama"), tokenizer_of("llama")
    model = on_disk(source, "llama", tmp_path)
    rows, collator = encoded(4, tokenizer), make_collator(model, tokenizer)
    batches = [collator([rows.tokens(i)]) for i in range(4)]

    def fails(batch: Any) -> Any:
        response_hidden(model, batch)
        raise ValueError("as it should")

    works = [lambda batch=batch: response_hidden(model, batch) for batch in batches[:2]]
    with pytest.raises(ValueError, match="as it should"):
        list(model.layer_groups.run([*works, lambda: fails(batches[2]), *works]))
    assert not [thread for thread in threading.enumerate() if isinstance(thread, module._Pass)]
    assert len(list(model.layer_groups.run(works))) == 2
    assert response_hidden(model, batches[0]).shape[1] == 32  # also by itself, as anything else reads it


def test_what_is_said_beforehand(tmp_path: Path) -> None:
    source = saved(tmp_path, "llama")
    config = AutoConfig.from_pretrained(source)
    whole = load_model(source, tokenizer=tokenizer_of("llama"))
    count = sum(parameter.numel() for parameter in whole.parameters())
    assert weight_bytes(config, "float32") == 2 * weight_bytes(config, "bfloat16") == 4 * count
    assert 0 < free_memory() < 2**50
    file = Path(source) / "model.safetensors"
    assert reading_speed([tmp_path / "none", file]) > 1e5 and reading_speed([]) == 0
    told = LayerGroups(whole, 1).outlook(65, [file])
    assert "4 layers (148.5 kB) are read from disk in 4 groups, twice: 297.0 kB, about" in told


@pytest.mark.parametrize(("settings", "problem"), [
    ({"load_in_8bit": True, "load_in_4bit": True}, "are both true. Choose one"),
    ({"load_in_8bit": True, "sft": {}}, "sft would train weights that load_in_8bit quantises"),
    ({"load_in_4bit": True, "adapter": "a"}, "adapter would be merged into weights that load_in_4bit quantises"),
    ({"load_in_4bit": True, "offload": "always"}, "stay in memory. Remove one"),
    ({"offload": "sometimes"}, "'auto', 'always' or 'off'"),
])  # fmt: skip
def test_ways_to_load_a_teacher_that_exclude_each_other(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TeacherConfig(model="m", **settings)


def test_a_quantised_teacher_is_another_one(tmp_path: Path) -> None:
    source = saved(tmp_path, "llama")
    ways: list[dict[str, Any]] = [{}, {"load_in_8bit": True}, {"load_in_4bit": True}]
    teachers = [TeacherConfig(model=source, **way) for way in ways]
    assert [load_options(teacher).get("bits") for teacher in teachers] == [None, 8, 4]
    assert len({model_identity(teacher) for teacher in teachers}) == 3
    asked = TeacherConfig(model=source, offload="always")  # the cache is the same, so the teacher is
    assert model_identity(asked) == model_identity(teachers[0])
    assert TeacherConfig(model="m", offload=False).offload == "off"  # as YAML reads it


@pytest.mark.parametrize(("quantised", "same"), [(False, False), (True, True)])
def test_quantised_layers_agree_up_to_their_own_rounding(quantised: bool, same: bool) -> None:
    """In eight bits what a row gives depends on the rows beside it: a hundredth is no other model."""
    model: Any = torch.nn.Linear(2, 2)
    model.is_quantized = quantised
    assert same_logits(model, torch.tensor([[2.0, -1.0]]), torch.tensor([[2.02, -1.0]])) == same


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_quantised_while_they_are_loaded(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    source, tokenizer = saved(tmp_path, "llama"), tokenizer_of("llama")
    model: Any = load_model(source, tokenizer=tokenizer, bits=bits)
    assert model.is_quantized and head_is_enough(model)
    examples, collator = encoded(5, tokenizer), make_collator(model, tokenizer)
    assert build_cache(tmp_path / "cache", lambda: model, examples, collator).holds(examples)
