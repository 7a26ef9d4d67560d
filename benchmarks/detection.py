"""How many wrong rows the cleaning finds, and how many right ones it takes for wrong, without knowing the share.

python -m benchmarks.detection [FILE …] [--work FOLDER] [--detectors eos,match,wording,near_copy]

Takes 320 rows of pydocs, and of each FILE; a quarter of them is swapped, truncated and duplicated in equal parts. The
embedded SmolLM2-135M reads them in its chat template as it comes. The undamaged rows are marked, too. The tables go
into docs/evidence.md. What was read is kept in the folder, so that a killed measurement goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from benchmarks.evidence import DOCUMENT
from benchmarks.tables import write_document
from srd.base.console import progress_bar
from srd.curation.cleaning import Findings, Reader, find_wrong, read_for
from srd.curation.copies import near_copies
from srd.data.corruption import corrupt
from srd.data.encoding import Encoder
from srd.data.settings import SourceConfig
from srd.data.templates.base import get_template
from srd.models.loading import load_model, load_tokenizer
from srd.report.tables import Column, Table, to_markdown
from srd.tasks.base import load_source

ROWS, SHARE, KINDS = 320, 0.25, ("swapped", "truncated", "duplicated")


def rows_of(source: SourceConfig, seed: int) -> Dataset:
    """So many rows of a data set."""
    loaded = load_source(source)
    rows = next(iter(loaded.values())) if isinstance(loaded, DatasetDict) else loaded
    return rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:ROWS]))


def figures(name: str, rows: Dataset, found: Findings, clean: Findings) -> list[list[Any]]:
    """What was found of each kind of damage, and of the rows without any."""
    kinds = np.array(rows["corruption"])
    copied = np.isin(near_copies(rows).groups, near_copies(rows).groups[kinds == "duplicated"])
    listed = []
    for kind in KINDS:
        of_kind = kinds == kind
        caught = found.wrong[of_kind]
        if kind == "duplicated":  # of a pair either may go
            groups = near_copies(rows).groups
            caught = np.array([found.wrong[groups == group].any() for group in groups[of_kind]])
        by = ", ".join(f"{why} {(found.why[of_kind] == why).sum()}" for why in sorted({*found.why[of_kind]} - {""}))
        listed.append([name, kind, f"{100 * caught.mean():.0f} %", f"{caught.sum()} of {of_kind.sum()}: {by}"])
    right = (kinds == "") & ~copied
    listed.append([name, "none, in the damaged set", f"{100 * found.wrong[right].mean():.1f} %", _told(found, right)])
    everything = np.ones(len(clean.ids), bool)
    listed.append([name, "none, in the undamaged set", f"{100 * clean.wrong.mean():.1f} %", _told(clean, everything)])
    return listed


def _told(found: Findings, rows: Any) -> str:
    by = ", ".join(f"{why} {(found.why[rows] == why).sum()}" for why in sorted({*found.why[rows]} - {""}))
    return f"{found.wrong[rows].sum()} of {rows.sum()}{': ' if by else ''}{by}"


def detector_rows(name: str, found: Findings, clean: Findings) -> list[list[Any]]:
    """What each detector says of itself on the damaged and on the undamaged set."""
    return [
        [name, detector, each.auc, each.share, clean.calibrations[detector].auc, clean.calibrations[detector].share]
        for detector, each in found.calibrations.items()
    ]


def main() -> None:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="further data sets")
    parser.add_argument("--work", type=Path, default=Path("sweeps/detection"), help="keeps what was read")
    parser.add_argument("--detectors", default="eos,match,wording,near_copy")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = load_tokenizer("smollm2")
    model = load_model("smollm2", tokenizer=tokenizer)
    encoder = Encoder(tokenizer, get_template("chat", tokenizer))
    sources = {"pydocs": SourceConfig(dataset="pydocs"), **{f.stem: SourceConfig(path=str(f)) for f in given.files}}
    marks, detectors = [], []
    for name, source in sources.items():
        clean = rows_of(source, given.seed)
        damaged = corrupt(clean, SHARE, KINDS, given.seed)
        found = []
        for label, rows in (("damaged", damaged), ("clean", clean)):
            with progress_bar(f"{name}, {label}") as update:
                reader = Reader(model, encoder, 8, given.work / f"{name}-{label}-{given.seed}", update)
                names = given.detectors.split(",")
                found.append(find_wrong(rows, names, reads=read_for(rows, names, reader, given.seed)))
        marks += figures(name, damaged, *found)
        detectors += detector_rows(name, *found)
    titles = ("Rows", "Damage", "Marked", "Of which by")
    tables = {
        "detection": to_markdown(Table([Column(title) for title in titles], marks)),
        "detectors": to_markdown(Table(
            [Column(title, 2) for title in ("Rows", "Detector", "AUC", "Share", "AUC, undamaged", "Share, undamaged")],
            detectors,
        )),
    }  # fmt: skip
    for table in tables.values():
        print(table)
    write_document(DOCUMENT, tables)


if __name__ == "__main__":
    main()
