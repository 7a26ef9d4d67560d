"""``python -m benchmarks.run``: measure every system in a process of its own and write the tables of docs/speed.md.

Steps are measured one by one and multiplied by the exact number of steps of an epoch or a schedule: a whole schedule
of the conventional way would take days on a laptop.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import memory, tables
from srd.base.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "speed.md"
PLOTS = ROOT / "docs" / "plots"
RESULTS = ROOT / "runs" / "bench.json"

Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is measured. Conventional steps all cost the same (every sequence is padded to 512), so two suffice."""

    conventional_steps: int = 2
    steps: int = 6
    repeats: int = 2
    settings: tuple[tuple[str, int], ...] = (("dolly", 4), ("dolly", 16), ("pydocs", 4))
    on_policy_steps: int = 3
    on_policy_tokens: int = 64
    reflected: int = 64
    reflected_tokens: int = 128
    reflected_batches: tuple[int, ...] = (16, 32)
    rouge_pairs: int = 10_000
    ranked: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    trained: tuple[int, ...] = (250, 500, 1_000, 2_000, 4_000)
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512, 1_024)
    vocabularies: tuple[int, ...] = (1_024, 4_096, 16_384, 65_536, 262_144)
    batches: tuple[int, ...] = (1, 2, 8, 32)
    remembered: tuple[int, ...] = (10_000, 100_000, 1_000_000)


QUICK = Size(
    conventional_steps=1,
    steps=2,
    repeats=1,
    settings=(("dolly", 4),),
    on_policy_steps=1,
    on_policy_tokens=16,
    reflected=8,
    reflected_tokens=32,
    reflected_batches=(4,),
    rouge_pairs=500,
    ranked=(1_000, 10_000),
    trained=(250,),
    lengths=(32,),
    vocabularies=(1_024, 4_096),
    batches=(),
    remembered=(1_000,),
)


def run_case(name: str, **arguments: Any) -> Result:
    """Run one case in its own process.

    Returns:
        What it measured, or ``{"failed": why}`` where the system killed it (out of memory).

    Raises:
        RuntimeError: the case failed for a reason of its own; its last words follow.
    """
    print(f"{name} {json.dumps({k: v for k, v in arguments.items() if k != 'folder'})} … ", end="", flush=True)
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.cases", name, json.dumps(arguments)]
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    print(f"{time.perf_counter() - started:.0f} s", flush=True)
    if done.returncode < 0:
        return {"failed": f"ended by signal {-done.returncode}, as a system does that is out of memory"}
    if done.returncode:
        raise RuntimeError(f"the case {name} failed:\n{done.stderr[-2000:]}")
    result: Result = json.loads(done.stdout)
    return result


def fastest(name: str, repeats: int, **arguments: Any) -> Result:
    """The fastest of several processes: other programs only ever make a measurement slower."""
    return min((run_case(name, **arguments) for _ in range(repeats)), key=lambda result: result["seconds"])


def measure_training(folder: str, size: Size) -> Iterator[tuple[str, Result]]:
    """Every system on every profile and batch size."""
    for profile, batch_size in size.settings:
        where: dict[str, Any] = {"folder": folder, "profile": profile, "batch_size": batch_size}
        key = f"{profile}/{batch_size}"
        same = {**where, "steps": size.steps}
        yield f"{key}/build", run_case("build", **same)
        yield f"{key}/sft", fastest("train_sft", size.repeats, **same)
        yield f"{key}/ours", fastest("train_ours", size.repeats, **same)
        yield f"{key}/trl_gkd", run_case("train_trl_gkd", **same)
        yield f"{key}/conventional", run_case("train_conventional", **where, steps=size.conventional_steps)
        if profile == "dolly":
            half = {**same, "dtype": "bfloat16"}
            yield f"{key}/build_half", run_case("build", **half)
            yield f"{key}/ours_half", fastest("train_ours", size.repeats, **half)
    first = {"folder": folder, "profile": "dolly", "batch_size": 4, "steps": size.steps}
    yield "profile", run_case("profile_step", **first)
    first.update(steps=size.on_policy_steps, new_tokens=size.on_policy_tokens)
    yield "on_policy/trl", run_case("train_trl_distillation", **first)
    yield "on_policy/ours", run_case("train_ours_on_policy", **first)


def measure_texts(folder: str, size: Size) -> Iterator[tuple[str, Result]]:
    """Reflection and ROUGE-L."""
    for batch_size in size.reflected_batches:
        arguments: dict[str, Any] = {
            "folder": folder, "examples": size.reflected, "batch_size": batch_size, "new_tokens": size.reflected_tokens,
        }  # fmt: skip
        ours, theirs = run_case("reflect_ours", **arguments), run_case("reflect_conventional", **arguments)
        agreed = [a == b for a, b in zip(ours.pop("answers"), theirs.pop("answers"), strict=True)]
        apart = max(abs(a - b) for a, b in zip(ours.pop("losses"), theirs.pop("losses"), strict=True))
        found = {"ours": ours, "conventional": theirs, "agreed": sum(agreed) / len(agreed), "ce_apart": apart}
        yield f"reflection/{batch_size}", found
    yield "rouge", run_case("rouge", pairs=size.rouge_pairs)


def measure_scaling(folder: str, size: Size) -> Iterator[tuple[str, Result]]:
    """How cost grows with rows, examples, response length, vocabulary and batch."""
    for rows in size.ranked:
        yield f"ranking/{rows}", run_case("ranking", rows=rows)
    for examples in size.trained:
        yield f"examples/{examples}", run_case("data_path", examples=examples, batch_size=16)
    for length in size.lengths:
        where = {"folder": folder, "profile": f"fixed:{length}", "batch_size": 4, "steps": 2}
        yield f"length/{length}/build", run_case("build", **where)
        yield f"length/{length}/ours", run_case("train_ours", **where)
        yield f"length/{length}/sft", run_case("train_sft", **where)
    for vocabulary in size.vocabularies:
        yield f"vocabulary/{vocabulary}", run_case("loss_path", vocabulary=vocabulary, tokens=256, repeats=3)
    for batch_size in size.batches:
        where = {"folder": folder, "profile": "dolly", "batch_size": batch_size, "steps": 3}
        yield f"batch/{batch_size}/build", run_case("build", **where)
        yield f"batch/{batch_size}/ours", run_case("train_ours", **where)
        yield f"batch/{batch_size}/sft", run_case("train_sft", **where)


def measure_memory(folder: str, size: Size) -> Iterator[tuple[str, Result]]:
    """Peak memory over rows: importing, encoding and reflecting with the model's work left out, and ranking."""
    for work in tables.MEMORY_LABELS:
        for rows in size.remembered:
            print(f"{work} {rows} rows", flush=True)
            yield f"memory_{work}/{rows}", memory.measure(work, rows)


GROUPS = {
    "training": measure_training,
    "texts": measure_texts,
    "scaling": measure_scaling,
    "memory": measure_memory,
}


def machine() -> str:
    """The machine in a line: processor, cores, memory, and the library that does the work."""
    import platform
    from importlib.metadata import version
    from importlib.util import find_spec

    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = [package for package in ("torch", "transformers", "trl") if find_spec(package)]
    libraries = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{name}, {cores} cores, {math.ceil(installed)} GiB, Python {platform.python_version()}, {libraries}"


def save(results: Result, path: Path) -> None:
    """Keep everything measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(results, indent=1), encoding="utf-8")


def main() -> None:
    """Measure, print the tables, and put them into the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes: does everything work? Writes no document")
    parser.add_argument("--only", choices=[*GROUPS], nargs="+", default=[*GROUPS], help="measure these groups")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the raw figures are kept")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the document from --results")
    options = parser.parse_args()
    if options.render:
        results = json.loads(options.results.read_text(encoding="utf-8"))
    else:
        size = QUICK if options.quick else Size()
        partial = set(options.only) != set(GROUPS)
        kept = json.loads(options.results.read_text(encoding="utf-8")) if partial and options.results.exists() else {}
        results = {**kept, "machine": machine(), "date": time.strftime("%Y-%m-%d"), "quick": options.quick}
        with tempfile.TemporaryDirectory() as folder:
            run_case("student", folder=folder)
            for group in options.only:
                for key, result in GROUPS[group](folder, size):
                    results[key] = result
                    save(results, options.results)
    written = tables.all_tables(results)
    for name, text in written.items():
        print(f"\n## {name}\n\n{text}")
    if not results["quick"]:
        tables.write_document(DOCUMENT, written)
        tables.write_plots(PLOTS, results)


if __name__ == "__main__":
    main()
