"""Teachers whose folders are quantised already: they teach as what their weights stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from srd.models.loading.loading import check_weights, load_model, packages_missing
from srd.models.settings import ModelConfig
from srd.training.batches import make_collator
from srd.training.cache.building import build_cache
from tests.models.test_offload import saved, tokenizer_of
from tests.training.test_trainer import encoded

GROUP = 32  # weights of a row that share a scale
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the eight numbers in a word
SETTINGS = {
    "gptq": {"quant_method": "gptq", "desc_act": False, "sym": False, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "zero_point": True, "version": "gemm"},
}


def packed(numbers: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Numbers of four bits ``[r, c]``, eight in a word: ``[r, c / 8]``."""
    eights = numbers.reshape(len(numbers), -1, 8)
    words = sum(eights[:, :, place] << (4 * i) for i, place in enumerate(order))
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)  # type: ignore[arg-type, operator]


def four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A weight ``[out, in]`` in four bits ``[out, groups, GROUP]``, with scales and zeros ``[out, groups, 1]``."""
    groups = weight.float().reshape(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-4).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    return (groups / scales + zeros).round().clamp(0, 15).long(), scales, zeros.long()


def quantise(folder: Path, kind: str, target: Path) -> None:
    """Write a model's folder as programs of GPTQ and AWQ lay it out, and what its weights stand for over the model."""
    model = load_model(str(folder))
    linear = {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"}
    kept: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        part = name.rpartition(".")[0]
        if part not in linear:
            kept[name] = value.clone()
            continue
        numbers, scales, zeros = four_bits(value)
        value.copy_(((numbers - zeros) * scales).reshape(value.shape))
        across, zeros = numbers.reshape(value.shape).T, zeros.squeeze(-1).T
        kept[f"{part}.scales"] = scales.squeeze(-1).T.half()
        if kind == "gptq":  # words go down the inputs, and zeros are less by one
            kept[f"{part}.qweight"], kept[f"{part}.qzeros"] = packed(across.T).T, packed(zeros - 1)
            kept[f"{part}.g_idx"] = (torch.arange(len(across)) // GROUP).to(torch.int32)
        else:
            kept[f"{part}.qweight"], kept[f"{part}.qzeros"] = packed(across, AWQ_ORDER), packed(zeros, AWQ_ORDER)
    model.save_pretrained(folder)
    model.save_pretrained(target)
    save_file(
        {name: value.contiguous() for name, value in kept.items()}, target / "model.safetensors", {"format": "pt"}
    )
    tokenizer_of("llama").save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {"bits": 4, "group_size": GROUP, **SETTINGS[kind]}
    (target / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", SETTINGS)
def test_folders_of_gptq_and_awq_teach_as_what_they_stand_for(kind: str, tmp_path: Path) -> None:
    for module in ("optimum", "gptqmodel"):
        pytest.importorskip(module)
    source, tokenizer = Path(saved(tmp_path, "llama")), tokenizer_of("llama")
    quantise(source, kind, tmp_path / kind)
    assert packages_missing(ModelConfig(model=str(tmp_path / kind))) == []
    check_weights(str(tmp_path / kind))
    caches: list[Any] = []
    for folder in (source, tmp_path / kind):
        model: Any = load_model(str(folder), tokenizer=tokenizer)
        examples, collator = encoded(5, tokenizer), make_collator(model, tokenizer)
        cache = build_cache(tmp_path / f"cache of {folder.name}", lambda model=model: model, examples, collator)
        caches.append(torch.cat([cache.hidden(*examples.tokens(i).values()) for i in range(len(examples))]))
    assert model.is_quantized
    torch.testing.assert_close(caches[1], caches[0], atol=0.02, rtol=0.02)
