"""What the report says about the models, for results of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srd.report.comparison import (
    comparison_table,
    headline,
    interval_table,
    models_of,
    overall_score,
    primary_metrics,
)
from srd.report.reading import RANKED, RunFiles
from srd.report.tables import Measure

RECIPE = {"training": {"curriculum": {"score": "fused"}}, "baselines": {"kd": {"curriculum": None}}}


def scores(mean: float, std: float = 0.3) -> dict[str, Any]:
    return {"rouge_l": {"mean": mean, "std": std, "seeds": {"10": mean - std, "20": mean + std}}}


def make_run(evaluation: dict[str, Any], **changes: Any) -> RunFiles:
    fields: dict[str, Any] = {
        "run_dir": Path("runs/a"),
        "recipe_text": "",
        "recipe": RECIPE,
        "manifest": {},
        "ranked": RANKED.empty_table(),
        "metrics": [],
        "evaluation": evaluation,
        "comparisons": [],
    }
    return RunFiles(**(fields | changes))


def say(run: RunFiles) -> list[str]:
    return headline(run, models_of(run))


def interval(low: float, high: float) -> list[dict[str, Any]]:
    pair = {"a": "srd", "b": "kd", "task": "test", "metric": "rouge_l"}
    return [pair | {"difference": (low + high) / 2, "low": low, "high": high}]


@pytest.mark.parametrize(
    ("ours", "low", "high", "expected"),
    [
        (24.1, 0.1, 1.5, "SRD is 0.8 points ahead of plain KD in ROUGE-L on the test set: 24.1 against 23.3"),
        (22.5, -1.5, -0.1, "SRD is 0.8 points behind plain KD in ROUGE-L on the test set: 22.5 against 23.3"),
        (24.1, -0.1, 1.7, "SRD and plain KD are level in ROUGE-L on the test set: 24.1 against 23.3"),
    ],
)
def test_the_interval_decides(ours: float, low: float, high: float, expected: str) -> None:
    run = make_run({"kd": {"test": scores(23.3)}, "srd": {"test": scores(ours)}}, comparisons=interval(low, high))
    assert say(run)[0].startswith(expected)
    assert "95% interval of the difference" in say(run)[0]


def test_without_an_interval_the_spread_over_seeds_decides() -> None:
    # Two spreads of 0.3 make 0.42: a difference of 0.4 is within, one of 0.5 beyond.
    assert "level" in say(make_run({"kd": {"test": scores(23.0)}, "srd": {"test": scores(23.4)}}))[0]
    assert "0.5 points ahead" in say(make_run({"kd": {"test": scores(23.0)}, "srd": {"test": scores(23.5)}}))[0]


def test_one_seed_is_said_to_be_one_seed() -> None:
    single = {"rouge_l": {"mean": 24.0, "std": 0.0, "seeds": {"10": 24.0}}}
    run = make_run({"kd": {"test": scores(23.0)}, "srd": {"test": single}})
    assert "one seed" in say(run)[0]
    assert models_of(run)[-1].scores["test", "rouge_l"] == Measure(24.0, None)


def test_costs_count_reflection_and_admit_more_time() -> None:
    steps = {
        "reflection": {"seconds": 100},
        "ranking": {"seconds": 10},
        "train/kd": {"seconds": 200, "summary": {"passes": 6, "examples": 100}},
        "train/srd": {"seconds": 999, "summary": {"passes": 4.5, "examples": 75, "seconds": 110}},
    }
    run = make_run({"kd": {"test": scores(23.0)}, "srd": {"test": scores(25.0)}}, manifest={"steps": steps})
    assert say(run)[1] == (
        "It took 75% of the examples, 25% fewer passes and 10% more time "
        "(3 min 40 s against 3 min 20 s, reflection included)."
    )
    kd, srd = models_of(run)
    assert (kd.total_seconds, kd.reflection_seconds) == (200, None)
    assert (srd.total_seconds, srd.reflection_seconds) == (220, 110)


def test_an_variant_ranked_at_random_pays_for_no_reflection() -> None:
    recipe = {"training": {"curriculum": {}}, "baselines": {"random": {"curriculum": {"score": "random"}}}}
    steps = {"reflection": {"seconds": 9}, "train/random": {"seconds": 5}, "train/srd": {"seconds": 5}}
    models = models_of(make_run({}, recipe=recipe, manifest={"steps": steps}))
    assert {model.key: model.reflection_seconds for model in models} == {"random": None, "srd": 9}


def test_teacher_share_and_gain_over_the_initial_student() -> None:
    run = make_run({name: {"test": scores(mean)} for name, mean in [("srd", 20), ("teacher", 25), ("student", 10)]})
    assert say(run) == [
        "SRD is 10.0 points ahead of the initial student in ROUGE-L on the test set: 20.0 against 10.0 "
        "(the spread over seeds is 0.4).",
        "It keeps 80% of its teacher's score.",
    ]
    assert [model.key for model in models_of(run)] == ["teacher", "student", "srd"]


def test_a_student_above_its_teacher() -> None:
    run = make_run({"teacher": {"test": scores(20)}, "srd": {"test": scores(21)}})
    assert say(run) == ["It scores as high as its teacher or higher (21.0 against 20.0)."]


def test_several_tasks_are_averaged_and_only_where_all_are_there() -> None:
    run = make_run(
        {
            "kd": {"a": scores(20), "b": scores(10)},
            "srd": {"a": scores(22), "b": scores(12)},
            "gkd": {"a": scores(99)},
        }
    )
    models = {model.key: model for model in models_of(run)}
    primary = primary_metrics(list(models.values()))
    assert overall_score(models["gkd"], primary) is None
    mean = overall_score(models["srd"], primary)
    assert mean is not None and mean.mean == 17.0
    assert mean.std == pytest.approx(0.3 * 2**0.5)  # both tasks move together: 16.7 and 17.3
    assert say(run)[0].startswith(
        "SRD is 2.0 points ahead of plain KD in ROUGE-L on the mean of 2 tasks: 17.0 against 15.0"
    )
    titles = [column.title for column in comparison_table(models_of(run)).columns]
    assert titles == ["Model", "a", "b", "Mean"]


def test_the_standing_metric_is_the_tasks_own() -> None:
    run = make_run({"srd": {"gsm8k": {"exact_match": {"mean": 1.0}, "accuracy": {"mean": 40.0}}}})
    assert primary_metrics(models_of(run)) == {"gsm8k": "accuracy"}
    assert say(run) == ["SRD scores 40.0 Accuracy on gsm8k."]


def test_the_teacher_does_not_compete_for_bold() -> None:
    run = make_run({"teacher": {"test": scores(30)}, "kd": {"test": scores(20)}, "srd": {"test": scores(21)}})
    assert comparison_table(models_of(run)).outside == {0}


def test_intervals_as_a_table() -> None:
    table = interval_table(make_run({}, comparisons=interval(-0.1, 1.7)))
    assert table is not None
    assert table.rows == [
        ["SRD \N{MINUS SIGN} Plain KD", "test", "ROUGE-L", "+0.8", "\N{MINUS SIGN}0.1 to +1.7", "level"]
    ]
    assert interval_table(make_run({})) is None
    [row] = interval(0, 1.6)
    table = interval_table(make_run({}, comparisons=[row | {"metric": "bleu", "low": None, "high": None}]))
    assert table is not None
    assert table.rows == [["SRD \N{MINUS SIGN} Plain KD", "test", "BLEU", "+0.8", None, None]]


@pytest.mark.parametrize("change", [{"difference": 3.0}, {"low": None, "high": None}])
def test_an_interval_of_another_difference_decides_nothing(change: dict[str, Any]) -> None:
    [row] = interval(0.1, 1.5)
    run = make_run({"kd": {"test": scores(23.3)}, "srd": {"test": scores(24.1)}}, comparisons=[row | change])
    assert "the spread over seeds is 0.4" in say(run)[0]


def test_nothing_to_say_without_a_trained_model() -> None:
    assert say(make_run({"teacher": {"test": scores(30)}})) == ["Nothing has been compared yet."]
    assert say(make_run({})) == ["Nothing has been compared yet."]
