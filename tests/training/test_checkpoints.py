"""Checkpoints and kept models that are damaged, half written, or met a full disk: never used, and made again."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

from srd.base.errors import RunError, UserError
from srd.base.files import disk_errors, read_json
from srd.models.generation import Decoding
from srd.recipe.reading import validate_recipe
from srd.run.checks.recipe import check_optimizer
from srd.run.parts import assemble
from srd.run.steps import training as training_step
from srd.training import one_schedule, stages
from srd.training.checkpoints import FILES, check_place, damage, forget_older, last_checkpoint, list_files, seal
from srd.training.log import append_row
from srd.training.loss.settings import LossSettings
from srd.training.rollouts import AdaptiveOffPolicy
from srd.training.stages import load_student
from srd.training.student_text.writing import Writing
from srd.training.trainer import DistillTrainer
from srd.training.validation import Validation
from tests.runs import TinyRun, edit_loss, in_turn, logged
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_trainer import arguments, encoded

pytestmark = pytest.mark.xdist_group("checkpoints")  # one worker makes what all of these compare with


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    logging.getLogger("srd").addHandler(caplog.handler)
    yield
    logging.getLogger("srd").removeHandler(caplog.handler)


def checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(200)) + bytes([step]))
    (path / "distillation.json").write_text('{"seconds": 1}')
    named = None if best is None else f"elsewhere/checkpoint-{best}"
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "best_model_checkpoint": named}))
    seal(path)
    return path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "weights missing": lambda path: (path / "model.safetensors").unlink(),
    "weights truncated": lambda path: (path / "model.safetensors").write_bytes(b"abc"),
    "weights flipped": lambda path: flip(path / "model.safetensors"),
    "our state is garbage": lambda path: (path / "distillation.json").write_text("{"),
    "the trainer's state is garbage": lambda path: (path / "trainer_state.json").write_bytes(b"\0\xff"),
    "the list is garbage": lambda path: (path / FILES).write_text("\0"),
    "the list is empty": lambda path: (path / FILES).write_text(""),
    "the list lists nothing": lambda path: (path / FILES).write_text("{}"),
    "the list is of another kind": lambda path: (path / FILES).write_text('{"model.safetensors": 3}'),
    "a file has another name": lambda path: (path / "distillation.json").rename(path / "other.json"),
}


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_not_used(
    harm: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = checkpoint(tmp_path, 2, 2), checkpoint(tmp_path, 10, 10)
    assert last_checkpoint(tmp_path) == newer
    harm(newer)
    assert last_checkpoint(tmp_path) == older and not newer.exists()
    assert f"{newer} is not used" in caplog.text
    harm(older)
    assert last_checkpoint(tmp_path) is None and not older.exists()


def test_a_checkpoint_whose_best_is_damaged_is_not_used(tmp_path: Path) -> None:
    """At the end of the stage the best one is loaded; a kept one after it cannot end in the same weights."""
    first, best, newest = checkpoint(tmp_path, 2, 2), checkpoint(tmp_path, 4, 4), checkpoint(tmp_path, 6, 4)
    assert last_checkpoint(tmp_path) == newest
    flip(best / "model.safetensors")
    assert last_checkpoint(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_unfinished_checkpoints_are_removed_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ours are; what another program, or somebody, has put beside them stays."""
    whole = checkpoint(tmp_path, 10)
    for name in ("checkpoint-11", "checkpoint-12", "checkpoint-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text('{"a": 1}')
    (tmp_path / "checkpoint-11" / "distillation.json").write_text("{}")
    assert last_checkpoint(tmp_path) == whole and last_checkpoint(tmp_path / "nowhere") is None
    forget_older(tmp_path, 1, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12", "checkpoint-x"]
    assert not caplog.text
    with pytest.raises(UserError, match=r"checkpoint-12 was not written by this training"):
        check_place(tmp_path)


@pytest.mark.parametrize(
    ("keep", "best", "left"), [(1, None, [9]), (1, 2, [2, 9]), (2, 2, [2, 9]), (3, 2, [2, 5, 9]), (None, 2, [2, 5, 9])]
)
def test_older_checkpoints_go(keep: int | None, best: int | None, left: list[int], tmp_path: Path) -> None:
    for step in (2, 5, 9):
        checkpoint(tmp_path, step)
    forget_older(tmp_path, keep, f"elsewhere/checkpoint-{best}" if best else None)
    assert sorted(int(path.name[11:]) for path in tmp_path.iterdir()) == left


def test_a_listing_covers_folders_within(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    (path / "global_step1").mkdir()
    (path / "global_step1" / "shard").write_bytes(b"a")
    seal(path)
    assert set(list_files(path, "global_step1", "trainer_state.json", "none")) == {
        "global_step1/shard", "trainer_state.json"
    }  # fmt: skip
    (path / "global_step1" / "shard").write_bytes(b"b")
    assert damage(path, json.loads((path / FILES).read_text())) == "global_step1/shard has another content"


# ----------------------------------------------------------------------------------------------------------- full disk

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    RuntimeError("basic_ios::clear: iostream error"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),
    OSError("12800 requested and 3376 written"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_a_full_disk_is_told_with_its_path(error: Exception, tmp_path: Path) -> None:
    place = tmp_path / "gone" / "file"
    with pytest.raises(RunError, match=r"full: could not write .*gone.* same command"), disk_errors(place):
        raise error
    with pytest.raises(ValueError, match="something else"), disk_errors(tmp_path):
        raise ValueError("something else")


class Killed(Exception):
    """Ends a training as a kill would."""


def small_trainer(folder: Path, kill_at: int | None = None) -> DistillTrainer:
    """Six steps, a validation and a checkpoint after every second; dropout off, student text now and then."""

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == kill_at:
                raise Killed

    tokenizer = tiny_tokenizer("llama")
    trainer = DistillTrainer(
        tiny_model("llama", seed=1),
        arguments(folder, 4, 1, num_train_epochs=2, save_strategy="steps", save_steps=2, eval_strategy="steps",
                  eval_steps=2, save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="loss"),
        train_dataset=encoded(12, tokenizer), processing_class=tokenizer, objective=LossSettings(),
        eval_dataset=Validation(encoded(3, tokenizer, 1), [["a"]] * 3, generate=False),
        method=Writing(AdaptiveOffPolicy(0.3, capacity=4), Decoding(3)),
    )  # fmt: skip
    trainer.add_callback(Kill())
    return trainer


def same_training(one: DistillTrainer, two: DistillTrainer) -> bool:
    """Weights, validations and rollouts."""
    pairs = zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    validations = [[row["eval_loss"] for row in each.state.log_history if "eval_loss" in row] for each in (one, two)]
    assert one.rollouts is not None and two.rollouts is not None
    same = all(torch.equal(mine, theirs) for mine, theirs in pairs) and validations[0] == validations[1]
    return same and one.rollouts.state() == two.rollouts.state()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> DistillTrainer:
    trainer = small_trainer(tmp_path_factory.mktemp("whole"))
    trainer.resume()
    return trainer


@pytest.mark.parametrize(
    "part",
    in_turn(["optimizer.pt", "rng_state.pth", "model.safetensors", "metrics.jsonl"], "optimizer.pt", "metrics.jsonl"),
)
def test_a_checkpoint_that_does_not_fit_the_disk(
    part: str, whole: DistillTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own error becomes ours, nothing half written stays, and the same command ends as it would have."""
    error = FULL[2] if part.endswith((".pt", ".pth")) else FULL[4]
    owner, name = {
        "optimizer.pt": (Trainer, "_save_optimizer_and_scheduler"), "rng_state.pth": (Trainer, "_save_rng_state"),
        "model.safetensors": (Trainer, "save_model"), "metrics.jsonl": (Trainer, "log"),
    }[part]  # fmt: skip
    trainer = small_trainer(tmp_path)
    with monkeypatch.context() as patched:
        original, calls = getattr(owner, name), []

        def full(self: Any, *values: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) < 2:
                return original(self, *values, **named)
            if part == "metrics.jsonl":
                append_row(Path("/dev/full"), {"loss": 1.0})
            (tmp_path / f"checkpoint-{self.state.global_step}" / part).write_bytes(b"half")
            raise error

        patched.setattr(owner, name, full)
        with pytest.raises(RunError, match="the disk is full: could not write"):
            trainer.resume()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} <= {"checkpoint-2"}
    again = small_trainer(tmp_path)
    again.resume()
    assert same_training(again, whole)


@pytest.mark.parametrize(
    "name",
    in_turn(
        ["model.safetensors", "optimizer.pt", "rng_state.pth", "distillation.json"], "model.safetensors", "optimizer.pt"
    ),
)
def test_a_damaged_checkpoint_ends_in_the_same_training(name: str, whole: DistillTrainer, tmp_path: Path) -> None:
    """Of the newest one: training goes on from the one before, or begins again."""
    with pytest.raises(Killed):
        small_trainer(tmp_path, kill_at=5).resume()
    newest = tmp_path / "checkpoint-4"
    (newest / name).write_bytes((newest / name).read_bytes()[:-7])
    again = small_trainer(tmp_path)
    again.resume()
    assert same_training(again, whole)


def test_the_run_directory_may_have_moved(whole: DistillTrainer, tmp_path: Path) -> None:
    """The best checkpoint is found by its name, not by the path it had when it was chosen."""
    with pytest.raises(Killed):
        small_trainer(tmp_path / "before", kill_at=5).resume()
    shutil.move(tmp_path / "before", tmp_path / "after")
    again = small_trainer(tmp_path / "after")
    again.resume()
    assert same_training(again, whole)


# --------------------------------------------------------------------------------------------------------------- stages


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Two stages in ``run``, and in ``killed`` the same where the second is done and the student is not."""
    tiny = TinyRun(tmp_path_factory.mktemp("stages"))
    tiny.set(training__curriculum={"stages": 2, "select": 1.0}, training__epochs=1, data__train_limit=20)
    tiny.train()

    def die(*values: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "_save_final", die)
        with pytest.raises(Killed):
            tiny.train(tiny.folder / "killed")
    return tiny


HARM: dict[str, tuple[str, Callable[[Path], Any], list[int]]] = {
    "nothing": ("stages/1/model/config.json", lambda path: path, []),
    "last model cut": ("stages/1/model/model.safetensors", lambda path: path.write_bytes(b"cut"), [1]),
    "last model flipped": ("stages/1/model/model.safetensors", flip, [1]),
    "last tokenizer missing": ("stages/1/model/tokenizer.json", Path.unlink, [1]),
    "last metrics garbage": ("stages/1/metrics.json", lambda path: path.write_bytes(b"\xff{"), [1]),
    "last metrics edited": ("stages/1/metrics.json", lambda path: path.write_text(
        path.read_text().replace('"steps": ', '"steps": 9')), [1]),
    "first metrics missing": ("stages/0/metrics.json", Path.unlink, [0, 1]),
    "last answers missing": ("stages/1/validation.jsonl", Path.unlink, [1]),
    "last log edited": ("logs/srd.jsonl", lambda path: edit_loss(path, -1), [1]),
    "first log edited": ("logs/srd.jsonl", lambda path: edit_loss(path, 0), [0, 1]),
    "first model missing": ("stages/0/model/model.safetensors", Path.unlink, [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("what", in_turn(HARM, "nothing", "last model flipped", "first log edited"))
def test_a_damaged_stage_is_trained_again(
    what: str, trained: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, harm, again = HARM[what]
    run_dir = tmp_path / "run"
    shutil.copytree(trained.folder / "killed", run_dir)
    harm(run_dir / place)
    done: list[int] = []
    original = stages.train_stage

    def spy(training: Any, stage: Any, model: Any) -> Any:
        done.append(stage.index)
        return original(training, stage, model)

    monkeypatch.setattr(stages, "train_stage", spy)
    trained.train(run_dir)
    assert done == again
    told = [line for line in read_json(run_dir / "manifest.json")["warnings"] if "trained again" in line]
    assert len(told) == (bool(again) and (run_dir / place).parent.name != "0")
    for name in ("student/model.safetensors", "stages/1/model/model.safetensors"):
        assert (run_dir / name).read_bytes() == (trained.run_dir / name).read_bytes()


def test_values_that_nothing_has_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_model("llama", seed=1), tiny_tokenizer("llama")
    model.model.embed_tokens.weight.data[7, 3] = torch.inf
    asked: Any = SimpleNamespace(
        config=SimpleNamespace(lora=None), start="/models/small", kept_tokenizer=None, tokenizer=tokenizer
    )
    stages._save_final(asked, model, tmp_path / "student")
    assert "'model.embed_tokens.weight' (1 of its" in caplog.text and "/models/small" in caplog.text


# ----------------------------------------------------------------------------------------- one optimizer for all stages


def rates_of(run_dir: Path) -> list[float]:
    """The learning rate of each logged step."""
    return [row["learning_rate"] for row in logged(run_dir) if "learning_rate" in row]


def test_stages_with_one_optimizer_have_one_schedule(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up and decay once over 1 + 2 + 3 steps; the moments go on; what was handed on is gone in the end."""
    tiny_run.set(data__train_limit=12, training={
        "epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.5, "schedule": "linear", "select_by": "last",
        "curriculum": {"stages": 3, "select": 1.0, "optimizer": "keep"},
    })  # fmt: skip
    met: list[tuple[int, set[int]]] = []
    enter = one_schedule.Span.enter

    def look(span: one_schedule.Span, optimizer: Any, scheduler: Any) -> None:
        enter(span, optimizer, scheduler)
        met.append((span.before, {int(state["step"]) for state in optimizer.state.values()}))

    monkeypatch.setattr(one_schedule.Span, "enter", look)
    tiny_run.train()
    assert met == [(0, set()), (1, {1}), (3, {3})]
    assert rates_of(tiny_run.run_dir) == pytest.approx([0, 1e-2 / 3, 2e-2 / 3, 1e-2, 2e-2 / 3, 1e-2 / 3])
    assert not list(tiny_run.run_dir.rglob("optimizer.pt"))
    tiny_run.set(training__curriculum__optimizer="restart").train(tiny_run.folder / "restarted")
    assert rates_of(tiny_run.folder / "restarted") == pytest.approx([0, 0, 1e-2, 0, 5e-3, 1e-2])


@pytest.mark.parametrize(
    ("place", "harm", "again"),
    [
        pytest.param("stages/0/optimizer.pt", None, [1], marks=pytest.mark.slow),
        ("stages/0/optimizer.pt", flip, [0, 1]),
        pytest.param("stages/0/optimizer.pt", Path.unlink, [0, 1], marks=pytest.mark.slow),
    ],
)
def test_an_optimizer_that_is_damaged_is_made_again(
    place: str, harm: Any, again: list[int], tmp_path: Path, trained: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the second stage; with the best model of a stage goes the optimizer as it was there."""
    tiny = trained.twin().set(training__curriculum__optimizer="keep")
    whole = trained.folder / "kept"
    if not whole.exists():
        tiny.train(whole)
    original, done = stages.train_stage, []

    def counted(training: Any, stage: Any, model: Any) -> Any:
        done.append(stage.index)
        return original(training, stage, model)

    def killed(training: Any, stage: Any, model: Any) -> Any:
        if stage.index:
            raise Killed
        return original(training, stage, model)

    with monkeypatch.context() as patched:
        patched.setattr(stages, "train_stage", killed)
        with pytest.raises(Killed):
            tiny.train(tmp_path / "run")
    assert (tmp_path / "run" / place).is_file()
    if harm is not None:
        harm(tmp_path / "run" / place)
    monkeypatch.setattr(stages, "train_stage", counted)
    tiny.train(tmp_path / "run")
    assert done == again
    student = "student/model.safetensors"
    assert (tmp_path / "run" / student).read_bytes() == (whole / student).read_bytes()


@pytest.mark.parametrize(("name", "said"), [("FSDP", "with FSDP each"), ("DEEPSPEED", "with DeepSpeed each")])
def test_an_optimizer_in_parts_is_not_handed_on(
    name: str, said: str, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    check_optimizer(validate_recipe(tiny_run.recipe, "tiny"))  # each stage has its own
    tiny_run.set(training__curriculum={"optimizer": "keep"})
    with pytest.raises(UserError, match=said):
        check_optimizer(validate_recipe(tiny_run.recipe, "tiny"))


# -------------------------------------------------------------------------------------------------- reflecting again


@pytest.mark.parametrize("precision", in_turn(["bfloat16", "float32"], "bfloat16"))
def test_reflecting_again_is_the_same_after_a_restart(
    precision: str, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 is chosen by the student of stage 0: as it left the trainer, and as it is read from its file."""
    tiny_run.set(training__curriculum={"reflect_again": True, "stages": 2}, training__precision=precision)
    tiny_run.set(training__epochs=1, training__learning_rate=5e-3)
    scores: list[list[dict[str, Any]]] = []
    original = assemble.reflect_on

    def twice(run: Any, model: Any, folder: Path) -> Any:
        if "stages" in str(folder):
            for name, each in (("fold_0", model), ("fold_1", load_student(trainings[-1], 1))):
                scores.append(original(run, each, folder / name).to_list())
        return original(run, model, folder)

    trainings: list[Any] = []
    train = stages.train

    def kept(training: Any, final: Path) -> Any:
        trainings.append(training)
        return train(training, final)

    monkeypatch.setattr(training_step, "train", kept)
    monkeypatch.setattr(assemble, "reflect_on", twice)
    tiny_run.train()
    assert len(scores) == 2 and scores[0] == scores[1]
