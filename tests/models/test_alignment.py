"""Classes of two tokenizers' tokens, and the places where both cut a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from srd.models.tokenizers.alignment import (
    END,
    KEPT,
    NONE,
    Chunk,
    Classes,
    chunks_of,
    identical_classes,
    kept_classes,
    pair_tokens,
    prefix_classes,
)
from srd.models.tokenizers.token_bytes import continuations
from tests.models.test_token_bytes import KINDS, texts
from tests.tiny import sentencepiece_tokenizer, tiny_tokenizer


def merging(*merges: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with these merges, such as ``S a``, and ``<end>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(merge.split()) for merge in merges]
    vocab = {token: i for i, token in enumerate(["<end>", *alphabet, *dict.fromkeys(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def classes_by_token(side: Any) -> dict[bytes, int]:
    return {piece: int(number) for piece, number in zip(side.tokens.pieces, side.classes, strict=True) if piece}


def test_a_token_belongs_to_the_longest_common_beginning_that_the_other_writes_too() -> None:
    # The teacher has "Sam" but writes "S|ame"; the student has "Same" as one token.
    teacher, student = merging("a m", "am e", "S am"), merging("S a", "Sa m", "Sam e")
    classes = prefix_classes(teacher, student)
    own, other = classes_by_token(classes.student), classes_by_token(classes.teacher)
    assert own[b"Same"] == other[b"S"] != other[b"Sam"] == own[b"Sam"]
    assert other[b"am"] == other[b"ame"] == own[b"a"]
    ends = [side.classes[0] for side in (classes.teacher, classes.student)]
    assert ends[0] == ends[1] == classes.count - 1


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    f"{one} and {other}": (KINDS[one], KINDS[other])
    for one, other in [
        ("byte-level BPE", "SentencePiece BPE"),
        ("SentencePiece Unigram", "byte-level BPE with BOS"),
        ("SentencePiece BPE", "SentencePiece Unigram"),
        ("tekken", "SentencePiece BPE without a dummy prefix"),
    ]
}


@pytest.mark.parametrize("pair", PAIRS)
def test_every_class_has_tokens_on_both_sides_and_begins_each_of_them(pair: str) -> None:
    classes = prefix_classes(*(make() for make in PAIRS[pair]))
    everything = set(range(classes.count))
    names: dict[int, bytes] = {}
    for side in (classes.teacher, classes.student):
        assert set(side.classes) - {NONE} == everything
        assert all(side.classes[i] != NONE for i, piece in enumerate(side.tokens.pieces) if piece)
        names |= {int(side.classes[i]): piece for i, piece in enumerate(side.tokens.pieces) if side.exact[i] and piece}
    for side in (classes.teacher, classes.student):
        for piece, number in zip(side.tokens.pieces, side.classes, strict=True):
            assert not piece or piece.startswith(names[int(number)])


@pytest.mark.parametrize("pair", PAIRS)
def test_chunks_are_the_same_bytes_and_cover_the_text(pair: str) -> None:
    teacher, student = (make() for make in PAIRS[pair])
    classes, rows = prefix_classes(teacher, student), texts(60)
    for row, ids, own in zip(rows, continuations(teacher, rows), continuations(student, rows), strict=True):
        sides = (classes.teacher.tokens, classes.student.tokens)
        pieces = [side.surface(tokens) for side, tokens in zip(sides, (ids, own), strict=True)]
        chunks = chunks_of(*pieces)
        spelt = [[b"".join(pieces[side][slice(*span)]) for span in ((c.teacher, c.student)[side] for c in chunks)]
                 for side in (0, 1)]  # fmt: skip
        assert spelt[0] == spelt[1]
        assert b"".join(spelt[0]) == row.encode()


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ("S|ame| x", "Sam|e| x", [((0, 2), (0, 2)), ((2, 3), (2, 3))]),
        (" Hi| x", "Hi| x", [((0, 1), (0, 1)), ((1, 2), (1, 2))]),  # a space that one of them puts before
        ("ab|cd", "ab|c", [((0, 1), (0, 1))]),  # the student's answer was cut
        ("ab", "ab|cd", [((0, 1), (0, 1))]),
        ("a|X|b|#", "a|Y|b|#", [((0, 1), (0, 1)), ((2, 3), (2, 3)), ((3, 4), (3, 4))]),  # changed in the middle
        ("a|XX|b|#", "a|b|#", [((0, 1), (0, 1)), ((2, 3), (1, 2)), ((3, 4), (2, 3))]),
        ("a|X|b", "a|Y|b", [((0, 1), (0, 1))]),  # without an end nobody knows where they meet again
        ("", "a", []),
        ("é|#", "é|#", [((0, 1), (0, 1)), ((1, 2), (1, 2))]),
    ],
)
def test_texts_that_differ_are_aligned_where_they_agree(teacher: str, student: str, expected: list[Any]) -> None:
    pieces = [[END if piece == "#" else piece.encode() for piece in text.split("|") if text]
              for text in (teacher, student)]  # fmt: skip
    assert chunks_of(*pieces) == [Chunk(*spans) for spans in expected]


def paired(classes: Classes, teacher: Any, student: Any, text: str) -> tuple[list[int], list[int], list[int]]:
    ids = [[*continuations(side, [text])[0], side.eos_token_id] for side in (teacher, student)]
    found = pair_tokens(classes, *ids, lambda used, told: not told)
    return found.position.tolist(), found.student_chunk.tolist(), found.teacher_chunk.tolist()


def test_positions_count_where_both_tokens_are_of_one_class() -> None:
    teacher, student = merging("a m", "am e", "S am"), merging("S a", "Sa m", "o n", "on e")
    classes = prefix_classes(teacher, student)
    # S|ame and Sam|e begin alike, but differ in their classes; "one" is o|n|e for the teacher: class "o".
    assert paired(classes, teacher, student, "Same!") == ([NONE, NONE, 2, 3], [0, 0, NONE, NONE], [0, 0, NONE, NONE])
    assert paired(classes, teacher, student, "one!") == ([0, 3, 4], [0, NONE, NONE], [0, 0, 0, NONE, NONE])
    only = identical_classes(teacher, student)
    assert paired(only, teacher, student, "one!")[0] == [NONE, 3, 4]


def test_classes_of_one_tokenizer_are_its_tokens() -> None:
    one = tiny_tokenizer("llama")
    classes = prefix_classes(one, tiny_tokenizer("llama"))
    text = [i for i, piece in enumerate(classes.student.tokens.pieces) if piece]
    assert len(set(classes.student.classes[text])) == len(text) == classes.count - 1
    assert np.array_equal(classes.teacher.classes, classes.student.classes)
    assert classes.teacher.shared[text].all()


def test_ends_meet_by_their_role() -> None:
    classes = prefix_classes(tiny_tokenizer("qwen2"), sentencepiece_tokenizer())
    teacher, student = tiny_tokenizer("qwen2"), sentencepiece_tokenizer()
    end = classes.count - 1
    assert classes.teacher.classes[teacher.eos_token_id] == classes.student.classes[student.eos_token_id] == end
    others = [teacher.convert_tokens_to_ids("<|im_start|>"), teacher.pad_token_id]
    assert (classes.teacher.classes[others] == NONE).all()


def test_classes_are_kept_and_made_again_where_the_file_is_damaged(tmp_path: Path) -> None:
    made: list[str] = []

    def prefix(teacher: Any, student: Any) -> Classes:
        made.append("made")
        return prefix_classes(teacher, student)

    def arrays(classes: Classes) -> list[Any]:
        sides = (classes.teacher, classes.student)
        return [classes.count, *(getattr(side, name).tolist() for side in sides for name in KEPT)]

    pair = tiny_tokenizer("qwen2"), sentencepiece_tokenizer()
    first = kept_classes(prefix, *pair, tmp_path)
    (own,) = tmp_path.glob("*.npz")
    assert arrays(kept_classes(prefix, *pair, tmp_path)) == arrays(first) and len(made) == 1
    kept_classes(prefix, *reversed(pair), tmp_path)
    other = tiny_tokenizer("qwen2")
    other.backend_tokenizer.model = models.BPE(other.get_vocab(), [])  # the same tokens, but it writes others
    kept_classes(prefix, other, pair[1], tmp_path)
    assert len(made) == 3

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:100])

    def flip(path: Path) -> None:  # which method its first part is compressed by
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x01\x02") + 10] ^= 64
        path.write_bytes(data)

    def edit(path: Path) -> None:
        with np.load(path) as kept:
            arrays = dict(kept)
        np.savez(path, **{**arrays, "count": np.array(3)})

    for count, damage in enumerate((cut, flip, edit), 4):
        damage(own)
        assert arrays(kept_classes(prefix, *pair, tmp_path)) == arrays(first) and len(made) == count, damage
    assert kept_classes(prefix, *pair, None).count == first.count
