"""Steps that are recorded for a GPU do what plain ones do; without a GPU a recording is the function itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srd.models import reading, replay
from srd.models.generation import Decoding
from srd.models.reading import abilities
from tests.models.test_generation import LONGEST, answer, make_prompts
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

RECORDED = ("gpt2", "opt", "llama", "qwen2")  # gemma2 looks through a window, t5 and mt5 have a cache of their own


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each recorded step; recordings have room for three tokens, so that they are made anew."""
    taken: list[int] = []
    original = replay.Replay.step

    def step(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        taken.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(reading, "can_be_recorded", lambda model: True)
    monkeypatch.setattr(replay, "ROOM", 3)
    monkeypatch.setattr(replay.Replay, "step", step)
    return taken


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_steps_write_the_same(family: str, steps: list[int]) -> None:
    """Prompts of different length, rows that stop early and leave, greedy and sampled."""
    plain, tokenizer, prompts = tiny_model(family, seed=3), tiny_tokenizer(family), make_prompts(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "can_be_recorded", lambda model: False)
        free = answer(plain, tokenizer, prompts, Decoding(LONGEST), stop=[])
        stop = sorted({tokens[2 + 2 * i] for i, tokens in enumerate(free[:6])})
        asked = Decoding(LONGEST), Decoding(LONGEST, 1.0, 0.9, seed=1)
        expected = [answer(plain, tokenizer, prompts, decoding, stop=stop) for decoding in asked]
    assert len({len(tokens) for tokens in expected[0]}) > 2
    model = tiny_model(family, seed=3)
    assert abilities(model).replay is (family in RECORDED)
    steps.clear()
    assert [answer(model, tokenizer, prompts, decoding, stop=stop) for decoding in asked] == expected
    assert (len(steps) > 2 * replay.ROOM and len(set(steps)) > 1) is (family in RECORDED)


def test_what_a_hook_does_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    assert not replay.can_be_recorded(model), "it is on a CPU"
    monkeypatch.setattr(replay, "_is_on_gpu", lambda model: True)
    assert replay.can_be_recorded(model)
    model.model.layers[1].register_forward_pre_hook(lambda module, given: None)
    assert not replay.can_be_recorded(model)


def test_a_step_that_a_recording_would_freeze_is_found_out(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose positions Python counts would stay at one of them."""
    model = tiny_model("llama")
    frozen: list[torch.Tensor] = []

    def forgetful(function: Any, device: Any) -> Any:
        def once() -> torch.Tensor:
            frozen.append(function()) if not frozen else None
            return frozen[0]

        return once

    monkeypatch.setattr(replay, "recorded", forgetful)
    assert abilities(model).state and not abilities(model).replay


def test_where_there_is_no_memory_for_a_recording_steps_are_plain(
    steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, prompts = tiny_model("llama", seed=3), tiny_tokenizer("llama"), make_prompts(4)
    expected = answer(model, tokenizer, prompts, Decoding(LONGEST), stop=[])
    recorded, made = replay.recorded, [0]

    def twice(function: Any, device: Any) -> Any:
        made[0] += 1
        if made[0] > 2:
            raise torch.OutOfMemoryError("all is full")
        return recorded(function, device)

    monkeypatch.setattr(replay, "recorded", twice)
    steps.clear()
    assert answer(model, tokenizer, prompts, Decoding(LONGEST), stop=[]) == expected
    assert made[0] == 3 and len(steps) == 2 * replay.ROOM
