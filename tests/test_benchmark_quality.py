"""The benchmark of quality over time runs by every way, and its table says what was measured."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import conventional, quality

from srd.base.files import write_json
from srd.recipe.reading import validate_recipe
from tests.runs import in_turn
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> quality.Prepared:
    """Teacher and student of the tiny benchmark, on rows of its own."""
    folder = tmp_path_factory.mktemp("quality")
    rows = [{"instruction": f"Say {i}.", "output": "yes it is " * (1 + i % 3)} for i in range(24)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    teacher = quality.tiny_teacher(folder / "teacher")
    plan = replace(quality.TINY, teacher=teacher, data=str(folder / "rows.jsonl"))
    quality.prepare(plan, folder / "work")
    return quality.Prepared(plan, folder / "work")


@pytest.mark.xdist_group("quality")  # one worker makes what all of these begin with
@pytest.mark.parametrize(
    "system", in_turn(quality.TITLES, "conventional", "trl-gkd-off", "trl-distillation", "gkd-stage", "plus")
)
def test_every_way_to_quality_runs(prepared: quality.Prepared, system: str) -> None:
    if why := quality.missing(system):
        pytest.skip(why)
    case = quality.Case(system, seed=0, rate=1e-3)
    result = quality.run_case(case, prepared)
    write_json(case.file(prepared.folder), result)
    steps, seconds, scores = zip(*result["points"], strict=True)
    assert len(steps) == 1 + prepared.plan.points
    assert (steps[0], scores[0]) == (0, 100 * prepared.content()["student"])
    assert abs(steps[-1] - prepared.plan.steps) <= 2, "a curriculum's stages are rounded, each for itself"
    assert 0 < seconds[0] < seconds[-1] <= result["seconds"]
    # On a busy machine time passes also between one part and the next.
    assert sum(result["parts"].values()) == pytest.approx(result["seconds"], rel=0.02, abs=0.01)
    ahead = {"kd": {quality.READS}, "gkd-stage": {quality.READS, quality.WRITES}}.get(system, set())
    assert ahead <= {part for part, spent in result["parts"].items() if spent > 0}


def test_a_student_that_lacks_no_layer_is_the_model_as_it_comes(tmp_path: Path) -> None:
    plan = quality.plan_of(quality._parser().parse_args(["--drop", "0", "--max-length", "96"]))
    recipe = validate_recipe(plan.models(), "quality")
    assert (recipe.student.model, recipe.student.warm_start, recipe.data.max_length) == (recipe.teacher.model, None, 96)
    assert quality.Prepared(plan, tmp_path).student == plan.teacher
    assert quality.Prepared(quality.Plan(), tmp_path).student == str(tmp_path / "models" / "start")


def test_what_is_not_counted_stops_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(quality.time, "perf_counter", lambda: now)
    watch = quality.Watch()
    now = 5.0
    with watch.pause():
        now = 105.0
    now = 106.0
    watch.note(3, 0.25)
    assert watch.points == [(3, 6.0, 25.0)]


def result(rate: float, *scores: float, system: str = "kd", seed: int = 0, pace: float = 1.0) -> dict[str, Any]:
    points = [(step, pace * 10 * step, score) for step, score in enumerate(scores)]
    return {"system": system, "seed": seed, "rate": rate, "points": points, "memory": 2**20, "device": "no GPU",
            "parts": {quality.LOADS: 2.0, "training": 10.0 * len(scores)}}  # fmt: skip


def test_the_learning_rate_is_the_one_that_ends_best(tmp_path: Path) -> None:
    where = quality.Prepared(quality.TINY, tmp_path)
    for given in (result(1e-4, 10, 30, 20), result(2e-4, 10, 25, 24), result(2e-4, 10, 25, 22, seed=1)):
        write_json(quality.Case("kd", given["seed"], given["rate"]).file(tmp_path), given)
    found = quality.results_of(where, "kd", seeds=3, rates=[1e-4, 2e-4, 4e-4])
    assert [(each["rate"], each["seed"]) for each in found] == [(2e-4, 0), (2e-4, 1)]
    assert quality.mean_curve(found) == [(0, 10), (10, 25), (20, 23)]
    assert quality.results_of(where, "plus", seeds=3, rates=[1e-4]) == []


@pytest.mark.parametrize(
    ("goal", "seconds"), [(15.0, 5.0), (20.0, 10.0), (25.0, 17.5), (30.0, 20.0), (31.0, None), (9.0, 0.0)]
)
def test_the_time_to_a_quality_lies_between_two_validations(goal: float, seconds: float | None) -> None:
    assert quality.time_to([(0, 10), (10, 20), (15, 20), (20, 30), (30, 20)], goal) == seconds


def test_the_table_compares_with_the_best_peer(tmp_path: Path) -> None:
    found = {
        "kd": [result(1e-4, 10, 20, 30)],
        "conventional": [result(1e-4, 10, 20, 30, pace=8)],
        "trl-gkd-off": [result(1e-4, 10, 20, 30, pace=4)],
        "plus": [result(1e-4, 10, 12, 11)],
    }
    content = {"student": 0.1, "teacher": 0.4}
    failed = {"trl-gkd-on": "TRL is not installed", "kd": quality.NO_TIME, "gkd-step": quality.NO_TIME}
    text = quality.table(content, found, failed, quality.TINY)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in text.splitlines() if line[:1] == "|"}
    assert rows["ours, off-policy KD"][5:8] == ["20.0 s", "18 s", "4.00"]
    assert rows["the conventional way"][5:8] == ["160.0 s", "144 s", "0.50"]
    assert rows["ours, preset: plus"][5:8] == ["20.0 s", "not reached", "–"]
    assert "TRL GKDTrainer, on-policy (lmbda 1): TRL is not installed" in text
    assert "ours, on-policy, refresh: step: no time was left" in text
    assert text.count(quality.NO_TIME) == 1, "a way that was measured lacks seeds, which their number says"
    assert quality.plot(content, found).count("<path") >= 4
    worse = {**found, "conventional": [result(1e-4, 10, 15, 20, pace=8)]}
    assert f"| {quality.TITLES['conventional']} | 19.00 | 144 s | 9 s | 16.0 |" in quality.equal_table(10, worse)
    assert quality.equal_table(10, {"kd": found["kd"]}) == ""


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_way_is_searched_before_any_is_trained_again(tmp_path: Path, jobs: int) -> None:
    where = quality.Prepared(quality.TINY, tmp_path)
    ran: list[tuple[str, int, float]] = []

    def run(case: quality.Case) -> str:
        ran.append((case.system, case.seed, case.rate))
        if case.system == "plus" or case.rate > 1:
            return f"{case.system} at {case.rate} failed"
        write_json(case.file(tmp_path), result(case.rate, 10, 1e5 * case.rate, system=case.system, seed=case.seed))
        return ""

    failed = quality.measure_all(["kd", "plus", "conventional"], where, 3, [1e-4, 2e-4], run, jobs)
    first = {(name, 0, rate) for name in ("kd", "plus", "conventional") for rate in (1e-4, 2e-4)}
    if jobs == 1:
        assert set(ran[:6]) == first
    assert sorted(set(ran) - first) == [(name, seed, 2e-4) for name in ("conventional", "kd") for seed in (1, 2)]
    assert [*failed] == ["plus"]
    assert quality.measure_all(["kd"], where, 2, [1e-4, 2.0], run, 1) == {}, "one rate that fails costs no other"


def test_the_conventional_way_reads_the_weights_of_each_step() -> None:
    """Autocast copies the weights once for as long as it lasts: it must not last for more than a step."""
    rows = [{"prompt_ids": [5, 6, 7], "response_ids": [8, 9, 10, 11, 12, 13, 14, 15]}] * 4
    batch, losses = conventional.pad_batch(rows, 0, 16), []
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    for precision in (contextlib.nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)):
        student, teacher = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
        for weight in teacher.parameters():
            weight.data.mul_(3)  # so that there is much to learn
        conventional.train(
            student, teacher, [rows] * 20, 0, 1.0, 1.0, learning_rate=1e-2, length=16, precision=precision
        )  # fmt: skip
        with torch.no_grad():
            ours, theirs = student(**inputs).logits, teacher(**inputs).logits
        losses.append(float(conventional.forward_kl_loss(ours, theirs, batch["labels"], 1.0)))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
