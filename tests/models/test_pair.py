"""Which pairs of teacher and student may be compared token by token."""

from __future__ import annotations

import pytest
from tokenizers import pre_tokenizers

from srd.base.errors import UserError
from srd.models.pair import check_same_kind, check_same_tokenizer, head_width, shared_vocabulary
from tests.tiny import tiny_config, tiny_tokenizer


def test_equal_tokenizers_pass() -> None:
    check_same_tokenizer(tiny_tokenizer("gpt2"), tiny_tokenizer("gpt2"))


def test_tokens_added_to_one_of_the_two_pass() -> None:
    longer = tiny_tokenizer("gpt2")
    longer.add_tokens(["<extra>"])
    check_same_tokenizer(longer, tiny_tokenizer("gpt2"))
    check_same_tokenizer(tiny_tokenizer("gpt2"), longer)


def test_the_first_different_token_is_named() -> None:
    with pytest.raises(UserError) as caught:
        check_same_tokenizer(tiny_tokenizer("llama"), tiny_tokenizer("qwen2"), ("big", "small"))
    message = str(caught.value)
    assert "'big' and 'small'" in message
    assert "400 and 400 tokens" in message
    assert "id 0 is '<unk>' in the first, '<|endoftext|>' in the second" in message
    assert "drop_layers" in message


def test_equal_vocabularies_that_cut_text_differently_are_refused() -> None:
    other = tiny_tokenizer("gpt2")
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(UserError, match="cut text differently"):
        check_same_tokenizer(tiny_tokenizer("gpt2"), other)


def test_another_end_of_sequence_is_refused() -> None:
    base = tiny_tokenizer("qwen2")
    base.eos_token = "<|endoftext|>"
    with pytest.raises(UserError, match=r"'<\|im_end\|>' \(id 2\).*'<\|endoftext\|>' \(id 0\)"):
        check_same_tokenizer(tiny_tokenizer("qwen2"), base)


def test_widths_may_differ_by_padding_rows() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    wide, narrow = tiny_config("qwen2", vocab_size=416), tiny_config("qwen2", vocab_size=408)
    assert (head_width(wide), head_width(narrow)) == (416, 408)
    assert shared_vocabulary(wide, narrow, tokenizer) == shared_vocabulary(narrow, wide, tokenizer) == 408
    assert shared_vocabulary(tiny_config("qwen2"), wide, tokenizer) == 400


def test_a_head_narrower_than_the_tokenizer_is_refused() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    with pytest.raises(UserError, match="the student's output head has 399 rows, but the tokenizer has 400 tokens"):
        shared_vocabulary(tiny_config("qwen2"), tiny_config("qwen2", vocab_size=399), tokenizer)
    tokenizer.add_tokens(["<extra>"])
    with pytest.raises(UserError, match="the teacher's output head has 400 rows"):
        shared_vocabulary(tiny_config("qwen2"), tiny_config("qwen2"), tokenizer)


def test_kinds_do_not_mix() -> None:
    check_same_kind(tiny_config("gpt2"), tiny_config("llama"))
    check_same_kind(tiny_config("t5"), tiny_config("mt5"))
    with pytest.raises(UserError, match=r"teacher \(t5\) is encoder-decoder and the student \(gpt2\) is decoder-only"):
        check_same_kind(tiny_config("t5"), tiny_config("gpt2"))
