"""How an example is shown to a model: the text of the prompt, in pieces that say which of them may be cut.

A prompt that is too long loses content, never its frame: a model that no longer sees "### Response:" does not
know that it should answer.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from srd.base.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The wording of Stanford Alpaca (Apache-2.0), which MiniLLM's data files and all published results use.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PLAIN_WITH_INPUT = "{instruction}\n\n{input}\n"
PLAIN_WITHOUT_INPUT = "{instruction}\n"
NAMES = ("auto", "alpaca", "chat", "plain")
PLACES = ("instruction", "input")

# The last line of a ready-made prompt, where it is short: "### Response:", "Answer:", "A:".
ANSWER_MARKER = re.compile(r"\n\s*[^\n]{1,40}\s*\Z")
Example = Mapping[str, Any]
Message = tuple[str, list[tuple[str, bool]]]  # a role, and its text in parts with whether each may be cut


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt.

    Attributes:
        text: what it says.
        cuttable: whether it may be shortened where the prompt is too long.
        cut_order: the cuttable piece with the lowest is shortened first, the next where that is used up.
        content: whether somebody typed it, so that the words of a control token in it are just words; what
            belongs to the frame, and a ready-made prompt, may hold control tokens.
    """

    text: str
    cuttable: bool
    cut_order: int = 0
    content: bool = False


class Template(ABC):
    """Renders examples to prompts.

    Attributes:
        name: as in the configuration.
        adds_special_tokens: whether the tokenizer should put its own special tokens around the text (False
            where the text has them already). Of `auto` it depends on the row: ask `for_row(example)`.
    """

    name: str
    adds_special_tokens: bool = True

    @abstractmethod
    def render(self, example: Example) -> list[Segment]:
        """Return the prompt of one example in pieces; joined, they are the prompt."""

    def for_row(self, example: Example) -> Template:
        """Return the template that this row is rendered with: itself, except for `auto`."""
        return self

    def text(self, example: Example) -> str:
        """Return the whole prompt of one example, uncut."""
        return "".join(segment.text for segment in self.render(example))


class FormatTemplate(Template):
    """A text with the places `{instruction}` and `{input}`, in one wording with input and one without."""

    def __init__(self, name: str, with_input: str, without_input: str) -> None:
        """Parse the two wordings; UserError where one has an unknown place."""
        self.name = name
        self._with_input = _parse(with_input)
        self._without_input = _parse(without_input)

    def render(self, example: Example) -> list[Segment]:
        """Return the frame, with the input to be cut first and then the instruction."""
        parts = self._with_input if example["input"] else self._without_input
        segments = []
        for literal, field in parts:
            segments.append(Segment(literal, False))
            if field:
                segments.append(Segment(example[field], True, cut_order=0 if field == "input" else 1, content=True))
        return _joined(segments)


class PromptTemplate(Template):
    """The ready-made prompt of a row, as it is."""

    name = "prompt"

    def render(self, example: Example) -> list[Segment]:
        """Return the prompt, cuttable but for a short last line, which marks that an answer follows."""
        prompt = example["prompt"]
        marker = ANSWER_MARKER.search(prompt)
        cut = marker.start() if marker else len(prompt)
        return _joined([Segment(prompt[:cut], True), Segment(prompt[cut:], False)])


class ChatTemplate(Template):
    """The tokenizer's own chat template. Rows that are no conversation become one user message."""

    name = "chat"
    adds_special_tokens = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the template of a tokenizer; UserError where it has none."""
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"template 'chat': the tokenizer {tokenizer.name_or_path!r} has no chat template. "
                "Choose template 'alpaca' or 'plain', or a model that was tuned for conversation."
            )
        self._tokenizer = tokenizer

    def render(self, example: Example) -> list[Segment]:
        """Return the rendered conversation; messages are cuttable, oldest first, but no system messages."""
        messages = _conversation(example)
        text = self._apply([_whole(message) for message in messages], example)
        for strip in (False, True):
            segments = self._between_sentinels(messages, strip, example)
            if "".join(segment.text for segment in segments) == text:
                return segments
        # Templates that rewrite messages (dropping a model's thoughts, say) leave the last one as it is.
        contents = [part.strip() for _, parts in messages for part, cuttable in parts if cuttable and part.strip()]
        last = contents[-1] if contents else ""
        start = text.rfind(last) if last else -1
        if start < 0:
            return [Segment(text, False)]
        end = start + len(last)
        parts = [Segment(text[:start], False), Segment(last, True, content=True), Segment(text[end:], False)]
        return _joined(parts)

    def _between_sentinels(self, messages: Sequence[Message], strip: bool, example: Example) -> list[Segment]:
        """Render with marks in place of the contents, and put the contents back in as pieces of their own."""
        mark = "QzContent"
        while mark in json.dumps(messages):
            mark += "z"
        marked: list[Message] = []
        contents: list[Segment] = []
        for role, parts in messages:
            inside = []
            for place, (text, cuttable) in enumerate(parts):
                if not text.strip():  # some templates ask whether a message is blank
                    inside.append((text, cuttable))
                    continue
                inside.append((f"{mark}{len(contents)}Q", cuttable))
                text = text.lstrip() if strip and place == 0 else text
                text = text.rstrip() if strip and place == len(parts) - 1 else text
                contents.append(Segment(text, cuttable, cut_order=len(contents), content=True))
            marked.append((role, inside))
        pieces = re.split(f"{mark}([0-9]+)Q", self._apply([_whole(message) for message in marked], example))
        return _joined(
            [contents[int(piece)] if place % 2 else Segment(piece, False) for place, piece in enumerate(pieces)]
        )

    def _apply(self, messages: Sequence[dict[str, str]], example: Example) -> str:
        try:
            text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"example {example['id']}: the chat template of the tokenizer refuses this conversation "
                f"(roles: {roles}): {error}. Change the messages, or choose another template."
            ) from error
        return str(text)


class AutoTemplate(Template):
    """Conversations through the chat template, ready-made prompts as they are, and all else as Alpaca."""

    name = "auto"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep the tokenizer, whose chat template is asked for when the first conversation comes."""
        self._tokenizer = tokenizer
        self._chat: ChatTemplate | None = None
        self._prompt = PromptTemplate()
        self._alpaca = get_template("alpaca", tokenizer)

    def render(self, example: Example) -> list[Segment]:
        """Return the prompt in the way that suits the row."""
        return self.for_row(example).render(example)

    def for_row(self, example: Example) -> Template:
        """Return the template for this row; UserError where a conversation meets a tokenizer without one."""
        if example["messages"]:
            self._chat = self._chat or ChatTemplate(self._tokenizer)
            return self._chat
        # A row of plain text has neither prompt nor instruction, and its prompt is empty as it is.
        return self._prompt if example["prompt"] or not example["instruction"] else self._alpaca


def get_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return a template by name, or made from a text of one's own.

    Args:
        name: `auto`, `alpaca`, `chat`, `plain`, or a text with `{instruction}` and, where wanted, `{input}`
            (`{{` and `}}` stand for braces).
        tokenizer: the chat template is taken from it.

    Raises:
        UserError: an unknown name or place, or a tokenizer without a chat template.
    """
    if name == "auto":
        return AutoTemplate(tokenizer)
    if name == "chat":
        return ChatTemplate(tokenizer)
    if name == "alpaca":
        return FormatTemplate(name, ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT)
    if name == "plain":
        return FormatTemplate(name, PLAIN_WITH_INPUT, PLAIN_WITHOUT_INPUT)
    if "{" in name:
        # Without a place of its own the input follows the instruction, as it must not get lost.
        places = [field for _, field in _parse(name)]
        with_input = name if "input" in places else name.replace("{instruction}", "{instruction}\n\n{input}")
        return FormatTemplate(name, with_input, name)
    raise UserError(
        f"template: there is no template {name!r}; {nearest(name, NAMES)}. "
        "A text of your own must hold the place {instruction}."
    )


def _parse(text: str) -> list[tuple[str, str]]:
    """Split a format text into (literal, field) pairs; the field after the last literal is empty."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise UserError(
            f"template {text!r}: {error}. Write {{{{ and }}}} for braces that are meant as such."
        ) from error
    parts = []
    for literal, field, specification, conversion in parsed:
        if field is not None and (field not in PLACES or specification or conversion):
            raise UserError(
                f"template {text!r}: there is no place {{{field}}}; {nearest(field, PLACES)}, "
                "without any format. Write {{ and }} for braces that are meant as such."
            )
        parts.append((literal, field or ""))
    fields = [field for _, field in parts]
    if "instruction" not in fields:
        raise UserError(f"template {text!r}: the place {{instruction}} is missing.")
    return parts


def _conversation(example: Example) -> list[Message]:
    """Return the messages of a row."""
    if example["messages"]:
        turns = json.loads(example["messages"])
        return [(turn["role"], [(turn["content"], turn["role"] != "system")]) for turn in turns]
    instruction, context = example["instruction"], example["input"]
    return [("user", [(f"{instruction}\n\n", False), (context, True)] if context else [(instruction, True)])]


def _whole(message: Message) -> dict[str, str]:
    role, parts = message
    return {"role": role, "content": "".join(text for text, _ in parts)}


def _joined(segments: Sequence[Segment]) -> list[Segment]:
    """Drop empty pieces and join neighbours of one kind of frame, so that joints fall only around content."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and not any(part.cuttable or part.content for part in (segment, joined[-1])):
            joined[-1] = Segment(joined[-1].text + segment.text, False)
        elif segment.text:
            joined.append(segment)
    return joined
