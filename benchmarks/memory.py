"""Peak memory over the number of examples: importing, encoding and reflecting (the model's work left out), ranking.

    python -m benchmarks.memory --rows 10000 100000 1000000 -o memory.json
    python -m benchmarks.memory --rows 1000000 --work curate    # all of it in one process: half an hour
    python -m benchmarks.memory --rows 10000000 --work rank copies
    python -m benchmarks.memory --rows 1000000 --work clean     # import, rules and near copies, marks and cleaned rows

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = ("model", "list", "returns", "value", "of", "an", "item", "when", "a", "function", "reads", "every", "file")
WRITE_ROWS = 10_000

Work = Callable[[Path, int], None]


def texts(rows: int) -> Iterator[tuple[int, list[str]]]:
    """Synthetic texts of 70 words, in pieces, each with the number of its first row."""
    random = np.random.default_rng(0)
    for start in range(0, rows, WRITE_ROWS):
        lines = random.integers(0, len(WORDS), (min(WRITE_ROWS, rows - start), 70))
        yield start, [" ".join(WORDS[i] for i in line) for line in lines]


def write_file(folder: Path, rows: int) -> None:
    """What a user has: JSON lines of an instruction and an output."""
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for _, text in texts(rows):
            for line in text:
                row = {"instruction": line[: len(line) // 2], "input": "", "output": line[len(line) // 2 :]}
                file.write(json.dumps(row) + "\n")


def import_rows(folder: Path, rows: int) -> None:
    """Read the file, recognise the rows, give ids, split, write."""
    from srd.base.tables import write_table
    from srd.data.examples import split_examples
    from srd.data.settings import SourceConfig
    from srd.tasks.base import load_source

    examples = load_source(SourceConfig(path=str(folder / "rows.jsonl")))
    assert len(examples) == rows
    for name, split in split_examples(examples, validation=100, test=100, seed=0).items():
        write_table(split, folder / f"{name}.parquet")


def write_examples(folder: Path, rows: int) -> None:
    """Examples of the usual schema, about 35 words of prompt and 35 of reference."""
    from srd.data.examples import EXAMPLE_FEATURES

    schema = EXAMPLE_FEATURES.arrow_schema
    with pq.ParquetWriter(folder / "train.parquet", schema) as writer:
        for start, text in texts(rows):
            columns = {
                **{name: [""] * len(text) for name in schema.names},
                "id": [f"example-{start + i}" for i in range(len(text))],
                "instruction": [line[: len(line) // 2] for line in text],
                "references": [[line[len(line) // 2 :]] for line in text],
            }
            writer.write_table(pa.table(columns, schema=schema))


def reflect_rows(folder: Path, rows: int) -> None:
    """Read, encode, score and merge; answers are made up, since a model's own memory is another matter."""
    import datasets
    from tests.tiny import tiny_tokenizer

    from srd.base import tables
    from srd.curation.reflection import reflect
    from srd.data.encoding import Encoder
    from srd.data.templates.base import get_template
    from srd.models.engines.vllm import VllmEngine
    from srd.models.reading import Scored

    class Parrot(VllmEngine):
        """Answers with the beginning of the prompt."""

        def __init__(self) -> None:
            self.config = None

        def decode_batch(
            self, prompts: Sequence[Sequence[int]], names: Any, decoding: Any, stop: Any, references: Any, width: Any
        ) -> tuple[list[list[int]], list[Scored]]:
            return [list(prompt[:20]) for prompt in prompts], [Scored(len(prompt), 1.0) for prompt in prompts]

    datasets.disable_progress_bars()
    tables.LARGE_BYTES = 0  # also the small sizes go through the memory map, so that the curve is of one kind
    source = folder / "train.parquet"
    tables.map_large([source], folder / "mapped")
    examples = tables.open_mapped(source, folder / "mapped")
    tokenizer = tiny_tokenizer("llama")
    encoder = Encoder(tokenizer, get_template("plain", tokenizer))
    scores = reflect(Parrot(), tokenizer, examples, encoded=encoder.encode(examples), folder=folder / "batches")
    assert len(scores) == rows
    tables.write_table(scores, folder / "scores.parquet")


def lay_out_scores(folder: Path, rows: int) -> None:
    """Scores as reflection leaves them."""
    from srd.curation.reflection import SCHEMA

    random = np.random.default_rng(0)
    with pq.ParquetWriter(folder / "scores.parquet", SCHEMA) as writer:
        for start in range(0, rows, WRITE_ROWS):
            count = min(WRITE_ROWS, rows - start)
            numbers = {"rouge_l": random.random(count), "ce": random.gamma(2.0, 1.0, count)}
            ids = [f"example-{start + i}" for i in range(count)]
            writer.write_table(pa.table({"id": ids, "response": ["said"] * count, **numbers}, schema=SCHEMA))


def rank_rows(folder: Path, rows: int) -> None:
    """Read scores, rank them, lay out the stages, write both."""
    from srd.base.tables import write_table
    from srd.curation.curriculum import Curriculum
    from srd.curation.ranking import rank

    ranked = rank(pq.read_table(folder / "scores.parquet", columns=["id", "rouge_l", "ce"]))
    write_table(Curriculum().assign(ranked), folder / "ranked.parquet")


def prose(rows: int) -> Iterator[tuple[int, list[str], list[str]]]:
    """Prompts and responses of 35 words each, of 20,000 words as frequent as in a language; a row of ten is a copy."""
    random = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(20_000)], dtype=object)
    chances = 1 / np.arange(10.0, 20_010.0)
    steps = np.cumsum(chances / chances.sum())
    for start in range(0, rows, WRITE_ROWS):
        count = min(WRITE_ROWS, rows - start)
        drawn = words[np.minimum(np.searchsorted(steps, random.random((count, 70))), len(words) - 1)]
        drawn[9::10] = drawn[: count - count % 10 : 10]
        drawn[19::20, -1] = "other"  # of two copies one has a word of its own
        yield start, *([" ".join(line) for line in part] for part in (drawn[:, :35], drawn[:, 35:]))


def write_prose(folder: Path, rows: int) -> None:
    """JSON lines of these."""
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for _, prompts, responses in prose(rows):
            for prompt, response in zip(prompts, responses, strict=True):
                file.write(f'{{"instruction": "{prompt}", "output": "{response}"}}\n')


def lay_out_prose(folder: Path, rows: int) -> None:
    """Examples of these, as a run maps them."""
    from srd.data.examples import EXAMPLE_FEATURES

    schema = EXAMPLE_FEATURES.arrow_schema
    with pa.ipc.new_stream(str(folder / "train.arrow"), schema) as stream:
        for start, prompts, responses in prose(rows):
            columns = {
                **{name: [""] * len(prompts) for name in schema.names},
                "id": [f"example-{start + i}" for i in range(len(prompts))],
                "instruction": prompts,
                "references": [[response] for response in responses],
            }
            stream.write_table(pa.table(columns, schema=schema))


def find_copies(folder: Path, rows: int) -> None:
    """Near copies, beside a hundred rows that are held out."""
    import datasets

    from srd.curation.copies import near_copies

    examples = datasets.Dataset.from_file(str(folder / "train.arrow"))
    found = near_copies(examples, examples.select(range(100)))
    spare = int(found.spare(np.zeros(rows)).sum())
    assert 0.099 * rows < spare <= 0.1 * rows, spare


def clean_rows(folder: Path, rows: int) -> None:
    """All of ``srd clean`` that asks no model."""
    from tests.tiny import save_tiny

    from srd.base.console import set_up_logging
    from srd.recipe.reading import validate_recipe
    from srd.run.context import Run
    from srd.run.flow import advance

    recipe = {
        "name": "memory",
        "teacher": str(save_tiny(folder / "teacher", "llama", layers=2, seed=1)),
        "student": str(save_tiny(folder / "student", "llama", layers=1, seed=2)),
        "data": {"train": str(folder / "rows.jsonl"), "template": "plain", "validation_size": 100, "test_size": 100,
                 "cleaning": {"action": "drop", "find": ["empty", "looping", "near_copy"]}},
    }  # fmt: skip
    set_up_logging()
    advance(Run(validate_recipe(recipe, "memory"), folder / "run"), "cleaning")


def curate_rows(folder: Path, rows: int) -> None:
    """All of it in one process, as ``srd curate`` does it, with a model of one layer."""
    from tests.tiny import save_tiny

    from srd.base.console import set_up_logging
    from srd.recipe.reading import validate_recipe
    from srd.run.context import Run
    from srd.run.curate import curate

    recipe = {
        "name": "memory",
        "teacher": str(save_tiny(folder / "teacher", "llama", layers=2, seed=1)),
        "student": str(save_tiny(folder / "student", "llama", layers=1, seed=2)),
        "data": {"train": str(folder / "rows.jsonl"), "template": "plain", "validation_size": 100, "test_size": 100},
        "generation": {"max_new_tokens": 4, "batch_size": 64},
    }
    set_up_logging()
    assert curate(Run(validate_recipe(recipe, "memory"), folder / "run"), folder / "stages")


def memory(kind: str) -> float:
    """``Anon`` or nothing: this process's resident memory in GB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"Rss{kind}:" if kind else "VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise AssertionError("needs Linux")


def measured(work: Work, folder: Path, rows: int, answers: Any) -> None:
    """Run the work with a thread that looks at the memory ten times a second."""
    peak, done, started = {"anonymous": 0.0, "resident": 0.0}, threading.Event(), time.perf_counter()

    def watch() -> None:
        ended = False
        while not ended:
            ended = done.wait(0.1)  # and once more, so that work of less than that is seen
            peak["anonymous"] = max(peak["anonymous"], memory("Anon"))
            peak["resident"] = max(peak["resident"], memory(""))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work(folder, rows)
    finally:
        done.set()
        watcher.join()
    times = {"seconds": time.perf_counter() - started, "processor": time.process_time()}
    rounded = {name: round(value, 3) for name, value in peak.items()}
    answers.put({**rounded, **{name: round(value, 1) for name, value in times.items()}})


WORK = {
    "import": (write_file, import_rows),
    "reflect": (write_examples, reflect_rows),
    "rank": (lay_out_scores, rank_rows),
    "curate": (write_file, curate_rows),
    "copies": (lay_out_prose, find_copies),
    "clean": (write_prose, clean_rows),
}


def measure(name: str, rows: int) -> dict[str, float]:
    """Do one kind of work in a process of its own.

    Returns:
        Peak of ``anonymous`` and ``resident`` memory in GB, ``seconds``, and those of ``processor`` time.
    """
    prepare, work = WORK[name]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), rows)
        process = context.Process(target=measured, args=(work, Path(folder), rows, answers))
        process.start()
        process.join()
    if process.exitcode:
        raise SystemExit(f"{name} of {rows} rows failed")
    found: dict[str, float] = answers.get()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--work", nargs="+", choices=[*WORK], default=["import", "reflect", "rank"])
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
