"""Several processes (gloo, on the CPU) do what one does: the same losses, ranks, stages, metrics and weights."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from srd import cli
from srd.base import parallel
from srd.base.errors import UserError
from srd.base.files import read_json
from srd.training import progress
from srd.training.arguments import micro_batch_size
from srd.training.settings import TrainingConfig
from tests.faults import begun, ended
from tests.parallel_worker import as_process
from tests.run.test_aligned import two_tokenizers
from tests.runs import TinyRun, in_turn, logged

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "src" / "srd" / "accelerate"
TOLERANCE = 1e-5
pytestmark = pytest.mark.xdist_group("parallel")  # one worker makes what all of these compare with


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launch(*arguments: Any, configuration: str | None = None, port: int = 0) -> subprocess.CompletedProcess[str]:
    """Start two processes that run together: by torchrun, or by accelerate with one of the shipped configurations."""
    port = port or free_port()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    if configuration:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                   str(CONFIGURATIONS / configuration), "--num_processes=2", f"--main_process_port={port}"]  # fmt: skip
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def worker(*arguments: Any, configuration: str | None = None) -> None:
    """Let two processes do what ``parallel_worker.py`` can: forked, or launched with a configuration of accelerate."""
    if configuration:
        done = launch(ROOT / "tests" / "parallel_worker.py", *arguments, configuration=configuration)
        assert done.returncode == 0, done.stderr[-4000:]
        return
    with tempfile.TemporaryDirectory() as folder:
        statuses, said = forked(Path(folder), *arguments)
    assert statuses == [0, 0], said


def forked(folder: Path, *arguments: Any, numbers: tuple[int, ...] = (0, 1), port: int = 0) -> tuple[list[int], str]:
    """Let two processes, or one of the two, do it without the time that Python takes to start.

    Returns:
        How each has ended, and what they have said.
    """
    port, words = port or free_port(), [str(argument) for argument in arguments]
    files = [folder / f"{number}.said" for number in numbers]
    processes = [
        begun(functools.partial(as_process, number, port, file, *words))
        for number, file in zip(numbers, files, strict=True)
    ]
    statuses, tracebacks = zip(*(ended(*process) for process in processes), strict=True)
    return list(statuses), "".join([*(file.read_text(encoding="utf-8") for file in files), *tracebacks])


def curriculum_and_on_policy(folder: Path, family: str) -> TinyRun:
    """Off-policy stages, and GKD. Llamas are taught before, so that equal metrics mean equal answers.

    T5 would take too many steps, over which rounding grows: its losses are what is compared.
    """
    folder.mkdir(parents=True)
    sizes = {} if family == "t5" else {"teacher": {"layers": 4}, "student": {"layers": 2}}
    run = TinyRun(folder, family, **sizes).set(
        data__train_limit=24, cache__dtype="float32",
        generation={"max_new_tokens": 6, "batch_size": 8},
        training={"epochs": 1 if family == "t5" else 2, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 2e-3,
                  "evaluate_every": 0.5, "curriculum": {"stages": 1 if family == "t5" else 2, "select": 0.7}},
        baselines={"gkd": {"method": {"name": "gkd", "max_new_tokens": 4}, "curriculum": None, "epochs": 1}},
    )  # fmt: skip
    if family == "t5":
        return run
    learning = {"epochs": 6, "learning_rate": 4e-3, "batch_size": 8}
    taught = run.twin().set(teacher__sft=learning, student__warm_start=learning)
    taught = taught.advance("teacher", "student", run_dir=folder / "taught")
    return run.set(teacher=taught.teacher_source, student=taught.start_source)


Runs = Callable[[str], TinyRun]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run of either family on one process, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("parallel")

    @functools.cache
    def get(family: str) -> TinyRun:
        run = curriculum_and_on_policy(folder / family, family)
        run.run()
        return run

    return get


@pytest.fixture(scope="module")
def together(alone: Runs) -> Callable[[str], Path]:
    """The same on two."""

    @functools.cache
    def get(family: str) -> Path:
        run = alone(family)
        worker("run", run.write_recipe(), run.folder / "together")
        return run.folder / "together"

    return get


def parts(runs: list[TinyRun], name: str) -> list[Path]:
    """Each run's recipe, and the folder of this name in which it is to be made."""
    return [part for run in runs for part in (run.write_recipe(), run.folder / name)]


SHARDED = {  # what accelerate makes of the shipped fsdp.yaml
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}  # fmt: skip


class _StoppedError(Exception):
    pass


def begin_and_stop(run: TinyRun, folder: Path) -> None:
    """Begin a run and stop it within the second stage of its curriculum, past a checkpoint."""
    original = progress.Report.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if self.training.label == "srd" and "stages/1" in args.output_dir and state.global_step == 4:
            raise _StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.Report, "on_step_end", on_step_end)
        with pytest.raises(_StoppedError):
            run.run(folder)
    assert list((folder / "stages" / "1").glob("checkpoint-*")), "stopped before the first checkpoint"


def assert_same_run(one: Path, two: Path, relative: float = 0.0) -> float:
    """Losses to 1e-5; ranks, stages and metrics exactly. Gives the ROUGE-L that both have reached."""
    first, second = logged(one), logged(two)
    assert [(row["arm"], row["stage"], row["step"]) for row in first] == [
        (row["arm"], row["stage"], row["step"]) for row in second
    ]
    compared = 0
    for a, b in zip(first, second, strict=True):
        for name in ("loss", "ce_loss", "kd_loss", "eval_loss", "learning_rate"):
            if name in a:
                assert b[name] == pytest.approx(a[name], relative, TOLERANCE), (a["arm"], a["step"], name)
                compared += 1
        assert a.get("eval_rouge_l") == b.get("eval_rouge_l")
    assert compared > 10
    ranked = [pq.read_table(folder / "curriculum" / "ranked.parquet") for folder in (one, two)]
    for column in ("id", "rank", "rank_rouge", "rank_ce", "kept", "stage"):
        assert ranked[0][column].equals(ranked[1][column]), column
    metrics = [read_json(folder / "evaluation" / "metrics.json") for folder in (one, two)]
    assert metrics[0] == metrics[1]
    return float(metrics[0]["srd"]["test"]["rouge_l"]["mean"])


@pytest.mark.parametrize("name", in_turn(["llama", "t5"], "llama"))  # T5 on two is sharded, too, below
def test_two_processes_do_what_one_does(name: str, alone: Runs, together: Callable[[str], Path]) -> None:
    folders = alone(name).run_dir, together(name)
    score = assert_same_run(*folders)
    assert score > 0 or name == "t5", "the model has learnt nothing: its answers could not differ"
    for student in ("student", "baselines/gkd/student"):
        one, two = (load_file(run / student / "model.safetensors") for run in folders)
        assert one.keys() == two.keys()
        assert all((one[key] - two[key]).abs().max() < 1e-3 for key in one)


@pytest.mark.slow  # two go on after a kill: test_parallel_faults.py
def test_a_run_goes_on_with_another_number_of_processes(alone: Runs) -> None:
    run = alone("llama")
    begin_and_stop(run, run.folder / "continued")
    worker("run", run.write_recipe(), run.folder / "continued")
    assert_same_run(run.run_dir, run.folder / "continued")


def test_a_teacher_with_other_tokens_teaches_alike_however_a_batch_is_split(tmp_path: Path) -> None:
    """Over micro-batches and over two processes, each of which aligns its own rows."""
    run = two_tokenizers(tmp_path / "pair").set(cache__dtype="float32")
    whole = logged(run.train(tmp_path / "whole").folder)
    one_by_one = run.twin().set(training__micro_batch_size=1)
    others = [logged(one_by_one.train(tmp_path / "one by one").folder)]
    worker("line", "distill", run.set(training__micro_batch_size=2).write_recipe(), "--run-dir", tmp_path / "together")
    others.append(logged(tmp_path / "together"))
    names = ("loss", "ce_loss", "kd_loss", "supervised", "by_chunks", "mass")
    assert len([row for row in whole if "mass" in row]) == 4
    for rows in others:
        for a, b in zip(whole, rows, strict=True):
            assert [b.get(name) for name in names] == pytest.approx([a.get(name) for name in names], abs=TOLERANCE)


def test_sharded_weights_give_the_same_losses(alone: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has one half of the weights."""
    run = alone("t5")
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    worker("run", run.write_recipe(), tmp_path / "sharded")
    assert_same_run(run.run_dir, tmp_path / "sharded")


@pytest.mark.slow
def test_the_shipped_configuration_shards(alone: Runs) -> None:
    runs = [alone("llama"), alone("t5")]
    worker("run", *parts(runs, "sharded"), configuration="fsdp.yaml")
    for run in runs:
        assert_same_run(run.run_dir, run.folder / "sharded")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed")
@pytest.mark.parametrize("configuration", ["zero2.yaml", "zero3.yaml"])
def test_deepspeed_gives_the_same_losses_also_after_a_kill(configuration: str, alone: Runs) -> None:
    runs = [alone("llama"), alone("t5")]
    folder = runs[0].folder / configuration
    killing = ["kill", "training", 25, 1, runs[0].write_recipe(), folder]  # past a checkpoint of the first training
    killed = launch(ROOT / "tests" / "parallel_worker.py", *killing, configuration=configuration)
    assert killed.returncode != 0
    assert list(folder.rglob("checkpoint-*"))
    worker("run", *parts(runs, configuration), configuration=configuration)
    for run in runs:
        assert_same_run(run.run_dir, run.folder / configuration, relative=1e-5)


@pytest.mark.slow
def test_the_command_line_under_accelerate(alone: Runs, tmp_path: Path) -> None:
    """Torchrun and its command line: tests/run/test_parallel_faults.py."""
    recipe = alone("t5").write_recipe()
    done = launch("-m", "srd", "run", recipe, "--run-dir", tmp_path / "run", configuration="ddp.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "run" / "report" / "index.html").exists()
    assert_same_run(alone("t5").run_dir, tmp_path / "run")
    assert "accelerate takes up FSDP" not in done.stderr


@pytest.mark.slow
def test_sharding_without_a_gpu_is_said_to_be_none(
    alone: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = alone("t5")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    command = ("line", "run", run.write_recipe(), "--run-dir", tmp_path / "run")
    statuses, said = forked(tmp_path, *command)
    assert statuses == [0, 0], said
    assert "accelerate takes up FSDP on GPUs only" in " ".join(said.split())
    assert_same_run(run.run_dir, tmp_path / "run")


def test_one_process_decides_and_all_hear_of_errors(tmp_path: Path) -> None:
    worker("check", tmp_path)
    for number in (0, 1):
        found = json.loads((tmp_path / f"{number}.json").read_text(encoding="utf-8"))
        assert found["gather"] == [0, 10]
        assert found["on_main"] == "said by 0"
        assert found["on_main_error"] == "refused by 0"
        assert found["together"] == number
        assert found["together_error"] == "refused by 1"
        assert found["same"] == ""
        assert "recipe.seed differs" in found["different"]
        assert "0 in process 0" in found["different"]
        assert "1 in process 1" in found["different"]


DIVERGENCE = """
from srd import register_divergence
from srd.base import parallel

@register_divergence("lonely")
def lonely(log_p, log_q):
    if parallel.process() == 1:
        raise ValueError("no divergence on this process")
    return (log_p.exp() * (log_p - log_q)).sum(-1)
"""


def test_a_failing_process_stops_the_others_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sweep, which goes on past a cell that fails on all processes: this one fails while another waits for it."""
    monkeypatch.setattr(cli, "OTHERS_WAIT", 1.0)
    (tmp_path / "plugin.py").write_text(DIVERGENCE)
    run = TinyRun(tmp_path).set(plugins=[str(tmp_path / "plugin.py")], data__train_limit=8)
    cells = {"refused": {"data.template": "{nothing}"}, "lonely": {"training.objective": "lonely"}, "never": {}}
    sweep = {"recipe": str(run.write_recipe()), "cells": cells}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    statuses, said = forked(tmp_path, "line", "sweep", tmp_path / "sweep.yaml", "--dir", tmp_path / "work")
    assert statuses == [1, 1]
    assert time.time() - (tmp_path / "work/cells/lonely/cell.json").stat().st_mtime < 30
    assert "no divergence on this process" in said
    states = {path.parent.name: read_json(path) for path in (tmp_path / "work/cells").glob("*/cell.json")}
    assert {name: note["state"] for name, note in states.items()} == {"refused": "failed", "lonely": "failed"}
    assert "line 8, has failed: ValueError: no divergence on this process" in states["lonely"]["error"]


def test_alone_everything_passes_through() -> None:
    assert parallel.gather("mine") == ["mine"]
    assert parallel.on_main(lambda: 3) == 3
    assert parallel.together(lambda: 4) == 4
    with pytest.raises(UserError, match="no"):
        parallel.on_main(_refuse)
    parallel.check_same({"recipe": {"seed": 0}})
    parallel.barrier()


def _refuse() -> None:
    raise UserError("no")


def test_batch_size_must_be_a_multiple_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"batch_size \(16\) is no multiple of the 3 processes. Use a batch size of 15"):
        micro_batch_size(TrainingConfig(batch_size=16))
    monkeypatch.setenv("WORLD_SIZE", "32")
    with pytest.raises(UserError, match="Use a batch size of 32"):
        micro_batch_size(TrainingConfig(batch_size=16))


def test_more_processes_than_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    from srd.run.steps.examples import check_count

    check_count(3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes are more than the 3 training examples"):
        check_count(3)
