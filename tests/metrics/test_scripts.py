"""Words in every script: what ROUGE sees of them, when a data set is read so, and that Latin text is never changed."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import pytest
from datasets import Dataset

from srd.base.errors import UserError
from srd.curation import reflection
from srd.metrics.rouge import rouge_l, rouge_l_many, rouge_n, rouge_n_many, rouge_tokens
from srd.metrics.scripts import choose_words

# Prediction, reference, and the score by hand: twice the common words over all words.
BY_HAND = {
    "Chinese": ("我爱北京。", "我爱上海", 4 / 8),
    "Chinese with numbers": ("在2024年", "在 2024 年！", 1),
    "Japanese": ("東京に行きました", "東京へ行きます", 2 * 5 / 15),
    "half-width kana": ("ｶﾞｷﾞ", "ガギ", 1),
    "wide letters": ("ＡＩは楽しい", "AIは楽しい", 1),
    "Thai": ("กิน", "กิ", 2 * 2 / 5),
    "Korean": ("나는 학교에 갔다", "나는 집에 갔다", 4 / 6),
    "Korean, decomposed": (unicodedata.normalize("NFD", "나는 학교에 갔다"), "나는 학교에 갔다.", 1),
    "Korean behind Latin": ("iPhones을 샀다", "iPhone 을 샀다", 1),
    "Hindi": ("वह घर गया था।", "वह घर आया था", 6 / 8),
    "Hindi digits": ("१२ घर", "12 घर", 1),
    "Arabic": ("ذهب الولد إلى المدرسة", "ذهب الولد إلى البيت", 6 / 8),
    "Arabic, lengthened": ("الكـــتاب", "الكتاب", 1),
    "Arabic with vowels": ("جَلَسَ القِطُّ", "جلس القط", 1),
    "Hebrew with points": ("שָׁלוֹם עוֹלָם", "שלום עולם", 1),
    "Persian with a joiner": ("می\u200cخواهم بروم", "میخواهم بروم", 1),
    "Hebrew": ("הילד הלך הביתה", "הילד הלך", 4 / 5),
    "Russian": ("Он ПОШЁЛ домой", "он пошёл в школу.", 4 / 7),
    "Russian with stress": ("за\u0301мок", "замок", 1),
    "Greek": ("Η ΓΆΤΑ κοιμάται", "η γάτα τρέχει", 4 / 6),
    "Georgian": ("კატა სძინავს", "კატა", 2 / 3),
    "Tibetan syllables": ("བཀྲ་ཤིས", "བཀྲ་", 2 / 3),
    "emoji are no words": ("❤️ 好", "好 😀", 1),
    "separators of Thai": ("กิน\u200bข้าว", "กินข้าว", 1),
}


@pytest.mark.parametrize("script", BY_HAND)
def test_by_hand(script: str) -> None:
    prediction, reference, score = BY_HAND[script]
    assert rouge_l(prediction, reference) == pytest.approx(score)
    assert rouge_l_many([prediction], [[reference]]).tolist() == [rouge_l(prediction, [reference])]
    assert rouge_n(prediction, reference) >= rouge_l(prediction, reference)


LATIN = [
    *("naïve", "café", "Straße", "İstanbul", "\u212a", "ﬁne", "x²", "½", "µ", "5", "°", "–", "“quoted”", "e\u0301"),
    *("1,000", "running", "Việt", "Łódź", "😀❤️", "ʻOkina"),
]


def test_latin_text_is_read_alike_in_every_data_set() -> None:
    generator = random.Random(0)
    texts = [" ".join(generator.choices(LATIN, k=12)) for _ in range(60)]
    assert all(rouge_tokens(text, "unicode") == rouge_tokens(text) for text in texts)
    halves = texts[:30], texts[30:]
    assert rouge_l_many(*halves, "unicode").tolist() == rouge_l_many(*halves, "rouge-score").tolist()
    assert choose_words(texts) == "rouge-score"


ENGLISH, RUSSIAN, MIXED = "the angle α is 30 degrees", "это угол", "Paris (巴黎) is big"


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ([], "rouge-score"),
        (["", "…", "😀"], "rouge-score"),
        ([ENGLISH] * 9, "rouge-score"),
        ([MIXED] * 9, "rouge-score"),
        ([ENGLISH] * 99 + [RUSSIAN], "rouge-score"),
        ([ENGLISH] * 19 + [RUSSIAN], "unicode"),
        ([[ENGLISH, ENGLISH]] * 10 + [[RUSSIAN]], "rouge-score"),
        ([[ENGLISH, RUSSIAN]] * 10, "unicode"),
        (["١٢٣"] * 3, "unicode"),
    ],
)
def test_a_data_set_is_read_by_its_references(references: list[Any], words: str) -> None:
    assert choose_words(references) == words
    assert choose_words(references[::-1]) == words  # whatever the order
    examples = Dataset.from_dict({"references": [[each] if isinstance(each, str) else each for each in references]})
    assert not references or reflection.words_of(examples) == words


def test_one_choice_for_all_rows_given() -> None:
    """A row in Latin script counts the same beside others; the others count only where the data set asks for it."""
    predictions, references = ["α one", "это угол"], [ENGLISH, RUSSIAN]
    both = rouge_l_many(predictions, references)
    assert both.tolist() == [rouge_l(*pair, words="unicode") for pair in zip(predictions, references, strict=True)]
    assert both[0] > rouge_l_many(predictions, references, "rouge-score")[0] == rouge_l(predictions[0], ENGLISH) == 0
    assert rouge_n_many(predictions, references, 1, "rouge-score").tolist() == [0, 0]
    with pytest.raises(UserError, match="words is 'latin'; expected 'rouge-score', 'unicode' or None"):
        rouge_l("a", "a", words="latin")  # type: ignore[arg-type]
