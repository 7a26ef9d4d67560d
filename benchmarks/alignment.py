"""What a teacher with another tokenizer teaches, by how it is aligned: ``python -m benchmarks.alignment``.

Small models from nothing, so that it runs on a CPU. A teacher is trained on all training rows of `pydocs`; students of
half its depth and width learn some of these rows: with cross-entropy only, from common tokens at identical places (what
other trainers do), from prefix classes, and from these and chunks. As ceiling one learns with the teacher's own
tokenizer; it is another model, so that it has its own cross-entropy beside it. What is compared is the cross-entropy
of test answers in nats a byte, and the ROUGE-L of greedy answers in percent.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import srd
from benchmarks.small import TEXTS, Found, nats_a_byte, options_of, over_seeds, save_model, tell, tokenizer_of
from srd.run.folder import RunFolder
from srd.tasks.pydocs import load_pydocs

#: The trainings of the student with a tokenizer of its own, by their labels; the last is the default.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ce": ("cross-entropy only", {"method": "sft"}),
    "identical": ("identical", {"alignment": "identical"}),
    "prefix": ("prefix", {"alignment": "prefix"}),
    "chunks": ("chunks", {"alignment": "chunks"}),
    "kd": ("prefix and chunks", {}),
}
#: And of the one with the teacher's.
CEILING = {"ce": "cross-entropy only, teacher's tokenizer", "kd": "same tokenizer"}


def recipe_of(name: str, seed: int, wanted: argparse.Namespace, teacher: str, student: str) -> dict[str, Any]:
    """A recipe without its trainings."""
    return {
        "name": name, "seed": seed, "teacher": teacher, "student": student,
        "generation": {"max_new_tokens": 48, "batch_size": 100},
        "data": {"train": "pydocs", "train_limit": wanted.rows, "validation_limit": 100, "test_limit": wanted.answers,
                 **TEXTS},
        "evaluation": {"temperature": 0, "seeds": [seed]},
    }  # fmt: skip


def training_of(wanted: argparse.Namespace, seed: int, epochs: int, weight: float, **more: Any) -> dict[str, Any]:
    """A training that ends at its best validation loss."""
    return {"method": "kd", "batch_size": wanted.batch_size, "learning_rate": 2e-3, "select_by": "loss",
            "weight": weight, "epochs": epochs, "curriculum": None, "seed": seed, **more}  # fmt: skip


def measured(recipe: dict[str, Any], folder: Path, names: dict[str, str]) -> Found:
    """Run a recipe; what its trainings, by their labels, come to under their names."""
    result = srd.run({**recipe, "evaluation": {**recipe["evaluation"], "models": list(names)}}, run_dir=folder)
    files = RunFolder(result.run_dir, recipe["training"]["method"])
    rows = [{"instruction": row["instruction"], "input": row["input"], "output": row["references"][0]}
            for row in pq.read_table(files.examples("test")).to_pylist()]  # fmt: skip
    return {
        name: {"nats a byte": nats_a_byte(files.student(label), rows),
               "ROUGE-L": result.metrics[label]["test"]["rouge_l"]["mean"]}
        for label, name in names.items()
    }  # fmt: skip


def compare(folder: Path, seed: int, wanted: argparse.Namespace) -> Found:
    """All systems, with one seed."""
    texts = [f"{row['instruction']}\n{row['output']}" for row in load_pydocs()]
    own, other = tokenizer_of(texts, 3000), tokenizer_of(texts[::4], 1500, digits=True)
    teacher = save_model(folder / "teacher", own, 4, 2 * wanted.width, seed)
    student, ceiling = (save_model(folder / f"student-{len(tokenizer)}", tokenizer, 2, wanted.width, seed + 1)
                        for tokenizer in (other, own))  # fmt: skip
    sft = training_of(wanted, seed, wanted.teacher_epochs, 0.0, method="sft")
    everything = recipe_of("teacher", seed, wanted, teacher, teacher)
    everything["data"]["train_limit"] = wanted.teacher_rows
    found = measured({**everything, "training": sft}, folder / "tuned", {"sft": "teacher"})
    tuned = str(RunFolder(folder / "tuned", "sft").student("sft"))
    weight = wanted.weight / 100
    arms = {label: training_of(wanted, seed, wanted.epochs, weight, **more) for label, (_, more) in VARIANTS.items()}
    for name, model, titles in (("apart", student, {label: title for label, (title, _) in VARIANTS.items()}),
                                ("alike", ceiling, CEILING)):  # fmt: skip
        baselines = {label: arms[label] for label in titles if label != "kd"}
        recipe = recipe_of(name, seed, wanted, tuned, model)
        found |= measured({**recipe, "training": arms["kd"], "baselines": baselines}, folder / name, titles)
    return found


def main() -> None:
    """Print a table of means over seeds."""
    wanted = options_of(str(__doc__), teacher_rows=4000, teacher_epochs=6, weight=80)
    tell("alignment", over_seeds(compare, wanted), wanted)


if __name__ == "__main__":
    main()
