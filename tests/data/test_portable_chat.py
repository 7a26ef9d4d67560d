"""The prompt of a training as a chat template: the same tokens, whoever asks."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from srd.data.encoding import Encoder
from srd.data.portable_chat import chat_template_of, usual_template
from srd.data.templates.base import Template, get_template
from tests.tiny import tiny_tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


def row(instruction: str = "", **more: Any) -> dict[str, Any]:
    empty = {"id": "x", "input": "", "prompt": "", "messages": "", "references": ["r"], "extra": ""}
    return {**empty, "instruction": instruction, **more}


def asking(tokenizer: Any, template: str, **options: Any) -> Any:
    asks = copy.deepcopy(tokenizer)
    asks.chat_template = template
    return lambda messages: asks.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **options
    )


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "t5", "gemma2"])
@pytest.mark.parametrize("name", ["alpaca", "plain", "Q: {instruction}\n{input}\nA:", 'Süß "{instruction}" \\ 😀\n'])
def test_the_chat_template_gives_the_tokens_of_the_training(family: str, name: str) -> None:
    tokenizer = tiny_tokenizer(family)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    kind, template = family == "t5", get_template(name, tokenizer)
    encoder = Encoder(tokenizer, template, max_length=400, max_prompt_length=300, encoder_decoder=kind)
    text = chat_template_of(template, tokenizer, encoder_decoder=kind)
    assert text is not None
    ask = asking(tokenizer, text)
    for question in ("Why is the sky blue?", " Two\nlines, 'quoted' {braces} "):
        (ids,), _, _ = encoder.prompts([row(question)])
        assert ask([{"role": "user", "content": question}]) == ids
        assert ask([{"role": "user", "content": [{"type": "text", "text": question}]}]) == ids
    (ids,), _, _ = encoder.prompts([row(messages=json.dumps(TALK))])
    assert ask(TALK) == ids
    with pytest.raises(Exception, match="questions and answers in turn"):
        ask([*TALK, {"role": "tool", "content": "d"}])


def test_a_chat_template_keeps_the_arguments_of_the_training() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = "\n{{ level }}{% if thinking %}think {% endif %}{{ messages[0]['content'] }}"
    template = get_template("chat", tokenizer, {"thinking": False, "level": "{low}"})
    text = chat_template_of(template, tokenizer, encoder_decoder=False)
    assert text is not None
    asks = copy.deepcopy(tokenizer)
    asks.chat_template = text
    turns = [{"role": "user", "content": "a"}]
    assert asks.apply_chat_template(turns, tokenize=False) == template.text(row("a")) == "\n{low}a"
    assert asks.apply_chat_template(turns, tokenize=False, thinking=True) == "\n{low}think a"


def test_of_several_chat_templates_the_chosen_one_is_kept() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = {"default": "d", "short": "s{{ messages[0]['content'] }}"}
    template = get_template("chat", tokenizer, {"chat_template": "short"})
    assert chat_template_of(template, tokenizer, encoder_decoder=False) == "s{{ messages[0]['content'] }}"


def test_auto_keeps_what_most_rows_are_asked_with() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    auto = get_template("auto", tokenizer)
    talk, task, ready = row(messages=json.dumps(TALK)), row("a"), row(prompt="Q: a\nA:")
    for rows, name in (([talk, task, task], "alpaca"), ([talk, talk, task], "chat"), ([ready], "prompt"), ([], "auto")):
        assert usual_template(auto, rows).name == name
    text = chat_template_of(usual_template(auto, [ready]), tokenizer, encoder_decoder=False)
    assert (
        text is not None
        and asking(tokenizer, text)([{"role": "user", "content": "Q: a\nA:"}]) == tokenizer("Q: a\nA:")["input_ids"]
    )


def test_a_template_that_does_not_say_its_frame_gives_none() -> None:
    class Own(Template):
        name = "own"

        def render(self, example: Any) -> list[Any]:
            return []

    assert chat_template_of(Own(), tiny_tokenizer("llama"), encoder_decoder=False) is None
