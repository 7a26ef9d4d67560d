"""The ways in which servers tell the log-probabilities of a prompt's tokens.

Each way is asked for with a text or with token ids, and read into one `Position` a token. Which of them a server speaks
is found out by asking (`srd.models.served.endpoint`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from srd.models.served.client import Address

TOKEN_ID = "token_id:"  # how vLLM writes a token in the place of its text, where it is asked to


class Malformed(ValueError):
    """An answer that is not what was asked for; says what is wrong with it."""


@dataclass(frozen=True)
class Position:
    """What a server says of one token of a prompt.

    Attributes:
        token: Its id, or its text; None where the answer does not say.
        own: Its log-probability; None: not said (the first token has none).
        likely: The log-probabilities of the likeliest ids, perhaps with the token's own.
    """

    token: int | str | None
    own: float | None
    likely: dict[int, float] = field(default_factory=dict)


class Dialect:
    """One way of asking.

    Attributes:
        title: In messages.
        from_first: Whether it tells of all tokens from the first on, wherever it is asked from.
    """

    title: str
    from_first = True

    def question(self, address: Address, prompt: str | Sequence[int], top: int, start: int) -> tuple[str, Any]:
        """URL and body.

        Args:
            address: Of the model.
            prompt: Text or token ids.
            top: How many of the likeliest tokens to tell at each position.
            start: The first token that is asked about.
        """
        raise NotImplementedError

    def positions(self, body: Any) -> list[Position]:
        """The tokens of the prompt, of which the first may be missing.

        Raises:
            Malformed: the answer has not what was asked for.
        """
        raise NotImplementedError


class PromptLogprobs(Dialect):
    """vLLM: ``prompt_logprobs`` of a completion."""

    title = "prompt_logprobs of /completions (vLLM)"

    def question(self, address: Address, prompt: str | Sequence[int], top: int, start: int) -> tuple[str, Any]:
        return f"{address.endpoint}/completions", {**_completion(address, prompt), "prompt_logprobs": top}

    def positions(self, body: Any) -> list[Position]:
        found = _choice(body).get("prompt_logprobs")
        if not isinstance(found, list):
            raise Malformed("there are no prompt_logprobs in it")
        return [self._position(entry) for entry in found]

    def _position(self, entry: Any) -> Position:
        if entry is None:
            return Position(None, None)
        if not isinstance(entry, dict) or not entry:
            raise Malformed(f"prompt_logprobs has {entry!r:.60} for a token")
        likely = {_id(name): _number(_of(said, "logprob")) for name, said in entry.items()}
        token = next(iter(likely)) if len(likely) == 1 else None
        return Position(token, None if token is None else likely[token], likely)


class Echo(Dialect):
    """The completions of OpenAI's first models: ``echo`` and ``logprobs``; ids where the server writes them."""

    title = "echo and logprobs of /completions"

    def question(self, address: Address, prompt: str | Sequence[int], top: int, start: int) -> tuple[str, Any]:
        asked = {"echo": True, "logprobs": top, "return_tokens_as_token_ids": True}
        return f"{address.endpoint}/completions", {**_completion(address, prompt), **asked}

    def positions(self, body: Any) -> list[Position]:
        said = _choice(body).get("logprobs")
        tokens, own = _list(said, "tokens"), _list(said, "token_logprobs")
        if len(tokens) != len(own):
            raise Malformed(f"logprobs has {len(tokens)} tokens and {len(own)} token_logprobs")
        likeliest = _of(said, "top_logprobs") or [None] * len(tokens)
        read = _of(body.get("usage"), "prompt_tokens")
        count = read if isinstance(read, int) else len(tokens) - 1  # one token was written behind the prompt
        rows = zip(tokens[:count], own, likeliest, strict=False)
        return [
            Position(_token(token), None if value is None else _number(value), self._likely(top))
            for token, value, top in rows
        ]

    def _likely(self, top: Any) -> dict[int, float]:
        entries = top if isinstance(top, dict) else {}
        known = {_token(name): value for name, value in entries.items()}
        return {token: _number(value) for token, value in known.items() if isinstance(token, int)}


class Generate(Dialect):
    """SGLang's own ``/generate``."""

    title = "return_logprob of /generate (SGLang)"
    from_first = False

    def question(self, address: Address, prompt: str | Sequence[int], top: int, start: int) -> tuple[str, Any]:
        # From one token earlier: the first that it tells has no log-probability.
        asked = {"return_logprob": True, "logprob_start_len": max(0, start - 1), "top_logprobs_num": top}
        name = "text" if isinstance(prompt, str) else "input_ids"
        given = prompt if isinstance(prompt, str) else list(prompt)
        sampling = {"max_new_tokens": 1, "temperature": 0.0}
        return f"{address.root}/generate", {name: given, "sampling_params": sampling, **asked}

    def positions(self, body: Any) -> list[Position]:
        meta = _of(body, "meta_info")
        own = _list(meta, "input_token_logprobs")
        likeliest = _of(meta, "input_top_logprobs") or [None] * len(own)
        if not isinstance(likeliest, list) or len(likeliest) != len(own):
            raise Malformed("input_top_logprobs are not as many as input_token_logprobs")
        return [self._position(said, top) for said, top in zip(own, likeliest, strict=True)]

    def _position(self, said: Any, top: Any) -> Position:
        value, token = _pair(said)
        likely = dict(reversed(_pair(each)) for each in top or [])
        return Position(_id(token), None if value is None else _number(value),
                        {_id(name): _number(one) for name, one in likely.items()})  # fmt: skip


DIALECTS: tuple[Dialect, ...] = (PromptLogprobs(), Generate(), Echo())  # in the order in which they are tried


def _completion(address: Address, prompt: str | Sequence[int]) -> dict[str, Any]:
    """A completion that writes as little as servers allow, one token."""
    given = {"prompt": prompt, "add_special_tokens": False} if isinstance(prompt, str) else {"prompt": list(prompt)}
    return {"model": address.model, **given, "max_tokens": 1, "temperature": 0.0}


def _of(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, dict) else None


def _list(content: Any, name: str) -> list[Any]:
    found = _of(content, name)
    if not isinstance(found, list):
        raise Malformed(f"there is no {name} in it")
    return found


def _choice(body: Any) -> dict[str, Any]:
    choices = _of(body, "choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Malformed("there is no choice in it")
    return choices[0]


def _pair(said: Any) -> tuple[Any, Any]:
    """A log-probability and its token, of SGLang's ``[log-probability, id, text]``."""
    if not isinstance(said, list) or len(said) < 2:
        raise Malformed(f"it has {said!r:.60} for a token")
    return said[0], said[1]


def _token(written: Any) -> int | str:
    text = str(written)
    return _id(text.removeprefix(TOKEN_ID)) if text.startswith(TOKEN_ID) else text


def _id(written: Any) -> int:
    try:
        return int(written)
    except (TypeError, ValueError) as error:
        raise Malformed(f"it has {written!r:.60} where the id of a token was expected") from error


def _number(value: Any) -> float:
    """A log-probability; NaN where a server has none, as some write null for it."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise Malformed(f"it has {value!r:.60} where a log-probability was expected")
    return float("nan") if value is None else float(value)
