"""What a run would do and cost, worked out from the recipe, the models' configurations and the data, without weights.

Counting rules:

- A forward pass over a token takes 2 floating-point operations (FLOPs) a parameter of the blocks, and 2 for each of the
  output head's at response positions; a backward pass takes twice that, and once that where the weights are frozen
  (LoRA). Attention over the context is left out: at 512 tokens it is a few per cent.
- A generated token takes one forward pass. Answers are assumed as long as the references.
- Activations take 34 bytes a token, layer and unit of width in 16 bit, twice that in 32 bit (Korthikanti et al. 2022,
  without the attention matrices, which fused kernels never write).
"""

from __future__ import annotations

import copy
import functools
import math
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PreTrainedConfig

from srd.config import ModelConfig, Recipe, SourceConfig, TrainingConfig
from srd.data.encoding import Encoder
from srd.data.sources import DATASETS
from srd.data.templates import get_template
from srd.distillation import needed_disk
from srd.errors import UserError, nearest
from srd.loss import CHUNK_BYTES
from srd.models.loading import count_parameters, load_config, load_tokenizer
from srd.models.shrink import DEPTH_NAMES, PER_LAYER_NAMES
from srd.report import words
from srd.run.steps.examples import read_splits
from srd.teacher_cache import DTYPES, cache_bytes
from srd.trainer import steps_per_epoch

#: An A100 at about half of its peak in 16 bit.
A100_FLOPS_PER_SECOND = 1.5e14
#: Bytes a token, layer and unit of width that training keeps for the backward pass, in 16 bit; and with checkpointing.
ACTIVATION_BYTES, CHECKPOINTED_BYTES = 34, 2
SAMPLE = 10_000  # training examples that are tokenised
CONNECT_SECONDS = 3.0

#: Rows by split, and mean tokens of prompt (in its frame) and response, of data sets that are not at hand.
KNOWN_SIZES: dict[str, tuple[dict[str, int], float, float]] = {
    "alpaca": ({"train": 51_974}, 70, 65),
    "dolly": ({"train": 14_011, "validation": 1000}, 120, 90),
    "gsm8k": ({"train": 7473, "test": 1319}, 90, 110),
    "iwslt2017": ({"train": 206_112, "validation": 888, "test": 8079}, 40, 30),
    "mbpp": ({"train": 374, "validation": 90, "test": 500}, 150, 70),
    "xsum": ({"train": 204_045, "validation": 11_332, "test": 11_334}, 470, 28),
}

#: Dimensions of the shipped recipes' models, for planning without a network.
KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    "openai-community/gpt2": {"model_type": "gpt2"},
    "openai-community/gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "openlm-research/open_llama_3b_v2": {
        "model_type": "llama", "hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26,
        "num_attention_heads": 32, "vocab_size": 32_000, "dtype": "float16",
    },
    "openlm-research/open_llama_7b_v2": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32_000, "dtype": "float16",
    },
    **{
        f"Qwen/Qwen2.5-{kind}-1.5B-Instruct": {
            "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True,
            "dtype": "bfloat16",
        }
        for kind in ("Math", "Coder")
    },
    **{
        f"Qwen/Qwen2.5-{kind}-7B-Instruct": {
            "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064, "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }
        for kind in ("Math", "Coder")
    },
    "google/t5-v1_1-base": {
        "model_type": "t5", "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 32_128,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "google/t5-v1_1-xl": {
        "model_type": "t5", "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "vocab_size": 32_128,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "google/mt5-base": {
        "model_type": "mt5", "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 250_112,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "google/mt5-xl": {
        "model_type": "mt5", "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "vocab_size": 250_112,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the facts


@dataclass(frozen=True)
class Size:
    """A model in numbers.

    Attributes:
        parameters: All of them.
        blocks: Those of the blocks: each takes part in every token.
        head: Those of the output head, shared with the embedding or not.
        hidden_size: Width.
        layers: Blocks, encoder and decoder together.
        vocabulary: Width of the head.
        dtype: Precision of its saved weights.
        encoder_decoder: Whether the prompt goes to an encoder, so that a token meets half of the blocks.
    """

    parameters: int
    blocks: int
    head: int
    hidden_size: int
    layers: int
    vocabulary: int
    dtype: str
    encoder_decoder: bool

    def forward(self, prompt: float, response: float) -> float:
        """FLOPs of one forward pass over so many prompt and response tokens."""
        blocks = self.blocks / 2 if self.encoder_decoder else self.blocks
        return 2 * (blocks * (prompt + response) + self.head * response)


@dataclass(frozen=True)
class DataFacts:
    """The training data in numbers; ``exact`` where all of it was read and tokenised, else estimated.

    Attributes:
        train: Training examples.
        validation: Validation examples.
        test: Test examples.
        prompt: Mean tokens of a prompt in its frame.
        response: Mean tokens of a response, end of sequence included.
        response_tokens: Of all the training data.
        exact: Whether all the data was read and tokenised.
    """

    train: int
    validation: int
    test: int
    prompt: float
    response: float
    response_tokens: int
    exact: bool


@dataclass(frozen=True)
class StagePlan:
    """One stage: examples, passes over the whole training set, optimizer steps."""

    examples: int
    passes: float
    steps: int


@dataclass(frozen=True)
class Phase:
    """A step of the run and what it takes.

    Attributes:
        name: As in the manifest.
        stages: Of a training; empty for other steps.
        teacher_passes: Passes of the teacher over the training set.
        student_passes: Passes of the student over the training set.
        tokens: Tokens read, over all passes.
        flops: Floating-point operations.
        memory: Bytes on one device.
    """

    name: str
    stages: tuple[StagePlan, ...] = ()
    teacher_passes: float = 0.0
    student_passes: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    memory: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return sum(stage.steps for stage in self.stages)


@dataclass(frozen=True)
class Plan:
    """What a run would do and cost."""

    recipe: str
    teacher: Size
    student: Size
    data: DataFacts
    phases: tuple[Phase, ...]
    cache_bytes: int
    head_bytes: int
    checkpoint_bytes: int
    kept_bytes: int
    devices: int
    flops_per_second: float
    notes: tuple[str, ...] = field(default=())

    @property
    def flops(self) -> float:
        """Of all phases."""
        return math.fsum(phase.flops for phase in self.phases)

    @property
    def memory(self) -> float:
        """Bytes on one device in the phase that needs most."""
        return max(phase.memory for phase in self.phases)

    def seconds(self, phase: Phase) -> float:
        """Time of a phase when every device computes at the given throughput."""
        return phase.flops / (self.flops_per_second * self.devices)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        phases = [{**asdict(phase), "steps": phase.steps, "seconds": self.seconds(phase)} for phase in self.phases]
        total = {"flops": self.flops, "seconds": sum(map(self.seconds, self.phases)), "memory": self.memory}
        return {**asdict(self), "phases": phases, "total": total}


# ------------------------------------------------------------------------------------------------- reading the facts


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the hub answers, asked once and quickly: the hub's own client would try for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def read_config(model: ModelConfig, notes: list[str]) -> PreTrainedConfig:
    """A model's configuration: from its folder, the local cache, the hub, or the table of the shipped recipes' models.

    Raises:
        UserError: it can be read nowhere.
    """
    source = str(model.model)
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    is_hub_name = "/" in source and not Path(source).expanduser().exists() and not source.endswith(".gguf")
    if not is_hub_name:
        return load_config(source, **options)  # type: ignore[arg-type]
    cached = try_to_load_from_cache(source, "config.json", revision=model.revision)
    if isinstance(cached, str):
        return load_config(str(Path(cached).parent))
    if hub_is_reachable():
        return load_config(source, **options)  # type: ignore[arg-type]
    if source in KNOWN_CONFIGS:
        note = f"the hub cannot be reached: the dimensions of {source} are those this package knows"
        notes.append(note) if note not in notes else None
        values = dict(KNOWN_CONFIGS[source])
        return AutoConfig.for_model(values.pop("model_type"), **values)
    raise UserError(
        f"model '{source}': the hub cannot be reached and there is no local copy of its config.json. "
        f"Give a local folder, or one of the models that are known without a network; {nearest(source, KNOWN_CONFIGS)}"
    )


def size_of(config: PreTrainedConfig) -> Size:
    """A model in numbers, from its configuration."""
    counts = count_parameters(config)
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    if config.is_encoder_decoder:
        layers += int(getattr(config, "num_decoder_layers", None) or layers)
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return Size(
        counts["total"], counts["layers"], counts["head"] or counts["embedding"], int(text.hidden_size), layers,
        int(text.vocab_size), dtype, bool(config.is_encoder_decoder),
    )  # fmt: skip


def shortened(config: PreTrainedConfig, drop: int | list[int]) -> PreTrainedConfig:
    """The configuration with so many layers less in every stack; which ones they are does not change its size."""
    count = drop if isinstance(drop, int) else len(drop)
    config = copy.deepcopy(config)
    stacks = DEPTH_NAMES.values() if config.is_encoder_decoder else [("num_hidden_layers",)]
    inner = config if config.is_encoder_decoder else config.get_text_config()
    for name in (name for names in stacks for name in names if hasattr(inner, name)):
        depth = getattr(inner, name)
        if count >= depth:
            raise UserError(f"student.drop_layers drops {count} of {depth} layers: at least one must remain")
        for values in PER_LAYER_NAMES:
            if getattr(inner, values, None) is not None and len(getattr(inner, values)) == depth:
                setattr(inner, values, getattr(inner, values)[: depth - count])
        setattr(inner, name, depth - count)
    return config


def read_data(recipe: Recipe, notes: list[str], encoder_decoder: bool) -> DataFacts:
    """Count examples and tokens where the data and the tokenizer are at hand; else estimate them, and say so.

    Raises:
        UserError: the size of the data is not known, or the data is wrong.
    """
    sources = [source for source in (recipe.data.train, recipe.data.validation, recipe.data.test) if source]
    if not all(_is_local(source) for source in sources):
        return _estimated_data(recipe, notes)
    splits = read_splits(recipe)
    count, train = len(splits["train"]), splits["train"]
    if count > SAMPLE:
        notes.append(f"tokens are counted on {SAMPLE:,} of {count:,} training examples")
        train = train.select(np.sort(np.random.default_rng(recipe.seed).permutation(count)[:SAMPLE]))
    named = recipe.student if recipe.student.model else recipe.teacher
    if not Path(str(named.model)).expanduser().exists() and named.model != "smollm2" and not hub_is_reachable():
        notes.append("the tokenizer is not at hand: tokens are estimated as a quarter of the characters")
        rows = list(train)
        prompt = math.fsum(len(r["instruction"]) + len(r["input"]) + len(r["messages"]) for r in rows) / 4 / len(rows)
        response = math.fsum(len(r["references"][0]) for r in rows) / 4 / len(rows) + 1
        return _data_facts(recipe, {name: len(split) for name, split in splits.items()}, prompt, response)
    tokenizer = load_tokenizer(str(named.model), revision=named.revision, trust_remote_code=named.trust_remote_code)
    data = recipe.data
    encoder = Encoder(
        tokenizer, get_template(data.template, tokenizer), max_length=data.max_length,
        max_prompt_length=data.max_prompt_length, encoder_decoder=encoder_decoder,
    )  # fmt: skip
    encoded = encoder.encode(train)
    prompt, response = (sum(map(len, encoded[column])) / len(train) for column in ("prompt_ids", "response_ids"))
    return DataFacts(
        count,
        len(splits["validation"]),
        len(splits["test"]),
        prompt,
        response,
        round(response * count),
        count <= SAMPLE,
    )


def _is_local(source: SourceConfig) -> bool:
    paths = [source.path] if isinstance(source.path, str) else source.path or []
    if "pydocs" in (source.dataset, *paths):
        return True
    return bool(paths) and all(Path(path).expanduser().exists() for path in paths)


def _estimated_data(recipe: Recipe, notes: list[str]) -> DataFacts:
    """Sizes of the known data sets, which are not downloaded for a plan."""
    source = recipe.data.train
    name = source.dataset or (source.path if isinstance(source.path, str) else "")
    by_hub = {entry.hub.partition(":")[0]: entry.name for entry in DATASETS.values() if entry.hub}
    name = by_hub.get(str(name), str(name))
    if name not in KNOWN_SIZES:
        raise UserError(
            f"data.train: how large '{name}' is is not known before it is downloaded. Give a local file, or one of the "
            f"data sets whose size is known; {nearest(name, KNOWN_SIZES)}"
        )
    counts, prompt, response = KNOWN_SIZES[name]
    notes.append(
        f"'{name}' is not read: {counts['train']:,} examples of about {prompt + response:.0f} tokens are assumed"
    )
    return _data_facts(recipe, dict(counts), prompt, response, source.limit)


def _data_facts(
    recipe: Recipe, counts: dict[str, int], prompt: float, response: float, limit: int | None = None
) -> DataFacts:
    """Split and limit estimated sizes as the run would."""
    data = recipe.data
    if limit:
        counts = {name: min(count, limit) for name, count in counts.items()}
    everything = counts["train"]
    for name, size in (("validation", data.validation_size), ("test", data.test_size)):
        if name not in counts:
            counts[name] = round(size * everything) if isinstance(size, float) else size
            counts["train"] -= counts[name]
    limits = {"train": data.train_limit, "validation": data.validation_limit, "test": data.test_limit}
    counts = {name: min(counts[name], most or counts[name]) for name, most in limits.items()}
    prompt = min(prompt, float(data.max_prompt_length))
    response = min(response, data.max_length - prompt)
    tokens = round(counts["train"] * response)
    return DataFacts(counts["train"], counts["validation"], counts["test"], prompt, response, tokens, False)


# ----------------------------------------------------------------------------------------------------- the arithmetic


def stages_of(training: TrainingConfig, examples: int) -> tuple[StagePlan, ...]:
    """The stages of a training on so many examples. Passes are epoch equivalents: 1 is once over all the data."""
    sizes = training.curriculum.sizes(examples) if training.curriculum else [examples]
    return tuple(
        StagePlan(
            size,
            size / examples * training.epochs,
            max(1, math.ceil(steps_per_epoch(size, training.batch_size) * training.epochs)),
        )
        for size in sizes
    )


def training_phase(
    name: str, training: TrainingConfig, student: Size, teacher: Size, data: DataFacts, live: bool, devices: int
) -> Phase:
    """A training: the student forward and backward, and the teacher where it runs live or the student writes text."""
    stages = stages_of(training, data.train)
    passes = math.fsum(stage.passes for stage in stages)
    prompt, response = data.prompt * data.train, data.response * data.train
    forward = student.forward(prompt, response)
    factor = 2.0 if training.lora else 3.0
    factor += 1.0 if training.gradient_checkpointing else 0.0
    flops = passes * factor * forward
    runs_teacher = training.needs_teacher and live
    if runs_teacher:
        flops += passes * teacher.forward(prompt, response)
    elif training.needs_teacher:
        flops += passes * 2 * teacher.head * response  # the logits come from the cached states
    written = getattr(training.method, "student_share", 0.0) if training.on_policy else 0.0
    flops += passes * written * forward  # every written token is one forward pass
    return Phase(
        name, stages, passes if runs_teacher else 0.0, passes, passes * (prompt + response), flops,
        training_memory(training, student, teacher, data, live, devices),
    )  # fmt: skip


def training_memory(
    training: TrainingConfig, student: Size, teacher: Size, data: DataFacts, live: bool, devices: int
) -> float:
    """Bytes on each of ``devices`` data-parallel devices, all of which hold the whole student.

    Weights (4 bytes, trainable ones with gradient and two moments: 16), activations of a micro-batch of the longest
    examples, one chunk of logits, and the teacher: its head where there is a cache, all of it where it runs live.
    """
    if training.lora:
        rank_parameters = 2 * training.lora.r * student.hidden_size * 4 * student.layers  # query, key, value, output
        weights = float(student.parameters * _bytes(student.dtype) + 16 * rank_parameters)
    else:
        weights = 16.0 * student.parameters
    per_device = max(1, training.batch_size // devices)
    micro = min(training.micro_batch_size or per_device, per_device)
    length = min(1.5 * (data.prompt + data.response), 4096)  # batches hold examples of similar, above-average length
    kept = CHECKPOINTED_BYTES if training.gradient_checkpointing else ACTIVATION_BYTES
    activations = micro * length * student.layers * student.hidden_size * kept
    activations *= 2 if training.precision == "float32" else 1
    held = 0.0
    if training.needs_teacher:
        held = (teacher.parameters if live else teacher.head) * _bytes(teacher.dtype)
    return weights + activations + 3 * CHUNK_BYTES + held


def _bytes(dtype: str) -> int:
    return DTYPES[dtype].itemsize if dtype in DTYPES else 4


def _inference_memory(size: Size, recipe: Recipe, data: DataFacts) -> float:
    """Bytes of a model that reads or writes: weights, and keys and values of a batch."""
    length = data.prompt + recipe.generation.max_new_tokens
    cache = 2 * recipe.generation.batch_size * length * size.layers * size.hidden_size * _bytes(size.dtype)
    return size.parameters * _bytes(size.dtype) + cache


def measured_flops_per_second() -> float:
    """What this machine does in a large matrix product: float32 on a CPU, half of bfloat16's peak on a GPU.

    Training comes near the former; on a GPU about half of the peak is what trainings of this kind reach.
    """
    gpu = torch.cuda.is_available()
    size, dtype, share = (8192, torch.bfloat16, 0.5) if gpu else (1024, torch.float32, 1.0)
    left = torch.ones(size, size, dtype=dtype, device="cuda" if gpu else "cpu")
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        product = left @ left
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return share * 2 * size**3 / best


def make_plan(recipe: Recipe, *, devices: int = 1, flops_per_second: float = A100_FLOPS_PER_SECOND) -> Plan:
    """Work out what a run of a recipe would do and cost.

    Args:
        recipe: The recipe.
        devices: Data-parallel devices.
        flops_per_second: What one device really does in a second, not its peak.

    Raises:
        UserError: a model's configuration or the size of the data cannot be found out.
    """
    notes: list[str] = []
    teacher_config = read_config(recipe.teacher, notes)
    student_config = read_config(recipe.student, notes) if recipe.student.model else teacher_config
    if recipe.student.drop_layers:
        student_config = shortened(student_config, recipe.student.drop_layers)
    teacher, student = size_of(teacher_config), size_of(student_config)
    data = read_data(recipe, notes, teacher.encoder_decoder)
    dtype = cache_dtype(recipe, teacher)
    cached = cache_bytes(data.response_tokens, teacher.hidden_size, DTYPES[dtype])
    caches = uses_cache(recipe, cached, notes)
    phases = _phases(recipe, teacher, student, data, caches, devices)
    trainings = [(teacher, recipe.teacher.sft), *((student, arm) for arm in recipe.arms.values())]
    largest = max(_trained_parameters(size, training) for size, training in trainings if training is not None)
    return Plan(
        recipe.name, teacher, student, data, tuple(phases), cached if caches else 0,
        teacher.head * DTYPES[dtype].itemsize if caches else 0, needed_disk(largest),
        _kept_bytes(recipe, teacher, student), devices, flops_per_second, tuple(notes),
    )  # fmt: skip


def uses_cache(recipe: Recipe, needed: int, notes: list[str]) -> bool:
    """Whether the run would build the teacher cache."""
    if not any(training.needs_teacher and not training.on_policy for training in recipe.arms.values()):
        return False
    if needed > recipe.cache.limit_gb * 1e9:
        notes.append(
            f"the teacher cache would take {needed / 1e9:.1f} GB, more than cache.limit_gb "
            f"({recipe.cache.limit_gb:g}), so the teacher runs live"
        )
        return False
    return recipe.cache.enabled is not False


def cache_dtype(recipe: Recipe, teacher: Size) -> str:
    """The precision the cache stores: as asked for, else the teacher's; one that was fine-tuned whole is in 32 bit."""
    sft = recipe.teacher.sft
    saved = "float32" if sft is not None and sft.lora is None else teacher.dtype
    for wanted in (recipe.cache.dtype, recipe.teacher.dtype, saved):
        if wanted != "auto":
            return wanted
    return "float32"


def _trained_parameters(size: Size, training: TrainingConfig) -> int:
    """Parameters that a checkpoint holds: all, or the adapter's."""
    return 2 * training.lora.r * size.hidden_size * 4 * size.layers if training.lora else size.parameters


def _kept_bytes(recipe: Recipe, teacher: Size, student: Size) -> int:
    """Bytes of the models that a finished run keeps: every stage's best, every trained student, what came before."""
    kept = 0
    for training in recipe.arms.values():
        stages = training.curriculum.stages if training.curriculum else 1
        kept += 4 * stages * _trained_parameters(student, training)
        kept += student.parameters * (_bytes(student.dtype) if training.lora else 4)
    if recipe.student.drop_layers or recipe.student.warm_start:
        kept += 4 * student.parameters
    if recipe.teacher.sft:
        kept += teacher.parameters * (_bytes(teacher.dtype) if recipe.teacher.sft.lora else 4)
    return kept


def _phases(recipe: Recipe, teacher: Size, student: Size, data: DataFacts, caches: bool, devices: int) -> list[Phase]:
    """The steps of a run in their order."""
    prompt, response = data.prompt * data.train, data.response * data.train
    tokens = prompt + response
    phases = []
    if recipe.teacher.sft:
        tuned = training_phase("teacher", recipe.teacher.sft, teacher, teacher, data, False, devices)
        phases.append(
            Phase(tuned.name, tuned.stages, tuned.student_passes, 0.0, tuned.tokens, tuned.flops, tuned.memory)
        )
    if recipe.student.warm_start:
        live = recipe.cache.enabled is False
        phases.append(training_phase("student", recipe.student.warm_start, student, teacher, data, live, devices))
    if any(training.curriculum for training in recipe.arms.values()):
        flops = student.forward(prompt, response) + student.forward(0, response)  # the reference, and an answer
        memory = _inference_memory(student, recipe, data)
        phases.append(Phase("reflection", (), 0.0, 1.0, tokens + response, flops, memory))
    if caches:
        memory = _inference_memory(teacher, recipe, data)
        phases.append(Phase("cache", (), 1.0, 0.0, tokens, teacher.forward(prompt, response), memory))
    if any(training.method.name == "seqkd" for training in recipe.arms.values()):
        memory = _inference_memory(teacher, recipe, data)
        phases.append(Phase("teacher text", (), 1.0, 0.0, tokens, teacher.forward(prompt, response), memory))
    for name, training in recipe.arms.items():
        live = training.on_policy or not caches
        phases.append(training_phase(f"train/{name}", training, student, teacher, data, live, devices))
    phases.append(_evaluation(recipe, teacher, student, data))
    return phases


def _evaluation(recipe: Recipe, teacher: Size, student: Size, data: DataFacts) -> Phase:
    """Answers of all models to the run's test split with all seeds. Named tasks come on top, of unknown size."""
    seeds = len(recipe.evaluation.seeds) if recipe.evaluation.temperature > 0 else 1
    count = seeds * min(data.test, recipe.evaluation.limit or data.test)
    names = recipe.evaluation.models or ["teacher", "student", *recipe.arms]
    sizes = [teacher if name == "teacher" else student for name in names]
    one = [size.forward(data.prompt * count, data.response * count) for size in sizes]
    memory = max(_inference_memory(size, recipe, data) for size in sizes)
    return Phase("evaluation", (), 0.0, 0.0, len(names) * count * (data.prompt + data.response), math.fsum(one), memory)


# ----------------------------------------------------------------------------------------------------------- printing


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan as three small tables and its notes."""
    console.print(f"[bold]{plan.recipe}[/]")
    console.print(_facts_table(plan))
    console.print(_phase_table(plan))
    console.print(_needs_table(plan))
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)


def _facts_table(plan: Plan) -> Table:
    data, about = plan.data, "" if plan.data.exact else "about "
    table = Table(box=None, show_header=False, pad_edge=False)
    for role, size in (("teacher", plan.teacher), ("student", plan.student)):
        table.add_row(role, f"{words.count(size.parameters)} parameters, {size.layers} layers of {size.hidden_size}")
    table.add_row("examples", f"{about}{data.train:,} train, {data.validation:,} validation, {data.test:,} test")
    total = data.train * (data.prompt + data.response)
    table.add_row("tokens", f"{about}{words.count(total)} ({data.prompt:.0f} + {data.response:.0f} an example)")
    return table


def _phase_table(plan: Plan) -> Table:
    headings = ("step", "examples", "steps", "teacher passes", "student passes", "FLOPs", "time", "memory")
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for phase in plan.phases:
        table.add_row(
            phase.name, "", f"{phase.steps:,}" if phase.steps else "", _passes(phase.teacher_passes),
            _passes(phase.student_passes), f"{phase.flops:.2g}", words.duration(plan.seconds(phase)),
            shown_bytes(phase.memory),
        )  # fmt: skip
        for index, stage in enumerate(phase.stages if len(phase.stages) > 1 else ()):
            table.add_row(
                f"  stage {index}", f"{stage.examples:,}", f"{stage.steps:,}", "", _passes(stage.passes), "", "", ""
            )
    teacher = math.fsum(phase.teacher_passes for phase in plan.phases)
    seconds = math.fsum(plan.seconds(phase) for phase in plan.phases)
    table.add_row(
        "all", "", f"{sum(phase.steps for phase in plan.phases):,}", _passes(teacher), "", f"{plan.flops:.2g}",
        words.duration(seconds), shown_bytes(plan.memory),
    )  # fmt: skip
    return table


def _needs_table(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    devices = "one device" if plan.devices == 1 else f"each of {plan.devices} devices"
    table.add_row("time", f"at {plan.flops_per_second:.2g} FLOPs a second on {devices} (--flops-per-second, --devices)")
    table.add_row("memory", f"{shown_bytes(plan.memory)} at the peak on {devices}")
    if plan.cache_bytes:
        table.add_row(
            "disk, cache", f"{shown_bytes(plan.cache_bytes)} and the teacher's head {shown_bytes(plan.head_bytes)}"
        )
    table.add_row("disk, checkpoints", f"{shown_bytes(plan.checkpoint_bytes)} while a stage trains")
    table.add_row("disk, models", f"{shown_bytes(plan.kept_bytes)} kept")
    return table


def _passes(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else ""


def shown_bytes(count: float) -> str:
    """Write bytes with a decimal unit: ``815.6 kB``."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
