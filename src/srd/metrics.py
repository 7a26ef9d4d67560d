"""Text metrics as pure functions: ROUGE, exact match, BLEU, chrF, pass@k and the paired bootstrap.

Every score is on the 0..1 scale; percentages belong to the output of the command line.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cpdist

from srd.errors import UserError
from srd.stemming import stem as stem_word

FloatArray = NDArray[np.float64]

# After lower-casing and ASCII encoding, every byte that is not a letter or a digit separates words.
_SEPARATORS_TO_SPACES = bytes(
    code if chr(code) in string.ascii_lowercase + string.digits else ord(" ") for code in range(256)
)
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The table of stems is emptied when it holds this many words (about 150 MB), so that a
# long-lived process stays small.
_STEMS_KEPT = 1 << 20
# Examples whose tokens are in memory together: few enough that their stems do not outnumber Unicode's characters.
_ROUGE_BLOCK = 1024
# Code points that stand for no character.
_FIRST_SURROGATE, _SURROGATES = 0xD800, 0x800
# Elements of one block of bootstrap indices (64-bit): 32 MB.
_BOOTSTRAP_BLOCK = 4_000_000


class _Stems(dict[bytes, str]):
    """The stem of every word seen so far. Text repeats its words, so nearly all are found at once."""

    def __missing__(self, word: bytes) -> str:
        if len(self) >= _STEMS_KEPT:
            self.clear()
        text = word.decode("ascii")
        # rouge-score leaves words of three characters and fewer alone.
        self[word] = stem = stem_word(text) if len(text) > 3 else text
        return stem


_stems = _Stems()


def _lower_ascii(text: str) -> bytes:
    # A character outside ASCII encodes to "?", a separator like any other: the same as rouge-score's pattern.
    return text.lower().encode("ascii", "replace")


def rouge_tokens(text: str) -> list[str]:
    """Split ``text`` into the tokens of rouge-score with ``use_stemmer=True``.

    Lower case, everything but a-z and 0-9 separates words, words over three characters are Porter-stemmed.
    """
    words = _lower_ascii(text).translate(_SEPARATORS_TO_SPACES).split()
    return list(map(_stems.__getitem__, words))


def _f_measure(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _as_list(references: str | Sequence[str]) -> Sequence[str]:
    if isinstance(references, str):
        return (references,)
    if not references:
        raise ValueError("no reference to score against: give at least one")
    return references


def _check_lengths(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} predictions but {len(second)} references: they must be one to one")


def _rouge_l_tokens(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return 0.0
    common = LCSseq.similarity(prediction, reference)
    return _f_measure(common / len(prediction), common / len(reference))


def rouge_l(prediction: str, references: str | Sequence[str]) -> float:
    """ROUGE-L F1 of ``prediction``, the same number as rouge-score's with ``use_stemmer=True``.

    With several references the best one counts. The longest common subsequence is rapidfuzz's bit-parallel
    one, on rouge-score's own tokens. Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of
    Summaries".

    Returns:
        A number in 0..1; 0 where either text has no token.

    Raises:
        UserError: there is no reference, or something is no text.
    """
    one = isinstance(references, str | bytes) or not isinstance(references, Iterable)
    texts: list[Any] = [references] if one else list(references)
    if not texts:
        raise UserError("rouge_l: there is no reference to score against. Give at least one.")
    for name, text in (("prediction", prediction), *(("reference", text) for text in texts)):
        if not isinstance(text, str):
            raise UserError(f"rouge_l: the {name} is {text!r}, a {type(text).__name__}; expected text.")
    tokens = rouge_tokens(prediction)
    return max(_rouge_l_tokens(tokens, rouge_tokens(reference)) for reference in texts)


def rouge_l_many(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> FloatArray:
    """ROUGE-L F1 of each prediction against its reference, or the best of its references: [N].

    Raises:
        ValueError: the lengths differ, or an example has no reference.
    """
    _check_lengths(predictions, references)
    scores = np.zeros(len(predictions))
    for start in range(0, len(predictions), _ROUGE_BLOCK):
        block = slice(start, start + _ROUGE_BLOCK)
        scores[block] = _rouge_l_block(predictions[block], references[block])
    return scores


def _rouge_l_block(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> FloatArray:
    lists = [_as_list(expected) for expected in references]
    counts = np.array([len(expected) for expected in lists])
    # One row for each pair of a prediction and one of its references: [pairs].
    coded = _coded([*predictions, *(text for expected in lists for text in expected)])
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


def _coded(texts: Sequence[str]) -> list[str]:
    """`rouge_tokens` of many texts, each token as one character that stands for its stem in all of these texts.

    No Python object is made for a token: words are told apart in Arrow, only different words are stemmed, and rapidfuzz
    compares strings at its best speed.
    """
    encoded = [_lower_ascii(text) for text in texts]
    text_ends = np.cumsum([len(text) + 1 for text in encoded])
    data = np.frombuffer(b" ".join(encoded).translate(_SEPARATORS_TO_SPACES), dtype=np.uint8)
    within = data != ord(" ")
    edges = np.flatnonzero(np.diff(within, prepend=False, append=False))  # words' beginnings and ends in turn
    starts, ends = edges[0::2], edges[1::2]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data[within])]
    words = pa.Array.from_buffers(pa.large_binary(), len(starts), buffers).dictionary_encode()
    stems = [_stems[word] for word in words.dictionary.to_pylist()]
    numbers = {stem: number for number, stem in enumerate(dict.fromkeys(stems))}
    codes = np.array([numbers[stem] for stem in stems], dtype=np.uint32)
    codes += np.uint32(_SURROGATES) * (codes >= _FIRST_SURROGATE)  # half characters, which no text has
    characters = codes[words.indices.to_numpy()].astype("<u4").tobytes().decode("utf-32-le")
    bounds = [0, *np.searchsorted(starts, text_ends).tolist()]
    return [characters[start:end] for start, end in itertools.pairwise(bounds)]


def _n_grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    tokens = rouge_tokens(text)
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def rouge_n(prediction: str, references: str | Sequence[str], n: int = 1) -> float:
    """ROUGE-n F1 (``n`` = 1 or 2, say) of ``prediction``, as rouge-score counts it with ``use_stemmer=True``.

    With several references the best one counts.

    Raises:
        ValueError: ``n`` is less than 1, or the list of references is empty.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ROUGE-n counts sequences of one token or more")
    predicted = _n_grams(prediction, n)
    best = 0.0
    for reference in _as_list(references):
        expected = _n_grams(reference, n)
        common = (predicted & expected).total()
        best = max(best, _f_measure(common / max(predicted.total(), 1), common / max(expected.total(), 1)))
    return best


def rouge_n_many(predictions: Sequence[str], references: Sequence[str | Sequence[str]], n: int = 1) -> FloatArray:
    """ROUGE-n F1 of each prediction: [N]. Raises ValueError where the lengths differ."""
    _check_lengths(predictions, references)
    scores = (rouge_n(text, expected, n) for text, expected in zip(predictions, references, strict=True))
    return np.fromiter(scores, dtype=np.float64, count=len(predictions))


def normalize_answer(text: str) -> str:
    """Lower the case, delete ASCII punctuation, and make each run of white space one space.

    This is the normalisation of the Super-NaturalInstructions evaluation, which MiniLLM's takes over: SQuAD
    v1.1's without its removal of articles. Punctuation is deleted, not replaced, so "a-b" becomes "ab".
    """
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


def exact_match(prediction: str, references: str | Sequence[str]) -> float:
    """1.0 where ``prediction`` equals one of the references after ``normalize_answer``, else 0.0.

    Raises:
        ValueError: the list of references is empty.
    """
    answer = normalize_answer(prediction)
    return float(any(answer == normalize_answer(reference) for reference in _as_list(references)))


def exact_match_many(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> FloatArray:
    """Exact match of each prediction, 0 or 1: [N]. Raises ValueError where the lengths differ."""
    _check_lengths(predictions, references)
    scores = (exact_match(text, expected) for text, expected in zip(predictions, references, strict=True))
    return np.fromiter(scores, dtype=np.float64, count=len(predictions))


@dataclass(frozen=True)
class CorpusScore:
    """A score of a whole corpus (0..1) with sacrebleu's signature, which says how it was computed."""

    score: float
    signature: str


def _reference_streams(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Turn the references of each example into sacrebleu's streams: every first one, every second one, ..."""
    lists = [_as_list(expected) for expected in references]
    longest = max((len(expected) for expected in lists), default=1)
    # sacrebleu leaves out the None of an example that has fewer references; its annotations do not say so.
    streams: list[list[Any]] = [
        [expected[index] if index < len(expected) else None for expected in lists] for index in range(longest)
    ]
    return streams


def bleu(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, tokenize: str = "13a"
) -> CorpusScore:
    """Corpus BLEU by sacrebleu (Post 2018). ``tokenize`` names one of its tokenizers: 13a, zh, ja-mecab, ...

    Raises:
        ValueError: the lengths differ, or there is nothing to score.
    """
    from sacrebleu.metrics.bleu import BLEU

    _check_lengths(predictions, references)
    if not predictions:
        raise ValueError("no prediction to score")
    metric = BLEU(tokenize=tokenize)
    result = metric.corpus_score(list(predictions), _reference_streams(references))
    return CorpusScore(result.score / 100, str(metric.get_signature()))


def chrf(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> CorpusScore:
    """Corpus chrF2 (Popović 2015) by sacrebleu: character 6-grams, no word n-grams.

    Raises:
        ValueError: the lengths differ, or there is nothing to score.
    """
    from sacrebleu.metrics.chrf import CHRF

    _check_lengths(predictions, references)
    if not predictions:
        raise ValueError("no prediction to score")
    metric = CHRF()
    result = metric.corpus_score(list(predictions), _reference_streams(references))
    return CorpusScore(result.score / 100, str(metric.get_signature()))


def sentence_bleu(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, tokenize: str = "13a"
) -> FloatArray:
    """BLEU of each prediction by itself, [N], for paired comparisons; their mean is not the corpus score.

    Orders of n-grams that a short text does not have are left out (sacrebleu's ``effective_order``).
    """
    from sacrebleu.metrics.bleu import BLEU

    _check_lengths(predictions, references)
    metric = BLEU(tokenize=tokenize, effective_order=True)
    pairs = zip(predictions, references, strict=True)
    return np.array([metric.sentence_score(text, list(_as_list(expected))).score / 100 for text, expected in pairs])


def sentence_chrf(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> FloatArray:
    """Return chrF2 of each prediction by itself, [N], for paired comparisons."""
    from sacrebleu.metrics.chrf import CHRF

    _check_lengths(predictions, references)
    metric = CHRF()
    pairs = zip(predictions, references, strict=True)
    return np.array([metric.sentence_score(text, list(_as_list(expected))).score / 100 for text, expected in pairs])


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> FloatArray:
    """Estimate, without bias, the chance that one of ``k`` samples is right: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code".

    Args:
        n: samples drawn for each problem, [N] or a number.
        c: right ones among them, [N] or a number.
        k: at most the smallest ``n``.

    Returns:
        The estimate for each problem, in the shape of ``n`` and ``c`` together.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    total, right = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64))
    if np.any((right < 0) | (right > total)):
        raise ValueError("c, the number of right samples, must lie between 0 and n")
    if k < 1 or np.any(total < k):
        raise ValueError(f"k is {k}: pass@k needs k >= 1 and at least k samples a problem")
    # C(n-c, k) / C(n, k) as a product of k factors: no factorial, so nothing overflows.
    draws = np.arange(k)
    factors = np.clip(total[..., None] - right[..., None] - draws, 0, None) / (total[..., None] - draws)
    return np.asarray(1.0 - factors.prod(axis=-1), dtype=np.float64)


def paired_bootstrap(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Compare two systems on the same examples by resampling the examples (Koehn 2004).

    Args:
        scores_a: the first system's score of each example, [N].
        scores_b: the second system's, [N], in the same order. Average over seeds first.
        samples: bootstrap resamples.
        seed: of the random generator; equal seeds give equal intervals.
        confidence: share of the resamples inside the interval.

    Returns:
        ``(difference, low, high)``: mean of a minus mean of b, and the percentile interval around it.

    Raises:
        ValueError: the arrays are empty, not one-dimensional, or of different lengths.
    """
    first, second = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"scores of shape {first.shape} and {second.shape}: give two equally long lists, one score an example"
        )
    return macro_bootstrap([[first - second]], [[None]], samples=samples, seed=seed, confidence=confidence)


def macro_bootstrap(
    differences: Sequence[Sequence[FloatArray]],
    asked: Sequence[Sequence[Hashable]],
    *,
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Compare two systems on several tasks, each with several trainings, by resampling what the difference averages.

    The difference is the mean over tasks of the mean over trainings of the mean over examples. Trainings are drawn
    first (all tasks of a training together), then examples within each task; the tasks are the ones that are meant and
    are not drawn. A training moves all its examples together, so it counts as one; the random numbers of an answer are
    the example's own, and come with it.

    Args:
        differences: ``[task][training]`` -> first system's scores minus the second's, [N] by example.
        asked: ``[task][training]`` -> what stands for the examples; trainings that were asked the same ones are
            resampled together.
        samples: bootstrap resamples.
        seed: of the random generator; equal seeds give equal intervals.
        confidence: share of the resamples inside the interval.

    Returns:
        ``(difference, low, high)``: the percentile interval holds the difference.
    """
    trainings = len(differences[0])
    difference = float(np.mean([np.mean([own.mean() for own in task]) for task in differences]))
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    # Blocks keep the index matrix small, so that 10,000 examples x 10,000 samples need 32 MB, not 800 MB.
    rows = max(1, _BOOTSTRAP_BLOCK // max(own.size for task in differences for own in task))
    for start in range(0, samples, rows):
        count = min(start + rows, samples) - start
        weights = np.ones((count, 1))
        if trainings > 1:
            drawn = generator.integers(trainings, size=(count, trainings))
            weights = (drawn[:, :, None] == np.arange(trainings)).mean(axis=1)  # [count, trainings]
        total = np.zeros(count)
        for task, keys in zip(differences, asked, strict=True):
            picks: dict[Hashable, Any] = {}
            for number, (own, key) in enumerate(zip(task, keys, strict=True)):
                if key not in picks:
                    picks[key] = generator.integers(own.size, size=(count, own.size))
                total += weights[:, number] * own[picks[key]].mean(axis=1)
        means[start : start + count] = total / len(differences)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return difference, min(float(low), difference), max(float(high), difference)  # rounding must not leave it outside
