"""What two tokenizers have in common: classes of tokens, and the places where both cut a text.

**Classes** (prefix projection). A class is a byte string that is a token of both. A token belongs to the longest class
that its bytes begin with, or to a shorter one where the other tokenizer would write its text by beginning with that: it
is what both models can say next. Summing probabilities by class turns two distributions over different vocabularies
into two over the same classes, which any divergence compares; it is zero where those agree, and only there. The end of
an answer is a class of its own, by its role. Other control tokens, and ids that no token has, belong to none.

**Chunks**. Between two places where both tokenizers cut the same text lies a chunk: some tokens of the one, and some of
the other, that are the same bytes. Both models predict its first tokens from the same text before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srd.base.files import atomic_write, fingerprint, is_sealed, seal
from srd.models.tokenizers.token_bytes import TokenBytes, continuations, token_bytes
from srd.models.tokenizers.tokens import tokenizer_identity

END = b"\xffend"  # the class of the end of an answer; no text has this byte
NONE = -1  # no class, no position, no chunk
RULE = 1  # how classes are made: another number where another version of this file would make others

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Side:
    """One of two tokenizers.

    Attributes:
        tokens: The bytes of its tokens.
        classes: The class of each token ``[V]``, or `NONE`.
        exact: Whether a class is all of its token ``[V]``.
        shared: Whether the other tokenizer has the same token ``[V]``.
    """

    tokens: TokenBytes
    classes: Ints
    exact: Bools
    shared: Bools


KEPT = ("classes", "exact", "shared")  # of a side: what takes long to find out


@dataclass(frozen=True)
class Classes:
    """What the tokens of teacher and student have in common.

    Attributes:
        count: Classes.
        teacher: Their side of it.
        student: Their side of it.
    """

    count: int
    teacher: Side
    student: Side


@lru_cache(maxsize=4)
def prefix_classes(teacher: Any, student: Any) -> Classes:
    """The classes of two tokenizers' tokens, by their longest common prefixes.

    Raises:
        UserError: a tokenizer changes the texts that it reads.
    """
    sides = token_bytes(teacher), token_bytes(student)
    texts = set(sides[0].pieces) & set(sides[1].pieces)
    common = {text for text in texts if text}
    longest = [[_prefix(piece, common) for piece in side.pieces] for side in sides]
    refined = [
        _refined(longest[0], sides[0], student, longest[1]),
        _refined(longest[1], sides[1], teacher, longest[0]),
    ]
    return _numbered(sides, _in_both(*refined))


@lru_cache(maxsize=4)
def identical_classes(teacher: Any, student: Any) -> Classes:
    """The tokens that both have, each a class; all others are left out, as in distillation on a common vocabulary."""
    sides = token_bytes(teacher), token_bytes(student)
    common = {text for text in set(sides[0].pieces) & set(sides[1].pieces) if text}
    return _numbered(sides, [[piece if piece in common else None for piece in side.pieces] for side in sides])


Names = list[bytes | None]  # of the class of each token


def _prefix(piece: bytes | None, common: set[bytes]) -> bytes | None:
    """The longest beginning of a piece that is in common."""
    if piece is None or piece in common:  # so are most
        return piece
    return next((start for length in range(len(piece) - 1, 0, -1) if (start := piece[:length]) in common), None)


def _refined(names: Names, side: TokenBytes, other: Any, others: Names) -> Names:
    """The class of what the other tokenizer begins a token's text with, where that is shorter than its own."""
    texts = {i: text for i, piece in enumerate(side.pieces) if len(names[i] or b"") > 1 and (text := _text(piece))}
    found = list(names)
    for i, ids in zip(texts, continuations(other, list(texts.values())), strict=True):
        first, own = others[ids[0]] if ids else None, names[i]
        if first is not None and own is not None and len(first) < len(own) and own.startswith(first):
            found[i] = first
    return found


def _text(piece: bytes | None) -> str:
    """What a piece is as a text; nothing where it is a part of a character."""
    try:
        return (piece or b"").decode()
    except UnicodeDecodeError:
        return ""


def _in_both(teacher: Names, student: Names) -> list[Names]:
    """The same with only those classes that have tokens on both sides; tokens of others go to a shorter one."""
    while set(teacher) - {None} != set(student) - {None}:
        known = {name for name in set(teacher) & set(student) if name is not None}
        teacher, student = ([_prefix(name, known) for name in names] for names in (teacher, student))
    return [teacher, student]


def _numbered(sides: tuple[TokenBytes, TokenBytes], names: Sequence[Names]) -> Classes:
    known = sorted({name for side in names for name in side if name is not None})
    number = {name: i for i, name in enumerate([*known, END])}
    pieces = [set(side.pieces) for side in sides]
    made = []
    for place, (side, own) in enumerate(zip(sides, names, strict=True)):
        classes = np.array([NONE if name is None else number[name] for name in own], dtype=np.int64)
        ends = [i for i in side.ends if i < len(classes)]
        exact = np.array([name is not None and name == piece for name, piece in zip(own, side.pieces, strict=True)])
        shared = np.array([piece is not None and piece in pieces[1 - place] for piece in side.pieces])
        for values, value in ((classes, number[END]), (exact, True), (shared, True)):
            values[ends] = value
        made.append(Side(side, classes, exact, shared))
    return Classes(len(number), *made)


Make = Callable[[Any, Any], Classes]  # `prefix_classes` or `identical_classes`


def kept_classes(make: Make, teacher: Any, student: Any, folder: Path | None) -> Classes:
    """What ``make`` makes of two tokenizers, kept in a folder: each has to encode the other's whole vocabulary.

    Args:
        make: `prefix_classes` or `identical_classes`.
        teacher: A tokenizer.
        student: Another.
        folder: Where it is kept; None: nowhere.

    Raises:
        UserError: a tokenizer changes the texts that it reads.
    """
    if folder is None:
        return make(teacher, student)
    path = folder / f"{fingerprint(RULE, make.__name__, *map(tokenizer_identity, (teacher, student)))}.npz"
    sides = [token_bytes(tokenizer) for tokenizer in (teacher, student)]
    if is_sealed(path):  # there, and neither damaged nor edited
        with np.load(path, allow_pickle=False) as kept:
            made = [Side(side, *(kept[f"{name}_{i}"] for name in KEPT)) for i, side in enumerate(sides)]
            return Classes(int(kept["count"]), *made)
    found = make(teacher, student)
    arrays = {f"{name}_{i}": getattr(side, name) for i, side in enumerate((found.teacher, found.student))
              for name in KEPT}  # fmt: skip
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, count=np.array(found.count), **arrays)
    seal(path)
    return found


# -------------------------------------------------------------------------------------------------- cutting one text


@dataclass(frozen=True)
class Chunk:
    """Tokens that are the same bytes: first and behind the last of them, of the teacher and of the student."""

    teacher: tuple[int, int]
    student: tuple[int, int]


def chunks_of(teacher: Sequence[bytes], student: Sequence[bytes]) -> list[Chunk]:
    """Cut two tokenizations of one text wherever both cut it.

    A space that one tokenizer puts before a text does not count. Where the texts differ (one was cut, or changed in the
    middle), the stretch that differs belongs to no chunk.
    """
    pieces = [list(teacher), list(student)]
    if pieces[0] and pieces[1] and (spaces := [own[0][:1] == b" " for own in pieces])[0] != spaces[1]:
        wider = pieces[spaces.index(True)]
        wider[0] = wider[0][1:]
    texts = [b"".join(own) for own in pieces]
    ends = [np.cumsum([0, *map(len, own)]) for own in pieces]
    found: list[Chunk] = []
    for (start, stop), shift in _same(*texts):
        # Places are the student's; the teacher's are shifted where its text before them is longer or shorter.
        own = ends[1][(ends[1] >= start) & (ends[1] <= stop)]
        cuts = np.intersect1d(own, ends[0] - shift)
        places = [np.searchsorted(side, cuts + by, side="right") - 1 for side, by in zip(ends, (shift, 0), strict=True)]
        if start == 0 and len(cuts):  # tokens without bytes before the first cut belong to the first chunk
            for side in places:
                side[0] = 0
        found += [
            Chunk((int(t0), int(t1)), (int(s0), int(s1)))
            for t0, t1, s0, s1 in zip(places[0], places[0][1:], places[1], places[1][1:], strict=False)
        ]
    return found


def _same(teacher: bytes, student: bytes) -> list[tuple[tuple[int, int], int]]:
    """The stretches of the student's text that are the teacher's, too, and how far they lie further on in that one."""
    shorter = min(len(teacher), len(student))
    before = _common(teacher, student)
    found = [((0, before), 0)]
    if before < shorter and teacher.endswith(END) and student.endswith(END):
        behind = min(_common(teacher[::-1], student[::-1]), shorter - before)
        found.append(((len(student) - behind, len(student)), len(teacher) - len(student)))
    return found


def _common(left: bytes, right: bytes) -> int:
    """How many bytes two texts begin with alike."""
    shorter = min(len(left), len(right))
    a, b = (np.frombuffer(text[:shorter], dtype=np.uint8) for text in (left, right))
    differ = np.flatnonzero(a != b)
    return int(differ[0]) if len(differ) else shorter


@dataclass(frozen=True)
class Paired:
    """How an answer's tokens are supervised.

    Attributes:
        position: For each of the student's tokens the teacher's token whose distribution it is compared with, or
            `NONE`, ``[n]``.
        student_chunk: The number of the chunk whose likelihood is compared, or `NONE`, ``[n]``.
        teacher_chunk: The same for the teacher's tokens ``[m]``.
    """

    position: Ints
    student_chunk: Ints
    teacher_chunk: Ints


def pair_tokens(
    classes: Classes, teacher: Sequence[int], student: Sequence[int], wants: Callable[[bool, bool], bool]
) -> Paired:
    """Pair an answer's tokens: a position counts where both next tokens begin a chunk and are of one class.

    Args:
        classes: Of the two tokenizers.
        teacher: The teacher's token ids of the answer.
        student: The student's.
        wants: Whether a chunk's likelihood is compared, given whether its first tokens are compared by class, and
            whether that says all about it: one token of the student whose class is all of it.
    """
    position, chunk = np.full(len(student), NONE), np.full(len(student), NONE)
    other, number = np.full(len(teacher), NONE), 0
    sides = ((classes.teacher, teacher), (classes.student, student))
    own = [[END if i in side.tokens.ends else piece for i, piece in zip(ids, side.tokens.surface(ids), strict=True)]
           for side, ids in sides]  # fmt: skip
    for found in chunks_of(*own):
        (t0, t1), (s0, s1) = found.teacher, found.student
        if t1 == t0 or s1 == s0:
            continue
        kinds = [int(side.classes[i]) if i < len(side.classes) else NONE
                 for side, i in ((classes.teacher, teacher[t0]), (classes.student, student[s0]))]  # fmt: skip
        used = kinds[0] == kinds[1] != NONE
        position[s0] = t0 if used else NONE
        if wants(used, used and s1 - s0 == 1 and bool(classes.student.exact[student[s0]])):
            chunk[s0:s1], other[t0:t1] = number, number
            number += 1
    return Paired(position, chunk, other)
