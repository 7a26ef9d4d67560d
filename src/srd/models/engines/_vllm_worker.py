"""The process that vLLM lives in, and nowhere else.

vLLM changes the process it is in: environment, threads, random state, process groups, the memory of the device. When
this process ends, all of that is gone. It imports nothing of srd's.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any


def serve(connection: Connection, source: str, options: dict[str, Any]) -> None:
    """Load a model and answer requests until the other end of the connection is closed.

    Every answer, and the first word that says the model is loaded, is ``(True, result)`` or ``(False, what happened)``.

    Args:
        connection: Requests are a name of `WORK` and its arguments behind the model.
        source: Folder or hub name.
        options: Arguments of ``vllm.LLM``.
    """
    _follow_parent()
    try:
        import vllm

        llm = vllm.LLM(source, **options)
        connection.send((True, None))
        while True:
            name, *arguments = connection.recv()
            connection.send((True, WORK[name](vllm, llm, *arguments)))
    except EOFError:
        return
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}"))


def _follow_parent() -> None:
    """End when the parent does, however it ends; an interrupt is the parent's to deal with."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def generate(vllm: Any, llm: Any, prompts: Sequence[Sequence[int]], settings: list[dict[str, Any]]) -> list[list[int]]:
    """Answer each prompt by its own sampling parameters; an answer keeps the token that ended it."""
    parameters = [vllm.SamplingParams(**own) for own in settings]
    outputs = llm.generate(_tokens(prompts), parameters, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def cross_entropies(
    vllm: Any, llm: Any, prompts: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> list[tuple[float, float]]:
    """Of each reference behind its prompt the mean nats a token, and the nats of its last token."""
    texts = [[*prompt, *reference] for prompt, reference in zip(prompts, references, strict=True)]
    settings = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate(_tokens(texts), settings, use_tqdm=False)
    losses = []
    for output, text, prompt in zip(outputs, texts, prompts, strict=True):
        # One dictionary a position, with the token that is there; the first position has no prediction.
        scored = zip(output.prompt_logprobs[len(prompt) :], text[len(prompt) :], strict=True)
        values = [position[token].logprob for position, token in scored]
        losses.append((-math.fsum(values) / len(values), -values[-1]))
    return losses


def _tokens(prompts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": list(prompt)} for prompt in prompts]


WORK: dict[str, Callable[..., Any]] = {"generate": generate, "cross_entropies": cross_entropies}
