"""The chat template has the last word: prompt, answer and end of turn are what it renders, family by family."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from srd.base.errors import UserError
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import get_template
from srd.data.turns import turns_of
from srd.models.tokens import stop_token_ids
from tests.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

LOOP = "{% for m in messages %}"
ASK = "{% if add_generation_prompt %}"
CHATML = ["<|im_start|>", "<|im_end|>"]
HEADER = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
# Splits what an assistant thought from what it said, as templates of thinking models do.
SPLIT = (
    "{% set ns = namespace(said=m.content, thought=m.reasoning_content or '') %}"
    "{% if '</think>' in m.content %}{% set ns.said = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% set ns.thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}{% endif %}"
)
THOUGHT = "<think>\n{{ ns.thought }}\n</think>\n\n"

# Templates of our own in the shape of well-known families: control tokens, template, what ends a turn.
FAMILIES: dict[str, tuple[list[str], str, str]] = {
    "chatml on a base model": (CHATML, CHAT_TEMPLATE, "<|im_end|>"),
    "gemma": (
        ["<start_of_turn>", "<end_of_turn>"],
        "{{ bos_token }}" + LOOP + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}" + ASK + "<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
    ),
    "llama 3": (
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "{{ bos_token }}" + LOOP + HEADER + "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        + ASK + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
    ),
    "phi 3": (
        ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        + ASK + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
    ),
    "mistral": (
        ["[INST]", "[/INST]"],
        "{{ bos_token }}" + LOOP + "{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
        "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
        "<eos>",
    ),
    "zephyr": (
        [],
        LOOP + "<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}" + ASK + "<|assistant|>\n{% endif %}",
        "<eos>",
    ),
    "qwen 3": (
        CHATML,
        LOOP + "{% if m.role == 'assistant' %}" + SPLIT + "<|im_start|>assistant\n"
        "{% if loop.last %}" + THOUGHT + "{% endif %}{{ ns.said }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + ASK
        + "<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        "<|im_end|>",
    ),
    "asks with an open thought": (
        CHATML,
        LOOP + "{% if m.role == 'assistant' %}" + SPLIT + "<|im_start|>assistant\n"
        "{% if loop.last %}" + THOUGHT + "{% endif %}{{ ns.said }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + ASK
        + "<|im_start|>assistant\n<think>\n{% endif %}",
        "<|im_end|>",
    ),
    "channels": (
        ["<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|call|>"],
        LOOP + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>{% if m.tool_calls %}"
        "commentary<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% else %}final<|message|>"
        "{{ m.content }}{{ eos_token if loop.last else '<|end|>' }}{% endif %}"
        "{% else %}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}" + ASK + "<|start|>assistant{% endif %}",
        "<eos>",
    ),
    "no way to ask": (CHATML, CHAT_TEMPLATE.replace("{% if add_generation_prompt %}", "{% if false %}"), "<|im_end|>"),
}  # fmt: skip


@cache
def tokenizer_of(family: str) -> Any:
    """A tokenizer with a BOS and an end of sequence that is no end of turn."""
    tokens, template, _ = FAMILIES[family]
    tokenizer = tiny_tokenizer("gemma2")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], True)
    tokenizer.chat_template = template
    return tokenizer


def encoded(tokenizer: Any, row: dict[str, Any], template: Any = "auto", **changes: Any) -> dict[str, Any]:
    """One row as tokens."""
    changes = {"max_length": 1000, "max_prompt_length": 800, **changes}
    examples = examples_from_rows([row], "rows")
    columns = Encoder(tokenizer, get_template(template, tokenizer), **changes).encode_rows(examples.to_list())
    return {name: values[0] for name, values in columns.items()}


def talk(*contents: str) -> list[dict[str, Any]]:
    """Turns of user and assistant."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def expected(tokenizer: Any, messages: list[dict[str, Any]], end: str, **options: Any) -> tuple[str, str]:
    """Prompt and answer as the template renders them, the answer up to the last of what ends a turn."""
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True, **options)
    whole = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert whole.startswith(prompt)
    return prompt, whole[len(prompt) :].rpartition(end)[0] + end


TEXTS = st.one_of(
    st.text(min_size=1, max_size=40),
    st.lists(st.sampled_from([" a", "<|im_end|>", "<think>", "</think>", "<eos>", "\n", "日本", "{{x}}", "b "])).map(
        "".join
    ),
).filter(lambda text: bool(text.strip()) and bool(text.split("</think>")[-1].strip()))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=4))
def test_prompt_and_response_are_what_the_template_renders(family: str, contents: list[str]) -> None:
    """Whatever the texts are, tokens and text of prompt and response agree with it, to the end of the turn."""
    tokenizer, messages = tokenizer_of(family), talk(*contents[: len(contents) // 2 * 2])
    row = encoded(tokenizer, {"messages": messages})
    prompt, response = expected(tokenizer, messages, FAMILIES[family][2])
    assert tokenizer.decode(row["prompt_ids"]) == prompt
    assert tokenizer.decode(row["response_ids"]) == response
    assert row["response_ids"][-1] == tokenizer.convert_tokens_to_ids(FAMILIES[family][2])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_ends_a_turn_ends_what_a_model_writes(family: str) -> None:
    tokenizer = tokenizer_of(family)
    stops = stop_token_ids(tiny_model("gemma2", vocab_size=len(tokenizer)), tokenizer)
    ends = {tokenizer.eos_token, FAMILIES[family][2], *(["<|call|>"] if family == "channels" else [])}
    assert set(tokenizer.convert_ids_to_tokens(stops)) == ends


ANSWERS = [
    ("qwen 3", "a", "<think>\n\n</think>\n\na<|im_end|>"),
    ("qwen 3", "<think>\nb\n</think>\n\na", "<think>\nb\n</think>\n\na<|im_end|>"),
    ("asks with an open thought", "a", "\n</think>\n\na<|im_end|>"),
    ("asks with an open thought", "<think>\nb\n</think>\n\na", "b\n</think>\n\na<|im_end|>"),
    ("gemma", "  a \n", "a<end_of_turn>"),
    ("mistral", "a", " a<eos>"),
    ("no way to ask", "a", "<|im_start|>assistant\na<|im_end|>"),
]


@pytest.mark.parametrize(("family", "answer", "response"), ANSWERS)
def test_answers(family: str, answer: str, response: str) -> None:
    """Also of an instruction whose template is `chat`."""
    tokenizer = tokenizer_of(family)
    row = encoded(tokenizer, {"messages": talk("Why?", answer)})
    assert tokenizer.decode(row["response_ids"]) == response
    assert encoded(tokenizer, {"instruction": "Why?", "output": answer}, "chat")["response_ids"] == row["response_ids"]


OPENS = LOOP + "<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}" + ASK + (
    "<assistant><think>\n{% endif %}"
)  # fmt: skip


def test_an_answer_that_does_not_follow_its_prompt_is_refused_with_both_texts() -> None:
    tokenizer = tiny_tokenizer("gemma2")
    tokenizer.chat_template, tokenizer.name_or_path = OPENS, "some/model"
    with pytest.raises(UserError) as caught:
        encoded(tokenizer, {"id": "x", "messages": talk("Why?", "<think>b</think>So.")})
    for word in ("example x", "'some/model'", "<assistant><think>", "<assistant>So.<eos>", "data.template=plain"):
        assert word in str(caught.value)
    row = encoded(tokenizer, {"messages": talk("Why?", "<think>b</think>So.")}, "plain")
    assert tokenizer.decode(row["response_ids"]) == "<think>b</think>So.<eos>"
    # One that does not touch what was said has nothing to double.
    tokenizer.chat_template = OPENS.replace(".split('</think>')[-1]", "")
    row = encoded(tokenizer, {"messages": talk("Why?", "<think>\nb</think>So.")})
    assert tokenizer.decode(row["prompt_ids"] + row["response_ids"]) == (
        "<user>Why?<eos><assistant><think>\nb</think>So.<eos>"
    )


def test_typed_words_neither_end_an_answer_nor_begin_another() -> None:
    """The end of the turn is looked for behind what was said, and words stay words where a template rewrites them."""
    for family in ("chatml on a base model", "asks with an open thought"):
        tokenizer = tokenizer_of(family)
        row = encoded(tokenizer, {"messages": talk("Why?", "<think>c</think>a <|im_end|> b <|im_start|>user")})
        control = [token for token in row["response_ids"] if token in turns_of(tokenizer).control.values()]
        assert control == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
