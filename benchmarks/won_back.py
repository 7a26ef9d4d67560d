"""What of the loss to wrong rows a sweep's variants win back, with intervals: the tables of `srd sweep evidence`.

The same for each kind of damage, of `srd sweep evidence-kinds`; and of `srd sweep evidence-choices` how far each choice
of the preset `plus` is from the preset.

At every share or kind of damage all variants of a seed answer the same questions. Resampled are the seeds, and within
them the questions, for all variants together; so differences and their quotient, won back = (variant − KD) ÷
(oracle − KD), are pairwise.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from srd.base.files import read_json
from srd.evaluation.predictions import predictions_path, read_answers, read_scores
from srd.report.reading import read_run
from srd.report.tables import Column, Measure, Table, to_markdown
from srd.sweep.cells import Cell, lay_out
from srd.sweep.settings import load_sweep

REFERENCE, ORACLE, CHANCE, AS_LONG = "kd", "oracle", "random subset", "kd, equal time"
DROPPED, REPAIRED, SOFTENED = "cleaning, drop", "cleaning, repair", "cleaning, soften"
CLEANED = (DROPPED, REPAIRED)  # they mark the same rows
SHARE, KINDS, CLEAN = "data.corruption.share", "data.corruption.kinds", "0%"
PAPER = "srd"
STAGES, SAME_ROWS = "three stages", "kd on the same rows"
SIMPLER = (SAME_ROWS, "one stage")  # where they are level they take its place
SAMPLES = 10_000
LEVEL, ENOUGH = 0.2, 0.8  # points that `plus` may be behind on clean data; the share of the loss to be won back
Span = tuple[float, float, float]  # the value, and the interval's ends
Scores = dict[int, np.ndarray]  # seed -> the score of each question, in percent, [N]
Found = dict[str, dict[str, "Variant"]]  # damage, by its share or its kind -> variant -> what it scored


@dataclass
class Variant:
    """One variant at one share, or of one kind, of damage.

    Attributes:
        scores: Of its students.
        teachers: Of its teachers, where they were evaluated: fine-tuned on the same rows.
        summaries: Of its trainings.
        folders: Of its cells.
    """

    scores: Scores = field(default_factory=dict)
    teachers: Scores = field(default_factory=dict)
    summaries: list[dict[str, Any]] = field(default_factory=list)
    folders: dict[int, Path] = field(default_factory=dict)


def read_variants(folder: Path, path: Path) -> Found:
    """What the variants of a sweep scored (its folder, its file), where all their seeds are; the least damage first."""
    found: Found = {}
    wanted: Counter[tuple[str, str]] = Counter()
    for cell in sorted(lay_out(load_sweep(path), path), key=lambda cell: cell.point.get(SHARE, 0)):
        place, where = folder / "cells" / cell.folder, (_damage(cell), cell.label)
        wanted[where] += 1
        if read_json(place / "cell.json", {}).get("state") == "done":
            _add(found.setdefault(where[0], {}).setdefault(where[1], Variant()), cell, place)
    whole = {
        damage: {label: variant for label, variant in variants.items() if len(variant.scores) == wanted[damage, label]}
        for damage, variants in found.items()
    }
    return {damage: variants for damage, variants in whole.items() if variants}


def _damage(cell: Cell) -> str:
    if SHARE in cell.point:
        return f"{cell.point[SHARE]:.0%}"
    kinds = cell.point[KINDS]
    return kinds[0] if len(kinds) == 1 else "mix"


def _add(variant: Variant, cell: Cell, place: Path) -> None:
    run, seed = read_run(place), cell.seeds["seed"]
    variant.folders[seed] = place
    variant.scores[seed] = _scores(place, run.main_variant)
    variant.summaries.append(run.summary(f"train/{run.main_variant}"))
    if "teacher" in run.evaluation:
        variant.teachers[seed] = _scores(place, "teacher")


def _scores(place: Path, model: str) -> np.ndarray:
    """The score of each question in percent, by the questions' ids."""
    path = next((place / "evaluation" / "predictions").glob(f"{model}.test.*.jsonl"))
    assert path == predictions_path(place / "evaluation", model, "test", path.stem.rpartition(".")[2])
    kept, rows = read_scores(path), read_answers(path)
    if kept is None or rows is None:
        raise RuntimeError(f"{path} is not as it was scored")
    by_id = sorted(zip((str(row["id"]) for row in rows), kept["per_example"]["rouge_l"], strict=True))
    return 100 * np.array([score for _, score in by_id])


# ---------------------------------------------------------------------------------------------------------- intervals


def resampled(variants: Sequence[Scores], seed: int = 0) -> np.ndarray:
    """Means of variants over resampled seeds and questions, the same ones for all, ``[variants, SAMPLES]``."""
    seeds = sorted(set.intersection(*(set(scores) for scores in variants)))
    draw = np.random.default_rng(seed)
    weights = (draw.integers(len(seeds), size=(SAMPLES, len(seeds)))[:, :, None] == np.arange(len(seeds))).mean(1)
    means = np.zeros((len(variants), SAMPLES))
    for place, number in enumerate(seeds):
        count = len(variants[0][number])
        for start in range(0, SAMPLES, 1000):
            picked = draw.integers(count, size=(1000, count))
            for variant, scores in enumerate(variants):
                part = slice(start, start + 1000)
                means[variant, part] += weights[part, place] * scores[number][picked].mean(1)
    return means


def mean_of(scores: Scores, seeds: Sequence[int]) -> float:
    """The mean over seeds of the mean over questions."""
    return statistics.fmean(float(scores[seed].mean()) for seed in seeds)


def difference(variant: Scores, other: Scores) -> Span | None:
    """One variant less another, over the seeds that both have."""
    seeds = sorted(set(variant) & set(other))
    if not seeds:
        return None
    ours, theirs = resampled([variant, other])
    low, high = np.quantile(ours - theirs, [0.025, 0.975])
    return mean_of(variant, seeds) - mean_of(other, seeds), float(low), float(high)


def won_back(variant: Scores, reference: Scores, oracle: Scores) -> Span | None:
    """(variant − reference) ÷ (oracle − reference); None where the oracle is not surely ahead: nothing to win back."""
    seeds = sorted(set(variant) & set(reference) & set(oracle))
    if not seeds:
        return None
    ours, theirs, best = resampled([variant, reference, oracle])
    if np.quantile(best - theirs, 0.025) <= 0:
        return None
    start = mean_of(reference, seeds)
    low, high = np.quantile((ours - theirs) / (best - theirs), [0.025, 0.975])
    return (mean_of(variant, seeds) - start) / (mean_of(oracle, seeds) - start), float(low), float(high)


# -------------------------------------------------------------------------------------------------------------- tables


def _shown(span: Span | None, digits: int = 2, sign: str = "+") -> str | None:
    if span is None:
        return None
    value, low, high = (f"{each:{sign}.{digits}f}".replace("-", "−") for each in span)
    return f"{value} ({low} to {high})"


def variants_table(found: Found, *, teachers: bool, other: str = CHANCE) -> str:
    """Every variant at every damage: score, difference from KD and from another variant, won back."""
    rows = []
    for damage, variants in found.items():
        scores = {label: variant.teachers if teachers else variant.scores for label, variant in variants.items()}
        scores = {label: own for label, own in scores.items() if own}
        for label, own in scores.items():
            means = [float(values.mean()) for values in own.values()]
            spread = statistics.stdev(means) if len(means) > 1 else None
            against = {
                known: difference(own, scores[known]) if known in scores and known != label else None
                for known in (REFERENCE, other)
            }
            back = None
            if ORACLE in scores and REFERENCE in scores and label not in (REFERENCE, ORACLE):
                back = won_back(own, scores[REFERENCE], scores[ORACLE])
            kept, steps, seconds = (
                statistics.fmean(summary[key] for summary in variants[label].summaries)
                for key in ("examples", "steps", "training_seconds")
            )
            score = Measure(statistics.fmean(means), spread)
            shown = [_shown(against[REFERENCE]), _shown(against[other]), _shown(back, sign="")]
            rows.append([damage, label, len(own), kept, score, *shown, *([] if teachers else [steps, seconds])])
    titles = [
        Column("Damaged"),
        Column("Variant"),
        Column("Seeds", 0),
        Column("Rows", 0),
        Column("ROUGE-L", 2, best=None),
    ]
    titles += [Column("less KD"), Column(f"less {other}"), Column("Won back")]
    titles += [] if teachers else [Column("Steps", 0), Column("Training, s", 0)]
    return to_markdown(Table(titles, rows).without_empty_columns())


def found_table(found: Found) -> str:
    """What the cleaning marked, by kind of damage, over all seeds."""
    rows = []
    for damage, kind, why in _by_kind(found, CLEANED, "cleaning/rows", "why"):
        by = ", ".join(f"{name} {count}" for name, count in sorted(Counter(filter(None, why)).items()))
        rows.append([damage, kind, len(why), 100 * sum(map(bool, why)) / len(why), by or None])
    titles = [Column("Damaged"), Column("Kind"), Column("Rows", 0), Column("Marked, %", 1), Column("Of which by")]
    return to_markdown(Table(titles, rows))


def dropped_table(found: Found) -> str:
    """What the paper's curriculum dropped as the hardest, by kind of damage, over all seeds."""
    rows = [
        [damage, kind, len(kept), len(kept) - sum(kept), 100 * (1 - sum(kept) / len(kept))]
        for damage, kind, kept in _by_kind(found, [PAPER], "curriculum/ranked", "kept")
    ]
    titles = [Column("Damaged"), Column("Kind"), Column("Rows", 0), Column("Dropped", 0), Column("%", 1)]
    return to_markdown(Table(titles, rows))


def _by_kind(found: Found, labels: Sequence[str], file: str, column: str) -> Iterator[tuple[str, str, list[Any]]]:
    """What a column of a file says, by what is damaged and by each row's own kind of damage.

    It is read from the cells of the first of the variants that there is at a damage.
    """
    for damage, variants in found.items():
        values: dict[str, list[Any]] = {}
        read = next((variants[label] for label in labels if label in variants), Variant())
        for place in read.folders.values():
            kinds, table = _kinds(place), pq.read_table(place / f"{file}.parquet", columns=["id", column])
            for number, value in zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True):
                values.setdefault(kinds[number], []).append(value)
        for kind, own in sorted(values.items()):
            yield damage, kind, own


def _kinds(place: Path) -> dict[str, str]:
    """The kind of damage of each training row of a cell, by id."""
    examples = pq.read_table(
        place / "examples" / "train.parquet", columns=["id", "corruption", "instruction"]
    ).to_pylist()
    asked = Counter(row["instruction"] for row in examples)
    spared = {True: "none, but copied", False: "none"}
    return {row["id"]: row["corruption"] or spared[asked[row["instruction"]] > 1] for row in examples}


def targets_table(found: Found) -> str:
    """What was to be reached, and what was."""
    rows: list[list[Any]] = []
    for damage, variants in found.items():
        if damage == CLEAN and "plus" in variants and REFERENCE in variants:
            span = difference(variants["plus"].scores, variants[REFERENCE].scores)
            met = span is not None and span[0] >= -LEVEL and span[2] > 0
            rows.append([f"clean: plus is at most {LEVEL} behind KD, and its interval ends above 0", _shown(span), met])
        if ORACLE in variants and REFERENCE in variants:
            rows += _damaged_targets(f"{damage} damaged" if damage.endswith("%") else damage, variants)
    words = {True: "met", False: "missed", None: "cannot tell"}
    told = [[target, value, words[met]] for target, value, met in rows]
    return to_markdown(Table([Column("Target, set beforehand"), Column("Measured"), Column("")], told))


def _damaged_targets(title: str, variants: dict[str, Variant]) -> list[list[Any]]:
    """The targets at one damage; where the oracle is not surely ahead there is nothing to win back."""
    reference, oracle = variants[REFERENCE].scores, variants[ORACLE].scores
    span = difference(oracle, reference)
    sure = span is not None and span[1] > 0
    rows: list[list[Any]] = [[f"{title}: the oracle is ahead of KD, else nothing can be told", _shown(span), sure]]
    for label in (DROPPED, REPAIRED, "plus", SOFTENED):
        if label in variants:
            back = won_back(variants[label].scores, reference, oracle)
            met = back is not None and back[0] >= ENOUGH
            rows.append([f"{title}: {label} wins back {ENOUGH}", _shown(back, sign=""), met if sure else None])
            if CHANCE in variants:
                ahead = difference(variants[label].scores, variants[CHANCE].scores)
                met = ahead is not None and ahead[1] > 0
                rows.append([f"{title}: {label} is ahead of the random subset", _shown(ahead), met if sure else None])
    for other, name in ((SOFTENED, "softening"), (AS_LONG, "KD that takes as long")):
        if {REPAIRED, other} <= set(variants):
            ahead = difference(variants[REPAIRED].scores, variants[other].scores)
            rows.append([f"{title}: repair is ahead of {name}", _shown(ahead), ahead is not None and ahead[1] > 0])
    return rows


def over_shares(found: Sequence[dict[str, Variant]], label: str) -> Scores:
    """Of each seed the mean score of each question over some shares of damage."""
    scores = [variants[label].scores for variants in found]
    seeds = sorted(set.intersection(*map(set, scores))) if scores else []
    return {seed: np.mean([each[seed] for each in scores], axis=0) for seed in seeds}


def choices_table(found: Found) -> str:
    """How far each choice is from three stages, at each share and over all, and what follows by the rule.

    A choice is ahead where the interval over its shares is above zero, and behind where it is below.
    """
    labels = dict.fromkeys(label for variants in found.values() for label in variants)
    rows = []
    for label in (label for label in labels if label not in (STAGES, REFERENCE, ORACLE)):
        spans = [
            difference(variants[label].scores, variants[STAGES].scores) if {label, STAGES} <= set(variants) else None
            for variants in found.values()
        ]
        both = [variants for variants in found.values() if {label, STAGES} <= set(variants)]
        over = difference(over_shares(both, label), over_shares(both, STAGES))
        spans += [over] if len(found) > 1 else []
        rows.append([label, *map(_shown, spans), _verdict(label, over)])
    of = [f"{damage} damaged" for damage in found] + (["over its shares"] if len(found) > 1 else [])
    titles = [Column("Choice"), *(Column(f"less three stages, {what}") for what in of), Column("")]
    return to_markdown(Table(titles, rows))


def _verdict(label: str, over: Span | None) -> str | None:
    if over is None:
        return None
    if over[1] > 0 or over[2] < 0:
        return "ahead: gets in" if over[1] > 0 else "behind"
    return "level, and simpler: gets in" if label in SIMPLER else "level"


def tables_of(folder: Path, path: Path) -> dict[str, str]:
    """All tables of a sweep with an oracle.

    Args:
        folder: Where it ran.
        path: Its file.
    """
    found, name = read_variants(folder, path), folder.name
    if load_sweep(path).reference == STAGES:
        return {f"{name}-arms": variants_table(found, teachers=False, other=STAGES), name: choices_table(found)}
    tables = {f"{name}-arms": variants_table(found, teachers=False), f"{name}-targets": targets_table(found)}
    if any(variant.teachers for variants in found.values() for variant in variants.values()):
        tables[f"{name}-teachers"] = variants_table(found, teachers=True)
    if any(label in variants for variants in found.values() for label in CLEANED):
        tables[f"{name}-found"] = found_table(found)
    if KINDS in load_sweep(path).grid and any(PAPER in variants for variants in found.values()):
        tables[f"{name}-dropped"] = dropped_table(found)
    return tables
