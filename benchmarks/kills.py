"""Kill the command again and again, and see that it always ends in the same bytes.

``python -m benchmarks.kills --rows 100000``: SIGKILL once in every step, a second or so after it has begun.
``python -m benchmarks.kills --rows 40 --random 50``: SIGKILL at fifty random moments.

Each attempt is a process of its own with the same command. At the end the run directory is compared with one that was
never killed: student, stages, scores, ranks, answers, results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from srd.base.console import set_up_logging
from srd.base.files import file_digest, read_json, write_json

ROOT = Path(__file__).parents[1]
COMPARED = ("student", "stages", "baselines", "examples", "reflection", "curriculum", "evaluation")
TIMED = ("metrics.json", "details.json")  # of a stage; versions and isolation of an evaluation


def prepare(folder: Path, rows: int) -> Path:
    """Tiny models, rows and a recipe that goes through every step."""
    from tests.tiny import save_tiny

    words = ("whale", "dolphin", "octopus", "apple", "function", "list", "sky", "box", "item", "sea")
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for number in range(rows):
            word, other = words[number % 10], words[number // 10 % 10]
            row = {"instruction": f"What is {word} {number}?", "output": f"The {word} is in the {other}."}
            file.write(json.dumps(row) + "\n")
    few = rows < 1000
    recipe = {
        "name": "kills",
        "teacher": {"model": str(save_tiny(folder / "teacher", "llama", layers=4, seed=1)), "sft": {"epochs": 1}},
        "student": {"drop_layers": 2, "warm_start": {"epochs": 1, "method": "kd"}},
        "data": {"train": str(folder / "rows.jsonl"), "template": "plain", "max_length": 64, "max_prompt_length": 32,
                 "validation_size": 8, "test_size": 8},
        "generation": {"max_new_tokens": 4, "batch_size": 8 if few else 512},
        "training": {"epochs": 1, "batch_size": 8 if few else 512, "evaluate_every": 0.5, "learning_rate": 1e-3},
        "baselines": {"seqkd": {"curriculum": None, "method": {"name": "seqkd", "max_new_tokens": 4}}},
        "evaluation": {"seeds": [1]},
    }  # fmt: skip
    path = folder / "kills.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def start(recipe: Path, run_dir: Path, stderr: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "srd", "run", str(recipe), "--run-dir", str(run_dir)]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=stderr)


def finish(recipe: Path, run_dir: Path) -> float:
    """Let the command end by itself; seconds."""
    begun = time.perf_counter()
    process = start(recipe, run_dir)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return time.perf_counter() - begun


def unfinished(run_dir: Path) -> str | None:
    """The step that is being made."""
    steps = (read_json(run_dir / "manifest.json") or {}).get("steps", {})
    return next((name for name, step in steps.items() if "finished" not in step), None)


def kill_in_every_step(recipe: Path, run_dir: Path, wait: float) -> list[str]:
    """Kill the command once in each step; their names."""
    killed: list[str] = []
    while True:
        process = start(recipe, run_dir)
        while process.poll() is None:
            step = unfinished(run_dir) if run_dir.exists() else None
            if step is not None and step not in killed:
                time.sleep(wait)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    killed.append(step)
                break
            time.sleep(0.005)
        _, said = process.communicate()
        if process.returncode == 0:
            return killed
        assert process.returncode == -signal.SIGKILL, said


def kill_at_random(recipe: Path, whole: Path, run_dir: Path, times: int, longest: float, seed: int) -> bool:
    """Kill the command at random moments; a run that has come to its end is compared, and the next begins.

    Returns:
        Whether every run had the bytes of the one that was never killed.
    """
    draw, hit, same = random.Random(seed), 0, True
    while hit < times:
        process = start(recipe, run_dir)
        try:
            _, said = process.communicate(timeout=draw.uniform(0.2, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            hit += process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 0, said
            same &= digests(whole) == digests(run_dir)
            shutil.rmtree(run_dir)
    finish(recipe, run_dir)
    return same and digests(whole) == digests(run_dir)


def digests(run_dir: Path) -> dict[str, str]:
    """Digests of what must be the same."""
    files = [file for name in COMPARED for file in sorted((run_dir / name).rglob("*")) if file.is_file()]
    kept = [file for file in files if file.name not in TIMED and not file.name.endswith(".scores.json")]
    found = {str(file.relative_to(run_dir)): file_digest(file) for file in kept}
    return {**found, "evaluation/metrics.json": file_digest(run_dir / "evaluation" / "metrics.json")}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the kills that were asked for and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--random", type=int, default=0, help="so many random moments; else once in every step")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds after a step has begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    set_up_logging()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = prepare(folder, options.rows)
        seconds = finish(recipe, folder / "whole")
        whole, run_dir = folder / "whole", folder / "killed"
        if options.random:
            killed: Any = options.random
            same = kill_at_random(recipe, whole, run_dir, options.random, seconds, options.seed)
        else:
            killed = kill_in_every_step(recipe, run_dir, options.wait)
            same = digests(whole) == digests(run_dir)
        result = {"rows": options.rows, "seconds": round(seconds, 1), "killed": killed, "same": same}
    print(json.dumps(result))
    if options.output:
        write_json(options.output, result)
    return result


if __name__ == "__main__":
    sys.exit(0 if main()["same"] else 1)
