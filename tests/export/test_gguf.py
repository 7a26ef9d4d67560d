"""GGUF files: read back by transformers as the same model and tokens; what would be wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.export import gguf_tokens
from srd.export.base import Exported, Settings, export
from srd.export.gguf_tokens import WAYS, vocabulary_of
from srd.models.loading.loading import load_config
from tests.runs import TinyRun
from tests.tiny import save_tiny

TEXT = "Below is it: What does the box return?\n\n 12 apples, don't you see <|im_end|>"


def cut(folder: Path, way: str) -> Path:
    """Let the tokenizer of a model cut texts in a way that GGUF has a name for."""
    path = folder / "tokenizer.json"
    rules = read_json(path)
    rules["pre_tokenizer"] = WAYS[way]
    path.write_text(json.dumps(rules))
    return folder


def changed(folder: Path, **values: Any) -> Path:
    """Change the configuration of a model."""
    path = folder / "config.json"
    path.write_text(json.dumps({**read_json(path), **values}))
    return folder


def make(family: str, folder: Path) -> Path:
    if family == "qwen3":  # transformers reads its heads as 128 wide, whatever the file says
        save_tiny(folder, "qwen2")
        config = Qwen3Config(
            vocab_size=load_config(str(folder)).vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=128, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    else:
        save_tiny(folder, family)
    return cut(folder, {"gpt2": "gpt-2", "llama": "llama-bpe"}.get(family, "qwen2"))


def written(source: Path, folder: Path, kind: str) -> tuple[Any, Any, Path]:
    (path,), _ = export(source, "gguf", folder, Settings(kind))
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), path


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_the_same_model_and_tokens(family: str, tmp_path: Path) -> None:
    source = make(family, tmp_path / "model")
    model, tokenizer, path = written(source, tmp_path / "out", "f32")
    before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    own = AutoTokenizer.from_pretrained(source)
    ids = torch.tensor([own(TEXT)["input_ids"]])
    assert tokenizer(TEXT)["input_ids"] == ids[0].tolist()
    assert (tokenizer.eos_token, tokenizer.chat_template) == (own.eos_token, own.chat_template)
    assert float((model(ids).logits - before(ids).logits).abs().max()) <= 1e-5
    assert GGUFReader(path).fields["tokenizer.ggml.pre"].contents() in WAYS


@torch.no_grad()
def test_matrices_are_stored_as_asked_and_vectors_exactly(tmp_path: Path) -> None:
    source = make("qwen2", tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = torch.arange(5)[None]
    kinds = {}
    for kind, largest in {"f16": 0.02, "bf16": 0.2, "q8_0": 0.5}.items():
        (path,), _ = export(source, "gguf", tmp_path / kind, Settings(kind))
        if kind != "f16":
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
            assert 0 < float((model(ids).logits - before(ids).logits).abs().max()) < largest
        found = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
        assert path.name == f"model-{kind}.gguf" and found["output_norm.weight"] == found["blk.0.attn_q.bias"] == "F32"
        kinds[kind] = found["blk.0.attn_q.weight"]
    assert kinds == {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "family": ("opt", {}, "family 'opt', and GGUF is written here for gpt2, llama.*convert_hf_to_gguf.py"),
    "encoder-decoder": ("t5", {}, "family 't5'"),
    "activation": ("llama", {"hidden_act": "gelu"}, "the activation 'gelu', which is not written here"),
    "rotary": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "kind 'yarn'"),
    "window": ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "a sliding window"),
    "gpt2 activation": ("gpt2", {"activation_function": "relu"}, "the activation 'relu'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_is_refused_with_another_way(case: str, tmp_path: Path) -> None:
    family, values, message = REFUSED[case]
    changed(save_tiny(tmp_path / "model", family), **values)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "model", "gguf", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf"))


@pytest.mark.parametrize(
    ("to", "settings"),
    [("gguf", {"top_k": 64}), ("ollama", {"top_k": 5}), ("lm-eval", {"kind": "f16"}), ("distillkit", {"kind": "f32"})],
)
def test_an_option_that_changes_nothing_is_refused(to: str, settings: dict[str, Any], tmp_path: Path) -> None:
    option = "--type" if "kind" in settings else "--top-k"
    with pytest.raises(UserError, match=f"{option} means nothing to --to {to}"):
        export(tmp_path, to, tmp_path, Settings(**settings))


def test_an_unknown_kind_and_a_tokenizer_of_its_own_are_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model", "llama")
    with pytest.raises(UserError, match=r"--type: there is no 'q4_k'. Known: f32, f16, bf16, q8_0"):
        export(source, "gguf", tmp_path / "out", Settings("q4_k"))
    with pytest.raises(UserError, match=r"in a way that GGUF has no name for.*convert_hf_to_gguf\.py"):
        export(source, "gguf", tmp_path / "out")
    rules = read_json(source / "tokenizer.json")
    rules["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    (source / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(UserError, match="no byte-level BPE tokenizer"):
        export(source, "gguf", tmp_path / "out")


@pytest.mark.parametrize("way", WAYS)
def test_the_way_of_cutting_gets_its_name(way: str, tmp_path: Path) -> None:
    source = cut(save_tiny(tmp_path / "model", "llama"), way)
    found = vocabulary_of(Exported(source, Settings()))
    assert found.pre == way
    assert [found.types[number] for number in range(4)] == [3, 3, 3, 1]
    assert len(found.tokens) == load_config(str(source)).vocab_size == len(found.types)


def test_an_unknown_way_is_tried_on_the_texts_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = TinyRun(tmp_path, "llama")
    tiny.advance("examples")
    exported = Exported(tiny.run_dir, Settings())
    exported.__dict__["folder"] = tiny.student
    try:
        assert vocabulary_of(exported).pre in WAYS
        assert "become the same tokens" in " ".join(capsys.readouterr().err.split())
        monkeypatch.setattr(gguf_tokens, "_texts", lambda exported: ["1234 5678", "it's\n\n\n  what"])
        vocabulary_of.cache_clear()
        with pytest.raises(UserError, match="GGUF has no name for"):
            vocabulary_of(exported)
    finally:
        exported.close()


def test_llama_threes_rotary_factors_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from srd.export.gguf import _rope_factors

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256}  # fmt: skip
    save_tiny(tmp_path / "model", "llama")
    config = load_config(str(changed(tmp_path / "model", rope_parameters=rope, head_dim=64)))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 5e5 ** (np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / _rope_factors(config), scaled.numpy(), rtol=1e-5)


def test_a_users_file_stays_and_a_former_export_is_replaced(tmp_path: Path) -> None:
    source, out = make("gpt2", tmp_path / "model"), tmp_path / "out"
    export(source, "gguf", out, Settings("f32"))
    export(source, "gguf", out, Settings("f16"))
    assert [path.name for path in out.glob("*.gguf")] == ["model-f16.gguf"]
    (out / "model-f32.gguf").write_text("mine")
    with pytest.raises(UserError, match=r"model-f32\.gguf was not written by srd export --to gguf and would be lost"):
        export(source, "gguf", out, Settings("f32"))
    with pytest.raises(UserError, match="is where the model lies"):
        export(source, "gguf", source)
    with pytest.raises(UserError, match="is no run directory"):
        export(tmp_path, "gguf", out)
    with pytest.raises(UserError, match=r"did you mean 'gguf'\?"):
        export(source, "gguff", out)
