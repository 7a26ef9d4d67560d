"""``python -m benchmarks.teachers``: two teachers, each trained on half of the subjects, against each of them alone.

The models are small and made from nothing, the rows are the standard library's documentation (`pydocs`), and the
subjects its modules: one teacher is trained on those of the first letters, the other on the rest. Students learn from a
part of both teachers' rows by what teachers say alone. What is told is the mean cross-entropy of test answers, in nats
a byte, by subject.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import srd
from benchmarks.small import (
    TEXTS,
    Found,
    Rows,
    nats_a_byte,
    options_of,
    over_seeds,
    save_model,
    tell,
    tokenizer_of,
    write_rows,
)
from srd.tasks.pydocs import load_pydocs

SUBJECTS = ("a to i", "j to z")
WAYS = (*(f"{subject} alone" for subject in SUBJECTS), "by row", "mean")


def rows_by_subject(seed: int) -> dict[str, Rows]:
    """The rows of each half of the modules, in another order with each seed; questions alike stay together."""
    found: dict[str, Rows] = {subject: [] for subject in SUBJECTS}
    for row in load_pydocs():
        subject = SUBJECTS[row["id"].removeprefix("pydocs-").lstrip("_").lower() >= "j"]
        found[subject].append({"instruction": row["instruction"], "output": row["output"], "subject": subject,
                               "group": row["group"]})  # fmt: skip
    for rows in found.values():
        groups = {
            group: i for i, group in enumerate(np.random.default_rng(seed).permutation([r["group"] for r in rows]))
        }
        rows.sort(key=lambda row: groups[row["group"]])
    return found


def teachers_of(way: str, teachers: dict[str, str]) -> dict[str, Any]:
    """The part of a recipe that says who teaches."""
    if way.endswith(" alone"):
        return {"teacher": teachers[way.removesuffix(" alone")]}
    own = [{"model": path, "name": f"half{number}"} | ({"rows": subject} if way == "by row" else {})
           for number, (subject, path) in enumerate(teachers.items())]  # fmt: skip
    return {"teachers": own}


def trained(name: str, folder: Path, rows: Rows, seed: int, epochs: int, batch_size: int, **recipe: Any) -> str:
    """The folder of a student that a recipe has trained on some rows."""
    method = recipe.pop("method")
    made = {
        "name": name.replace(" ", "-"), "seed": seed, "cache": {"dir": str(folder / "cache")},
        "data": {"train": write_rows(folder / f"{name}.jsonl", rows), **TEXTS, "validation_size": 50, "test_size": 8,
                 "teacher_column": "subject"},
        "training": {"method": method, "batch_size": batch_size, "learning_rate": 2e-3, "select_by": "loss",
                     "epochs": epochs, "curriculum": None, "seed": seed},
        "generation": {"max_new_tokens": 8}, "evaluation": {"models": [method], "temperature": 0, "seeds": [seed]},
        **recipe,
    }  # fmt: skip
    return str(srd.run(made, run_dir=folder / f"run {name}").folder)


def compare(folder: Path, seed: int, wanted: argparse.Namespace) -> Found:
    """Test losses of the teachers, and of a student for each way of teaching."""
    every, half = rows_by_subject(seed), wanted.answers // 2
    tests = {subject: rows[:half] for subject, rows in every.items()}
    learnt = {subject: [row for row in rows[half:] if row["group"] != rows[half - 1]["group"]]
              for subject, rows in every.items()}  # fmt: skip
    texts = [f"{row['instruction']}\n{row['output']}" for rows in learnt.values() for row in rows]
    tokenizer = tokenizer_of(texts, 2000)
    start = save_model(folder / "start", tokenizer, 4, 2 * wanted.width, seed)
    student = save_model(folder / "student", tokenizer, 2, wanted.width, seed + 100)
    teachers = {
        subject: trained(f"teacher {subject}", folder, rows[: wanted.teacher_rows], seed, wanted.teacher_epochs,
                         wanted.batch_size, method="sft", teacher=start, student=start)
        for subject, rows in learnt.items()
    }  # fmt: skip
    models = {f"teacher {subject}": path for subject, path in teachers.items()}
    both = [row for rows in learnt.values() for row in rows[: wanted.rows // 2]]
    for way in WAYS:
        parts = teachers_of(way, teachers)
        models[way] = trained(way, folder, both, seed, wanted.epochs, wanted.batch_size, method="kd",
                              student=student, **parts)  # fmt: skip
    return {
        name: {subject: nats_a_byte(path, [{**row, "input": ""} for row in rows]) for subject, rows in tests.items()}
        for name, path in models.items()
    }


def main() -> None:
    """Print the table: mean and standard deviation over seeds."""
    wanted = options_of(str(__doc__), teacher_rows=2000, teacher_epochs=6)
    tell("teachers", over_seeds(compare, wanted), wanted)


if __name__ == "__main__":
    main()
