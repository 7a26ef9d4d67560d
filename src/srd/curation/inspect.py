"""Which examples of a ranking a reader looks at."""

from __future__ import annotations

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from srd.curation.settings import SHOWN


def sample_evenly(rows: pa.Table, limit: int) -> pa.Table:
    """Take at most ``limit`` rows at even distances, the first and the last included, nothing random."""
    return rows.take(np.linspace(0, len(rows) - 1, limit).round().astype(int)) if len(rows) > limit else rows


def ranked_rows(table: pa.Table) -> pa.Table:
    """The rows of a ranking that were ranked, and not dropped before as wrong."""
    return table.filter(pc.is_finite(table["rouge_l"]))


def examples_to_show(ranked: pa.Table, count: int = SHOWN) -> dict[str, list[str]]:
    """Choose the training examples that the report prints, so that the student can answer just these.

    Args:
        ranked: Has ``id``, ``rank``, ``kept``, as the ranking writes it.
        count: How many of each group.

    Returns:
        Ids in the groups ``easiest`` and ``hardest`` (of those kept) and ``dropped`` (over all ranks).
    """
    ordered = ranked.select(["id", "rank", "kept"]).sort_by("rank")
    kept, dropped = ordered.filter(ordered["kept"]), ordered.filter(pc.invert(ordered["kept"]))
    groups = {
        "easiest": kept[:count],
        "hardest": kept[max(len(kept) - count, min(count, len(kept))) :],
        "dropped": sample_evenly(dropped, count),
    }
    return {name: group["id"].to_pylist() for name, group in groups.items()}
