"""Families of the last years, with templates in their shape: what was thought is learnt, once, behind its prompt."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import get_template
from srd.run.manifest import Manifest
from tests.data.families import ANSWERING, THINKING, Family


def encoded(family: Family, row: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], str, str]:
    """A row as tokens, and the texts of its prompt and response."""
    tokenizer = family.tokenizer
    template = get_template("auto", tokenizer, family.options or None)
    encoder = Encoder(tokenizer, template, max_length=900, max_prompt_length=800, **changes)
    columns = encoder.encode_rows(examples_from_rows([row], "rows").to_list())
    found = {name: values[0] for name, values in columns.items()}
    return found, tokenizer.decode(found["prompt_ids"]), tokenizer.decode(found["response_ids"])


def talk(*contents: Any) -> dict[str, Any]:
    turns = [text if isinstance(text, dict) else {"content": text} for text in contents]
    return {"messages": [{"role": ("user", "assistant")[i % 2], **turn} for i, turn in enumerate(turns)]}


# One thought, as data sets tell it.
FORMS = {
    "a field": {"content": "So.", "reasoning_content": "Hm, why"},
    "tags with lines": {"content": "<think>\nHm, why\n</think>\n\nSo."},
    "bare tags": {"content": "<think>Hm, why</think>So."},
    "a tag at its end": {"content": "Hm, why\n</think>\n\nSo."},
}
# What is learnt behind what the prompt ends with, for each form.
OPENED = ("Hm, why\n</think>\n\nSo.", "Hm, why\n</think>\n\nSo.", "Hm, why</think>So.", "Hm, why\n</think>\n\nSo.")
WHOLE = "<think>\nHm, why\n</think>\n\nSo."
AS_IT_IS = (WHOLE, WHOLE, FORMS["bare tags"]["content"], FORMS["a tag at its end"]["content"])
CHANNEL = "<|channel|>analysis<|message|>Hm, why<|end|><|start|>assistant<|channel|>final<|message|>So."
LEARNT: dict[str, tuple[str, tuple[str, ...]]] = {
    "deepseek r1": ("<think>\n", OPENED),
    "deepseek r1, later": ("<｜Assistant｜>", AS_IT_IS),
    "deepseek v3.1, thinking": ("<think>", ("Hm, why</think>So.", "\nHm, why\n</think>\n\nSo.", *OPENED[2:])),
    "qwq": ("<think>\n", OPENED),
    "qwen 3": ("assistant\n", (WHOLE,) * 4),
    "qwen 3, thinking": ("<think>\n", (OPENED[0],) * 4),
    "glm 4.5": ("<|assistant|>", ("\n<think>Hm, why</think>\nSo.",) * 4),
    "harmony": ("<|start|>assistant", (CHANNEL,) * 4),
    "a tag that is a control token": ("<think>\n", OPENED),
}


QWEN = THINKING["qwen 3, thinking"]
ASKING = QWEN.template.rpartition("'<think>\\n'")
SWITCHED_OFF = {
    "qwen 3": replace(QWEN, template="'<think>\\n\\n</think>\\n\\n'".join(ASKING[::2])),
    "deepseek v3.1": replace(THINKING["deepseek v3.1, thinking"], options={"thinking": False}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", SWITCHED_OFF)
def test_no_thought_is_learnt_behind_a_prompt_that_has_ended_it(family: str, form: str) -> None:
    with pytest.raises(UserError, match=r"does not follow its prompt.*data\.template_arguments"):
        encoded(SWITCHED_OFF[family], talk("Why?", FORMS[form]))
    _, prompt, response = encoded(SWITCHED_OFF[family], talk("Why?", "So."))
    assert prompt.rstrip().endswith("</think>") and response.startswith("So."), "as the message says"


@pytest.mark.parametrize("family", LEARNT)
def test_a_thought_is_learnt_once_however_it_is_told(family: str) -> None:
    shape, (asked, answers) = THINKING[family], LEARNT[family]
    for form, learnt in zip(FORMS.values(), answers, strict=True):
        found, prompt, response = encoded(shape, talk("Why?", form))
        assert prompt.endswith(asked)
        assert response == learnt + shape.end
        tokenizer = shape.tokenizer
        assert tokenizer(prompt + response, add_special_tokens=False)["input_ids"] == (
            found["prompt_ids"] + found["response_ids"]
        )


DATED = Family(
    ["<|im_start|>", "<|im_end|>"],
    "{{ 'Today is ' + strftime_now('%d %b %Y %H:%M:%S.%f') }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "<|im_end|>",
)


def test_a_date_in_a_template_is_that_of_the_run_however_long_it_takes(tmp_path: Path) -> None:
    day, rows = date(2031, 5, 17), examples_from_rows([talk("Why?", "So.", "And?", "No.")], "rows").to_list()
    template = get_template("auto", DATED.tokenizer, None, day)
    for name in ("auto", "chat"):
        encoder = Encoder(DATED.tokenizer, template).with_template(name)
        found = encoder.encode_rows(rows)
        assert DATED.tokenizer.decode(found["prompt_ids"][0]).startswith("Today is 17 May 2031 00:00:00.000000<|im_")
        assert found == encoder.encode_rows(rows)
    begun = Manifest(tmp_path)
    assert begun.day == date.today()
    begun.content["day"] = day.isoformat()
    begun.save()
    assert Manifest(tmp_path).day == day


TALKS = [
    talk("Why?", "So."),
    talk("Why 日本?", " Hm.\n\nSo. ", "And <|im_end|> <eos>?", "Never; [/INST] 'x'."),
    talk(" a ", "b"),
]


@pytest.mark.parametrize("family", ANSWERING)
def test_tokens_are_the_rendering_of_the_whole_to_the_end_of_the_turn(family: str) -> None:
    """What was typed stays as it is; with all answers learnt, too."""
    shape = ANSWERING[family]
    for row in TALKS:
        whole = shape.tokenizer.apply_chat_template(row["messages"], tokenize=False)
        for train_on in ("last", "all"):
            found, prompt, response = encoded(shape, row, train_on=train_on)
            assert prompt + response == whole.rpartition(shape.end)[0] + shape.end
            assert found["response_ids"][-1] == shape.tokenizer.convert_tokens_to_ids(shape.end)
            assert len(found.get("earlier", [])) == (train_on == "all") * (len(row["messages"]) - 2)
