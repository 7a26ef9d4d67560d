"""What a model thought before it answered: where that stands in a message, and how an answer that has it is written.

Data sets have it in a field of its own (``reasoning_content``), or in the content, between tags (``<think>``). Chat
templates read the one or the other, and many cut it from the content, as models do not read their old thoughts again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from srd.data.messages import REASONING, Message, plain_text

NAMES = ("think", "thinking", "thought", "reasoning", "seed:think")
TAGS = {**{f"<{name}>": f"</{name}>" for name in NAMES}, "[THINK]": "[/THINK]"}
OPEN, CLOSE = ("|".join(map(re.escape, tags)) for tags in (TAGS, TAGS.values()))
THOUGHT = re.compile(rf"\A\s*(?P<open>{OPEN})?(?P<thought>(?:(?!{OPEN}).)*?)(?P<close>{CLOSE})", re.DOTALL)
OPENED = re.compile(rf"(?P<open>{OPEN})(?P<space>\s*)\Z")


@dataclass(frozen=True)
class Thought:
    """What an answer thinks.

    Attributes:
        text: of it.
        said: the content without it.
        field: that has it; ``content``: it stands there, between tags.
    """

    text: str
    said: str
    field: str


def thought_of(answer: Message) -> Thought | None:
    """What an answer thinks before it says something, if anything."""
    content = _content(answer)
    for field in REASONING:
        text = answer.get(field)
        if isinstance(text, str) and text.strip():
            return Thought(text, content, field)
    found = THOUGHT.match(content)
    if found is None or not found["thought"].strip():
        return None
    return Thought(found["thought"], content[found.end() :], "content")


def told_in_fields(answer: Message, thought: Thought) -> Iterator[Message]:
    """The same answer with its thought in each other field that templates read."""
    others = {name: value for name, value in answer.items() if name not in REASONING}
    said = thought.said if thought.field != "content" else thought.said.lstrip("\n")
    for field in REASONING:
        if field != thought.field:
            yield {**others, "content": said, field: thought.text.strip("\n")}


def opened_by(prompt: str) -> tuple[str, str]:
    """What a prompt is before the tag that opens a thought at its end, and that tag with its white space."""
    found = OPENED.search(prompt)
    return (prompt[: found.start()], prompt[found.start() :]) if found else (prompt, "")


def closes(prompt: str) -> bool:
    """Whether a prompt ends a thought, most often an empty one: no thought belongs behind it."""
    return prompt.rstrip().endswith(tuple(TAGS.values()))


def continued(answer: Message, thought: Thought, opening: str) -> str:
    """An answer as a model writes it: its thought, what closes it, what it says.

    Args:
        answer: With the thought.
        thought: Of it.
        opening: What the prompt ends with, a tag with white space, which is not written again; empty: it has none.
    """
    found = OPENED.search(opening)
    if thought.field != "content":
        text = thought.text.strip("\n")
        if not found:
            return f"<think>\n{text}\n</think>\n\n{thought.said}"
        space = str(found["space"])
        return f"{text}{space}{TAGS[found['open']]}{2 * space}{thought.said}"
    content = _content(answer)
    own = THOUGHT.match(content)
    if not found or content.startswith(opening) or own is None or not own["open"]:
        return content.removeprefix(opening)
    return content[own.end("open") :]


def holds(text: str, *parts: str) -> bool:
    """Whether a text has all of these, white space aside."""
    text = _squeezed(text)
    return all(_squeezed(part) in text for part in parts)


def closes_only(text: str, opening: str) -> bool:
    """Whether a text is none, an empty thought or the end of one, as templates write it in front of an old answer."""
    found, text = OPENED.search(opening), _squeezed(text)
    return not text or (found is not None and text in (TAGS[found["open"]], found["open"] + TAGS[found["open"]]))


def tags_in(answer: str) -> list[tuple[int, int]]:
    """Where the tags around the thought of an answer stand."""
    found = THOUGHT.match(answer)
    return [found.span(name) for name in ("open", "close") if found[name]] if found else []


def _content(answer: Message) -> str:
    """What the content of an answer says, which may come in parts."""
    return plain_text({"content": answer.get("content")})


def _squeezed(text: str) -> str:
    return "".join(text.split())
