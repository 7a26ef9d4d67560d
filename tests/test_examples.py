"""The programs of examples/ run, on tiny models."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.runs import tiny_rows, write_rows
from tests.tiny import save_tiny

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Teacher, student and rows; the working directory is the test's own."""
    monkeypatch.chdir(tmp_path)
    teacher, student = save_tiny("teacher", "llama", seed=1), save_tiny("student", "llama", layers=1, seed=2)
    return [str(teacher), str(student), str(write_rows(tmp_path / "rows.jsonl", tiny_rows()))]


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program, made to write short answers."""
    text = (EXAMPLES / name).read_text(encoding="utf-8").replace('"max_new_tokens": 64', '"max_new_tokens": 4')
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", [name, *arguments])
    runpy.run_path(str(path), run_name="__main__")


def test_own_loop(inputs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_loop.py", [*inputs, "out"], monkeypatch)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    assert [line.split(", loss")[0] for line in told] == [
        "stage 0: 15 rows, temperature 1.0", "stage 1: 30 rows, temperature 2.0"]  # fmt: skip
    assert Path("out/model.safetensors").is_file()


@pytest.mark.slow
def test_own_objective(inputs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_objective.py", inputs, monkeypatch)
    assert "'srkl'" in capsys.readouterr().out


@pytest.mark.slow
def test_distill_and_look_at_it(
    inputs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("distill.py", inputs, monkeypatch)
    assert "report: " in capsys.readouterr().out
    notebook = json.loads((EXAMPLES / "look_at_a_run.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), f"look_at_a_run.ipynb, {cell['id']}", "exec"), names)
    assert len(names["answers"]) == 3 and len(names["ranked"])  # type: ignore[arg-type]


STAND_INS = {
    "srun": 'echo "srun $*" >> said; touch began; trap "echo ended >> said; exit 143" TERM; '
    "for i in $(seq $TENTHS); do sleep 0.1; done; exit $STATUS",
    "scontrol": 'if [ "$1" = show ]; then printf "one\\ntwo\\n"; else echo "scontrol $*" >> said; fi',
}


@pytest.mark.parametrize(
    ("tenths", "ends", "status", "requeued", "gpus"),
    [(0, 0, 0, False, "0"), (0, 2, 2, False, None), (300, 0, 0, True, "8")],
)
def test_a_slurm_job(tenths: int, ends: int, status: int, requeued: bool, gpus: str | None, tmp_path: Path) -> None:
    """It starts torchrun on all machines, ends as that does, and queues itself again when its time is nearly over."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "1042", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "one,two"}
    job |= {} if gpus is None else {"SLURM_GPUS_ON_NODE": gpus}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TENTHS": str(tenths), "STATUS": str(ends)}
    command = ["bash", str(EXAMPLES / "cluster" / "srd.sbatch"), "mine.yaml", "runs/mine"]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **job, **path}) as process:
        while requeued and not (tmp_path / "began").exists():
            time.sleep(0.05)
        if requeued:
            time.sleep(0.2)
            process.send_signal(signal.SIGUSR1)
        assert process.wait(20) == status
    said = (tmp_path / "said").read_text(encoding="utf-8").splitlines()
    assert said[0].endswith(
        f"--nnodes 2 --nproc-per-node {8 if gpus == '8' else 1} --rdzv-backend c10d --rdzv-endpoint one:29542 "
        "--rdzv-id 1042 -m srd run mine.yaml --run-dir runs/mine"
    )
    assert said[1:] == (["ended", "scontrol requeue 1042"] if requeued else [])


@pytest.mark.parametrize("gpus", [4, 0])
def test_a_skypilot_job(gpus: int, tmp_path: Path) -> None:
    """Its command, on the second of two machines."""
    job = yaml.safe_load((EXAMPLES / "cluster" / "srd.sky.yaml").read_text(encoding="utf-8"))
    (tmp_path / "torchrun").write_text('#!/bin/bash\necho "$*"\n', encoding="utf-8")
    (tmp_path / "torchrun").chmod(0o755)
    sky = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": str(gpus), "SKYPILOT_NODE_RANK": "1",
           "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}  # fmt: skip
    environment = {**os.environ, **sky, **job["envs"], "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = subprocess.run(["bash", "-ec", job["run"]], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == (
        f"--nnodes 2 --nproc-per-node {gpus or 1} --node-rank 1 --master-addr 10.0.0.1 --master-port 29500 "
        "-m srd run mine.yaml --run-dir /runs/mine"
    )
    assert job["resources"]["use_spot"] and "/runs" in job["file_mounts"]
