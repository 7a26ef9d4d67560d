"""``python -m benchmarks.teachers``: two teachers, each trained on one of two subjects, against each of them alone.

The models are tiny and random at first, the subjects are questions with an answer that is learnt by heart, and what is
told is the mean cross-entropy of test answers, by subject. It shows that the rows reach their teachers, and what a mean
of a teacher that knows and one that does not comes to. It is too small to say how much a real model gains.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import srd

SUBJECTS = {"sea": ("whale", "octopus", "dolphin", "box"), "sky": ("particle", "light", "air", "number")}
SIZES = {"template": "plain", "max_length": 64, "max_prompt_length": 40, "validation_size": 8, "test_size": 8}
WAYS = ("sea alone", "sky alone", "by row", "mean")


def rows_of(subject: str, seed: int, count: int) -> list[dict[str, str]]:
    """Questions that share their words between the subjects; the answer's word depends on the subject."""
    random, words = np.random.default_rng([seed, len(subject), ord(subject[1])]), SUBJECTS[subject]
    numbers = random.permutation(90)[:count] + 10
    return [
        {"instruction": f"What is {number} in the {subject}?", "output": f"It is the {words[number % len(words)]}.",
         "subject": subject}
        for number in map(int, numbers)
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def teachers_of(way: str, teachers: dict[str, str]) -> dict[str, Any]:
    """The part of a recipe that says who teaches."""
    if way.endswith(" alone"):
        return {"teacher": teachers[way.removesuffix(" alone")]}
    own = [{"model": teachers[name], "name": name} | ({"rows": name} if way == "by row" else {}) for name in teachers]
    return {"teachers": own}


def losses(student: Path, tests: dict[str, str]) -> dict[str, float]:
    """Mean nats a token of the test answers of each subject."""
    from srd.data.encoding import encode
    from srd.models.head import response_losses
    from srd.models.loading import load_model, load_tokenizer
    from srd.training.trainer import EncodedExamples, make_collator

    tokenizer = load_tokenizer(str(student))
    model = load_model(str(student), tokenizer=tokenizer)
    found = {}
    for subject, path in tests.items():
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        examples = EncodedExamples(encode(rows, tokenizer, template="plain", max_length=64, max_prompt_length=40))
        batch = make_collator(model, tokenizer)([examples.tokens(i) for i in range(len(examples))])
        found[subject] = float(response_losses(model, batch).mean())
    return found


def measured(folder: Path, seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Test losses of the teachers and of a student for each way of teaching."""
    from tests.tiny import save_tiny

    start, student = save_tiny(folder / "start", "llama", layers=3, hidden=64, seed=seed), folder / "small"
    save_tiny(student, "llama", layers=2, hidden=48, seed=seed + 100)
    training = {"batch_size": 8, "learning_rate": 3e-3, "select_by": "last", "curriculum": None, "seed": seed}
    train, tests, teachers = {}, {}, {}
    for subject in SUBJECTS:
        rows = rows_of(subject, seed, 80)
        train[subject], tests[subject] = rows[:60], write(folder / f"test-{subject}.jsonl", rows[60:])
        recipe = {"name": subject, "teacher": str(start), "student": str(start), "generation": {"max_new_tokens": 8},
                  "data": {"train": write(folder / f"{subject}.jsonl", rows[:60]), **SIZES},
                  "training": {**training, "method": "sft", "epochs": epochs}}  # fmt: skip
        run = srd.run(recipe, "evaluation.models=[sft]", run_dir=folder / f"teacher-{subject}")
        teachers[subject] = str(run.folder)
    found = {f"teacher {subject}": losses(Path(path), tests) for subject, path in teachers.items()}
    both = write(folder / "both.jsonl", [row for rows in train.values() for row in rows])
    for way in WAYS:
        recipe = {**teachers_of(way, teachers), "name": way.replace(" ", "-"), "student": str(student),
                  "generation": {"max_new_tokens": 8}, "cache": {"dir": str(folder / "cache")},
                  "data": {"train": both, **SIZES, "teacher_column": "subject"},
                  "training": {**training, "method": "kd", "epochs": epochs}}  # fmt: skip
        run = srd.run(recipe, "evaluation.models=[kd]", run_dir=folder / way.replace(" ", "-"))
        found[way] = losses(run.folder, tests)
    return found


def main() -> None:
    """Print the table: mean and standard deviation over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    results = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory(prefix="srd-teachers-") as folder:
            results.append(measured(Path(folder), seed, options.epochs))
    print(f"| taught by | {' | '.join(SUBJECTS)} |\n|---|{'---:|' * len(SUBJECTS)}")
    for name in results[0]:
        values = {subject: [result[name][subject] for result in results] for subject in SUBJECTS}
        cells = [
            f"{np.mean(each):.2f} ± {np.std(each, ddof=1) if len(each) > 1 else math.nan:.2f}"
            for each in values.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
