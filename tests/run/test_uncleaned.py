"""A baseline on the rows as they came, beside a training on cleaned ones: what each has seen, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from benchmarks.demo import printed, tables_of

from srd.base.files import read_json
from srd.curation import likelihoods
from srd.recipe.reading import validate_recipe
from srd.report.cleaning import found_sentences
from srd.report.comparison import headline, models_of
from srd.report.figures import curve_series, step_seconds
from srd.report.reading import read_run
from srd.run.flow import planned_steps
from srd.run.outline.costs import INDEX_BYTES, DataFacts
from srd.run.plan.plan import make_plan
from srd.run.steps import training
from srd.training.tiers.base import EXACT_TOKENS
from tests.oracle import noun_rows, oracle_losses
from tests.runs import TinyRun, steps_finished, write_rows

pytestmark = pytest.mark.xdist_group("uncleaned")  # one worker makes what most of these compare with

SFT = {"epochs": 1, "batch_size": 8, "evaluate_every": 9}
AGAIN = ["teacher", "cache", "student", "train/kd"]  # what is made from the rows as they came, too


def with_baseline(run: TinyRun, **changes: Any) -> TinyRun:
    """Rows that the recipe damages, a teacher that learns them, and plain distillation without the cleaning."""
    write_rows(run.rows, noun_rows(90))
    return run.set(
        teacher__sft=SFT, student__warm_start=SFT, data__corruption={"share": 0.3, "kinds": ["swapped", "truncated"]},
        data__cleaning={"action": "drop", "find": ["eos", "match"]}, training__curriculum={"stages": 1, "select": 1.0},
        training__evaluate_every=9, baselines={"kd": {"curriculum": None, "cleaning": False}}, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A finished run; read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihoods, "pair_losses", oracle_losses)
        tiny = with_baseline(TinyRun(tmp_path_factory.mktemp("uncleaned")))
        tiny.run()
    return tiny


@pytest.fixture
def again(done: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """The same run, to be changed and run again."""
    monkeypatch.setattr(likelihoods, "pair_losses", oracle_losses)
    return done.copy(tmp_path / "run")


def ended(run: TinyRun) -> dict[str, str]:
    """When each step was finished, those of the rows as they came behind the others."""
    other = steps_finished(run.run_dir / "uncleaned")
    return {**steps_finished(run.run_dir), **{f"uncleaned {name}": when for name, when in other.items()}}


def changed(run: TinyRun, before: dict[str, str]) -> set[str]:
    return {name for name, when in ended(run).items() if when != before.get(name)}


def test_each_training_has_its_rows_and_its_teacher(done: TinyRun) -> None:
    run, other = done.run_dir, done.run_dir / "uncleaned"
    steps = read_json(run / "manifest.json")["steps"]
    marked = sum(pq.read_table(run / "cleaning" / "rows.parquet")["wrong"].to_pylist())
    assert marked and steps["train/kd"]["summary"]["examples"] == 82
    assert steps["train/srd"]["summary"]["examples"] == 82 - marked
    assert list(read_json(other / "manifest.json")["steps"]) == AGAIN
    assert (run / "examples/train.parquet").read_bytes() == (other / "examples/train.parquet").read_bytes()
    weights = "model.safetensors"
    assert (run / "teacher" / weights).read_bytes() != (other / "teacher" / weights).read_bytes()
    for place in ("student", "stages/0"):
        ours, theirs = run / "baselines/kd" / place, other / "baselines/kd" / place
        names = {path.name for path in theirs.iterdir() if path.is_file()}
        assert names and all((ours / name).is_file() for name in names)
    assert set(read_json(run / "evaluation/metrics.json")) == {"teacher", "student", "kd", "srd"}
    assert [json.loads(line)["arm"] for line in (run / "metrics.jsonl").read_text().splitlines()].count("kd") > 2


def test_it_is_the_student_of_a_run_without_cleaning(done: TinyRun, tmp_path: Path) -> None:
    alone = done.twin().set(data__cleaning="off", training__curriculum=None, baselines={})
    alone.advance("train/kd", run_dir=tmp_path / "alone")
    weights = "student/model.safetensors"
    assert (tmp_path / "alone" / weights).read_bytes() == (done.run_dir / "baselines/kd" / weights).read_bytes()


def test_the_report_says_what_was_found_and_what_each_had(done: TinyRun) -> None:
    run = read_run(done.run_dir)
    [told] = found_sentences(run)
    rows = {row["id"]: row for row in pq.read_table(run.files.marked).to_pylist()}
    kinds = run.corruption()
    for kind in ("swapped", "truncated"):
        ids = [name for name, own in kinds.items() if own == kind]
        assert f"{sum(rows[name]['wrong'] for name in ids)} of the {len(ids)} that were {kind}" in told
    right = [name for name in rows if name not in kinds]
    assert f"{sum(rows[name]['wrong'] for name in right)} of the {len(right)} that were not damaged" in told
    models = models_of(run)
    assert [model.name for model in models] == ["Teacher", "Initial student", "Plain KD, uncleaned", "SRD"]
    assert "cleaning included). Plain KD, uncleaned, is what comes without cleaning" in " ".join(headline(run, models))
    assert [line.name for line in curve_series(run, [*run.variants], "loss", False)] == ["Plain KD, uncleaned", "SRD"]
    assert {f"{name}, rows as they came" for name in AGAIN[:-1]} <= step_seconds(run).keys()
    assert "Plain KD, uncleaned" in printed(run) and told.split(":")[0] in " ".join(printed(run).split())
    tables = tables_of(run)
    assert all(tables[name].count("\n") >= 4 for name in ("demo", "demo-intervals", "demo-found"))
    assert "| All |" in tables["demo-times"]  # steps of less than a second are left out
    page = (done.run_dir / "report/index.html").read_text(encoding="utf-8")
    assert "Does it find what was damaged on purpose?" in page and "Teacher, rows as they came" in page


def test_it_goes_on_where_it_ended(again: TinyRun) -> None:
    before = ended(again)
    again.run()
    assert changed(again, before) == set()
    (again.run_dir / "uncleaned/baselines/kd/student/model.safetensors").unlink()
    again.run()
    assert changed(again, before) == {"uncleaned train/kd"}, "the same bytes: nothing that depends on them is redone"


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"data__cleaning__find": ["eos"]}, False),
        ({"baselines": {"kd": {"curriculum": None, "cleaning": False, "weight": 0.7}}}, True),
    ],
)
def test_a_changed_option_redoes_what_depends_on_it(
    again: TinyRun, change: dict[str, Any], redone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ended(again)
    if redone:  # a training that is cut off goes on
        with monkeypatch.context() as patch:
            patch.setattr(training, "train", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                again.set(**change).advance("train/kd")
    again.set(**change).advance("train/kd")
    expected = {"uncleaned train/kd", "train/kd"} if redone else set()
    assert changed(again, before) == expected


@pytest.mark.parametrize(
    ("cleaning", "uncleaned"), [("off", False), ("report", False), ("drop", True), ("repair", True)]
)
def test_without_a_cleaning_it_is_a_training_like_others(tmp_path: Path, cleaning: str, uncleaned: bool) -> None:
    run = with_baseline(TinyRun(tmp_path)).set(data__cleaning__action=cleaning)
    run.set(baselines__weak={"curriculum": None, "cleaning": False, "weight": 0.1})  # what it learns from is there
    recipe = validate_recipe(run.recipe, "tiny")
    steps = {step.name: type(step).__name__ for step in planned_steps(recipe)}
    assert steps["train/kd"] == ("Uncleaned" if uncleaned else "Training")
    plan = make_plan(recipe, data=DataFacts(82, 4, 4, 16.0, 14.0, 1148, exact=True))
    names = [phase.name for phase in plan.phases if phase.flops]
    twice = [f"{name}, rows as they came" for name in ("teacher", "cache", "student", "train/kd", "train/weak")]
    assert [name for name in names if "rows" in name] == (twice if uncleaned else [])
    head = 4 * plan.teacher.hidden_size * plan.teacher.vocabulary
    beside = head + EXACT_TOKENS * (4 * plan.teacher.hidden_size + 8) + INDEX_BYTES * 82
    assert plan.beside_bytes == (2 if uncleaned else 1) * beside
    flops = {phase.name: phase.flops for phase in plan.phases}
    assert not uncleaned or flops["teacher, rows as they came"] == flops["teacher"]
