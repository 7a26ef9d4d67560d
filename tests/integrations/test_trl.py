"""The curriculum inside TRL's trainer: rows in order, temperatures by step; with TRL itself: benchmarks/neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.curation.curriculum import Curriculum
from srd.integrations import trl
from srd.integrations.trl import StageCallback, StagedGKDTrainer, curriculum_dataset

RANKED = [{"id": f"e{number}", "rank": number + 1} for number in range(8)]
ROWS = [{"id": row["id"], "prompt": "Why?", "completion": "So."} for row in reversed(RANKED)]


class Trainer:
    """Has of TRL's trainer what the callback works on: its loss is called without a temperature."""

    def __init__(self) -> None:
        self.temperature = 0.9

    @staticmethod
    def generalized_jsd_loss(logits: float, temperature: float = 1.0) -> float:
        return logits / temperature


def steps(callback: StageCallback, count: int, first: int = 0) -> list[tuple[int, float, float]]:
    """Stage, temperature and what the loss makes of 4 in every step."""
    state = SimpleNamespace(global_step=first, log_history=[])
    callback.on_train_begin(None, state, None)
    found = []
    for state.global_step in range(first, first + count):
        callback.on_step_begin(None, state, None)
        assert callback.trainer.temperature == callback.temperature
        found.append((callback.stage, callback.temperature, callback.trainer.generalized_jsd_loss(4.0)))
    return found


def test_every_step_has_the_temperature_of_its_stage() -> None:
    callback = StageCallback([(2, 1.0), (3, 2.0)], Trainer())
    assert steps(callback, 6) == [(0, 1.0, 4.0)] * 2 + [(1, 2.0, 2.0)] * 4
    again = StageCallback([(2, 1.0), (3, 2.0)]).bind(Trainer())
    assert steps(again, 1, first=4) == [(1, 2.0, 2.0)]  # from a checkpoint
    logs: dict[str, Any] = {"loss": 1.0}
    history = [dict(logs)]
    again.on_log(None, SimpleNamespace(log_history=history), None, logs=logs)
    assert logs == history[0] == {"loss": 1.0, "stage": 1, "temperature": 2.0}


def test_stages_become_one_data_set_cut_to_whole_batches() -> None:
    stages = Curriculum(stages=2, select=0.75, temperature=[1.0, 2.0], weight=[0.5, 1.0]).split(RANKED)
    rows = curriculum_dataset(stages, ROWS, passes=1.5, batch_size=2)
    first = ["e0", "e1", "e2", "e0"]  # of 3 + 2 rows
    second = [f"e{number}" for number in range(6)]
    assert rows["id"] == [*first, *second, *second[:2]]
    assert rows["temperature"] == [1.0] * 4 + [2.0] * 8 and rows["stage"] == [0] * 4 + [1] * 8
    assert StageCallback.from_rows(rows, 2).plan == [(2, 1.0, 0.5), (4, 2.0, 1.0)]
    listed = [{"rows": ROWS[:2], "temperature": 1, "weight": 1}, {"rows": ROWS[2:6], "temperature": 3, "weight": 0}]
    assert curriculum_dataset(listed)["temperature"] == [1.0, 1.0, 3.0, 3.0, 3.0, 3.0]


def test_a_curated_folder_has_the_passes(tmp_path: Path) -> None:
    lines = [{"id": f"e{n}", "stage": n // 3, "pass": 0, "temperature": 1.0 + n // 3, "weight": 1.0} for n in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = curriculum_dataset(tmp_path, batch_size=2)
    assert rows["id"] == ["e0", "e1", "e3", "e4", "e6", "e7"] and rows["temperature"] == [1, 1, 2, 2, 3, 3]


WRONG = {
    "no plan": (lambda: StageCallback([]), "the plan is empty"),
    "no steps": (lambda: StageCallback([(0, 1.0)]), "steps are whole numbers from 1"),
    "no temperature": (lambda: StageCallback([(1, 0.0)]), "temperatures above 0"),
    "no pair": (lambda: StageCallback([3]), "3 is no stage"),  # type: ignore[list-item]
    "another trainer": (lambda: StageCallback([(1, 1.0)], object()), "object has no GKD loss"),
    "no trainer": (lambda: steps(StageCallback([(1, 1.0)]), 1), r"Call callback\.bind\(trainer\)"),
    "no folder": (lambda: curriculum_dataset("nowhere"), "srd curate RECIPE -o nowhere --for trl"),
    "no stages": (lambda: curriculum_dataset([]), "there are no stages"),
    "no rows": (lambda: curriculum_dataset(Curriculum(stages=1).split(RANKED)), "Give their examples, too"),
    "other rows": (lambda: curriculum_dataset(Curriculum(stages=1).split(RANKED), ROWS[:2]), "lack the id"),
    "large batch": (
        lambda: curriculum_dataset(Curriculum(stages=2).split(RANKED), ROWS, batch_size=9), "fewer than the 9 of a step"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        call()


def test_without_trl_its_own_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "GKDTrainer", None)
    with pytest.raises(UserError, match=r"pip install 'trl>=1\.0'"):
        StagedGKDTrainer(train_dataset=curriculum_dataset([{"rows": ROWS, "temperature": 1, "weight": 1}]), args=None)
