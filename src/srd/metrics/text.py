"""Exact match, BLEU and chrF."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srd.metrics.common import FloatArray, as_list, check_lengths

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


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
    return float(any(answer == normalize_answer(reference) for reference in as_list(references)))


def exact_match_many(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> FloatArray:
    """Exact match of each prediction, 0 or 1: [N]. Raises ValueError where the lengths differ."""
    check_lengths(predictions, references)
    scores = (exact_match(text, expected) for text, expected in zip(predictions, references, strict=True))
    return np.fromiter(scores, dtype=np.float64, count=len(predictions))


@dataclass(frozen=True)
class CorpusScore:
    """A score of a whole corpus (0..1) with sacrebleu's signature, which says how it was computed."""

    score: float
    signature: str


def _reference_streams(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Turn the references of each example into sacrebleu's streams: every first one, every second one, ..."""
    lists = [as_list(expected) for expected in references]
    longest = max((len(expected) for expected in lists), default=1)
    # sacrebleu leaves out the None of an example that has fewer references; its annotations do not say so.
    streams: list[list[Any]] = [
        [expected[index] if index < len(expected) else None for expected in lists] for index in range(longest)
    ]
    return streams


def _corpus_score(metric: Any, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> CorpusScore:
    check_lengths(predictions, references)
    if not predictions:
        raise ValueError("no prediction to score")
    result = metric.corpus_score(list(predictions), _reference_streams(references))
    return CorpusScore(result.score / 100, str(metric.get_signature()))


def _sentence_scores(metric: Any, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> FloatArray:
    check_lengths(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return np.array([metric.sentence_score(text, list(as_list(expected))).score / 100 for text, expected in pairs])


def bleu(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, tokenize: str = "13a"
) -> CorpusScore:
    """Corpus BLEU by sacrebleu (Post 2018). ``tokenize`` names one of its tokenizers: 13a, zh, ja-mecab, ...

    Raises:
        ValueError: the lengths differ, or there is nothing to score.
    """
    from sacrebleu.metrics.bleu import BLEU

    return _corpus_score(BLEU(tokenize=tokenize), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> CorpusScore:
    """Corpus chrF2 (Popović 2015) by sacrebleu: character 6-grams, no word n-grams.

    Raises:
        ValueError: the lengths differ, or there is nothing to score.
    """
    from sacrebleu.metrics.chrf import CHRF

    return _corpus_score(CHRF(), predictions, references)


def sentence_bleu(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, tokenize: str = "13a"
) -> FloatArray:
    """BLEU of each prediction by itself, [N], for paired comparisons; their mean is not the corpus score.

    Orders of n-grams that a short text does not have are left out (sacrebleu's ``effective_order``).
    """
    from sacrebleu.metrics.bleu import BLEU

    return _sentence_scores(BLEU(tokenize=tokenize, effective_order=True), predictions, references)


def sentence_chrf(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> FloatArray:
    """Return chrF2 of each prediction by itself, [N], for paired comparisons."""
    from sacrebleu.metrics.chrf import CHRF

    return _sentence_scores(CHRF(), predictions, references)
