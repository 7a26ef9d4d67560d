"""A recipe that ranks by what more passes say: the passes are made, planned, and made again only when they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import srd
from srd.curation import likelihoods
from srd.models.loading.loading import load_model
from srd.recipe.reading import validate_recipe
from srd.run.context import Run
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


def forget_own_losses(run: Run) -> None:
    """Leave a reflection as an earlier version has, which kept no more of it than the scores."""
    run.files.own_losses.unlink()
    name = str(run.files.own_losses.relative_to(run.folder))
    step = run.manifest.steps["reflection"]
    del step["outputs"][name]
    step["places"].remove(name)
    run.manifest.save()


@pytest.mark.parametrize(
    ("family", "score", "pairs"),
    [("llama", ["ce", "eos"], 0), ("t5", ["ce", "eos", "pmi"], 1), ("llama", ["fused", "match", "eos", "pmi"], 4)],
)
def test_what_the_reflection_has_read_is_not_read_again(
    family: str, score: list[str], pairs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = likelihoods.pair_losses

    def counted(model: Any, tokenizer: Any, pairs: Any, **options: Any) -> Any:
        read.append(len(pairs.which))
        return original(model, tokenizer, pairs, **options)

    monkeypatch.setattr(likelihoods, "pair_losses", counted)
    tiny = TinyRun(tmp_path, family).set(training__curriculum={"score": score, "stages": 1})
    tiny.set(data__max_length=28, data__max_prompt_length=20)
    measures = []
    for folder, before in (("now", lambda run: None), ("earlier", forget_own_losses)):
        before(tiny.advance("reflection", run_dir=tmp_path / folder))
        done = steps_finished(tmp_path / folder)["reflection"]
        run = tiny.advance("ranking", run_dir=tmp_path / folder)
        assert steps_finished(tmp_path / folder)["reflection"] == done
        measures.append(
            {name: np.array(values) for name, values in pq.read_table(run.files.measures).to_pydict().items()}
        )
    rows = len(measures[0]["id"])
    assert [round(count / rows, 6) for count in read] == ([pairs] if pairs else []) + [pairs + 1]
    assert 0 < np.count_nonzero(measures[0]["end_nll"]) < rows  # a response that was cut to fit has no end
    for name in set(measures[0]) - {"id"}:
        assert measures[0][name] == pytest.approx(measures[1][name], rel=1e-5), name


def test_passes_are_planned(tiny_run: TinyRun) -> None:
    def phases(**changes: object) -> dict[str, float]:
        recipe = validate_recipe(tiny_run.twin().set(**changes).recipe, "tiny")
        return {phase.name: phase.student_passes for phase in make_plan(recipe).phases}

    assert "measures" not in phases()
    assert phases(training__curriculum__score="eos")["measures"] == 0
    assert phases(training__curriculum__score=["pmi", "eos"])["measures"] == 1
    assert phases(training__curriculum__score=["match", "ifd"])["measures"] == 4
    assert phases(training__curriculum__score="gap")["measures"] == 0
    with pytest.raises((ValidationError, ValueError), match="not by match"):
        phases(training__curriculum={"score": ["ce", "match"], "reflect_again": True})
