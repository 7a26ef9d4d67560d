"""What `srd plan` says of the paper's recipes, as it stands on their pages.

python -m benchmarks.families
"""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path

from rich.console import Console

from benchmarks.tables import write_document
from srd.base.text import duration, shown_bytes
from srd.recipe.reading import load_recipe
from srd.report.tables import Cell, Column, Table, to_markdown
from srd.run.plan.plan import Plan, make_plan, print_plan

DOCS = Path(__file__).parent.parent / "docs"
FAMILIES = ("gpt2", "openllama2", "qwen2.5-math", "qwen2.5-coder", "t5", "mt5")
FLOPS_PER_SECOND = 1.5e14


@cache
def plan_of(family: str, devices: int = 1) -> Plan:
    return make_plan(load_recipe(family), devices=devices, flops_per_second=FLOPS_PER_SECOND)


def plan_text(family: str) -> str:
    """The command, and what it prints less the name above and the notes below."""
    printed = io.StringIO()
    print_plan(plan_of(family), Console(file=printed, width=120))
    lines = [line.rstrip() for line in printed.getvalue().splitlines()[1:] if not line.startswith("note: ")]
    about = (f"`srd plan {family} --flops-per-second 1.5e14`, about what an A100 really does; computing time, without "
             "the benchmarks' own generation:")  # fmt: skip
    return "\n".join([about, "", "```text", *lines, "```", ""])


def row(family: str) -> list[Cell]:
    """A family's line of the table on all of them."""
    plan, phases = plan_of(family), {phase.name: phase for phase in plan_of(family).phases}
    srd, kd = phases["train/srd"], phases["train/kd"]
    return [
        family, f"{srd.student_passes:.3g} / {kd.student_passes:.3g}", f"{plan.flops:.2g}",
        duration(sum(map(plan.seconds, plan.phases))), shown_bytes(srd.memory), shown_bytes(plan.memory),
        shown_bytes(plan_of(family, 8).memory), shown_bytes(plan.cache_bytes + plan.beside_bytes),
        shown_bytes(plan.checkpoint_bytes), shown_bytes(plan.kept_bytes),
    ]  # fmt: skip


def table() -> str:
    titles = ("recipe", "passes SRD / KD", "FLOPs", "time, 1 device", "SRD training", "peak, 1 device",
              "peak, 8 devices", "disk: cache", "checkpoints", "kept")  # fmt: skip
    return to_markdown(Table([Column(title) for title in titles], list(map(row, FAMILIES)))).strip() + "\n"


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # the dimensions and sizes that the package knows, wherever it runs
    write_document(DOCS / "recipes.md", {"families": table()})
    for family in FAMILIES:
        write_document(DOCS / "recipes" / f"{family}.md", {"plan": plan_text(family)})


if __name__ == "__main__":
    main()
