"""The tokenizer's own chat template."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from srd.base.errors import UserError
from srd.data.templates.base import Example, Segment, Template, joined, register_template
from srd.data.turns import turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Part = tuple[str, bool]  # a text, and whether it may be cut
Slot = tuple[dict[str, Any], str, list[Part]]  # where a text of a message stands, and its parts
SHOWN = 200  # characters of a text in a message


@register_template("chat")
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
        messages, asked = _conversation(example)
        text = self._apply(messages, example)
        if (segments := self._marked(messages, asked, text, example)) is not None:
            return segments
        # Templates that rewrite messages (dropping a model's thoughts, say) leave the last one as it is.
        texts = itertools.chain.from_iterable(parts for *_, parts in _slots(messages, asked))
        contents = [part.strip() for part, cuttable in texts if cuttable and part.strip()]
        last = contents[-1] if contents else ""
        start = text.rfind(last) if last else -1
        if start < 0:
            return [Segment(text, False)]
        end = start + len(last)
        parts = [Segment(text[:start], False), Segment(last, True, content=True), Segment(text[end:], False)]
        return joined(parts)

    def response(self, example: Example) -> list[Segment]:
        """Return what the template writes for the answer behind the prompt, up to what ends the turn.

        Raises:
            UserError: the conversation with its answer does not go on from the prompt.
        """
        messages, _ = _conversation(example)
        whole = [*messages, _answer(example)]
        prompt, text = self._apply(messages, example), self._apply(whole, example, ask=False)
        if not text.startswith(prompt):
            raise UserError(self._parted(prompt, text, example))
        segments = self._marked(whole, None, text, example, answer_only=True)
        if segments is None:
            segments = self._rewritten(whole, text, len(prompt), example)
        return self._ended(_behind(segments, len(prompt)))

    def _ended(self, segments: list[Segment]) -> list[Segment]:
        """The pieces of an answer up to the token that ends the turn; without the frame behind it where none does."""
        if segments and not segments[-1].content:
            last = segments[-1].text
            end = turns_of(self._tokenizer).stop_texts.search(last)
            kept = "" if len(segments) > 1 else last
            segments[-1] = Segment(last[: end.end()] if end else kept, False)
        return joined(segments)

    def _rewritten(self, whole: Sequence[Message], text: str, start: int, example: Example) -> list[Segment]:
        """The pieces of a conversation whose answer a template rewrites, by where it begins and what ends it."""
        mark, marked = _mark(whole), copy.deepcopy(list(whole))
        for holder, key, _ in _slots(marked[-1:], None):
            holder[key] = mark
        tail = self._apply(marked, example, ask=False).rpartition(mark)[2]
        end = len(text) - len(tail) if text[start:].endswith(tail) else start
        return joined(
            [Segment(text[:start], False), Segment(text[start:end], False, content=True), Segment(text[end:], False)]
        )

    def _marked(
        self, messages: Sequence[Message], asked: list[Part] | None, text: str, example: Example, *,
        answer_only: bool = False,
    ) -> list[Segment] | None:  # fmt: skip
        """Find contents by rendering marks in their place; None where with the contents put back it is another text.

        Args:
            messages: The conversation.
            asked: The parts of the last message, where it has several.
            text: The conversation as it is rendered.
            example: For messages.
            answer_only: Ends with an answer, and only that is looked for.
        """
        mark = _mark(messages)
        for strip in (False, True):
            marked = copy.deepcopy(list(messages))
            contents: list[Segment] = []
            for holder, key, parts in _slots(marked[-1:] if answer_only else marked, asked):
                inside = ""
                for place, (part, cuttable) in enumerate(parts):
                    if not part.strip():  # some templates ask whether a message is blank
                        inside += part
                        continue
                    inside += f"{mark}{len(contents)}Q"
                    part = part.lstrip() if strip and place == 0 else part
                    part = part.rstrip() if strip and place == len(parts) - 1 else part
                    contents.append(Segment(part, cuttable, cut_order=len(contents), content=True))
                holder[key] = inside
            pieces = re.split(f"{mark}([0-9]+)Q", self._apply(marked, example, ask=not answer_only))
            segments = joined(
                [contents[int(piece)] if place % 2 else Segment(piece, False) for place, piece in enumerate(pieces)]
            )
            if "".join(segment.text for segment in segments) == text:
                return segments
        return None

    def _apply(self, messages: Sequence[Message], example: Example, *, ask: bool = True) -> str:
        """The text of messages, with or without what asks for an answer behind them."""
        try:
            text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=ask, tokenize=False)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"example {example['id']}: the chat template of the tokenizer refuses this conversation "
                f"(roles: {roles}): {error}. Change the messages, or choose another template."
            ) from error
        return str(text)

    def _parted(self, prompt: str, whole: str, example: Example) -> str:
        """Say that an answer does not follow its prompt."""
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
        start = max(0, same - SHOWN // 2)
        shown = [repr(text[start : same + SHOWN]) for text in (prompt, whole)]
        return (
            f"example {example['id']}: with the chat template of the tokenizer {self._tokenizer.name_or_path!r} an "
            f"answer does not follow its prompt. The prompt is …{shown[0]}, the conversation with its answer "
            f"…{shown[1]}. Mend the template (chat_template.jinja beside the model), or choose data.template=plain."
        )


def _conversation(example: Example) -> tuple[list[Message], list[Part] | None]:
    """The messages of a row before its answer, and the parts of the last one where it has several."""
    if example["messages"]:
        return json.loads(example["messages"]), None
    instruction, context = example["instruction"], example["input"]
    asked = [(f"{instruction}\n\n", False), (context, True)] if context else [(instruction, True)]
    return [{"role": "user", "content": "".join(text for text, _ in asked)}], asked


def _answer(example: Example) -> Message:
    return {"role": "assistant", "content": example["references"][0]}


def _slots(messages: Sequence[Message], asked: list[Part] | None) -> Iterator[Slot]:
    """Where the texts of messages stand."""
    for place, message in enumerate(messages, start=1):
        last = asked if place == len(messages) else None
        yield message, "content", last or [(message["content"], message["role"] != "system")]


def _mark(messages: Sequence[Message]) -> str:
    """A word that is in none of the messages."""
    mark = "QzContent"
    while mark in json.dumps(messages):
        mark += "z"
    return mark


def _behind(segments: list[Segment], start: int) -> list[Segment]:
    """The pieces behind so many characters."""
    kept = []
    for segment in segments:
        if start < len(segment.text):
            kept.append(Segment(segment.text[start:], False, content=segment.content))
        start = max(0, start - len(segment.text))
    return kept
