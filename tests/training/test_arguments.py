"""What a recipe says in the Trainer's terms, whatever the environment says beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from srd.curation.curriculum import Stage
from srd.training.arguments import training_arguments
from srd.training.settings import TrainingConfig
from srd.training.training import Training


@pytest.mark.parametrize("found", [None, "no", "bf16", "fp16"])
@pytest.mark.parametrize(("precision", "wanted"), [("float32", "no"), ("bfloat16", "bf16")])
def test_the_recipe_decides_the_precision_and_not_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str | None, precision: Any, wanted: str
) -> None:
    """`accelerate launch` leaves its own precision in the environment, and so does the training before this one."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", found or "")
    if found is None:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    stage, nothing = Stage(0, ["a", "b"], 1.0, 1.0), Any
    training = Training(
        "kd", TrainingConfig(precision=precision), tmp_path, "start", {}, nothing, nothing, nothing,  # type: ignore[arg-type]
        [stage], 0, tmp_path / "metrics.jsonl", tmp_path / "log.jsonl",
    )  # fmt: skip
    arguments: Any = training_arguments(training, stage)
    assert arguments.mixed_precision == os.environ["ACCELERATE_MIXED_PRECISION"] == wanted
