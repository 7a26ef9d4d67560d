"""How the teacher taught: what of the student's text it could supervise, and how true its cache is."""

from __future__ import annotations

import functools

from srd.base.text import percent, shown_bytes
from srd.report.reading import RunFiles
from srd.report.tables import Cell, Column, Table

SHARE = functools.partial(percent, digits=1)
SMALL = "{:.1e}".format
ERRORS = ("mean_kl", "p99_kl", "mean_tv", "flips")  # of a cache; see srd.training.cache.tier_error


def alignment_table(run: RunFiles) -> Table | None:
    """What a teacher with another tokenizer supervised, a row for each training that it taught."""
    columns = [
        Column("Model"), Column("Positions supervised", show=SHARE), Column("Others by chunks", show=SHARE),
        Column("Teacher's mass on shared tokens", show=SHARE),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for variant in run.variants:
        told = run.summary(f"train/{variant}")
        if "supervised" in told:
            rows.append([run.name_of(variant), *(told.get(name) for name in ("supervised", "by_chunks", "mass"))])
    return Table(columns, rows).without_empty_columns() if rows else None


def cache_table(run: RunFiles) -> Table | None:
    """The size of the teacher cache, and how far what it keeps is from the teacher."""
    told = run.summary("cache")
    if "mean_kl" not in told:
        return None
    tier = str((run.recipe.get("cache") or {}).get("tier"))
    columns = [
        Column("Kept"), Column("Size", show=lambda size: shown_bytes(round(size))), Column("Mean KL", show=SMALL),
        Column("99th percentile", show=SMALL), Column("Total variation", show=SMALL),
        Column("First choices flipped", show=SHARE),
    ]  # fmt: skip
    return Table(columns, [[tier, told.get("bytes"), *(told.get(name) for name in ERRORS)]])
