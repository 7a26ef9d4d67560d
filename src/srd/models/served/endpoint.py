"""A served model: whether it is there and speaks the student's tokens, what it says of a text, and what it writes.

Texts go to the server as token ids: of the student's tokenizer, or of the one that is named as the server's own.
Whether it is the server's is found out by asking what it makes of a text. What it answers is checked token by token;
nothing is guessed where an answer has gaps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srd.base.errors import RunError, UserError, nearest
from srd.base.text import many
from srd.data.turns import turns_of
from srd.models.generation import Decoding, sample_seed
from srd.models.served.client import Address, Answer, Client, Unreachable
from srd.models.served.dialects import DIALECTS, Dialect, Malformed, Position
from srd.models.served.journal import Journal
from srd.models.tokenizers.pair import PROBE

# What a server else takes from the model's generation_config.json: greedy answers of Qwen2.5 would be penalised ones.
NO_HABITS = {
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": -1, "min_p": 0.0,
}  # fmt: skip
PROBED = "probe"  # what a journal calls what was said of the text by which a server is tried
OTHER_WEIGHTS = 0.1  # mean nats a token, of that text: more than rounding to 16 bits makes
FLOOR = -9999.0  # what vLLM writes for a probability of zero
ABOVE_ONE = 1.02  # more than rounding makes of probabilities that add up to one
LOOK = "Look at the server's own log, and at what stands between; then the same command continues."
TOO_LONG = (
    "context length", "context window", "max_model_len", "maximum length", "longer than", "too long", "too large",
    "must be at least 1, got",  # vLLM, of a text that fills the context and leaves no room for the token behind it
)  # fmt: skip


class Away(UserError):
    """There is no server where the recipe says."""


@dataclass(frozen=True)
class Said:
    """What a served teacher says of a text, position by position from where it was asked.

    Attributes:
        own: The log-probability of each token that stands there, in nats, ``[N]``.
        likely: Of each position, the log-probabilities of the likeliest ids and of the token's own, ``[N]``.
    """

    own: list[float]
    likely: list[dict[int, float]]


class Endpoint:
    """A model behind a server.

    Args:
        address: Where it is.
        top: How many of the likeliest tokens to ask for at each position; 0: none.

    Raises:
        UserError: its key is not set.
    """

    def __init__(self, address: Address, top: int) -> None:
        self.address = address
        self.client = Client(address)
        self.top = top
        self._dialect: Dialect | None = None
        self._of_probe: list[float] = []  # log-probabilities

    # ------------------------------------------------------------------------------------------------------ is it fit

    def check(self, tokenizer: Any, longest: int, *, needs_likelihoods: bool = True) -> None:
        """Refuse a server that does not serve, before the work that comes before its first answer.

        Args:
            tokenizer: Whose ids it is asked about.
            longest: Tokens of the longest text.
            needs_likelihoods: Whether log-probabilities will be asked for, and not text alone.

        Raises:
            UserError: it cannot be reached, wants another key, has no such model, takes no text of this length, gives
                no log-probabilities, or has another tokenizer.
        """
        try:
            models = self.client.get(f"{self.address.endpoint}/models", first=True)
        except Unreachable as error:
            raise Away(str(error)) from error
        entry = self._entry(models)
        limit = entry.get("max_model_len")
        if isinstance(limit, int) and longest >= limit:  # a token is written behind each text
            raise UserError(
                f"{self.address.shown} takes texts of {limit} tokens, one that it writes included, and this recipe has "
                f"texts of up to {longest}. Set a data.max_length (and answers) below {limit}, or serve the model with "
                f"a longer context (vLLM: --max-model-len {longest + 1})."
            )
        self._check_tokenizer(tokenizer, self._probe(tokenizer), needs_likelihoods)

    def goes_on_with(self, journal: Journal) -> Journal:
        """A journal, where the server says of a text what it said when that was begun; behind `check`.

        Raises:
            UserError: other weights are served under the name.
        """
        before, now = list(journal[PROBED]) if PROBED in journal else [], self._of_probe
        if len(before) != len(now):
            journal.add(PROBED, now)
        elif (far := math.fsum(abs(a - b) for a, b in zip(before, now, strict=True))) > OTHER_WEIGHTS * len(now):
            raise UserError(
                f"{self.address.shown} says something else of a text than when this work was begun "
                f"({far / len(now):.2g} nats a token): other weights are served under that name. Serve the former ones "
                "again, or give those of now another teacher.revision (v2, say), and all is asked anew."
            )
        return journal

    def _entry(self, models: Answer) -> dict[str, Any]:
        """What the server lists of the model; nothing where it lists no models."""
        if models.final:
            raise UserError(self._refusal(models))
        data = models.body.get("data") if isinstance(models.body, dict) else None
        if not models.fine or not isinstance(data, list):
            if models.status == 404 and not self.address.endpoint.endswith("/v1"):
                raise UserError(
                    f"teacher.endpoint: {self.address.endpoint} has no /models (404). The address of an "
                    f"OpenAI-compatible server mostly ends in /v1: {self.address.endpoint}/v1"
                )
            return {}
        entries = {str(entry["id"]): entry for entry in data if isinstance(entry, dict) and "id" in entry}
        if self.address.model not in entries:
            raise UserError(
                f"teacher.model: there is no model '{self.address.model}' at {self.address.endpoint}; "
                f"{nearest(self.address.model, entries)}"
            )
        return entries[self.address.model]

    def _probe(self, tokenizer: Any) -> str:
        """A text that other tokenizers cut in another way, with the tokens that end a turn at its end."""
        stops = sorted(turns_of(tokenizer).stops)
        return PROBE + "".join(tokenizer.convert_ids_to_tokens(stops))

    def _check_tokenizer(self, tokenizer: Any, probe: str, needs_likelihoods: bool) -> None:
        """Ask what the server makes of a text, in each way until one is answered: the way of all that follows."""
        ours = tokenizer.encode(probe, add_special_tokens=False)
        reasons, instead = [], "let the teacher write instead: training.method=seqkd"
        for dialect in DIALECTS:
            try:
                self._compare(tokenizer, ours, self._read(dialect, probe))  # before ids are sent that it may not have
                said = self._positions(dialect, ours, 1, self.top)
            except Malformed as error:
                reasons.append(f"{dialect.title}: {error}")
                continue
            if self.top and not any(position.likely for position in said):
                reasons.append(f"{dialect.title}: no ids of the likeliest tokens")
                instead = "learn from the actual tokens alone: cache.tier=likelihood"
                continue
            self._dialect, self._of_probe = dialect, [max(FLOOR, position.own or 0.0) for position in said]
            return
        if needs_likelihoods:
            self._check_listed("; ".join(reasons))
            asked = f" with the {self.top} likeliest at each position" if self.top else ""
            raise UserError(
                f"{self.address.shown} gives no log-probabilities of a prompt's tokens{asked} "
                f"({'; '.join(reasons)}). Serve the model with vLLM or SGLang, or {instead}."
            )
        self._compare_counts(tokenizer, probe, len(ours))

    def _check_listed(self, said: str) -> None:
        """Refuse a recipe that asks for more of the likeliest tokens than a server tells, where it says how many."""
        if (found := re.search(r"greater than max allowed: (\d+)", said)) is not None:
            fewer = f"cache.top_k={found[1]}" if int(found[1]) else "cache.tier=likelihood"
            raise UserError(
                f"{self.address.shown} tells at most {found[1]} of the likeliest tokens at each position, and this "
                f"recipe asks for {self.top}. Set {fewer}, or serve the model with "
                f"more (vLLM: --max-logprobs {self.top})."
            )

    def _read(self, dialect: Dialect, text: str) -> list[Position]:
        """What the server makes of a text: its own tokens."""
        answer = self.client.post(*dialect.question(self.address, text, 0, 0))
        return self._parsed(dialect, answer)

    def _parsed(self, dialect: Dialect, answer: Answer) -> list[Position]:
        if answer.final:
            raise UserError(self._refusal(answer))
        if not answer.fine or answer.said:
            raise Malformed(f"{answer.status} {answer.said}".rstrip())
        return dialect.positions(answer.body)

    def _compare(self, tokenizer: Any, ours: list[int], theirs: list[Position]) -> None:
        """Refuse another tokenizer. A server may put a BOS in front, and may not say what the first token is."""
        tokens = [position.token for position in theirs]
        tokens = tokens[1:] if len(tokens) == len(ours) + 1 else tokens
        place = next(
            (i for i, (a, b) in enumerate(zip(ours, tokens, strict=False)) if not _same(tokenizer, a, b)), None
        )
        if place is None and len(tokens) == len(ours):
            return
        reads = self.address.reads
        what = f"it makes {many(len(tokens), 'token')} of a text that {reads} makes {len(ours)} of"
        if place is not None:
            piece = tokens[place]
            shown = f"id {piece}" if isinstance(piece, int) else repr(piece)
            what = (
                f"token {place} of a text is {shown} there, and id {ours[place]} "
                f"({tokenizer.decode([ours[place]])!r}) for {reads}"
            )
        raise UserError(self._other_tokenizer(what))

    def _compare_counts(self, tokenizer: Any, probe: str, ours: int) -> None:
        """What can be compared with a server that writes only: how many tokens it reads."""
        body = {"model": self.address.model, "prompt": probe, "max_tokens": 1, "temperature": 0.0}
        answer = self._fine(self.client.post(f"{self.address.endpoint}/completions", body))
        usage = answer.body.get("usage") if isinstance(answer.body, dict) else None
        read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        before = len(turns_of(tokenizer).before)
        if isinstance(read, int) and read not in (ours, ours + before, ours + 1):
            what = f"it makes {read} tokens of a text that {self.address.reads} makes {ours} of"
            raise UserError(self._other_tokenizer(what))

    def _other_tokenizer(self, what: str) -> str:
        return (
            f"{self.address.shown} has another tokenizer than {self.address.reads}: {what}. Name the folder or hub "
            "name of its own (teacher.tokenizer), and texts are aligned by their bytes; several teachers need the "
            "student's."
        )

    # --------------------------------------------------------------------------------------------- what it says of text

    def say(self, name: str, ids: Sequence[int], start: int) -> Said:
        """What the teacher says of a text from one of its tokens on.

        Args:
            name: Of the example, for messages.
            ids: Token ids ``[L]``.
            start: The first token that is asked about, at least 1.

        Raises:
            RunError: the answer has gaps, other tokens, or numbers that are no log-probabilities.
            UserError: the server refuses the text.
        """
        assert self._dialect is not None, "check() comes first"
        try:
            found = self._positions(self._dialect, ids, start, self.top)
        except Malformed as error:
            raise RunError(
                f"{self.address.shown} gives an answer for example '{name}' that cannot be used: {error}. {LOOK}"
            ) from error
        own = [max(FLOOR, position.own or 0.0) for position in found]
        tokens = zip(ids[start:], own, found, strict=True)
        return Said(own, [{**position.likely, token: value} for token, value, position in tokens])

    def _positions(self, dialect: Dialect, ids: Sequence[int], start: int, top: int) -> list[Position]:
        """What is said of the tokens from ``start`` on, each checked."""
        answer = self.client.post(*dialect.question(self.address, ids, top, start))
        if answer.final or (self._dialect is not None and not answer.fine):
            raise UserError(self._refusal(answer, len(ids)))
        told, wanted = self._parsed(dialect, answer), len(ids) - start
        if len(told) < wanted or (dialect.from_first and len(told) != len(ids)):
            raise Malformed(
                f"it tells of {many(len(told), 'token')} where {len(ids) if dialect.from_first else wanted} were sent"
            )
        found = told[len(told) - wanted :]
        return [_checked(position, ids[start + i], start + i) for i, position in enumerate(found)]

    # --------------------------------------------------------------------------------------------------- what it writes

    def write(
        self, name: str, prompt: Sequence[int], decoding: Decoding, stop: Sequence[int], tokenizer: Any
    ) -> list[int]:
        """The model's answer to a prompt, as ids, with the token that ended it where one did.

        Args:
            name: Of the example; with ``decoding.seed`` it seeds the samples.
            prompt: Token ids.
            decoding: How tokens are chosen.
            stop: Ids that end an answer, the first of which stands for an end that the server does not name.
            tokenizer: Makes ids of the text where the server gives none.

        Raises:
            UserError: the server refuses the prompt.
            RunError: the answer is no answer.
        """
        body = {
            "model": self.address.model, "prompt": list(prompt), "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature, "top_p": decoding.top_p, "seed": sample_seed(name, decoding.seed) >> 1,
        }  # fmt: skip
        if self._dialect is not None:  # vLLM and SGLang take more than OpenAI's own
            body |= {"stop_token_ids": list(stop), "return_token_ids": True, **NO_HABITS}
        answer = self._fine(self.client.post(f"{self.address.endpoint}/completions", body), len(prompt))
        choices = answer.body.get("choices") if isinstance(answer.body, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        ids, text = choice.get("token_ids"), choice.get("text")
        if not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
            if not isinstance(text, str):
                told = f" ({answer.said})" if answer.said else ""
                raise RunError(f"{self.address.shown} gives no text for example '{name}'{told}. {LOOK}")
            ids = tokenizer.encode(text, add_special_tokens=False)
        ended = choice.get("finish_reason") == "stop" and ids[-1:] != [] and ids[-1] not in stop
        return [*ids, stop[0]] if ended or not ids else ids[: decoding.max_new_tokens]

    def _fine(self, answer: Answer, tokens: int = 0) -> Answer:
        if not answer.fine:
            raise UserError(self._refusal(answer, tokens))
        return answer

    def _refusal(self, answer: Answer, tokens: int = 0) -> str:
        """What a server's refusal means, and what helps."""
        address, said = self.address, f" ({answer.said})" if answer.said else ""
        if answer.status in (401, 403):
            if address.key_variable:
                return (
                    f"{address.shown} refuses the key in the environment variable {address.key_variable} "
                    f"({answer.status}). Put a key into it that the server takes."
                )
            return (
                f"{address.shown} asks for a key ({answer.status}). Put it into an environment variable and name that: "
                "export TEACHER_API_KEY=…, teacher.api_key_env=TEACHER_API_KEY."
            )
        if answer.final:
            return (
                f"{address.shown} is elsewhere ({answer.status}{said}), and nothing is sent there by itself. Set "
                "teacher.endpoint to its own address."
            )
        if answer.status == 404:
            return (
                f"{address.shown} has no completions ({answer.status}{said}). Correct teacher.endpoint (it mostly ends "
                "in /v1) and teacher.model, or serve the model with vLLM or SGLang."
            )
        if any(phrase in answer.said.lower() for phrase in TOO_LONG):
            return (
                f"{address.shown} refuses a text of {tokens} tokens{said}. Set a smaller data.max_length, or serve the "
                "model with a longer context."
            )
        return f"{address.shown} refuses a request: {answer.status}{said}. Look at the server's own log and options."


def _checked(position: Position, token: int, place: int) -> Position:
    """What is said of a token that is known, with its log-probability found.

    Raises:
        Malformed: it is said of another token, or is no log-probability.
    """
    own = position.likely.get(token) if position.own is None or position.token is None else position.own
    if (isinstance(position.token, int) and position.token != token) or (own is None and position.likely):
        raise Malformed(f"token {place} is {token}, but it tells of {position.token or list(position.likely)[:3]}")
    values = [math.nan if own is None else own, *position.likely.values()]
    if any(map(math.isnan, values)):
        raise Malformed(
            f"the log-probability of token {place} is not a number: the weights there may be damaged, or their "
            "precision too narrow (vLLM: --dtype bfloat16 or float32)"
        )
    mass = sum(math.exp(value) for value in position.likely.values() if value < 1)
    if max(values) > 1e-3 or mass > ABOVE_ONE:
        raise Malformed(
            f"what it gives for token {place} are no log-probabilities ({max(values):.4g}): their sum is above one "
            "(vLLM: --logprobs-mode raw_logprobs)"
        )
    return Position(token, own, position.likely)


def _same(tokenizer: Any, ours: int, theirs: int | str | None) -> bool:
    """Whether a token of the server's is ours; where it gives texts, as far as these can be compared."""
    if theirs is None or isinstance(theirs, int):
        return theirs is None or ours == theirs
    text = tokenizer.decode([ours])
    unclear = "\ufffd" in theirs + text or theirs.startswith("bytes:") or not theirs
    return unclear or theirs in (text, tokenizer.convert_ids_to_tokens(ours))
