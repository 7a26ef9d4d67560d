"""Selection, stages, schedules and orders, and what wrong settings get."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import srd
from srd.base.errors import UserError
from srd.curation.curriculum import Curriculum
from srd.recipe.reading import validate_recipe


def ranked(count: int) -> datasets.Dataset:
    """Ranked examples whose names say their rank, in another order than their ranks."""
    rows = [{"id": f"rank{i:05d}", "rouge_l": 1 - i / count, "ce": float(i)} for i in range(count)]
    table = srd.rank(rows)
    assert table["id"][:] == [row["id"] for row in rows]
    return table


def test_defaults_are_the_papers() -> None:
    stages = srd.Curriculum().split(ranked(100))
    assert [stage.index for stage in stages] == [0, 1, 2]
    assert [stage.size for stage in stages] == [25, 50, 75]
    assert [stage.temperature for stage in stages] == [1.0, 1.5, 2.0]
    assert [stage.weight for stage in stages] == pytest.approx([0.8, 0.9, 1.0])
    assert all(stage.ids == [f"rank{i:05d}" for i in range(stage.size)] for stage in stages)
    assert all(stage.subset is None for stage in stages)


def test_a_preset_in_python_is_more_than_a_name() -> None:
    """And in a recipe an object says what its settings do."""
    (stage,) = Curriculum(preset="plus").split(ranked(100))
    assert (stage.size, stage.weight, stage.temperature) == (100, 1.0, 1.0)
    assert [each.size for each in Curriculum(preset="plus", stages=2, select=0.5).split(ranked(100))] == [25, 50]
    models = {"teacher": "big", "student": "small", "data": "rows.jsonl"}
    said = Curriculum(preset="plus", seed=3).model_dump(exclude_unset=True)  # what srd.distill and srd.run make of it
    assert said == {"preset": "plus", "seed": 3}
    recipe = validate_recipe({**models, "training": {"weight": 0.3, "curriculum": said}}, "")
    assert recipe.training.curriculum and recipe.training.curriculum.schedule("weight") == [0.3]


@given(st.integers(1, 500), st.integers(1, 8), st.floats(0.01, 1))
def test_stages_are_cumulative(count: int, stages: int, select: float) -> None:
    curriculum = Curriculum(stages=stages, select=select)
    kept = int(select * count + 1e-9)
    if kept < stages:
        with pytest.raises(UserError, match=f"{kept} of {count} examples are kept"):
            curriculum.sizes(count)
        return
    sizes = curriculum.sizes(count)
    assert sizes[-1] == kept and len(sizes) == stages and sizes[0] >= 1
    assert sizes == sorted(sizes)
    assert all(abs(size - kept * (i + 1) / stages) < 1 for i, size in enumerate(sizes))


@pytest.mark.parametrize(("select", "count", "kept"), [(0.29, 100, 29), (0.75, 4, 3), (1.0, 7, 7), (0.1, 30, 3)])
def test_kept_share_is_not_a_victim_of_rounding(select: float, count: int, kept: int) -> None:
    assert Curriculum(stages=1, select=select).sizes(count) == [kept]


def test_sizes_from_11000_dolly_rows() -> None:
    assert Curriculum().sizes(11_435) == [2858, 5717, 8576]


def test_selection_and_number_of_stages_are_independent() -> None:
    assert Curriculum(stages=4, select=1).sizes(100) == [25, 50, 75, 100]
    assert Curriculum(stages=1, select=0.5).sizes(100) == [50]
    assert Curriculum(stages=2, select=0.6).sizes(10) == [3, 6]


@pytest.mark.parametrize(
    ("stages", "value", "expected"),
    [
        (3, 1.5, [1.5, 1.5, 1.5]),
        (3, [1, 2], [1, 1.5, 2]),
        (3, [2, 1], [2, 1.5, 1]),
        (4, [1, 2.5], [1, 1.5, 2, 2.5]),
        (3, [1, 1.33, 1.67], [1, 1.33, 1.67]),
        (1, [1, 2], [1]),
        (2, [1, 2], [1, 2]),
        (3, [1.2], [1.2, 1.2, 1.2]),
    ],
)
def test_schedules(stages: int, value: Any, expected: list[float]) -> None:
    assert Curriculum(stages=stages, temperature=value).schedule("temperature") == pytest.approx(expected)


def test_hard_to_easy_begins_with_the_hardest_of_what_is_kept() -> None:
    stages = Curriculum(order="hard_to_easy").split(ranked(8))
    assert [stage.ids for stage in stages] == [
        ["rank00005", "rank00004"],
        ["rank00005", "rank00004", "rank00003", "rank00002"],
        [f"rank0000{i}" for i in (5, 4, 3, 2, 1, 0)],
    ]


def test_random_order_differs_from_srd_in_nothing_but_the_order() -> None:
    table = ranked(100)
    control, easy = Curriculum(order="random", seed=1).split(table), Curriculum().split(table)
    for mine, theirs in zip(control, easy, strict=True):
        assert (mine.size, mine.temperature, mine.weight) == (theirs.size, theirs.temperature, theirs.weight)
    assert set(control[-1].ids) == set(easy[-1].ids)
    assert control[-1].ids != easy[-1].ids
    assert control[0].ids == control[1].ids[:25] == control[2].ids[:25]
    assert control[0].ids == Curriculum(order="random", seed=1).split(table)[0].ids
    assert control[0].ids != Curriculum(order="random", seed=2).split(table)[0].ids
    assert 0 < len(set(control[0].ids) & set(easy[0].ids)) < 25


def test_fresh_order_draws_from_everything() -> None:
    stages = Curriculum(order="fresh").split(ranked(100))
    assert [stage.subset for stage in stages] == [stage.size for stage in stages] == [25, 50, 75]
    assert all(len(stage.ids) == 100 for stage in stages)


@pytest.mark.parametrize("order", ["easy_to_hard", "hard_to_easy", "random", "fresh"])
def test_the_order_of_the_rows_does_not_matter(order: Any) -> None:
    table = ranked(40)
    shuffled = table.shuffle(seed=4)
    assert Curriculum(order=order).split(table) == Curriculum(order=order).split(shuffled)


def test_any_table_with_id_and_rank() -> None:
    expected = Curriculum().split(ranked(20))
    assert Curriculum().split(ranked(20).to_pandas()) == expected
    assert Curriculum().split([{"id": row["id"], "rank": row["rank"]} for row in ranked(20).to_list()]) == expected
    assert Curriculum().split(pd.DataFrame({"id": ["b", "a", "c", "d"], "rank": [2, 1, 3, 4]}))[-1].ids == [*"abc"]


@pytest.mark.parametrize("order", ["easy_to_hard", "hard_to_easy", "random"])
def test_assign_writes_the_columns_of_ranked_parquet(order: Any) -> None:
    table = ranked(41)
    curriculum = Curriculum(order=order, seed=3)
    assigned = curriculum.assign(table)
    assert assigned.column_names == ["id", "rouge_l", "ce", "rank_rouge", "rank_ce", "rrf", "rank", "kept", "stage"]
    assert assigned.remove_columns(["kept", "stage"]).to_list() == table.to_list()
    assert assigned.features["kept"].dtype == "bool"
    stages = curriculum.split(table)
    for row in assigned.to_list():
        inside = [stage.index for stage in stages if row["id"] in stage.ids]
        assert row["kept"] == bool(inside) == (row["rank"] <= 30)
        assert row["stage"] == (min(inside) if inside else -1)
    sizes = np.bincount([stage for stage in assigned["stage"] if stage >= 0])
    assert np.cumsum(sizes).tolist() == [10, 20, 30]


def test_fewer_examples_than_stages() -> None:
    with pytest.raises(UserError, match=r"2 of 3 examples are kept \(select 0\.75\).*fewer than the 3 stages"):
        Curriculum().split(ranked(3))
    assert [stage.size for stage in Curriculum().split(ranked(4))] == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (ranked(8).select([]), "no rows"),
        ([{"id": "a", "rank": 1}, {"id": "a", "rank": 2}], "1 id occurs more than once in the ranks: a"),
        ([{"id": "a", "rank": 1}, {"id": "b", "rank": None}], "the rank of example 'b' is not a finite number"),
        ([{"id": "a", "rank": float("nan")}], "the rank of example 'a' is not a finite number"),
        ([{"id": "a", "rank": "10"}, {"id": "b", "rank": "9"}], "'rank' does not hold numbers"),
        ([{"rank": 1}], r"lack the columns \['id'\]"),
        ({"id": ["a"], "rank": [1]}, "Put a single row into a list"),
    ],
)
def test_ranks_that_mean_nothing(rows: Any, message: str) -> None:
    for method in (Curriculum(stages=1, select=1).split, Curriculum(stages=1, select=1).assign):
        with pytest.raises(UserError, match=message):
            method(rows)


def test_one_row_and_numbers_as_ids() -> None:
    curriculum = Curriculum(stages=1, select=1)
    assert [stage.ids for stage in curriculum.split([{"id": 7, "rank": 1}])] == [["7"]]
    assert curriculum.assign(pd.DataFrame({"id": [7], "rank": [1]})).to_list() == [
        {"id": "7", "rank": 1, "kept": True, "stage": 0}
    ]


def test_missing_columns() -> None:
    with pytest.raises(UserError, match=r"lack the columns \['rank'\]"):
        Curriculum().split([{"id": "a"}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, "greater than or equal to 1"),
        ({"select": 0}, "greater than 0"),
        ({"select": 1.01}, "less than or equal to 1"),
        ({"order": "easy"}, "easy_to_hard"),
        ({"score": "rouge"}, "rouge_l"),
        ({"k": -1}, "greater than or equal to 0"),
        ({"stage": 3}, "there is no setting"),
        ({"temperature": 0}, "temperature must be a number between"),
        ({"temperature": [1, -1]}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": float("inf")}, "temperature must be a number"),
        ({"weight": [0.5, 1.1]}, "weight must be within 0 and 1, but is"),
        ({"weight": [0.5, float("nan"), 1]}, "weight must be within 0 and 1"),
        ({"stages": 4, "temperature": [1, 2, 3]}, "temperature has 3 values for 4 stages"),
        ({"temperature": []}, "temperature has 0 values for 3 stages"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Curriculum(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, r"Curriculum\(stages=0\): Input should be greater than or equal to 1"),
        ({"stage": 3}, r"Curriculum\(stage=3\): there is no setting 'stage'; did you mean 'stages'"),
        ({"weight": [0, 2]}, "weight must be within 0 and 1"),
        ({"score": "fuse"}, "unknown score 'fuse'"),
    ],
)
def test_a_wrong_setting_is_one_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        srd.Curriculum(**settings)


# ---------------------------------------------------------------------------------------------------------- row weights


def test_paced_rows_count_most_where_the_student_half_succeeds() -> None:
    rows = [{"id": str(i), "rank": i + 1, "rouge_l": r} for i, r in enumerate((1.0, 0.9, 0.5, 0.2, 0.0))]
    stages = Curriculum(stages=2, select=1, row_weights="paced").split(rows)
    for stage, raw in zip(stages, ((0, 0.09), (0, 0.09, 0.25, 0.16, 0)), strict=True):
        assert stage.row_weights == pytest.approx({str(i): w * len(raw) / sum(raw) for i, w in enumerate(raw)})
    assert all(stage.row_weights is None for stage in Curriculum(stages=2).split(rows))
    fresh = Curriculum(stages=1, order="fresh", row_weights="paced").split(rows)
    assert fresh[0].row_weights == stages[1].row_weights
    assert Curriculum(stages=1, select=0.4, row_weights="paced").split(rows[:1] + rows[4:] + rows[:0] + [
        {"id": str(i), "rank": 9 + i, "rouge_l": 1.0} for i in range(10, 13)
    ])[0].row_weights == {"0": 1.0, "4": 1.0}  # all or nothing: no row has a weight  # fmt: skip


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_weights_have_mean_one_whatever_the_student_does(done: list[float]) -> None:
    rows = [{"id": f"{i:03}", "rank": i + 1, "rouge_l": value} for i, value in enumerate(done)]
    weights = Curriculum(stages=1, select=1, row_weights="paced").split(rows)[0].row_weights
    assert weights is not None and np.mean(list(weights.values())) == pytest.approx(1)
    assert all(value >= 0 and np.isfinite(value) for value in weights.values())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "a", "rank": 1}], "rouge_l"),
        ([{"id": "a", "rank": 1, "rouge_l": float("nan")}], "the rouge_l of example 'a'"),
    ],
)
def test_paced_rows_need_a_score(rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Curriculum(stages=1, select=1, row_weights="paced").split(rows)
