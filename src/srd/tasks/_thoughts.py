"""What a model thinks before it answers is no part of the answer."""

from __future__ import annotations

import re

# How thoughts begin and end, by the names that models give them.
_TAGS = (
    (r"<(?:think|thinking|thought|reasoning)>", r"</(?:think|thinking|thought|reasoning)>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<seed:think>", r"</seed:think>"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel\|>analysis<\|message\|>", r"<\|channel\|>final<\|message\|>"),
    (r"\Aanalysis(?=[A-Z])", r"assistantfinal"),  # the same without its control tokens
)
_WHOLE = [re.compile(rf"{begin}.*?(?:{end}|\Z)", re.DOTALL | re.IGNORECASE) for begin, end in _TAGS]
# The prompt has begun the thought: all that the answer shows of it is its end.
_BEGUN_BEFORE = [re.compile(rf"\A.*{end}", re.DOTALL | re.IGNORECASE) for _, end in _TAGS]


def without_thoughts(text: str) -> str:
    """Leave out ``<think>…</think>`` and the like.

    A thought that is not closed takes the rest of the text with it; one that the prompt has opened, what stands before
    its end. Text without such marks comes back as it is.

    >>> without_thoughts("7 or 8? Eight.</think>The answer is 8.")
    'The answer is 8.'
    """
    for whole, begun in zip(_WHOLE, _BEGUN_BEFORE, strict=True):
        text = begun.sub("", whole.sub("", text))
    return text
