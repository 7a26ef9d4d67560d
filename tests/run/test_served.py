"""A run whose teacher is behind a server: asked once, from any point on, with a key that is written nowhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from srd.base.errors import RunError, UserError
from srd.models.loading import facts
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.served import client
from srd.recipe.reading import recipe_yaml, validate_recipe
from srd.run.card import Card
from srd.run.checks.models import check_recipe
from srd.run.context import Run
from srd.run.models import RecipeModels
from srd.run.parts.pairs import pair_examples
from srd.run.parts.scores import teacher_losses
from srd.run.parts.teacher_caches import place_of_cache
from srd.run.plan.doctor import examine
from srd.run.plan.plan import make_plan
from srd.training.cache.teacher_cache import TeacherCache
from tests.runs import TinyRun
from tests.served import Served, serving
from tests.tiny import tiny_model

KEY = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run with the same teacher, loaded here."""
    run = TinyRun(tmp_path_factory.mktemp("served"))
    return run.set(training__curriculum=None, cache__tier="topk", cache__top_k=20, cache__max_kl=1.0)


@pytest.fixture(scope="module")
def teacher(here: TinyRun) -> tuple[Any, Any]:
    return load_model(str(here.teacher)), load_tokenizer(str(here.teacher))


@pytest.fixture
def served(teacher: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(client, "FIRST_PATIENCE", 0.05)
    with serving(*teacher, key=KEY) as running:
        yield running


def asking(here: TinyRun, served: Served, folder: Path, **changes: Any) -> TinyRun:
    run = here.twin()
    run.run_dir = folder / "run"
    server = {"endpoint": served.url, "model": "tiny", "api_key_env": "TEACHER_KEY", "parallel": 2, "patience": 0.2}
    return run.set(teacher=server, **changes)


def kept(run: Run) -> tuple[TeacherCache, torch.Tensor]:
    examples, cache = run.encoded("train"), TeacherCache(place_of_cache(run))
    return cache, torch.cat([cache.hidden(*examples.tokens(i).values()) for i in range(len(examples))])


def test_what_a_server_says_is_kept_as_what_the_model_says_here(here: TinyRun, served: Served, tmp_path: Path) -> None:
    """Asked once for each row, also where the server breaks off in between; and then no more."""
    run = asking(here, served, tmp_path)
    served.trouble = lambda number, path, body: (503, "", {}) if number > 20 else None
    with pytest.raises(RunError, match="answers 503"):
        run.advance("cache")
    served.trouble = lambda number, path, body: None
    done = run.advance("cache")
    rows = Counter(text for text in served.texts() if len(text) < 60)  # what is longer is to try the server out
    assert len(rows) == 32 and set(rows.values()) == {1}

    cache, ours = kept(done)
    local = here.advance("cache", run_dir=tmp_path / "here")
    assert cache.meta["error"] is None and cache.tier.name == "topk"
    model, theirs = kept(local)
    assert done.manifest.steps["cache"]["summary"]["listed"] == pytest.approx(model.listed_mass(), abs=1e-3)
    head = cache.head()
    assert torch.allclose(ours, theirs, atol=2e-3), (ours - theirs).abs().max()
    assert head.vocabulary == local.width
    np.testing.assert_allclose(teacher_losses(done, tmp_path), teacher_losses(local, tmp_path), atol=1e-4)
    before = served.requests
    with serving(served.model, served.tokenizer, trouble=lambda *_: (500, "", {})) as broken:
        broken.url = served.url
        run.advance("cache")
    assert served.requests == before
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert KEY.encode() not in file.read_bytes(), file


def test_other_weights_under_the_same_name_do_not_go_on_with_a_cache(
    here: TinyRun, served: Served, tmp_path: Path
) -> None:
    """Neither with one that is half made, nor with texts: the server is tried by one and the same text."""
    run = asking(here, served, tmp_path, training__method={"name": "seqkd", "max_new_tokens": 4})
    served.trouble = lambda number, path, body: (503, "", {}) if number > 20 else None
    with pytest.raises(RunError, match="answers 503"):
        run.advance("teacher text")
    kd = asking(here, served, tmp_path / "kd")
    served.requests = 0
    with pytest.raises(RunError, match="answers 503"):
        kd.advance("cache")
    served.model, served.trouble = tiny_model("llama", seed=9), lambda number, path, body: None
    for each, step in ((run, "teacher text"), (kd, "cache")):
        with pytest.raises(UserError, match=r"other weights are served under that name.*teacher\.revision"):
            each.advance(step)
        each.set(teacher__revision="2").advance(step)


def test_actual_tokens_alone_fill_the_likelihoods(here: TinyRun, served: Served, tmp_path: Path) -> None:
    served.ways = ("echo texts",)
    run = asking(here, served, tmp_path)
    with pytest.raises(UserError, match=r"cache\.tier=likelihood"):
        run.advance("cache")
    done = run.set(cache__tier="likelihood").advance("cache")
    cache, _ = kept(done)
    losses = teacher_losses(done, tmp_path)
    run.set(evaluation__models=["srd"])
    done.keys.pop("cache")  # without a cache the server is asked for them
    np.testing.assert_allclose(teacher_losses(done, tmp_path), losses, rtol=1e-5)
    assert cache.tier.name == "likelihood"


def test_a_served_teacher_writes_and_its_text_is_kept(here: TinyRun, served: Served, tmp_path: Path) -> None:
    run = asking(here, served, tmp_path, training__method={"name": "seqkd", "max_new_tokens": 4})
    served.trouble = lambda number, path, body: (503, "", {}) if number > 15 else None
    with pytest.raises(RunError, match="answers 503"):
        run.advance("teacher text")
    served.trouble = lambda number, path, body: None
    run.advance("teacher text")
    texts = [tuple(body["prompt"]) for path, body in served.asked if body and body["max_tokens"] == 4]
    assert len(texts) == len(set(texts)) == 32


def test_pairs_are_written_and_read_by_a_server(here: TinyRun, served: Served, tmp_path: Path) -> None:
    method = {"name": "distillm2", "max_new_tokens": 5, "anchor": 0.3}
    run = asking(
        here, served, tmp_path, training__method=method, training__objective="distillm2", training__batch_size=4,
        data__train_limit=8, evaluation__models=["student"],
    )  # fmt: skip
    done = run.train()
    both, cache = pair_examples(done, done.recipe.training), TeacherCache(place_of_cache(done))
    texts = {tuple([*row["prompt_ids"], *row["response_ids"]]) for row in map(both.tokens, range(len(both)))}
    asked = Counter(tuple(body["prompt"]) for _, body in served.asked if body and body.get("prompt_logprobs"))
    assert {text: count for text, count in asked.items() if text in texts} == dict.fromkeys(texts, 1)
    for row in map(both.tokens, range(0, len(both), 3)):
        text, start = [*row["prompt_ids"], *row["response_ids"]], len(row["prompt_ids"])
        wanted = served.log_probabilities(text)[start - 1 : -1].gather(1, torch.tensor(text[start:])[:, None])[:, 0]
        torch.testing.assert_close(-cache.head().own_nats(cache.hidden(*row.values())), wanted)
    before = served.requests
    run.advance("train/distillm2")
    assert served.requests == before
    with pytest.raises(UserError, match=r"cache\.limit_gb = 1e-09\. Set cache\.limit_gb="):
        run.set(cache__limit_gb=1e-9).advance("train/distillm2", run_dir=tmp_path / "small")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__temperature": 2.0}, r"training.temperature is 2 .*Set training.temperature=1"),
        ({"cache__tier": "int8"}, r"cache.tier is int8.*Set cache.tier=topk"),
        ({"cache__enabled": False}, r"cache.enabled is false"),
        ({"training__method": "gkd"}, r"gkd asks the teacher about text that the student is yet to write"),
        ({"student": {"drop_layers": 1}}, r"student.model is missing"),
        ({"training__curriculum": {"temperature": [1, 2]}}, r"training.curriculum.temperature=1"),
        ({"generation__engine": "endpoint"}, r"Set generation.engine to transformers"),
        (
            {"training__objective": "rkl", "cache__tier": "likelihood"},
            r"keeps a number a token.*Set cache.tier to topk, where the server.*or take the method kd with",
        ),
        ({"training__objective": "akl"}, r"keeps a part\. Take the method kd with the objective fkl"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_it_is_asked(
    changes: dict[str, Any], message: str, here: TinyRun, served: Served, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        check_recipe(RecipeModels(validate_recipe(asking(here, served, tmp_path, **changes).recipe, "tiny")))
    assert not served.asked


def test_a_recipe_with_a_server_needs_no_other_field(here: TinyRun, served: Served) -> None:
    recipe = validate_recipe(
        {"teacher": {"endpoint": served.url, "model": "tiny"}, "student": str(here.student), "data": str(here.rows)},
        "it",
    )
    check_recipe(RecipeModels(recipe))
    assert (recipe.cache.tier, recipe.cache.top_k, recipe.training.curriculum.temperature) == ("topk", 20, 1.0)
    assert KEY not in recipe_yaml(recipe)


def test_a_plan_says_whether_the_server_is_there(here: TinyRun, served: Served, tmp_path: Path) -> None:
    recipe = validate_recipe(asking(here, served, tmp_path).recipe, "tiny")
    plan = make_plan(recipe)
    assert any("is there and fits" in note for note in plan.notes)
    assert any("asked about 32 texts" in note and "the 20 likeliest" in note for note in plan.notes)
    assert plan.cache_bytes and plan.teacher.parameters == 0
    answers = 21 * 29 * plan.data.response_tokens  # 20 likeliest tokens and the text's own, as they are kept at first
    assert next(phase for phase in plan.phases if phase.name == "cache").scratch == answers
    served.model = None
    served.trouble = lambda number, path, body: (401, {"error": "no"}, {})
    with pytest.raises(UserError, match="refuses the key in the environment variable TEACHER_KEY"):
        make_plan(recipe)
    recipe.teacher.endpoint = "http://127.0.0.1:9/v1"
    assert any("not checked" in note and "cannot be reached" in note for note in make_plan(recipe).notes)


def test_a_card_names_no_server_and_asks_no_hub_for_it(
    here: TinyRun, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(facts, "hf_hub_download", lambda source, *_, **named: asked.append(source))
    run = asking(here, served, tmp_path, evaluation__models=["student"])
    card = Card(run.train(), "kd")
    run.set(cluster={"engine": "ray", "address": "head.example:1"})
    card.recipe = validate_recipe(run.recipe, "tiny")
    text = card.text()
    assert card.teacher.name == "tiny" and card.teacher.hub is None and not asked
    assert served.url not in text and "head.example" not in text and "**tiny**" in text
    told = validate_recipe(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]), "card")
    assert (told.teacher.endpoint, told.cluster.address) == ("http://SERVER/v1", "SERVER:6379")


def test_a_doctor_looks_at_a_served_teacher_as_at_others(here: TinyRun, served: Served, tmp_path: Path) -> None:
    found = examine(validate_recipe(asking(here, served, tmp_path).recipe, "tiny"), 1, 1e12)
    assert found.teacher.architecture == "behind a server" and found.teacher.stops == found.student.stops
    assert any("is there and fits" in note for note in found.notes)
    assert KEY not in json.dumps(found.as_json())
