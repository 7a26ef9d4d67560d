"""Words in every script: an extension of rouge-score's tokens, which are made of a-z and 0-9 alone.

Where a script divides words by spaces (Cyrillic, Arabic, Devanagari, Hangul, …) what stands between them is a word;
where it does not (Han, kana, Thai, …) every character is one. Text without a letter of such a script has rouge-score's
own tokens, so its scores are the published ones to the last bit, whichever way a data set is read.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal

from srd.base.errors import UserError

#: How a data set's texts become words: by rouge-score's rule, or by the one of this file.
Words = Literal["rouge-score", "unicode"]
PUBLISHED: Words = "rouge-score"
EXTENDED: Words = "unicode"
BY_SCRIPT = (
    "the references are in a script that rouge-score's words (a-z, 0-9) do not cover: ROUGE counts words by script "
    "(rouge_words: unicode), which does not compare with published numbers."
)
COMPARE_WITHIN = "Compare these scores with one another only; nothing else needs to be done."

# The share of references that are mostly unseen by rouge-score from which on a data set is read by script. Some rows in
# another script do not make a published benchmark another one.
ENOUGH = 0.05
# How the names of Chinese characters begin, and of what Japanese writes among them.
HAN = ("CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "BOPOMOFO ")
# How the names of characters begin whose scripts put no space between words (Unicode, annex 14: no break but by a
# dictionary, or anywhere).
UNSPACED = (
    *HAN, "YI ", "NUSHU ", "TANGUT ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ", "NEW TAI ", "AHOM ", "JAVANESE ",
    "BALINESE ",
)  # fmt: skip
# Characters that are there or not in the same word: accents of stress, vowel points, forms of emoji, lengthened lines.
WITHOUT_MEANING = (
    "COMBINING ", "VARIATION SELECTOR", "HEBREW POINT ", "HEBREW ACCENT ", "ARABIC TATWEEL", "ARABIC FATHA",
    "ARABIC DAMMA", "ARABIC KASRA", "ARABIC SHADDA", "ARABIC SUKUN", "ARABIC LETTER SUPERSCRIPT ALEF",
)  # fmt: skip
# Letters of Latin script, which rouge-score either sees or takes for a separator, and signs that are letters by name.
LATIN = ("LATIN ", "MODIFIER ")
ZERO_WIDTH_SPACE = "\u200b"
# Where a letter of another script may be: behind the Latin letters, not among punctuation and symbols. It is quick.
_BEYOND_LATIN = re.compile("[^\x00-\u036f\u1e00-\u1eff\u2000-\u2bff]")
_SEEN = re.compile("[a-z0-9]+")
_ONE_SCRIPT = re.compile(r"[a-z0-9]+|[^a-z0-9 ]+")


class _Spelling(dict[int, str]):
    """What stands for each character: itself, itself between spaces, a space, or nothing; for ``str.translate``."""

    def __missing__(self, code: int) -> str:
        self[code] = spelling = _spelling(chr(code))
        return spelling


def _spelling(character: str) -> str:
    name, kind = unicodedata.name(character, ""), unicodedata.category(character)
    if character.isascii():
        return character if character.isalnum() else " "
    if (kind == "Cf" and character != ZERO_WIDTH_SPACE) or name.startswith(WITHOUT_MEANING):
        return ""
    if kind[0] not in "LMN" or name.startswith(LATIN):
        return " "
    if kind == "Nd":
        return str(unicodedata.digit(character))
    return f" {character} " if name.startswith(UNSPACED) else character


_spellings = _Spelling()


class _Apart(dict[int, str]):
    """Each character as it is, behind a space where it is a letter of a script without spaces; likewise."""

    def __missing__(self, code: int) -> str:
        letter, name = chr(code), unicodedata.name(chr(code), "")
        self[code] = apart = f" {letter}" if letter.isalpha() and name.startswith(UNSPACED) else letter
        return apart


_apart = _Apart()


def pieces(text: str) -> list[str]:
    """A text in pieces as they stand there: at spaces, and where a script puts none before each of its letters.

    >>> pieces("在2024年, Москва!")
    ['在2024', '年,', 'Москва!']
    """
    return (text if text.isascii() else text.translate(_apart)).split()


def places(text: str) -> list[tuple[int, int]]:
    """Where each of the `pieces` of a text begins and ends."""
    found, end = [], 0
    for piece in pieces(text):
        start = text.index(piece, end)
        found.append((start, end := start + len(piece)))
    return found


def _spelled(text: str) -> str:
    # NFKC makes one of wide and narrow, composed and decomposed, initial and final forms.
    return unicodedata.normalize("NFKC", text).lower().translate(_spellings)


@cache
def _is_foreign(character: str) -> bool:
    """Whether a character belongs to a word that rouge-score does not see."""
    spelled = _spelled(character).strip()
    return bool(spelled) and (not spelled.isascii() or unicodedata.category(character) == "Nd")


def has_other_script(text: str) -> bool:
    """Whether a text has a letter or digit of a script other than Latin."""
    return not text.isascii() and any(_is_foreign(match[0]) for match in _BEYOND_LATIN.finditer(text))


@cache
def _script(letter: str) -> str:
    """The script of a letter, by its name; nothing for what is no letter."""
    name = unicodedata.name(letter, "") if letter.isalpha() else ""
    return "" if name.startswith("MODIFIER ") else "Han" if name.startswith(HAN) else name.partition(" ")[0].title()


def script_of(text: str) -> str:
    """The script that most words of a text are of, one letter being one without spaces; nothing where it has none.

    >>> script_of("Москва is Moscow’s name in Москва"), script_of("用list存放东西"), script_of("2 + 2 = 4")
    ('Latin', 'Han', '')
    """
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else ""
    words = pieces(unicodedata.normalize("NFKC", text))
    counts = Counter(next(filter(None, map(_script, word)), "") for word in words)
    del counts[""]
    return min(counts, key=lambda script: (-counts[script], script), default="")


def spaced(text: str) -> str:
    """A text in lower case with one space between words, each of one kind: of a-z and 0-9, or of other scripts.

    >>> spaced("在2024年, Москва!")
    '在 2024 年 москва'
    """
    return " ".join(_ONE_SCRIPT.findall(_spelled(text)))


def _is_unseen(text: str) -> bool:
    """Whether rouge-score sees at most half of a text's words."""
    if not has_other_script(text):
        return False
    return 2 * len(_SEEN.findall(text.lower())) <= len(spaced(text).split())


def choose_words(references: Iterable[str | Sequence[str]], count: int | None = None) -> Words:
    """How the texts of a data set become words, from its references alone, so that it is the same for every model.

    Args:
        references: Of each example, one text or several.
        count: How many texts there are, where ``references`` cannot be gone through twice.

    Returns:
        ``"unicode"`` where at least one text in twenty consists mostly of words that rouge-score does not see.
    """
    if count is None:
        references = list(references)
        count = sum(1 if isinstance(each, str) else len(each) for each in references)
    unseen = 0
    for each in references:
        unseen += sum(map(_is_unseen, (each,) if isinstance(each, str) else each))
        if unseen and unseen >= ENOUGH * count:
            return EXTENDED
    return PUBLISHED


def words_note(words: Words) -> dict[str, str]:
    """What is written down beside ROUGE that is not the published one: ``{"rouge_words": "unicode"}``, else nothing."""
    return {} if words == PUBLISHED else {"rouge_words": words}


def check_words(words: str) -> None:
    """Refuse another way than the two that there are."""
    if words not in (PUBLISHED, EXTENDED):
        raise UserError(f"words is {words!r}; expected {PUBLISHED!r}, {EXTENDED!r} or None")
