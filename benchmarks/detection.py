"""How many wrong rows the cleaning finds, and how many right ones it takes for wrong, without knowing the share.

python -m benchmarks.detection [FILE …] [--seeds 0 1 2] [--work FOLDER] [--detectors eos,match,wording,near_copy]
python -m benchmarks.detection --readings sweeps/evidence

Takes 320 rows of pydocs, and of each FILE; a quarter of them is swapped, truncated and duplicated in equal parts. The
embedded SmolLM2-135M reads them in its chat template as it comes. The undamaged rows are marked, too. Each seed draws
other rows and other damage. The tables go into docs/evidence.md. What was read is kept in the folder, so that a killed
measurement goes on where it was, and that of another machine is told here.

The second form asks no model: it marks the rows of a sweep's cells anew, from what was read there, and says what a
score could do at most: how many wrong rows lie where just so many clean ones are marked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from benchmarks.evidence import DOCUMENT
from benchmarks.tables import write_document
from srd.base.console import progress_bar
from srd.curation.cleaning import Findings, Reader, Reads, bad_end, find_wrong, read_for
from srd.curation.copies import near_copies
from srd.data.corruption import corrupt
from srd.data.encoding import Encoder
from srd.data.settings import CleaningConfig, SourceConfig
from srd.data.templates.base import get_template
from srd.models.loading.loading import load_model, load_tokenizer
from srd.report.tables import Column, Table, to_markdown
from srd.tasks.base import load_source

ROWS, SHARE, KINDS = 320, 0.25, ("swapped", "truncated", "duplicated")


def rows_of(source: SourceConfig, seed: int) -> Dataset:
    """So many rows of a data set."""
    loaded = load_source(source)
    rows = next(iter(loaded.values())) if isinstance(loaded, DatasetDict) else loaded
    return rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:ROWS]))


@dataclass(frozen=True)
class Draw:
    """Some rows of a data set: with damage and what is found among them, and what is found without."""

    rows: Dataset
    found: Findings
    clean: Findings


def figures(name: str, draws: list[Draw]) -> list[list[Any]]:
    """What was found of each kind of damage, and of the rows without any, over all draws."""
    caught: dict[str, list[NDArray[np.bool_]]] = {}
    reasons: dict[str, Counter[str]] = {}

    def add(kind: str, marks: NDArray[np.bool_], why: NDArray[np.object_]) -> None:
        caught.setdefault(kind, []).append(marks)
        reasons.setdefault(kind, Counter()).update(why[why != ""].tolist())

    for draw in draws:
        kinds, groups = np.array(draw.rows["corruption"]), near_copies(draw.rows).groups
        for kind in KINDS:
            of_kind = kinds == kind
            add(kind, _caught(draw.found, _groups(draw.rows, kind), of_kind), draw.found.why[of_kind])
        right = (kinds == "") & ~np.isin(groups, groups[kinds == "duplicated"])
        add("none, in the damaged set", draw.found.wrong[right], draw.found.why[right])
        add("none, in the undamaged set", draw.clean.wrong, draw.clean.why)
    listed = []
    for kind, parts in caught.items():
        marks, by = np.concatenate(parts), ", ".join(f"{why} {count}" for why, count in sorted(reasons[kind].items()))
        worst = f" ({' / '.join(f'{100 * part.mean():.0f}' for part in parts)})" if len(parts) > 1 else ""
        told = f"{marks.sum()} of {len(marks)}{': ' if by else ''}{by}"
        listed.append([name, kind, f"{100 * marks.mean():.1f} %{worst}", told])
    return listed


def _groups(rows: Dataset, kind: str) -> NDArray[np.int64]:
    """Rows of which one may go for another: copies of each other, else each row alone."""
    return near_copies(rows).groups if kind == "duplicated" else np.arange(len(rows))


def _caught(found: Findings, groups: NDArray[np.int64], of_kind: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the groups of some rows lose a row: of a pair of copies either may go, ``[R]``."""
    return np.isin(groups[of_kind], groups[found.wrong])


def detector_rows(name: str, draws: list[Draw]) -> list[list[Any]]:
    """What each detector says of itself on the damaged and on the undamaged sets, a mean over the draws."""
    listed = []
    for detector in draws[0].found.calibrations:
        sets = ([draw.found for draw in draws], [draw.clean for draw in draws])
        of = [[each.calibrations[detector] for each in found] for found in sets]
        listed.append([name, detector, *(float(np.mean([getattr(each, what) for each in found]))
                                         for found in of for what in ("auc", "share"))])  # fmt: skip
    return listed


def read_draw(source: SourceConfig, name: str, seed: int, detectors: list[str], reader: Reader) -> Draw:
    """Let a model read a draw of the rows, damaged and undamaged, and mark them."""
    clean = rows_of(source, seed)
    damaged = corrupt(clean, SHARE, KINDS, seed)
    found = []
    for label, rows in (("damaged", damaged), ("clean", clean)):
        with progress_bar(f"{name}, {label}, draw {seed}") as update:
            folder = reader.folder / f"{name}-{label}-{seed}" if reader.folder else None
            own = replace(reader, folder=folder, progress=update)
            found.append(find_wrong(rows, detectors, reads=read_for(rows, detectors, own, seed)))
    return Draw(damaged, *found)


# ------------------------------------------------------------------------------------------------- readings of a sweep


def read_before(sweep: Path) -> dict[float, list[tuple[Dataset, Findings]]]:
    """Share of damage -> the rows of each seed and what is found among them, by what a sweep's cells have read."""
    found: dict[float, list[tuple[Dataset, Findings]]] = {}
    cells: dict[tuple[str, str], Path] = {}
    for file in sorted(sweep.glob("cells/share-*-seed-*/cleaning/likelihoods.parquet")):
        name = file.parent.parent.name  # all variants of a seed read the same rows
        cells.setdefault((name.split("-")[1], name.rsplit("-", 1)[1]), file.parent.parent)
    for (share, _), cell in sorted(cells.items()):
        rows = Dataset(pq.read_table(cell / "examples" / "train.parquet"))
        reads = Reads.of(pq.read_table(cell / "cleaning" / "likelihoods.parquet"))
        marks = find_wrong(rows, CleaningConfig().find, reads=reads)
        found.setdefault(float(share), []).append((rows, marks))
    if not found:
        raise SystemExit(f"{sweep} has no cells that have read their rows (share-*-seed-*)")
    return found


def at_clean(found: list[tuple[Dataset, Findings]], kind: str, score: str, clean: float) -> float:
    """The share of wrong rows of a kind beyond the score that so many clean rows are beyond, a mean over seeds."""
    shares = []
    for rows, marks in found:
        kinds, values = np.array(rows["corruption"]), bad_end(score) * marks.scores[score]
        shares.append(np.mean(values[kinds == kind] >= np.quantile(values[_untouched(rows)], 1 - clean)))
    return float(np.mean(shares))


def _untouched(rows: Dataset) -> NDArray[np.bool_]:
    """Rows without damage that none repeats."""
    kinds, asked = np.array(rows["corruption"]), Counter(rows["instruction"])
    return (kinds == "") & np.array([asked[each] == 1 for each in rows["instruction"]])


def readings_table(found: dict[float, list[tuple[Dataset, Findings]]]) -> str:
    """What is marked of each kind, over seeds, and what the scores would allow."""
    lines: list[list[Any]] = []
    for share, seeds in found.items():
        for kind in ("", *KINDS):
            places = [_untouched(rows) if not kind else np.array(rows["corruption"]) == kind for rows, _ in seeds]
            marked = [
                float(_caught(marks, _groups(rows, kind), own).mean())
                for (rows, marks), own in zip(seeds, places, strict=True)
                if own.any()
            ]
            if marked:
                score = {"swapped": "match", "truncated": "eos"}.get(kind)
                best = [100 * at_clean(seeds, kind, score, clean) for clean in (0.03, 0.05)] if score else [None, None]
                lines.append([f"{share:.0%}", kind or "none", sum(own.sum() for own in places),
                              100 * float(np.mean(marked)), *best])  # fmt: skip
    titles = ("Damaged", "Kind", "Rows", "Marked, %", "Its score at 3 % of clean rows, %", "at 5 %, %")
    digits = (1, 1, 0, 1, 0, 0)
    return to_markdown(Table([Column(title, places) for title, places in zip(titles, digits, strict=True)], lines))


def main() -> None:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="further data sets")
    parser.add_argument("--work", type=Path, default=Path("sweeps/detection"), help="keeps what was read")
    parser.add_argument("--detectors", default="eos,match,wording,near_copy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one draw of rows and damage each")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts read at once")
    parser.add_argument("--readings", type=Path, help="folder of srd sweep evidence, whose cells have read their rows")
    given = parser.parse_args()
    if given.readings is not None:
        table = readings_table(read_before(given.readings))
        print(table)
        write_document(DOCUMENT, {"detection-readings": table})
        return
    torch.set_num_threads(2)
    tokenizer = load_tokenizer("smollm2")
    model = load_model("smollm2", tokenizer=tokenizer, device="cuda" if torch.cuda.is_available() else None)
    encoder = Encoder(tokenizer, get_template("chat", tokenizer))
    reader = Reader(model, encoder, given.batch_size, given.work)
    sources = {"pydocs": SourceConfig(dataset="pydocs"), **{f.stem: SourceConfig(path=str(f)) for f in given.files}}
    marks, detectors, names = [], [], given.detectors.split(",")
    for name, source in sources.items():
        draws = [read_draw(source, name, seed, names, reader) for seed in given.seeds]
        marks += figures(name, draws)
        detectors += detector_rows(name, draws)
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
