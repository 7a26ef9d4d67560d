"""Prompts: their exact text, and which of it may be cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import Template, get_template
from tests.tiny import tiny_tokenizer

WITH_INPUT = """Below is an instruction that describes a task, \
paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Add the numbers.

### Input:
1 {2}

### Response:
"""
WITHOUT_INPUT = """Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
Add the numbers.

### Response:
"""
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello\n"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Hi"},
]
TRIMMING = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}[assistant]"
REWRITING = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{% endfor %}[assistant]"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"


def example(**row: Any) -> dict[str, Any]:
    return dict(examples_from_rows([{"output": "x", **row}], "memory")[0])


def conversation(turns: list[dict[str, str]]) -> dict[str, Any]:
    return example(messages=[*turns, {"role": "assistant", "content": "x"}])


def template(name: str, chat_template: str | None = None, family: str = "qwen2") -> Template:
    tokenizer = tiny_tokenizer(family)
    if chat_template:
        tokenizer.chat_template = chat_template
    return get_template(name, tokenizer)


def cuttable(found: Template, row: dict[str, Any]) -> list[str]:
    """Return what may be cut, in the order in which it is."""
    pieces = [segment for segment in found.render(row) if segment.cuttable]
    return [piece.text for piece in sorted(pieces, key=lambda piece: piece.cut_order)]


def test_alpaca_is_the_standard_text() -> None:
    alpaca = template("alpaca")
    with_input = example(instruction="Add the numbers.", input="1 {2}")
    without = example(instruction="Add the numbers.")
    assert alpaca.text(with_input) == WITH_INPUT
    assert alpaca.text(without) == WITHOUT_INPUT
    assert cuttable(alpaca, with_input) == ["1 {2}", "Add the numbers."]
    assert cuttable(alpaca, without) == ["Add the numbers."]
    assert alpaca.render(without)[-1].text == "\n\n### Response:\n" and alpaca.adds_special_tokens


def test_plain() -> None:
    assert template("plain").text(example(instruction="Add.", input="1 2")) == "Add.\n\n1 2\n"
    assert template("plain").text(example(instruction="Add.")) == "Add.\n"


def test_own_text() -> None:
    own = template("Q: {instruction} ({input}) {{json}}\nA:")
    assert own.text(example(instruction="Add.", input="1")) == "Q: Add. (1) {json}\nA:"
    assert own.text(example(instruction="Add.")) == "Q: Add. () {json}\nA:"
    # An input without a place of its own is not lost.
    assert template("Q: {instruction}\nA:").text(example(instruction="Add.", input="1")) == "Q: Add.\n\n1\nA:"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("alpacca", ["'alpacca'", "did you mean 'alpaca'"]),
        ("Q: {instuction}", ["{instuction}", "did you mean 'instruction'"]),
        ("Q: {input}", ["{instruction}", "missing"]),
        ("Q: {}", ["{}"]),
        ("Q: {instruction!r}", ["without any format"]),
        ("Q: {instruction:>9}", ["without any format"]),
        ("Q: {instruction", ["{{ and }}"]),
    ],
)
def test_wrong_names_and_places(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        template(name)
    for word in words:
        assert word in str(caught.value)


def test_chat_equals_the_tokenizer_and_marks_contents() -> None:
    chat = template("chat")
    row = conversation(TALK)
    expected = tiny_tokenizer("qwen2").apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
    assert chat.text(row) == expected
    assert cuttable(chat, row) == [" Hello\n", "Hi", "Hi"]
    assert not chat.adds_special_tokens
    assert [piece.text for piece in chat.render(row) if piece.content] == ["Be brief.", " Hello\n", "Hi", "Hi"]


def test_chat_of_an_instruction_cuts_its_input() -> None:
    row = example(instruction="Add.", input="1 2")
    assert "user\nAdd.\n\n1 2<|im_end|>" in template("chat").text(row)
    assert cuttable(template("chat"), row) == ["1 2"]
    assert cuttable(template("chat"), example(instruction="Add.")) == ["Add."]


def test_chat_templates_that_trim_or_rewrite() -> None:
    row = conversation(TALK)
    assert cuttable(template("chat", TRIMMING), row) == ["Hello", "Hi", "Hi"]
    assert template("chat", TRIMMING).text(row).endswith("[system]Be brief.[user]Hello[assistant]Hi[user]Hi[assistant]")
    thinking = [*TALK[:2], {"role": "assistant", "content": "<think>a</think>b"}, TALK[3]]
    rewriting = template("chat", REWRITING)
    assert rewriting.text(conversation(thinking)) == "[system]Be brief.[user] Hello\n[assistant]b[user]Hi[assistant]"
    assert cuttable(rewriting, conversation(thinking)) == ["Hi"]


def test_chat_refusals() -> None:
    with pytest.raises(UserError, match="no chat template"):
        template("chat", family="gpt2")
    with pytest.raises(UserError, match="no system role"):
        template("chat", REFUSING).text(conversation(TALK))


def test_auto_goes_by_the_row() -> None:
    auto = template("auto")
    chat, ready = conversation(TALK), example(prompt="Q: 1+1\nAnswer:", completion="2")
    assert auto.text(chat) == template("chat").text(chat)
    assert not auto.for_row(chat).adds_special_tokens
    assert auto.text(ready) == "Q: 1+1\nAnswer:"
    assert auto.for_row(ready).adds_special_tokens
    assert auto.text(example(instruction="Add the numbers.")) == WITHOUT_INPUT
    # A tokenizer without chat template is no obstacle until a conversation comes.
    without = template("auto", family="gpt2")
    assert without.text(ready) == "Q: 1+1\nAnswer:"
    with pytest.raises(UserError, match="no chat template"):
        without.render(chat)


def test_ready_prompt_keeps_its_answer_marker() -> None:
    auto = template("auto")
    row = example(prompt=WITHOUT_INPUT, completion="2")
    assert auto.text(row) == WITHOUT_INPUT
    assert not auto.render(row)[-1].cuttable and auto.render(row)[-1].text.strip() == "### Response:"
    assert cuttable(auto, example(prompt="one line", completion="x")) == ["one line"]


def test_plain_text_has_an_empty_prompt() -> None:
    row = example(prompt="", completion="Once upon a time")
    assert template("auto").text(row) == ""
    assert json.loads(json.dumps(row["references"])) == ["Once upon a time"]


HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
# What a template without roles makes of it; <e> ends an answer.
TALKS = [
    ("plain", "gpt2", "Be brief.\n\nHello\nHi<|endoftext|>\n\nBye\n"),
    ("Q: {instruction}\nA:", "llama", "Be brief.\n\nQ: Hello\nA:Hi</s>\n\nQ: Bye\nA:"),
    ("<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n", "qwen2",
     "Be brief.\n\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n\n"
     "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
    ("alpaca", "gpt2", "Be brief.\n\n" + WITHOUT_INPUT.replace("Add the numbers.", "Hello") + "Hi<|endoftext|>\n\n"
     + WITHOUT_INPUT.replace("Add the numbers.", "Bye")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "family", "text"), TALKS)
def test_a_conversation_in_a_template_without_roles(name: str, family: str, text: str) -> None:
    """The system prompt and earlier turns are rendered in; what came first is cut first, and no frame."""
    tokenizer, row = tiny_tokenizer(family), conversation(HISTORY)
    found = get_template(name, tokenizer)
    assert found.text(row) == text and cuttable(found, row) == ["Hello", "Hi", "Bye"]
    told = Encoder(tokenizer, found, max_prompt_length=400).encode_rows([row])
    assert tokenizer.decode(told["prompt_ids"][0], skip_special_tokens=False).removeprefix("<s>") == text
    end = tokenizer.eos_token_id
    assert told["prompt_ids"][0].count(end) == text.count(tokenizer.eos_token)
    assert told["response_ids"][0] == [*tokenizer("x", add_special_tokens=False)["input_ids"], end]


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([HISTORY[1], HISTORY[1]], "in turn, not the roles user, user"),
        ([HISTORY[1], HISTORY[2], HISTORY[0], HISTORY[1]], "user, assistant, system, user"),
        ([HISTORY[1], {**HISTORY[2], "reasoning_content": "b"}, HISTORY[3]], "no place for reasoning_content"),
        ([HISTORY[1], {**HISTORY[2], "tool_calls": [{}]}, HISTORY[3]], "no place for tool_calls"),
        ([HISTORY[1], HISTORY[2], {"role": "tool", "content": "a"}], "user, assistant, tool"),
    ],
)
def test_what_a_template_without_roles_cannot_say_is_refused(turns: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UserError, match=f"example .*the template 'plain'.*{words}.*data.template=chat"):
        template("plain").render(conversation(turns))
    row = example(messages=[HISTORY[1], {**HISTORY[2], "reasoning_content": "b"}])
    with pytest.raises(UserError, match="no place for reasoning_content"):
        template("plain").render(row)
    row = example(messages=HISTORY[1:3], tools=[{"name": "a"}])
    with pytest.raises(UserError, match="no place for tools"):
        template("plain").render(row)
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = None
    with pytest.raises(
        UserError, match=r"no place for tools\. Take a model whose chat template writes tools, or leave"
    ):
        get_template("plain", tokenizer).render(row)


@pytest.mark.parametrize("given", ["a text", None, ["a text"]])
def test_what_a_template_renders_is_looked_at(given: Any) -> None:
    class Wrong(Template):
        name = "wrong"

        def render(self, example: Any) -> Any:
            return given

    rows = examples_from_rows([{"instruction": "Name it.", "output": "A whale."}], "rows")
    encoder = Encoder(tiny_tokenizer("llama"), Wrong())
    assert "the template 'wrong' renders" in str(encoder.refused(list(rows))[0])
    with pytest.raises(UserError, match="expected a list of"):
        encoder.encode(rows)
