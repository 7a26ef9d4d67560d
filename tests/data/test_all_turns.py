"""All assistant turns of a conversation at once: where they stand, what is learnt of them, and what they score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from srd.base.errors import UserError
from srd.base.tables import column
from srd.curation.reflection import own_losses, reflect
from srd.data.batching import Collator, EncodedExamples, learnt_spans
from srd.data.encoding import Encoder, encode
from srd.data.examples import examples_from_rows, one_for_each_answer
from srd.data.templates.base import get_template
from srd.models.head import response_losses
from srd.training.cache.building import build_cache
from tests.data.families import THINKING
from tests.data.test_chat import ASK, FAMILIES, LOOP, TOOL, USED, talk, tokenizer_of, with_tools
from tests.tiny import chat_tokenizer, tiny_model, tiny_tokenizer

TALK = talk("Name it.", "whale <eos>", "And?", "dolphin, 鯨", "More?", "No.")
ROWS = [{"messages": TALK}, {"messages": talk("Why?", "So.")}, {"messages": talk("a", "b c d", "e", "f")}]


def encoded(tokenizer: Any, row: dict[str, Any], template: str = "auto", **options: Any) -> dict[str, Any]:
    options = {"max_length": 900, "max_prompt_length": 800, "train_on": "all", **options}
    columns = Encoder(tokenizer, get_template(template, tokenizer), **options).encode_rows(
        examples_from_rows([row], "rows").to_list()
    )
    return {name: values[0] for name, values in columns.items()}


def parts(tokenizer: Any, row: dict[str, Any]) -> list[tuple[str, str]]:
    """Each answer that is learnt, with the text before it."""
    ids = row["prompt_ids"] + row["response_ids"]
    return [(tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:end])) for start, end in learnt_spans(row)]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("asks with an open thought", "channels")])
def test_each_answer_stands_behind_its_own_prompt(family: str) -> None:
    """To what ends its turn; what was typed ends none."""
    tokenizer, end = tokenizer_of(family), FAMILIES[family][2]
    found = parts(tokenizer, encoded(tokenizer, {"messages": TALK}))
    assert len(found) == 3
    for (prompt, answer), place in zip(found, (1, 3, 5), strict=True):
        asked = tokenizer.apply_chat_template(TALK[:place], tokenize=False, add_generation_prompt=True)
        assert prompt == asked
        assert answer.endswith(TALK[place]["content"] + end)
    last = encoded(tokenizer, {"messages": TALK}, train_on="last")
    assert "earlier" not in last
    assert {**last, "earlier": encoded(tokenizer, {"messages": TALK})["earlier"]} == encoded(
        tokenizer, {"messages": TALK}
    )


@pytest.mark.parametrize("mask", [{"weight": 0}, {"loss_mask": 0}, {"train": False}, {"weight": 0.0, "train": True}])
@pytest.mark.parametrize("template", ["auto", "plain"])
def test_turns_that_are_not_to_be_learnt(mask: dict[str, Any], template: str) -> None:
    tokenizer = tokenizer_of("gemma")
    turns = [{**turn, **mask} if place == 3 else {**turn, "weight": 1} for place, turn in enumerate(TALK)]
    answers = [answer for _, answer in parts(tokenizer, encoded(tokenizer, {"messages": turns}, template))]
    assert [answer.partition("<e")[0].strip() for answer in answers] == ["whale", "No."]
    # Without the last, the one before it is the answer, and nothing behind it is read.
    turns = [*TALK[:5], {**TALK[5], **mask}]
    row = encoded(tokenizer, {"messages": turns}, template)
    assert tokenizer.decode(row["response_ids"]).startswith("dolphin, 鯨<e")
    assert "More?" not in tokenizer.decode(row["prompt_ids"])


def test_calls_of_tools_are_answers_too() -> None:
    tokenizer = with_tools()
    row = {"messages": [*USED, {"role": "assistant", "content": "Yes."}], "tools": [TOOL]}
    (_, call), (_, answer) = parts(tokenizer, encoded(tokenizer, row))
    assert call.startswith('<tool_call>{"name": "weather"') and call.endswith("</tool_call><|im_end|>")
    assert answer == "Yes.<|im_end|>"


@pytest.mark.parametrize("template", ["alpaca", "plain", "Q: {instruction}\nA:"])
def test_templates_without_roles(template: str) -> None:
    tokenizer = tiny_tokenizer("llama")
    found = parts(tokenizer, encoded(tokenizer, {"messages": TALK}, template))
    assert [answer for _, answer in found] == ["whale <eos></s>", "dolphin, 鯨</s>", "No.</s>"]
    text = get_template(template, tokenizer).text(examples_from_rows([{"messages": TALK[:2]}], "rows")[0])
    assert found[0][0] == f"<s>{text}"


@pytest.mark.parametrize("template", ["auto", "plain"])
def test_an_answer_that_was_cut_is_not_learnt(template: str) -> None:
    """Content is cut from the oldest turn on: what lost a part of itself is context only."""
    tokenizer = tokenizer_of("chatml on a base model")
    row = {"messages": [{**TALK[0]}, {**TALK[1], "content": "whale " * 30}, *TALK[2:]]}
    whole = encoded(tokenizer, row, template)
    longest = len(whole["prompt_ids"]) - 10
    cut = encoded(tokenizer, row, template, max_prompt_length=longest)
    assert len(whole["earlier"]) == 4 and cut["prompt_cut"]
    assert [answer for _, answer in parts(tokenizer, cut)] == [answer for _, answer in parts(tokenizer, whole)][1:]


THOUGHTS = talk(
    "Name it.", "<think>\nbig\n</think>\n\nwhale", "And?", "dolphin", "More?", "<think>\nnone\n</think>\n\nNo."
)


@pytest.mark.parametrize("family", ["deepseek r1", "qwq", "qwen 3", "qwen 3, thinking", "deepseek v3.1, thinking"])
def test_answers_that_one_text_cannot_hold_become_examples_of_their_own(family: str) -> None:
    """Each is what it would be as the last of its conversation, and what came before is context only."""
    shape, turns = THINKING[family], [{**turn} for turn in THOUGHTS]
    turns[3]["train"] = False
    (example,) = examples_from_rows([{"id": "a", "messages": turns, "tools": [TOOL]}], "rows").to_list()
    template = get_template("auto", shape.tokenizer, shape.options or None)
    encoder = Encoder(shape.tokenizer, template, max_length=900, max_prompt_length=800, train_on="all")
    assert encoder.divided_ids([example]) == ["a"] and not encoder.refused([example])
    parts = one_for_each_answer(example)
    assert [part["id"] for part in parts] == ["a#2", "a"] and encoder.divided_ids(parts) == []
    alone = Encoder(shape.tokenizer, template, max_length=900, max_prompt_length=800)
    cut = [{"messages": turns[: place + 1], "tools": [TOOL]} for place in (1, 5)]
    expected = alone.encode_rows(examples_from_rows(cut, "rows").to_list())
    assert encoder.encode_rows(parts) == {**expected, "earlier": [[], []]}
    assert [shape.tokenizer.decode(ids).count("</think>") for ids in expected["response_ids"]] == [1, 1]


UNENDED = {
    "harmony": THINKING["harmony"].tokenizer,
    "channels": tokenizer_of("channels"),
    "an end at the end": chat_tokenizer(
        [],
        LOOP + "{{ m.role + ': ' + m.content }}{% endfor %}" + ASK + "assistant: {% else %}{{ eos_token }}{% endif %}",
    ),
    "no end": chat_tokenizer([], LOOP + "{{ m.role + ': ' + m.content }}{% endfor %}" + ASK + "assistant: {% endif %}"),
}


@pytest.mark.parametrize("family", UNENDED)
def test_an_earlier_answer_that_ends_in_what_no_model_stops_at_becomes_an_example_of_its_own(family: str) -> None:
    """GPT-OSS ends the last answer with <|return|>, but earlier ones as it ends a thought, with <|end|>."""
    tokenizer = UNENDED[family]
    encoder = Encoder(tokenizer, get_template("auto", tokenizer), max_prompt_length=800, train_on="all")
    (example,) = examples_from_rows([{"id": "a", "messages": TALK}], "rows").to_list()
    assert encoder.divided_ids([example]) == ["a"] and not encoder.refused([example])
    rows = encoder.encode_rows(one_for_each_answer(example))
    assert rows["earlier"] == [[], [], []]
    for ids, place in zip(rows["response_ids"], (1, 3, 5), strict=True):
        assert tokenizer.decode(ids).endswith(TALK[place]["content"] + "<eos>")
    with pytest.raises(UserError, match=r"behind the earlier answer .*whale.*data.train_on=last"):
        encoder.encode_rows([example])
    assert encoded(tokenizer, {"messages": TALK}, train_on="last")["response_ids"] == rows["response_ids"][2]


def test_an_earlier_answer_that_does_not_follow_its_prompt_is_refused() -> None:
    """Where rows are to stay what they are."""
    tokenizer = tokenizer_of("asks with an open thought")
    with pytest.raises(UserError, match=r"does not follow its prompt.*data.train_on=last"):
        encoded(tokenizer, {"messages": TALK})
    assert encoded(tokenizer, {"messages": TALK}, train_on="last")["response_ids"]
    with pytest.raises(UserError, match=r"data.train_on is all, but an encoder-decoder.*data.train_on=last"):
        encoded(tiny_tokenizer("t5"), {"messages": TALK}, "plain", encoder_decoder=True)


@pytest.fixture(scope="module")
def together() -> tuple[Any, Any, datasets.Dataset]:
    """A model, its tokenizer, and three conversations of three, one and two answers."""
    tokenizer = tiny_tokenizer("qwen2")
    return tiny_model("qwen2"), tokenizer, encode(ROWS, tokenizer, train_on="all")


def test_one_pass_gives_what_each_answer_alone_would(together: tuple[Any, Any, datasets.Dataset]) -> None:
    """Targets and losses are those of a row for each answer; packed, too."""
    model, _, rows = together
    alone = [
        {"prompt_ids": (ids := row["prompt_ids"] + row["response_ids"])[:start], "response_ids": ids[start:end]}
        for row in rows
        for start, end in learnt_spans(row)
    ]
    assert len(alone) == 6
    with torch.no_grad():
        each, batch = Collator(0)(alone), Collator(0)([EncodedExamples(rows).tokens(i) for i in range(3)])
        losses, expected = response_losses(model, batch), response_losses(model, each)
    assert batch["targets"].tolist() == each["targets"].tolist()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    packed = Collator(0, packed=True)(rows.to_list())
    assert packed["targets"].tolist() == batch["targets"].tolist()
    assert packed["input_ids"][0, packed["index"] + 1].tolist() == batch["targets"].tolist()
    assert EncodedExamples(rows).response_tokens == len(batch["targets"]) == sum(EncodedExamples(rows).learnt)
    ids = rows["id"][:]
    assert EncodedExamples(rows).subset(ids[1:]).learnt == EncodedExamples(rows).learnt[1:]


def test_the_cache_holds_every_answer(together: tuple[Any, Any, datasets.Dataset], tmp_path: Any) -> None:
    model, _, rows = together
    examples = EncodedExamples(rows)
    cache = build_cache(tmp_path / "cache", lambda: model, examples, Collator(0), dtype="float32", batch_size=2)
    assert cache.holds(examples)
    for index in range(3):
        assert len(cache.hidden(*examples.tokens(index).values())) == examples.learnt[index]
    last = EncodedExamples(rows.remove_columns("earlier"))
    assert not cache.holds(last)


def test_scores_are_means_over_the_tokens_of_the_turns(
    together: tuple[Any, Any, datasets.Dataset], tmp_path: Path
) -> None:
    """Each turn is answered and read behind its own prompt; a row of one turn has what it has without."""
    model, tokenizer, rows = together
    examples = examples_from_rows(ROWS, "examples")
    options = {"max_new_tokens": 6, "batch_size": 2}
    scores = reflect(model, tokenizer, examples, encoded=rows, folder=tmp_path, **options)
    last = own_losses([tmp_path], column(examples, "id"))
    assert scores["id"][:] == examples["id"][:] == rows["id"][:]
    for number, row in enumerate(ROWS):
        answers = [place for place, turn in enumerate(row["messages"]) if turn["role"] == "assistant"]
        turns = [{"messages": row["messages"][: place + 1]} for place in answers]
        own = reflect(model, tokenizer, turns, **options)
        tokens = [len(ids) for ids in encode(turns, tokenizer)["response_ids"]]
        assert last[number]["ce"] == pytest.approx(own["ce"][-1], abs=1e-5)
        for name in ("rouge_l", "ce"):
            assert scores[number][name] == pytest.approx(np.average(own[name], weights=tokens), abs=1e-5)
        assert scores[number]["response"] == "\n\n".join(own["response"])
