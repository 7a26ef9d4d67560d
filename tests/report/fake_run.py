"""A made-up but plausible run directory, in the files and columns a real run writes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

KINDS = ("swapped", "truncated", "duplicated")
SEEDS = ("10", "20", "30", "40", "50")
MODULES = ("os.path", "collections", "itertools", "json", "textwrap", "pathlib", "random", "functools")
NAMES = ("join", "split", "count", "walk", "merge", "dumps", "wrap", "choice", "reduce", "resolve")
PURPOSES = (
    "the parts of a path",
    "each element once",
    "a shallow copy",
    "lines of equal width",
    "pairs of keys and values",
)

RECIPE = """\
name: docstrings
description: ''
seed: 0
teacher:
  model: smollm2
student:
  model: null
  drop_layers: 20
data:
  train: pydocs
training:
  method:
    name: kd
  objective:
    name: srkl
    alpha: 0.1
  curriculum:
    stages: 3
    select: 0.75
    score: fused
    temperature: [1.0, 2.0]
  learning_rate: 0.0001
  select_by: rouge_l
baselines:
  kd:
    method:
      name: kd
    curriculum: null
"""


def write_run(run_dir: Path, *, examples: int = 900, corrupted: float = 0.12, gain: float = 1.4) -> Path:
    """Write a whole run.

    Args:
        run_dir: Where to.
        examples: Number of training examples.
        corrupted: Share of them that is corrupted.
        gain: Points of ROUGE-L by which SRD is ahead of plain KD.
    """
    source = random.Random(7)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (run_dir / "student").mkdir(exist_ok=True)
    train = [example(f"train-{i:05d}", source, corrupted) for i in range(examples)]
    test = [example(f"test-{i:05d}", source, 0.0) for i in range(40)]
    write_parquet(run_dir / "examples" / "train.parquet", train)
    write_parquet(run_dir / "examples" / "test.parquet", test)
    scores = [score(row, source) for row in train]
    write_parquet(run_dir / "reflection" / "scores.parquet", scores)
    ranked = rank(scores)
    write_parquet(run_dir / "curriculum" / "ranked.parquet", ranked)
    write_lines(
        run_dir / "metrics.jsonl",
        [*curve("teacher_sft", 1, source), *curve("kd", 1, source), *curve("srd", 3, source)],
    )
    validation = [example(f"validation-{i:05d}", source, 0.0) for i in range(20)]
    write_parquet(run_dir / "examples" / "validation.parquet", validation)
    write_stages(run_dir / "stages", validation, examples, source)
    write_evaluation(run_dir / "evaluation", test, train, gain, source)
    write_text(run_dir / "manifest.json", json.dumps(manifest(examples), indent=2))
    return run_dir


def example(example_id: str, source: random.Random, corrupted: float) -> dict[str, Any]:
    """Make one question and answer."""
    name = f"{source.choice(MODULES)}.{source.choice(NAMES)}"
    purpose = source.choice(PURPOSES)
    return {
        "id": example_id,
        "instruction": f"What does `{name}` do?",
        "input": f"def {name.rsplit('.', 1)[1]}(values, *, default=None)" if source.random() < 0.3 else "",
        "messages": "",
        "prompt": "",
        "references": [f"Return {purpose} for the given values & <default> where there are none."],
        "corruption": source.choice(KINDS) if source.random() < corrupted else "",
    }


def score(row: dict[str, Any], source: random.Random) -> dict[str, Any]:
    """Make the student's answer to an example, worse for swapped and truncated ones."""
    ease = min(max(source.gauss(0.42, 0.2) - 0.25 * (row["corruption"] in ("swapped", "truncated")), 0.0), 1.0)
    rouge = min(max(ease * 0.75 + source.gauss(0, 0.1), 0.0), 1.0)
    return {
        "id": row["id"],
        "response": f"It returns {source.choice(PURPOSES)}.",
        "rouge_l": rouge,
        "ce": max(4.6 - 4.2 * ease + source.gauss(0, 0.45), 0.15),
    }


def rank(scores: list[dict[str, Any]], stages: int = 3, select: float = 0.75) -> list[dict[str, Any]]:
    """Rank and stage rows as the method does (values are all different here, so ranks need no averaging)."""
    rouge_order = {row["id"]: i + 1 for i, row in enumerate(sorted(scores, key=lambda row: -row["rouge_l"]))}
    ce_order = {row["id"]: i + 1 for i, row in enumerate(sorted(scores, key=lambda row: row["ce"]))}
    rows = []
    for row in scores:
        a, b = rouge_order[row["id"]], ce_order[row["id"]]
        rows.append(
            {
                "id": row["id"],
                "rouge_l": row["rouge_l"],
                "ce": row["ce"],
                "rank_rouge": float(a),
                "rank_ce": float(b),
                "rrf": 1 / (60 + a) + 1 / (60 + b),
            }
        )
    rows.sort(key=lambda row: (-row["rrf"], row["id"]))
    kept = round(select * len(rows))
    for index, row in enumerate(rows):
        row |= {
            "rank": index + 1,
            "kept": index < kept,
            "stage": index * stages // kept if index < kept else -1,
        }
    return rows


def curve(variant: str, stages: int, source: random.Random) -> list[dict[str, Any]]:
    """Make the log of a variant: nine passes in one stage, or three epochs of 25, 50 and 75 percent."""
    rows: list[dict[str, Any]] = []
    passes, step = 0.0, 0
    top = {"srd": 0.262, "kd": 0.247}.get(variant, 0.3)
    for stage in range(stages):
        share = 0.25 * (stage + 1) if stages > 1 else 1.0
        epochs = 3 if stages > 1 else 6
        per_epoch = round(40 * share)
        for tick in range(epochs * per_epoch):
            passes += share / per_epoch
            step += 1
            loss = 1.1 + 2.2 * math.exp(-passes / 1.1) + 0.25 * stage + source.gauss(0, 0.07)
            epoch = (tick + 1) / per_epoch
            common = {"arm": variant, "stage": stage, "step": step, "epoch": epoch, "passes": passes}
            rows.append(common | {"loss": loss, "kd_loss": loss * 0.9, "learning_rate": 1e-4})
            if (tick + 1) % per_epoch == 0:
                rouge = 0.17 + (top - 0.17) * (1 - math.exp(-passes / 1.2)) + source.gauss(0, 0.002)
                rows.append(common | {"eval_rouge_l": rouge, "eval_loss": 2.2 + 0.8 * math.exp(-passes / 1.5)})
    return rows


def write_stages(folder: Path, validation: list[dict[str, Any]], examples: int, source: random.Random) -> None:
    """Write the numbers of three stages, and the answers of their best models."""
    kept = round(0.75 * examples)
    for stage in range(3):
        metrics = {"stage": stage, "examples": kept * (stage + 1) // 3, "steps": 40 * (stage + 1), "seconds": 60.0,
                   "temperature": 1 + stage / 2, "weight": 0.8 + stage / 10}  # fmt: skip
        write_text(folder / str(stage) / "metrics.json", json.dumps(metrics))
        rows = [{"id": row["id"], "text": f"It returns {source.choice(PURPOSES)}.", "rouge_l": source.random() / 2}
                for row in validation]  # fmt: skip
        write_lines(folder / str(stage) / "validation.jsonl", rows)


def write_evaluation(
    folder: Path, test: list[dict[str, Any]], train: list[dict[str, Any]], gain: float, source: random.Random
) -> None:
    """Write scores, intervals, predictions and the student's answers to the training prompts."""
    means = {"teacher": 27.2, "student": 15.3, "kd": 23.4, "srd": 23.4 + gain}
    metrics: dict[str, Any] = {}
    for model, mean in means.items():
        seeds = {seed: mean + source.gauss(0, 0.35) for seed in SEEDS}
        metrics[model] = {
            "pydocs": {
                "rouge_l": {"mean": mean, "std": 0.38, "seeds": seeds},
                "exact_match": {"mean": mean / 12, "std": 0.2, "seeds": {seed: mean / 12 for seed in SEEDS}},
            }
        }
        rows = [
            {
                "id": row["id"],
                "text": f"It returns {source.choice(PURPOSES)}.",
                "rouge_l": source.random() * mean / 40,
            }
            for row in test
        ]
        write_lines(folder / "predictions" / f"{model}.pydocs.10.jsonl", rows)
    write_text(folder / "metrics.json", json.dumps(metrics))
    interval = {"difference": gain, "low": gain - 0.9, "high": gain + 0.9}
    comparisons = [{"a": "srd", "b": "kd", "task": "pydocs", "metric": "rouge_l"} | interval]
    write_text(folder / "comparisons.json", json.dumps(comparisons))
    answers = [{"id": row["id"], "model": "srd", "text": row["references"][0][:50], "rouge_l": 0.7} for row in train]
    write_lines(folder / "train_samples.jsonl", answers)


def manifest(examples: int) -> dict[str, Any]:
    """Make the record of all steps."""
    kept = round(0.75 * examples)
    steps = {
        "examples": (2.1, {"train": examples, "validation": 50, "test": 40, "truncated": 3}),
        "teacher": (184.0, {"parameters": 134_515_008}),
        "student": (0.8, {"parameters": 63_712_512}),
        "cache": (61.5, {"tokens": 48_211}),
        "reflection": (74.2, {}),
        "ranking": (0.1, {}),
        "train/srd": (214.0, {"passes": 4.5, "examples": kept, "seconds": 207.0, "stages": 3}),
        "train/kd": (331.0, {"passes": 6.0, "examples": examples, "seconds": 324.0, "stages": 1}),
        "evaluation": (148.0, {}),
    }
    return {
        "steps": {
            name: {
                "fingerprint": "0" * 32,
                "seconds": seconds,
                "finished": "2026-01-05T10:11:12+00:00",
                "summary": summary,
            }
            for name, (seconds, summary) in steps.items()
        },
        "warnings": ["3 prompts were cut to 256 tokens: raise data.prompt_length to keep them whole"],
        "versions": {"srd": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"processor": "2 cores", "memory_gb": 7.8, "device": "cpu"},
    }


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSONL."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
