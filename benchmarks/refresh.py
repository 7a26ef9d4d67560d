"""``python -m benchmarks.refresh``: what on-policy distillation costs beside off-policy, by step and written ahead.

One stage of so many passes over the same rows of the standard library's documentation, SmolLM2-135M to eight of its
layers, forward KL: off-policy from a cache, GKD with every row the student's, written once for the stage, and written
in every step. Each is a process of its own that runs the recipe's own step, loading included; for off-policy the
building of the cache counts, too. Time is that of the processor with one thread, which other work on the machine
hardly changes: threads that wait for each other would count as working. The student is not trained before and seldom
stops, so that its answers are as long as they may be: by default about as long as the references.

What is paid once for a text (the student writes it, the teacher reads it) is told apart from what every pass costs.
From both follows, by arithmetic, what longer schedules cost: the paper's baselines train 20 passes over all rows, and
SRD 8 over a quarter of them, a half and three quarters, where each stage writes its own texts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import ROOT, machine
from benchmarks.workload import READS, WRITES, timed_parts
from srd.base.files import atomic_write

RESULTS = ROOT / "runs" / "bench-refresh.json"
STAGE = "on-policy, written once for the stage"
WAYS: dict[str, dict[str, Any]] = {
    "off-policy": {"name": "kd"},
    STAGE: {"name": "gkd", "student_share": 1.0, "refresh": "stage"},
    "on-policy, written in every step": {"name": "gkd", "student_share": 1.0},
}

#: Passes over all rows; the shares of the rows that the teacher reads off-policy, and that the student writes.
SCHEDULES = {"baseline, 20 passes": (20, 1.0, 1.0), "SRD, 3 stages of 8 passes": (12, 0.75, 1.5)}

Result = dict[str, float]


def recipe(student: Path, way: str, rows: int, passes: int, tokens: int) -> dict[str, Any]:
    """The recipe of one way."""
    method = {**WAYS[way], **({} if way == "off-policy" else {"max_new_tokens": tokens})}
    return {
        "teacher": "smollm2", "student": str(student),
        "data": {"train": "pydocs", "train_limit": rows, "validation_limit": 4, "test_limit": 4},
        "training": {"method": method, "objective": "fkl", "curriculum": None, "epochs": passes, "batch_size": 16,
                     "evaluate_every": passes, "select_by": "last"},
    }  # fmt: skip


def run_training(settings: dict[str, Any], folder: Path) -> Result:
    """Run a recipe as far as its trained student; seconds of the processor from the cache on."""
    from srd.recipe.reading import validate_recipe
    from srd.run.context import Run
    from srd.run.flow import advance

    run = Run(validate_recipe(settings, "refresh"), folder)
    advance(run, "student", "teacher")
    before, clock = time.process_time(), time.perf_counter()
    with timed_parts(time.process_time) as parts:
        advance(run, f"train/{run.recipe.training.label}")
    processor = time.process_time() - before
    return {
        **{part: parts.get(part, 0.0) for part in (WRITES, READS)},
        "a pass": (processor - sum(parts.values())) / run.recipe.training.epochs,
        "processor": processor,
        "seconds": time.perf_counter() - clock,
        "memory_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }


def measure(rows: int, passes: int, tokens: int, ways: Sequence[str] = tuple(WAYS)) -> dict[str, Result]:
    """Some ways, each in a process of its own."""
    from benchmarks.workload import make_student

    found, environment = {}, {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_student(folder / "student")
        for number, way in enumerate(way for way in WAYS if way in ways):
            settings = recipe(folder / "student", way, rows, passes, tokens)
            command = [sys.executable, "-m", "benchmarks.refresh", "--case", json.dumps(settings),
                       "--folder", str(folder / str(number))]  # fmt: skip
            said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            found[way] = json.loads(said.splitlines()[-1])
    return found


def table(found: dict[str, Result]) -> str:
    """The results as a table in Markdown; off-policy is 1."""
    whole = found["off-policy"]
    names = (WRITES, READS, "a pass", "processor")
    lines = [f"| way | {' | '.join(names)} | ÷ off-policy | peak memory | ÷ off-policy |", f"|---|{'---:|' * 7}"]
    for way, result in found.items():
        time_ratio, memory_ratio = (result[name] / whole[name] for name in ("processor", "memory_peak"))
        seconds = " | ".join(f"{result[name]:.1f} s" for name in names)
        memory = f"{result['memory_peak'] / 2**20:,.0f} MiB"
        lines.append(f"| {way} | {seconds} | {time_ratio:.2f} | {memory} | {memory_ratio:.2f} |")
    lines += ["", "| by arithmetic | off-policy | by stage | ÷ off-policy |", "|---|---:|---:|---:|"]
    for schedule, (passes, known, written) in SCHEDULES.items():
        off = known * whole[READS] + passes * whole["a pass"]
        stage = found[STAGE]
        by_stage = written * (stage[WRITES] + stage[READS]) + passes * stage["a pass"]
        lines.append(f"| {schedule} | {off:.0f} s | {by_stage:.0f} s | {by_stage / off:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--passes", type=int, default=8, help="over the rows, in one stage; the paper has 8")
    parser.add_argument("--tokens", type=int, default=16, help="of the longest answer; references have 15 on average")
    parser.add_argument("--no-steps", action="store_true", help="leave out what is written in every step: the slowest")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_training(json.loads(arguments.case), arguments.folder)))
        return
    ways = list(WAYS)[:2] if arguments.no_steps else list(WAYS)
    found = measure(arguments.rows, arguments.passes, arguments.tokens, ways)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"rows": arguments.rows, "passes": arguments.passes, "tokens": arguments.tokens}
    with atomic_write(arguments.output) as partial:
        content = {"machine": machine(), **settings, "results": found}
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
