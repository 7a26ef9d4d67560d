"""One measured system a process: ``python -m benchmarks.cases CASE '{"batch_size": 4, …}'`` prints one JSON line.

A process of its own gives each system its own peak of resident memory, and none a warm library of another.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import conventional, peers
from benchmarks.lengths import MAX_LENGTH, SEED
from benchmarks.workload import (
    TEACHER,
    Batches,
    StepClock,
    make_batches,
    make_student,
    padded_share,
    peak_memory,
    pydocs_sequences,
    shuffled,
    timed,
    token_count,
    with_teacher,
)
from srd.data.batching import Collator, EncodedExamples, LengthBatches, length_sorted_batches
from srd.models.generation import Decoding
from srd.models.head import HeadWeights
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.tokenizers.tokens import padding_id
from srd.training.batches import make_collator
from srd.training.cache.building import build_cache
from srd.training.cache.teacher_cache import TeacherCache
from srd.training.loss.response_loss import head_loss
from srd.training.loss.settings import LossSettings, TokenChoice
from srd.training.rollouts import OnPolicy
from srd.training.student_text.writing import Writing
from srd.training.teachers.cache import CachedTeacher
from srd.training.teachers.live import LiveTeacher
from srd.training.trainer import DistillTrainer

Result = dict[str, Any]
HIDDEN = 576  # of SmolLM2-135M, for the cases that measure the loss path alone


def _student(folder: str) -> Any:
    return load_model(str(Path(folder) / "student"), dtype="float32")


def _teacher(dtype: str = "float32") -> Any:
    return load_model(TEACHER, dtype=dtype).requires_grad_(False)


@functools.cache  # several cases of one process have the same
def _batches(folder: str, profile: str, batch_size: int, steps: int) -> tuple[Any, Batches]:
    tokenizer = load_tokenizer(str(Path(folder) / "student"))
    return tokenizer, make_batches(tokenizer, profile, batch_size, steps)


def student(folder: str) -> Result:
    """Make the student once for all cases."""
    make_student(Path(folder) / "student")
    return {}


def train_conventional(folder: str, profile: str, batch_size: int, steps: int) -> Result:
    """The conventional loop: cross-entropy and forward KL."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    rows = [[batches.examples[i] for i in step] for step in shuffled(batches)]
    seconds = conventional.train(_student(folder), _teacher(), rows, padding_id(tokenizer), 0.8, 1.0)
    padding = 1 - token_count(batches) / (steps * batch_size * MAX_LENGTH)
    return {"seconds": seconds, "padding": padding, "tokens": token_count(batches) / steps}


def train_trl_gkd(folder: str, profile: str, batch_size: int, steps: int) -> Result:
    """TRL's GKDTrainer off policy."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    order = shuffled(batches)
    rows = [[batches.examples[i] for i in step] for step in order]
    seconds = peers.off_policy_gkd(_student(folder), _teacher(), tokenizer, rows, padding_id(tokenizer))
    padding = padded_share(batches.examples.lengths, order[1:])
    return {"seconds": seconds, "padding": padding, "tokens": token_count(batches) / steps}


def train_trl_distillation(folder: str, profile: str, batch_size: int, steps: int, new_tokens: int) -> Result:
    """TRL's DistillationTrainer, on policy."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    rows = [[batches.examples[i] for i in step] for step in shuffled(batches)]
    return {"seconds": peers.on_policy_distillation(_student(folder), _teacher(), tokenizer, rows, new_tokens)}


def _run_trainer(model: Any, tokenizer: Any, batches: Batches, **options: Any) -> Result:
    """Train over exactly these steps with the project's own loop and its default optimizer."""
    from transformers import TrainingArguments

    from srd.training.settings import TrainingConfig

    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches.steps),
            per_device_train_batch_size=len(batches.steps[0]),
            learning_rate=1e-4,
            weight_decay=1e-2,
            max_grad_norm=1.0,
            optim=TrainingConfig().optimizer,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = DistillTrainer(model, arguments, processing_class=tokenizer, **options)
        trainer.add_callback(clock)
        trainer.batches.batches = lambda: batches.steps  # type: ignore[method-assign]
        trainer.train()
    steps = batches.steps[1:]
    padding = padded_share(batches.examples.lengths, steps)
    times = {"seconds": clock.seconds, "processor": clock.processor}
    return {**times, "padding": padding, "tokens": token_count(batches) / len(steps)}


def train_sft(folder: str, profile: str, batch_size: int, steps: int) -> Result:
    """Plain fine-tuning of the student through the same loop: the limit."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    return _run_trainer(_student(folder), tokenizer, batches, train_dataset=batches.examples, objective=LossSettings())


def train_ours(
    folder: str, profile: str, batch_size: int, steps: int, dtype: str = "float32", weight: float = 0.8
) -> Result:
    """Distillation with the warm cache that `build` has left; ``weight`` 0.8 adds cross-entropy like the others."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    cache = TeacherCache(_cache_folder(folder, profile, batch_size, dtype))
    return _run_trainer(
        _student(folder),
        tokenizer,
        batches,
        train_dataset=with_teacher(batches.examples, cache),
        objective=LossSettings("fkl", weight=weight),
        teacher=CachedTeacher(cache.head()),
    )


def train_tokens(folder: str, profile: str, batch_size: int, steps: int, share: float, by: str) -> Result:
    """Distillation with the warm cache and forward KL alone, at some positions only; a share of 1: at all."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    cache = TeacherCache(_cache_folder(folder, profile, batch_size, "float32"))
    return _run_trainer(
        _student(folder),
        tokenizer,
        batches,
        train_dataset=with_teacher(batches.examples, cache),
        objective=LossSettings("fkl", tokens=None if share == 1 else TokenChoice(share, by)),
        teacher=CachedTeacher(cache.head()),
    )


def train_ours_on_policy(folder: str, profile: str, batch_size: int, steps: int, new_tokens: int) -> Result:
    """Our gkd with the student writing every batch, the teacher live."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    return _run_trainer(
        _student(folder),
        tokenizer,
        batches,
        train_dataset=batches.examples,
        objective=LossSettings("fkl"),
        teacher=LiveTeacher(_teacher()),
        method=Writing(OnPolicy(1.0, SEED), Decoding(new_tokens, 1.0)),
    )


def _cache_folder(folder: str, profile: str, batch_size: int, dtype: str) -> Path:
    return Path(folder) / f"cache-{profile}-{batch_size}-{dtype}".replace(":", "-")


def build(folder: str, profile: str, batch_size: int, steps: int, dtype: str = "float32") -> Result:
    """Build the teacher cache of the measured examples; seconds per example, the head's file apart."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    model = _teacher(dtype)
    collator = make_collator(model, tokenizer)
    target = _cache_folder(folder, profile, batch_size, dtype)
    examples = batches.examples
    first = examples.subset([examples.ids[i] for i in batches.steps[0]])
    started = time.perf_counter()
    build_cache(target, lambda: model, first, collator, batch_size=batch_size)  # warms up, and writes the head
    once = time.perf_counter() - started
    rest = examples.subset([examples.ids[i] for step in batches.steps[1:] for i in step])
    started = time.perf_counter()
    # Its batches are the sampled steps again. Larger ones would span lengths that a whole data set has between them.
    build_cache(target, lambda: model, rest, collator, batch_size=batch_size)
    seconds = time.perf_counter() - started
    stored = sum(path.stat().st_size for path in target.glob("shard-*.safetensors"))
    count = sum(len(examples.responses[i]) for step in batches.steps for i in step)
    size = count * model.config.hidden_size * (4 if dtype == "float32" else 2)
    return {"seconds_per_example": seconds / len(rest), "seconds_once": once, "overhead": stored / size}


def reflect_conventional(folder: str, examples: int, batch_size: int, new_tokens: int) -> Result:
    """Reflection as published: two passes, padded to the longest, all scores kept."""
    return _reflection(folder, examples, batch_size, new_tokens, ours=False)


def reflect_ours(folder: str, examples: int, batch_size: int, new_tokens: int) -> Result:
    """Reflection in one pass."""
    return _reflection(folder, examples, batch_size, new_tokens, ours=True)


def _reflection(folder: str, examples: int, batch_size: int, new_tokens: int, *, ours: bool) -> Result:
    """SmolLM2 itself reflects: it ends its answers, as a student does that can follow instructions."""
    from srd.models.generation import decode_batch
    from srd.models.tokenizers.tokens import stop_token_ids

    tokenizer = load_tokenizer(TEACHER)
    model = load_model(TEACHER, tokenizer=tokenizer, dtype="float32")
    prompts, responses = (part[:examples] for part in pydocs_sequences(tokenizer))
    started = time.perf_counter()
    if ours:
        texts, losses = [""] * examples, [0.0] * examples
        for rows in length_sorted_batches([len(prompt) for prompt in prompts], batch_size):
            tokens, scores = decode_batch(
                model,
                [prompts[i] for i in rows],
                [str(i) for i in rows],
                Decoding(new_tokens),
                stop_token_ids(model, tokenizer),
                padding_id(tokenizer),
                width=len(tokenizer),
                references=[responses[i] for i in rows],
            )
            decoded = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for i, text, score in zip(rows, decoded, scores, strict=True):
                texts[i], losses[i] = text, score.mean
    else:
        rows = [{"prompt_ids": p, "response_ids": r} for p, r in zip(prompts, responses, strict=True)]
        texts, losses = conventional.reflect(model, tokenizer, rows, new_tokens, batch_size)
    return {"seconds": time.perf_counter() - started, "answers": texts, "losses": losses}


def rouge(pairs: int) -> Result:
    """ROUGE-L of pairs of 100 tokens: the rouge-score package and ours, on the same pairs."""
    from rouge_score.rouge_scorer import RougeScorer

    from srd.metrics.rouge import rouge_l_many

    words = " ".join(row["answer"] for row in _documentation()).split()
    random = np.random.default_rng(SEED)
    starts = random.integers(0, len(words) - 300, size=(pairs, 2))
    texts = [[" ".join(words[start : start + 100]) for start in pair] for pair in starts]
    predictions, references = [pair[0] for pair in texts], [pair[1] for pair in texts]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    started = time.perf_counter()
    theirs = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
    package = time.perf_counter() - started
    started = time.perf_counter()
    ours = rouge_l_many(predictions, [[reference] for reference in references])
    seconds = time.perf_counter() - started
    return {"package": package, "ours": seconds, "difference": float(np.abs(ours - np.array(theirs)).max())}


def _documentation() -> list[dict[str, str]]:
    from srd.tasks.pydocs import load_pydocs

    rows = load_pydocs()
    answer = next(name for name in ("answer", "output", "response") if name in rows[0])
    return [{"answer": row[answer]} for row in rows]


def ranking(rows: int) -> Result:
    """Rank so many rows."""
    import pyarrow as pa

    from srd.curation.ranking import rank

    random = np.random.default_rng(SEED)
    table = pa.table(
        {
            "id": [f"row-{i}" for i in range(rows)],
            "rouge_l": random.random(rows).round(4),
            "ce": random.random(rows),
        }
    )
    started = time.perf_counter()
    rank(table)
    return {"seconds": time.perf_counter() - started}


def data_path(examples: int, batch_size: int) -> Result:
    """An epoch without models: order, reading from a real cache, padding to tensors."""
    from srd.training.cache.building import write_shard
    from srd.training.cache.teacher_cache import example_key, shard_name

    random = np.random.default_rng(SEED)
    prompts = [random.integers(0, 49152, 72).tolist() for _ in range(examples)]
    responses = [random.integers(0, 49152, int(n)).tolist() for n in random.integers(8, 152, examples)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = [example_key(p, r) for p, r in zip(prompts, responses, strict=True)]
        states = torch.zeros(sum(map(len, responses)), HIDDEN)
        index = {"keys": keys, "lengths": [len(response) for response in responses]}
        write_shard(folder, shard_name(keys), {"hidden": states}, index)
        rows = {"id": [str(i) for i in range(examples)], "prompt_ids": prompts, "response_ids": responses}
        started = time.perf_counter()
        data = EncodedExamples(rows, TeacherCache(folder))
        collator = Collator(0)
        batches = LengthBatches(data.lengths, batch_size, seed=SEED)
        for batch in batches:
            collator(data.__getitems__(batch))
        seconds = time.perf_counter() - started
    padding = padded_share(data.lengths, batches.batches())
    return {"seconds": seconds, "per_step": seconds / len(batches), "padding": padding}


def loss_path(vocabulary: int, tokens: int, repeats: int) -> Result:
    """The loss alone, hidden states to gradients, beside the unfused formula; float32, hidden size of SmolLM2."""
    torch.manual_seed(SEED)
    weight = torch.nn.Parameter(0.05 * torch.randn(vocabulary, HIDDEN))
    teacher_weight = 0.05 * torch.randn(vocabulary, HIDDEN)
    hidden, teacher_hidden = torch.randn(tokens, HIDDEN, requires_grad=True), torch.randn(tokens, HIDDEN)
    targets, items = torch.randint(0, vocabulary, (tokens,)), torch.tensor(tokens)

    def run(settings: LossSettings) -> None:
        weight.grad = hidden.grad = None
        extra = {"teacher_hidden": teacher_hidden, "teacher_head": HeadWeights(teacher_weight)}
        options = extra if settings.objective else {}
        loss, _ = head_loss(hidden, HeadWeights(weight), targets, settings, items, **options)
        loss.backward()

    def unfused() -> None:
        weight.grad = hidden.grad = None
        student_logits, teacher_logits = (hidden @ weight.T)[None], (teacher_hidden @ teacher_weight.T)[None]
        loss = 0.2 * conventional.cross_entropy_loss(student_logits, targets[None])
        loss = loss + 0.8 * conventional.forward_kl_loss(student_logits, teacher_logits, targets[None], 1.0)
        loss.backward()

    before = peak_memory()
    cross_entropy = timed(lambda: run(LossSettings()), repeats)
    ours = timed(lambda: run(LossSettings("fkl", weight=0.8)), repeats)
    grown = peak_memory() - before
    theirs = timed(unfused, repeats)
    return {
        "cross_entropy": cross_entropy,
        "ours": ours,
        "unfused": theirs,
        "memory": grown,
        "unfused_memory": peak_memory() - before,
    }


def profile_step(folder: str, profile: str, batch_size: int, steps: int) -> Result:
    """Where the time of a distillation step goes, by kind of work (shares of the profiled processor time)."""
    tokenizer, batches = _batches(folder, profile, batch_size, steps)
    cache = TeacherCache(_cache_folder(folder, profile, batch_size, "float32"))
    options = {"objective": LossSettings("fkl", weight=0.8), "teacher": CachedTeacher(cache.head())}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        _run_trainer(
            _student(folder), tokenizer, batches, train_dataset=with_teacher(batches.examples, cache), **options
        )
    events = recorded.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    kinds = {
        "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"),
        "attention": (
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        ),
        "softmax and exp": ("aten::_log_softmax", "aten::exp", "aten::exp_"),
        "AdamW": ("aten::_fused_adamw_",),
        "zeroing memory": ("aten::fill_", "aten::zero_"),
    }
    shares = {
        kind: sum(event.self_cpu_time_total for event in events if event.key in names) / total
        for kind, names in kinds.items()
    }
    return {"shares": {**shares, "everything else": 1 - sum(shares.values())}}


CASES: dict[str, Callable[..., Result]] = {
    function.__name__: function
    for function in (
        student, build, train_conventional, train_trl_gkd, train_trl_distillation, train_sft, train_ours,
        train_ours_on_policy, train_tokens, reflect_conventional, reflect_ours, rouge, ranking, data_path, loss_path,
        profile_step,
    )
}  # fmt: skip


def main(name: str, arguments: str) -> None:
    """Run one case and print its result, the only line on standard output."""
    standard_output = os.dup(1)
    os.dup2(2, 1)  # libraries that print go to standard error
    result = CASES[name](**json.loads(arguments))
    result["memory_peak"] = peak_memory()
    os.write(standard_output, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
