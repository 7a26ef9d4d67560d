"""A new response for a row that is wrong: of what the teacher answers, what no detector marks and the student likes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from srd.curation.cleaning import Columns, Reader, TrainOn, bad_end, by_rule, contrasts_from, scored
from srd.curation.detectors.base import DETECTORS, work_for
from srd.curation.groups import Groups, groups_of, kinds_of
from srd.curation.likelihoods import OTHERS, Tokens, fitted, groups_in_place, other_prompts
from srd.curation.shots import shown

TEMPERATURE = 0.7  # of the answers beside the greedy one


def candidates_read(
    examples: Dataset, rows: NDArray[np.int64], candidates: Dataset, detectors: Sequence[str], reader: Reader
) -> tuple[Columns, Groups]:
    """What scores need of candidates, read behind their rows' prompts and behind the same other prompts as the rows.

    And the group of each among those of the rows (`srd.curation.groups`).

    Args:
        examples: All training rows.
        rows: The row of each candidate, ``[C]``.
        candidates: These rows with the candidates as their responses.
        detectors: Names.
        reader: The model that read the rows.
    """
    needs, _ = work_for(detectors)
    all_rows, tokens = Tokens.of(reader.encoder, examples), Tokens.of(reader.encoder, candidates)
    kinds = kinds_of(examples, all_rows.frames)
    others = other_prompts(all_rows.ids, all_rows.prompts, OTHERS + 1, groups_of(kinds))[:, :-1]
    groups = groups_in_place(all_rows, rows, tokens, needs, others)
    before = shown(reader.encoder, examples, all_rows)  # a row is not read behind itself, nor is what is to replace it
    groups = {kind: before.pairs(pairs, rows[pairs[:, 1]]) for kind, pairs in groups.items()}
    (tokens,) = fitted([tokens], before.prompts, groups, reader.encoder)
    found = reader.read(before.prompts, tokens.responses, groups)
    read = contrasts_from(found, tokens.lengths, tokens.ended)
    return read, groups_of(kinds_of(candidates, tokens.frames), kinds)


def passing(
    candidates: Dataset,
    read: Columns,
    thresholds: Mapping[str, float | NDArray[np.float64]],
    detectors: Sequence[str],
    train_on: TrainOn = "last",
) -> NDArray[np.bool_]:
    """Which candidates no detector marks, ``[C]``.

    Args:
        candidates: Rows with the candidates as their responses.
        read: What scores need of them.
        thresholds: Of the contrasts, in the direction in which they are bad; one for all, or one for each, ``[C]``.
        detectors: Names.
        train_on: Which answers of a conversation are learnt; a candidate cannot make good what an earlier one spoils.
    """
    fine = np.ones(len(candidates), dtype=bool)
    for detector in map(DETECTORS.get, detectors):
        if detector.rule is not None and len(candidates):
            fine &= by_rule(detector, candidates, train_on) < detector.least
        elif detector.damage is not None:
            fine &= bad_end(detector.name) * scored(detector.name, read) < thresholds.get(detector.name, math.inf)
    return fine


def chosen(rows: NDArray[np.int64], fine: NDArray[np.bool_], nats: NDArray[np.float64]) -> dict[int, int]:
    """For each row that has a candidate that is fine, the one with the fewest nats a token (GRAPE, arXiv 2502.04194).

    Args:
        rows: The row of each candidate, ``[C]``.
        fine: Whether it may be taken, ``[C]``.
        nats: The student's mean nats a token, ``[C]``.
    """
    best: dict[int, int] = {}
    for candidate in np.argsort(nats, kind="stable").tolist():
        if fine[candidate]:
            best.setdefault(int(rows[candidate]), candidate)
    return best
