"""The tokenizer's own chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from srd.base.errors import UserError
from srd.data.templates.base import Example, Segment, Template, joined, register_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = tuple[str, list[tuple[str, bool]]]  # a role, and its text in parts with whether each may be cut


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
        return joined(parts)

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
        return joined(
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
