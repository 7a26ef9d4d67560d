"""A prompt's frame as a template of Go, found by rendering conversations and looking at what stands around them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from srd.base.errors import UserError
from srd.data.templates.base import Template

SYSTEM, ASKED, ANSWERED, AGAIN = "QzSystem", "QzAsked", "QzAnswered", "QzAgain"


def go_template(frame: Template, begin: str) -> str:
    """The template of a Modelfile.

    Args:
        frame: What the student was trained with.
        begin: What the runtime puts before every text by itself; the template does not write it once more.

    Raises:
        UserError: the frame does not show questions and answers in turn.
    """
    if frame.ready_made:
        return "{{ .Prompt }}{{ .Response }}"
    before, last = _around(frame, begin, [ASKED])
    _, asking, between, _ = _around(frame, begin, [ASKED, ANSWERED, AGAIN])
    system = _with_system(frame, begin)
    user = _common_end([before, between, *(system[1:] if system else [])])
    default = before[: len(before) - len(user)]
    answered = between[: len(between) - len(user)]
    parts = [f"{{{{ if not .System }}}}{_text(default)}{{{{ end }}}}"] if default and system else [_text(default)]
    parts.append("{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}")
    branches = [("user", _text(user) + "{{ $m.Content }}" + _either(last, asking))]
    if system:
        closing = system[1][: len(system[1]) - len(user)]
        branches.insert(0, ("system", _text(system[0]) + "{{ $m.Content }}" + _text(closing)))
    branches.append(("assistant", "{{ $m.Content }}{{ if not $last }}" + _text(answered) + "{{ end }}"))
    for number, (role, text) in enumerate(branches):
        parts.append(f'{{{{ {"else " if number else ""}if eq $m.Role "{role}" }}}}{text}')
    return "".join([*parts, "{{ end }}{{ end }}"])


def _either(last: str, asking: str) -> str:
    """What stands behind a question: what asks for its answer, which may look different once it is there."""
    if last == asking:
        return _text(last)
    return f"{{{{ if $last }}}}{_text(last)}{{{{ else }}}}{_text(asking)}{{{{ end }}}}"


def _with_system(frame: Template, begin: str) -> list[str]:
    """What stands around a system prompt and a question behind it; nothing where the frame takes none."""
    try:
        before, between, _ = _around(frame, begin, [SYSTEM, ASKED])
    except UserError:
        return []
    return [before, between]


def _around(frame: Template, begin: str, texts: list[str]) -> list[str]:
    """What stands before, between and behind the texts of a conversation."""
    roles = {SYSTEM: "system", ASKED: "user", ANSWERED: "assistant", AGAIN: "user"}
    turns = [{"role": roles[text], "content": text} for text in texts]
    example: dict[str, Any] = {
        "id": "frame", "instruction": texts[-1], "input": "", "messages": json.dumps(turns), "prompt": "",
        "references": [ANSWERED], "corruption": "", "extra": "",
    }  # fmt: skip
    rest, found = frame.text(example), []
    for text in texts:
        part, met, rest = rest.partition(text)
        if not met:
            raise UserError(f"the frame '{frame.name}' does not show what is asked and answered in turn.")
        found.append(part)
    found[0] = found[0].removeprefix(begin)
    return [*found, rest]


def _common_end(texts: Sequence[str]) -> str:
    return os.path.commonprefix([text[::-1] for text in texts])[::-1]  # noqa: RUF071 - of texts, not of paths


def _text(text: str) -> str:
    """A text as it stands in a template of Go."""
    return text.replace("{{", '{{ "{{" }}')
