"""What every measured system trains on: the same models, the same token sequences, the same number of steps.

Two length profiles. ``pydocs``: the standard library's documentation in SmolLM2's chat template, as it is. ``dolly``:
the lengths of an instruction data set (72 tokens of prompt and 80 of response in the mean, log-normal), filled with the
tokens of the same documentation. No random number enters but those of a fixed seed.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from benchmarks.lengths import MAX_LENGTH, MAX_PROMPT, SEED, dolly_lengths
from srd.data.batching import EncodedExamples, HiddenSource, LengthBatches
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import get_template
from srd.models.loading.loading import load_model, load_tokenizer, save_model
from srd.models.pruning import drop_layers
from srd.tasks.pydocs import load_pydocs

TEACHER = "smollm2"
STUDENT_LAYERS = 8
READS, WRITES = "the teacher reads", "the student writes"  # parts of the time of a training


@dataclass(frozen=True)
class Batches:
    """Token sequences and how they are grouped into optimizer steps.

    Attributes:
        examples: Everything that is trained on.
        steps: Indices of each step's examples, the first one for warming up.
    """

    examples: EncodedExamples
    steps: list[list[int]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The examples in the order of the steps."""
        return [self.examples[index] for step in self.steps for index in step]


def make_student(folder: Path) -> None:
    """Save the student: eight layers of the teacher, spread evenly, and the tokenizer."""
    tokenizer = load_tokenizer(TEACHER)
    teacher = load_model(TEACHER, tokenizer=tokenizer, dtype="float32")
    depth = teacher.config.num_hidden_layers
    kept = {round(place) for place in np.linspace(0, depth - 1, STUDENT_LAYERS)}
    student, _ = drop_layers(teacher, [layer for layer in range(depth) if layer not in kept])
    save_model(student, tokenizer, folder)


def pydocs_sequences(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt and response token ids of the documentation, in the chat template."""
    encoder = Encoder(tokenizer, get_template("chat", tokenizer), max_length=MAX_LENGTH, max_prompt_length=MAX_PROMPT)
    rows = load_pydocs()
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:1500]
    encoded = encoder.encode(examples_from_rows([rows[i] for i in chosen], "pydocs"))
    return list(encoded["prompt_ids"]), list(encoded["response_ids"])


def dolly_sequences(tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Documentation cut to the lengths of an instruction data set."""
    _, responses = pydocs_sequences(tokenizer)
    stream = [token for response in responses for token in response[:-1]]
    end = responses[0][-1]
    position = 0

    def take(length: int) -> list[int]:
        nonlocal position
        start = position % (len(stream) - MAX_LENGTH)
        position += length
        return stream[start : start + length]

    prompt_lengths, response_lengths = dolly_lengths(count)
    return [take(n) for n in prompt_lengths], [[*take(n - 1), end] for n in response_lengths]


def make_batches(tokenizer: PreTrainedTokenizerBase, profile: str, batch_size: int, steps: int) -> Batches:
    """A sample of the optimizer steps of a large epoch: evenly spread over their lengths, after one to warm up.

    Args:
        tokenizer: SmolLM2's.
        profile: ``pydocs``, ``dolly``, or ``fixed:<response tokens>`` for the table of response lengths.
        batch_size: Examples in a step.
        steps: Steps that are measured.
    """
    count = batch_size * 64
    if profile == "pydocs":
        prompts, responses = pydocs_sequences(tokenizer)
        prompts, responses = prompts[:count], responses[:count]
    else:
        prompts, responses = dolly_sequences(tokenizer, count)
    if profile.startswith("fixed:"):
        length = int(profile.partition(":")[2])
        stream = [token for response in responses for token in response]
        prompts = [stream[64 * i : 64 * (i + 1)] for i in range(batch_size * (steps + 1))]
        responses = [stream[17 * i : 17 * i + length] for i in range(batch_size * (steps + 1))]
    rows = {"id": [f"{i}" for i in range(len(prompts))], "prompt_ids": prompts, "response_ids": responses}
    examples = EncodedExamples(rows)
    order = LengthBatches(examples.lengths, batch_size, seed=SEED).batches()
    order = sorted((b for b in order if len(b) == batch_size), key=lambda b: sum(examples.lengths[i] for i in b))
    warm_up = order.pop(len(order) // 2)  # not measured again: its hidden states would be in the cache already
    chosen = [order[int((place + 0.5) / steps * len(order))] for place in range(steps)]
    chosen = [chosen[i] for i in np.random.default_rng(SEED).permutation(steps)]
    return Batches(examples, [warm_up, *chosen])


def shuffled(batches: Batches) -> list[list[int]]:
    """The measured examples dealt out without regard to length, as a plain loop has them; the first step warms up."""
    measured = [index for step in batches.steps[1:] for index in step]
    order = np.random.default_rng(SEED).permutation(len(measured))
    size = len(batches.steps[0])
    dealt = [measured[i] for i in order]
    return [batches.steps[0], *[dealt[i : i + size] for i in range(0, len(dealt), size)]]


def with_teacher(examples: EncodedExamples, teacher: HiddenSource | None) -> EncodedExamples:
    """The same examples reading hidden states from a cache."""
    rows = {"id": examples.ids, "prompt_ids": examples.prompts, "response_ids": examples.responses}
    return EncodedExamples(rows, teacher)


def token_count(batches: Batches) -> int:
    """Prompt and response tokens of the measured steps, without padding."""
    return sum(batches.examples.lengths[i] for step in batches.steps[1:] for i in step)


class StepClock(TrainerCallback):
    """Notes the time at the end of every optimizer step; the first ones warm up and do not count."""

    def __init__(self, warm_up: int = 1) -> None:
        self.warm_up = warm_up
        self.ends: list[float] = []
        self.worked: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.worked.append(time.process_time())

    @property
    def seconds(self) -> float:
        """Mean time of a step, everything between two steps included."""
        return self._mean(self.ends)

    @property
    def processor(self) -> float:
        """Mean time that this process's threads worked in a step, which other processes hardly change."""
        return self._mean(self.worked)

    def _mean(self, times: list[float]) -> float:
        times = times[self.warm_up - 1 :]
        return (times[-1] - times[0]) / (len(times) - 1)


def peak_memory() -> int:
    """Most bytes of this process that were ever resident.

    Linux keeps the figure of the process that started this one in ``getrusage``, so its own record is read first.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Let `peak_memory` count from now on, where the system can: on Linux."""
    gc.collect()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Mean seconds of a call, after one that does not count."""
    function()
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - started) / repeats


def padded_share(lengths: Sequence[int], steps: Sequence[Sequence[int]]) -> float:
    """Share of the positions in padded batches that hold padding."""
    positions = sum(max(lengths[i] for i in step) * len(step) for step in steps)
    return 1 - sum(lengths[i] for step in steps for i in step) / positions


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Cut a sequence into pieces of this size."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextlib.contextmanager
def timed_parts(clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Keep what the teacher's reading and the student's writing ahead take of a training, by this clock."""
    from srd.run.parts import teacher_caches
    from srd.run.steps import teacher
    from srd.training.student_text import refresh

    spent: dict[str, float] = {}

    def timed(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            before = clock()
            done = work(*given, **named)
            spent[part] = spent.get(part, 0.0) + clock() - before
            return done

        return run

    parts = [(teacher, "build_cache", READS), (teacher_caches, "build_cache", READS), (refresh, "write_text", WRITES)]
    own = [(module, name, part, getattr(module, name)) for module, name, part in parts]
    for module, name, part, work in own:
        setattr(module, name, timed(part, work))
    try:
        yield spent
    finally:
        for module, name, _, work in own:
            setattr(module, name, work)
