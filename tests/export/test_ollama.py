"""The Modelfile's template writes the prompts that the student was trained with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from srd.data.templates.base import get_template
from srd.export.base import Settings, export
from srd.export.formats.ollama import frame_of
from srd.export.ollama_template import go_template
from tests.export.test_gguf import make
from tests.tiny import tiny_tokenizer

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "[{{ message['role'] }}]{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
)
TOKEN = re.compile(r"({{.*?}})", re.DOTALL)


def rendered(template: str, turns: list[dict[str, str]]) -> str:
    """What Ollama makes of a template of the constructs that are written here."""
    system = any(turn["role"] == "system" for turn in turns)
    head, _, rest = template.partition("{{ range $i, $m := .Messages }}")
    body = rest.removesuffix("{{ end }}")
    text = _run(TOKEN.split(head), {".System": system})
    for number, turn in enumerate(turns):
        text += _run(TOKEN.split(body), {**turn, "last": number == len(turns) - 1})
    return text


def _run(tokens: list[str], known: dict[str, Any]) -> str:
    out, stack = "", []  # a branch: whether it is written, whether one of its kind was
    for token in tokens:
        inner = token[2:-2].strip() if token.startswith("{{") else None
        writes = all(on for on, _ in stack)
        if inner is None:
            out += token if writes else ""
        elif inner == "end":
            stack.pop()
        elif inner.startswith(("if", "else")):
            done = stack.pop()[1] if inner.startswith("else") else False
            holds = inner == "else" or _holds(inner, known)
            stack.append((holds and not done, holds or done))
        elif inner == "$m.Content" and writes:
            out += known["content"]
        elif inner == '"{{"' and writes:
            out += "{{"
    return out


def _holds(test: str, known: dict[str, Any]) -> bool:
    if found := re.search(r'eq \$m\.Role "(\w+)"', test):
        return bool(known["role"] == found[1])
    value = known.get("last") if "$last" in test else known.get(".System")
    return not value if "not" in test else bool(value)


TALKS = {
    "one question": [("user", "Why?")],
    "a system prompt": [("system", "Be brief."), ("user", "Why?")],
    "several turns": [("user", "Why?"), ("assistant", "So."), ("user", "And {{ this }}?")],
    "all": [
        ("system", "S"),
        ("user", "Why?"),
        ("assistant", "So."),
        ("user", "And?"),
        ("assistant", "A"),
        ("user", "B"),
    ],
}


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("frame", ["alpaca", "plain", "Q: {instruction} {{x}}\nA:", "chat", "default", "no system"])
def test_the_template_writes_what_the_student_was_trained_on(frame: str, talk: str) -> None:
    tokenizer = tiny_tokenizer("qwen2" if "{" not in frame else "llama")
    tokenizer.chat_template = {"default": DEFAULT_SYSTEM, "no system": NO_SYSTEM}.get(frame, tokenizer.chat_template)
    template = get_template("chat" if frame in ("default", "no system") else frame, tokenizer)
    turns = [{"role": role, "content": content} for role, content in TALKS[talk]]
    if frame == "no system" and turns[0]["role"] == "system":
        return
    example = {
        "id": "a", "instruction": turns[-1]["content"], "input": "", "messages": json.dumps(turns), "prompt": "",
        "references": ["x"], "extra": "",
    }  # fmt: skip
    assert rendered(go_template(template, ""), turns) == template.text(example)


def test_the_frame_is_that_of_most_rows_and_not_of_the_first() -> None:
    rows = [{"messages": "", "prompt": "As it is", "instruction": "As it is"}]
    rows += [{"messages": "", "prompt": "", "instruction": "Why?"}] * 3
    encoder = SimpleNamespace(template=get_template("auto", tiny_tokenizer("qwen2")))
    run = SimpleNamespace(split={"train": rows}.get, encoder=encoder)
    assert frame_of(cast(Any, SimpleNamespace(is_run=True, run=run))).name == "alpaca"


def test_the_folder_has_a_modelfile_with_stops(tmp_path: Path) -> None:
    paths, then = export(make("qwen2", tmp_path / "model"), "ollama", tmp_path / "out", Settings())
    assert [path.name for path in paths] == ["model-q8_0.gguf", "Modelfile"]
    text = paths[1].read_text()
    assert text.startswith('FROM ./model-q8_0.gguf\nTEMPLATE """') and 'PARAMETER stop """<|im_end|>"""' in text
    assert "PARAMETER num_ctx 1024" in text and f"-f {paths[1]}" in then
