"""The curriculum inside TRL's trainer: rows in order, temperatures by step; with TRL itself: benchmarks/neighbours."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from srd.base.errors import UserError
from srd.curation.curriculum import Curriculum
from srd.data.batching import LengthBatches
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


def test_every_pass_draws_anew_where_the_stages_do() -> None:
    """As a training draws with the same seed: `subset` of all rows for each pass, and not all of them."""
    stages = Curriculum(stages=2, select=0.5, order="fresh").split(RANKED)
    rows = curriculum_dataset(stages, ROWS, passes=2.5, seed=3)
    assert len(rows) == 2 + 2 + 1 + 4 + 4 + 2
    drawn = []
    for stage in stages:
        for epoch in range(3):
            batches = LengthBatches([1] * 8, 2, seed=3 + stage.index, subset=stage.subset)
            batches.set_epoch(epoch)
            ids = [stage.ids[place] for place in batches.order()]
            drawn += ids if epoch < 2 else ids[: len(ids) // 2]
    assert rows["id"] == drawn and rows["id"] != curriculum_dataset(stages, ROWS, passes=2.5)["id"]
    assert StageCallback.from_rows(curriculum_dataset(stages, ROWS, batch_size=2), 2).plan == [(1, 1, 0.8), (2, 2, 1)]


def test_rows_that_are_weighed_are_told(caplog: pytest.LogCaptureFixture) -> None:
    ranked = [{**row, "rouge_l": row["rank"] / 10} for row in RANKED]
    plain, weighed = (Curriculum(stages=1, row_weights=name).split(ranked) for name in ("equal", "paced"))
    with caplog.at_level("WARNING", logger="srd"):
        assert curriculum_dataset(plain, ROWS)["id"] and not caplog.text
        assert curriculum_dataset(weighed, ROWS)["id"]
    assert "TRL counts all rows the same" in caplog.text


def test_a_curated_folder_has_the_passes(tmp_path: Path) -> None:
    lines = [{"id": f"e{n}", "stage": n // 3, "pass": 0, "temperature": 1.0 + n // 3, "weight": 1.0} for n in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = curriculum_dataset(tmp_path, batch_size=2)
    assert rows["id"] == ["e0", "e1", "e3", "e4", "e6", "e7"] and rows["temperature"] == [1, 1, 2, 2, 3, 3]


class GKDTrainer:
    """What `StagedGKDTrainer` builds on, as TRL 1.0 has it: its loss is a mean over a micro-batch, however large."""

    beta, use_liger_gkd_loss = 0.0, False

    def __init__(self, *, train_dataset: Any, args: Any, data_collator: Any) -> None:
        self.args, self.data_collator = args, data_collator
        self.accelerator = SimpleNamespace(num_processes=args.world_size)
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps

    def get_tp_size(self) -> int:
        return 1

    def add_callback(self, callback: Any) -> None:
        callback._take(0)

    @staticmethod
    def generalized_jsd_loss(
        student: Any, teacher: Any, labels: Any, beta: float, temperature: float = 1.0, reduction: str = "batchmean"
    ) -> Any:
        each = ((student - teacher) / temperature).abs().sum(-1)[labels != -100]
        return each.mean() if reduction == "batchmean" else each.sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model[inputs["input_ids"]]
        loss = self.generalized_jsd_loss(
            logits[:, :-1], torch.zeros_like(logits)[:, :-1], inputs["labels"][:, 1:], self.beta
        )
        return loss, SimpleNamespace(logits=logits)


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a `StagedGKDTrainer` on such a trainer, of one stage with temperature 2 and the weight that is given."""
    stub: Any = ModuleType("trl.experimental.gkd")
    stub.GKDTrainer = GKDTrainer
    for name in ("trl", "trl.experimental", "trl.experimental.gkd"):
        monkeypatch.setitem(sys.modules, name, stub)
    spec = importlib.util.spec_from_file_location("srd_trl_with_stub", str(trl.__file__))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(weight: float, world_size: int = 1, micro_batches: int = 1) -> Any:
        size = 4 * world_size * micro_batches
        rows = curriculum_dataset([{"rows": ROWS * 2, "temperature": 2, "weight": weight}], batch_size=size)
        args = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=micro_batches,
                               world_size=world_size, average_tokens_across_devices=True,
                               num_train_epochs=1, max_steps=-1)  # fmt: skip
        return module.StagedGKDTrainer(train_dataset=rows, args=args, data_collator=lambda rows: rows[0]["batch"])

    return make


LOGITS = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]])
LABELS = torch.tensor([[-100, 2, 3, 4, 5], [-100, -100, -100, -100, 2]])


def collated(trainer: Any, rows: slice) -> dict[str, Any]:
    batch = {"input_ids": TOKENS[rows], "labels": LABELS[rows].clone()}
    return dict(trainer.data_collator([{"batch": batch}] * len(TOKENS[rows])))


def test_a_step_has_one_loss_in_however_many_micro_batches(staged: Any) -> None:
    trainer = staged(0.75)
    whole = trainer.compute_loss(LOGITS, collated(trainer, slice(0, 2)), num_items_in_batch=torch.tensor(5))
    parts = [trainer.compute_loss(LOGITS, collated(trainer, slice(n, n + 1)), num_items_in_batch=5) for n in (0, 1)]
    logits, labels = LOGITS[TOKENS][:, :-1], LABELS[:, 1:]
    divergence = (logits[labels != -100] / 2).abs().sum() / 5
    ce = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100])
    assert float(whole) == pytest.approx(float(0.75 * 4 * divergence + 0.25 * ce), rel=1e-5)
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)
    assert float(trainer.compute_loss(LOGITS, collated(trainer, slice(0, 2)))) == pytest.approx(float(whole), rel=1e-5)


def test_a_step_has_one_loss_on_however_many_devices(staged: Any) -> None:
    """Each device is told the tokens of all, and DDP then averages the gradients of the devices."""
    alone, two = staged(0.75), staged(0.75, world_size=2)
    whole = alone.compute_loss(LOGITS, collated(alone, slice(0, 2)), num_items_in_batch=5)
    each = [two.compute_loss(LOGITS, collated(two, slice(n, n + 1)), num_items_in_batch=5) for n in (0, 1)]
    assert float(sum(each)) / 2 == pytest.approx(float(whole), rel=1e-5)
    two.args.average_tokens_across_devices = False  # then each is told its own
    own = [two.compute_loss(LOGITS, collated(two, slice(0, 2)), num_items_in_batch=5) for _ in (0, 1)]
    assert float(sum(own)) / 2 == pytest.approx(float(whole), rel=1e-5)


def test_text_that_was_generated_is_divided_by_its_own_tokens(staged: Any) -> None:
    """transformers counts the labels of a step before GKD replaces the rows by what the student writes."""
    trainer = staged(1.0, world_size=2, micro_batches=2)
    generated = {"input_ids": TOKENS.flip(1), "labels": TOKENS.flip(1)}
    losses = [
        float(trainer.compute_loss(LOGITS, {**collated(trainer, slice(0, 2)), **generated}, num_items_in_batch=items))
        for items in (5, 500)
    ]
    alone = staged(1.0)  # without a number of items a micro-batch has its own mean
    mean = float(alone.compute_loss(LOGITS, {**collated(alone, slice(0, 2)), **generated}))
    assert losses == pytest.approx([mean / 2] * 2, rel=1e-5)


def test_there_is_no_cross_entropy_on_text_that_was_generated(staged: Any) -> None:
    """There TRL replaces the tokens and their labels, in some versions with those of the prompt."""
    trainer, alone = staged(0.75), staged(1.0)
    generated = {"input_ids": TOKENS.flip(1), "labels": TOKENS.flip(1)}
    mixed, divergence = (
        float(each.compute_loss(LOGITS, {**collated(each, slice(0, 2)), **generated})) for each in (trainer, alone)
    )
    assert mixed == pytest.approx(0.75 * divergence, rel=1e-5)


def test_a_loss_that_takes_no_temperature_is_refused(staged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GKDTrainer, "use_liger_gkd_loss", True)
    with pytest.raises(UserError, match=r"Set use_liger_kernel=False"):
        staged(1.0)


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
