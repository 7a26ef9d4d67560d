"""The bytes that each token of a tokenizer stands for: what two different tokenizers have in common.

Tokenizers write their tokens in alphabets of their own (``Ġthe``, ``▁the``, ``<0xE2>``), so that equal strings may be
different text and different strings the same. Their bytes can be compared. How a tokenizer writes them is found by
trying: `READERS` are the known ways, and the one is taken by which texts in many scripts come back byte for byte. Where
none does, the tokenizer changes texts (it lower-cases, normalises or knows no token for a character), and what it reads
cannot be aligned with another's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from srd.base.errors import UserError
from srd.data.turns import added_tokens, turns_of

#: Texts in ten scripts, with capitals, compatibility characters, digits, spaces in a row and a line break.
PROBES = (
    "It's 12,345.67 km:\n\n\tdef naïve_Sum(x):  return x+1  # ﬁne ½ Ünïcödé",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב",
    "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "我能吞下玻璃而不伤身体。「全角」ＡＢＣ１２３",
    "いろはにほへと ちりぬるを カタカナ",
    "키스의 고유조건은 입술끼리 만나야",
    "Գիրը եւ 🙂 👩‍👩‍👧 ∑ → ≠ €",
)
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
GUARD = "\n"  # what a text is put behind, so that a tokenizer does not put a space before it

#: The bytes of a token from its id and its string; None: it is no text.
Reader = Callable[[int, str], bytes | None]


@dataclass(frozen=True)
class TokenBytes:
    """What a tokenizer's tokens stand for.

    Attributes:
        pieces: Bytes of each token by its id; None for control tokens and ids without a token.
        control: What control tokens look like in a text, in bytes, by their ids.
        ends: Ids that end an answer.
    """

    pieces: tuple[bytes | None, ...]
    control: dict[int, bytes]
    ends: frozenset[int]

    def __len__(self) -> int:
        return len(self.pieces)

    def surface(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each of some tokens in a text: a control token's look, and nothing for the end of an answer."""
        return [b"" if i in self.ends else self._piece(i) for i in ids]

    def _piece(self, token: int) -> bytes:
        piece = self.pieces[token] if token < len(self.pieces) else None
        return self.control.get(token, b"") if piece is None else piece

    def spell(self, ids: Iterable[int]) -> bytes:
        """The text of some tokens, in bytes; control tokens are left out."""
        pieces, count = self._spelt, len(self.pieces)
        return b"".join([pieces[i] for i in ids if i < count])

    @cached_property
    def _spelt(self) -> list[bytes]:
        return [piece or b"" for piece in self.pieces]


# ------------------------------------------------------------------------------------------- how tokens are written


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level BPE (GPT-2): themselves where they can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {**{chr(byte): byte for byte in seen}, **{chr(256 + n): byte for n, byte in enumerate(unseen)}}


ALPHABET = _byte_alphabet()


def _byte_level(tokenizer: Any) -> Reader:
    """GPT-2, Llama 3, Qwen, DeepSeek: one character a byte."""

    def read(_: int, token: str) -> bytes | None:
        try:
            return bytes(map(ALPHABET.__getitem__, token))
        except KeyError:
            return None

    return read


def _sentencepiece(tokenizer: Any) -> Reader:
    """Llama 2, Gemma, Mistral 7B: ``▁`` for a space, ``<0xNN>`` for a byte that no other token has."""

    def read(_: int, token: str) -> bytes:
        byte = BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()

    return read


def _declared(tokenizer: Any) -> Reader | None:
    """Tekken and tiktoken: the tokenizer says the bytes itself."""
    inner = getattr(tokenizer, "tokenizer", None)
    deepest = getattr(getattr(inner, "instruct_tokenizer", None), "tokenizer", None)
    for place in (tokenizer, getattr(tokenizer, "model", None), inner, deepest):
        for name in ("id_to_byte_piece", "decode_single_token_bytes"):
            if callable(ask := getattr(place, name, None)):
                return _asking(ask)
        if isinstance(ranks := getattr(place, "mergeable_ranks", None), dict):
            return _asking({rank: piece for piece, rank in ranks.items()}.get)
    return None


def _asking(ask: Callable[[int], bytes | None]) -> Reader:
    return lambda token, _: ask(token)


READERS: tuple[Callable[[Any], Reader | None], ...] = (_declared, _byte_level, _sentencepiece)


@lru_cache(maxsize=8)
def token_bytes(tokenizer: Any) -> TokenBytes:
    """The bytes of every token of a tokenizer, tried out on texts in ten scripts.

    Raises:
        UserError: it does not give texts back byte for byte, with the first that it changes.
    """
    strings, control = _strings(tokenizer), turns_of(tokenizer).control
    looks = {token: text.encode() for text, token in control.items()}
    added = {token: content for token, content in added_tokens(tokenizer).items() if token not in looks}
    for make in READERS:
        reader = make(tokenizer)
        if reader is None:
            continue
        pieces = tuple(
            None if i in looks or text is None else _piece(reader, i, text, added.get(i))
            for i, text in enumerate(strings)
        )
        found = TokenBytes(pieces, looks, frozenset(turns_of(tokenizer).stops))
        if all(_comes_back(found, tokenizer, text) for text in PROBES):
            return found
    raise UserError(_told(tokenizer))


def _strings(tokenizer: Any) -> list[str | None]:
    vocabulary = tokenizer.get_vocab()  # made anew by each call
    known = set(vocabulary.values())
    count = max(len(tokenizer), max(known) + 1)
    whole = len(known) < len(vocabulary)  # several tokens of one id: strings stand for nothing here
    found: list[str | None] = list(tokenizer.convert_ids_to_tokens(list(range(count))))
    return [text if whole or i in known else None for i, text in enumerate(found)]


def _piece(reader: Reader, token: int, text: str, added: Any) -> bytes | None:
    """The bytes of a token; one that was added to the vocabulary is in texts as it is written."""
    if added is not None:
        return str(added).replace("▁", " ").encode() if added.normalized else str(added).encode()
    return reader(token, text)


def _comes_back(found: TokenBytes, tokenizer: Any, text: str) -> bool:
    """Whether a text's tokens spell it, alone or behind the space that some tokenizers put before a text."""
    return found.spell(_ids(tokenizer, [text])[0]) in (text.encode(), b" " + text.encode())


def _told(tokenizer: Any) -> str:
    """Why a tokenizer is refused."""
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    changed = {text: tokenizer.decode(_ids(tokenizer, [text])[0], skip_special_tokens=False) for text in PROBES}
    text, read = next(((a, b) for a, b in changed.items() if a != b.lstrip()), next(iter(changed.items())))
    place = next((i for i, (a, b) in enumerate(zip(text, read, strict=False)) if a != b), 0)
    start = max(0, place - 8)
    return (
        f"the tokenizer of '{name}' ({type(tokenizer).__name__}) does not give a text back byte for byte, so that its "
        f"tokens cannot be aligned with another tokenizer's: {text[start : place + 12]!r} is read as "
        f"{read[start : place + 12]!r}. Take a teacher and a student with one tokenizer, or with tokenizers that "
        "neither normalise nor lower-case (byte-level BPE, SentencePiece with byte fallback, tekken)."
    )


# -------------------------------------------------------------------------------------------------------- reading texts


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts; a whole vocabulary of them goes past the library's bookkeeping, which takes longer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.padding is None and backend.truncation is None:
        return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def continuations(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts as they stand behind others, without the space that some tokenizers put before a text."""
    alone = _ids(tokenizer, texts)
    known = token_bytes(tokenizer)
    wrong = [i for i, text in enumerate(texts) if known.spell(alone[i]) != text.encode()]
    (guard,) = _ids(tokenizer, [GUARD])
    for i, ids in zip(wrong, _ids(tokenizer, [GUARD + texts[i] for i in wrong]), strict=True):
        if ids[: len(guard)] == guard:
            alone[i] = ids[len(guard) :]
    return alone
