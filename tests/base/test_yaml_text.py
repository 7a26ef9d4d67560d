"""YAML as recipes use it: plain data, every mistake with its line, and what is written reads the same."""

from __future__ import annotations

import math
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.base.text import visible
from srd.base.yaml_text import DEEPEST, dump_yaml, parse_yaml

NO_NUMBERS = ["1:30", "010", "0x1F", "0o17", "2020-01-01", "=", "1e", "."]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1\nb: [1, {c: x}]", {"a": 1, "b": [1, {"c": "x"}]}),
        ("a: 1e-4", {"a": 1e-4}),
        ("a: [1.5, .5, 12., -3e2, +7, 1_000, -0]", {"a": [1.5, 0.5, 12.0, -300.0, 7, 1000, 0]}),
        ("a: [yes, off, true, ~, null]", {"a": [True, False, True, None, None]}),
        # YAML 1.1 would read numbers and dates in all of these.
        (
            "a: [1:30, 010, 0x1F, 0o17, 2020-01-01, =, 1e, .]",
            {"a": NO_NUMBERS},
        ),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("b: &b {x: 1, y: 1}\na: {<<: *b, x: 2}", {"b": {"x": 1, "y": 1}, "a": {"x": 2, "y": 1}}),
        ("a: '1'", {"a": "1"}),
    ],
)
def test_plain_data(text: str, value: Any) -> None:
    assert parse_yaml(text, "here") == value


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: 2\na: 3", ["line 3: the key 'a' is there twice (first in line 1)"]),
        ("a:\n  b: {c: 1, d: 2, c: 3}", ["line 2: the key 'c' is there twice"]),
        ("- {a: 1, a: 1}", ["'a' is there twice"]),
        ("a: {<<: {x: 1}, <<: {y: 2}}", ["'<<' is there twice"]),
        ("a: 1\na: 2\nb: !!set {x}\n3: x", ["3 mistakes", "line 2", "line 3: the tag 'set'", "line 4: the key '3'"]),
        ("a: !!python/object/apply:os.system [x]", ["the tag 'python/object/apply:os.system'"]),
        ("a: !mine 3", ["the tag '!mine'"]),
        ("a: !!binary aGk=", ["the tag 'binary'"]),
        ("a: !!timestamp 2020-01-01", ["the tag 'timestamp'"]),
        ("a: !!omap [x: 1]", ["the tag 'omap'"]),
        ("a: !!int x", ["not YAML"]),
        ("a: " + "9" * 5000, ["is too large"]),
        ("a: -9223372036854775809", ["is too large"]),
        ('a: "b\\0c"', ["no text"]),
        ('a: "\\ud800"', ["not YAML"]),
        ("1: 2", ["the key '1' is no text"]),
        ("yes: 2", ["the key 'yes' is no text"]),
        ("? [a]\n: 2", ["is no text"]),
        ("~: 2", ["is no text"]),
        ("a: 1\n---\nb: 2", ["single document", "line 2"]),
        ("[" * 3000, [f"more than {DEEPEST} levels"]),
        ("{a: " * 100_000, [f"more than {DEEPEST} levels"]),
        ("- " * 1000 + "1", [f"more than {DEEPEST} levels"]),
        ("a: &a [*a]", ["what it is part of"]),
        ("a: &a {b: *a}", ["what it is part of"]),
        (BOMB, ["aliases stand for more than"]),
        ("a: *b", ["undefined alias"]),
        ("a: {<<: 3}", ["mapping"]),
        ("a: \x07", ["not YAML"]),
        ("\0", ["not YAML"]),
        ("a: b: c", ["not YAML", "line 1: a text with a colon and a space in it needs quotes around it: b: c"]),
        ("a: 1\nb: {q} is", ["line 2: a text that begins with { needs quotes around it"]),
        ("\tb: 1", ["not YAML", "line 1: a tab in the indent. Use spaces."]),
        ("a:\n  b: 1\n\tc: 2", ["line 3: a tab in the indent"]),
        ("a: b\nb:x/y\nc: d", ["line 2: no space behind the colon. Write b: x/y"]),
        ("a:b\nb: c", ["line 1: no space behind the colon. Write a: b"]),
        ("a: |\n  x:y\nb: c: d", ["line 3: a text with a colon"]),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_mistakes(text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "here")
    message = str(caught.value)
    assert message.startswith("here")
    for part in parts:
        assert part in message
    assert len(message) < 1000


def test_what_is_written_acts_on_no_terminal() -> None:
    texts = [
        "a\u202eb",
        "\x1b[31m",
        "tab\tand\nline",
        "\u2066'\"\\",
        "\x9b",
        "\ufeff",
        "é 日本 \U0001f642",
        "\U000e0041",
    ]
    for value in (texts, {text: {"in": [text]} for text in texts}):
        for short_lists in (False, True):
            written = dump_yaml(value, short_lists=short_lists)
            assert parse_yaml(written, "here") == value
            assert visible(written) == written and "é 日本" in written


def test_what_is_written_reads_the_same() -> None:
    words = [
        "1e5",
        "1:30",
        "010",
        "yes",
        "~",
        "",
        "<<",
        "=",
        "2020-01-01",
        "a: b",
        "- c",
        "#",
        "é\U0001f642",
        "1_0",
        ".5",
    ]
    value = {"words": words, "numbers": [1, 1e-7, 0.1, 1e300, -0.0], "nothing": None, "deep": {"a": [{"b": []}]}}
    assert parse_yaml(dump_yaml(value), "here") == value
    assert math.isinf(parse_yaml(dump_yaml([float("inf")]), "here")[0])
