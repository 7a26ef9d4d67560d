"""ROUGE-L and ROUGE-n: rouge-score's numbers with stemming, to the last bit, a hundred times as fast.

``words`` says how texts become tokens: ``"rouge-score"``, ``"unicode"`` (see `srd.metrics.scripts`), or None, where the
references that are given decide. Whoever scores a data set in several pieces chooses once, by `choose_words`.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cpdist

from srd.base.errors import UserError
from srd.metrics.common import FloatArray, as_list, check_lengths
from srd.metrics.scripts import EXTENDED, PUBLISHED, Words, check_words, choose_words, has_other_script, spaced
from srd.metrics.stem import stem as stem_word

# After lower-casing and encoding, every ASCII byte that is not a letter or a digit separates words.
_SEPARATORS_TO_SPACES = bytes(
    code if code >= 128 or chr(code) in string.ascii_lowercase + string.digits else ord(" ") for code in range(256)
)
# The table of stems is emptied when it holds this many words (about 150 MB), so that a
# long-lived process stays small.
_STEMS_KEPT = 1 << 20
# Examples whose tokens are in memory together: few enough that their stems do not outnumber Unicode's characters.
_ROUGE_BLOCK = 1024
# Code points that stand for no character.
_FIRST_SURROGATE, _SURROGATES = 0xD800, 0x800


class _Stems(dict[bytes, str]):
    """The stem of every word seen so far. Text repeats its words, so nearly all are found at once."""

    def __missing__(self, word: bytes) -> str:
        if len(self) >= _STEMS_KEPT:
            self.clear()
        text = word.decode("utf-8")
        # rouge-score leaves words of three characters and fewer alone; the stemmer is English.
        self[word] = stem = stem_word(text) if len(text) > 3 and text.isascii() else text
        return stem


_stems = _Stems()


def _lower_ascii(text: str) -> bytes:
    # A character outside ASCII encodes to "?", a separator like any other: the same as rouge-score's pattern.
    return text.lower().encode("ascii", "replace")


def _lower_unicode(text: str) -> bytes:
    # Of other scripts only words are left, beyond ASCII in every byte.
    return spaced(text).encode("utf-8") if has_other_script(text) else _lower_ascii(text)


_ENCODERS: dict[str, Callable[[str], bytes]] = {PUBLISHED: _lower_ascii, EXTENDED: _lower_unicode}


def _chosen(words: Words | None, references: Sequence[str | Sequence[str]]) -> Words:
    """The way that is asked for, or the one that the references ask for."""
    if words is None:
        return choose_words(references)
    check_words(words)
    return words


def rouge_tokens(text: str, words: Words = PUBLISHED) -> list[str]:
    """Split ``text`` into the tokens of rouge-score with ``use_stemmer=True``.

    Lower case, everything but a-z and 0-9 separates words, words over three characters are Porter-stemmed. With
    ``words="unicode"`` words of other scripts are tokens, too.
    """
    return list(map(_stems.__getitem__, _ENCODERS[words](text).translate(_SEPARATORS_TO_SPACES).split()))


def _f_measure(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _rouge_l_tokens(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return 0.0
    common = LCSseq.similarity(prediction, reference)
    return _f_measure(common / len(prediction), common / len(reference))


def rouge_l(prediction: str, references: str | Sequence[str], *, words: Words | None = None) -> float:
    """ROUGE-L F1 of ``prediction``, the same number as rouge-score's with ``use_stemmer=True``.

    With several references the best one counts. The longest common subsequence is rapidfuzz's bit-parallel
    one, on rouge-score's own tokens. Where the references consist mostly of other scripts than Latin, in which
    rouge-score sees nothing, their words count too. Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of
    Summaries".

    Args:
        prediction: Text.
        references: One text or several.
        words: How texts become tokens: ``"rouge-score"`` or ``"unicode"``; None: as the references ask for.

    Returns:
        A number in 0..1; 0 where either text has no token.

    Raises:
        UserError: there is no reference, or something is no text.

    >>> rouge_l("the whale sings", ["a whale sings", "it sings"])
    0.6666666666666666
    >>> rouge_l("我爱北京", "我爱上海")
    0.5
    """
    one = isinstance(references, str | bytes) or not isinstance(references, Iterable)
    texts: list[Any] = [references] if one else list(references)
    if not texts:
        raise UserError("rouge_l: there is no reference to score against. Give at least one.")
    for name, text in (("prediction", prediction), *(("reference", text) for text in texts)):
        if not isinstance(text, str):
            raise UserError(f"rouge_l: the {name} is {text!r}, a {type(text).__name__}; expected text.")
    words = _chosen(words, texts)
    tokens = rouge_tokens(prediction, words)
    return max(_rouge_l_tokens(tokens, rouge_tokens(reference, words)) for reference in texts)


def rouge_l_many(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], words: Words | None = None
) -> FloatArray:
    """ROUGE-L F1 of each prediction against its reference, or the best of its references: [N].

    Raises:
        ValueError: the lengths differ, or an example has no reference.
    """
    check_lengths(predictions, references)
    words = _chosen(words, references)
    scores = np.zeros(len(predictions))
    for start in range(0, len(predictions), _ROUGE_BLOCK):
        block = slice(start, start + _ROUGE_BLOCK)
        scores[block] = _rouge_l_block(predictions[block], references[block], words)
    return scores


def _rouge_l_block(predictions: Sequence[str], references: Sequence[str | Sequence[str]], words: Words) -> FloatArray:
    lists = [as_list(expected) for expected in references]
    counts = np.array([len(expected) for expected in lists])
    # One row for each pair of a prediction and one of its references: [pairs].
    coded = _coded([*predictions, *(text for expected in lists for text in expected)], words)
    expected_codes = coded[len(predictions) :]
    predicted_codes = [
        text for text, count in zip(coded[: len(predictions)], counts, strict=True) for _ in range(count)
    ]
    common = cpdist(predicted_codes, expected_codes, scorer=LCSseq.similarity, dtype=np.int64)
    # An empty text has nothing in common with any: dividing by 1 instead of 0 leaves its score 0.
    precision = common / np.array([len(tokens) or 1 for tokens in predicted_codes])
    recall = common / np.array([len(tokens) or 1 for tokens in expected_codes])
    total = precision + recall
    scores = 2 * precision * recall / np.where(total > 0, total, 1.0)
    # Rows of one prediction stand together, so the best of them is a reduction of consecutive rows.
    return np.asarray(np.maximum.reduceat(scores, np.cumsum(counts) - counts), dtype=np.float64)


def _coded(texts: Sequence[str], words: Words) -> list[str]:
    """`rouge_tokens` of many texts, each token as one character that stands for its stem in all of these texts.

    No Python object is made for a token: words are told apart in Arrow, only different words are stemmed, and rapidfuzz
    compares strings at its best speed.
    """
    encoded = list(map(_ENCODERS[words], texts))
    text_ends = np.cumsum([len(text) + 1 for text in encoded])
    data = np.frombuffer(b" ".join(encoded).translate(_SEPARATORS_TO_SPACES), dtype=np.uint8)
    within = data != ord(" ")
    edges = np.flatnonzero(np.diff(within, prepend=False, append=False))  # words' beginnings and ends in turn
    starts, ends = edges[0::2], edges[1::2]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data[within])]
    found = pa.Array.from_buffers(pa.large_binary(), len(starts), buffers).dictionary_encode()
    stems = [_stems[word] for word in found.dictionary.to_pylist()]
    numbers = {stem: number for number, stem in enumerate(dict.fromkeys(stems))}
    codes = np.array([numbers[stem] for stem in stems], dtype=np.uint32)
    codes += np.uint32(_SURROGATES) * (codes >= _FIRST_SURROGATE)  # half characters, which no text has
    characters = codes[found.indices.to_numpy()].astype("<u4").tobytes().decode("utf-32-le")
    bounds = [0, *np.searchsorted(starts, text_ends).tolist()]
    return [characters[start:end] for start, end in itertools.pairwise(bounds)]


def _n_grams(text: str, n: int, words: Words) -> Counter[tuple[str, ...]]:
    tokens = rouge_tokens(text, words)
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def rouge_n(prediction: str, references: str | Sequence[str], n: int = 1, words: Words | None = None) -> float:
    """ROUGE-n F1 (``n`` = 1 or 2, say) of ``prediction``, as rouge-score counts it with ``use_stemmer=True``.

    With several references the best one counts.

    Raises:
        ValueError: ``n`` is less than 1, or the list of references is empty.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ROUGE-n counts sequences of one token or more")
    words = _chosen(words, as_list(references))
    predicted = _n_grams(prediction, n, words)
    best = 0.0
    for reference in as_list(references):
        expected = _n_grams(reference, n, words)
        common = (predicted & expected).total()
        best = max(best, _f_measure(common / max(predicted.total(), 1), common / max(expected.total(), 1)))
    return best


def rouge_n_many(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], n: int = 1, words: Words | None = None
) -> FloatArray:
    """ROUGE-n F1 of each prediction: [N]. Raises ValueError where the lengths differ."""
    check_lengths(predictions, references)
    words = _chosen(words, references)
    scores = (rouge_n(text, expected, n, words) for text, expected in zip(predictions, references, strict=True))
    return np.fromiter(scores, dtype=np.float64, count=len(predictions))
