"""Which rows are wrong: by rules, by contrasts calibrated on self-made damage, and as copies of other rows."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from srd.base.tables import column
from srd.curation.calibration import FEWEST, NOT_SHOWN, SHOWN, Calibration, calibrate
from srd.curation.copies import COPY, near_copies
from srd.curation.damage import chosen_rows, damaged
from srd.curation.detectors.base import DETECTORS, HELD_OUT, NAMED, Detector, can_soften, needs_of_damage, work_for
from srd.curation.groups import MAIN, Groups, groups_of, kinds_of, of_each
from srd.curation.likelihoods import (
    OTHERS,
    Found,
    Joined,
    Progress,
    Tokens,
    columns_from,
    fitted,
    groups_for,
    groups_in_place,
    other_prompts,
    read_groups,
)
from srd.curation.scores.base import SCORES, ScoreInputs, one_each
from srd.curation.shots import shown
from srd.data.encoding import Encoder
from srd.data.messages import ASSISTANT, plain_text

Floats = NDArray[np.float64]
Columns = dict[str, Floats]
TrainOn = Literal["last", "all"]


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        ids: Of the rows.
        scores: A column for each detector, as it scores.
        why: The detector that marks each row, ``named``, ``held_out``, or nothing, ``[N]``.
        calibrations: Of the contrasts, on the rows of the group that most are of.
        elsewhere: Of the contrasts, on those of each other group.
        held: Whether each row repeats one that is held out, and nothing is said of it by name, ``[N]``.
        spare: Whether each row repeats one that stays, or would if that were not wrong as well, ``[N]``.
    """

    ids: pa.ChunkedArray
    scores: Columns
    why: NDArray[np.object_]
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    elsewhere: dict[str, dict[str, Calibration]] = field(default_factory=dict)
    held: NDArray[np.bool_] | bool = False
    spare: NDArray[np.bool_] | bool = False

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether each row is marked, ``[N]``."""
        return self.why != ""

    def counts(self) -> dict[str, int]:
        """Rows by reason, the most frequent first."""
        names, counts = np.unique(self.why[self.wrong].astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {str(names[i]): int(counts[i]) for i in order}

    def as_json(self) -> dict[str, Any]:
        """What each contrast can do, and by ``elsewhere`` what it can on other groups of rows, where there are any."""
        others = {name: {group: each.as_json() for group, each in of.items()} for name, of in self.elsewhere.items()}
        return {
            name: {**each.as_json(), **({"elsewhere": others[name]} if others[name] else {})}
            for name, each in self.calibrations.items()
        }

    def columns(self) -> dict[str, Any]:
        """``id``, the scores, ``wrong`` and ``why``."""
        return {"id": self.ids, **self.scores, "wrong": self.wrong, "why": pa.array(self.why, pa.string())}


@dataclass(frozen=True)
class Reader:
    """The model that contrasts ask.

    Attributes:
        model: Has not been trained on the rows.
        encoder: In the frame that the model knows.
        batch_size: Pairs in one forward pass.
        folder: Keeps what was read.
        progress: Is told of it.
    """

    model: Any
    encoder: Encoder
    batch_size: int = 32
    folder: Path | None = None
    progress: Progress | None = None

    def read(self, prompts: Any, responses: Any, groups: Mapping[str, NDArray[np.int64]]) -> Found:
        """Nats of responses behind prompts, by group; see `srd.curation.likelihoods.pair_losses`."""
        return read_groups(
            self.model, self.encoder.tokenizer, prompts, responses, groups, batch_size=self.batch_size,
            folder=self.folder, progress=self.progress,
        )  # fmt: skip


def find_wrong(
    examples: Dataset,
    detectors: Sequence[str],
    *,
    reads: Reads | None = None,
    held_out: Dataset | None = None,
    held_stay: bool = False,
    keep: Collection[str] = (),
    drop: Collection[str] = (),
    train_on: TrainOn = "last",
) -> Findings:
    """Mark the rows that are wrong.

    Args:
        examples: Training rows, of the example schema.
        detectors: Their names; of several that mark a row the first says why.
        reads: What the model has read for them (`read_for`); needed where there is a contrast among them.
        held_out: Validation and test rows, which ``near_copy`` compares with.
        held_stay: Rows that repeat one of these are not wrong for that.
        keep: Ids that are right whatever is said of them.
        drop: Ids that are wrong.
        train_on: Which answers of a conversation are learnt; rules look at all of these.

    Returns:
        Scores, marks and reasons, in the order of the rows.
    """
    chosen = [DETECTORS.get(name) for name in detectors]
    ids = column(examples, "id")
    kept, named = (pc.is_in(ids, value_set=pa.array(list(each), ids.type)).to_numpy() for each in (keep, drop))
    scores: Columns = {}
    found: dict[str, dict[str, Calibration]] = {}
    why = np.full(len(ids), "", dtype=object)
    for detector in chosen:  # what one has marked the next is not asked about, nor does it count for its threshold
        asked = why == ""
        if detector.damage is not None:
            assert reads is not None, "contrasts ask a model"
            scores[detector.name], wrong, found[detector.name] = _contrast(detector, reads, asked)
        elif detector.rule is not None:
            scores[detector.name] = by_rule(detector, examples, train_on)
            wrong = scores[detector.name] >= detector.least
        else:
            continue
        why[wrong & asked] = detector.name
    why[kept], why[named] = "", NAMED
    held, spare = np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool)
    for detector in (each for each in chosen if each.of_copies):
        copies = near_copies(examples, held_out)
        scores[detector.name] = copies.likeness
        held = (copies.held_out >= COPY) & ~kept & ~named
        gone = held & (not held_stay)
        spare = copies.spare(_worse(why, gone, kept, reads)) & ~kept
        why[spare & (why == "")] = detector.name
        why[gone] = HELD_OUT
        if held_out is not None and len(held_out):
            scores[HELD_OUT] = copies.held_out
    in_order = {name: scores[name] for name in (*detectors, HELD_OUT) if name in scores}
    elsewhere = {name: dict(found[name]) for name in detectors if name in found}
    calibrations = {name: each.pop(MAIN) for name, each in elsewhere.items()}
    return Findings(ids, in_order, why, calibrations, elsewhere, held, spare)


def _worse(why: NDArray[np.object_], gone: NDArray[np.bool_], kept: NDArray[np.bool_], reads: Reads | None) -> Floats:
    """How bad each row is as the one of its copies that stays, ``[N]``: the likeliest right one is the best.

    Then one that may keep its text at least, and last those that go in any case.
    """
    nats = reads.rows["ce"] if reads is not None else np.zeros(len(why))
    wrong, soft = why != "", np.isin(why, [each for each in {*why} if can_soften(each)])
    return np.select([kept, gone | (wrong & ~soft), soft], [-math.inf, math.inf, np.finfo(float).max], nats)


def by_rule(detector: Detector, examples: Dataset, train_on: TrainOn) -> Floats:
    """What a rule says of each row: of the worst of its answers that are learnt, ``[N]``."""
    parts = [np.zeros(0)]
    for batch in examples.select_columns(["references", "messages"]).iter(10_000):
        rows = zip(batch["references"], batch["messages"], strict=True)
        answers = [_learnt(messages if train_on == "all" else "", references) for references, messages in rows]
        values = detector.values([text for row in answers for text in row])
        starts = np.cumsum([0, *map(len, answers)])[:-1]
        parts.append(np.maximum.reduceat(values, starts))
    return np.concatenate(parts)


def _learnt(messages: str, references: list[str]) -> list[str]:
    """The earlier answers of a conversation that are learnt, and the last one."""
    turns = [turn for turn in json.loads(messages or "[]") if turn["role"] == ASSISTANT and turn.get("train", True)]
    return [*map(plain_text, turns), (references or [""])[0]]


# ---------------------------------------------------------------------------------------------------------- contrasts

ROWS = ""  # the kind of what is no damage, in the table of what was read


@dataclass(frozen=True)
class Reads:
    """What a model has read for contrasts.

    Attributes:
        rows: Columns that scores need, of the rows, ``[N]`` each; ``shots``: rows that the model was shown before.
        damage: The same of self-made damage, by its kind.
        groups: Of the rows, and by its kind of the damage: scores are compared within them (`srd.curation.groups`).
    """

    rows: Columns
    damage: dict[str, Columns]
    groups: dict[str, Groups] = field(default_factory=dict)

    def groups_in(self, kind: str) -> Groups:
        """The group of each text of a kind; one of them all where nothing else was read."""
        count = len((self.damage[kind] if kind else self.rows)["ce"])
        return self.groups.get(kind, np.full(count, MAIN, dtype=object))

    def table(self) -> pa.Table:
        """All of it, with the kind of damage and the group beside each row."""
        parts = [(ROWS, self.rows), *self.damage.items()]
        beside = {kind: {"kind": [kind] * len(each["ce"]), "group": self.groups_in(kind)} for kind, each in parts}
        return pa.concat_tables([pa.table({**beside[kind], **each}) for kind, each in parts], promote_options="default")

    @classmethod
    def of(cls, table: pa.Table) -> Reads:
        """What `table` has put together."""
        columns, groups = {}, {}
        for kind in dict.fromkeys(table["kind"].to_pylist()):
            part = table.filter(pc.equal(table["kind"], kind)).drop_columns(["kind"])
            filled = [name for name in part.column_names if part[name].null_count < max(1, len(part))]
            columns[kind] = {name: part[name].to_numpy() for name in filled}
            if "group" in filled:
                groups[kind] = columns[kind].pop("group")
        return cls(columns.pop(ROWS), columns, groups)


def read_for(examples: Dataset, detectors: Sequence[str], reader: Reader, seed: int) -> Reads:
    """Let a model read the rows and the damage that is made of them: one list of work for all detectors."""
    needs, kinds = work_for(detectors)
    tokens = Tokens.of(reader.encoder, examples)
    of_rows = groups_of(kinds_of(examples, tokens.frames))
    rows = _to_damage(tokens.ids, of_rows, seed)
    # The last of the other prompts makes the damage: the response is compared with those before it, as its own row is.
    others = other_prompts(tokens.ids, tokens.prompts, OTHERS + 1, of_rows)
    groups = groups_for(tokens, needs, others[:, :-1])
    if "swapped" in kinds and others.shape[1] > 1:
        groups["swapped"] = np.stack([others[rows, -1], rows], 1)
    made: dict[str, Tokens] = {}
    owners, of_each_kind = np.arange(len(tokens.ids)), {ROWS: of_rows, "swapped": of_rows[rows]}
    for kind in sorted(kinds - {"swapped"}):
        damage, places = _readable(reader.encoder, *damaged(examples, rows, kind, seed))
        if len(places):
            text = Tokens.of(reader.encoder, damage)
            own = groups_in_place(tokens, places, text, needs_of_damage(detectors, kind), others[:, :-1])
            behind = np.array([0, len(owners)])
            owners = np.concatenate([owners, places])
            groups |= {f"{kind} {name}": pairs + behind for name, pairs in own.items()}
            made[kind], of_each_kind[kind] = text, of_rows[places]
    before = shown(reader.encoder, examples, tokens)
    groups = {name: before.pairs(pairs, owners[pairs[:, 1]]) for name, pairs in groups.items()}
    tokens, *texts = fitted([tokens, *made.values()], before.prompts, groups, reader.encoder)
    made = dict(zip(made, texts, strict=True))
    found = reader.read(before.prompts, Joined(tokens.responses, *(each.responses for each in texts)), groups)
    table = contrasts_from(_read_of("", found), tokens.lengths, tokens.ended)
    table["shots"] = before.shots.astype(np.float64)
    columns = {kind: contrasts_from(_read_of(kind, found), each.lengths, each.ended) for kind, each in made.items()}
    if "swapped" in found:
        losses = columns_from({"own": found["swapped"]}, tokens.lengths[rows], tokens.ended[rows])
        columns["swapped"] = {**{name: values[rows] for name, values in table.items()}, **losses}
    return Reads(table, columns, of_each_kind)


def _to_damage(ids: list[str], groups: Groups, seed: int) -> NDArray[np.int64]:
    """The rows of each group that are damaged; ascending. Where it has too few to tell anything, none are."""
    own = [places for group, places in of_each(groups).items() if group == MAIN or len(places) >= FEWEST]
    return np.sort(np.concatenate([places[chosen_rows([ids[row] for row in places], seed)] for places in own]))


def _readable(encoder: Encoder, damage: Dataset, places: NDArray[np.int64]) -> tuple[Dataset, NDArray[np.int64]]:
    """Damaged rows, and which they were, without those that the template refuses: their thought has no end, say."""
    taken = np.setdiff1d(np.arange(len(places)), list(encoder.refused(damage.to_list())))
    return damage.select(taken), places[taken]


def _read_of(kind: str, found: Found) -> Found:
    """Of all that was read the groups of a kind of damage, or of the rows."""
    names = ("own", "unprompted", "mismatched")
    return {name: found[f"{kind} {name}".strip()] for name in names if f"{kind} {name}".strip() in found}


def contrasts_from(found: Found, lengths: Floats, ended: NDArray[np.bool_]) -> Columns:
    """`columns_from`, with the empty prompt among those that a response is compared with.

    It counts as much as the others together: they say what this response is worth behind any question, it says so
    without what each of them happens to ask.
    """
    columns = columns_from(found, lengths, ended)
    if "mismatched" in found and len(found["mismatched"][0]):
        total, last = found["unprompted"]
        columns["mismatched_nll"] = (columns["mismatched_nll"] + total - np.where(ended, last, 0.0)) / 2
    return columns


def _contrast(
    detector: Detector, reads: Reads, asked: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_], dict[str, Calibration]]:
    """A detector's scores, the rows that it marks, and how it was calibrated on the rows of each group it is asked of.

    What a score means differs between scripts, and between frames.
    """
    values, sign = scored(detector.name, reads.rows), bad_end(detector.name)
    kind, wrong, of_damage = str(detector.damage), np.zeros(0), np.zeros(0, dtype=object)
    if kind in reads.damage:
        wrong, of_damage = scored(detector.name, reads.damage[kind]), reads.groups_in(kind)
    shots, found, thresholds = reads.rows.get("shots", np.zeros(len(values))), {}, np.full(len(values), np.inf)
    for group, own in of_each(reads.groups_in(ROWS)).items():
        bar = SHOWN if np.any(shots[own]) else NOT_SHOWN
        found[group] = calibrate(sign * values[own[asked[own]]], sign * wrong[of_damage == group], bar)
        thresholds[own] = found[group].threshold
    return values, sign * values >= thresholds, found


def scored(name: str, read: Columns) -> Floats:
    """What a score gives of what was read; NaN where the model gives no number."""
    score, ids = SCORES.get(name), pa.chunked_array([pa.array(map(str, range(len(read["ce"]))), pa.string())])
    given = score.compute(ScoreInputs(pa.table({"id": ids, **read})))
    return one_each(f"the score '{name}'", given, ids, finite=False)


def bad_end(score: str) -> float:
    """1 where high values of a score are bad, else −1."""
    return 1.0 if SCORES.get(score).harder == "high" else -1.0
