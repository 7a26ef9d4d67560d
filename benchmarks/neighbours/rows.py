"""The tokens of a recipe, which a neighbour is to make of the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

LENGTH = 160  # data.max_length of the recipe that is prepared


def stages_of(work: Path) -> list[str]:
    """``stage_0``, …"""
    return sorted(path.stem for path in (work / "trl").glob("stage_*.jsonl"))


def compare(work: Path, stage: str, theirs: Iterable[tuple[list[int], list[int]]]) -> str:
    """How many rows have the recipe's tokens and labels, each at its place in the file."""
    rows = [json.loads(line) for line in (work / "trl" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()]
    same = 0
    for row, (ids, labels) in zip(rows, theirs, strict=True):
        learnt = zip(row["input_ids"], row["completion_mask"], strict=True)
        same += ids == row["input_ids"] and labels == [token if own else -100 for token, own in learnt]
    return f"{same} of {len(rows)}"
