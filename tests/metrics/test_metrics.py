"""The metrics against their published implementations, by hand, and against naive versions."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from rouge_score import rouge_scorer

from srd.base.errors import UserError
from srd.metrics import rouge, statistics
from srd.metrics.rouge import rouge_l, rouge_l_many, rouge_n, rouge_n_many
from srd.metrics.statistics import paired_bootstrap, pass_at_k
from srd.metrics.text import bleu, chrf, exact_match, exact_match_many, normalize_answer, sentence_bleu, sentence_chrf

SCORER = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
WORDS = [
    *("running", "runs", "ran", "the", "cat's", "flies", "happily", "generalization", "1,000", "a"),
    *("naïve", "Straße", "İstanbul", "\u212a", "ﬁne", "U.S.A.", "_x_", "don't", "e-mail\ttabs\nlines", "漢"),
    *("emoji😀", "caresses", "ponies", "agreed", "feed", "dies", "skies", "relational"),
]


def random_text(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randrange(30)))


def test_rouge_equals_rouge_score() -> None:
    generator = random.Random(0)
    pairs = [(random_text(generator), random_text(generator)) for _ in range(300)]
    for prediction, reference in pairs:
        expected = SCORER.score(reference, prediction)
        assert abs(rouge_l(prediction, reference) - expected["rougeL"].fmeasure) < 1e-12
        assert abs(rouge_n(prediction, reference, 1) - expected["rouge1"].fmeasure) < 1e-12
        assert abs(rouge_n(prediction, reference, 2) - expected["rouge2"].fmeasure) < 1e-12


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("", "", 0.0),
        ("a", "", 0.0),
        ("!?", "!?", 0.0),
        ("Running fast", "run FAST!", 1.0),
        ("a b c d", "a x c", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        ("\ud800 word", "word", 1.0),
    ],
)
def test_rouge_l_by_hand(prediction: str, reference: str, score: float) -> None:
    assert rouge_l(prediction, reference) == pytest.approx(score, abs=1e-12)


def test_best_reference_counts() -> None:
    references = ["nothing in common", "the cat sat", "dog"]
    assert rouge_l("the cat sat", references) == 1.0
    assert rouge_n("the cat sat", references, 2) == 1.0
    assert exact_match("The cat sat.", references) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        rouge_l("text", [])


def test_many_equals_one_by_one_over_block_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "_ROUGE_BLOCK", 7)
    generator = random.Random(1)
    predictions = [random_text(generator) for _ in range(50)]
    references: list[str | list[str]] = [
        [random_text(generator) for _ in range(1 + index % 3)] if index % 2 else random_text(generator)
        for index in range(50)
    ]
    pairs = list(zip(predictions, references, strict=True))
    assert rouge_l_many(predictions, references).tolist() == [rouge_l(*pair) for pair in pairs]
    assert rouge_n_many(predictions, references, 2).tolist() == [rouge_n(*pair, 2) for pair in pairs]
    assert exact_match_many(predictions, references).tolist() == [exact_match(*pair) for pair in pairs]
    assert rouge_l_many([], []).shape == (0,)
    with pytest.raises(ValueError, match="50 predictions but 49"):
        rouge_l_many(predictions, references[1:])


def test_more_stems_at_once_than_there_are_characters_below_the_surrogates() -> None:
    words = [f"w{number}x" for number in range(72_000)]
    predictions = [" ".join(words[start : start + 90]) for start in range(0, len(words), 90)]
    references = [" ".join(words[start + 30 : start + 100]) for start in range(0, len(words), 90)]
    expected = [rouge_l(*pair) for pair in zip(predictions, references, strict=True)]
    assert rouge_l_many(predictions, references).tolist() == expected
    assert min(expected) > 0.5


def test_stem_table_is_emptied_when_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "_STEMS_KEPT", 3)
    text = "running jumping walking talking singing"
    assert rouge_l(text, "run jump walk talk sing") == 1.0
    assert len(rouge._stems) <= 3


def test_exact_match_keeps_articles_and_deletes_punctuation() -> None:
    assert normalize_answer("  The U.S.A.,\n is-big ") == "the usa isbig"
    assert exact_match("The answer", "answer") == 0.0
    assert exact_match("A-B!", "ab") == 1.0
    assert exact_match("«ab»", "ab") == 0.0  # only ASCII punctuation is deleted


def test_bleu_and_chrf_with_signatures() -> None:
    references: list[list[str]] = [["the cat sat on the mat"], ["hello there world", "hello my world"]]
    perfect = bleu(["the cat sat on the mat", "hello my world"], references)
    assert perfect.score == pytest.approx(1.0)
    assert "tok:13a" in perfect.signature and "version:" in perfect.signature
    # Four of five words, three of four bigrams, two of three trigrams, one of two 4-grams; equally long.
    by_hand = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert bleu(["a b c d x"], ["a b c d e"]).score == pytest.approx(by_hand)
    assert chrf(["abcdef"], ["abcdef"]).score == pytest.approx(1.0)
    assert "nc:6|nw:0" in chrf(["abcdef"], ["abcdef"]).signature
    assert sentence_bleu(["a b", "x"], ["a b", "y"]).tolist() == pytest.approx([1.0, 0.0])
    assert sentence_chrf(["a b", "x"], ["a b", "y"]).tolist() == pytest.approx([1.0, 0.0])
    with pytest.raises(ValueError, match="no prediction"):
        bleu([], [])


def test_pass_at_k_equals_the_average_over_all_choices() -> None:
    for n, k in itertools.product(range(1, 6), range(1, 6)):
        if k > n:
            continue
        for right in range(n + 1):
            choices = list(itertools.combinations([index < right for index in range(n)], k))
            share = np.mean([any(choice) for choice in choices])
            assert pass_at_k(n, right, k) == pytest.approx(share)
    assert pass_at_k([200, 200], [0, 200], 100).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("n", "c", "k"), [(1, 2, 1), (1, -1, 1), (2, 1, 3), (2, 1, 0)])
def test_pass_at_k_refuses(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"pass@k needs|must lie between"):
        pass_at_k(n, c, k)


def test_paired_bootstrap_covers_the_normal_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(0.5, 0.1, 400)
    second = first - generator.normal(0.02, 0.05, 400)
    difference, low, high = paired_bootstrap(first, second, seed=1)
    spread = 1.96 * (first - second).std() / np.sqrt(400)
    assert difference == pytest.approx((first - second).mean())
    assert (low, high) == pytest.approx((difference - spread, difference + spread), abs=6e-4)
    assert paired_bootstrap(first, second, seed=1) == (difference, low, high)
    opposite = paired_bootstrap(second, first, seed=1)
    assert opposite[0] == pytest.approx(-difference)
    monkeypatch.setattr(statistics, "_BOOTSTRAP_BLOCK", 1000)
    assert paired_bootstrap(first, second, seed=1) == pytest.approx((difference, low, high))


def test_paired_bootstrap_refuses_what_is_not_paired() -> None:
    with pytest.raises(ValueError, match="equally long"):
        paired_bootstrap([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("prediction", "references", "message"),
    [
        (None, "a", "prediction is None, a NoneType; expected text"),
        ("a", None, "reference is None, a NoneType"),
        ("a", ["b", 3], "reference is 3, a int"),
        ("a", b"b", "reference is b'b', a bytes"),
        ("a", [], "no reference"),
    ],
)
def test_rouge_l_takes_text(prediction: Any, references: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rouge_l(prediction, references)
    assert rouge_l("a whale", np.array(["a whale", "b"])) == rouge_l("a whale", ("b", "a whale")) == 1
