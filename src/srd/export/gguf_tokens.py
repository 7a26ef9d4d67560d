"""A byte-level tokenizer as GGUF holds it: tokens, their kinds, merges, and the name of how texts are cut into words.

A reader of the file knows ways of cutting by name only. So the name is the one whose way is the tokenizer's own; where
none is, one with which all texts of the run become the same tokens; and where there is none, the tokenizer is refused.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from srd.base.errors import UserError
from srd.base.remedies import warn
from srd.export.base import Exported

logger = logging.getLogger(__name__)

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens, as llama.cpp numbers them
CONVERTER = "Use llama.cpp's own converter: python convert_hf_to_gguf.py"
TEXTS = 2000  # of the run, tried with a way of cutting that is not the tokenizer's own
PROBE = (
    "Hello, world! It's 2024 and we've 3 apples (12.50 each).\n\n  Indented\ttabs; naïve café – „quoted“ 日本語 🐋\n",
    "def f(x):\n    return x ** 2  # comment\n\n\nprint(f(10_000))\r\nDON'T SHOUT, they'll hear 1234567890 times.",
)

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split(digits: str) -> dict[str, Any]:
    pattern = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_REST}"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTES, "use_regex": False}]}


#: Ways of cutting by llama.cpp's names, as the tokenizers library writes them.
WAYS: dict[str, dict[str, Any]] = {
    "gpt-2": {**_BYTES, "use_regex": True},
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
    },
    "qwen2": _split(r"\p{N}"),
    "llama-bpe": _split(r"\p{N}{1,3}"),
}
WHOLE_WORDS = ("llama-bpe",)  # ways in which a word that is a token is not taken apart, whatever the merges say


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF holds it.

    Attributes:
        pre: How texts are cut into words, by llama.cpp's name.
        tokens: The text of every id, ``[V]``.
        types: Their kinds, ``[V]``.
        merges: Pairs that become one token, in their order, with a space between.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]


@functools.lru_cache(maxsize=1)
def vocabulary_of(exported: Exported) -> Vocabulary:
    """The tokenizer of a model, tried on the texts of its run.

    Raises:
        UserError: the tokenizer is no byte-level one, or cuts texts as none that GGUF knows.
    """
    otherwise = f"{CONVERTER} {exported.folder}"
    backend = getattr(exported.tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    decoder = json.dumps(rules.get("decoder"))
    if rules.get("model", {}).get("type") != "BPE" or "ByteLevel" not in decoder:
        raise UserError(
            f"the tokenizer of '{exported.folder}' is no byte-level BPE tokenizer (SentencePiece, most likely), which "
            f"is not written here. {otherwise}"
        )
    size = exported.config.vocab_size
    by_id = {number: token for token, number in exported.tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= size:
        raise UserError(
            f"the tokenizer of '{exported.folder}' has the id {max(by_id)}, but the model has {size} tokens. Give it "
            "the tokenizer that it was trained with."
        )
    added = exported.tokenizer.added_tokens_decoder
    kinds = {number: CONTROL if token.special else USER_DEFINED for number, token in added.items()}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in rules["model"]["merges"]]
    return Vocabulary(
        pre=_way_of(exported, rules, otherwise),
        tokens=[by_id.get(number, f"[PAD{number}]") for number in range(size)],
        types=[kinds.get(number, NORMAL) if number in by_id else UNUSED for number in range(size)],
        merges=merges,
    )


def _way_of(exported: Exported, rules: dict[str, Any], otherwise: str) -> str:
    """The name of how a tokenizer cuts texts."""
    own = _plain(rules.get("pre_tokenizer"))
    for name, way in WAYS.items():
        if own == _plain(way):
            return name
    texts = [*PROBE, *_texts(exported)] if not exported.is_run else list(_texts(exported))
    for name, way in WAYS.items():
        if _same_tokens(rules, way, name in WHOLE_WORDS, texts):
            warn(
                logger,
                f"the tokenizer of '{exported.folder}' cuts texts in a way of its own, which GGUF has no name for; "
                f"with that of '{name}' all {len(texts)} texts that were tried become the same tokens.",
                "For other texts they may differ: compare some of yours before you rely on the file.",
            )
            return name
    raise UserError(
        f"the tokenizer of '{exported.folder}' cuts texts into words in a way that GGUF has no name for (known: "
        f"{', '.join(WAYS)}). {otherwise}"
    )


def _plain(way: Any) -> Any:
    """A way of cutting without what makes no difference to it."""
    if isinstance(way, dict) and way.get("type") == "Sequence" and len(way["pretokenizers"]) == 1:
        return _plain(way["pretokenizers"][0])
    if isinstance(way, dict):
        return {key: _plain(value) for key, value in way.items() if key != "trim_offsets"}
    return [_plain(value) for value in way] if isinstance(way, list) else way


def _same_tokens(rules: dict[str, Any], way: dict[str, Any], whole: bool, texts: Iterable[str]) -> bool:
    """Whether texts become the same tokens with another way of cutting."""
    other = {**rules, "pre_tokenizer": way, "normalizer": None, "model": {**rules["model"], "ignore_merges": whole}}
    ours, theirs = Tokenizer.from_str(json.dumps(rules)), Tokenizer.from_str(json.dumps(other))
    return all(ours.encode(text).ids == theirs.encode(text).ids for text in texts)


def _texts(exported: Exported) -> Iterable[str]:
    """Texts of the run, as its models see them."""
    if not exported.is_run:
        return
    run = exported.run
    rows = run.split("train")
    for row in rows.select(range(min(TEXTS, len(rows)))):
        yield run.encoder.template.text(row) + row["references"][0]
