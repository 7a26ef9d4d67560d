"""What a model needs beside what comes along is known from its files, and said with the command that installs it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from srd.base.errors import UserError
from srd.models.loading import loading, packages
from srd.models.loading.guard import guarded
from srd.models.loading.loading import check_weights, load_model, load_tokenizer, packages_missing
from srd.models.loading.packages import missing_packages, quantisation
from srd.models.settings import ModelConfig
from srd.run.checks.models import check_recipe
from srd.run.plan.plan import make_plan
from tests.runs import TinyRun, close
from tests.tiny import save_tiny, tiny_tokenizer

GPTQ, AWQ, BNB = ({"quant_method": name} for name in ("gptq", "awq", "bitsandbytes"))
TIKTOKEN = "IQ== 0\nIg== 1\n"
# Files of the folder, its quantisation, the kernels asked for -> the commands, none of the packages being here.
NEEDED: dict[str, tuple[dict[str, str], Any, str | None, list[str]]] = {
    "nothing": ({"tokenizer.json": "{}"}, None, "sdpa", []),
    "a fast tokenizer beside a slow one": ({"tokenizer.json": "{}", "tokenizer.model": "\n"}, None, None, []),
    "sentencepiece": ({"tokenizer.model": "\x0a\x0e"}, None, None, ["sentencepiece protobuf"]),
    "sentencepiece of T5": ({"spiece.model": "\x0a\x0e"}, None, None, ["sentencepiece protobuf"]),
    "sentencepiece of Marian": ({"source.spm": "\x0a"}, None, None, ["sentencepiece protobuf"]),
    "tiktoken": ({"qwen.tiktoken": TIKTOKEN}, None, None, ["tiktoken blobfile"]),
    "tiktoken by another name": ({"tokenizer.model": TIKTOKEN}, None, None, ["tiktoken blobfile"]),
    "words of Japanese": ({"tokenizer_config.json": '{"tokenizer_class": "BertJapaneseTokenizer"}', "vocab.txt": ""},
                          None, None, ["fugashi unidic-lite"]),
    "4 bits": ({"tokenizer.json": "{}"}, BNB, None, ["bitsandbytes"]),
    "4 bits as they were once written": ({"tokenizer.json": "{}"}, {"load_in_4bit": True}, None, ["bitsandbytes"]),
    "GPTQ": ({"tokenizer.json": "{}"}, GPTQ, None, ["optimum gptqmodel"]),
    "AWQ and sentencepiece": ({"tokenizer.model": "\x0a"}, AWQ, None, ["gptqmodel", "sentencepiece protobuf"]),
    "kernels": ({"tokenizer.json": "{}"}, None, "flash_attention_2", ["kernels"]),
    "kernels of the hub": ({"tokenizer.json": "{}"}, None, "kernels-community/flash-attn3", ["kernels"]),
}  # fmt: skip


@pytest.mark.parametrize("case", NEEDED)
def test_what_is_needed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, quantised, kernels, commands = NEEDED[case]
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    config = SimpleNamespace(quantization_config=quantised)
    monkeypatch.setattr(packages, "is_installed", lambda module: False)
    missing = missing_packages("m", tmp_path, config, attn_implementation=kernels)
    assert [each.remedy for each in missing] == [f"pip install {command}" for command in commands]
    monkeypatch.setattr(packages, "is_installed", lambda module: True)
    assert missing_packages("m", tmp_path, config, attn_implementation=kernels) == []


def test_code_that_comes_with_a_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "modeling_new.py").write_text(
        "import torch, einopsy\nfrom .other import x\ntry:\n    import fla\nexcept ImportError:\n    pass"
    )
    config = SimpleNamespace(auto_map={"AutoModelForCausalLM": "modeling_new.New"})
    (missing,) = missing_packages("m", tmp_path, config)
    assert str(missing) == "model 'm': its code (modeling_new.py) needs what is not installed here: pip install einopsy"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ImportError("LlamaTokenizer requires the SentencePiece library: sentencepiece"),
            "Run: pip install sentencepiece",
        ),
        (ModuleNotFoundError("No module named 'einopsy'", name="einopsy"), "Run: pip install einopsy"),
        (ImportError("cannot import name 'x' from 'torch'", name="torch"), r"from 'torch'\.$"),
        (ImportError("Using AWQ requires gptqmodel: `pip install gptqmodel`"), "`pip install gptqmodel`.$"),
    ],
)
def test_an_import_that_fails_later_names_its_package_too(error: ImportError, told: str) -> None:
    with pytest.raises(UserError, match=f"needs a package that is missing.*{told}"), guarded("m"):
        raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No module named 'einopsy'", name="einopsy"), "Run: pip install einopsy Or give"),
        (ImportError("optimum version should >= 1.24.0"), "Run: pip install --upgrade optimum gptqmodel Or give"),
        (ImportError("requires optimum (`pip install optimum`)"), r"\(`pip install optimum`\). Or give"),
        (RuntimeError("GPU is required"), "GPU is required. Or give the model as it was before."),
    ],
)
def test_a_quantisation_whose_packages_are_there_and_refuse(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(save_tiny(tmp_path / "m", "llama", layers=1), quantization_config=GPTQ)
    monkeypatch.setattr(packages, "is_installed", lambda module: module != "einopsy")

    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(loading.AutoHfQuantizer, "from_config", refuse)
    with pytest.raises(UserError, match=f"quantised \\('gptq'\\), and this machine cannot load them: .*{told}"):
        packages_missing(ModelConfig(model=str(tmp_path / "m")))


def change(folder: Path, **values: Any) -> None:
    """Change a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_plan_and_run_say_it_before_anything(make_tiny_run: Callable[..., TinyRun]) -> None:
    tiny = make_tiny_run()
    change(tiny.teacher, quantization_config=GPTQ)
    (tiny.student / "tokenizer.json").rename(tiny.student / "tokenizer.model")
    expected = (
        f"model '{tiny.teacher}': the quantisation 'gptq' of its weights needs what is not installed here (extra 'gptq'"
        f"): pip install optimum gptqmodel\nmodel '{tiny.student}': its tokenizer (tokenizer.model) needs what is not "
        "installed here (extra 'sentencepiece'): pip install sentencepiece protobuf"
    )
    run = tiny.open()
    try:
        for refused in (lambda: make_plan(run.recipe), lambda: check_recipe(run)):
            with pytest.raises(UserError, match=re.escape(expected)):
                refused()
    finally:
        close(run)
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        load_tokenizer(str(tiny.student))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({}, r"quantised \('bitnet'\), which cannot be trained themselves. Set lora: {merge: false} for this training"),
        ({"lora": {}}, "which no adapter can be added to exactly. Set lora.merge: false"),
    ],
)
def test_quantised_weights_are_not_trained(training: dict[str, Any], message: str, tiny_run: TinyRun) -> None:
    change(tiny_run.student, quantization_config={"quant_method": "bitnet"})
    run = tiny_run.set(**{f"training__{name}": value for name, value in training.items()}).open()
    try:
        assert quantisation(run.configs[1]) == "bitnet"
        with pytest.raises(UserError, match=message):
            check_recipe(run)
    finally:
        close(run)


def test_a_folder_that_compressed_tensors_made_is_loaded_as_it_is(tmp_path: Path) -> None:
    """Eight bits a weight of the linear layers, each row with a scale of its own."""
    module = pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    made = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "plain", "llama", layers=1))
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(num_bits=8, type="int", strategy="channel")
    )
    frozen = quantization.QuantizationStatus.FROZEN
    wanted = quantization.QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], quantization_status=frozen
    )
    quantization.apply_quantization_config(made, wanted)
    for layer in made.modules():
        if hasattr(layer, "weight_scale"):
            layer.weight_scale.data.copy_(layer.weight.detach().abs().amax(1, keepdim=True) / 127)
    compressor = module.ModelCompressor.from_pretrained_model(made)
    compressor.compress_model(made)
    made.save_pretrained(tmp_path / "quantised")
    compressor.update_config(tmp_path / "quantised")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "quantised")
    named = ModelConfig(model=str(tmp_path / "quantised"))
    assert packages_missing(named) == []
    check_weights(str(named.model))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    plain, quantised = (load_model(str(tmp_path / name))(ids).logits.detach() for name in ("plain", "quantised"))
    apart = float((plain - quantised).std() / plain.std())
    assert 0 < apart < 0.2
