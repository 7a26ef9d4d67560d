"""What the processes of `tests/run/test_parallel*.py` do; started by torchrun or accelerate, or forked, two at a time.

parallel_worker.py run RECIPE RUN_DIR [RECIPE RUN_DIR ...]      the whole flow of each recipe
parallel_worker.py kill PLACE CALL PROCESS RECIPE RUN_DIR       SIGKILL of a process at its CALL-th call of PLACE
parallel_worker.py check FOLDER                                 the helpers of srd.base.parallel, one report a process
parallel_worker.py line WORD ...                                the command line
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from accelerate.utils import DeepSpeedPlugin, DistributedType  # noqa: E402


def allow_fsdp_on_cpu() -> None:
    """Accelerate takes up its FSDP plugin on GPUs only, although torch's FSDP2 runs on CPU processes just as well."""
    original = AcceleratorState.__init__

    def with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = with_fsdp


def allow_deepspeed_on_cpu() -> None:
    """Without a GPU accelerate takes each process of DeepSpeed for a run of its own, although gloo serves as well."""
    original, made = PartialState._prepare_backend, DeepSpeedPlugin.__post_init__

    def with_gloo(self: Any, cpu: bool = False, *args: Any, **kwargs: Any) -> Any:
        return original(self, cpu, *args, **kwargs) if cpu else ("gloo", DistributedType.MULTI_CPU)

    def without_threshold(self: Any) -> None:
        made(self)
        if self.zero_stage == 3:  # weights as small as ours would all stay whole
            self.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    PartialState._prepare_backend = with_gloo
    DeepSpeedPlugin.__post_init__ = without_threshold


def run(recipe: str, folder: str) -> None:
    from srd.cli import open_run, write_report
    from srd.run.flow import advance
    from tests.runs import close

    opened = open_run(recipe, None, Path(folder))
    advance(opened)
    write_report(opened)
    close(opened)


def kill(place: str, call: str, number: str, recipe: str, folder: str) -> None:
    from srd.base import parallel
    from srd.curation import reflection
    from srd.training.cache import building as cache_building
    from srd.training.trainer import DistillTrainer

    places: dict[str, tuple[Any, str]] = {
        "reflection": (reflection, "_reflect_batch"),
        "cache": (cache_building, "write_shard"),
        "training": (DistillTrainer, "training_step"),
    }
    owner, name = places[place]
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(call) and parallel.process() == int(number):
            Path(f"{folder}.killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == int(call) and place == "reflection":  # busy with its own work, and waiting for nobody
            time.sleep(60)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)
    line("run", recipe, "--run-dir", folder)


def line(*words: str) -> None:
    from srd.cli import main

    sys.argv = ["srd", *words]
    main()


def check(folder: str) -> None:
    from srd.base import parallel
    from srd.base.errors import UserError

    number = parallel.process()

    def error_of(work: Callable[[], Any]) -> str:
        try:
            work()
        except UserError as error:
            return str(error)
        return ""

    def refuse() -> None:
        raise UserError(f"refused by {number}")

    found = {
        "gather": parallel.gather(number * 10),
        "on_main": parallel.on_main(lambda: f"said by {number}"),
        "on_main_error": error_of(lambda: parallel.on_main(refuse)),
        "together": parallel.together(lambda: number),
        "together_error": error_of(lambda: parallel.together(refuse if number == 1 else lambda: None)),
        "same": error_of(lambda: parallel.check_same({"recipe": {"seed": 1}})),
        "different": error_of(lambda: parallel.check_same({"recipe": {"seed": number, "name": "tiny"}})),
    }
    Path(folder, f"{number}.json").write_text(json.dumps(found), encoding="utf-8")


def as_process(number: int, port: int, said: Path, *arguments: str) -> None:
    """Be one of two processes, as torchrun would start it, in a fork of a process that has worked alone.

    What it says goes to a file.
    """
    from srd.base import parallel

    signal.alarm(240)  # one may wait for another that has failed
    sys.stderr = said.open("w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), 2)
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    main(*arguments)
    time.sleep(parallel.SETTLING)


def main(command: str, *arguments: str) -> None:
    from srd.base import parallel
    from srd.training.cache import building as cache_building

    cache_building.SHARD_BATCHES = 1  # so that every process has some
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and command != "line":
        allow_fsdp_on_cpu()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        allow_deepspeed_on_cpu()
    if command == "run":
        for recipe, folder in zip(arguments[::2], arguments[1::2], strict=True):
            run(recipe, folder)
    else:
        {"kill": kill, "check": check, "line": line}[command](*arguments)
    parallel.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
