"""Put the tables and plots of sweeps into docs/evidence.md.

python -m benchmarks.evidence sweeps/demo-methods sweeps/demo-ablations sweeps/evidence

Of a sweep with an oracle also what its variants win back (`benchmarks.won_back`). A sweep that is not done, or whose
folder came from another machine without its tables, is read from its cells: the tables are made again first.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from benchmarks.plots import Interval, interval_plot, write_plot
from benchmarks.run import PLOTS, ROOT
from benchmarks.tables import write_document
from benchmarks.won_back import ORACLE, tables_of
from srd.base.yaml_text import read_yaml
from srd.sweep.runner import Sweep
from srd.sweep.settings import find_sweep, load_sweep

DOCUMENT = ROOT / "docs" / "evidence.md"


def differences(folder: Path) -> list[Interval]:
    """Each row's difference from its reference with its interval, in the order of the table, where it has one."""
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Low"]]
    return [Interval(row["Run"], float(row["Difference"]), float(row["Low"]), float(row["High"])) for row in rows]


def main() -> None:
    """Write what the sweeps have found between the marks of the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+", help="their folders, named as the sweeps are")
    for folder in parser.parse_args().sweeps:
        path = find_sweep(str(read_yaml(folder / "sweep.yaml")["name"]))
        if not (folder / "results.md").exists():
            Sweep(path, folder).write_report()
        config = load_sweep(path)
        tables = {folder.name: (folder / "results.md").read_text(encoding="utf-8")}
        if ORACLE in config.cells:
            tables = tables_of(folder, path)
        for table in tables.values():
            print(table)
        write_document(DOCUMENT, tables)
        plot = PLOTS / f"{folder.name}.svg"
        if f"plots/{plot.name}" in DOCUMENT.read_text(encoding="utf-8"):
            title = f"{folder.name}: difference in ROUGE-L from the reference, 95 % interval"
            write_plot(plot, interval_plot(differences(folder), title=title))


if __name__ == "__main__":
    main()
