"""A recipe that ranks by what more passes say: the passes are made, planned, and made again only when they change."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import srd
from srd.models.loading.loading import load_model
from srd.recipe.reading import validate_recipe
from srd.run.plan.plan import make_plan
from tests.runs import TinyRun, steps_finished

EVERYTHING = ["rouge_l", "ce", "eos", "pmi", "ifd", "match", "gap", "near_copy", "length"]


def test_every_score_ranks_a_run(tiny_run: TinyRun) -> None:
    tiny_run.set(training__curriculum={"score": EVERYTHING, "fusion": "mean_rank", "stages": 1})
    run = tiny_run.train()
    measures = pq.read_table(run.files.measures).to_pydict()
    assert list(measures) == ["id", "end_nll", "unprompted_nll", "mismatched_nll", "teacher_ce", "likeness"]
    assert measures["id"] == run.split("train")["id"][:]
    assert not run.files.measured.exists()
    # The cache says what a pass of the teacher says.
    teacher = load_model(str(tiny_run.teacher), tokenizer=run.tokenizer)
    scores = srd.reflect(teacher, run.tokenizer, run.split("train"), encoded=run.token_ids("train"), max_new_tokens=1)
    assert np.allclose(measures["teacher_ce"], scores["ce"][:], rtol=1e-4)
    # Another fusion needs no other passes.
    before = steps_finished(tiny_run.run_dir)
    after = steps_finished(tiny_run.set(training__curriculum__fusion="max_rank").train().folder)
    assert [name for name in after if after[name] != before[name]] == ["ranking", "train/srd"]


def test_passes_are_planned(tiny_run: TinyRun) -> None:
    def phases(**changes: object) -> dict[str, float]:
        recipe = validate_recipe(tiny_run.twin().set(**changes).recipe, "tiny")
        return {phase.name: phase.student_passes for phase in make_plan(recipe).phases}

    assert "measures" not in phases()
    assert phases(training__curriculum__score="eos")["measures"] == 1
    assert phases(training__curriculum__score=["pmi", "eos"])["measures"] == 2
    assert phases(training__curriculum__score=["match", "ifd"])["measures"] == 5
    assert phases(training__curriculum__score="gap")["measures"] == 0
    with pytest.raises((ValidationError, ValueError), match="not by match"):
        phases(training__curriculum={"score": ["ce", "match"], "reflect_again": True})
