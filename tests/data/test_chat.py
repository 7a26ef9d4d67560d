"""The chat template has the last word: prompt, answer and end of turn are what it renders, family by family."""

from __future__ import annotations

import json
import logging
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from srd.base.errors import UserError
from srd.data.bad_rows import BadRows
from srd.data.encoding import Encoder, encode
from srd.data.examples import content_hash, examples_from_rows, row_of
from srd.data.messages import answer_of
from srd.data.settings import DataConfig
from srd.data.templates.base import get_template
from srd.data.turns import turns_of
from srd.models.tokenizers.tokens import stop_token_ids
from tests.tiny import CHAT_TEMPLATE, chat_tokenizer, tiny_model, tiny_tokenizer

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
    return chat_tokenizer(tokens, template)


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
        encoded(tokenizer, {"id": "x", "messages": talk("Why?", "So.")})
    for word in ("example x", "'some/model'", "<assistant><think>", "<assistant>So.<eos>", "or give the answers what"):
        assert word in str(caught.value)
    # What it says to do helps: the thought is put where the prompt has opened it.
    for answer in ({"content": "<think>\nb</think>So."}, {"content": "So.", "reasoning_content": "b"}):
        row = encoded(tokenizer, {"messages": [*talk("Why?"), {"role": "assistant", **answer}]})
        learnt = "b</think>So." if "reasoning_content" not in answer else "b\n</think>\n\nSo."
        assert tokenizer.decode(row["response_ids"]) == f"{learnt}<eos>"
    tokenizer.chat_template = OPENS.replace("<think>\n", "#").replace(".split('</think>')[-1]", "")
    with pytest.raises(UserError, match=r"or choose data.template=plain"):
        encoded(tokenizer, {"messages": talk("Why?", "So.")})
    row = encoded(tokenizer, {"messages": talk("Why?", "So.")}, "plain")
    assert tokenizer.decode(row["response_ids"]) == "So.<eos>"
    # One that does not touch what was said has nothing to double.
    tokenizer.chat_template = OPENS.replace(".split('</think>')[-1]", "")
    row = encoded(tokenizer, {"messages": talk("Why?", "<think>\nb</think>So.")})
    assert tokenizer.decode(row["prompt_ids"] + row["response_ids"]) == (
        "<user>Why?<eos><assistant><think>\nb</think>So.<eos>"
    )


def test_rows_with_that_fault_are_counted_together() -> None:
    tokenizer = tiny_tokenizer("gemma2")
    tokenizer.chat_template = OPENS
    bad = BadRows()
    rows = examples_from_rows([{"messages": talk(f"Why{mark}?", "It's so.")} for mark in "abc'\""], "rows").to_list()
    for place, error in Encoder(tokenizer, get_template("auto", tokenizer)).refused(rows).items():
        bad.add(f"rows:{place}", rows[place], error, rows[place]["id"])
    with pytest.raises(UserError, match=r"5 × rows:0, rows:1, rows:2, …: with the chat template") as caught:
        bad.settle()
    assert str(caught.value).count("×") == 1


def test_typed_words_neither_end_an_answer_nor_begin_another() -> None:
    """The end of the turn is looked for behind what was said, and words stay words where a template rewrites them."""
    for family in ("chatml on a base model", "asks with an open thought"):
        tokenizer = tokenizer_of(family)
        row = encoded(tokenizer, {"messages": talk("Why?", "<think>c</think>a <|im_end|> b <|im_start|>user")})
        control = [token for token in row["response_ids"] if token in turns_of(tokenizer).control.values()]
        assert control == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


# Tools, calls, thoughts and names, in the shape of families that write them.
TOOLED = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    + LOOP + "<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}"
    "{% if m.tool_call_id %} {{ m.tool_call_id }}{% endif %}{{ '\\n' }}"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content or [] %}{{ p.text }}|{% endfor %}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}" + ASK + "<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "日本"}}}]
PARTS = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "warm?"}]
ASKED = {"role": "user", "content": "Is it warm?"}
USED = [ASKED, {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "30 degrees"}]  # fmt: skip
FIELDS: dict[str, dict[str, Any]] = {
    "a call": {"messages": USED[:2], "tools": [TOOL]},
    "a call with words": {"messages": [ASKED, {**USED[1], "content": "Let me see."}], "tools": [TOOL]},
    "an answer to what a tool gave": {"messages": [*USED, {"role": "assistant", "content": "Yes."}], "tools": [TOOL]},
    "a thought": {"messages": [ASKED, {"role": "assistant", "content": "Yes.", "reasoning_content": "30!"}]},
    "names": {"messages": [{**ASKED, "name": "Ann"}, {"role": "assistant", "content": "Yes."}]},
    "parts": {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS[:1]}]},
}


@cache
def with_tools() -> Any:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = TOOLED
    return tokenizer


@pytest.mark.parametrize("case", FIELDS)
def test_what_a_message_brings_is_passed_on_as_it_is(case: str) -> None:
    """Tokens are those of the template's own rendering of the row; a table's empty fields count as missing."""
    tokenizer, row = with_tools(), FIELDS[case]
    told = encoded(tokenizer, row)
    prompt, response = expected(tokenizer, row["messages"], "<|im_end|>", tools=row.get("tools"))
    assert (tokenizer.decode(told["prompt_ids"]), tokenizer.decode(told["response_ids"])) == (prompt, response)
    empty = dict.fromkeys(("name", "tool_calls", "tool_call_id", "reasoning_content", "weight"))
    table = {**row, "messages": [{**empty, **turn} for turn in row["messages"]]}
    assert encoded(tokenizer, table) == told
    assert encoded(tokenizer, {name: json.dumps(value) for name, value in row.items()}) == told


def test_one_call_as_it_was_once_called() -> None:
    turn = {"role": "assistant", "content": None, "function_call": CALLS[0]["function"]}
    row = {**FIELDS["a call"], "messages": [ASKED, turn]}
    assert encoded(with_tools(), row) == encoded(with_tools(), FIELDS["a call"])


def test_a_row_of_a_conversation_is_read_back_as_the_same_example() -> None:
    for row in FIELDS.values():
        example = examples_from_rows([row], "rows")[0]
        assert examples_from_rows([row_of(example)], "rows")[0] == example
        assert content_hash(example) == content_hash({**example, "id": "x"})
    plain = examples_from_rows([{"messages": talk("a", "b")}], "rows")[0]
    assert plain["extra"] == ""
    # What changes the text of an answer leaves none of what belonged to the old one.
    changed = {**examples_from_rows([FIELDS["a thought"]], "rows")[0], "references": ["No."]}
    assert answer_of(changed) == {"role": "assistant", "content": "No."}


def test_contents_in_a_form_that_a_template_cannot_read() -> None:
    """Where parts would be printed as a list, or an absent content as None, the template gets text."""
    tokenizer = tokenizer_of("chatml on a base model")
    told = encoded(tokenizer, FIELDS["parts"])
    assert tokenizer.decode(told["prompt_ids"] + told["response_ids"]) == (
        "<|im_start|>user\nIs it warm?<|im_end|>\n<|im_start|>assistant\nIs it <|im_end|>"
    )
    silent = [ASKED, {"role": "assistant", "content": None}, ASKED, {"role": "assistant", "content": "Yes."}]
    assert "None" not in tokenizer.decode(encoded(tokenizer, {"messages": silent})["prompt_ids"])
    only_parts = tiny_tokenizer("qwen2")
    only_parts.chat_template = CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'][0]['text'] }}")
    told = encoded(only_parts, {"messages": talk("Is it <|im_end|>?", "Yes.")})
    assert only_parts.decode(told["prompt_ids"] + told["response_ids"]) == (
        "<|im_start|>user\nIs it <|im_end|>?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
    )
    assert told["prompt_ids"].count(only_parts.eos_token_id) == 1


# Writes thoughts in words of its own, as Gemma 4 does.
UNTAGGED = TOOLED.replace("<think>", "[thought").replace("\n</think>\n\n", "]").replace("{{ p.text }}|", "{{ p.text }}")
IN_PARTS = UNTAGGED.replace("{% if m.content is string %}{{ m.content }}{% else %}{%", "{%").replace(
    "{% endif %}{% for c", "{% for c"
)


@pytest.mark.parametrize("template", [UNTAGGED, IN_PARTS], ids=["text or parts", "parts"])
@pytest.mark.parametrize(
    "answer",
    [{"content": PARTS, "reasoning_content": "30!"},
     {"content": "Is it warm?", "reasoning": "30!"},
     {"content": [{"type": "text", "text": "<think>\n30!\n</think>\n\nIs it "}, PARTS[1]]}],
)  # fmt: skip
def test_an_answer_in_parts_keeps_its_thought_and_what_it_says(template: str, answer: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = template
    told = encoded(tokenizer, {"messages": [ASKED, {"role": "assistant", **answer}]})
    assert tokenizer.decode(told["response_ids"]) == "[thought\n30!]Is it warm?<|im_end|>"


def by_role(*roles: str) -> Any:
    """A tokenizer whose template knows these roles alone, and says nothing of others."""
    tokenizer = tiny_tokenizer("qwen2")
    known = "".join(f"{{% if m.role == '{role}' %}}[{role}] {{{{ m.content }}}} {{% endif %}}" for role in roles)
    tokenizer.chat_template = (
        LOOP
        + known
        + "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        + (ASK + "[assistant]{% endif %}")
    )
    return tokenizer


KIND, GIVEN = {"role": "system", "content": "Be kind."}, {"role": "tool", "content": "30 degrees", "name": "weather"}
#: A template, a conversation, what it leaves out, and what helps.
LEFT_OUT: dict[str, tuple[Any, list[dict[str, Any]], str, str]] = {
    "system": (by_role("user", "assistant"), [KIND, *talk("a", "b")], r"what the system says .'Be kind\.'", "=plain"),
    "developer": (by_role("system", "user", "assistant"), [{**KIND, "role": "developer"}, *talk("a", "b")],
                  "what the developer says", "=plain"),
    "a second system prompt": (by_role("user", "assistant"), [*talk("a", "b"), KIND, *talk("c", "d")],
                               "what the system says", "=plain"),
    "a tool": (by_role("user", "assistant"), [*talk("a", "b"), GIVEN, *talk("c", "d")], "what the tool says",
               "leave the row out"),
    "a question": (by_role("system", "assistant"), [KIND, *talk("a", "b")], "what the user says", "=plain"),
    "an earlier answer": (by_role("system", "user"), talk("a", "b", "c", "d"), "what the assistant says .'b'",
                          "=plain"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_row_of_which_the_template_drops_a_turn_is_refused(case: str) -> None:
    tokenizer, messages, what, remedy = LEFT_OUT[case]
    with pytest.raises(UserError, match=rf"leaves out {what}.*{remedy}"):
        encoded(tokenizer, {"messages": messages})
    (example,) = examples_from_rows([{"messages": messages}], "rows").to_list()
    assert list(Encoder(tokenizer, get_template("auto", tokenizer)).refused([example])) == [0]


def test_what_a_template_leaves_out_of_tools_and_thoughts(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, used = tokenizer_of("gemma"), FIELDS["an answer to what a tool gave"]
    for row, what in (
        (used, "the calls of tools"),
        (FIELDS["a call"], "that the answer calls a tool .'weather'"),
    ):
        with pytest.raises(UserError, match=f"leaves out {what}.*choose a model whose template writes tools"):
            encoded(tokenizer, row)
    beside = tiny_tokenizer("qwen2")
    beside.chat_template = TOOLED.replace(
        "{% if m.content is string %}", "{% if m.tool_calls %}{% elif m.content is string %}"
    )
    for model, row, what in (
        (tokenizer, {**FIELDS["names"], "tools": [TOOL]}, "tools"),
        (tokenizer, FIELDS["a thought"], "what answers thought, .* between <think> and </think>"),
        (beside, FIELDS["a call with words"], "what is said beside the call of a tool"),
    ):
        with caplog.at_level(logging.WARNING):
            Encoder(model, get_template("auto", model)).encode(examples_from_rows([row], "rows"))
        assert re.search(f"leaves out {what}: 1 of 1 examples, the first is", caplog.text)


def test_a_tool_that_the_question_names_is_missed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, call = tokenizer_of("gemma"), {"function": {"name": "warm", "arguments": {}}}
    asked = [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
    ]
    row = {"messages": [*asked, *talk("Yes.", "It is warm.")]}
    with pytest.raises(UserError, match="leaves out the calls of tools"):
        encoded(tokenizer, row)
    row = {"messages": talk("Is it warm?", "Yes."), "tools": [{"function": {"name": "warm"}}]}
    more = {**row, "messages": talk("Is it cold?", "No.")}
    encoder = Encoder(tokenizer, get_template("auto", tokenizer))
    with caplog.at_level(logging.WARNING):
        for rows, split in (([row], "validation"), ([row, more], ""), ([more], "test")):
            encoder.encode(examples_from_rows(rows, "rows"), split=split)
    told = re.findall("leaves out tools: (.*?) examples, the first is", caplog.text)
    assert told == ["1 of 1 validation", "1 of 2"]  # each row once, with those it stands among


# Answers are closed by what opens the next turn: a question, or what a tool gave.
NEXT_TURN = (
    LOOP + "<|{{ 'observation' if m.role == 'tool' else m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments }}</call>{% endfor %}{% endfor %}"
    + ASK + "<|assistant|>{% endif %}"
)  # fmt: skip


def test_a_call_is_closed_by_what_opens_the_result_of_the_tool() -> None:
    tokenizer = tiny_tokenizer("gemma2")
    words = ["<|user|>", "<|assistant|>", "<|observation|>"]
    tokenizer.add_tokens([AddedToken(word, special=True) for word in words], True)
    tokenizer.chat_template = NEXT_TURN
    call = {**CALLS[0], "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    told = encoded(tokenizer, {"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}], "tools": [TOOL]})
    assert tokenizer.decode(told["response_ids"]) == 'weather {"city": "Oslo"}</call><|observation|>'
    assert tokenizer.decode(encoded(tokenizer, {"messages": talk("a", "b")})["response_ids"]) == "b<|user|>"
    stops = tokenizer.convert_ids_to_tokens(sorted(turns_of(tokenizer).stops))
    assert set(stops) == {"<|user|>", "<|observation|>", "<eos>"}


# Templates that write JSON of any arguments, join them with text, ask for their names, or take what comes.
ARGUMENTS = {
    "JSON of them": ("{{ c.function.arguments | tojson }}", '{"city": "日本"}'),
    "joined with text": ("{{ '>' + c.function.arguments + '<' }}", '>{"city": "日本"}<'),
    "printed": ("{{ c.function.arguments }}", '{"city": "日本"}'),
    "name by name": ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", "city=日本"),
    "either": (
        "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
        '{"city": "日本"}',
    ),
}


@pytest.mark.parametrize("shape", ARGUMENTS)
def test_arguments_are_objects_or_text_as_the_template_reads_them(shape: str) -> None:
    """Data sets have both; in the answer and in the history."""
    tokenizer, (written, expected) = tiny_tokenizer("qwen2"), ARGUMENTS[shape]
    tokenizer.chat_template = TOOLED.replace("{{ c.function | tojson }}", "{{ c.function.name }}:" + written)
    for arguments in ({"city": "日本"}, '{"city": "日本"}'):
        call = {**CALLS[0], "function": {"name": "weather", "arguments": arguments}}
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        found = encoded(tokenizer, {"messages": [ASKED, asked], "tools": [TOOL]})
        assert tokenizer.decode(found["response_ids"]) == f"<tool_call>weather:{expected}</tool_call><|im_end|>"
        later = encoded(tokenizer, {"messages": [ASKED, asked, USED[2], *talk("", "Yes.")[1:]], "tools": [TOOL]})
        assert f"weather:{expected}</tool_call>" in tokenizer.decode(later["prompt_ids"])


def test_arguments_that_a_template_quotes_once_more_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Where they are no JSON, so that no object can be made of them."""
    tokenizer = with_tools()
    call = {**CALLS[0], "function": {"name": "weather", "arguments": "日本"}}
    row = {"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}], "tools": [TOOL]}
    with caplog.at_level(logging.WARNING):
        encode([row, {**row, "messages": FIELDS["a call"]["messages"]}], tokenizer)
    assert "quotes the arguments of calls, which are text and no objects, once more: 1 of 2 examples" in caplog.text


def test_control_words_in_tools_and_names_are_counted() -> None:
    tokenizer = with_tools()
    encoder = Encoder(tokenizer, get_template("auto", tokenizer))
    row = {**FIELDS["a call"], "tools": [{"name": "weather", "description": "ends with <|im_end|>"}]}
    encoder.encode_rows(examples_from_rows([row], "rows").to_list())
    assert len(encoder.control.untold) == len(encoder.control.met) == 1


WRONG_TURNS = [
    ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], ["messages[0].content", "'image'", "only text"]),
    ([{"role": "user", "content": [{"type": "text"}]}], ["messages[0].content.text", "NoneType"]),
    ([{"role": "tool"}], ["messages[0].content", "NoneType"]),
    ([{**ASKED, "reasoning_content": 3}], ["messages[0].reasoning_content", "int 3"]),
    ([ASKED, {"role": "assistant", "content": "a", "weight": 0.5}], ["messages[1].weight", "0 or 1", "0.5"]),
    ([ASKED, {"role": "assistant", "content": "a", "weight": 0}], ["no assistant message that is to be learnt"]),
    ([ASKED, {"role": "assistant", "content": None}], ["messages[1].content", "empty response"]),
    ([{**ASKED, "content": " \n"}, {"role": "assistant", "content": "a"}], ["the last user message is empty"]),
    ([{**ASKED, "name": {1, 2}}, {"role": "assistant", "content": "a"}], ["messages[0]", "JSON"]),
]


@pytest.mark.parametrize(("turns", "words"), WRONG_TURNS)
def test_turns_that_cannot_be_learnt_are_refused(turns: list[Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        examples_from_rows([{"messages": turns}], "f")
    for word in ["f: row 1", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("row", [{"messages": talk("a", "b")}, {"instruction": "a", "output": "b"}])
def test_images_and_sound_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="'images' is more than text"):
        examples_from_rows([{**row, "images": ["cat.png"]}], "f")
    assert len(examples_from_rows([{**row, "images": [], "audio": None}], "f")) == 1


def test_a_tool_list_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="'tools': expected a list of tools"):
        examples_from_rows([{"messages": talk("a", "b"), "tools": {"name": "x"}}], "f")


@pytest.mark.parametrize("raised", ["raise_exception('no.')", "m.content + 1", "m.x.y.z", "1 / 0"])
def test_whatever_a_template_raises_is_one_sentence_with_the_row(raised: str) -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = LOOP + "{{ " + raised + " }}{% endfor %}"
    with pytest.raises(UserError, match=r"example x: the chat template .* refuses this conversation") as caught:
        encoded(tokenizer, {"id": "x", "messages": talk("a", "b")})
    assert "\n" not in str(caught.value) and ".. " not in str(caught.value)
    assert "correct the template" in str(caught.value)


def test_arguments_of_the_template() -> None:
    tokenizer, row = tokenizer_of("qwen 3"), {"messages": talk("Why?", "a")}
    examples = examples_from_rows([row], "rows").to_list()
    template = get_template("auto", tokenizer, {"enable_thinking": False})
    encoder = Encoder(tokenizer, template)
    told = encoder.encode_rows(examples)
    assert tokenizer.decode(told["prompt_ids"][0]).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(told["response_ids"][0]) == "a<|im_end|>"
    assert encoder.with_template("chat").encode_rows(examples) == told  # a benchmark's template keeps them
    assert encoder.with_template("plain").template.options == {}
    public = encode([row], tokenizer, template_arguments={"enable_thinking": False})
    assert public[0]["prompt_ids"] == told["prompt_ids"][0]


NAMED = {"default": FAMILIES["gemma"][1], "tool_use": TOOLED}


def test_one_of_several_templates() -> None:
    """By name, or as transformers chooses it; what ends a turn in any of them is a stop token."""
    tokenizer = tokenizer_of("gemma")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in CHATML], True)
    tokenizer.chat_template = NAMED
    try:
        row = {"messages": talk("Why?", "a")}
        assert tokenizer.decode(encoded(tokenizer, row)["response_ids"]) == "a<end_of_turn>"
        data = DataConfig.model_validate({"train": "f", "template": {"name": "tool_use"}})
        template = get_template(data.frame[0], tokenizer, data.frame[1])
        told = Encoder(tokenizer, template).encode_rows(examples_from_rows([row], "rows").to_list())
        assert tokenizer.decode(told["response_ids"][0]) == "a<|im_end|>"
        assert tokenizer.decode(encoded(tokenizer, FIELDS["a call"])["response_ids"]).endswith("<|im_end|>")
        stops = tokenizer.convert_ids_to_tokens(sorted(turns_of(tokenizer).stops))
        assert {"<end_of_turn>", "<|im_end|>", "<eos>"} == set(stops)
        with pytest.raises(UserError, match="no chat template named 'tools'; did you mean 'tool_use'"):
            get_template("chat", tokenizer, {"chat_template": "tools"})
        tokenizer.chat_template = {"rag": TOOLED}
        with pytest.raises(UserError, match=r"several chat templates \(rag\).*data.template.name=rag"):
            encoded(tokenizer, row)
    finally:
        tokenizer_of.cache_clear()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("alpaca", {"enable_thinking": False}, "enable_thinking.*'alpaca'"),
        ("auto", {"tokenize": True}, "'tokenize' is not the recipe's to set"),
        ("chat", {"chat_template": "x"}, "it has one without a name: data.template=chat"),
    ],
)
def test_arguments_that_nothing_takes_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        get_template(name, tokenizer_of("gemma"), options)
