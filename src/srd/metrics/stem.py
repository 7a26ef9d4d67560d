"""The Porter stemmer that rouge-score uses: Porter's 1980 algorithm with the extensions of NLTK.

It is written here because importing NLTK takes a second, and because this one is several times as fast. The tests
compare the two on every ending there is.
"""

from __future__ import annotations

# Words that the rules would get wrong, in NLTK's choice.
IRREGULAR = {
    "skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news", "howe": "howe",
    "inning": "inning", "innings": "inning", "outing": "outing", "outings": "outing", "canning": "canning",
    "cannings": "canning", "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip
# Step 2 and 3: a suffix, and what it becomes where the stem before it has a measure over 0. A longer suffix stands
# before the shorter one that it ends with: the first one that fits decides, whether or not its stem is long enough.
DOUBLE_SUFFIXES = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble",
    "fulli": "ful", "logi": "log",
}  # fmt: skip
SINGLE_SUFFIXES = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
# Step 4: dropped where the stem has a measure over 1; "ion" only after s or t.
LAST_SUFFIXES = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism"),
    *("ate", "iti", "ous", "ive", "ize"),
)
# All that a rule could apply to; str.endswith takes a tuple, so most words skip a step with one call.
_DOUBLE, _SINGLE = tuple(DOUBLE_SUFFIXES), tuple(SINGLE_SUFFIXES)
_KINDS = str.maketrans({letter: "v" if letter in "aeiou" else "c" for letter in "abcdefghijklmnopqrstuvwxz0123456789"})


def stem(word: str) -> str:
    """Return the stem of a lower-case word of a-z and 0-9; words of one or two characters stay as they are."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _final_y(_past_and_progressive(_plural(word)))
    word = _double_suffix(word)
    if word.endswith(_SINGLE):
        word = _replace_first(word, SINGLE_SUFFIXES)
    return _final_e_and_l(_last_suffix(word))


def _kinds(text: str) -> str:
    """Mark each letter as a vowel (v) or consonant (c); y is a vowel after a consonant."""
    marks = text.translate(_KINDS)
    if "y" not in marks:
        return marks
    letters = list(marks)
    for index, letter in enumerate(letters):
        if letter == "y":
            letters[index] = "v" if index and letters[index - 1] == "c" else "c"
    return "".join(letters)


def _measure(text: str) -> int:
    """Count the runs of vowels that are followed by a consonant, Porter's m."""
    return _kinds(text).count("vc")


def _ends_short(text: str) -> bool:
    """Whether the last syllable is short: consonant, vowel, consonant other than w, x, y; or just the last two."""
    kinds = _kinds(text)
    return (kinds.endswith("cvc") and text[-1] not in "wxy") or kinds == "vc"


def _plural(word: str) -> str:
    if not word.endswith("s") or word.endswith("ss"):
        return word
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    return word[:-1]


def _past_and_progressive(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    if not word.endswith(("ed", "ing")):
        return word
    base = word[:-2] if word.endswith("ed") else word[:-3]
    kinds = _kinds(base)
    if "v" not in kinds:
        return word
    if base.endswith(("at", "bl", "iz")):
        return base + "e"
    if len(base) >= 2 and base[-1] == base[-2] and kinds.endswith("c"):
        return base if base[-1] in "lsz" else base[:-1]
    return base + "e" if kinds.count("vc") == 1 and _ends_short(base) else base


def _final_y(word: str) -> str:
    if word.endswith("y") and len(word) > 2 and _kinds(word[:-1]).endswith("c"):
        return word[:-1] + "i"
    return word


def _double_suffix(word: str) -> str:
    if not word.endswith(_DOUBLE):
        return word
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _double_suffix(word[:-2])
    if word.endswith("logi"):
        # The l counts as part of the stem.
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replace_first(word, DOUBLE_SUFFIXES)


def _replace_first(word: str, suffixes: dict[str, str]) -> str:
    for suffix, replacement in suffixes.items():
        if word.endswith(suffix):
            base = word[: -len(suffix)]
            return base + replacement if _measure(base) > 0 else word
    return word


def _last_suffix(word: str) -> str:
    if not word.endswith(LAST_SUFFIXES):
        return word
    suffix = next(suffix for suffix in LAST_SUFFIXES if word.endswith(suffix))
    base = word[: -len(suffix)]
    if suffix == "ion" and not base.endswith(("s", "t")):
        return word
    return base if _measure(base) > 1 else word


def _final_e_and_l(word: str) -> str:
    if word.endswith("e"):
        base = word[:-1]
        measure = _measure(base)
        if measure > 1 or (measure == 1 and not _ends_short(base)):
            word = base
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
