"""What a teacher with another tokenizer reads of a batch, and how its positions go with the student's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from srd.base.remedies import warn
from srd.data.batching import Collator, EncodedExamples, learnt_answers
from srd.models.tokenizers.alignment import (
    NONE,
    Classes,
    Paired,
    identical_classes,
    kept_classes,
    pair_tokens,
    prefix_classes,
)
from srd.models.tokenizers.token_bytes import TokenBytes, continuations
from srd.training.loss.aligned_loss import Alignment, ClassMaps, class_maps

logger = logging.getLogger(__name__)

SAMPLE = 1_000  # examples that the coverage is worked out from
ENOUGH_POSITIONS = 0.8  # a smaller share of supervised positions is worth a warning,
ENOUGH_MASS = 0.9  # and so is less of the teacher's probability on tokens that the student has
ANOTHER = "Another teacher or student, with tokenizers more alike, is taught more; training.weight below 1 learns more "
ANOTHER += "from the answers themselves."

Method = Literal["auto", "prefix", "chunks", "identical"]
Row = dict[str, Any]  # id, prompt_ids, response_ids, perhaps earlier


@dataclass(frozen=True)
class Rule:
    """A way to supervise a student by a teacher with another tokenizer.

    Attributes:
        classes: Of the two tokenizers.
        positions: Whether distributions are compared.
        wants: Whether the likelihood of a chunk is; see `srd.models.tokenizers.alignment.pair_tokens`.
    """

    classes: Callable[[Any, Any], Classes]
    positions: bool
    wants: Callable[[bool, bool], bool]


RULES: dict[str, Rule] = {
    "auto": Rule(prefix_classes, True, lambda used, told: not told),
    "prefix": Rule(prefix_classes, True, lambda used, told: False),
    "chunks": Rule(prefix_classes, False, lambda used, told: True),
    "identical": Rule(identical_classes, True, lambda used, told: False),
}


@dataclass(frozen=True)
class Coverage:
    """How much of the student's text a teacher can supervise, in tokens that are learnt.

    Attributes:
        tokens: Of the student.
        positions: Those whose distributions are compared.
        chunks: Others, whose chunk's likelihood is compared.
        shared: Tokens of the teacher's that the student has, too, ...
        others: ... and those that it has not.
    """

    tokens: int = 0
    positions: int = 0
    chunks: int = 0
    shared: int = 0
    others: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def supervised(self) -> float:
        """The share of positions whose distributions are compared."""
        return self.positions / max(1, self.tokens)

    @property
    def by_chunks(self) -> float:
        """The share of the others that belong to a chunk whose likelihood is compared."""
        return self.chunks / max(1, self.tokens)

    @property
    def words(self) -> str:
        """All of it, in a sentence."""
        also = f" and {self.by_chunks:.1%} by the likelihood of chunks" if self.by_chunks else ""
        return (
            f"the teacher's tokens are aligned by their bytes: it supervises {self.supervised:.1%} of the student's "
            f"tokens by distributions{also}; {self.shared_tokens:.1%} of its own tokens in these texts are the "
            "student's, too"
        )

    @property
    def shared_tokens(self) -> float:
        """The share of the teacher's own tokens that the student has, too: its mass on them, as far as texts tell."""
        return self.shared / max(1, self.shared + self.others)


@dataclass
class Reader:
    """Reads for a teacher with a tokenizer of its own.

    Args:
        teacher_tokenizer: Of the teacher.
        student_tokenizer: Of the student.
        examples: The training examples as the teacher reads them, with its cache where there is one.
        collator: Pads the teacher's batches.
        method: How positions are supervised; see `RULES`.
        written: Whether the answers are not the examples' own, but what a model has written.
        folder: Where the classes are kept; None: nowhere.
    """

    teacher_tokenizer: Any
    student_tokenizer: Any
    examples: EncodedExamples
    collator: Collator
    method: Method = "auto"
    written: bool = False
    folder: Path | None = None
    _maps: dict[tuple[int, int, torch.device], ClassMaps] = field(default_factory=dict, init=False)

    @cached_property
    def classes(self) -> Classes:
        """What the two tokenizers have in common."""
        return kept_classes(RULES[self.method].classes, self.teacher_tokenizer, self.student_tokenizer, self.folder)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.examples.ids)}

    def batch(self, rows: Sequence[Row], *, written: bool = False) -> dict[str, Any]:
        """What a batch of the student's rows has beside their own tensors.

        Args:
            rows: Of the student.
            written: Whether a model has written their answers, so that the teacher has to read them anew.

        Returns:
            ``teacher``: the batch as the teacher reads it, and ``alignment``: ``position [N]``, ``student_chunk [N]``,
            ``teacher_chunk [M]``; see `srd.training.loss.aligned_loss.Alignment`.
        """
        theirs = [self._row(row, written=written or self.written) for row in rows]
        paired = [self.pair(other, row) for other, row in zip(theirs, rows, strict=True)]
        return {"teacher": self.collator(theirs), "alignment": _stacked(paired)}

    def _row(self, row: Row, *, written: bool) -> Row:
        own = self.examples[self._places[row["id"]]]
        return self._reread(row, own) if written else own

    def _reread(self, row: Row, own: Row) -> Row:
        """A row whose answer the student has written, in the teacher's tokens, as far as it is text."""
        tokens, ids = self.classes.student.tokens, row["response_ids"]
        text = _text_of(tokens, ids)
        (read,) = continuations(self.teacher_tokenizer, [text])
        if ids and ids[-1] in tokens.ends:
            known = self.classes.teacher.tokens.ends
            last = own["response_ids"][-1:]
            read = [*read, *(last if last and last[0] in known else [self.teacher_tokenizer.eos_token_id])]
        return {"id": row["id"], "prompt_ids": own["prompt_ids"], "response_ids": read}

    def pair(self, teacher: Row, student: Row) -> Paired:
        """How the learnt tokens of an example go together; answers of a conversation are found by their bytes."""
        rule, sides = RULES[self.method], (self.classes.teacher.tokens, self.classes.student.tokens)
        answers = [learnt_answers(row) for row in (teacher, student)]
        texts = [[b"".join(side.surface(ids)).strip() for ids in own]
                 for side, own in zip(sides, answers, strict=True)]  # fmt: skip
        parts, starts = [], [np.cumsum([0, *map(len, own)]) for own in answers]
        for number, place in enumerate(_matches(*texts)):
            theirs = answers[0][place] if place != NONE else []
            found = pair_tokens(self.classes, theirs, answers[1][number], rule.wants)
            parts.append((found, int(starts[0][place]) if place != NONE else 0))
        return _joined(parts, int(starts[0][-1]), positions=rule.positions)

    def coverage(self, rows: Iterable[Row]) -> Coverage:
        """How much of some examples the teacher can supervise."""
        total = Coverage()
        for row in rows:
            own = self.examples.tokens(self._places[row["id"]])
            found, ids = (
                self.pair(own, row),
                np.array([i for answer in learnt_answers(own) for i in answer], dtype=np.int64),
            )
            used = found.position != NONE
            known = ids[ids < len(self.classes.teacher.shared)]
            shared = int(self.classes.teacher.shared[known].sum())
            others = int(((found.student_chunk != NONE) & ~used).sum())
            total += Coverage(len(used), int(used.sum()), others, shared, len(ids) - shared)
        return total

    def coverage_of(self, examples: EncodedExamples) -> Coverage:
        """How much of the student's examples the teacher can supervise, by a sample of them."""
        chosen = np.unique(np.linspace(0, len(examples) - 1, min(SAMPLE, len(examples))).astype(int))
        return self.coverage({"id": examples.ids[i], **examples.tokens(i)} for i in chosen)

    def alignment(self, batch: dict[str, Any], teacher_width: int, student_width: int) -> Alignment:
        """The alignment of a batch that `batch` has made, for heads of these widths."""
        place: Tensor = batch["targets"]
        key = (teacher_width, student_width, place.device)
        if key not in self._maps:
            maps = class_maps(self.classes, teacher_width, student_width)
            moved = (part.to(place.device) for part in (maps.teacher, maps.student, maps.shared))
            self._maps[key] = ClassMaps(maps.count, *moved)
        return Alignment(self._maps[key], **batch["alignment"], teacher_targets=batch["teacher"]["targets"])


def _matches(teacher: list[bytes], student: list[bytes]) -> list[int]:
    """For each of the student's answers the teacher's with the same text, in their order; the last go together."""
    found, after = [], 0
    for text in student[:-1]:
        place = next((i for i in range(after, len(teacher) - 1) if teacher[i] == text), NONE)
        after = place + 1 if place != NONE else after
        found.append(place)
    return [*found, len(teacher) - 1]


def _joined(parts: Sequence[tuple[Paired, int]], length: int, *, positions: bool) -> Paired:
    """The pairs of an example's answers, numbered through; each with where the teacher's answer begins."""
    places, own, other, count = [], [], np.full(length, NONE), 0
    for found, start in parts:
        used = (found.position != NONE) & positions
        places.append(np.where(used, found.position + start, NONE))
        own.append(np.where(found.student_chunk == NONE, NONE, found.student_chunk + count))
        mine = np.flatnonzero(found.teacher_chunk != NONE)
        other[mine + start] = found.teacher_chunk[mine] + count
        count = max([count, *(own[-1] + 1)])
    return Paired(np.concatenate(places), np.concatenate(own), other)


def _stacked(paired: Sequence[Paired]) -> dict[str, Tensor]:
    """The pairs of a batch, numbered through, as tensors."""
    parts: dict[str, list[np.ndarray[Any, Any]]] = {"position": [], "student_chunk": [], "teacher_chunk": []}
    start = count = 0
    for one in paired:
        parts["position"].append(np.where(one.position == NONE, NONE, one.position + start))
        for name in ("student_chunk", "teacher_chunk"):
            numbers = getattr(one, name)
            parts[name].append(np.where(numbers == NONE, NONE, numbers + count))
        start += len(one.teacher_chunk)
        count = max([count, *(parts["student_chunk"][-1] + 1)])
    nothing = np.zeros(0, dtype=np.int64)
    return {name: torch.from_numpy(np.concatenate([nothing, *values])) for name, values in parts.items()}


def _text_of(tokens: TokenBytes, ids: Sequence[int]) -> str:
    """What a model has written, up to where its bytes are no text."""
    written = tokens.spell(ids)
    try:
        return written.decode()
    except UnicodeDecodeError as error:
        return written[: error.start].decode()


def for_teacher(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as the teacher reads it: in its own tokens where `Reader.batch` has put them beside the student's."""
    return batch.get("teacher", batch)


def sums_told(alignment: dict[str, Tensor], mass: Tensor | None) -> list[Tensor]:
    """What is added up for the log over a batch: positions compared, other tokens by chunks, the teacher's mass."""
    used = alignment["position"] != NONE
    others = (alignment["student_chunk"] != NONE) & ~used
    return [used.sum(), others.sum(), torch.zeros((), device=used.device) if mass is None else mass.sum()]


def shares_told(sums: Sequence[float]) -> dict[str, float]:
    """What the log says of a teacher with another tokenizer.

    Args:
        sums: Of `sums_told`, each divided by all of the student's tokens.

    Returns:
        ``supervised``: the share of positions whose distributions were compared; ``by_chunks``: of others whose chunk's
        likelihood was; ``mass``: the teacher's probability of the student's tokens at the former, where there are any.
    """
    supervised, by_chunks, mass = sums
    return {"supervised": supervised, "by_chunks": by_chunks} | ({"mass": mass / supervised} if supervised else {})


def warn_of_coverage(coverage: Coverage) -> None:
    """Say where much of the student's text is not supervised, or much of the teacher's no text of the student's."""
    if coverage.supervised + coverage.by_chunks < ENOUGH_POSITIONS or (
        coverage.supervised and coverage.supervised < ENOUGH_POSITIONS
    ):
        also = f", and {coverage.by_chunks:.0%} more by the likelihood of chunks" if coverage.by_chunks else ""
        warn(
            logger,
            f"the teacher's tokenizer lets it supervise {coverage.supervised:.0%} of the student's tokens{also}: the "
            "two tokenizers cut these texts at different places.",
            ANOTHER,
        )
    if coverage.positions and coverage.shared_tokens < ENOUGH_MASS:  # chunks are the same bytes in any tokens
        warn(
            logger,
            f"{coverage.shared_tokens:.0%} of the teacher's own tokens in these texts are the student's, too: about as "
            "much of its probability lies on tokens that the student has. Of the others it tells how they begin.",
            ANOTHER,
        )


def warn_of_mass(mass: float) -> None:
    """Say where much of what the teacher says next is no token of the student's."""
    warn(
        logger,
        f"{mass:.0%} of the teacher's probability lies on tokens that the student has, too: of the others it tells how "
        "they begin.",
        ANOTHER,
    )
