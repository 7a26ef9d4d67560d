"""The vLLM engine's side of the contract, against a stand-in that answers as vLLM 0.32 does.

The stand-in runs the tiny model itself, so that the same text goes through both engines. With vLLM installed, the last
test asks the real one.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from srd.errors import UserError
from srd.models.generation import Decoding, generate
from srd.models.loading import load_config, load_model, load_tokenizer
from srd.models.vllm_engine import VllmEngine
from srd.reflection import reflect
from tests.conftest import tiny_rows
from tests.tiny import save_tiny


class FakeLlm:
    """`vllm.LLM` as far as the engine uses it: prompts of token ids, one settings object or one for each prompt."""

    def __init__(self, source: str, **options: Any) -> None:
        self.model = load_model(source, dtype="float32")
        self.options = options
        assert options["skip_tokenizer_init"] is True

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, Any]], settings: Any, use_tqdm: bool) -> list[Any]:
        settings = settings if isinstance(settings, list) else [settings] * len(prompts)
        return [self._one(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, settings, strict=True)]

    def _one(self, prompt: list[int], settings: Any) -> Any:
        assert len(prompt) + settings.max_tokens <= self.options["max_model_len"]
        assert settings.temperature == 0
        scored = None
        if settings.prompt_logprobs is not None:
            logs = torch.log_softmax(self.model(torch.tensor([prompt])).logits[0].double(), -1)
            # The token that is there, and the best one where that is another.
            scored = [None] + [
                {int(i): SimpleNamespace(logprob=float(row[i])) for i in {token, int(row.argmax())}}
                for row, token in zip(logs, prompt[1:], strict=False)
            ]
        answer: list[int] = []
        while len(answer) < settings.max_tokens and not set(answer[-1:]) & set(settings.stop_token_ids):
            answer.append(int(self.model(torch.tensor([[*prompt, *answer]])).logits[0, -1].argmax()))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer)], prompt_logprobs=scored)


def sampling_params(**settings: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"prompt_logprobs": None, "stop_token_ids": [], **settings})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(save_tiny(tmp_path / "llama", "llama"))


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLlm, sampling_params  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def assert_engines_agree(folder: str, engine: VllmEngine) -> None:
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, tokenizer=tokenizer, dtype="float32")
    settings: dict[str, Any] = {"template": "plain", "max_length": 96, "max_prompt_length": 48, "max_new_tokens": 6}
    ours = reflect(model, tokenizer, tiny_rows()[:12], **settings)
    theirs = reflect(engine, tokenizer, tiny_rows()[:12], **settings)
    assert ours["id"] == theirs["id"]
    assert sum(a == b for a, b in zip(ours["response"], theirs["response"], strict=True)) >= 11
    assert max(abs(a - b) for a, b in zip(ours["ce"], theirs["ce"], strict=True)) < 1e-3
    assert any(ours["response"])


@pytest.mark.usefixtures("fake_vllm")
def test_reflection_and_generation_by_either_engine_are_the_same(folder: str) -> None:
    engine = VllmEngine(folder, 128, dtype="float32", config=load_config(folder))
    assert_engines_agree(folder, engine)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, tokenizer=tokenizer, dtype="float32")
    prompts = [tokenizer(row["instruction"])["input_ids"] for row in tiny_rows()[:5]]
    names = [str(number) for number in range(5)]
    assert generate(engine, tokenizer, prompts, names, Decoding(6)) == generate(
        model, tokenizer, prompts, names, Decoding(6)
    )


@pytest.mark.usefixtures("fake_vllm")
def test_what_it_cannot_serve_is_refused(folder: str, tmp_path: Path) -> None:
    t5 = str(save_tiny(tmp_path / "t5", "t5"))
    with pytest.raises(UserError, match="decoder-only"):
        VllmEngine(t5, 128, config=load_config(t5))
    with pytest.raises(UserError, match=r"weights\.gguf"):
        VllmEngine("weights.gguf", 128)


def test_without_vllm_the_command_to_install_it_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'srd\[vllm\]'"):
        VllmEngine(folder, 128)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_real_engine_agrees(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "llama", "llama", hidden=256))  # vLLM's CPU attention knows heads of 64
    options = {"enforce_eager": True, "max_num_seqs": 16}
    assert_engines_agree(folder, VllmEngine(folder, 128, dtype="float32", config=load_config(folder), **options))
