"""What a step costs, in numbers: passes, tokens, floating-point operations, memory and disk.

Counting rules:

- A forward pass over a token takes 2 floating-point operations (FLOPs) a parameter of the blocks, and 2 for each of the
  output head's at response positions; a backward pass takes twice that, and once that where the weights are frozen
  (LoRA). Attention over the context is left out: at 512 tokens it is a few per cent.
- A generated token takes one forward pass. Answers are assumed as long as the references.
- A training reads its validation rows each time that it validates, and answers them where ROUGE-L chooses.
- Activations take 34 bytes a token, layer and unit of width in 16 bit, twice that in 32 bit (Korthikanti et al. 2022,
  without the attention matrices, which fused kernels never write).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from srd.base.limits import CHUNK_BYTES
from srd.data.messages import owners_of
from srd.recipe.schema import Recipe
from srd.run.folder import UNCLEANED
from srd.run.outline.sizes import Size
from srd.training.checkpoints import needed_disk
from srd.training.settings import TrainingConfig, steps_between_validations, steps_per_epoch
from srd.training.tiers.base import BYTES, Tier, make_tier, stored_dtype

if TYPE_CHECKING:  # a plan is made without this library, where the models are known
    import datasets

#: Bytes a token, layer and unit of width that training keeps for the backward pass, in 16 bit; and with checkpointing.
ACTIVATION_BYTES, CHECKPOINTED_BYTES = 34, 2
#: Of an example's place in a cache, in JSON: its key, its length, where the plan has it.
INDEX_BYTES = 60
ANSWER_BYTES = 29  # of a token id and its log-probability, as what a served teacher answers is kept


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
        teacher_tokens: `response_tokens` in the teacher's tokens where these are others; 0: they are the same.
        owned: The share of the response tokens that each of several teachers is read for, where each has its rows and
            they are known.
    """

    train: int
    validation: int
    test: int
    prompt: float
    response: float
    response_tokens: int
    exact: bool
    teacher_tokens: int = 0
    owned: tuple[float, ...] = ()


def shares_of_teachers(recipe: Recipe, rows: datasets.Dataset, tokens: Sequence[int]) -> tuple[float, ...]:
    """The share of the tokens of each teacher's rows, where each of several has its own; else nothing."""
    if not recipe.teach_by_row:
        return ()
    sums = [0] * len(recipe.teachers)
    owners = owners_of(rows.select_columns(["extra"]), [each.title for each in recipe.teachers])
    for owner, count in zip(owners, tokens, strict=True):
        sums[owner] += count
    return tuple(count / sum(sums) for count in sums)


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
        disk: Bytes that it leaves behind.
        scratch: Bytes that it takes while it works.
        refreshes: How often the student writes ahead of its training.
        written: Tokens that it writes then.
        refresh_bytes: Bytes of the teacher's states for them at a time, part of ``scratch``.
    """

    name: str
    stages: tuple[StagePlan, ...] = ()
    teacher_passes: float = 0.0
    student_passes: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    scratch: float = 0.0
    refreshes: int = 0
    written: float = 0.0
    refresh_bytes: float = 0.0

    @property
    def step(self) -> str:
        """Which step it is, whether made once or a second time."""
        return self.name.removesuffix(UNCLEANED)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return sum(stage.steps for stage in self.stages)


@dataclass(frozen=True)
class Facts:
    """What the cost of a step is worked out from.

    Attributes:
        recipe: The recipe.
        teacher: The teacher in numbers.
        student: The student in numbers.
        data: The training data in numbers.
        devices: Data-parallel devices.
        others: Further teachers in numbers.
        whole: The student before it loses layers, in numbers, which reads rows for the cleaning; None: it loses none.
    """

    recipe: Recipe
    teacher: Size
    student: Size
    data: DataFacts
    devices: int = 1
    others: tuple[Size, ...] = ()
    whole: Size | None = None

    @property
    def prompt(self) -> float:
        """Tokens of all prompts."""
        return self.data.prompt * self.data.train

    @property
    def response(self) -> float:
        """Tokens of all responses."""
        return self.data.response * self.data.train

    @property
    def dtypes(self) -> list[str]:
        """The precision of each teacher: as asked for, else as saved; one that was fine-tuned whole is in 32 bit."""
        sft = self.recipe.teacher.sft
        saved = ["float32" if sft is not None and sft.lora is None else size.dtype for size in self.teachers]
        wanted = [each.dtype for each in self.recipe.all_teachers]
        return [own if asked == "auto" else asked for asked, own in zip(wanted, saved, strict=True)]

    @property
    def tier(self) -> Tier:
        """What the cache keeps."""
        return cache_tier(self.recipe, self.dtypes[0])

    @property
    def teachers(self) -> tuple[Size, ...]:
        """All teachers in numbers."""
        return (self.teacher, *self.others)

    @property
    def joined(self) -> Size:
        """The teacher as training meets it: the first, with the heads of all."""
        return replace(self.teacher, head=sum(size.head for size in self.teachers))

    @property
    def shares(self) -> list[float]:
        """The share of the text that each teacher is read for; by the row, as much for each where it is not known."""
        if not self.recipe.teach_by_row:
            return [1.0] * len(self.teachers)
        return list(self.data.owned) or [1 / len(self.teachers)] * len(self.teachers)

    def width_of(self, teacher: Size) -> int:
        """Token ids that get a logit of a teacher: those that the student has, too, unless it has tokens of its own."""
        own = (teacher,) if self.data.teacher_tokens else (*self.teachers, self.student)
        return min(size.vocabulary for size in own)

    def tier_bytes(self, tier: Tier) -> int:
        """What a tier keeps of all responses takes, of all teachers."""
        tokens = self.data.teacher_tokens or self.data.response_tokens
        each = [round(tokens * share) for share in self.shares]
        sizes = [tier.token_bytes(size.hidden_size, self.width_of(size)) for size in self.teachers]
        return sum(count * size for count, size in zip(each, sizes, strict=True))

    def beside_bytes(self, tier: Tier, texts: float) -> int:
        """What lies beside what is kept of so many texts: heads, tokens that are kept exact, where each text's lie."""
        found = 0.0
        served = self.recipe.teacher.endpoint is not None  # which has no states to give
        for size, dtype, share in zip(self.teachers, self.dtypes, self.shares, strict=True):
            found += INDEX_BYTES * share * texts
            if not served:
                head = size.head * self.width_of(size) / size.vocabulary * tier.with_head
                found += head * bytes_of(dtype) + tier.sample_bytes(size.hidden_size, bytes_of(dtype))
        return round(found)

    @property
    def cache_bytes(self) -> int:
        """What is kept of all responses takes."""
        return self.tier_bytes(self.tier)

    @property
    def journal_bytes(self) -> int:
        """What the answers of a server take, until the cache is made of them."""
        served = self.recipe.teacher.endpoint is not None
        return served * (self.recipe.cache.listed + 1) * ANSWER_BYTES * self.data.response_tokens

    def states_bytes(self, ahead: WrittenAhead) -> float:
        """What the states of the answers that a student has written ahead take, with what lies beside them."""
        exact, tokens = cache_tier(self.recipe, self.dtypes[0], "exact"), ahead.at_once * ahead.tokens / ahead.rows
        per_token = exact.token_bytes(self.teacher.hidden_size, self.teacher.vocabulary)
        return tokens * per_token + self.beside_bytes(exact, ahead.at_once)

    def bytes_of_tiers(self, names: Sequence[str]) -> dict[str, int]:
        """What each of these tiers would take, with what lies beside it."""
        tiers = {name: cache_tier(self.recipe, self.dtypes[0], name) for name in names}
        return {name: self.tier_bytes(tier) + self.beside_bytes(tier, self.data.train) for name, tier in tiers.items()}

    @property
    def cache_fits(self) -> bool:
        """Whether the recipe allows a cache of that size."""
        return self.cache_bytes <= self.recipe.cache.limit_gb * 1e9

    @property
    def pairs_bytes(self) -> int:
        """What is kept of both texts of each prompt takes, which are no longer than they may become."""
        longest = [each.method.longest_text() for each in self.recipe.student_trainings if each.on_pairs]
        shorter = min(1.0, max((length or math.inf for length in longest), default=math.inf) / self.data.response)
        return round(2 * shorter * self.cache_bytes)

    @property
    def pairs_fit(self) -> bool:
        """Whether the recipe allows a cache of that size."""
        return self.pairs_bytes <= self.recipe.cache.limit_gb * 1e9


def cache_tier(recipe: Recipe, running_dtype: str, name: str | None = None) -> Tier:
    """What a recipe's cache keeps, of a teacher that runs in a precision; ``name``: another tier than the recipe's."""
    cache, temperatures = recipe.cache, (at for each in cached_trainings(recipe) for at in temperatures_of(each))
    dtype = stored_dtype(running_dtype) if cache.dtype == "auto" else cache.dtype
    return make_tier(name or cache.tier, dtype=dtype, top_k=cache.top_k, temperatures=tuple(temperatures))


def cached_trainings(recipe: Recipe) -> list[TrainingConfig]:
    """The trainings that a cache serves, where there is one."""
    return [each for each in recipe.student_trainings if each.caches_references]


def alignment_of(recipe: Recipe, training: TrainingConfig) -> Literal["auto", "prefix", "chunks", "identical"]:
    """How a teacher with tokens of its own teaches: by chunks alone where its cache has no distributions."""
    alone = training.caches_references and not cache_tier(recipe, "float32").whole
    return "chunks" if alone and training.alignment == "auto" else training.alignment


def temperatures_of(training: TrainingConfig) -> list[float]:
    """The temperature of each stage of a training."""
    return training.curriculum.schedule("temperature") if training.curriculum else [training.temperature]


def stages_of(training: TrainingConfig, examples: int) -> tuple[StagePlan, ...]:
    """The stages of a training on so many examples. Passes are epoch equivalents: 1 is once over all the data."""
    sizes = training.curriculum.sizes(examples) if training.curriculum else [examples]
    texts = 2 if training.on_pairs else 1  # of each prompt
    return tuple(
        StagePlan(
            size * texts,
            size / examples * training.epochs,
            max(1, math.ceil(steps_per_epoch(size * texts, training.batch_size) * training.epochs)),
        )
        for size in sizes
    )


@dataclass(frozen=True)
class WrittenAhead:
    """What a student writes ahead of its training, over all stages.

    Attributes:
        refreshes: How often.
        rows: Answers, each of them read once by student and teacher.
        tokens: Of these.
        at_once: Answers whose states the teacher's cache holds at a time, at most.
    """

    refreshes: int = 0
    rows: float = 0.0
    tokens: float = 0.0
    at_once: float = 0.0


def written_ahead(training: TrainingConfig, stages: tuple[StagePlan, ...], response: float) -> WrittenAhead:
    """What a student writes ahead; ``auto``, which depends on the training, counts as once an epoch."""
    every, method = training.method.refreshed(), training.method
    if not training.writes_ahead:
        return WrittenAhead()
    refreshes, rows, at_once = 0, 0.0, 0.0
    for stage in stages:
        epoch = steps_per_epoch(stage.examples, training.batch_size)
        steps = {"stage": stage.steps, "epoch": epoch, "auto": epoch}[every] if isinstance(every, str) else every
        answers = method.written_share() * min(stage.examples, min(steps, stage.steps) * training.batch_size)
        between = steps_between_validations(stage.examples, training)  # checkpoints, at which older states go
        held = 1 if steps % between == 0 else 2 if steps > between else between // steps + 1
        count = math.ceil(stage.steps / steps)
        refreshes, rows, at_once = refreshes + count, rows + count * answers, max(at_once, min(held, count) * answers)
    return WrittenAhead(refreshes, rows, rows * min(response, method.longest_text() or response), at_once)


def head_shares(training: TrainingConfig, stages: tuple[StagePlan, ...]) -> tuple[float, float, float]:
    """At which share of the response positions a training asks its heads, where it chooses some (``training.tokens``).

    The student's head with gradients, the same once before, to choose positions, and the teacher's. Cross-entropy has
    all positions, so that the student's head works at all of them in a stage whose weight leaves it some.
    """
    choice = training.tokens
    if choice is None:
        return 1.0, 0.0, 1.0
    weights = training.curriculum.schedule("weight") if training.curriculum else [training.weight]
    passes = [stage.passes for stage in stages]
    each = [choice.share if weight == 1 else 1.0 for weight in weights]
    learnt = math.fsum(share * part for share, part in zip(each, passes, strict=True)) / math.fsum(passes)
    return learnt, float(choice.by != "random"), choice.share + (choice.by == "teacher_gap")


def training_phase(name: str, training: TrainingConfig, facts: Facts, live: bool, kept: str = "student") -> Phase:
    """A training: the student forward and backward, and the teacher where it runs live or the student writes text.

    Args:
        name: The step's.
        training: Its settings.
        facts: What it is worked out from.
        live: Whether a teacher that it needs runs in every pass, and not from a cache.
        kept: Which model it trains: student or teacher.
    """
    data, teacher = facts.data, facts.joined
    model = teacher if kept == "teacher" else facts.student
    stages = stages_of(training, data.train)
    passes = math.fsum(stage.passes for stage in stages) * (2 if training.on_pairs else 1)
    forward = model.forward(facts.prompt, facts.response)
    factor = 2.0 if training.lora else 3.0
    factor += 1.0 if training.gradient_checkpointing else 0.0
    learnt, asked, taught = head_shares(training, stages)
    flops = passes * (factor * forward + 2 * model.head * facts.response * (asked - factor * (1 - learnt)))
    runs_teacher = training.needs_teacher and live
    if training.needs_teacher:  # its logits come from its states
        flops += passes * 2 * teacher.head * facts.response * taught
    if runs_teacher:
        flops += passes * replace(teacher, head=0).forward(facts.prompt, facts.response)
    ahead = written_ahead(training, stages, data.response)
    if training.writes_ahead:  # written, read once by the student, and by the teacher unless it is live
        once = 2 * forward + (0.0 if live else teacher.forward(facts.prompt, facts.response))
        flops += ahead.rows / data.train * once
    else:
        flops += passes * training.method.written_share() * forward  # every written token is one forward pass
    flops += validated(training, stages, data) * model.forward(data.prompt, data.response)
    held = facts.states_bytes(ahead) if ahead.rows and not live else 0.0
    trained = model.trained(training)
    final = model.parameters * (bytes_of(model.dtype) if training.lora else 4)
    return Phase(
        name,
        stages,
        teacher_passes=passes if runs_teacher or kept == "teacher" else ahead.rows / data.train,
        student_passes=passes if kept == "student" else 0.0,
        tokens=passes * (facts.prompt + facts.response),
        flops=flops,
        memory=training_memory(training, model, teacher, data, live, facts.devices),
        disk=4 * len(stages) * trained + final,
        scratch=needed_disk(trained) + held + (8 * trained if training.keeps_optimizer else 0),  # two moments
        refreshes=ahead.refreshes,
        written=ahead.tokens,
        refresh_bytes=held,
    )


def validated(training: TrainingConfig, stages: tuple[StagePlan, ...], data: DataFacts) -> int:
    """Validation rows that a training goes over, once for each time that one is read or answered."""
    times = sum(math.ceil(stage.steps / steps_between_validations(stage.examples, training)) for stage in stages)
    return times * data.validation * (2 if training.select_by == "rouge_l" else 1)


def disk_to_train(size: Size, training: TrainingConfig) -> int:
    """Bytes that a training alone needs: checkpoints and kept models; beside adapters, which are small, one merged."""
    merged = size.parameters * bytes_of(size.dtype) if training.lora else 0
    return needed_disk(size.trained(training)) + merged


def training_memory(
    training: TrainingConfig, student: Size, teacher: Size, data: DataFacts, live: bool, devices: int
) -> float:
    """Bytes on each of ``devices`` data-parallel devices, all of which hold the whole student.

    Weights (4 bytes, trainable ones with gradient and two moments: 16), activations of a micro-batch of the longest
    examples, one chunk of logits, and the teacher: its head where there is a cache, all of it where it runs live.
    """
    frozen = student.parameters * bytes_of(student.dtype) if training.lora else 0
    weights = float(frozen + 16 * student.trained(training))
    per_device = max(1, training.batch_size // devices)
    micro = min(training.micro_batch_size or per_device, per_device)
    length = min(1.5 * (data.prompt + data.response), 4096)  # batches hold examples of similar, above-average length
    kept = CHECKPOINTED_BYTES if training.gradient_checkpointing else ACTIVATION_BYTES
    activations = micro * length * student.layers * student.hidden_size * kept
    activations *= 2 if training.precision == "float32" else 1
    held = 0.0
    if training.needs_teacher:
        held = (teacher.parameters if live else teacher.head) * bytes_of(teacher.dtype)
    return weights + activations + 3 * CHUNK_BYTES + held


def bytes_of(dtype: str) -> int:
    """Bytes of one value; 4 where the precision is not known."""
    return BYTES.get(dtype, 4)


def inference_memory(size: Size, facts: Facts) -> float:
    """Bytes of a model that reads or writes: weights, and keys and values of a batch."""
    generation = facts.recipe.generation
    length = facts.data.prompt + generation.max_new_tokens
    cache = 2 * generation.batch_size * length * size.layers * size.keys * bytes_of(size.dtype)
    return size.parameters * bytes_of(size.dtype) + cache


def one_pass(name: str, reader: Size, facts: Facts, **costs: Any) -> Phase:
    """A step in which one model goes over all the training data once."""
    flops, tokens = reader.forward(facts.prompt, facts.response), facts.prompt + facts.response
    return Phase(name, (), tokens=tokens, flops=flops, memory=inference_memory(reader, facts), **costs)


def limit_for(cache: int) -> str:
    """The ``cache.limit_gb`` that allows a cache of so many bytes."""
    return f"{math.ceil(cache / 1e6) / 1000:g}"
