"""The stemmer against NLTK's, which rouge-score uses."""

from __future__ import annotations

import itertools
import random

import pytest
from nltk.stem.porter import PorterStemmer

from srd.metrics.stem import DOUBLE_SUFFIXES, IRREGULAR, LAST_SUFFIXES, SINGLE_SUFFIXES, stem

OTHER_ENDINGS = ("s", "ies", "sses", "ss", "ed", "eed", "ied", "ing", "y", "e", "ll", "ly", "tt", "zz", "ying", "ion")
ENDINGS = (*DOUBLE_SUFFIXES, *SINGLE_SUFFIXES, *LAST_SUFFIXES, *OTHER_ENDINGS)


def test_equals_nltk_on_every_ending_and_short_word() -> None:
    generator = random.Random(0)
    words = {"".join(letters) for length in (1, 2, 3, 4) for letters in itertools.product("aytlse", repeat=length)}
    for first, second in itertools.product(ENDINGS, ("", *ENDINGS)):
        beginning = "".join(generator.choices("abceilostyzu0nwx", k=generator.randrange(6)))
        words.add(beginning + first + second)
    words.update(IRREGULAR)
    stemmer = PorterStemmer()
    assert {word: stem(word) for word in words} == {word: stemmer.stem(word) for word in words}


@pytest.mark.parametrize(
    ("word", "expected"),
    [("caresses", "caress"), ("hopping", "hop"), ("relational", "relat"), ("happy", "happi"), ("dying", "die")],
)
def test_known_stems(word: str, expected: str) -> None:
    assert stem(word) == expected
