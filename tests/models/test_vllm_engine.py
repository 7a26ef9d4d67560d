"""The vLLM engine's side of the contract, against a stand-in that answers as vLLM 0.32 does.

The stand-in runs the tiny model itself, so that the same text goes through both engines. With vLLM installed, the last
tests ask the real one.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest
import torch
from benchmarks.agreement import agreement
from transformers import GenerationConfig

from srd.base.errors import RunError, UserError
from srd.curation.reflection import reflect
from srd.models.engines import vllm as vllm_engine
from srd.models.engines.vllm import VllmEngine
from srd.models.generation import Decoding, decode_batch, generate
from srd.models.loading.loading import load_config, load_model, load_tokenizer
from srd.run.steps import training as training_step
from tests.runs import TinyRun, tiny_rows
from tests.tiny import save_tiny

with_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


class FakeLlm:
    """`vllm.LLM` as far as the engine uses it: prompts of token ids, and settings for each prompt or for all."""

    made: ClassVar[list[FakeLlm]] = []

    def __init__(self, source: str, **options: Any) -> None:
        assert options["skip_tokenizer_init"] is True
        self.model = load_model(source, dtype=options["dtype"])
        self.options = options
        FakeLlm.made.append(self)

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
            logits = self.model(torch.tensor([[*prompt, *answer]])).logits[0, -1]
            for token, bias in (settings.logit_bias or {}).items():
                logits[token] += bias
            answer.append(int(logits.argmax()))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer)], prompt_logprobs=scored)


def sampling_params(**settings: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"prompt_logprobs": None, "stop_token_ids": [], "logit_bias": None, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model whose head has more rows than the tokenizer has tokens."""
    return str(save_tiny(tmp_path / "llama", "llama", vocab_size=448))


class Thread(threading.Thread):
    """Stands for the engine's process, so that the stand-in for vLLM needs no installation."""

    running: ClassVar[list[Thread]] = []
    exitcode = 0

    def __init__(self, target: Callable[..., None], args: tuple[Connection, str, dict[str, Any]], daemon: bool) -> None:
        # As in a process, the connection is a copy, and the one that was given may be closed.
        self.connection = Connection(os.dup(args[0].fileno()))
        self.work = lambda: target(self.connection, *args[1:])
        super().__init__(daemon=daemon)

    def run(self) -> None:
        Thread.running.append(self)
        self.work()
        self.connection.close()
        Thread.running.remove(self)


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLlm]:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLlm, sampling_params  # type: ignore[attr-defined]
    module.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm_engine, "new_process", Thread)
    monkeypatch.setattr(FakeLlm, "made", [])
    return FakeLlm


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "find_spec", lambda _: None)


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
    texts = [tokenizer(row["output"])["input_ids"] for row in tiny_rows()[:4]]
    asked = texts[::-1], list("abcd"), Decoding(1), [tokenizer.eos_token_id], 0
    lasts = [
        [score.last for score in decode_batch(each, *asked, references=texts)[1]] for each in (model.eval(), engine)
    ]
    assert lasts[0] == pytest.approx(lasts[1], abs=1e-3)


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
def test_answers_end_where_the_generation_config_says(folder: str) -> None:
    tokenizer = load_tokenizer(folder)
    prompts, names = [tokenizer("Why is the cat blue?")["input_ids"]], ["a"]
    ends, width = [tokenizer.eos_token_id], len(tokenizer)
    tokens, _ = VllmEngine(folder, 128).decode_batch(prompts, names, Decoding(8), ends, None, width)
    stop = tokens[0][2]
    GenerationConfig(eos_token_id=[tokenizer.eos_token_id, stop]).save_pretrained(folder)
    short = generate(VllmEngine(folder, 128), tokenizer, prompts, names, Decoding(8))
    assert short == generate(load_model(folder, tokenizer=tokenizer), tokenizer, prompts, names, Decoding(8))
    assert short == [tokenizer.decode(tokens[0][: tokens[0].index(stop)])]  # what ends an answer is no part of it


def test_it_computes_as_saved_and_ends_when_nobody_needs_it(folder: str, fake_vllm: type[FakeLlm]) -> None:
    before = dict(os.environ)
    engine = VllmEngine(folder, 128)
    assert fake_vllm.made[0].options["dtype"] == "float32"  # of which vLLM's own "auto" would make 16 bits
    assert dict(os.environ) == before
    assert Thread.running
    del engine
    assert not Thread.running


@pytest.mark.usefixtures("fake_vllm")
def test_what_it_cannot_serve_is_refused(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t5 = str(save_tiny(tmp_path / "t5", "t5"))
    with pytest.raises(UserError, match="decoder-only"):
        VllmEngine(t5, 128)
    with pytest.raises(UserError, match=r"weights\.gguf"):
        VllmEngine("weights.gguf", 128)

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("No such architecture.")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", fails)
    with pytest.raises(UserError, match="No such architecture"):
        VllmEngine(folder, 128)


@pytest.mark.usefixtures("no_vllm")
def test_without_vllm_the_command_to_install_it_is_named(folder: str) -> None:
    with pytest.raises(UserError, match=r"not installed.*pip install vllm"):
        VllmEngine(folder, 128)


# --------------------------------------------------------------------------------------------- in a process of its own

MUTE = """
class SamplingParams:
    def __init__(self, **settings):
        self.stop = settings["stop_token_ids"]

class Answer:
    def __init__(self, token_ids):
        self.outputs = [self]
        self.token_ids = token_ids

class LLM:
    def __init__(self, source, **options):
        pass

    def generate(self, prompts, settings, use_tqdm):
        return [Answer(own.stop) for own in settings]
"""


@pytest.fixture
def mute_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that a new process finds too, and whose answers are empty."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "vllm.py").write_text(MUTE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)


@pytest.mark.usefixtures("mute_vllm")
def test_an_engine_whose_process_dies_says_so(folder: str) -> None:
    engine = VllmEngine(folder, 128)
    assert engine.decode_batch([[3]], ["a"], Decoding(1), [2], None)[0] == [[2]]
    os.kill(engine._process.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="status -9"):
        engine.decode_batch([[3]], ["a"], Decoding(1), [2], None)


@pytest.mark.usefixtures("mute_vllm")
def test_a_killed_command_leaves_no_engine(folder: str) -> None:
    def command() -> None:
        engine = VllmEngine(folder, 128)
        started.send(engine._process.pid)
        time.sleep(600)

    told, started = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=command)
    process.start()
    started.close()
    engine = told.recv()
    assert is_running(engine)
    process.kill()
    process.join()
    until = time.monotonic() + 20
    while is_running(engine) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(engine)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -------------------------------------------------------------------------------------------------- in a whole recipe


@pytest.mark.usefixtures("no_vllm")
def test_without_vllm_a_run_stops_before_any_work(tiny_run: TinyRun) -> None:
    with pytest.raises(UserError, match=r"pip install vllm"):
        tiny_run.set(generation__engine="vllm").run()
    assert not (tiny_run.run_dir / "manifest.json").exists()


@pytest.mark.usefixtures("fake_vllm")
def test_a_run_that_vllm_cannot_serve_stops_before_any_work(make_tiny_run: Callable[..., TinyRun]) -> None:
    for run, problem in (
        (make_tiny_run("t5"), "decoder-only"),
        (make_tiny_run().set(student__adapter="somewhere"), "takes no adapter"),
        (make_tiny_run().set(data__max_length=1024), "what vllm writes behind it"),
    ):
        with pytest.raises(UserError, match=problem):
            run.set(generation__engine="vllm").run()
        assert not (run.run_dir / "manifest.json").exists()


def assert_runs_agree(tiny: TinyRun) -> None:
    """The whole recipe by either engine: the same answers, scores, ranks and metrics."""
    tiny.set(data__train_limit=16, evaluation__temperature=0, evaluation__seeds=[1])
    tiny.set(baselines={"seqkd": {"method": {"name": "seqkd", "max_new_tokens": 8}, "curriculum": None}})
    ours = tiny.run(tiny.folder / "transformers").folder
    theirs = tiny.set(generation__engine="vllm").run(tiny.folder / "vllm").folder
    found = agreement([ours, theirs])
    assert found.pop("largest difference in cross-entropy") < 1e-3
    assert {"ranks the same", "teacher texts the same", "answers of srd.test.1 the same"} < set(found)
    for name, pair in found.items():  # "16 of 16", "3.20 and 3.20"
        one, _, other = pair.split()
        assert one == other, name


@pytest.mark.slow
def test_a_run_by_either_engine_is_the_same(
    tiny_run: TinyRun, fake_vllm: type[FakeLlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    train = training_step.train

    def watched(*arguments: Any) -> Any:
        trained.append(list(Thread.running))
        return train(*arguments)

    monkeypatch.setattr(training_step, "train", watched)
    assert_runs_agree(tiny_run)
    assert trained == [[]] * 4  # no engine is left while a student is trained
    assert len(fake_vllm.made) == 1 + 1 + 4  # reflection, teacher text, four models in the evaluation
    assert not Thread.running


# ------------------------------------------------------------------------------------------------------ the real one


@with_vllm
def test_the_real_engine_agrees(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "llama", "llama", vocab_size=448, hidden=256))  # it knows heads of 64 on CPUs
    before = dict(os.environ)
    assert_engines_agree(folder, VllmEngine(folder, 128, max_num_seqs=16))
    assert dict(os.environ) == before


@with_vllm
def test_a_run_by_the_real_engine_is_the_same(make_tiny_run: Callable[..., TinyRun]) -> None:
    assert_runs_agree(make_tiny_run(teacher={"hidden": 256}, student={"hidden": 256}))
