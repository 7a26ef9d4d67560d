r"""GSM8K: grade-school word problems, scored by the final number.

Which number is final: the one after the first ``####`` (or after ``A:`` at the start of a line, as the
published model solutions write it), else in the last ``\boxed{}``, else behind the last "the answer is" or
"Answer:", else the last number of the text. Where a box or an answer is a calculation, "20 - 5 = 15", its
result counts. In GSM8K's own notation, with ``<<3+4=7>>`` annotations, a solution without its marker is unfinished and
has no answer. Numbers are compared by value: 1,000.00 = 1000. What the model only thought, between ``<think>``
and ``</think>``, is left out first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from srd.base.errors import UserError
from srd.sandbox.outside import Permission
from srd.tasks._thoughts import without_thoughts
from srd.tasks.base import (
    Decoding,
    Hub,
    Predictions,
    Row,
    Scores,
    Task,
    means,
    references_of,
    register_task,
    single_answers,
)

if TYPE_CHECKING:
    from datasets import Dataset

# Currency, sign (a minus after a digit or bracket is a subtraction), digits, decimals, a denominator.
_NUMBER = (
    r"(?P<sign>(?<![\d)\]])[-\u2212](?=\\?[$€£¥.\d]){minus})?\\?[$€£¥]?\s?(?P<sign_after>(?<=[$€£¥])[-\u2212])?"
    r"{whole}(?P<digits>(?:{digits})(?:\.\d+)?|\.\d+){exponent}(?:\s?/\s?(?P<denominator>\d+))?"
)
# In running text "3,4" are two numbers and "3,400" is one, as are "2 1/2", "1e3" and the "minus 4" of "it is minus 4".
NUMBER = re.compile(
    _NUMBER.format(
        minus=r"|(?:^|(?<=[=:])|(?<=[=:]\s)|(?<=\bis\s))(?:minus|negative)\s+(?=\\?[$€£¥.\d])",
        whole=r"(?:(?<![\d.,/])(?P<whole>\d{1,3})[ ](?=\d{1,3}/\d))?",
        digits=r"\d{1,3}(?:,\d{3})+(?!\d)|\d+",
        exponent=r"(?P<exponent>e[+-]?\d{1,3}(?!\w))?",
    ),
    re.IGNORECASE,
)
# After its marker an answer is one number, wherever its commas are: that is GSM8K's own reading.
MARKED_NUMBER = re.compile(
    _NUMBER.format(minus="", whole="(?P<whole>(?!))?", digits=r"\d[\d,]*", exponent="(?P<exponent>(?!))?")
)
LONGEST_NUMBER = 1000
MARKER = re.compile(r"####\s*")
HEADING = re.compile(r"[.):][ \t]+\S")  # behind the number of "#### 1. First we add"
ANSWER_LINE = re.compile(r"^A:\s*", re.MULTILINE)
CHOICES = re.compile(r"^B:", re.MULTILINE)  # beside it "A:" begins a list
BOXED = re.compile(r"\\boxed\s*\{")
# "The answer is 18", "**Answer:** 18", "Answer = 18", "<answer>18</answer>", and "answer" as a heading over it.
ANSWER_IS = re.compile(
    r"(?<!/)\banswer(?:(?P<said>\s+(?:is|was|(?:will|would|should)\s+be|equals)\b:?)|[*_`\s]*[:=>]+|[*_]*\s*\n)"
    r"(?:\s*\b(?:therefore|thus|simply|exactly|about|around|roughly|approximately|equal\s+to)\b,?)*[*_`(){}\\\[$\s]*",
    re.IGNORECASE,
)
# What may stand under such a heading instead: a list of steps, or lines of calculations.
WORKED = re.compile(r"1[.)]\s.*?^[\s*_]*2[.)]\s|[^\n]*=[^\n]*\n.*=", re.DOTALL | re.MULTILINE)
# A calculation that begins an answer, "20 apples - 5 = 15": what has one word or a letter beside it is a term.
_TERM = rf"[(\[\s]*(?:{re.sub(r'[(][?]P<[a-z_]+>', '(?:', NUMBER.pattern)}%?(?:\s+[a-z]+)?|[a-z])[)\]\s]*"
_SIDE = rf"{_TERM}(?:(?:[-+*/×÷·^\u2212x]|\\(?:times|cdot|div)){_TERM})*"
CALCULATION = re.compile(rf"{_SIDE}(?:=\s*{_SIDE})+", re.IGNORECASE)
FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))")
LATEX_SPACING = re.compile(r"\\[,!;]|\{,\}(?=\d)")
ANNOTATION = re.compile(r"<<[^<>]*>>")


def final_number(text: str) -> Fraction | None:
    r"""Find the final number of a solution; None where it has none.

    >>> final_number("She earns $1,234.50 a week.\n#### 1,234.50")
    Fraction(2469, 2)
    """
    text = without_thoughts(text)
    for marker in (MARKER,) if CHOICES.search(text) else (MARKER, ANSWER_LINE):
        for match in marker.finditer(text):
            number = MARKED_NUMBER.match(text, match.end())
            if number and not HEADING.match(text, number.end()):
                return _value(number)
    if ANNOTATION.search(text):
        return None
    text = FRACTION.sub(_plain_fraction, LATEX_SPACING.sub("", text))
    boxes = list(BOXED.finditer(text))
    if boxes:
        number = _result(text, boxes[-1].end()) or NUMBER.search(text, boxes[-1].end())
        return _value(number) if number else None
    for match in reversed(list(ANSWER_IS.finditer(text))):
        if not match["said"] and WORKED.match(text, match.end(), match.end() + LONGEST_NUMBER):
            continue
        number = _result(text, match.end()) or NUMBER.match(text, match.end())
        if number:
            return _value(number)
    numbers = list(NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _plain_fraction(match: re.Match[str]) -> str:
    r"""Write \frac{1}{2} and \frac12 as 1/2, and 2\frac12 as 2 1/2."""
    digit, *parts = match.groups(default="")
    return f"{digit} {parts[0] or parts[2]}/{parts[1] or parts[3]}" if digit else "/".join(filter(None, parts))


def _result(text: str, start: int) -> re.Match[str] | None:
    """Find what the calculation at ``start`` comes to: the last of its sides that is a number alone.

    None where there is no calculation; where every side has several numbers, the one after the last equals sign.
    """
    calculation = CALCULATION.match(text, start, start + LONGEST_NUMBER)
    if not calculation:
        return None
    ends = [*(mark.start() for mark in re.finditer("=", calculation[0])), len(calculation[0])]
    begins = [0, *(end + 1 for end in ends[:-1])]
    sides = [list(NUMBER.finditer(text, start + begin, start + end)) for begin, end in zip(begins, ends, strict=True)]
    return next((side[0] for side in reversed(sides) if len(side) == 1), sides[-1][0] if sides[-1] else None)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > LONGEST_NUMBER:
        return None
    value = Fraction(match["digits"].replace(",", "") + (match["exponent"] or ""))
    denominator = int(match["denominator"] or 1)
    # "7/0" is no number; what stands before the stroke is. "2 5/3" is no mixed number; its fraction is.
    value = value / denominator if denominator else value
    value += int(match["whole"] or 0) if value < 1 else 0
    return -value if match["sign"] or match["sign_after"] else value


def _expected(reference: str, what: str) -> Fraction:
    number = final_number(reference)
    if number is None:
        raise UserError(f"{what} has no final number: expected a text that ends in '#### 18', found {reference!r:.80}")
    return number


@dataclass(frozen=True)
class Gsm8kTask(Task):
    """Accuracy of the final number."""

    def asked(self, row: Row, place: str) -> Row:
        """Take the question and the worked solution."""
        references = references_of(row, self.reference_fields, place)
        question = row.get("question", row.get("instruction"))
        return {"id": row.get("id"), "instruction": question, "output": references}

    def scoring_columns(self, row: Row, place: str) -> dict[str, Any]:
        """Take the references, each of which must come to a number: else no answer could be right."""
        columns = super().scoring_columns(row, place)
        for reference in columns["references"]:
            _expected(reference, f"{place}: the reference")
        return columns

    def score(self, predictions: Predictions, examples: Dataset, *, allow_code_execution: Permission = False) -> Scores:
        """Score one solution an example: ``accuracy``.

        Raises:
            UserError: the counts differ, or a reference has no final number.
        """
        answers = single_answers(predictions, examples, self.name)
        right = np.zeros(len(answers))
        for index, (answer, references) in enumerate(zip(answers, examples["references"], strict=True)):
            expected = [_expected(reference, f"task 'gsm8k': reference {index + 1}") for reference in references]
            right[index] = final_number(answer) in expected
        per_example = {"accuracy": right}
        return Scores(means(per_example), per_example, self.primary)


GSM8K = Gsm8kTask(
    name="gsm8k",
    title="GSM8K",
    licence="MIT",
    source="Cobbe et al. 2021 (arXiv 2110.14168), 1319 test problems",
    primary="accuracy",
    hub=Hub("openai/gsm8k", "main"),
    splits=("train", "test"),
    size=({"train": 7473, "test": 1319}, 90, 110),
    decoding=Decoding(max_new_tokens=512),
    reference_fields=("answer", "references", "output", "ground_truth"),
)
register_task("gsm8k")(GSM8K)
