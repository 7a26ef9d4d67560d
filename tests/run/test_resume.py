"""A run killed anywhere and started again ends in the same student, bit for bit, and logs no step twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from srd.base.errors import UserError
from srd.base.files import read_json, write_json
from srd.curation import reflection
from srd.models import generation
from srd.recipe.reading import validate_recipe
from srd.run import context
from srd.run.flow import planned_steps, training_steps
from srd.run.steps import teacher
from srd.training import stages, trainer
from srd.training.cache import building as cache_building
from srd.training.checkpoints import STATE_FILE, seal
from srd.training.trainer import DistillTrainer, Trainer
from tests.faults import (
    Places,
    begun,
    disk_full,
    ended,
    fail_at_every_place,
    in_a_process_of_its_own,
    kill_at_every_place,
    killed_in,
)
from tests.parallel_worker import line
from tests.runs import TinyRun, close, edit_loss, in_turn, logged

pytestmark = pytest.mark.xdist_group("resume")  # one worker makes what all of these compare with

TIMES = {"seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
# The checkpoints lie within the epochs, so that the order of the batches is resumed too.
STAGES = {"stages": 2}
SRD = {"epochs": 2, "batch_size": 4, "evaluate_every": 0.5, "learning_rate": 3e-3, "curriculum": STAGES}
PLAIN = {**SRD, "select_by": "loss", "curriculum": None, "micro_batch_size": 2}
SHORT = {"epochs": 1, "batch_size": 4, "learning_rate": 3e-3, "curriculum": STAGES}  # every kind of file, once or twice
VARIANTS: dict[str, dict[str, Any]] = {
    "srd": SRD,
    "short": SHORT,
    "plain": PLAIN,
    "lora": {**PLAIN, "lora": {"r": 4, "alpha": 8, "dropout": 0.3}},
    "reflect-again": {**SRD, "curriculum": {**STAGES, "reflect_again": True, "order": "fresh"}},
    "kept": {**SRD, "curriculum": {"stages": 3, "optimizer": "keep", "row_weights": "paced"}, "select_by": "last"},
    "gkd": {**SRD, "method": {"name": "gkd", "max_new_tokens": 6}},
    "distillm": {
        **SRD,
        "method": {"name": "distillm", "max_new_tokens": 6, "student_share": 0.5, "share_step": 0.2, "tolerance": 0.0},
    },
    "half precision": {**SRD, "precision": "bfloat16"},
    # Intervals begin and end between the checkpoints.
    "gkd ahead": {**PLAIN, "epochs": 1, "method": {"name": "gkd", "max_new_tokens": 6, "refresh": 3}},
    "gkd auto": {
        **PLAIN,
        "lora": {"r": 4, "dropout": 0.3},
        "method": {"name": "gkd", "max_new_tokens": 6, "refresh": "auto"},
    },
    "distillm ahead": {
        **SRD,
        "method": {
            "name": "distillm",
            "max_new_tokens": 6,
            "student_share": 0.6,
            "share_step": 0.2,
            "tolerance": 0.0,
            "capacity": 6,
            "refresh": "stage",
        },
    },
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program may catch it."""


def kill_now() -> None:
    raise Killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyRun]:
    """Finished runs to compare with, one for each variant, made when it is first asked for."""
    made: dict[str, TinyRun] = {}

    def get(variant: str) -> TinyRun:
        if variant not in made:
            made[variant] = TinyRun(tmp_path_factory.mktemp(variant))
            made[variant].set(training=VARIANTS[variant], generation__batch_size=4, data__train_limit=16)
            if variant == "short":
                made[variant].run()
            else:  # most of what is compared is the student
                begin_training(made[variant])
                made[variant].train()
        return made[variant]

    return get


def begin_training(tiny: TinyRun) -> None:
    """Go through all steps that the training comes after, and keep a copy of what they have made."""
    recipe = validate_recipe(tiny.recipe, "tiny")
    tiny.advance(*(step.name for step in planned_steps(recipe, *training_steps(recipe)) if "train/" not in step.name))
    shutil.copytree(tiny.run_dir, tiny.folder / "before")


def about_to_train(tiny: TinyRun, run_dir: Path) -> Path:
    """A run directory in which the training comes next; its other steps are killed in `test_killed_at_every_write`."""
    return shutil.copytree(tiny.folder / "before", run_dir)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_building, "SHARD_BATCHES", 1)


def kill(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool = False) -> list[int]:
    """Raise in the ``call``-th call of a function, before or after it has done its work."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise Killed(name)
        result = original(*arguments, **named)
        if calls[0] == call:
            raise Killed(name)
        return result

    monkeypatch.setattr(owner, name, wrapped)
    return calls


def assert_same(run_dir: Path, expected: Path) -> None:
    """The same student, scores and logged values."""
    assert (run_dir / "student/model.safetensors").read_bytes() == (expected / "student/model.safetensors").read_bytes()
    for name in ("reflection/scores.parquet", "evaluation/metrics.json"):
        if (expected / name).exists():
            assert (run_dir / name).read_bytes() == (expected / name).read_bytes(), name
    rows, wanted = logged(run_dir), logged(expected)
    keys = Counter((row["arm"], row["stage"], row["step"], "eval_loss" in row, "loss" in row) for row in rows)
    assert max(keys.values()) == 1, [key for key, count in keys.items() if count > 1]

    def values(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in found if "loss" in row
                or "eval_loss" in row]  # fmt: skip

    assert values(rows) == values(wanted)
    leftovers = [path for path in run_dir.rglob("*") if path.name.startswith(".partial") or "checkpoint-" in path.name]
    assert leftovers == []


def interrupt(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], Any], run_dir: Path,
    owner: Any, name: str, call: int, after: bool = False,
) -> None:  # fmt: skip
    """Let ``TinyRun.run`` or ``TinyRun.train`` be killed in the ``call``-th call of a function."""
    with monkeypatch.context() as patched:
        kill(patched, owner, name, call, after=after)
        with pytest.raises(Killed):
            work(run_dir)


@pytest.mark.parametrize(("moments", "part"), [
    (("replace", "done"), (0, 30)),
    *(pytest.param((moment,), (half, 2), marks=pytest.mark.slow) for half, moment in enumerate(("replace", "done"))),
])  # fmt: skip
def test_killed_at_every_write(
    undisturbed: Callable[[str], TinyRun], tmp_path: Path, moments: tuple[str, ...], part: tuple[int, int]
) -> None:
    """A new process continues each time, to be killed at the next file: before or after it gets its name, in turn."""
    tiny, run_dir = undisturbed("short"), tmp_path / "run"
    kills = kill_at_every_place(lambda: tiny.run(run_dir), Places(run_dir, moments, part))
    assert kills > 30 / part[1]
    assert_same(run_dir, tiny.run_dir)


@pytest.mark.slow
def test_killed_wherever_text_is_written_ahead(undisturbed: Callable[[str], TinyRun], tmp_path: Path) -> None:
    """Batches, files, seals and the teacher's states of each refresh: none of its bytes is another one."""
    tiny, run_dir = undisturbed("gkd ahead"), tmp_path / "run"
    tiny.advance("student", "cache", run_dir=run_dir)
    places = Places(run_dir, ("replace", "done"))
    places.wanted = lambda place: "rollouts/" in place[0] and (zlib.crc32("".join(place).encode()) % 5 == 0)
    killed = 0

    def die(place: Any) -> None:
        raise Killed(place)

    while True:
        try:
            with places.failing(die):
                tiny.train(run_dir)
            break
        except Killed:
            killed += 1
    assert killed > 3
    assert_same(run_dir, tiny.run_dir)
    for text in tiny.run_dir.glob("stages/0/rollouts/*.parquet"):
        assert text.read_bytes() == (run_dir / text.relative_to(tiny.run_dir)).read_bytes()


def test_text_that_is_gone_begins_a_stage_again(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The student that wrote it is gone, too; what the teacher said of it is read again."""
    tiny, folder = undisturbed("gkd ahead"), tmp_path / "run/stages/0/rollouts"
    about_to_train(tiny, tmp_path / "run")
    interrupt(monkeypatch, tiny.train, tmp_path / "run", DistillTrainer, "training_step", 6)
    shutil.rmtree(folder / "0.work")
    interrupt(monkeypatch, tiny.train, tmp_path / "run", DistillTrainer, "training_step", 2)
    assert (folder / "0.work").is_dir() and "is not used" not in capsys.readouterr().err
    (folder / "0.parquet").unlink()
    tiny.train(tmp_path / "run")
    assert "rollouts/0.parquet is missing" in " ".join(capsys.readouterr().err.split())
    assert_same(tmp_path / "run", tiny.run_dir)


def test_killed_at_every_training_step(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every attempt comes one step further: checkpoints lie two steps apart, so some steps are taken several times."""
    tiny = undisturbed("srd")
    about_to_train(tiny, tmp_path / "run")
    for number, step in enumerate((1, 3, 4)):
        interrupt(monkeypatch, tiny.train, tmp_path / "run", DistillTrainer, "training_step", step, number % 2 == 1)
    tiny.train(tmp_path / "run")
    assert_same(tmp_path / "run", tiny.run_dir)


def test_killed_where_libraries_write(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights saved but not the optimizer; that but not the state; in a validation; when the student is saved."""
    tiny = undisturbed("srd")
    run_dir = about_to_train(tiny, tmp_path / "run")
    interrupt(monkeypatch, tiny.train, run_dir, Trainer, "_save_optimizer_and_scheduler", 2)
    interrupt(monkeypatch, tiny.train, run_dir, Trainer, "_save_rng_state", 2)
    interrupt(monkeypatch, tiny.train, run_dir, trainer, "validation_loss", 2)
    interrupt(monkeypatch, tiny.train, run_dir, stages, "summarise", 1)
    tiny.train(run_dir)
    assert_same(run_dir, tiny.run_dir)


@pytest.mark.parametrize("parts", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_full_at_every_write(undisturbed: Callable[[str], TinyRun], tmp_path: Path, parts: int) -> None:
    """Each time one message that names the file, and the same command continues."""
    tiny, run_dir = undisturbed("short"), tmp_path / "run"
    places = Places(run_dir, ("begin",), (2 % parts, parts))
    said = fail_at_every_place(lambda: tiny.run(run_dir), places, disk_full)
    assert len(said) > 40 / parts
    assert all("the disk is full: could not write" in message for message in said)
    assert_same(run_dir, tiny.run_dir)


def test_nothing_that_keeps_time_needs_a_step(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With time so fast that every look at the clock is due: also where a continued run tokenises before any step."""
    tiny = undisturbed("srd")
    monkeypatch.setattr(context, "KEEP_SECONDS", 0.0)
    interrupt(monkeypatch, tiny.train, tmp_path / "run", DistillTrainer, "training_step", 5)
    run = tiny.open(tmp_path / "run")
    run.tick()  # no step is being made: there is nothing to note
    close(run)
    tiny.train(tmp_path / "run")
    assert_same(tmp_path / "run", tiny.run_dir)


@pytest.mark.parametrize(
    "variant",
    in_turn([name for name in VARIANTS if name not in ("srd", "short")], "lora", "half precision"),
)
def test_every_kind_of_training_resumes(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: str
) -> None:
    tiny = undisturbed(variant)
    about_to_train(tiny, tmp_path / "run")
    interrupt(monkeypatch, tiny.train, tmp_path / "run", DistillTrainer, "training_step", 7)
    tiny.train(tmp_path / "run")
    assert_same(tmp_path / "run", tiny.run_dir)


def test_nothing_goes_from_one_training_to_the_next_but_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings of different precision in one process, and every stage in a process of its own.

    No process has the random states of another; the later ones come from a launcher with a precision of its own.
    """
    half = {**SHORT, "precision": "bfloat16"}
    adapted = {"precision": "float32", "curriculum": None, "lora": {"r": 4, "dropout": 0.3, "merge": False}}
    tiny = TinyRun(tmp_path).set(training=half, baselines={"adapted": adapted}, data__train_limit=8)
    whole, parts = tmp_path / "whole", Places(tmp_path / "parts", ("done",))
    parts.wanted = lambda place: "stages" in place[0] and place[0].endswith("/metrics.json")

    def train(run_dir: Path) -> None:
        seed = int.from_bytes(os.urandom(4), "big")
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        tiny.train(run_dir)

    assert in_a_process_of_its_own(lambda: train(whole)) == (0, "")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert kill_at_every_place(lambda: train(parts.folder), parts) == 3
    made = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    names = [
        path for path in made if {"student", "model", "reflection"} & {*path.parts} or path.name == "validation.jsonl"
    ]
    assert len(names) > 30
    assert [str(name) for name in names if (whole / name).read_bytes() != (parts.folder / name).read_bytes()] == []


def test_distillm_takes_up_its_buffer_and_threshold(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny = undisturbed("srd").twin().set(training=VARIANTS["distillm"])
    about_to_train(tiny, tmp_path / "run")
    interrupt(monkeypatch, tiny.train, tmp_path / "run", DistillTrainer, "training_step", 7)
    kept = read_json(max((tmp_path / "run").glob(f"stages/1/checkpoint-*/{STATE_FILE}")))["rollouts"]
    assert kept["buffer"] and kept["reference_loss"] is not None
    restored: list[dict[str, Any]] = []
    original = trainer.DistillTrainer.resume

    def spy(self: DistillTrainer, *arguments: Any) -> Any:
        result = original(self, *arguments)
        assert self.rollouts is not None
        restored.append(self.rollouts.state())
        return result

    monkeypatch.setattr(DistillTrainer, "resume", spy)
    tiny.train(tmp_path / "run")
    assert restored[0]["threshold"] >= kept["threshold"]
    known = {(row["id"], row["written"]) for row in kept["buffer"]}
    assert known <= {(row["id"], row["written"]) for row in restored[0]["buffer"]}


def test_a_reflection_loses_one_batch_at_most(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny = undisturbed("srd")

    def reflect(run_dir: Path) -> Any:
        return tiny.advance("reflection", run_dir=run_dir)

    interrupt(monkeypatch, reflect, tmp_path / "run", reflection, "_reflect_batch", 3)
    calls = kill(monkeypatch, reflection, "_reflect_batch", -1)
    reflect(tmp_path / "run")
    assert calls[0] == 4 - 2  # 16 examples in batches of 4, two of them done before


@pytest.mark.parametrize(("variant", "folder"), [("srd", "reflection"), ("reflect-again", "stages/1")])
def test_a_reflection_is_kept_until_its_scores_count(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: str, folder: str
) -> None:
    """Killed where its scores have just been written, and nothing says yet that they are whole."""
    tiny, work = undisturbed(variant), tmp_path / "run" / folder

    def reflect(run_dir: Path) -> Any:
        return tiny.train(run_dir) if variant == "reflect-again" else tiny.advance("reflection", run_dir=run_dir)

    if variant == "reflect-again":
        about_to_train(tiny, tmp_path / "run")
    places = Places(tmp_path / "run", ("begin",))
    places.wanted = lambda place: (work / "scores.parquet").exists()
    with places.failing(lambda place: kill_now()), pytest.raises(Killed):
        reflect(tmp_path / "run")
    calls = kill(monkeypatch, reflection, "_reflect_batch", -1)
    reflect(tmp_path / "run")
    assert calls == [0]
    assert not (work / "batches").exists()


WRITTEN: dict[str, dict[str, Any]] = {  # the step that writes texts: the recipe
    "teacher text": {"training__method": {"name": "seqkd", "max_new_tokens": 6}},
    "pairs": {"training__method": {"name": "distillm2", "max_new_tokens": 6}, "training__objective": "distillm2"},
    "repair": {"data__cleaning": {"action": "rewrite", "find": ["empty"]}},
}


@pytest.mark.parametrize(("step", "batches", "killed", "models"), [
    ("teacher text", 4, 3, 1), ("pairs", 8, 3, 2), ("pairs", 8, 7, 1), ("repair", 20, 7, 0),
])  # fmt: skip
def test_texts_lose_one_batch_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, batches: int, killed: int, models: int
) -> None:
    """16 prompts in batches of 4: of the teacher; of teacher and student; of the teacher, five answers to each.

    A model whose texts are whole is not loaded again.
    """
    tiny = TinyRun(tmp_path).set(**WRITTEN[step], generation__batch_size=4, data__train_limit=16)

    def write(run_dir: Path) -> Any:
        return tiny.advance(step, run_dir=run_dir)

    interrupt(monkeypatch, write, tmp_path / "run", generation, "_decode", killed)
    calls, loaded = kill(monkeypatch, generation, "_decode", -1), kill(monkeypatch, teacher, "load_writer", -1)
    write(tmp_path / "run")
    assert (calls[0], loaded[0]) == (batches - (killed - 1), models)
    assert not list((tmp_path / "run").rglob("batch-*.json"))


@pytest.mark.parametrize(("step", "folder"), [("teacher text", "seqkd"), ("pairs", "pairs")])
def test_texts_are_the_same_after_kills(tmp_path: Path, step: str, folder: str) -> None:
    """In their batches, their files and the notes that these are whole."""
    tiny = TinyRun(tmp_path).set(**WRITTEN[step], generation__batch_size=4, data__train_limit=16)
    whole, killed = killed_in(f"{folder}/", lambda run_dir: tiny.advance(step, run_dir=run_dir), tmp_path, 5)
    names = [path.relative_to(whole) for path in (whole / folder).glob("*.parquet")]
    assert names and all((whole / name).read_bytes() == (killed / name).read_bytes() for name in names)


@pytest.mark.parametrize("models", [["teacher"], pytest.param(None, marks=pytest.mark.slow)])
def test_answers_are_the_same_after_kills(tmp_path: Path, models: list[str] | None) -> None:
    """In their batches, in their files and between the two; nothing is left of the batches."""
    tiny = TinyRun(tmp_path).set(evaluation={"seeds": [1, 2], "models": models}, generation__batch_size=2)
    tiny.set(data__train_limit=8)
    tiny.train()
    for name in ("whole", "killed"):
        shutil.copytree(tiny.run_dir, tmp_path / name)
    part = "evaluation/predictions/"
    whole, killed = killed_in(part, lambda run_dir: tiny.advance(run_dir=run_dir), tmp_path, 6)
    names = [path.relative_to(whole) for path in whole.glob(f"{part}*")]
    assert len(names) == 1 + 2 * 2 * len(models or "abc") == len([*killed.glob(f"{part}*")])
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in names)


def refuse_another_kind(tiny: TinyRun, run_dir: Path) -> None:
    """What FSDP has begun is not gone on with by plain training."""
    state = max(run_dir.glob(f"stages/0/checkpoint-*/{STATE_FILE}"))
    own = state.read_bytes()
    write_json(state, {**read_json(state), "written_by": "FSDP"})
    seal(state.parent)
    with pytest.raises(UserError, match="was written by FSDP, which plain or data-parallel training cannot read"):
        tiny.train(run_dir)
    state.write_bytes(own)
    seal(state.parent)


def test_a_checkpoint_keeps_the_time_it_took_and_the_kind_that_wrote_it(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cost that the report shows includes what a killed attempt had taken up to its last checkpoint."""
    tiny = undisturbed("srd")
    about_to_train(tiny, tmp_path / "run")
    interrupt(monkeypatch, tiny.train, tmp_path / "run", DistillTrainer, "training_step", 4)
    state = read_json(max((tmp_path / "run").glob(f"stages/0/checkpoint-*/{STATE_FILE}")))
    assert state["seconds"] > 0
    refuse_another_kind(tiny, tmp_path / "run")
    tiny.train(tmp_path / "run")
    metrics = read_json(tmp_path / "run/stages/0/metrics.json")
    assert metrics["seconds"] > state["seconds"]
    rows = [row for row in logged(tmp_path / "run") if row["stage"] == 0]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_a_stopped_step_of_other_settings_begins_anew(
    undisturbed: Callable[[str], TinyRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a killed training with another learning rate left behind must not be gone on with."""
    tiny = undisturbed("srd")
    other = tiny.twin().set(training={**SRD, "learning_rate": 1e-4})
    about_to_train(tiny, tmp_path / "run")
    interrupt(monkeypatch, other.train, tmp_path / "run", DistillTrainer, "training_step", 6)
    tiny.train(tmp_path / "run")
    assert_same(tmp_path / "run", tiny.run_dir)


def test_two_real_kills(undisturbed: Callable[[str], TinyRun], tmp_path: Path) -> None:
    """SIGKILL to the command, once in the first steps and once in the second stage; then the same command."""
    tiny = undisturbed("srd")
    run_dir, recipe = tmp_path / "run", tiny.write_recipe()
    for begins in (run_dir / "reflection", run_dir / "stages" / "1"):
        process, reading = begun(lambda: line("distill", str(recipe), "--run-dir", str(run_dir)))
        while not begins.exists() and os.waitpid(process, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)
        assert ended(process, reading) == (-signal.SIGKILL, "")
        steps = read_json(run_dir / "manifest.json")["steps"]
        assert [name for name, step in steps.items() if "finished" not in step], "it was killed within a step"
    assert in_a_process_of_its_own(lambda: line("distill", str(recipe), "--run-dir", str(run_dir))) == (0, "")
    assert_same(run_dir, tiny.run_dir)


# ------------------------------------------------------------------------------------- damage within a stopped step


def edit_scores(folder: Path) -> None:
    table = pq.read_table(folder / "stages/1/scores.parquet")
    other = table["ce"].take(pa.array(range(len(table))[::-1]))
    pq.write_table(table.set_column(table.column_names.index("ce"), "ce", other), folder / "stages/1/scores.parquet")


def flip_an_early_stage(folder: Path) -> None:
    path = folder / "stages/0/model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


@pytest.mark.parametrize("damage", in_turn([edit_scores, flip_an_early_stage], edit_scores))
def test_a_stopped_training_notices_what_is_damaged(
    undisturbed: Callable[[str], TinyRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    """Killed in its last stage, whose examples were chosen anew."""
    whole = undisturbed("reflect-again")
    run_dir = about_to_train(whole, tmp_path / "run")
    interrupt(monkeypatch, whole.train, run_dir, stages, "make_trainer", 2)
    damage(run_dir)
    whole.train(run_dir)
    assert_same(run_dir, whole.run_dir)
    early = "stages/0/model/model.safetensors"
    assert (run_dir / early).read_bytes() == (whole.run_dir / early).read_bytes()


@pytest.mark.slow  # tests/training/test_checkpoints.py: the first log edited
def test_a_log_that_was_edited_begins_its_stage_again(
    undisturbed: Callable[[str], TinyRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the first checkpoint; what was logged up to there still parses, and is no longer what it was."""
    whole, run_dir = undisturbed("reflect-again"), tmp_path / "run"
    interrupt(monkeypatch, whole.train, run_dir, DistillTrainer, "log", 4)
    assert list(run_dir.glob("stages/0/checkpoint-*/files.json"))
    edit_loss(run_dir / "logs/srd.jsonl", 0)
    whole.train(run_dir)
    assert_same(run_dir, whole.run_dir)


@pytest.mark.slow  # test_done.py: two main trainings take turns in one directory, neither of them interrupted
def test_an_interrupted_switch_goes_on_where_it_was(
    undisturbed: Callable[[str], TinyRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain distillation is killed, SRD takes its place, and plain distillation goes on from its checkpoint."""
    tiny, other, run_dir = undisturbed("srd"), undisturbed("plain"), tmp_path / "run"
    shutil.copytree(tiny.run_dir, run_dir)
    plain = tiny.twin().set(training=PLAIN)
    interrupt(monkeypatch, plain.train, run_dir, stages, "save_model", 1)
    tiny.train(run_dir)
    with monkeypatch.context() as patched:
        calls = kill(patched, DistillTrainer, "training_step", -1)
        plain.train(run_dir)
    assert calls == [0]
    name = "student/model.safetensors"
    assert (run_dir / name).read_bytes() == (other.run_dir / name).read_bytes()
    assert not [path for path in (run_dir / "displaced/train-kd").rglob("*") if path.is_file()]
