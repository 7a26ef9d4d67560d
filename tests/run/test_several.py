"""A recipe of several teachers: who teaches which rows, what is refused, and caches that single teachers share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from srd.base.errors import UserError
from srd.recipe.reading import recipe_yaml, validate_recipe
from srd.run.checks.disk_space import facts_of
from srd.run.identity import named_paths, recipe_identity
from srd.run.parts.teacher_caches import caches_of, place_of_cache
from srd.run.plan.plan import make_plan
from srd.training.cache.several import SeveralCaches
from tests.runs import TinyRun, tiny_rows, write_rows
from tests.served import serving
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

SUBJECTS = ("sea", "sky")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Two teachers of different width, and rows of two subjects."""
    folder = tmp_path_factory.mktemp("several")
    run = TinyRun(folder).set(training__curriculum=None)
    save_tiny(folder / "second", "llama", layers=2, seed=5, hidden=48)
    rows = [{**row, "subject": SUBJECTS[number % 2]} for number, row in enumerate(tiny_rows())]
    write_rows(run.rows, rows)
    return run


def several(tiny: TinyRun, folder: Path, *own: dict[str, Any], **changes: Any) -> TinyRun:
    run = tiny.twin()
    run.run_dir = folder / "run"
    run.recipe.pop("teacher", None)
    models = (str(tiny.teacher), str(tiny.folder / "second"))
    return run.set(
        teachers=[{"model": model, **each} for model, each in zip(models, own or ({}, {}), strict=False)], **changes
    )


BY_SUBJECT = ({"rows": "sea"}, {"rows": ["sky", "night"]})


def test_each_row_is_read_by_the_teacher_that_its_column_names(tiny: TinyRun, tmp_path: Path) -> None:
    run = several(tiny, tmp_path, *BY_SUBJECT, data__teacher_column="subject").train()
    rows = run.split("train")
    subjects = {row["instruction"]: SUBJECTS[number % 2] for number, row in enumerate(tiny_rows())}
    wanted = [SUBJECTS.index(subjects[row["instruction"]]) for row in rows]
    assert run.owners == wanted and set(wanted) == {0, 1}
    cache, examples = caches_of(run), run.encoded("train")
    assert isinstance(cache, SeveralCaches) and cache.holds(examples)
    held = [len(each.places) for each in cache.caches]
    assert held == [wanted.count(0), wanted.count(1)]
    for owner, index in zip(wanted[:6], range(6), strict=True):
        states = cache.hidden(*examples.tokens(index).values())
        parts = (states[:, :33], states[:, 33:])
        assert parts[owner].any() and not parts[1 - owner].any()
    steps = run.manifest.steps
    plan = make_plan(run.recipe)
    assert plan.cache_bytes == steps["cache"]["summary"]["bytes"] == facts_of(run).cache_bytes
    assert steps["cache"]["summary"]["each"] == held and "second" in steps["teacher"]["summary"]["others"]


def test_the_mean_shares_its_caches_with_each_teacher_alone(tiny: TinyRun, tmp_path: Path) -> None:
    shared = str(tmp_path / "cache")
    run = several(tiny, tmp_path, {"weight": 1.0}, {"weight": 3.0}, cache__dir=shared).advance("cache")
    cache = caches_of(run)
    assert isinstance(cache, SeveralCaches) and cache.weights == [0.25, 0.75] and cache.holds(run.encoded("train"))
    alone = tiny.twin().set(cache__dir=shared)
    alone.run_dir = tmp_path / "alone"
    assert place_of_cache(alone.advance("cache")) == place_of_cache(run, 0)
    assert len(list(Path(shared).iterdir())) == 2


def test_plan_recipe_and_identity_know_all_teachers(tiny: TinyRun, tmp_path: Path) -> None:
    recipe = validate_recipe(several(tiny, tmp_path).recipe, "tiny")
    plan, alone = make_plan(recipe), make_plan(validate_recipe(tiny.recipe, "tiny"))
    assert len(plan.other_teachers) == 1 and plan.cache_bytes > 2 * alone.cache_bytes
    (phase,) = [phase for phase in plan.phases if phase.name == "cache"]
    assert phase.teacher_passes == 2
    assert {"teachers[0].model", "teachers[1].model"} <= named_paths(recipe).keys()
    again = validate_recipe(json.loads(json.dumps(recipe.model_dump(mode="json"))), "again")
    assert recipe_yaml(again) == recipe_yaml(recipe) and len(recipe_identity(recipe)[1]) == 3


def test_rows_of_nobody_are_refused_with_the_nearest(tiny: TinyRun, tmp_path: Path) -> None:
    wrong = several(tiny, tmp_path, {"rows": "see"}, {"rows": "sky"}, data__teacher_column="subject")
    with pytest.raises(UserError, match=r"subject is 'sea', and no teacher has such rows; did you mean 'see'\?"):
        wrong.advance("examples")
    lacking = several(tiny, tmp_path / "b", *BY_SUBJECT)
    with pytest.raises(UserError, match=r"there is no 'teacher', which says whose the row is.*data.teacher_column"):
        lacking.advance("examples")


REFUSED: dict[str, tuple[tuple[dict[str, Any], ...], dict[str, Any], str]] = {
    "one": (({},), {}, "there is one alone. Give it as `teacher`"),
    "one beside several": (({}, {}), {"teacher": {"model": "other"}}, "not both: teacher=null takes it out"),
    "same name": (({"name": "a"}, {"name": "a"}), {}, "two are called 'a'"),
    "same rows": (({"rows": "sea"}, {"rows": ["sea"]}), {}, "the rows 'sea' have two teachers"),
    "no rows": (({"rows": "sea"}, {}), {}, "'second' has no rows"),
    "both": (({"rows": "sea", "weight": 1.0}, {"rows": "sky"}), {}, "has weight and rows"),
    "sft": (({"sft": {}}, {}), {}, r"sft is for a single teacher.*srd sft"),
    "gkd": (({}, {}), {"training__method": "gkd"}, "gkd takes text .*which is for one teacher"),
    "seqkd": (({}, {}), {"training__method": "seqkd"}, "seqkd takes text .*which is for one teacher"),
    "repair": (BY_SUBJECT, {"data__cleaning": "repair"}, "cleaning is repair.*several.*data.cleaning=drop or soften"),
    "plus": (({}, {}), {"training__curriculum": {"preset": "plus"}}, "cleaning is repair.*Use data.cleaning=drop"),
    "live": (({}, {}), {"cache__enabled": False}, "cache.enabled is false"),
    "top": (({}, {}), {"cache__tier": "topk"}, "needs whole distributions. Use exact or int8"),
    "served": (({}, {"endpoint": "http://host/v1"}), {"cache__tier": "exact"}, "'second' is behind a server"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_teachers_that_do_not_go_together_are_refused(name: str, tiny: TinyRun, tmp_path: Path) -> None:
    own, changes, message = REFUSED[name]
    with pytest.raises(UserError, match=f"(?s){message}"):
        validate_recipe(several(tiny, tmp_path, *own, **changes).recipe, "tiny")


def test_null_takes_the_one_teacher_out(tiny: TinyRun, tmp_path: Path) -> None:
    run = several(tiny, tmp_path)
    wanted = recipe_yaml(validate_recipe(run.recipe, "tiny"))
    assert recipe_yaml(validate_recipe({**run.recipe, "teacher": None}, "tiny")) == wanted


def test_a_teacher_with_another_tokenizer_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    run = several(tiny, tmp_path)
    run.recipe["teachers"][1]["model"] = str(save_tiny(tmp_path / "qwen", "qwen2", seed=1))
    with pytest.raises(UserError, match=r"qwen' and '.*' have different tokenizers"):
        run.advance("cache")


def test_served_teachers_have_their_rows(tiny: TinyRun, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("llama")
    models = [tiny_model("llama", seed=seed) for seed in (1, 2)]
    with serving(models[0], tokenizer) as first, serving(models[1], tokenizer) as second:
        run = several(tiny, tmp_path, *BY_SUBJECT, data__teacher_column="subject")
        for each, server in zip(run.recipe["teachers"], (first, second), strict=True):
            each.update(endpoint=server.url, model="tiny", name=each["rows"][0])
        done = run.advance("cache")
    cache, examples = caches_of(done), done.encoded("train")
    for index in (0, 1, 2, 3):
        row = examples.tokens(index)
        logits = models[done.owners[index]](torch.tensor([[*row["prompt_ids"], *row["response_ids"]]])).logits[0]
        log_p = torch.log_softmax(logits.double(), -1)[len(row["prompt_ids"]) - 1 : -1]
        own = log_p.gather(1, torch.tensor(row["response_ids"])[:, None])[:, 0]
        torch.testing.assert_close(cache.losses(cache.head(), *row.values()).double(), -own, rtol=0, atol=1e-4)
