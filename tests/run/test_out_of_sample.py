"""Reflection by a student that has not seen the rows, and the preset that goes beyond the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from srd.base import files
from srd.base.errors import UserError
from srd.base.yaml_text import parse_yaml
from srd.curation import likelihoods
from srd.recipe.reading import recipe_yaml, validate_recipe
from srd.run.plan.plan import make_plan
from srd.run.steps import reflection
from srd.run.steps.reflection import folds_of
from tests.faults import killed_in
from tests.oracle import oracle_losses
from tests.runs import TinyRun, steps_finished

WARM = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2, "select_by": "last"}


def test_each_row_is_scored_by_a_student_that_has_not_seen_it(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[str]] = []
    train = reflection.train

    def noted(training: Any, final: Any) -> Any:
        trained.append({name for stage in training.stages for name in stage.ids})
        return train(training, final)

    monkeypatch.setattr(reflection, "train", noted)
    tiny_run.set(data__train_limit=12, student={"drop_layers": 1, "warm_start": WARM}, reflection__out_of_sample="auto")
    run = tiny_run.advance("reflection")
    ids = run.split("train")["id"][:]
    fold = folds_of(ids, 2, 0)
    assert [seen == {name for name, own in zip(ids, fold, strict=True) if own != i} for i, seen in enumerate(trained)]
    assert len(trained) == 2 and not trained[0] & trained[1] and trained[0] | trained[1] == set(ids)
    scores = pq.read_table(run.files.scores)
    assert scores["id"].to_pylist() == ids and not run.files.folds.exists()
    assert (tiny_run.run_dir / "logs" / "fold_1.jsonl").is_file()
    assert "student" not in run.keys  # nobody has asked for the one that has seen them all
    before = steps_finished(tiny_run.run_dir)
    assert steps_finished(tiny_run.advance("reflection").folder) == before


@pytest.mark.parametrize("count", [7, pytest.param(None, marks=pytest.mark.slow)])
def test_cross_fitting_killed_anywhere_and_started_again_gives_the_same_bytes(
    tiny_run: TinyRun, count: int | None
) -> None:
    """In the warm-ups of the folds and in their answers; no step of a warm-up is logged twice."""
    warm = {**WARM, "batch_size": 2, "evaluate_every": 0.5, "select_by": "loss"}
    tiny_run.set(data__train_limit=8, student={"drop_layers": 1, "warm_start": warm}, generation__batch_size=2)
    tiny_run.set(reflection__out_of_sample="cross_fit")
    folders = killed_in("reflection", lambda run_dir: tiny_run.advance("reflection", run_dir=run_dir),
                        tiny_run.folder, count)  # fmt: skip
    made = [{path.relative_to(folder): path.read_bytes() for path in files.walk(folder / "reflection")}
            for folder in folders]  # fmt: skip
    scores, own = Path("reflection/scores.parquet"), Path("reflection/endings.parquet")
    assert made[0] == made[1] and made[0].keys() == {scores, own}
    assert pq.read_table(folders[0] / own).select(["id", "ce"]) == pq.read_table(folders[0] / scores).select(
        ["id", "ce"]
    )
    logged = [
        [(name, row["step"], row.get("loss"), row.get("eval_loss")) for name in ("fold_0", "fold_1")
         for row in map(json.loads, (folder / "logs" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())]
        for folder in folders
    ]  # fmt: skip
    assert logged[0] == logged[1] and len(logged[0]) > 8


def test_the_student_before_its_warm_up(tiny_run: TinyRun) -> None:
    tiny_run.set(data__train_limit=12, student={"model": str(tiny_run.student), "warm_start": WARM})
    inside = tiny_run.advance("reflection", run_dir=tiny_run.folder / "inside")
    outside = tiny_run.set(reflection__out_of_sample="auto").advance("reflection")
    plain = tiny_run.set(student=str(tiny_run.student)).advance("reflection", run_dir=tiny_run.folder / "plain")
    scores = [pq.read_table(run.files.scores).to_pydict() for run in (inside, outside, plain)]
    assert scores[1] == scores[2] != scores[0]
    summaries = [run.manifest.steps["reflection"]["summary"] for run in (inside, outside)]
    assert summaries[0]["in_sample"] is True and "in_sample" not in summaries[1]


@pytest.mark.parametrize("way", ["auto", "off"])
def test_a_student_cut_from_a_fine_tuned_teacher_knows_the_rows(
    tiny_run: TinyRun, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folds cannot help: the teacher that all of them start from has seen every row."""
    warm = {"warm_start": WARM} if way == "auto" else {}
    tiny_run.set(data__train_limit=8, student={"drop_layers": 1, **warm}, reflection__out_of_sample=way)
    tiny_run.set(teacher={"model": str(tiny_run.teacher), "sft": WARM})
    summary = tiny_run.advance("reflection").manifest.steps["reflection"]["summary"]
    assert summary["in_sample"] is True
    assert " ".join(capsys.readouterr().err.split()).count("is made of the teacher, which was fine-tuned") == 1


def test_other_scores_are_those_of_the_student_that_reflects(tiny_run: TinyRun) -> None:
    """A ranking joins what it says in both steps; where there is no such student, the recipe is refused."""
    tiny_run.set(data__train_limit=8, training__curriculum={"score": "wording"})
    plain = tiny_run.set(student=str(tiny_run.student)).advance("ranking", run_dir=tiny_run.folder / "plain")
    warm = {"model": str(tiny_run.student), "warm_start": WARM}
    before = tiny_run.set(student=warm, reflection__out_of_sample="before").advance("ranking")
    measures = [pq.read_table(run.files.measures).to_pydict() for run in (plain, before)]
    assert measures[0] == measures[1]
    assert "student" not in before.keys  # nobody asks for the one that is warmed up
    inside = tiny_run.set(reflection__out_of_sample="off").advance("ranking", run_dir=tiny_run.folder / "inside")
    assert pq.read_table(inside.files.measures).to_pydict() != measures[0]
    with pytest.raises(UserError, match=r"srd ranks by wording, which one student says, but .* is cross_fit"):
        validate_recipe(tiny_run.twin().set(reflection__out_of_sample="cross_fit").recipe, "tiny")
    with pytest.raises(UserError, match="srd ranks by wording, which read the last answer"):
        validate_recipe(tiny_run.twin().set(data__train_on="all").recipe, "tiny")


def test_folds_are_equal_and_follow_the_ids() -> None:
    ids = [f"e{i}" for i in range(11)]
    folds = dict(zip(ids, folds_of(ids, 3, seed=4).tolist(), strict=True))
    assert sorted(list(folds.values()).count(i) for i in range(3)) == [3, 4, 4]
    assert folds == dict(zip(ids[::-1], folds_of(ids[::-1], 3, seed=4).tolist(), strict=True))
    assert folds != dict(zip(ids, folds_of(ids, 3, seed=5).tolist(), strict=True))


def test_it_is_planned_and_wrong_settings_are_refused(tiny_run: TinyRun) -> None:
    def recipe(**changes: Any) -> Any:
        return validate_recipe(tiny_run.twin().set(**changes).recipe, "tiny")

    shortened = {"drop_layers": 1, "warm_start": WARM}
    passes = [
        {
            phase.name: phase.student_passes
            for phase in make_plan(recipe(student=shortened, reflection__out_of_sample=way)).phases
        }
        for way in ("off", "auto")
    ]
    assert passes[1]["reflection"] == passes[0]["reflection"] + passes[0]["student"] == 2
    with pytest.raises(UserError, match=r"there is no student\.warm_start"):
        recipe(reflection__out_of_sample="cross_fit")
    with pytest.raises(UserError, match="has lost layers"):
        recipe(student=shortened, reflection__out_of_sample="before")
    assert recipe(reflection__out_of_sample="auto").out_of_sample == "off"


def test_plus_sets_what_is_not_set(tiny_run: TinyRun) -> None:
    plus = tiny_run.set(training__curriculum={"preset": "plus"}, training__weight=0.3, training__temperature=1.5)
    recipe = validate_recipe(plus.recipe, "tiny")
    assert (recipe.data.cleaning.action, recipe.reflection.out_of_sample) == ("repair", "auto")
    assert recipe.training.curriculum is not None and recipe.training.curriculum.select == 1.0
    assert (recipe.training.curriculum.stages, recipe.training.curriculum.row_weights) == (1, "equal")
    plain = validate_recipe(
        {**plus.recipe, "training": {**plus.recipe["training"], "curriculum": None}}, "tiny"
    ).training
    for name in ("weight", "temperature"):
        assert recipe.training.curriculum.schedule(name) == [getattr(plain, name)]
    again = validate_recipe(parse_yaml(recipe_yaml(recipe), "recipe"), "tiny")
    assert again == recipe
    plus.set(data__cleaning="report", training__curriculum={"preset": "plus", "select": 0.5})
    recipe = validate_recipe(plus.recipe, "tiny")
    assert recipe.data.cleaning.action == "report" and recipe.training.curriculum.select == 0.5
    short = {**plus.recipe, "data": str(tiny_run.rows)}
    assert validate_recipe(short, "tiny").data.cleaning.action == "repair"
    paper = validate_recipe(
        {**tiny_run.recipe, "training": {"curriculum": {"preset": "paper"}}, "data": str(tiny_run.rows)}, "tiny"
    )
    assert paper.data.cleaning.action == "off" and paper.training.curriculum.select == 0.75


def test_plus_ranks_with_what_was_found(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihoods, "pair_losses", oracle_losses)
    run = tiny_run.set(training__curriculum={"preset": "plus"}).advance("ranking")
    ranked = pq.read_table(run.files.ranked)
    columns = ["id", "rouge_l", "ce", "rank_rouge", "rank_ce", "rrf", "rank", "kept", "stage"]
    assert ranked.column_names[:9] == columns
    assert {"wrong", "why", "repaired", "match", "eos", "near_copy"} <= set(ranked.column_names)
    wrong = ranked["wrong"].to_pylist()
    assert ranked["kept"].to_pylist() == [not each for each in wrong]  # nobody else is dropped
