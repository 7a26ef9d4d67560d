"""Put what the demo printed into README.md and docs/evidence.md, and a picture of its report into docs/pictures.

make demo && python -m benchmarks.demo runs/demo

The picture is taken by chromium, where it is installed.
"""

from __future__ import annotations

import argparse
import io
import math
import shutil
import subprocess
from pathlib import Path

from rich.console import Console

from benchmarks.run import ROOT
from benchmarks.tables import write_document
from srd.base.text import duration
from srd.report.cleaning import damage_table, found_sentences
from srd.report.comparison import comparison_table, headline, interval_table, models_of
from srd.report.figures import step_seconds
from srd.report.reading import RunFiles, read_parquet, read_run
from srd.report.summary import brief, grid
from srd.report.tables import Column, Table, to_markdown
from srd.report.words import step_name

WIDTH, HEIGHT, SCALE = 900, 1184, 0.9  # of the picture


def printed(run: RunFiles) -> str:
    """What stands at the end of the command: the table, what was gained and what was found."""
    models, screen = models_of(run), Console(width=120, file=io.StringIO())
    screen.print(grid(brief(comparison_table(models))))
    screen.print()
    screen.print(" ".join([*headline(run, models)[:1], *found_sentences(run)]), highlight=False)
    assert isinstance(screen.file, io.StringIO)
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    took = duration(math.fsum(step_seconds(run).values()))
    return "\n".join([f"It ended with this, after {took}:", "", "```text", *lines, "```"])


def tables_of(run: RunFiles) -> dict[str, str]:
    """All that the page of evidence says of it, by mark."""
    found = damage_table(read_parquet(run.files.marked), run.corruption())
    intervals, timed = interval_table(run), step_seconds(run)
    rows = [[step_name(step), seconds] for step, seconds in timed.items() if seconds >= 1]
    times = Table([Column("Step"), Column("Time", show=duration)], [*rows, ["All", math.fsum(timed.values())]])
    shown = {"demo": comparison_table(models_of(run)), "demo-intervals": intervals, "demo-found": found}
    return {name: to_markdown(table) for name, table in {**shown, "demo-times": times}.items() if table is not None}


def take_picture(report: Path, picture: Path) -> None:
    """The first screen of a report."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no chromium: the picture stays as it is")
        return
    size = [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}"]
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", *size]
    command = [browser, *options, f"--screenshot={picture}", report.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Write what the run has found between the marks of the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"), help="its run directory")
    run = read_run(parser.parse_args().run)
    write_document(ROOT / "README.md", {"demo": printed(run)})
    write_document(ROOT / "docs" / "evidence.md", tables_of(run))
    take_picture(run.files.report, ROOT / "docs" / "pictures" / "report.png")
    print(printed(run))


if __name__ == "__main__":
    main()
