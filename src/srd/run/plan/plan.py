"""What a run would do and cost, worked out from the recipe, the models' configurations and the data, without weights.

The steps are those that a run goes through (`srd.run.outline.order.planned`); each says what it costs. Models that are
known without their files, and data that is not here, are planned in a moment: torch and transformers are imported where
a configuration or a tokenizer is read.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table

from srd.base.console import quiet_libraries
from srd.base.errors import UserError, nearest
from srd.base.text import count, duration, many, shown_bytes
from srd.base.yaml_text import read_yaml
from srd.data.settings import SourceConfig, is_hub_name
from srd.models.settings import HUB_NAME, SMOLLM2, ModelConfig
from srd.recipe.schema import Recipe
from srd.run.checks.recipe import check_evaluation, check_libraries, check_methods, serving_tiers
from srd.run.outline.costs import DataFacts, Facts, Phase, limit_for
from srd.run.outline.order import costs_of, planned
from srd.run.outline.sizes import Size, other_sizes, size_of, sizes_of, whole_size
from srd.tasks.base import Task, data_set_of, data_sets

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from srd.run.models import RecipeModels

#: An A100 at about half of its peak in 16 bit.
A100_FLOPS_PER_SECOND = 1.5e14
CONNECT_SECONDS = 3.0
#: What is there where a GPU can be used: torch is not asked on machines without.
GPU_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
#: The shipped recipes' models, for planning without a network.
KNOWN = Path(__file__).with_name("known.yaml")

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
    beside_bytes: int
    checkpoint_bytes: int
    kept_bytes: int
    devices: int
    flops_per_second: float
    notes: tuple[str, ...] = field(default=())
    tier_bytes: dict[str, int] = field(default_factory=dict)
    tier: str = "exact"
    other_teachers: tuple[Size, ...] = ()
    pairs_bytes: int = 0

    @property
    def flops(self) -> float:
        """Of all phases."""
        return math.fsum(phase.flops for phase in self.phases)

    @property
    def memory(self) -> float:
        """Bytes on one device in the phase that needs most."""
        return max(phase.memory for phase in self.phases)

    @property
    def disk(self) -> int:
        """Bytes that the run leaves there."""
        return self.kept_bytes + self.cache_bytes + self.beside_bytes + self.pairs_bytes

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


@functools.cache
def known_models() -> dict[str, dict[str, Any]]:
    """What is known of the shipped recipes' models: ``config`` for transformers, and ``size``."""
    return read_yaml(KNOWN)


def sizes_or_configs(recipe: Recipe, notes: list[str]) -> Sequence[PreTrainedConfig | Size]:
    """The models that are loaded here, of which all or none are configurations."""
    models, known = recipe.models_here, known_models()
    unknown = [model for model in models if str(model.model) not in known or _can_be_read(model)]
    loras = [each.lora for each in (*recipe.student_trainings, recipe.teacher.sft) if each and each.lora]
    if unknown or recipe.student.drop_layers or any(lora.targets for lora in loras):
        return [read_config(model, notes) for model in models]
    for model in models:
        _note_known(str(model.model), notes)
    return [Size(**known[str(model.model)]["size"]) for model in models]


def _is_on_hub(model: ModelConfig) -> bool:
    source = str(model.model)
    return "/" in source and not Path(source).expanduser().exists() and not source.endswith(".gguf")


def _can_be_read(model: ModelConfig) -> bool:
    """Whether a model's configuration is on this machine, or to be had from the hub."""
    if not _is_on_hub(model) or hub_is_reachable():
        return True
    return cached_config(model) is not None


def cached_config(model: ModelConfig) -> Path | None:
    """The configuration of a model of the hub that was fetched before; None where there is none."""
    name = str(model.model)
    if not (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=model.revision)
    return Path(found) if isinstance(found, str) else None


def _note_known(name: str, notes: list[str]) -> None:
    note = f"the hub cannot be reached: the dimensions of {name} are those this package knows"
    notes += [note] if note not in notes else []


def read_config(model: ModelConfig, notes: list[str]) -> PreTrainedConfig:
    """A model's configuration: from its folder, the local cache, the hub, or the table of the shipped recipes' models.

    Raises:
        UserError: it can be read nowhere.
    """
    from transformers import AutoConfig

    from srd.models.loading.guard import guarded, no_folder
    from srd.models.loading.loading import load_config
    from srd.models.loading.sources import resolve_source

    quiet_libraries()
    source = str(model.model)
    if _is_on_hub(model):
        resolve_source(source)
        with guarded(source):
            cached = cached_config(model)
        if cached is not None:
            # Code may be read, too, which need not lie beside what is there.
            return load_config(source, **model.found) if model.trust_remote_code else load_config(str(cached.parent))
        if not hub_is_reachable() and source in known_models():
            _note_known(source, notes)
            values = dict(known_models()[source]["config"])
            return AutoConfig.for_model(values.pop("model_type"), **values)
        if not hub_is_reachable():
            known = f", or one of the models that are known without a network; {nearest(source, known_models())}"
            raise UserError(
                f"model '{source}': {no_folder(source)}. The hub cannot be reached either, and there is no local copy "
                f"of its config.json. Give a local folder{'.' if Path(source).parent.is_dir() else known}"
            )
    return load_config(source, **model.found)


def read_data(recipe: Recipe, notes: list[str], encoder_decoder: bool, models: RecipeModels | None = None) -> DataFacts:
    """Count examples and tokens where the data and the tokenizer are at hand; else estimate them, and say so.

    Raises:
        UserError: the size of the data is not known, or the data is wrong.
    """
    sources = [source for source in (recipe.data.train, recipe.data.validation, recipe.data.test) if source]
    if not all(map(_is_local, sources)):
        return _estimated_data(recipe, notes)
    from srd.run.plan.counting import count_data

    quiet_libraries()
    named = str(recipe.models_here[-1].model)
    at_hand = Path(named).expanduser().exists() or named == SMOLLM2 or hub_is_reachable()
    counted = count_data(recipe, notes, encoder_decoder, models, has_tokenizer=at_hand)
    if isinstance(counted, DataFacts):
        return counted
    return _data_facts(recipe, *counted)


def _is_local(source: SourceConfig) -> bool:
    known = data_set_of(source)
    if known is not None and known.made:  # made from the running Python
        return True
    named = [path for path in source.paths if source.dataset or known is None]
    return bool(named) and not any(map(is_hub_name, named))


def _estimated_data(recipe: Recipe, notes: list[str]) -> DataFacts:
    """Sizes of the known data sets, which are not downloaded for a plan."""
    source = recipe.data.train
    task = data_set_of(source)
    if task is None or task.size is None:
        task = _by_hub_name(source.dataset or ", ".join(source.paths))
    assert task.size is not None
    counts, prompt, response = task.size
    notes.append(
        f"'{task.name}' is not read: {counts['train']:,} examples of about {prompt + response:.0f} tokens are assumed"
    )
    return _data_facts(recipe, dict(counts), prompt, response, source.limit)


def _by_hub_name(name: str) -> Task:
    """The data set of known size that a name on the hub is."""
    known = {task.name: task for task in data_sets().values() if task.size}
    by_hub = {task.home.repository: task for task in known.values() if task.home}
    if name not in by_hub:
        raise UserError(
            f"data.train: how large '{name}' is is not known before it is downloaded. Give a local file, or one of the "
            f"data sets whose size is known; {nearest(name, known)}"
        )
    return by_hub[name]


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
        from srd.run.checks.models import check_recipe
        from srd.run.models import RecipeModels
        from srd.run.parts.served import told_of_server

        models = RecipeModels(recipe)
        check_recipe(models)
        notes += told_of_server(models)
        return models
    check_evaluation(recipe)
    check_libraries(recipe)
    check_methods(recipe)
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
        if cached_config(named) is None and not hub_is_reachable():
            from srd.models.loading.guard import no_folder

            raise UserError(
                f"model '{name}': {no_folder(name)}. The hub cannot be reached either, and there is no copy of it "
                "here. Give a local folder."
            )


def _is_local_model(name: str) -> bool:
    if name == SMOLLM2 or not Path(name).expanduser().exists():
        return name == SMOLLM2
    from srd.models.loading.sources import split_adapter

    return Path(split_adapter(name)[0]).expanduser().exists()


def measured_flops_per_second() -> float:
    """What this machine does in a large matrix product: float32 on a CPU, half of bfloat16's peak on a GPU.

    Training comes near the former; on a GPU about half of the peak is what trainings of this kind reach.
    """
    left, share = _matrix()
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        product = left @ left
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return float(share * 2 * len(left) ** 3 / best)


def _matrix() -> tuple[Any, float]:
    """A matrix to multiply, where this machine computes, and the share of that speed that a training reaches."""
    if any(Path(driver).exists() for driver in GPU_DRIVERS):
        import torch

        if torch.cuda.is_available():
            return torch.ones(8192, 8192, dtype=torch.bfloat16, device="cuda"), 0.5
    return np.ones((512, 512), dtype=np.float32), 1.0


def requests_of(facts: Facts) -> list[str]:
    """What a plan says of the requests to a served teacher for its cache."""
    recipe, data = facts.recipe, facts.data
    if recipe.teacher.endpoint is None or not any(training.needs_teacher for training in recipe.student_trainings):
        return []
    top = f", the {recipe.cache.listed} likeliest at each token of the response" if recipe.cache.listed else ""
    texts = data.train * (2 if any(training.on_pairs for training in recipe.student_trainings) else 1)
    return [f"the server is asked about {many(texts, 'text')} of about {data.prompt + data.response:.0f} tokens{top}"]


def _told_of_sizes(facts: Facts) -> list[str]:
    """What a plan says of teachers that are all smaller than the student; the size of a served one is not known."""
    most, student = max(size.parameters for size in (facts.teacher, *facts.others)), facts.student.parameters
    if facts.recipe.teacher.endpoint is not None or most >= student:
        return []
    return [f"the teacher has fewer parameters ({most:,}) than the student ({student:,}): are the two swapped?"]


def make_plan(
    recipe: Recipe, *, devices: int = 1, flops_per_second: float = A100_FLOPS_PER_SECOND, data: DataFacts | None = None
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
    configs = sizes_or_configs(recipe, notes)
    teacher, student = sizes_of(recipe, configs)
    if data is None:
        models = check_what_is_at_hand(recipe, notes)
        data = read_data(recipe, notes, size_of(configs[0]).encoder_decoder, models)
    facts = Facts(recipe, teacher, student, data, devices, other_sizes(recipe, configs), whole_size(recipe, configs))
    notes += requests_of(facts) + _told_of_sizes(facts)
    steps = planned(recipe)
    phases = tuple(costs_of(steps, facts))
    caches = sum(phase.step == "cache" for phase in phases)
    if caches and not facts.cache_fits:
        caches = 0
        notes.append(
            f"the teacher cache would take {shown_bytes(facts.cache_bytes)}, more than cache.limit_gb "
            f"({recipe.cache.limit_gb:g}), so the teacher runs live; cache.limit_gb={limit_for(facts.cache_bytes)} "
            "keeps it"
        )
    serving = serving_tiers(recipe, "others" if data.teacher_tokens else "") if caches else []
    kept = math.fsum(phase.disk for phase in phases if phase.step not in ("cache", "pairs"))
    pairs = math.fsum(phase.disk for phase in phases if phase.step == "pairs")
    return Plan(
        recipe.name, teacher, student, facts.data, phases, facts.cache_bytes * caches,
        facts.beside_bytes(facts.tier, data.train) * caches,
        round(max(phase.scratch for phase in phases)), round(kept), devices,
        flops_per_second, tuple(notes), facts.bytes_of_tiers(serving), recipe.cache.tier,
        facts.others, round(pairs),
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
        told = f"{count(size.parameters)} parameters, {many(size.layers, 'layer')} of {size.hidden_size}"
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
        beside = f"{shown_bytes(plan.beside_bytes)} beside it (head, sample, index)"
        table.add_row("disk, cache", f"{shown_bytes(plan.cache_bytes)}, and {beside}: cache.tier={plan.tier}")
        sizes = (f"{name} {shown_bytes(size)}" for name, size in plan.tier_bytes.items())
        table.add_row("disk, tiers", f"{', '.join(sizes)}, all in all, of the tiers that serve this recipe")
    if plan.pairs_bytes:
        table.add_row("disk, pairs", f"{shown_bytes(plan.pairs_bytes)} of the teacher's states, with its head")
    table.add_row("disk, checkpoints", f"{shown_bytes(plan.checkpoint_bytes)} while a step works")
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
