"""Trackers: what each is given as tables, and when one that would not write is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.training import tracking
from srd.training.libraries import check_installed
from srd.training.tracking import Tables, names_of, to_markdown

STAGES = [{"stage": 0, "examples": 12}, {"stage": 1, "examples": 24}]
ANSWERS = [{"id": "a", "prompt": "Why?", "answer": "So.", "reference": "Because.", "rouge_l": 0.5},
           {"id": "b", "prompt": "A | B\n?", "answer": "<b>", "reference": "C", "rouge_l": 0.0}]  # fmt: skip


class Module:
    """Stands for the module of a tracker, and keeps what it is given."""

    class Table:
        def __init__(self, **given: Any) -> None:
            self.given = given

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.run: Any = "open"

    def log(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def log_table(self, columns: dict[str, Any], name: str) -> None:
        self.told.append((name, columns))

    def add_text(self, name: str, text: str, step: int) -> None:
        self.told.append((name, text, step))

    def finish(self) -> None:
        self.run = None


def told_by_wandb(module: Module) -> list[Any]:
    (name, table), (_, step) = module.told[-1].items()
    return [name, step, [dict(zip(table.given["columns"], row, strict=True)) for row in table.given["data"]]]


def told_by_trackio(module: Module) -> list[Any]:
    (name, table), (_, step) = module.told[-1].items()
    return [name, step, table.given["dataframe"].to_dict("records")]


def told_by_mlflow(module: Module) -> list[Any]:
    (name, columns) = module.told[-1]
    name, _, step = name.removesuffix(".json").partition("/step-")
    return [name, int(step), [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]]


def told_by_tensorboard(module: Module) -> list[Any]:
    name, text, step = module.told[-1]
    return [name, step, ANSWERS if text == to_markdown(ANSWERS) else STAGES if text == to_markdown(STAGES) else text]


@pytest.mark.parametrize(
    ("callback", "attribute", "read"),
    [
        ("TensorBoardCallback", "tb_writer", told_by_tensorboard),
        ("WandbCallback", "_wandb", told_by_wandb),
        ("TrackioCallback", "_trackio", told_by_trackio),
        ("MLflowCallback", "_ml_flow", told_by_mlflow),
    ],
)
def test_a_tracker_is_given_stages_and_answers(
    callback: str, attribute: str, read: Callable[[Module], list[Any]]
) -> None:
    module = Module()
    logger = type(callback, (), {attribute: module})()
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[object(), logger]), answers=())
    tables = Tables(trainer, STAGES, {row["id"]: (row["prompt"], row["reference"]) for row in ANSWERS})
    tables.on_train_begin(None, SimpleNamespace(global_step=0), None)
    assert read(module) == ["stages", 0, STAGES]
    tables.on_evaluate(None, SimpleNamespace(global_step=1), None)
    assert len(module.told) == 1  # a validation that lets nobody answer
    trainer.answers = [(row["id"], row["answer"], row["rouge_l"]) for row in reversed(ANSWERS)]
    tables.on_evaluate(None, SimpleNamespace(global_step=2), None)
    assert read(module) == ["validation_answers", 2, ANSWERS]
    tables.on_train_end(None, None, None)
    assert module.run == (None if callback == "WandbCallback" else "open")


def test_many_answers_are_cut_to_the_same_questions() -> None:
    trainer = SimpleNamespace(answers=[(f"{n:03}", "x", 0.0) for n in reversed(range(200))])
    tables = Tables(trainer, STAGES, {f"{n:03}": ("p", "r") for n in range(200)})
    written: list[Any] = []
    tables._write = lambda *given: written.append(given)  # type: ignore[method-assign]
    tables.on_evaluate(None, SimpleNamespace(global_step=1), None)
    assert [row["id"] for row in written[0][1]] == [f"{n:03}" for n in range(tracking.SHOWN)]


def test_a_text_does_not_break_its_cell() -> None:
    *_, line = to_markdown(ANSWERS).splitlines()
    assert line == "| b | A &#124; B<br>? | &lt;b&gt; | C | 0.0 |"


def test_a_stage_is_tracked_under_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    assert names_of("mine", "srd", 1) == {"project": "srd", "run_name": "mine/srd/stage 1"}
    monkeypatch.setenv("TRACKIO_PROJECT", "ours")
    assert names_of("mine", "kd", 0)["project"] == "ours"


@pytest.mark.parametrize(
    ("mode", "known", "says"),
    [("offline", None, ""), ("online", True, ""), ("online", False, "it has no key"),
     ("online", RuntimeError("no network"), "no network"), ("online", TypeError(), "")],
)  # fmt: skip
def test_a_tracker_without_a_key_is_refused_at_the_start(
    mode: str, known: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def login(prompt: bool) -> bool:
        assert not prompt
        if isinstance(known, Exception):
            raise known
        return bool(known)

    wandb = ModuleType("wandb")
    wandb.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]
    vars(wandb).update(setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode)), login=login,
                       Error=RuntimeError)  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    if not says:
        check_installed("training", "adamw_torch", ["wandb"])
        return
    with pytest.raises(UserError, match=rf"training.log_to=\[wandb\].*{says}.*WANDB_MODE=offline"):
        check_installed("training", "adamw_torch", ["wandb"])
