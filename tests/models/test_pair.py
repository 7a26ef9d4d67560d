"""Which pairs of teacher and student may be compared token by token."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from srd.base.errors import UserError
from srd.models.tokenizers.pair import head_width, kinds_differ, shared_vocabulary, token_count, tokenizers_differ
from srd.models.tokenizers.token_bytes import ALPHABET
from srd.recipe.reading import validate_recipe
from srd.run.plan.plan import make_plan
from tests.models.test_alignment import merging
from tests.runs import TinyRun, tiny_rows, write_rows
from tests.tiny import tiny_config, tiny_tokenizer


def test_equal_tokenizers_pass() -> None:
    assert tokenizers_differ(tiny_tokenizer("gpt2"), tiny_tokenizer("gpt2")) == ""


def test_tokens_added_to_one_of_the_two_pass() -> None:
    longer = tiny_tokenizer("gpt2")
    longer.add_tokens(["<extra>"])
    assert tokenizers_differ(longer, tiny_tokenizer("gpt2")) == ""
    assert tokenizers_differ(tiny_tokenizer("gpt2"), longer) == ""


def test_the_first_different_token_is_named() -> None:
    message = tokenizers_differ(tiny_tokenizer("llama"), tiny_tokenizer("qwen2"))
    assert message == "400 and 400 tokens, and id 0 is '<unk>' in the first, '<|endoftext|>' in the second"


def test_tokens_are_the_same_by_their_bytes_and_not_by_how_they_are_written() -> None:
    """The same tokens and merges, once in the alphabet of byte-level BPE and once as SentencePiece writes them."""
    teacher = merging("Ġ a", "a b")
    plain = {token: i for token, i in teacher.get_vocab().items() if i}
    other = {token if i == 0 else as_sentencepiece(token): i for token, i in teacher.get_vocab().items()}
    assert len(other) == len(plain) + 1 and set(other) != set(teacher.get_vocab())
    model = Tokenizer(models.BPE(other, [("▁", "a"), ("a", "b")], byte_fallback=True))
    model.normalizer = normalizers.Replace(" ", "▁")
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    student = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>")
    assert tokenizers_differ(teacher, student) == ""
    shorter = merging("Ġ a", "a c")
    assert "in the first" in tokenizers_differ(shorter, student)


def as_sentencepiece(token: str) -> str:
    """A byte-level token as SentencePiece writes it."""
    piece = bytes(ALPHABET[one] for one in token)
    return piece.decode().replace(" ", "▁") if piece.isascii() else f"<0x{piece[0]:02X}>"


def test_equal_vocabularies_that_cut_text_differently_differ() -> None:
    other = tiny_tokenizer("gpt2")
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert "cut text differently" in tokenizers_differ(tiny_tokenizer("gpt2"), other)


def test_another_end_of_sequence_is_another_tokenizer() -> None:
    base = tiny_tokenizer("qwen2")
    base.eos_token = "<|endoftext|>"
    message = tokenizers_differ(tiny_tokenizer("qwen2"), base)
    assert re.search(r"'<\|im_end\|>' \(id 2\).*'<\|endoftext\|>' \(id 0\)", message)


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
    with pytest.raises(UserError, match=r"the student's output head has 400 rows.*resize_token_embeddings\(401\)"):
        shared_vocabulary(tiny_config("qwen2"), tiny_config("qwen2"), tokenizer)
    assert shared_vocabulary(tiny_config("qwen2"), tiny_config("qwen2", vocab_size=416), tokenizer) == 400


def test_control_tokens_that_no_text_has_may_lie_beyond_the_head(make_tiny_run: Callable[..., TinyRun]) -> None:
    """As the image token of Gemma 3 does, whose text models have no images."""
    tiny = make_tiny_run("qwen2", teacher={"vocab_size": 416})
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert shared_vocabulary(tiny_config("qwen2"), tiny_config("qwen2"), tokenizer) == 400
    for place in (tiny.teacher, tiny.student):
        tokenizer.save_pretrained(place)
    tiny.set(data__train_limit=8, training__curriculum=None, generation__max_new_tokens=3).train()
    tokenizer.pad_token = "<image>"
    with pytest.raises(UserError, match="resize_token_embeddings"):
        shared_vocabulary(tiny_config("qwen2"), tiny_config("qwen2"), tokenizer)


def test_ids_with_gaps_between_them_are_all_counted() -> None:
    """Else an end of sequence that lies behind them would never be written."""
    words = {"a": 0, "b": 1, "<end>": 5}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")), eos_token="<end>"
    )
    assert (len(tokenizer), token_count(tokenizer)) == (3, 6)
    tokenizer.add_tokens(["<more>"])
    assert token_count(tokenizer) == max(tokenizer.get_vocab().values()) + 1 > 6


@pytest.fixture
def more_tokens(make_tiny_run: Callable[..., TinyRun]) -> TinyRun:
    """A student with two tokens that its teacher has not, one of which it would always write."""
    tiny = make_tiny_run("qwen2", student={"vocab_size": 416})
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.add_tokens(["<extra>", "<other>"])
    tokenizer.save_pretrained(tiny.student)
    model = AutoModelForCausalLM.from_pretrained(tiny.student)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[400], weight[401] = 100 * weight[5], -100 * weight[5]
    model.save_pretrained(tiny.student)
    return tiny.set(data__train_limit=8, training__curriculum=None, generation__max_new_tokens=3)


def test_a_token_more_in_the_student_is_fine_where_no_text_has_it(more_tokens: TinyRun) -> None:
    run = more_tokens.set(training__method={"name": "gkd", "max_new_tokens": 3, "student_share": 1.0}).train()
    assert (run.known_to_all, run.width) == (400, 400)


def test_a_token_more_in_the_student_is_refused_in_a_text(more_tokens: TinyRun) -> None:
    rows = [
        *tiny_rows(),
        {"instruction": "Which?", "output": "An <extra> one."},
        {"instruction": "<extra>?", "output": "."},
    ]
    write_rows(more_tokens.rows, rows)
    told = r"2 of 42 rows cannot .*its response has '<extra>' \(id 400\), a token of the student's .* a model does not"
    recipe = validate_recipe(more_tokens.recipe, "tiny")
    for refused in (lambda: make_plan(recipe), lambda: more_tokens.advance("examples")):
        with pytest.raises(UserError, match=f"(?s){told}"):
            refused()
    dropped = more_tokens.set(data__bad_rows="drop").advance("examples")
    assert dropped.files.dropped.read_text(encoding="utf-8").count("<extra>") == 4  # in the reason and in the row


def test_kinds_are_told_apart() -> None:
    assert kinds_differ(tiny_config("gpt2"), tiny_config("llama")) == ""
    assert kinds_differ(tiny_config("t5"), tiny_config("mt5")) == ""
    told = kinds_differ(tiny_config("t5"), tiny_config("gpt2"))
    assert told == "the teacher (t5) is encoder-decoder and the student (gpt2) is decoder-only"
