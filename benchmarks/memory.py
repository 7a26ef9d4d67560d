"""Peak memory over the number of examples: encoding and reflecting (the model's work left out), and ranking.

    python -m benchmarks.memory --rows 10000 100000 1000000 -o memory.json

Every size runs in a process of its own. ``anonymous`` is what the process cannot give back to the system; ``resident``
also counts pages of memory-mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = ("model", "list", "returns", "value", "of", "an", "item", "when", "a", "function", "reads", "every", "file")
WRITE_ROWS = 10_000


def write_examples(path: Path, rows: int) -> None:
    """Synthetic examples of the usual schema, about 40 words of prompt and 30 of reference, in pieces."""
    random, writer = np.random.default_rng(0), None
    for start in range(0, rows, WRITE_ROWS):
        count = min(WRITE_ROWS, rows - start)
        text = [" ".join(WORDS[i] for i in line) for line in random.integers(0, len(WORDS), (count, 70))]
        table = pa.table({
            "id": [f"example-{start + i}" for i in range(count)],
            "instruction": [line[: len(line) // 2] for line in text],
            "input": [""] * count, "messages": [""] * count, "prompt": [""] * count,
            "references": [[line[len(line) // 2 :]] for line in text],
            "corruption": [""] * count,
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def reflect_rows(folder: Path, rows: int) -> None:
    """Read, encode, score and merge; answers are made up, since a model's own memory is another matter."""
    import datasets
    from tests.tiny import tiny_tokenizer

    from srd import tables
    from srd.data.batching import EncodedExamples
    from srd.data.encoding import Encoder
    from srd.data.templates import get_template
    from srd.models.vllm_engine import VllmEngine
    from srd.reflection import reflect

    class Parrot(VllmEngine):
        """Answers with the beginning of the prompt."""

        def __init__(self) -> None:
            self.config = None

        def decode_batch(
            self, prompts: Sequence[Sequence[int]], names: Any, decoding: Any, stop: Any, references: Any, width: Any
        ) -> tuple[list[list[int]], list[float]]:
            return [list(prompt[:20]) for prompt in prompts], [float(len(prompt)) for prompt in prompts]

    datasets.disable_progress_bars()
    tables.LARGE_BYTES = 0  # also the small sizes go through the memory map, so that the curve is of one kind
    source = folder / "train.parquet"
    tables.map_large([source], folder / "mapped")
    examples = tables.open_mapped(source, folder / "mapped")
    tokenizer = tiny_tokenizer("llama")
    encoder = Encoder(tokenizer, get_template("plain", tokenizer))
    encoded = encoder.encode(examples)
    assert len(EncodedExamples(encoded)) == rows
    scores = reflect(Parrot(), tokenizer, examples, encoded=encoded, folder=folder / "batches")
    tables.write_table(scores, folder / "scores.parquet")


def rank_rows(folder: Path, rows: int) -> None:
    """Read scores, rank them, lay out the stages, write both."""
    from srd.curriculum import Curriculum
    from srd.ranking import rank
    from srd.tables import read_table, write_table

    random = np.random.default_rng(0)
    ids = pa.array(f"example-{i}" for i in range(rows))
    scores = pa.table({"id": ids, "rouge_l": random.random(rows), "ce": random.gamma(2.0, 1.0, rows)})
    pq.write_table(scores, folder / "scores.parquet")
    del scores, ids
    ranked = rank(read_table(folder / "scores.parquet"))
    write_table(Curriculum().assign(ranked), folder / "ranked.parquet")


def memory(kind: str) -> float:
    """``Anon`` or nothing: this process's resident memory in GB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"Rss{kind}:" if kind else "VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise AssertionError("needs Linux")


def measured(work: Callable[[Path, int], None], rows: int, answers: Any) -> None:
    """Run the work with a thread that looks at the memory ten times a second."""
    with tempfile.TemporaryDirectory() as name:
        if work is reflect_rows:
            write_examples(Path(name) / "train.parquet", rows)
        peak, done, started = {"anonymous": 0.0, "resident": 0.0}, threading.Event(), time.perf_counter()

        def watch() -> None:
            while not done.wait(0.1):
                peak["anonymous"] = max(peak["anonymous"], memory("Anon"))
                peak["resident"] = max(peak["resident"], memory(""))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            work(Path(name), rows)
        finally:
            done.set()
            watcher.join()
    answers.put({**{name: round(value, 3) for name, value in peak.items()},
                 "seconds": round(time.perf_counter() - started, 1)})  # fmt: skip


WORK = {"reflect": reflect_rows, "rank": rank_rows}


def measure(name: str, rows: int) -> dict[str, float]:
    """Do one kind of work in a process of its own.

    Returns:
        Peak of ``anonymous`` and ``resident`` memory in GB, and ``seconds``.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=measured, args=(WORK[name], rows, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} of {rows} rows failed")
    found: dict[str, float] = answers.get()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--work", nargs="+", choices=[*WORK], default=[*WORK])
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    results = []
    for name in chosen.work:
        for rows in chosen.rows:
            results.append({"work": name, "rows": rows, **measure(name, rows)})
            print(json.dumps(results[-1]), flush=True)
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
