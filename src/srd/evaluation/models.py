"""Any model on any benchmark, without a recipe: ``srd evaluate MODEL --task NAME``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from srd.base import parallel
from srd.base.console import progress_bar
from srd.base.errors import UserError
from srd.base.files import fingerprint
from srd.base.handed import check_counts
from srd.base.limits import sampling_problem
from srd.base.locks import held
from srd.data.encoding import Encoder
from srd.data.templates.base import get_template
from srd.evaluation.answers import Benchmark, EvaluatedModel, compare, evaluate, read_benchmark
from srd.evaluation.predictions import check_folder, clashing, predictions_path, put_aside, settle
from srd.models.loading.architecture import position_limit
from srd.models.loading.loading import load_config, load_model, load_tokenizer
from srd.models.loading.sources import model_fingerprint
from srd.sandbox.outside import Permission, require_permission
from srd.tasks.base import Task, benchmarks, get_task

COMPARISONS = "comparisons"
UNLIMITED = 1 << 20  # a tokenizer that knows no limit says about 1e30


def evaluate_models(
    models: Sequence[str],
    benchmarks: Sequence[Benchmark],
    folder: Path,
    *,
    batch_size: int = 32,
    max_prompt_length: int | None = None,
    allow_code_execution: Permission = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Let models answer benchmarks, and compare them.

    Answers are kept in ``folder/predictions`` and not made again while model, examples and decoding stay the same; the
    answers of models, tasks and seeds that an earlier call wanted and this one does not are removed. A whole result
    that would be lost with them is kept in ``folder/former/<number>``.

    Args:
        models: Folders, hub names, GGUF files, or ``smollm2``. With several, the first is compared with each of the
            others by paired bootstrap over the examples.
        benchmarks: From `read_benchmarks`.
        folder: Where predictions, ``metrics.json`` and ``comparisons.json`` go.
        batch_size: Prompts at once.
        max_prompt_length: Longest prompt in tokens; None: what the model takes beside the answer.
        allow_code_execution: As for `read_benchmarks`.
        trust_remote_code: Run Python code that the models bring.

    Returns:
        ``{model: {task: {metric: {"mean", "std", "seeds"}}}}`` in percent, and with several models ``"comparisons"``:
        rows of `srd.evaluation.answers.compare`. A model is called by its folder's name, or by more of its path where
        two would be called alike.

    Raises:
        UserError: a model that cannot be read or is given twice, a folder that another command works in or that holds
            other files under the names that would be written (all before anything is generated or touched).
    """
    names = short_names(models)
    room = max(benchmark.decoding.max_new_tokens for benchmark in benchmarks), max_prompt_length
    evaluated_models = [_evaluated_model(*each, *room, trust_remote_code) for each in names.items()]
    paths = [
        predictions_path(folder, name, benchmark.key, seed)
        for name in names.values()
        for benchmark in benchmarks
        for seed in benchmark.seeds
    ]
    parallel.on_main(lambda: check_folder(folder, paths))
    with contextlib.ExitStack() as stack:
        parallel.on_main(lambda: stack.enter_context(held(folder, "-o")))
        parallel.on_main(lambda: put_aside(folder))
        update = stack.enter_context(progress_bar("answers"))
        results = evaluate(
            evaluated_models, benchmarks, folder, batch_size=batch_size,
            scoring={"allow_code_execution": allow_code_execution},
            progress=lambda title, done, total: update(done, total, title),
        )  # fmt: skip
        if len(models) > 1 and parallel.is_main():
            called = list(names.values())
            results = {**results, COMPARISONS: compare(folder, called, benchmarks, against=called[0])}
        if parallel.is_main():
            settle(folder)
    return results


def results_table(results: Mapping[str, Any]) -> Table:
    """What `evaluate_models` returns, to read: a line for each model, task and metric; then the comparisons."""
    table = Table("model", "task", "metric", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("percent", justify="right")
    for model, tasks in results.items():
        for task, metrics in tasks.items() if model != COMPARISONS else ():
            for metric, value in metrics.items():
                spread = f" ± {value['std']:.2f}" if len(value["seeds"]) > 1 else ""
                table.add_row(model, task, metric, f"{value['mean']:.2f}{spread}")
    for row in results.get(COMPARISONS, ()):
        interval = "no interval" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}"
        shown = f"{row['difference']:+.2f} ({interval})"
        table.add_row(f"{row['a']} − {row['b']}", row["task"], row["metric"], shown)
    return table


def read_benchmarks(
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    seeds: str | None = None,
    template: str | None = None,
    max_new_tokens: int | None = None,
    samples: int = 1,
    temperature: float | None = None,
    allow_code_execution: Permission = False,
) -> list[Benchmark]:
    """Read the examples of tasks, each with its own prompt, decoding and scoring unless told otherwise.

    Args:
        tasks: ``NAME`` (read from the hub) or ``NAME=FILE`` (a file in the original format).
        limit: The first so many examples of each task.
        seeds: Such as ``10,20,30``; a task that decodes greedily uses the first only.
        template: Prompt template; None: the task's own.
        max_new_tokens: Longest answer; None: the task's own.
        samples: Answers to each prompt, for tasks that score several at once: ``mbpp``'s pass@k.
        temperature: Of sampling, 0 is greedy; None: the task's own.
        allow_code_execution: The user's permission to run the programs that a model writes; ``"unconfined"``: without a
            sandbox.

    Raises:
        UserError: an unknown or repeated task, unreadable seeds, a file that cannot be read, a task that runs code
            without permission.
    """
    check_counts(**{"--limit": limit, "--max-new-tokens": max_new_tokens, "--samples": samples})
    if temperature is not None and (problem := sampling_problem(temperature)):
        raise UserError(f"--temperature is {temperature}, but {problem}")
    chosen_seeds = parse_seeds(seeds) if seeds is not None else None
    named = [(name, path) for name, _, path in (text.partition("=") for text in tasks)]
    found = [get_task(name) for name, _ in named]
    repeated = clashing([name for name, _ in named])
    if repeated:
        raise UserError(f"--task {repeated} is given more than once: use another -o folder for its other file")
    for task in found:
        if task.runs_code:
            require_permission(allow_code_execution)
        _check_samples(task, samples, task.decoding.temperature if temperature is None else temperature)
    return [
        read_benchmark(
            name, path or None, limit=limit, template=template or task.template, seeds=chosen_seeds,
            temperature=temperature, max_new_tokens=max_new_tokens, samples=samples,
            allow_code_execution=allow_code_execution,
        )
        for task, (name, path) in zip(found, named, strict=True)
    ]  # fmt: skip


def _check_samples(task: Task, samples: int, temperature: float) -> None:
    """Several samples need a task that scores them together, and answers that differ."""
    if samples == 1:
        return
    if not task.takes_samples:
        able = ", ".join(known for known, other in benchmarks().items() if other.takes_samples)
        raise UserError(
            f"--samples is {samples}, but task '{task.name}' scores one answer at a time (several: {able}). Give "
            "several --seeds instead: their mean and spread are shown."
        )
    if not temperature:
        raise UserError(f"--samples is {samples}, but greedy answers are all the same: give --temperature, such as 0.8")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds such as ``10,20,30``.

    Raises:
        UserError: something else, a seed below zero or of 2**32 or more, or one given twice.
    """
    parts = [part.strip() for part in text.split(",")]
    seeds = tuple(int(part) for part in parts if part.isdecimal() and len(part) <= 10)
    if len(seeds) < len(parts) or len(set(seeds)) < len(seeds) or max(seeds) >= 2**32:
        raise UserError(f"--seeds '{text:.80}': give different whole numbers from 0 to 2**32 - 1, such as 10,20,30")
    return seeds


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Name models by the last part of their path, or by as many parts as tell them apart; fit for file names.

    Raises:
        UserError: one model is given twice.
    """
    if len(set(models)) < len(models):
        raise UserError(f"the model '{models[0]}' is given twice: name another one to compare it with")
    # resolve() follows links: two names of one folder are still two models here, and only their names matter.
    paths = {model: Path(model).expanduser() for model in models}
    parts = {model: (path.resolve() if path.exists() else path).parts for model, path in paths.items()}
    for length in range(1, max(map(len, parts.values())) + 1):
        names = {model: "-".join(part.strip("/") for part in parts[model][-length:]).strip("-") for model in models}
        if len(set(names.values())) == len(models):
            return names
    raise UserError(f"{', '.join(models)} are one and the same model: name another one to compare it with")


def longest_prompt(config: Any, tokenizer: Any, answer_length: int) -> int | None:
    """Tokens of a prompt that the model takes beside an answer of ``answer_length``; None where it has no limit.

    An encoder-decoder has its own positions for the answer. What its tokenizer says (T5: 512) is what it was trained
    on; its positions are relative and go further, but it has not been trained there.
    """
    apart = bool(config.is_encoder_decoder)
    positions, written = position_limit(config, "encoder" if apart else "decoder"), position_limit(config)
    smallest = min(tokenizer.model_max_length, UNLIMITED + 1 if positions is None else positions)
    if apart and written is not None and answer_length >= written:  # the decoder begins with an id of its own
        return written - answer_length
    if smallest > UNLIMITED:
        return None
    return int(smallest) if apart else int(smallest) - answer_length


def prompt_room(model: Any, tokenizer: Any, answer_length: int, wanted: int | None, name: str = "") -> int | None:
    """Tokens of the longest prompt that a model is given: as wanted, else as many as it takes; None: without a limit.

    Args:
        model: The model, or its configuration and its ``name``.
        tokenizer: Its tokenizer.
        answer_length: Tokens of its longest answer.
        wanted: Tokens of a prompt; None: as many as it takes.
        name: What messages call it.

    Raises:
        UserError: it takes fewer, or none beside the answer.
    """
    name, room = name or model.name_or_path, longest_prompt(getattr(model, "config", model), tokenizer, answer_length)
    if room is not None and room < 1:
        raise UserError(
            f"model '{name}' takes {room + answer_length} tokens, which leaves no room for a prompt beside an answer "
            f"of {answer_length}. Give a smaller --max-new-tokens."
        )
    if wanted is not None and room is not None and wanted > room:
        raise UserError(
            f"--max-prompt-length is {wanted}, but model '{name}' takes {room} tokens of prompt beside an answer of "
            f"{answer_length}. Give a smaller one, or leave it out."
        )
    return wanted or room


def prompt_encoder(config: Any, tokenizer: Any, longest: int | None, template: str = "auto") -> Encoder:
    """What makes tokens of prompts for a model that only answers; ``longest``: of a prompt, in tokens, if any."""
    return Encoder(
        tokenizer, get_template(template, tokenizer), max_length=UNLIMITED,
        max_prompt_length=UNLIMITED if longest is None else longest, encoder_decoder=bool(config.is_encoder_decoder),
    )  # fmt: skip


def _evaluated_model(
    model: str, name: str, answer_length: int, max_prompt_length: int | None, trust_remote_code: bool
) -> EvaluatedModel:
    """A model with its tokenizer; the weights are loaded when the first answer is missing."""
    found: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config, tokenizer = load_config(model, **found), load_tokenizer(model, **found)
    room = prompt_room(config, tokenizer, answer_length, max_prompt_length, model)
    encoder = prompt_encoder(config, tokenizer, room)

    def load() -> tuple[Any, Encoder]:
        return load_model(model, tokenizer=tokenizer, device=parallel.own_gpu(), **found), encoder

    return EvaluatedModel(name, fingerprint(model_fingerprint(model), encoder.max_prompt_length), load)
