"""``python -m benchmarks.tokens``: what it saves to take the divergence at some positions only (``training.tokens``).

Distillation from a warm cache, forward KL alone, at shares of 1, 0.5, 0.2 and 0.1 of the positions: by the student's
entropy, and at random, which costs nothing to choose. All in one process, the smallest share first, so that what the
allocator keeps of a larger one is not counted again. Time is that of the processor with one thread, which other work
on the machine hardly changes: threads that wait for each other would count as working. What it does to quality is
another command, with three seeds:

    srd sweep demo-tokens
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases
from benchmarks.run import ROOT
from benchmarks.workload import forget_peak, peak_memory
from srd.base.files import atomic_write

RESULTS = ROOT / "runs" / "bench-tokens.json"
SHARES = (0.1, 0.2, 0.5)
WAYS = ("random", "student_entropy")

Result = dict[str, Any]


def measure(batch_size: int, steps: int) -> dict[str, Result]:
    """Every share by every way, and all positions."""
    found: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        same: dict[str, Any] = {"folder": folder, "profile": "dolly", "batch_size": batch_size, "steps": steps}
        cases.student(folder)
        cases.build(**same)
        for share, by in [*((share, by) for share in SHARES for by in WAYS), (1.0, "all")]:
            forget_peak()
            found[f"{by}/{share:g}"] = {**cases.train_tokens(**same, share=share, by=by), "memory_peak": peak_memory()}
    return dict(reversed(found.items()))


def table(found: dict[str, Result]) -> str:
    """The results as a table in Markdown; all positions are 1."""
    whole = found["all/1"]
    lines = ["| positions | by | processor time of a step | peak memory |", "|---:|---|---:|---:|"]
    for name, result in found.items():
        by, share = name.split("/")
        seconds = f"{result['processor']:.2f} s ({result['processor'] / whole['processor']:.2f})"
        memory = f"{result['memory_peak'] / 2**20:,.0f} MiB ({result['memory_peak'] / whole['memory_peak']:.2f})"
        lines.append(f"| {float(share):.0%} | {by.replace('_', ' ')} | {seconds} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.batch_size, arguments.steps)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(arguments.output) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
