"""The evaluation: teacher, starting student and every trained student answer the test examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from srd.base import parallel
from srd.base.files import atomic_write, fingerprint
from srd.base.tables import positions
from srd.base.text import many
from srd.curation.inspect import examples_to_show, ranked_rows
from srd.data.encoding import Encoder
from srd.evaluation.answers import Benchmark, EvaluatedModel, compare, evaluate, read_benchmark
from srd.evaluation.predictions import SUMMARIES, evaluation_files
from srd.metrics.rouge import rouge_l
from srd.models.engines.base import ENGINES
from srd.models.generation import Decoding, generate
from srd.run.context import Run, made_options
from srd.run.identity import plugins_identity, task_identity
from srd.run.outline import order
from srd.run.parts.loading import load, load_writer
from srd.run.steps.base import Step, Summary
from srd.tasks.instruction import INSTRUCTION


class Evaluation(order.Evaluation, Step):
    """``evaluation/``."""

    shares = False  # its answers are shared one by one

    def inputs(self, run: Run) -> list[Any]:
        recipe = run.recipe
        tasks = [task_identity(task) for task in recipe.evaluation.tasks]
        settings = recipe.evaluation.model_dump(exclude={"tasks"})
        generation, frames = recipe.generation.model_dump(), [run.encoding, run.teacher_frame]
        return [settings, tasks, *frames, generation, plugins_identity(recipe), *run.reading()]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.evaluation / name for name in SUMMARIES]

    def needed(self, run: Run) -> list[Path]:
        return [file for file in evaluation_files(run.files.evaluation) if file not in self.outputs(run)]

    def told(self, run: Run, summary: Summary) -> str:
        models, tasks = many(summary["models"], "model"), many(summary["tasks"], "task")
        return f"{many(summary['answers'], 'answer')} of {models} to {tasks}"

    def make(self, run: Run) -> Summary:
        settings, generation, folder = run.recipe.evaluation, run.recipe.generation, run.files.evaluation
        sources = models_of(run)
        wanted = settings.models or list(sources)
        tests = benchmarks(run)
        engine = [] if ENGINES.get(generation.engine).draws_alike else [generation.engine]
        evaluated_models = [
            EvaluatedModel(
                name,
                fingerprint(sources[name][1], run.encoding, *engine, *(run.teacher_frame if name == "teacher" else [])),
                _loader(run, name, *sources[name]),
                (run.teacher_encoder if name == "teacher" else run.encoder).template.name,
            )
            for name in wanted
        ]
        with run.progress("answers") as update:
            evaluate(
                evaluated_models, tests, folder, batch_size=generation.batch_size,
                progress=lambda title, done, total: update(done, total, title),
                shared=run.shared.folder / "answers" if run.shared else None,
                scoring={"allow_code_execution": settings.allow_code_execution},
            )  # fmt: skip
        main = run.recipe.training.label
        if main in wanted and parallel.is_main():
            compare(folder, wanted, tests, against=main)
        _answer_training_samples(run)
        return {
            "models": len(wanted),
            "tasks": len(tests),
            "answers": len(wanted) * sum(len(t.seeds) * len(t.examples) for t in tests),
        }


def models_of(run: Run) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """The models of a run by name: where each lies, its fingerprint, how it is loaded."""
    return {
        "teacher": (run.teacher_source, run.keys["teacher"], run.teacher_options()),
        "student": (run.start_source, run.keys["student"], run.start_options()),
        **{
            variant: (str(run.files.student(variant)), run.keys[f"train/{variant}"], made_options(run.recipe))
            for variant in run.recipe.variants
        },
    }


def benchmarks(run: Run) -> list[Benchmark]:
    """The run's own test split, and the tasks that the recipe names."""
    settings, generation = run.recipe.evaluation, run.recipe.generation
    seeds = tuple(settings.seeds) if settings.temperature > 0 else tuple(settings.seeds[:1])
    test = run.split("test")
    if settings.limit and settings.limit < len(test):
        test = test.select(range(settings.limit))
    decoding = Decoding(generation.max_new_tokens, settings.temperature, settings.top_p)
    own = Benchmark("test", replace(INSTRUCTION, words=run.words), test, decoding, seeds)
    allow = settings.allow_code_execution
    tasks = [
        read_benchmark(task.name, task.path, label=task.label, limit=task.limit, allow_code_execution=allow)
        for task in settings.tasks
    ]
    return [own, *tasks]


def _loader(
    run: Run, name: str, source: str, identity: str, options: dict[str, Any]
) -> Callable[[], tuple[Any, Encoder]]:
    return lambda: (load_writer(source, run, options), run.teacher_encoder if name == "teacher" else run.encoder)


def _answer_training_samples(run: Run) -> None:
    """Let the final student answer the training prompts that the report shows."""
    if "ranking" not in run.keys or not parallel.is_main():
        return
    shown = [
        name for names in examples_to_show(ranked_rows(pq.read_table(run.files.ranked))).values() for name in names
    ]
    train = run.split("train")
    rows = train.select(np.sort(positions(shown, train))).to_list()
    prompts, _, _ = run.encoder.prompts(rows)
    variant = run.recipe.training.label
    model = load(str(run.files.student(variant)), run, made_options(run.recipe))
    generation = run.recipe.generation
    with run.progress("training answers") as update:
        texts = generate(
            model, run.tokenizer, prompts, [row["id"] for row in rows], Decoding(generation.max_new_tokens),
            batch_size=generation.batch_size, progress=update,
        )  # fmt: skip
    with atomic_write(run.files.train_samples) as partial, open(partial, "w", encoding="utf-8") as file:
        for row, text in zip(rows, texts, strict=True):
            score = rouge_l(text, row["references"], words=run.words)
            file.write(json.dumps({"id": row["id"], "model": variant, "text": text, "rouge_l": score}) + "\n")
