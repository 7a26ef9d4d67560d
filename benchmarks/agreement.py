"""How far two runs agree, such as those of one recipe by two generation engines.

python -m benchmarks.agreement runs/transformers runs/vllm
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def same(ours: list[Any], theirs: list[Any]) -> str:
    """How many of so many are equal."""
    return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)}"


def columns(folders: list[Path], name: str) -> list[dict[str, list[Any]]]:
    """A table of both runs, its rows in the order of their ids; nothing where the runs have no such table."""
    return [pq.read_table(folder / name).sort_by("id").to_pydict() for folder in folders if (folder / name).exists()]


def agreement(folders: list[Path]) -> dict[str, Any]:
    """Compare answers, cross-entropies, ranks, teacher text, and the answers and metrics of the evaluation."""
    found: dict[str, Any] = {}
    if len(tables := columns(folders, "reflection/scores.parquet")) == 2:
        ours, theirs = tables
        found["reflection answers the same"] = same(ours["response"], theirs["response"])
        found["largest difference in cross-entropy"] = max(
            abs(a - b) for a, b in zip(ours["ce"], theirs["ce"], strict=True)
        )
    if len(tables := columns(folders, "curriculum/ranked.parquet")) == 2:
        for name in ("rank", "stage"):
            found[f"{name}s the same"] = same(tables[0][name], tables[1][name])
    if len(tables := columns(folders, "seqkd/responses.parquet")) == 2:
        found["teacher texts the same"] = same(tables[0]["response"], tables[1]["response"])
    for path in sorted((folders[0] / "evaluation" / "predictions").glob("*.jsonl")):
        other = folders[1] / path.relative_to(folders[0])
        texts = [
            [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
            for file in (path, other)
        ]
        found[f"answers of {path.stem} the same"] = same(*texts)
    metrics = [json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8")) for folder in folders]
    for model, tasks in metrics[0].items():
        for task, values in tasks.items():
            for metric, value in values.items():
                pair = (value["mean"], metrics[1][model][task][metric]["mean"])
                found[f"{model} on {task}, {metric}"] = " and ".join(f"{number:.2f}" for number in pair)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2, help="their run directories")
    print(json.dumps(agreement(parser.parse_args().runs), indent=2))


if __name__ == "__main__":
    main()
