"""What a run would do and cost, worked out from the recipe, the models' configurations and the data, without weights.

The steps are those that a run goes through (`srd.run.flow.planned_steps`); each says what it costs.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import datasets
import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PreTrainedConfig

from srd.base.errors import UserError, nearest
from srd.base.text import count, duration, shown_bytes
from srd.data.batching import Collator, EncodedExamples
from srd.data.encoding import Encoder
from srd.data.settings import SourceConfig
from srd.data.sources import is_hub_name
from srd.data.templates.base import get_template
from srd.models.guard import guarded
from srd.models.loading import load_config, load_tokenizer
from srd.models.settings import ModelConfig
from srd.models.sources import HUB_NAME, SMOLLM2, resolve_source, split_adapter
from srd.recipe.schema import Recipe
from srd.run.checks import check_evaluation, check_libraries, check_recipe
from srd.run.costs import DataFacts, Facts, Phase, Size, alignment_of, limit_for, other_sizes, sizes_of
from srd.run.flow import planned_steps
from srd.run.models import RecipeModels
from srd.run.served import requests_of, told_of_server
from srd.run.steps.examples import read_splits
from srd.tasks.base import data_set_of, data_sets
from srd.training.alignment import Reader, warn_of_coverage

#: An A100 at about half of its peak in 16 bit.
A100_FLOPS_PER_SECOND = 1.5e14
COVERED = 1_000  # of those, how many a teacher with tokens of its own is tried on
SAMPLE = 10_000  # training examples that are tokenised
CONNECT_SECONDS = 3.0

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
    tier_bytes: dict[str, int] = field(default_factory=dict)
    tier: str = "exact"
    other_teachers: tuple[Size, ...] = ()

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
    resolve_source(source)
    with guarded(source):
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


def read_data(recipe: Recipe, notes: list[str], encoder_decoder: bool, models: RecipeModels | None = None) -> DataFacts:
    """Count examples and tokens where the data and the tokenizer are at hand; else estimate them, and say so.

    Raises:
        UserError: the size of the data is not known, or the data is wrong.
    """
    sources = [source for source in (recipe.data.train, recipe.data.validation, recipe.data.test) if source]
    if not all(_is_local(source) for source in sources):
        return _estimated_data(recipe, notes)
    encoder = _encoder(recipe, encoder_decoder)
    trial = encoder.with_template(recipe.data.frame[0]) if encoder else None  # it tells nothing
    splits = read_splits(recipe, models or trial)
    count, train = len(splits["train"]), splits["train"]
    if count > SAMPLE:
        notes.append(f"tokens are counted on {SAMPLE:,} of {count:,} training examples")
        train = train.select(np.sort(np.random.default_rng(recipe.seed).permutation(count)[:SAMPLE]))
    if encoder is None:
        notes.append("the tokenizer is not at hand: tokens are estimated as a quarter of the characters")
        rows = list(train)
        prompt = math.fsum(len(r["instruction"]) + len(r["input"]) + len(r["messages"]) for r in rows) / 4 / len(rows)
        response = math.fsum(len(r["references"][0]) for r in rows) / 4 / len(rows) + 1
        return _data_facts(recipe, {name: len(split) for name, split in splits.items()}, prompt, response)
    encoded = encoder.encode(train)
    examples = EncodedExamples(encoded)
    response = examples.response_tokens / len(train)
    prompt = (sum(examples.lengths) - examples.response_tokens) / len(train)
    theirs = 0.0 if models is None or not models.apart else _read_apart(models, train, examples, notes)
    return DataFacts(
        count,
        len(splits["validation"]),
        len(splits["test"]),
        prompt,
        response,
        round(response * count),
        count <= SAMPLE,
        round(theirs * count),
    )


def _read_apart(models: RecipeModels, train: datasets.Dataset, examples: EncodedExamples, notes: list[str]) -> float:
    """Tokens of a response for a teacher with tokens of its own; notes how much of the student's it can supervise."""
    rows = train.select(np.unique(np.linspace(0, len(train) - 1, min(COVERED, len(train))).astype(int)))
    theirs = EncodedExamples(models.teacher_encoder.encode(rows))
    if any(training.needs_teacher for training in models.recipe.student_trainings):
        method = alignment_of(models.recipe, models.recipe.training)
        reader = Reader(models.teacher_tokenizer, models.tokenizer, theirs, Collator(0), method)
        told = reader.coverage_of(examples.subset(theirs.ids))
        notes.append(told.words)
        warn_of_coverage(told)
    return theirs.response_tokens / len(rows)


def _encoder(recipe: Recipe, encoder_decoder: bool) -> Encoder | None:
    """What makes tokens of the examples; None where the tokenizer is not at hand."""
    named, data = recipe.models_here[-1], recipe.data
    if not Path(str(named.model)).expanduser().exists() and named.model != "smollm2" and not hub_is_reachable():
        return None
    tokenizer = load_tokenizer(str(named.model), revision=named.revision, trust_remote_code=named.trust_remote_code)
    return Encoder(
        tokenizer, get_template(data.frame[0], tokenizer, data.frame[1]), max_length=data.max_length,
        max_prompt_length=data.max_prompt_length, encoder_decoder=encoder_decoder, train_on=data.train_on,
    )  # fmt: skip


def _is_local(source: SourceConfig) -> bool:
    known = data_set_of(source)
    if known is not None and known.home is None:  # made from the running Python
        return True
    named = [path for path in source.paths if source.dataset or known is None]
    return bool(named) and not any(is_hub_name(path) for path in named)


def _estimated_data(recipe: Recipe, notes: list[str]) -> DataFacts:
    """Sizes of the known data sets, which are not downloaded for a plan."""
    source = recipe.data.train
    name = source.dataset or ", ".join(source.paths)
    known = {task.name: task for task in data_sets().values() if task.size}
    by_hub = {task.home.repository: task.name for task in known.values() if task.home}
    name = by_hub.get(name, name)
    if name not in known:
        raise UserError(
            f"data.train: how large '{name}' is is not known before it is downloaded. Give a local file, or one of the "
            f"data sets whose size is known; {nearest(name, known)}"
        )
    counts, prompt, response = known[name].size  # type: ignore[misc]
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


def check_what_is_at_hand(recipe: Recipe, notes: list[str]) -> RecipeModels | None:
    """Refuse what `srd run` would refuse, as far as the models are at hand; the models, if they are."""
    named = [str(model.model) for model in recipe.models_here]
    if all(_is_local_model(name) for name in named) or hub_is_reachable():
        models = RecipeModels(recipe)
        check_recipe(models)
        notes += told_of_server(models)
        return models
    check_evaluation(recipe)
    check_libraries(recipe)
    notes.append("the models are not at hand: whether they fit each other is not checked")
    return None


def check_models_at_hand(recipe: Recipe) -> None:
    """Refuse models that are neither on this machine nor to be had from the hub now.

    Raises:
        UserError: with the first of them.
    """
    for named in recipe.models_here:
        name = str(named.model)
        if _is_local_model(name) or "/" not in name or not HUB_NAME.fullmatch(name):
            continue
        cached = try_to_load_from_cache(name, "config.json", revision=named.revision)
        if not isinstance(cached, str) and not hub_is_reachable():
            raise UserError(
                f"model '{name}': the hub cannot be reached and there is no copy of it here. Give a local folder."
            )


def _is_local_model(name: str) -> bool:
    return name == SMOLLM2 or Path(split_adapter(name)[0]).expanduser().exists()


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


def make_plan(
    recipe: Recipe,
    *,
    devices: int = 1,
    flops_per_second: float = A100_FLOPS_PER_SECOND,
    data: DataFacts | None = None,
) -> Plan:
    """Work out what a run of a recipe would do and cost.

    Args:
        recipe: The recipe.
        devices: Data-parallel devices.
        flops_per_second: What one device really does in a second, not its peak.
        data: The training data in numbers, of a recipe that is checked already; None: they are found out.

    Raises:
        UserError: a model's configuration or the size of the data cannot be found out.
    """
    notes: list[str] = []
    configs = [read_config(model, notes) for model in recipe.models_here]
    teacher, student = sizes_of(recipe, configs)
    if data is None:
        models = check_what_is_at_hand(recipe, notes)
        data = read_data(recipe, notes, bool(configs[0].is_encoder_decoder), models)
    facts = Facts(recipe, teacher, student, data, devices, other_sizes(recipe, configs))
    notes += requests_of(facts)
    steps = planned_steps(recipe)
    caches = any(step.name == "cache" for step in steps)
    if caches and not facts.cache_fits:
        caches = False
        notes.append(
            f"the teacher cache would take {shown_bytes(facts.cache_bytes)}, more than cache.limit_gb "
            f"({recipe.cache.limit_gb:g}), so the teacher runs live; cache.limit_gb={limit_for(facts.cache_bytes)} "
            "keeps it"
        )
    phases = tuple(step.cost(facts) for step in steps)
    kept = math.fsum(phase.disk for phase in phases if phase.name != "cache")
    return Plan(
        recipe.name, teacher, student, facts.data, phases, facts.cache_bytes if caches else 0,
        facts.head_bytes if caches else 0, round(max(phase.scratch for phase in phases)), round(kept), devices,
        flops_per_second, tuple(notes), facts.bytes_of_tiers if caches else {}, recipe.cache.tier,
        facts.others,
    )  # fmt: skip


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
    sizes = [("teacher", each) for each in (plan.teacher, *plan.other_teachers)]
    for role, size in (*sizes, ("student", plan.student)):
        told = f"{count(size.parameters)} parameters, {size.layers} layers of {size.hidden_size}"
        table.add_row(role, told if size.parameters else "behind a server")
    table.add_row("examples", f"{about}{data.train:,} train, {data.validation:,} validation, {data.test:,} test")
    total = data.train * (data.prompt + data.response)
    table.add_row("tokens", f"{about}{count(total)} ({data.prompt:.0f} + {data.response:.0f} an example)")
    return table


def _phase_table(plan: Plan) -> Table:
    headings = ("step", "examples", "steps", "teacher passes", "student passes", "FLOPs", "time", "memory")
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for phase in (phase for phase in plan.phases if phase.flops):
        table.add_row(
            phase.name, "", f"{phase.steps:,}" if phase.steps else "", _passes(phase.teacher_passes),
            _passes(phase.student_passes), f"{phase.flops:.2g}", duration(plan.seconds(phase)),
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
        duration(seconds), shown_bytes(plan.memory),
    )  # fmt: skip
    return table


def _needs_table(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    devices = "one device" if plan.devices == 1 else f"each of {plan.devices} devices"
    table.add_row("time", f"at {plan.flops_per_second:.2g} FLOPs a second on {devices} (--flops-per-second, --devices)")
    table.add_row("memory", f"{shown_bytes(plan.memory)} at the peak on {devices}")
    if plan.cache_bytes:
        head = f" and the teacher's head {shown_bytes(plan.head_bytes)}" if plan.head_bytes else ""
        table.add_row("disk, cache", f"{shown_bytes(plan.cache_bytes)}{head} (cache.tier={plan.tier})")
        sizes = (f"{name} {shown_bytes(size)}" for name, size in plan.tier_bytes.items())
        table.add_row("disk, all tiers", f"{', '.join(sizes)}, with the head")
    table.add_row("disk, checkpoints", f"{shown_bytes(plan.checkpoint_bytes)} while a stage trains")
    if any(phase.refreshes for phase in plan.phases):
        written = math.fsum(phase.written for phase in plan.phases)
        refreshes = sum(phase.refreshes for phase in plan.phases)
        held = max(phase.refresh_bytes for phase in plan.phases)
        times = "once" if refreshes == 1 else f"at {refreshes:,} times"
        table.add_row("written ahead", f"about {count(written)} tokens by the student, {times}")
        table.add_row("disk, refreshes", f"{shown_bytes(held)} of the teacher's states while a stage trains")
    table.add_row("disk, models", f"{shown_bytes(plan.kept_bytes)} kept")
    return table


def _passes(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else ""
