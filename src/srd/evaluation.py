"""Evaluation: answers of several models on several tasks and seeds, their scores, and paired comparisons."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from srd import parallel
from srd.artifacts import atomic_write, fingerprint, link, read_json, write_json
from srd.data.encoding import Encoder
from srd.metrics import paired_bootstrap
from srd.models.generation import Decoding, generate
from srd.tasks import Task
from srd.tasks.base import Predictions

PREDICTIONS = "predictions"
INDEX = "index.json"


@dataclass(frozen=True)
class Benchmark:
    """A task with its examples and the decoding that this evaluation wants.

    Attributes:
        key: What it is called in ``metrics.json``: the task's name, or ``test`` for a run's own test split.
        task: Scores the answers.
        examples: Rows of the example schema with what the task's scoring needs beside them.
        decoding: How tokens are chosen; its seed is replaced by each of ``seeds``.
        seeds: One answer to every prompt for each of them; greedy decoding needs one only.
        template: The prompt template; None: the one that the contender's encoder has.
        samples: Answers to every prompt and seed, for tasks that score several at once (pass@k).
    """

    key: str
    task: Task
    examples: datasets.Dataset
    decoding: Decoding
    seeds: tuple[int, ...]
    template: str | None = None
    samples: int = 1


@dataclass(frozen=True)
class Contender:
    """A model that is evaluated.

    Attributes:
        name: What it is called in ``metrics.json``.
        identity: Fingerprint of its weights and of how prompts become tokens; answers of the same are kept.
        load: Gives ``(model, encoder)``; called only when an answer is missing.
    """

    name: str
    identity: str
    load: Callable[[], tuple[Any, Encoder]]


def evaluate(
    contenders: Sequence[Contender],
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
    changed.

    Args:
        contenders: The models.
        benchmarks: What they answer.
        folder: The run's ``evaluation`` folder.
        batch_size: Prompts at once.
        scoring: Further arguments of the tasks' ``score`` (permission to run code).
        shared: Folder of answers that several runs have in common, such as the teacher's in a sweep.
        progress: Called with a title, prompts done and prompts to do.

    Returns:
        ``{model: {task: {metric: {"mean", "std", "seeds"}}}}`` in percent, as written to ``folder/metrics.json``. The
        standard deviation is the sample's, over seeds; 0 for one seed.
    """
    results: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for contender in contenders:
        loaded: tuple[Any, Encoder] | None = None
        for benchmark in benchmarks:
            by_seed = {}
            for seed in benchmark.seeds:
                path = predictions_path(folder, contender.name, benchmark.key, seed)
                identity = fingerprint(
                    contender.identity, benchmark.template, _content(benchmark.examples),
                    asdict(benchmark.decoding), seed, batch_size, benchmark.samples,
                )  # fmt: skip
                if not parallel.on_main(partial(_has_answers, path, identity, shared)):
                    loaded = loaded or contender.load()
                    texts = _answer(loaded, benchmark, seed, batch_size, contender.name, progress)
                    _write_predictions(path, benchmark, texts, identity, scoring or {})
                    _give(path, identity, shared)
                parallel.barrier()
                by_seed[seed] = read_json(path.with_suffix(".scores.json"))
            results.setdefault(contender.name, {})[benchmark.key] = summarise(by_seed)
            details[benchmark.key] = describe(benchmark, next(iter(by_seed.values())).get("details", {}))
        del loaded
    if parallel.is_main():
        write_json(folder / "metrics.json", results)
        write_json(folder / "details.json", {"tasks": details, "versions": versions()})
    return results


def predictions_path(folder: Path, model: str, task: str, seed: int) -> Path:
    """File of one model's answers to one task with one seed."""
    return folder / PREDICTIONS / f"{model}.{task.replace(':', '-')}.{seed}.jsonl"


def _content(examples: datasets.Dataset) -> str:
    """Hash of what is asked and expected."""
    columns = [
        name
        for name in ("id", "instruction", "input", "messages", "prompt", "references")
        if name in examples.column_names
    ]
    return fingerprint([list(examples[name]) for name in columns])


def _has_answers(path: Path, identity: str, shared: Path | None) -> bool:
    """Whether the answers are here, or could be taken from another run. For the main process."""
    return _is_kept(path, identity) or _taken(path, identity, shared)


def _is_kept(path: Path, identity: str) -> bool:
    scores = read_json(path.with_suffix(".scores.json"), {})
    return path.exists() and scores.get("fingerprint") == identity


def _taken(path: Path, identity: str, shared: Path | None) -> bool:
    """Take answers that another run has got from the same model to the same prompts, if there are any."""
    place = None if shared is None else shared / identity
    if place is None or not place.is_dir():
        return False
    link(place / "answers.jsonl", path)
    link(place / "scores.json", path.with_suffix(".scores.json"))
    return True


def _give(path: Path, identity: str, shared: Path | None) -> None:
    """Offer answers to other runs."""
    if shared is None or not parallel.is_main():
        return
    with atomic_write(shared / identity) as unfinished:
        link(path, unfinished / "answers.jsonl")
        link(path.with_suffix(".scores.json"), unfinished / "scores.json")


def _answer(
    loaded: tuple[Any, Encoder], benchmark: Benchmark, seed: int, batch_size: int, name: str, progress: Any
) -> Predictions:
    """Let a model answer: a text for every example, or a list of texts where several samples are wanted."""
    model, encoder = loaded
    if benchmark.template is not None:
        encoder = encoder.with_template(benchmark.template)
    prompts, _, _ = encoder.prompts(list(benchmark.examples))
    numbers = range(benchmark.samples)
    prompts = [prompt for prompt in prompts for _ in numbers]
    # A sample's id is the stream of random numbers that it draws from; the first is what a single one would be.
    ids = [f"{name}#{number}" if number else name for name in benchmark.examples["id"] for number in numbers]
    done = 0

    def update(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(f"{name} on {benchmark.key}, seed {seed}", done, len(prompts))

    texts = generate(
        model,
        encoder.tokenizer,
        prompts,
        ids,
        replace(benchmark.decoding, seed=seed),
        batch_size=batch_size,
        progress=update,
        share=parallel.processes() > 1,
    )
    if benchmark.samples == 1:
        return texts
    return [texts[start : start + benchmark.samples] for start in range(0, len(texts), benchmark.samples)]


def _write_predictions(path: Path, benchmark: Benchmark, texts: Predictions, identity: str, scoring: Any) -> None:
    """Keep the answers with their scores; the scores' file is written last and says that both are whole."""
    if not parallel.is_main():
        return
    scores = benchmark.task.score(texts, benchmark.examples, **scoring)
    ids = benchmark.examples["id"]
    with atomic_write(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for index, (name, text) in enumerate(zip(ids, texts, strict=True)):
            own = {metric: float(values[index]) for metric, values in scores.per_example.items()}
            file.write(json.dumps({"id": name, "text": text, **own}, ensure_ascii=False) + "\n")
    write_json(
        path.with_suffix(".scores.json"),
        {
            "fingerprint": identity,
            "metrics": scores.metrics,
            "per_example": {name: [float(v) for v in values] for name, values in scores.per_example.items()},
            "details": scores.details,
            "primary": scores.primary,
        },
    )


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


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "rapidfuzz", "sacrebleu")
    }


def compare(folder: Path, models: Sequence[str], benchmarks: Sequence[Benchmark], against: str) -> list[dict[str, Any]]:
    """Paired bootstrap of one model against each of the others, over examples, by each task's primary metric.

    The score of an example is its mean over the seeds. Returns rows ``{"a", "b", "task", "metric", "difference",
    "low", "high"}`` in percentage points (95 % interval), as written to ``folder/comparisons.json``.
    """
    rows = []
    for benchmark, other in itertools.product(benchmarks, models):
        if other == against:
            continue
        pair = [_mean_scores(folder, model, benchmark) for model in (against, other)]
        metric = benchmark.task.primary
        if any(metric not in scores for scores in pair):
            continue  # a corpus metric (BLEU) has no per-example values
        difference, low, high = paired_bootstrap(pair[0][metric], pair[1][metric], seed=0)
        rows.append(
            {
                "a": against, "b": other, "task": benchmark.key, "metric": metric,
                "difference": 100 * difference, "low": 100 * low, "high": 100 * high,
            }
        )  # fmt: skip
    write_json(folder / "comparisons.json", rows)
    return rows


def _mean_scores(folder: Path, model: str, benchmark: Benchmark) -> dict[str, Any]:
    files = [predictions_path(folder, model, benchmark.key, seed) for seed in benchmark.seeds]
    scores = [read_json(path.with_suffix(".scores.json"))["per_example"] for path in files]
    return {metric: np.mean([own[metric] for own in scores], axis=0) for metric in scores[0]}
