"""What suits each row: its chat template, its ready-made prompt, or Alpaca's wording."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from srd.data.templates.base import Example, Frame, Segment, Template, end_of, get_template, joined, register_template
from srd.data.templates.chat import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The last line of a ready-made prompt, where it is short: "### Response:", "Answer:", "A:".
ANSWER_MARKER = re.compile(r"\n\s*[^\n]{1,40}\s*\Z")


class PromptTemplate(Template):
    """The ready-made prompt of a row, as it is."""

    name = "prompt"
    ready_made = True

    def __init__(self, end: str = "") -> None:
        """Take what ends an answer."""
        self._end = end

    def frame(self) -> Frame:
        """Return nothing around a question."""
        return Frame("", "", self._end, "")

    def render(self, example: Example) -> list[Segment]:
        """Return the prompt, cuttable but for a short last line, which marks that an answer follows."""
        prompt = example["prompt"]
        marker = ANSWER_MARKER.search(prompt)
        cut = marker.start() if marker else len(prompt)
        return joined([Segment(prompt[:cut], True), Segment(prompt[cut:], False)])

    def response(self, example: Example) -> list[Segment]:
        """Return the completion, which may hold control tokens, the one that closes it among them."""
        return [Segment(example["references"][0], False)]


class ByRow(Template):
    """One template or another, as each row asks for (`for_row`)."""

    def render(self, example: Example) -> list[Segment]:
        """Return the prompt in the way that suits the row."""
        return self.for_row(example).render(example)

    def response(self, example: Example) -> list[Segment]:
        """Return the response in that way too."""
        return self.for_row(example).response(example)

    def earlier(self, example: Example) -> list[tuple[int, int]]:
        """Return where earlier answers stand in a conversation."""
        return self.for_row(example).earlier(example)


class Otherwise(ByRow):
    """A template, but for some rows that another one renders."""

    takes_options = True

    def __init__(self, usual: Template, other: Template, ids: Collection[str]) -> None:
        """Take both, and the ids of the rows for the second."""
        self.name, self.options, self.day = usual.name, usual.options, usual.day
        self._usual, self._other, self._ids = usual, other, frozenset(ids)

    def for_row(self, example: Example) -> Template:
        """Return what the template for this row makes of it."""
        return (self._other if example["id"] in self._ids else self._usual).for_row(example)


@register_template("auto")
class AutoTemplate(ByRow):
    """Conversations through the chat template, ready-made prompts as they are, and all else as Alpaca."""

    name = "auto"
    takes_options = True

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None, day: date | None = None
    ) -> None:
        """Keep the tokenizer, whose chat template is asked for when the first conversation comes."""
        self._tokenizer = tokenizer
        self.options = dict(options or {})
        self.day = day
        self._chat = ChatTemplate(tokenizer, options, day) if options else None
        self._prompt = PromptTemplate(end_of(tokenizer))
        self._alpaca = get_template("alpaca", tokenizer)

    @property
    def notes(self) -> Mapping[str, dict[str, None]]:  # type: ignore[override]
        """What the chat template does to rows that it should not."""
        return self._chat.notes if self._chat else {}

    def for_row(self, example: Example) -> Template:
        """Return the template for this row; UserError where a conversation meets a tokenizer without one."""
        if example["messages"]:
            self._chat = self._chat or ChatTemplate(self._tokenizer, self.options, self.day)
            return self._chat
        # A row of plain text has neither prompt nor instruction, and its prompt is empty as it is.
        return self._prompt if example["prompt"] or not example["instruction"] else self._alpaca
