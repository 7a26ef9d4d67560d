"""From text to tokens: the frame is kept, the end of sequence is a target, responses are what follows the prompt."""

from __future__ import annotations

import json
import logging
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from srd.base.errors import UserError
from srd.data.batching import Collator
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import get_template
from srd.models.tokenizers.tokens import padding_id
from tests.tiny import FAMILIES, tiny_tokenizer

LONG = "the whale and the dolphin live in the sea " * 40


def encoder(tokenizer: Any, template: str = "alpaca", **changes: Any) -> Encoder:
    return Encoder(tokenizer, get_template(template, tokenizer), **changes)


def one(tokenizer: Any, row: dict[str, Any], template: str = "alpaca", **changes: Any) -> dict[str, Any]:
    """Encode one row."""
    encoded: dict[str, Any] = encoder(tokenizer, template, **changes).encode(examples_from_rows([row], "rows"))[0]
    return encoded


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    rows = [{"instruction": f"Question {i}?", "output": "Yes."} for i in range(1500)]
    encoder(tiny_tokenizer()).encode(examples_from_rows(rows, "rows"), progress=lambda *counts: told.append(counts))
    assert told == [(1000, 1500), (1500, 1500)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "opt", "gemma2"])
def test_the_response_is_what_follows_the_prompt(family: str) -> None:
    """Prompt and response together are the tokens of the joint text, then the end of sequence; no BOS in between."""
    tokenizer = tiny_tokenizer(family)
    row = {"instruction": "Why is the sky blue?", "input": "in the air", "output": "Because particles scatter light."}
    encoded = one(tokenizer, row)
    text = get_template("alpaca", tokenizer).text(examples_from_rows([row], "rows")[0])
    assert encoded["prompt_ids"] == tokenizer(text)["input_ids"]
    assert encoded["prompt_ids"] + encoded["response_ids"][:-1] == tokenizer(text + row["output"])["input_ids"]
    assert encoded["response_ids"][-1] == tokenizer.eos_token_id
    assert not encoded["prompt_cut"] and not encoded["response_cut"]
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert not special & set(encoded["response_ids"][:-1])


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_encoder_decoder_models_have_the_response_on_its_own(family: str) -> None:
    tokenizer = tiny_tokenizer(family)
    row = {"instruction": "Why is the sky blue?", "output": "Because particles scatter light."}
    encoded = one(tokenizer, row, "plain", encoder_decoder=True, max_length=40, max_prompt_length=30)
    assert encoded["prompt_ids"] == tokenizer("Why is the sky blue?\n")["input_ids"]
    assert encoded["response_ids"] == tokenizer(row["output"])["input_ids"]
    assert encoded["response_ids"].count(tokenizer.eos_token_id) == 1
    # The decoder's length is its own: a long prompt leaves it as much room.
    long = one(
        tokenizer,
        {"instruction": LONG, "output": LONG},
        "plain",
        encoder_decoder=True,
        max_length=40,
        max_prompt_length=30,
    )
    assert len(long["response_ids"]) == 40 and len(long["prompt_ids"]) == 30


def sentencepiece_like() -> Any:
    """A tokenizer that puts a space before every text, as SentencePiece does."""
    tokenizer = tiny_tokenizer("llama")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def test_no_space_is_put_before_a_response() -> None:
    """Tokenised on its own the response would begin with a space that is never there at inference."""
    tokenizer = sentencepiece_like()
    encoded = one(tokenizer, {"instruction": "Name it.", "output": "whale"}, "plain")
    assert tokenizer.decode(encoded["response_ids"][:-1]) == "whale"
    assert (
        tokenizer(" whale", add_special_tokens=False)["input_ids"]
        == tokenizer("whale", add_special_tokens=False)["input_ids"]
    )
    assert tokenizer("Name it.\nwhale")["input_ids"] == encoded["prompt_ids"] + encoded["response_ids"][:-1]


def test_where_prompt_and_response_run_into_each_other_the_prompt_stays() -> None:
    """At inference the prompt is tokenised alone, so training must see those very tokens."""
    tokenizer = tiny_tokenizer("gpt2")
    row = {"prompt": "What does the func", "completion": "tion return?"}
    encoded = one(tokenizer, row, "auto")
    alone = tokenizer("What does the func")["input_ids"]
    assert tokenizer("What does the function return?")["input_ids"][: len(alone)] != alone
    assert encoded["prompt_ids"] == alone
    assert tokenizer.decode(encoded["response_ids"][:-1]) == "tion return?"


@given(st.text(min_size=1, max_size=60).filter(str.strip), st.text(min_size=1, max_size=60).filter(str.strip))
def test_any_text_comes_back(instruction: str, output: str) -> None:
    tokenizer = tiny_tokenizer("gpt2")
    encoded = one(tokenizer, {"instruction": instruction, "output": output}, "plain")
    if encoded["prompt_cut"]:
        return
    *response, last = encoded["response_ids"]
    assert tokenizer.decode(encoded["prompt_ids"]) == instruction + "\n"
    assert last == tokenizer.eos_token_id and tokenizer.decode(response) == output


@pytest.mark.parametrize("family", FAMILIES)
def test_pad_equal_to_end_of_sequence_keeps_it_as_a_target(family: str) -> None:
    """In every family the last target of each response is the end of sequence, and it is attended to as text."""
    tokenizer = tiny_tokenizer(family)
    pair = family in ("t5", "mt5")
    rows = [{"instruction": "Name it.", "output": text} for text in ("whale", "the whale and the dolphin")]
    encoded = encoder(tokenizer, "plain", encoder_decoder=pair).encode(examples_from_rows(rows, "rows"))
    batch = Collator(padding_id(tokenizer), 0 if pair else None)(encoded.to_list())
    ends = [len(ids) - 1 for ids in encoded["response_ids"]]
    assert batch["targets"][ends[0]] == batch["targets"][ends[0] + 1 + ends[1]] == tokenizer.eos_token_id
    if not pair:
        assert batch["attention_mask"].sum(1).tolist() == [
            len(row["prompt_ids"]) + len(row["response_ids"]) for row in encoded.to_list()
        ]
    if family == "gpt2":
        assert padding_id(tokenizer) == tokenizer.eos_token_id
        assert (batch["targets"] == tokenizer.eos_token_id).sum() == 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("with_input", [True, False])
def test_a_long_prompt_loses_content_and_keeps_its_frame(family: str, with_input: bool) -> None:
    tokenizer = tiny_tokenizer(family)
    row = {"instruction": "Summarise it." if with_input else LONG, "input": LONG if with_input else "", "output": "sea"}
    encoded = one(tokenizer, row, max_prompt_length=200, max_length=220)
    text = tokenizer.decode(encoded["prompt_ids"], skip_special_tokens=True)
    assert encoded["prompt_cut"]
    assert 195 <= len(encoded["prompt_ids"]) <= 200
    assert text.startswith("Below is an instruction that describes a task")
    assert text.endswith("\n\n### Response:\n")
    assert "### Instruction:\n" in text and ("### Input:\n" in text) == with_input
    if with_input:
        assert "Summarise it." in text  # the input goes first
    content = text.split("### Input:\n" if with_input else "### Instruction:\n")[1].removesuffix("\n\n### Response:\n")
    assert LONG.startswith(content) and len(content) > 20
    assert tokenizer(text)["input_ids"] == encoded["prompt_ids"]
    assert tokenizer.decode(encoded["response_ids"][:-1]) == "sea"


def test_cutting_changes_nothing_but_the_end_of_the_content() -> None:
    """Spaces before punctuation stay, and a character of several bytes is dropped whole."""
    tokenizer = tiny_tokenizer("gpt2")
    content = "a , b . c ' s don 't ! ? " * 4 + "é日本語🐋" * 30
    for longest in range(60, 220, 7):
        encoded = one(tokenizer, {"instruction": content, "output": "x"}, "plain", max_prompt_length=longest)
        text = tokenizer.decode(encoded["prompt_ids"])
        assert content.startswith(text.removesuffix("\n")) and text.endswith("\n"), longest
        assert longest - 12 <= len(encoded["prompt_ids"]) <= longest


def test_input_is_used_up_before_the_instruction_is_cut() -> None:
    tokenizer = tiny_tokenizer("gpt2")
    row = {"instruction": LONG, "input": "short input", "output": "sea"}
    encoded = one(tokenizer, row, max_prompt_length=210, max_length=230)
    text = tokenizer.decode(encoded["prompt_ids"])
    assert "short" not in text and text.endswith("\n\n### Response:\n") and len(encoded["prompt_ids"]) <= 210


def test_ready_made_prompts_keep_their_answer_marker() -> None:
    tokenizer = tiny_tokenizer("gpt2")
    row = {"prompt": f"Question: {LONG}\nAnswer:", "completion": " the sea"}
    encoded = one(tokenizer, row, "auto", max_prompt_length=50, max_length=80)
    text = tokenizer.decode(encoded["prompt_ids"])
    assert text.startswith("Question: the whale") and text.endswith("\nAnswer:")
    assert tokenizer.decode(encoded["response_ids"][:-1]) == " the sea"


def test_a_frame_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"example 'x': the frame of the prompt alone has \d+ tokens.*is 20"):
        one(tiny_tokenizer("gpt2"), {"id": "x", "instruction": LONG, "output": "a"}, max_prompt_length=20)


def test_a_cut_response_has_no_end_of_sequence(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer("gpt2")
    rows = [
        {"instruction": "Go on.", "output": LONG},
        {"instruction": LONG, "output": "sea"},
        {"instruction": "a", "output": "b"},
    ]
    with caplog.at_level(logging.WARNING):
        encoded = encoder(tokenizer, "plain", max_length=60, max_prompt_length=30).encode(
            examples_from_rows(rows, "rows")
        )
    assert encoded["response_cut"][:] == [True, False, False] and encoded["prompt_cut"][:] == [False, True, False]
    assert len(encoded[0]["prompt_ids"]) + len(encoded[0]["response_ids"]) == 60
    assert tokenizer.eos_token_id not in encoded[0]["response_ids"]
    assert LONG.startswith(tokenizer.decode(encoded[0]["response_ids"]))
    assert all(ids[-1] == tokenizer.eos_token_id for ids in encoded["response_ids"][1:])
    assert "1 of 3 prompts is longer than 30 tokens" in caplog.text
    assert "1 of 3 responses was cut to fit 60 tokens; they have no end of sequence" in caplog.text


def test_a_response_of_exactly_the_room_keeps_its_end() -> None:
    tokenizer = tiny_tokenizer("gpt2")
    row = {"instruction": "Name it.", "output": "the whale and the dolphin"}
    whole = one(tokenizer, row, "plain")
    length = len(whole["prompt_ids"]) + len(whole["response_ids"])
    assert one(tokenizer, row, "plain", max_length=length, max_prompt_length=10) == whole
    shorter = one(tokenizer, row, "plain", max_length=length - 1, max_prompt_length=10)
    assert shorter["response_ids"] == whole["response_ids"][:-1] and shorter["response_cut"]


def test_chat_template() -> None:
    """The tokenizer's template brings its own special tokens; the answer follows the assistant's header."""
    tokenizer = tiny_tokenizer("qwen2")
    row = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name it."},
                        {"role": "assistant", "content": "whale"}]}  # fmt: skip
    encoded = one(tokenizer, row, "chat")
    assert tokenizer.decode(encoded["prompt_ids"]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName it.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(encoded["response_ids"]) == "whale<|im_end|>"
    rendered = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    joint = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert (
        joint[: len(encoded["prompt_ids"] + encoded["response_ids"])] == encoded["prompt_ids"] + encoded["response_ids"]
    )


def test_a_long_conversation_keeps_its_frame() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    turns = [("user", LONG), ("assistant", "yes"), ("user", "Name it."), ("assistant", "whale")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    encoded = one(tokenizer, row, "auto", max_prompt_length=60, max_length=90)
    text = tokenizer.decode(encoded["prompt_ids"])
    assert len(encoded["prompt_ids"]) <= 60
    assert text.startswith("<|im_start|>user\nthe whale")
    assert text.endswith("yes<|im_end|>\n<|im_start|>user\nName it.<|im_end|>\n<|im_start|>assistant\n")


def test_rows_of_several_kinds_in_one_data_set() -> None:
    """A chat row brings its BOS in its template, others get it from the tokenizer: each once."""
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    rows = [
        {"messages": [{"role": "user", "content": "Name it."}, {"role": "assistant", "content": "whale"}]},
        {"instruction": "Name it.", "output": "whale"},
    ]
    parts = [examples_from_rows([row], "rows") for row in rows]
    encoded = encoder(tokenizer, "auto").encode(datasets.concatenate_datasets(parts))
    for row in encoded.to_list():
        assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1 and row["prompt_ids"][0] == tokenizer.bos_token_id
        assert tokenizer.decode(row["response_ids"]) == "whale</s>"


def test_what_a_model_wrote_is_trained_on_token_by_token() -> None:
    """Row by row, also beyond one batch of the map; cut text has no end, and no token is read anew from text."""
    tokenizer = tiny_tokenizer("gpt2")
    examples = examples_from_rows([{"instruction": f"Say {i}.", "output": "reference"} for i in range(1203)], "rows")
    # Two halves of a character and single letters: no tokenizer would cut a text like that.
    tokens = [[*tokenizer.convert_tokens_to_ids(["w", "h", "Ã"]), i % 400] for i in range(1203)]
    written = datasets.Dataset.from_dict({"tokens": tokens, "ended": [i % 2 == 0 for i in range(1203)]})
    encoded = encoder(tokenizer, "plain").encode(examples, written)
    assert encoded["id"][:] == examples["id"][:]
    for i in (0, 999, 1000, 1202):
        assert encoded[i]["response_ids"] == tokens[i] + [tokenizer.eos_token_id] * (i % 2 == 0)
        assert encoded[i]["response_cut"] == (i % 2 == 1)
    short = encoder(tokenizer, "plain", max_length=len(encoded[0]["prompt_ids"]) + 3).encode(examples, written)
    assert short[0]["response_ids"] == tokens[0][:3] and short[0]["response_cut"]


def test_ids_stay_in_order_and_unwrapped() -> None:
    rows = [{"id": f"z{i % 7}-{i}", "instruction": "a", "output": "b"} for i in range(50)]
    encoded = encoder(tiny_tokenizer("gpt2"), "plain").encode(examples_from_rows(rows, "rows"))
    assert encoded["id"][:] == [row["id"] for row in rows]
    assert encoded.features["prompt_ids"].feature.dtype in ("int32", "int64")


def test_an_empty_prompt_is_refused() -> None:
    example = {"id": "x", "instruction": "", "input": "", "messages": "", "prompt": "", "references": ["a"]}
    with pytest.raises(UserError, match="example 'x': its prompt has no tokens"):
        encoder(tiny_tokenizer("gpt2"), "auto").prompts([example])


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        encoder(tokenizer)


def test_messages_are_json_with_the_conversation_so_far() -> None:
    """What the encoder relies on: the column holds the conversation up to the answer."""
    examples = examples_from_rows(
        [{"messages": [{"role": "user", "content": "Name it."}, {"role": "assistant", "content": "whale"}]}], "rows"
    )
    assert json.loads(examples[0]["messages"]) == [{"role": "user", "content": "Name it."}]
