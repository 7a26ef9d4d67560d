"""What chosen scores need beyond the reflection: likelihoods of the references, the teacher's losses, likeness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srd.base import parallel
from srd.base.tables import column, data_set, write_table
from srd.curation.copies import near_copies
from srd.curation.likelihoods import likelihoods
from srd.curation.scores.base import NEEDS, PASSES
from srd.run.context import Run
from srd.run.identity import model_identity
from srd.run.outline import order
from srd.run.outline.order import needs_of
from srd.run.parts.loading import load_reader
from srd.run.parts.scores import teacher_losses
from srd.run.steps.base import Step, Summary
from srd.run.steps.student import reflecting_student


class Measures(order.Measures, Step):
    """``reflection/measures.parquet``, where a curriculum ranks by more than the reflection gives."""

    def inputs(self, run: Run) -> list[Any]:
        before = [model_identity(run.recipe.student)] if run.recipe.out_of_sample == "before" else []
        return [run.encoding, sorted(needs_of(run.recipe)), run.recipe.generation.batch_size, *before]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.measures]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.measured]

    def told(self, run: Run, summary: Summary) -> str:
        return ", ".join(f"mean {name.removeprefix('mean_')} {value:.4g}" for name, value in summary.items())

    def make(self, run: Run) -> Summary:
        needs = needs_of(run.recipe)
        columns = {name: values for name, values in self._read(run, needs).items() if name not in ("ce", "length")}
        if "teacher" in needs:
            columns[NEEDS["teacher"]] = teacher_losses(run, run.files.measured / "teacher")
        if "likeness" in needs:
            columns[NEEDS["likeness"]] = parallel.on_main(lambda: near_copies(run.split("train")).likeness)
        table = pa.table({"id": column(run.split("train"), "id"), **columns})
        parallel.on_main(lambda: write_table(data_set(table), run.files.measures))
        return {f"mean_{name}": round(float(np.mean(values)), 4) for name, values in columns.items()}

    def _read(self, run: Run, needs: set[str]) -> dict[str, Any]:
        needs = needs & PASSES.keys()
        if not needs:
            return {}
        own = parallel.on_main(lambda: _known(run))
        source, options = reflecting_student(run)  # scores join what it says here with what it says in reflecting
        model = load_reader(source, run, options) if own is None or needs != {"endings"} else None
        with run.progress("student reads") as update:
            return likelihoods(
                model, run.encoder, run.split("train"), needs, encoded=run.token_ids("train"), own=own,
                batch_size=run.recipe.generation.batch_size, folder=run.files.measured / "student", progress=update,
            )  # fmt: skip


def _known(run: Run) -> tuple[Any, Any] | None:
    """What the reflection has read of each response; None of one that an earlier version has made."""
    if not run.files.own_losses.exists():
        return None
    table = pq.read_table(run.files.own_losses)
    return table["ce"].to_numpy(), table["end_nll"].to_numpy()
