"""The prompt format of a training as a chat template, so that other programs ask a student as it was asked here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from srd.data.messages import SYSTEM
from srd.data.templates.base import Example, Frame, Template
from srd.data.turns import Turns, turns_of

LOOKED_AT = 1_000  # rows that tell what kind most of them are
REFUSED = "This model was trained on questions and answers in turn, with a system prompt before them or none."


def usual_template(template: Template, rows: Iterable[Example]) -> Template:
    """The template that most rows are rendered with: of `auto` there may be several."""
    found = [template.for_row(row) for row in islice(rows, LOOKED_AT)]
    ((name, _),) = Counter(each.name for each in found).most_common(1) or [(template.name, 0)]
    return next((each for each in found if each.name == name), template)


def chat_template_of(template: Template, tokenizer: Any, *, encoder_decoder: bool) -> str | None:
    """A Jinja chat template that asks as a template does.

    Args:
        template: Of the training, as `usual_template` gives it.
        tokenizer: Of the training; it may have a chat template of its own.
        encoder_decoder: Whether an encoder reads the prompt, which then has its end of sequence.

    Returns:
        The text of the chat template; None where a template of a plugin does not say what its frame is.
    """
    if template.in_turns:
        return _own(tokenizer, dict(template.options))
    frame = template.frame()
    return None if frame is None else _framed(frame, turns_of(tokenizer), tokenizer, encoder_decoder)


def _own(tokenizer: Any, options: dict[str, Any]) -> str:
    """The tokenizer's chat template, of several the one that was chosen, with what it was given as its defaults."""
    found, name = tokenizer.chat_template, options.pop("chat_template", "default")
    text = str(found[name] if isinstance(found, dict) else found)
    defaults = "".join(
        f"{{% if {key} is not defined %}}{{% set {key} = {_literal(value)} %}}{{% endif %}}"
        for key, value in options.items()
    )
    # A line break right behind a tag is dropped, but not behind an expression.
    return f'{defaults}{{{{ "" }}}}{text}' if defaults else text


def _framed(frame: Frame, turns: Turns, tokenizer: Any, encoder_decoder: bool) -> str:
    first, last = (_text(tokenizer, ids) for ids in (turns.before, turns.behind))
    system = " or ".join(f"message['role'] == {_literal(role)}" for role in SYSTEM)
    parts = [
        f"{{{{ {_literal(first)} }}}}" if first else "",
        "{% set turn = namespace(of='user', begun=false) %}{% for message in messages %}",
        "{% if message['content'] is string %}{% set text = message['content'] %}{% elif message['content'] %}"
        "{% set text = message['content'] | map(attribute='text') | join('') %}"
        "{% else %}{% set text = '' %}{% endif %}",
        f"{{% if ({system}) and not turn.begun %}}{{{{ text + {_literal(frame.gap)} }}}}",
        "{% elif message['role'] == 'user' and turn.of == 'user' %}"
        f"{{% set turn.of = 'assistant' %}}{{% set turn.begun = true %}}{{{{ {_literal(frame.before)} + text + "
        f"{_literal(frame.behind)} }}}}",
        "{% elif message['role'] == 'assistant' and turn.of == 'assistant' %}{% set turn.of = 'user' %}"
        f"{{{{ text + {_literal(frame.end)} }}}}{{% if not loop.last %}}{{{{ {_literal(frame.gap)} }}}}{{% endif %}}",
        f"{{% else %}}{{{{ raise_exception({_literal(REFUSED)}) }}}}{{% endif %}}{{% endfor %}}",
        f"{{% if turn.of == 'assistant' %}}{{{{ {_literal(last)} }}}}{{% endif %}}" if last and encoder_decoder else "",
    ]
    return "".join(parts)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def _literal(value: Any) -> str:
    """A value as Jinja reads it: JSON, but for words and lists of them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
