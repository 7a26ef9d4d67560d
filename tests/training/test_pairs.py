"""Two texts of every prompt, the teacher's and the student's: written once, cached, each with its own divergence."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.recipe.reading import load_recipe
from srd.run.parts.pairs import OWN
from srd.run.parts.teacher_caches import tier_of_pairs
from srd.training.cache.teacher_cache import TeacherCache
from srd.training.loss.schedules import Contrast
from srd.training.methods.base import METHODS
from srd.training.trainer import DistillTrainer
from srd.training.training import SCHEDULE_FILE
from tests.runs import TinyRun
from tests.training.test_schedules import trainer_of

METHOD = {"name": "distillm2", "max_new_tokens": 6, "anchor": 0.3}


def test_alpha_follows_its_formula() -> None:
    """The mean difference of the first steps is the anchor; what a checkpoint keeps goes on alike."""
    random, schedule = np.random.default_rng(0), Contrast(alpha=0.1, anchor=0.2)
    measured: dict[bool, list[float]] = {False: [], True: []}
    for step in range(10):
        schedule.begin_step(step, 10, lambda: np.zeros(0, np.float32))
        own = np.arange(6) % 2 == 1
        teacher, student = -random.exponential(1, 6), -random.exponential(2, 6)
        found = schedule.of_rows(own, teacher, student)
        assert found["own"].tolist() == own.tolist() and found["share"].tolist() == [1.0] * 6
        for mine, p, q, alpha in zip(own.tolist(), teacher, student, found["alpha"], strict=True):
            ahead = (math.exp(p) - math.exp(q)) * (-1 if mine else 1)
            if step < 2:
                measured[mine].append(ahead)
                assert alpha == 0.1
            else:
                anchor = sum(measured[mine]) / len(measured[mine])
                assert alpha == pytest.approx(min(0.1, max(0.01, 1 - 0.9 * anchor / (ahead + 1e-5))))
        schedule.end_step(1.0, step + 1, 10)
        kept, schedule = schedule.state(), Contrast(alpha=0.1, anchor=0.2)
        schedule.restore(kept)


def test_the_students_texts_may_count_more_and_more() -> None:
    schedule = METHODS.get("distillm2")(gradual=True).schedule()
    assert schedule is not None
    for step, share in ((0, 1.0), (5, 1.25), (10, 1.5), (15, 1.5)):
        schedule.begin_step(step, 20, lambda: np.zeros(0, np.float32))
        found = schedule.of_rows(np.array([False, True]), np.zeros(2), np.zeros(2))
        assert found["share"].tolist() == [2 - share, share]


def test_both_write_once_and_both_texts_are_cached(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stages and cross-entropy; killed in the middle it ends in the same student, and nothing is written again."""
    seen: list[dict[str, Any]] = []
    original = DistillTrainer.loss_of

    def spy(self: DistillTrainer, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        seen.append(inputs)
        return original(self, model, inputs, *rest)

    monkeypatch.setattr(DistillTrainer, "loss_of", spy)
    tiny_run.set(training__method=METHOD, training__objective="distillm2", training__curriculum={"stages": 2})
    tiny_run.set(training__batch_size=4, training__epochs=1, data__train_limit=12, training__evaluate_every=0.5)
    run = tiny_run.train()
    texts = {who: pq.read_table(run.files.pair_text(who)).to_pydict() for who in ("teacher", "student")}
    assert texts["teacher"]["id"] == texts["student"]["id"] and len(texts["teacher"]["id"]) == 12
    assert texts["teacher"]["tokens"] != texts["student"]["tokens"]
    cache = TeacherCache(next(path for path in run.files.cache.iterdir() if path.is_dir()))
    assert len(cache.places) == 24  # both texts of each prompt
    for inputs in seen:  # no cross-entropy on the student's own
        known = np.split(inputs["reference"].numpy(), np.cumsum(inputs["counts"])[:-1])
        assert [set(part) for part in known] == [{float(not name.endswith(OWN))} for name in inputs["ids"]]
        assert inputs["teacher_hidden"] is not None
    assert {name.endswith(OWN) for inputs in seen for name in inputs["ids"]} == {False, True}
    assert read_json(run.folder / "manifest.json")["steps"]["train/srd"]["summary"]["examples"] == 9  # 0.75 of 12
    state = read_json(run.folder / "stages/1" / SCHEDULE_FILE)["differences"]
    assert all(count > 0 for _, count in state)

    calls, train = [0], DistillTrainer.training_step

    def killed(self: DistillTrainer, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise InterruptedError
        return train(self, *arguments, **named)

    again = tiny_run.twin()
    again.run_dir = tiny_run.folder / "again"
    with monkeypatch.context() as patched:
        patched.setattr(DistillTrainer, "training_step", killed)
        with pytest.raises(InterruptedError):
            again.train()
    before = (again.run_dir / "pairs/student.parquet").stat().st_mtime_ns
    again.train()
    assert (again.run_dir / "pairs/student.parquet").stat().st_mtime_ns == before
    one, two = (load_file(each / "student/model.safetensors") for each in (run.folder, again.run_dir))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_trainer_by_itself_says_who_writes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"srd.distill\(…, method='distillm2', objective='distillm2'\)"):
        trainer_of(tmp_path, {"name": "distillm2"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["student.warm_start={method: distillm2}"], "writes once it is warmed up. Use kd here"),
        (["training.method=distillm2"], "Use objective=distillm2 with it"),
        (
            ["training.method=distillm2", "training.objective=distillm2",
             "baselines={hot: {method: {name: distillm2, temperature: 1.0}}}"],
            "different temperature or top_p",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("demo-tiny", changes)


def test_another_tier_of_the_cache_trains_anew(tiny_run: TinyRun) -> None:
    """No step before the training reads the teacher for it; the usual tier leaves its fingerprint as it was."""

    def trained(**cache: Any) -> str:
        return (
            tiny_run.set(**{f"cache__{name}": value for name, value in cache.items()}).train().keys["train/distillm2"]
        )

    tiny_run.set(training__method=METHOD, training__curriculum=None, data__train_limit=8, training__select_by="loss")
    first = trained()
    with closing(tiny_run.open()) as run:
        assert tier_of_pairs(run, run.recipe.training) == []
    assert trained(top_k=16, max_kl=9.0) == first
    assert len({first, trained(tier="topk"), trained(top_k=8), trained(tier="int8")}) == 4
    assert trained(tier="exact") == trained(enabled=False) == first
