"""Evaluation: answers of several models on several tasks and seeds, their scores, and paired comparisons."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from srd.base import parallel
from srd.base.code import HANDED
from srd.base.files import atomic_folder, discard, fingerprint, link, read_json, write_json
from srd.base.locks import by_turns
from srd.base.remedies import warn
from srd.base.version import VERSION
from srd.data.encoding import Encoder
from srd.evaluation.predictions import (
    COMPARISONS,
    begin_writing,
    finish,
    predictions_path,
    read_answers,
    read_scores,
    refuse_folders,
    scores_path,
    state_of,
    unfinished,
    write_answers,
)
from srd.metrics.common import FloatArray
from srd.metrics.scripts import BY_SCRIPT, COMPARE_WITHIN
from srd.metrics.statistics import paired_bootstrap
from srd.models.generation import Decoding, generate
from srd.sandbox.outside import Permission
from srd.tasks.base import Predictions, Task, get_task

SHARED_ANSWERS = "answers.jsonl"
TURNS = ".turns"  # runs of a sweep that work side by side give the same answers one at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """A task with its examples and the decoding that this evaluation wants.

    Attributes:
        key: What it is called in ``metrics.json``: the task's name, or ``test`` for a run's own test split.
        task: Scores the answers.
        examples: Rows of the example schema with what the task's scoring needs beside them.
        decoding: How tokens are chosen; its seed is replaced by each of ``seeds``.
        seeds: One answer to every prompt for each of them; greedy decoding needs one only.
        template: The prompt template; None: the one that the model's encoder has.
        samples: Answers to every prompt and seed, for tasks that score several at once (pass@k).
    """

    key: str
    task: Task
    examples: datasets.Dataset
    decoding: Decoding
    seeds: tuple[int, ...]
    template: str | None = None
    samples: int = 1


def read_benchmark(
    name: str,
    path: str | None = None,
    *,
    label: str | None = None,
    limit: int | None = None,
    template: str | None = None,
    seeds: tuple[int, ...] | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    samples: int = 1,
    allow_code_execution: Permission = False,
) -> Benchmark:
    """Read a named task's examples that can be judged. Decoding and seeds that are None here are the task's own.

    A task that decodes greedily uses its first seed only. With ``template`` None a model is asked by the template of
    its model: a student by the one that it was trained with.
    """
    task = get_task(name)
    own = task.decoding
    heat = own.temperature if temperature is None else temperature
    wanted = seeds or tuple(own.seeds)
    examples = task.examples(Path(path).expanduser() if path else None, limit)
    if task.runs_code:
        find = partial(task.judgeable, examples, allow_code_execution=allow_code_execution)
        examples = examples.select(parallel.on_main(find))
    if task.reading(examples):
        warn(log, f"{label or name}: {BY_SCRIPT}", COMPARE_WITHIN)
    return Benchmark(
        label or name,
        task,
        examples,
        Decoding(max_new_tokens or own.max_new_tokens, heat, own.top_p),
        wanted if heat > 0 else wanted[:1],
        template,
        samples,
    )


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that is evaluated.

    Attributes:
        name: What it is called in ``metrics.json``.
        identity: Fingerprint of its weights and of how prompts become tokens; answers of the same are kept.
        load: Gives ``(model, encoder)``; called only when an answer is missing.
        template: What that encoder frames prompts by, where a benchmark names no template.
    """

    name: str
    identity: str
    load: Callable[[], tuple[Any, Encoder]]
    template: str = ""


def evaluate(
    evaluated_models: Sequence[EvaluatedModel],
    benchmarks: Sequence[Benchmark],
    folder: Path,
    *,
    batch_size: int = 32,
    scoring: dict[str, Any] | None = None,
    shared: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Let models answer benchmarks, score the answers, and keep both.

    Answers lie in ``folder/predictions/<model>.<task>.<seed>.jsonl`` as ``{"id", "text", "<metric>": 0..1}`` (of
    several samples the text is a list) and are made again only when the model, the examples or the decoding have
    changed, or the files have; where only the scoring has, they are scored again. Of a file that is not whole every
    finished batch is kept. What earlier evaluations have left in the folder is removed.

    Args:
        evaluated_models: The models.
        benchmarks: What they answer.
        folder: The run's ``evaluation`` folder.
        batch_size: Prompts at once.
        scoring: Further arguments of the tasks' ``score`` (permission to run code).
        shared: Folder of answers that several runs have in common, such as the teacher's in a sweep.
        progress: Called with a title, and how many prompts of all models, tasks and seeds are done and to do.

    Returns:
        ``{model: {task: {metric: {"mean", "std", "seeds"}}}}`` in percent, as written to ``folder/metrics.json``. The
        standard deviation is the sample's, over seeds; 0 for one seed.

    Raises:
        UserError: a folder stands where a file is to go.
    """
    plan = [
        (evaluated, benchmark, seed, predictions_path(folder, evaluated.name, benchmark.key, seed))
        for evaluated in evaluated_models
        for benchmark in benchmarks
        for seed in benchmark.seeds
    ]
    paths = [path for *_, path in plan]
    parallel.on_main(partial(refuse_folders, folder, paths))
    by_seed = _answer_all(plan, batch_size, scoring or {}, shared, progress)
    results: dict[str, Any] = {}
    details: dict[str, Any] = {}
    frames: dict[str, dict[str, str]] = {}
    for evaluated, benchmark in itertools.product(evaluated_models, benchmarks):
        scores = by_seed[evaluated.name, benchmark.key]
        results.setdefault(evaluated.name, {})[benchmark.key] = summarise(scores)
        details[benchmark.key] = describe(benchmark, next(iter(scores.values())).get("details", {}))
        frames.setdefault(benchmark.key, {})[evaluated.name] = benchmark.template or evaluated.template
    if parallel.is_main():
        finish(folder, paths, results, {"tasks": details, "templates": frames, "versions": versions()})
    return results


def _answer_all(
    plan: list[tuple[EvaluatedModel, Benchmark, int, Path]], batch_size: int, scoring: dict[str, Any],
    shared: Path | None, progress: Callable[[str, int, int], None] | None,
) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:  # fmt: skip
    """Make and score the answers that are missing, a model at a time; the scores by model, benchmark and seed."""
    asked = {benchmark.key: benchmark for _, benchmark, *_ in plan}
    contents = {key: _content(benchmark) for key, benchmark in asked.items()}
    scorers = {key: _scorer(benchmark) for key, benchmark in asked.items()}
    by_seed: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    total = sum(len(benchmark.examples) * benchmark.samples for _, benchmark, *_ in plan)
    before = 0  # prompts of what is done
    for evaluated, parts in itertools.groupby(plan, key=lambda part: part[0]):
        loaded: tuple[Any, Encoder] | None = None
        for _, benchmark, seed, path in parts:
            question = fingerprint(
                evaluated.identity, benchmark.template, contents[benchmark.key], asdict(benchmark.decoding), seed,
                batch_size, benchmark.samples,
            )  # fmt: skip
            identity, batches = fingerprint(question, scorers[benchmark.key]), unfinished(path, question)
            with by_turns(shared / TURNS / identity) if shared and parallel.is_main() else nullcontext():
                if not parallel.on_main(partial(_has_answers, path, identity, shared)):
                    texts = parallel.on_main(partial(_texts, path, question))
                    if texts is None:
                        loaded = loaded or evaluated.load()
                        title = f"{evaluated.name} on {benchmark.key}, seed {seed}"
                        tell = progress and partial(_tell, progress, title, before, total)
                        texts = _answer(loaded, benchmark, seed, batch_size, batches, tell)
                    _write_predictions(path, benchmark, texts, (question, identity), scoring)
                    _give(path, identity, shared)
            parallel.barrier()
            parallel.on_main(partial(discard, batches))
            before += len(benchmark.examples) * benchmark.samples
            by_seed.setdefault((evaluated.name, benchmark.key), {})[seed] = read_json(scores_path(path))
        del loaded
    return by_seed


def _content(benchmark: Benchmark) -> str:
    """Hash of what is asked and expected."""
    examples, task = benchmark.examples, benchmark.task
    return fingerprint(task.name, {name: list(examples[name]) for name in examples.column_names})


def _scorer(benchmark: Benchmark) -> str:
    """Hash of how answers are scored: by the code of who has registered the task, or by this version of srd."""
    task, handed = benchmark.task, HANDED.get(("task", benchmark.task.name))
    code = [VERSION, *(handed.code if handed else ())]
    return fingerprint(type(task).__qualname__, task.title, *task.reading(benchmark.examples).values(), *code)


def _has_answers(path: Path, identity: str, shared: Path | None) -> bool:
    """Whether the answers are here, or could be taken from another run. For the main process."""
    state = state_of(path, identity)
    if state == "damaged":
        log.info("%s or its scores were changed since they were written, or are missing: answered again", path)
    return state == "kept" or _taken(path, identity, shared)


def _texts(path: Path, question: str) -> Predictions | None:
    """The answers to the same question that lie here, scored in another way. For the main process."""
    known = (read_scores(path) or {}).get("question") == question
    return [row["text"] for row in read_answers(path) or ()] if known else None


def _taken(path: Path, identity: str, shared: Path | None) -> bool:
    """Take answers that another run has got from the same model to the same prompts, if there are any."""
    place = None if shared is None else shared / identity / SHARED_ANSWERS
    if place is None or state_of(place, identity) != "kept":
        return False
    begin_writing(path)
    link(place, path)
    link(scores_path(place), scores_path(path))
    return True


def _give(path: Path, identity: str, shared: Path | None) -> None:
    """Offer answers to other runs."""
    if shared is None or not parallel.is_main():
        return
    with atomic_folder(shared / identity) as unfinished:
        link(path, unfinished / SHARED_ANSWERS)
        link(scores_path(path), scores_path(unfinished / SHARED_ANSWERS))


def _tell(progress: Callable[[str, int, int], None], title: str, before: int, total: int, done: int, _: int) -> None:
    """Say how many prompts of all models, tasks and seeds are answered, ``done`` of this part of them."""
    progress(title, before + done, total)


def _answer(
    loaded: tuple[Any, Encoder], benchmark: Benchmark, seed: int, batch_size: int, folder: Path,
    progress: Callable[[int, int], None] | None,
) -> Predictions:  # fmt: skip
    """Let a model answer: a text for every example, or a list of texts where several samples are wanted.

    ``folder`` keeps every finished batch.
    """
    model, encoder = loaded
    if benchmark.template is not None:
        encoder = encoder.with_template(benchmark.template)
    prompts, _, _ = encoder.prompts(list(benchmark.examples))
    numbers = range(benchmark.samples)
    prompts = [prompt for prompt in prompts for _ in numbers]
    # A sample's id is the stream of random numbers that it draws from; the first is what a single one would be.
    ids = [f"{name}#{number}" if number else name for name in benchmark.examples["id"] for number in numbers]
    texts = generate(
        model,
        encoder.tokenizer,
        prompts,
        ids,
        replace(benchmark.decoding, seed=seed),
        batch_size=batch_size,
        progress=progress,
        folder=folder,
    )
    if benchmark.samples == 1:
        return texts
    return [texts[start : start + benchmark.samples] for start in range(0, len(texts), benchmark.samples)]


def _write_predictions(
    path: Path, benchmark: Benchmark, texts: Predictions, identities: tuple[str, str], scoring: Any
) -> None:
    """Score the answers and keep both, with what stands for the question, and for question and scoring."""
    if not parallel.is_main():
        return
    scores = benchmark.task.scored(texts, benchmark.examples, **scoring)
    values = {name: [float(value) for value in own] for name, own in scores.per_example.items()}
    rows = [
        {"id": name, "text": text, **{metric: own[index] for metric, own in values.items()}}
        for index, (name, text) in enumerate(zip(benchmark.examples["id"], texts, strict=True))
    ]
    kept = {"metrics": scores.metrics, "per_example": values, "details": scores.details, "primary": scores.primary}
    question, identity = identities
    write_answers(path, rows, {"question": question, **kept}, identity)


def summarise(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every metric, in percent."""
    summary = {}
    for metric in next(iter(by_seed.values()))["metrics"]:
        values = {seed: 100 * scores["metrics"][metric] for seed, scores in by_seed.items()}
        numbers = list(values.values())
        summary[metric] = {
            "mean": float(np.mean(numbers)),
            "std": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0,
            "seeds": {str(seed): value for seed, value in values.items()},
        }
    return summary


def describe(benchmark: Benchmark, details: dict[str, Any]) -> dict[str, Any]:
    """How a task's scores came about."""
    decoding = {name: value for name, value in asdict(benchmark.decoding).items() if name != "seed"}
    return {
        "title": benchmark.task.title,
        "examples": len(benchmark.examples),
        "decoding": decoding,
        "samples": benchmark.samples,
        "seeds": list(benchmark.seeds),
        "scoring": details,
    }


@cache
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "rapidfuzz", "sacrebleu")
    }


def compare(folder: Path, models: Sequence[str], benchmarks: Sequence[Benchmark], against: str) -> list[dict[str, Any]]:
    """Compare one model with each of the others by each task's primary metric: the difference of their means.

    The interval is from a paired bootstrap over examples; the score of an example is its mean over the seeds. A corpus
    metric (BLEU) is no mean over examples and has none, nor has a single example: it would always be drawn. Returns
    rows ``{"a", "b", "task", "metric", "difference", "low", "high"}`` in percentage points (95 % interval, or None), as
    written to ``folder/comparisons.json``.
    """
    rows = []
    for benchmark, other in itertools.product(benchmarks, models):
        if other == against:
            continue
        metric = benchmark.task.primary
        (ours, our_mean), (theirs, their_mean) = (_scores(folder, model, benchmark) for model in (against, other))
        row = {"a": against, "b": other, "task": benchmark.key, "metric": metric}
        if ours is None or theirs is None or len(ours) < 2:
            rows.append({**row, "difference": 100 * (our_mean - their_mean), "low": None, "high": None})
            continue
        difference, low, high = paired_bootstrap(ours, theirs, seed=0)
        rows.append({**row, "difference": 100 * difference, "low": 100 * low, "high": 100 * high})
    write_json(folder / COMPARISONS, rows)
    return rows


def _scores(folder: Path, model: str, benchmark: Benchmark) -> tuple[FloatArray | None, float]:
    """A task's primary metric, mean over seeds: of each example (None where it is no mean over them), and of all."""
    files = [predictions_path(folder, model, benchmark.key, seed) for seed in benchmark.seeds]
    scores, metric = [read_json(scores_path(path)) for path in files], benchmark.task.primary
    mean = float(np.mean([own["metrics"][metric] for own in scores]))
    parts = [own["per_example"].get(metric) for own in scores]
    if any(own is None for own in parts):
        return None, mean
    values = np.mean(parts, axis=0)
    return (values if math.isclose(values.mean(), mean, abs_tol=1e-9) else None), mean
