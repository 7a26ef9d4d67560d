"""What the tests of sweeps share: a recipe on tiny models, and the file of a sweep over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.tiny import save_tiny

SEAS = ("north", "south", "east", "west", "cold", "warm", "deep", "calm", "rough", "blue", "green", "grey")


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on tiny models and a few rows."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recipe")
    teacher = save_tiny(folder / "teacher", "gpt2", hidden=16)
    rows = [{"instruction": f"What lives in the {sea} sea?", "output": f"The {sea} whale lives there."} for sea in SEAS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *variants(rows)]))
    recipe = {
        "teacher": {"model": str(teacher)},
        "student": {"drop_layers": 1},
        "data": {"train": str(folder / "rows.jsonl"), "validation_size": 2, "test_size": 4, "template": "plain"},
        "generation": {"max_new_tokens": 3},
        "training": {"epochs": 1, "batch_size": 6, "curriculum": {"stages": 2, "select": 0.75}},
        "evaluation": {"seeds": [10, 20]},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def variants(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**row, "instruction": row["instruction"].replace("What", "Who")} for row in rows[:6]]


def write_sweep(folder: Path, recipe_file: Path, **content: Any) -> Path:
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(recipe_file), **content}, sort_keys=False))
    return path


KD_AND_SRD = {"kd": {"training.curriculum": None}, "srd": {}}
