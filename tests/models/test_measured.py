"""What was measured of a model is taken again for the same files, loaded in the same way, and for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from srd.base.errors import UserError
from srd.base.files import content_of, known_digest
from srd.models import head, reading
from srd.models.loading.loading import load_model
from srd.models.loading.weights import check_names, read_headers
from srd.models.reading import abilities
from tests.tiny import MODEL_CLASSES, save_tiny, tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that no other test measures, its files hashed as a run does it."""
    path = save_tiny(tmp_path / "model", "llama", hidden=16, seed=int.from_bytes(str(tmp_path).encode()) % 2**31)
    content_of(path)
    return path


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models whose rule is measured, in turn."""
    return watched(monkeypatch, head)


def watched(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[Any]:
    seen: list[Any] = []
    original = module._measure

    def measure(model: Any) -> Any:
        seen.append(model)
        return original(model)

    monkeypatch.setattr(module, "_measure", measure)
    return seen


def test_the_same_files_are_measured_once(folder: Path, rules: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    able = watched(monkeypatch, reading)
    first, second = load_model(str(folder)), load_model(str(folder))
    assert len(rules) == 1 and head.logit_rule(first) == head.logit_rule(second) and head.logit_rule(first).head
    assert abilities(first) == abilities(second) and len(able) == 1
    copy = folder.rename(folder.with_name("elsewhere"))
    content_of(copy)
    assert abilities(load_model(str(copy))) == abilities(first)
    assert (len(rules), len(able)) == (1, 1)


@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"attn_implementation": "eager"}])
def test_another_way_of_loading_is_measured_anew(folder: Path, rules: list[Any], how: dict[str, Any]) -> None:
    load_model(str(folder)), load_model(str(folder), **how)
    assert len(rules) == 2


def test_changed_files_are_measured_anew(folder: Path, rules: list[Any]) -> None:
    load_model(str(folder))
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][3, 3] = torch.nan
    save_file(weights, path, {"format": "pt"})
    assert known_digest(path) is None
    with pytest.raises(UserError, match=r"not finite.*lm_head\.weight"):
        load_model(str(folder))
    content_of(folder)
    with pytest.raises(UserError, match=r"not finite.*lm_head\.weight"):
        load_model(str(folder))
    assert len(rules) == 3


def test_files_that_nobody_has_hashed_are_measured_each_time(tmp_path: Path, rules: list[Any]) -> None:
    path = str(save_tiny(tmp_path / "model", "llama"))
    load_model(path), load_model(path)
    assert len(rules) == 2


def test_a_model_that_is_no_longer_its_files_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    able = watched(monkeypatch, reading)
    abilities(load_model(str(folder)))
    trained, adapted = load_model(str(folder)), load_model(str(folder))
    with torch.no_grad():
        trained.lm_head.weight.add_(0.1)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), adapted)
    for model in (trained, adapted):
        abilities(model)
        assert able[-1] is model
    assert len(able) == 3


def test_weights_are_compared_with_a_configuration_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes that fit do so again; others are compared."""
    compared: list[Any] = []
    kind, config = MODEL_CLASSES["llama"], tiny_config("llama", hidden=16)
    original = kind.from_pretrained
    monkeypatch.setattr(kind, "from_pretrained", lambda *a, **n: compared.append(n) or original(*a, **n))
    shapes = read_headers([folder / "model.safetensors"], "it")
    config.initializer_range = 0.123  # a configuration that no other test has
    check_names("it", kind, config, shapes), check_names("it", kind, config, shapes)
    assert len(compared) == 1
    shapes.pop("lm_head.weight")
    for _ in range(2):
        with pytest.raises(UserError, match="lack 1 of its weights"):
            check_names("it", kind, config, shapes)
    assert len(compared) == 3
