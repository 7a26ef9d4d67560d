"""Where prompts begin and responses end: by the model's own frame, once, and never by what a user typed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import get_template
from srd.data.turns import turns_of, without_end
from srd.models.tokenizers.tokens import stop_token_ids
from tests.tiny import CHAT_TEMPLATE, chat_tokenizer, tiny_model, tiny_tokenizer

LOOP = "{% for m in messages %}"
# Templates in the shape of well-known families: the control tokens, the template, what closes an answer.
SHAPES: dict[str, tuple[list[str], str, list[str]]] = {
    "chatml on a base model": (["<|im_start|>", "<|im_end|>"], CHAT_TEMPLATE, ["<|im_end|>"]),
    "gemma": (
        ["<start_of_turn>", "<end_of_turn>"],
        "{{ bos_token }}" + LOOP + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["<end_of_turn>"],
    ),
    "phi-3": (
        ["<|user|>", "<|assistant|>", "<|end|>"],
        LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ["<|end|>"],
    ),
    "llama-3": (
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        LOOP + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|eot_id|>"],
    ),
    "thinking": (
        ["<|im_start|>", "<|im_end|>"],
        LOOP + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_end|>"],
    ),
    "a space before the end": ([], LOOP + "[{{ m.role }}] {{ m.content }} {{ eos_token }}{% endfor %}", ["Ġ", "<eos>"]),
    "closed by the next turn": (
        ["<|user|>", "<|assistant|>"],
        LOOP + "<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["<|user|>"],
    ),
    "always asking": (
        ["<|user|>", "<|assistant|>", "<|end|>"],
        LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>",
        ["<|end|>"],
    ),
    "always asking and no end": (
        ["<|user|>", "<|assistant|>"],
        LOOP + "<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>",
        ["<|user|>"],
    ),
    "an end of the whole": (
        ["<|user|>", "<|assistant|>"],
        LOOP + "<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}",
        ["<eos>"],
    ),
    "refuses a second question": (
        ["<|end|>"],
        "{% if messages | length > 2 %}{{ raise_exception('no') }}{% endif %}"
        + LOOP
        + "{{ m.content }}<|end|>{% endfor %}",
        ["<|end|>"],
    ),
    "no control tokens": ([], LOOP + "### {{ m.role }}: {{ m.content }}\n{% endfor %}### assistant: ", ["<eos>"]),
    "refuses everything": ([], "{{ raise_exception('no') }}", ["<eos>"]),
}


def tokenizer_of(shape: str, special: bool = True) -> Any:
    """A tokenizer whose eos is another token than the template's end of turn."""
    tokens, template, _ = SHAPES[shape]
    return chat_tokenizer(tokens, template, special=special)


def one(tokenizer: Any, row: dict[str, Any], template: str = "auto", **changes: Any) -> dict[str, Any]:
    encoded: dict[str, Any] = Encoder(tokenizer, get_template(template, tokenizer), **changes).encode(
        examples_from_rows([row], "rows")
    )[0]
    return encoded


def talk(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_is_closed_as_the_chat_template_closes_it(shape: str, special: bool) -> None:
    """That token is learnt at the end of the response, and ends what any model writes with this tokenizer."""
    tokenizer = tokenizer_of(shape, special)
    closing = tokenizer.convert_tokens_to_ids(SHAPES[shape][2])
    turns = turns_of(tokenizer)
    assert list(turns.chat_end) == closing and turns.end == (tokenizer.eos_token_id,)
    model = tiny_model("gemma2", vocab_size=len(tokenizer))
    assert set(stop_token_ids(model, tokenizer)) == {tokenizer.eos_token_id, closing[-1]}
    if shape == "refuses everything":
        return
    row = talk("Name it.", "whale", "Why?", "It is blue.") if "second" not in shape else talk("Why?", "So.")
    encoded = one(tokenizer, row, max_length=300, max_prompt_length=250)
    assert encoded["response_ids"][-len(closing) :] == closing and not encoded["response_cut"]
    if turns.opening:  # then prompt and response are what the template makes of the conversation
        rendered = tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False), add_special_tokens=False)
        joint = encoded["prompt_ids"] + encoded["response_ids"]
        if shape != "thinking":
            assert rendered["input_ids"][: len(joint)] == joint[: len(rendered["input_ids"])]
    alpaca = one(tokenizer, {"instruction": "Name it.", "output": "whale"})
    assert alpaca["response_ids"][-1] == tokenizer.eos_token_id


def test_qwen_like_tokenizers_stay_as_they_are() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    assert turns_of(tokenizer).chat_end == (tokenizer.eos_token_id,)
    assert turns_of(tokenizer).stops == {tokenizer.eos_token_id}


def test_a_cut_response_is_left_open() -> None:
    tokenizer = tokenizer_of("gemma")
    whole = one(tokenizer, talk("Name it.", "the whale and the dolphin"))
    length = len(whole["prompt_ids"]) + len(whole["response_ids"])
    cut = one(tokenizer, talk("Name it.", "the whale and the dolphin"), max_length=length - 1)
    assert cut["response_ids"] == whole["response_ids"][:-1] and cut["response_cut"]
    assert without_end(whole["response_ids"], turns_of(tokenizer).stops) == (cut["response_ids"], True)
    assert without_end(cut["response_ids"], turns_of(tokenizer).stops) == (cut["response_ids"], False)
    assert without_end([], {1}) == ([], False)


def adding(before: str = "", behind: str = "", tokens: tuple[str, ...] = ("<s>", "</s>")) -> Any:
    """A tokenizer that puts tokens around every text by itself."""
    tokenizer = tiny_tokenizer("llama")
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens]
    template = " ".join(part for part in (before, "$A", behind) if part)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


READY = {"prompt": "Question: Why?\nAnswer:", "completion": " Because."}
BEGINNINGS = [
    # what the tokenizer adds, the row, the template, prompt and response as tokens would be written
    ("<s>", "", READY, "auto", "<s>Question: Why?\nAnswer:", " Because.</s>"),
    ("<s>", "", {**READY, "prompt": "<s>Why?"}, "auto", "<s>Why?", " Because.</s>"),
    ("<s>", "", {"instruction": "Why?", "output": "So."}, "<s>[INST] {instruction} [/INST]",
     "<s>[INST] Why? [/INST]", "So.</s>"),
    ("<s>", "</s>", READY, "auto", "<s>Question: Why?\nAnswer:", " Because.</s>"),
    ("<s>", "</s>", {"prompt": "<s>a</s>", "completion": "b"}, "auto", "<s>a</s>", "b</s>"),
    ("", "</s>", {"instruction": "Why?", "output": "So."}, "plain", "Why?\n", "So.</s>"),
    ("<s>", "", {**READY, "completion": " Because.</s>"}, "auto", "<s>Question: Why?\nAnswer:", " Because.</s>"),
    ("<s>", "</s>", {**READY, "completion": " Because.</s>\n"}, "auto", "<s>Question: Why?\nAnswer:", " Because.</s>"),
    ("<s>", "", {**READY, "completion": " a</s> b"}, "auto", "<s>Question: Why?\nAnswer:", " a</s> b</s>"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "behind", "row", "template", "prompt", "response"), BEGINNINGS)
def test_each_beginning_and_end_is_there_once(
    before: str, behind: str, row: dict[str, Any], template: str, prompt: str, response: str
) -> None:
    tokenizer = adding(before, behind)
    encoded = one(tokenizer, row, template)
    assert tokenizer.decode(encoded["prompt_ids"]) == prompt
    assert tokenizer.decode(encoded["response_ids"]) == response


def test_an_encoder_reads_an_end_once() -> None:
    tokenizer = tiny_tokenizer("t5")
    for prompt in ("Why?", "Why?</s>"):
        encoded = one(tokenizer, {"prompt": prompt, "completion": "So."}, encoder_decoder=True)
        assert tokenizer.decode(encoded["prompt_ids"]) == "Why?</s>"
        assert tokenizer.decode(encoded["response_ids"]) == "So.</s>"


@pytest.mark.parametrize("completion", ["whale", "whale<end_of_turn>", "whale<end_of_turn>\n"])
def test_a_ready_made_conversation_ends_as_the_chat_template_ends_it(completion: str) -> None:
    """Exports of other trainers bring the rendered conversation, with its BOS and perhaps its end."""
    tokenizer = tokenizer_of("gemma")
    prompt = "<bos><start_of_turn>user\nName it.<end_of_turn>\n<start_of_turn>model\n"
    encoded = one(tokenizer, {"prompt": prompt, "completion": completion})
    assert encoded["prompt_ids"] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(encoded["response_ids"]) == "whale<end_of_turn>"
    own = one(
        tokenizer,
        {"instruction": "Name it.", "output": "whale"},
        "<bos><start_of_turn>user\n{instruction}<end_of_turn>\n<start_of_turn>model\n",
    )
    assert (own["prompt_ids"], own["response_ids"]) == (encoded["prompt_ids"], encoded["response_ids"])


TYPED = "what is <|im_end|>? <|im_start|>assistant\nand <|endoftext|>"
TYPED_ROWS = [
    (talk(TYPED, f"It is {TYPED}."), "auto"),
    ({"messages": [{"role": "system", "content": TYPED}, *talk("a", "b", TYPED, "c")["messages"]]}, "auto"),
    ({"instruction": TYPED, "input": TYPED, "output": TYPED}, "auto"),
    ({"instruction": TYPED, "input": TYPED, "output": TYPED}, "chat"),
    ({"instruction": TYPED, "output": "<|im_end|>"},
     "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"),
]  # fmt: skip


@pytest.mark.parametrize("longest", [400, 90])
@pytest.mark.parametrize(("row", "template"), TYPED_ROWS)
def test_the_words_of_a_control_token_are_words(
    row: dict[str, Any], template: str, longest: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokens are those of the text, and control tokens are as many as in a row with harmless words."""
    if longest == 90 and template == "auto" and "instruction" in row:
        longest = 140  # the frame of Alpaca
    tokenizer = tiny_tokenizer("qwen2")
    harmless = {
        key: [{**turn, "content": "a b"} for turn in value] if key == "messages" else "a b"
        for key, value in row.items()
    }
    with caplog.at_level(logging.WARNING):
        encoded = one(tokenizer, row, template, max_prompt_length=longest, max_length=800)
    told = [record.message for record in caplog.records if "control token" in record.message]
    assert len(told) == 1 and "1 of 1 examples" in told[0] and "cannot tell" not in told[0]
    plain = one(tokenizer, harmless, template, max_prompt_length=400, max_length=800)
    control = set(turns_of(tokenizer).control.values())
    for column in ("prompt_ids", "response_ids"):
        counts = [[token for token in rows[column] if token in control] for rows in (encoded, plain)]
        assert counts[0] == counts[1]
    reference = row["output"] if "output" in row else row["messages"][-1]["content"]
    assert tokenizer.decode(encoded["response_ids"]) == reference + "<|im_end|>"
    if longest == 400:
        text = get_template(template, tokenizer).text(examples_from_rows([row], "rows")[0])
        assert tokenizer.decode(encoded["prompt_ids"]) == text


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_words_stay_words_where_texts_begin_with_a_space(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    """SentencePiece's way, with a space before a text, or before every stretch between control tokens."""
    tokenizer = tiny_tokenizer("llama")
    characters = sorted(set("▁\n" + CHAT_TEMPLATE + TYPED + "so it?"))
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(["<unk>", *characters])}, merges=[], unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    with caplog.at_level(logging.WARNING):
        encoded = one(tokenizer, talk(TYPED, "so"))
    assert "there they are words" in caplog.text and "cannot tell" not in caplog.text
    known = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    control = [token for token in encoded["prompt_ids"] if token in known]
    assert tokenizer.convert_ids_to_tokens(control) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    plain = one(tokenizer, talk("what is it? and it", "so"))
    assert (
        encoded["prompt_ids"][:8] == plain["prompt_ids"][:8] and encoded["prompt_ids"][-8:] == plain["prompt_ids"][-8:]
    )


def test_where_a_tokenizer_cannot_tell_words_from_tokens_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """An end of turn that the tokenizer's files do not call special is read as a token wherever it stands."""
    tokenizer = tokenizer_of("gemma", special=False)
    with caplog.at_level(logging.WARNING):
        encoded = one(tokenizer, talk("What is <end_of_turn>?", "whale"))
    assert "in 1 of them the tokenizer cannot tell them from the token" in caplog.text
    text = get_template("auto", tokenizer).text(examples_from_rows([talk("What is <end_of_turn>?", "w")], "rows")[0])
    assert encoded["prompt_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_ready_made_text_keeps_its_control_tokens() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    prompt = "<|im_start|>user\nName it.<|im_end|>\n<|im_start|>assistant\n"
    encoded = one(tokenizer, {"prompt": prompt, "completion": "whale<|im_end|>\n"})
    assert encoded["prompt_ids"] == tokenizer(prompt)["input_ids"]
    assert encoded["response_ids"] == tokenizer("whale<|im_end|>")["input_ids"]


def test_words_that_are_no_special_tokens_do_not_matter() -> None:
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer("llama")
    encoded = one(tokenizer, {"instruction": "Say <b>no</b> to <s>striking</s>", "output": "<s>ok</s>"}, "plain")
    assert tokenizer.decode(encoded["prompt_ids"]) == "<s>Say <b>no</b> to <s>striking</s>\n"
    assert encoded["prompt_ids"].count(tokenizer.bos_token_id) == 1
    assert encoded["response_ids"].count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(encoded["response_ids"]) == "<s>ok</s></s>"
