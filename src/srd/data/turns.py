"""Where a prompt begins and where a response ends, in token ids: the one rule for references and for written text.

A response is closed by what the model's own frame closes it with: in a conversation by the token that the chat
template writes behind an assistant's message, elsewhere by the tokenizer's end of sequence. Both are stop tokens
wherever text is written, and so is what the template writes behind the call of a tool. Text that was cut at its limit
has no end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

# What a stretch of text is read behind: SentencePiece puts a space before a text, but none behind a control token.
GUARDS = ("", "\n")
ASKED, ANSWERED, ASKED_AGAIN = "QzAsked", "QzAnswered", "QzAskedAgain"
TOOL = {"type": "function", "function": {"name": ASKED, "description": "", "parameters": {}}}
CALL: dict[str, Any] = {
    "id": "QzCalled0",
    "type": "function",
    "function": {"name": ASKED, "arguments": {"a": ANSWERED}},
}


@dataclass(frozen=True)
class Turns:
    """What a tokenizer and its chat template put around texts, in token ids.

    Attributes:
        before: what the tokenizer puts before every text by itself (a BOS).
        behind: what it puts behind every text by itself.
        end: closes a response where there is no chat template in play: the end of sequence.
        chat_end: closes a response in a conversation.
        call_end: closes one that calls a tool.
        opening: what the chat template writes to ask for an answer; empty where that is no control token.
        control: every control token by its text.
        others: what else ends a turn in another of the tokenizer's chat templates, where it has several.
        unclosed: whether the chat template writes no control token behind an answer, so that `end` closes it.
    """

    before: tuple[int, ...]
    behind: tuple[int, ...]
    end: tuple[int, ...]
    chat_end: tuple[int, ...]
    call_end: tuple[int, ...]
    opening: tuple[int, ...]
    control: dict[str, int]
    others: frozenset[int] = frozenset()
    unclosed: bool = False

    @property
    def stops(self) -> set[int]:
        """The tokens that end what a model writes."""
        return {self.end[-1], self.chat_end[-1], *self.call_end[-1:], *self.others}

    @property
    def stop_texts(self) -> re.Pattern[str]:
        """What those tokens look like in a template's text."""
        texts = [text for text, token in self.control.items() if token in self.stops and text]
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))

    def framed(self, ids: Sequence[int], *, special: bool, encoder_decoder: bool) -> list[int]:
        """A prompt's tokens with what the tokenizer puts around a text, once.

        Args:
            ids: the tokens of the text alone.
            special: whether the text wants the tokenizer's own tokens around it (a chat template brings its own).
            encoder_decoder: an encoder reads an end of sequence; a decoder's prompt must go on.
        """
        if not special:
            return list(ids)
        before = () if _starts(ids, self.before) else self.before
        behind = self.behind if encoder_decoder and not _ends(ids, self.behind) else ()
        return [*before, *ids, *behind]

    def closing(self, prompt: Sequence[int], *, chat: bool) -> tuple[int, ...]:
        """What closes the response to a prompt, also to a ready-made one that a chat template has written."""
        return self.chat_end if chat or (self.opening and _ends(prompt, self.opening)) else self.end


def turns_of(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None) -> Turns:
    """What this tokenizer and its chat template put around texts.

    Args:
        tokenizer: Has them.
        options: Further arguments of the chat template; ``chat_template`` names one of several.
    """
    key = json.dumps(options or {}, sort_keys=True, default=str)
    return _turns_of(tokenizer, str(getattr(tokenizer, "chat_template", None)), tokenizer.eos_token_id, key)


def without_end(tokens: Sequence[int], stops: Sequence[int] | set[int]) -> tuple[list[int], bool]:
    """What a model has written without the stop token that ended it, and whether one did (else it was cut)."""
    ended = bool(len(tokens)) and tokens[-1] in stops
    return list(tokens[:-1] if ended else tokens), ended


@lru_cache(maxsize=16)
def _turns_of(tokenizer: PreTrainedTokenizerBase, chat_template: str, end: int, options: str) -> Turns:
    own = _of_one_template(tokenizer, end, json.loads(options))
    names = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    others = [_of_one_template(tokenizer, end, {"chat_template": name}) for name in names]
    control = {text: token for turns in (*others, own) for text, token in turns.control.items()}
    return replace(own, control=control, others=frozenset(token for turns in others for token in turns.stops))


def _of_one_template(tokenizer: Any, end: int, options: dict[str, Any]) -> Turns:
    before, behind = _around(tokenizer)
    control = {str(token): index for index, token in added_tokens(tokenizer).items() if token.special}
    control |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = set(control.values()) | set(added_tokens(tokenizer))
    chat_end, call_end, opening = [], [], []
    if tokenizer.chat_template:
        chat_end = _chat_end(tokenizer, added, options)
        call_end = _call_end(tokenizer, {end, *chat_end[-1:]}, set(control.values()), options)
        opening = _opening(tokenizer, options)
    for last in (*chat_end[-1:], *call_end):  # an end of turn is a control token, whatever the tokenizer's files say
        control[str(tokenizer.convert_ids_to_tokens(last))] = last
    return Turns(
        before=tuple(before),
        behind=tuple(behind),
        end=(end,),
        chat_end=tuple(chat_end or [end]),
        call_end=tuple(call_end),
        opening=tuple(opening if added & set(opening) else []),
        control=control,
        unclosed=bool(tokenizer.chat_template) and not chat_end,
    )


def added_tokens(tokenizer: Any) -> dict[int, Any]:
    """The tokens beside the trained vocabulary, by their ids; mistral-common has a method that refuses."""
    found = tokenizer.added_tokens_decoder
    return {} if callable(found) else dict(found)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text by itself."""
    letter, framed = _ids(tokenizer, "a"), tokenizer("a", verbose=False)["input_ids"]
    for place in range(len(framed)):
        if framed[place : place + len(letter)] == letter:
            return framed[:place], framed[place + len(letter) :]
    return [token for token in framed[:1] if token == tokenizer.bos_token_id], []


def _chat_end(tokenizer: Any, added: set[int], options: dict[str, Any]) -> list[int]:
    """What the chat template writes behind an assistant's message, up to the first control token."""
    talk = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
    last = _behind_answer(tokenizer, talk, added, options)
    middle = _behind_answer(tokenizer, [*talk, {"role": "user", "content": ASKED_AGAIN}], added, options)
    # Behind the last message may stand what asks for another answer; behind one in the middle stands its end only.
    return last if not middle or last[-1:] == [tokenizer.eos_token_id] else middle


def _behind_answer(
    tokenizer: Any, messages: list[dict[str, Any]], added: set[int], options: dict[str, Any]
) -> list[int]:
    text = _rendered(tokenizer, messages, **options)
    if ANSWERED not in text:
        return []
    behind = text.rpartition(ANSWERED)[2].partition(ASKED_AGAIN)[0]
    answer, whole = _ids(tokenizer, ANSWERED), _ids(tokenizer, ANSWERED + behind)
    tail = whole[len(answer) :] if whole[: len(answer)] == answer else _ids(tokenizer, behind)
    for place, token in enumerate(tail):
        if token in added and (token != tokenizer.bos_token_id or token == tokenizer.eos_token_id):
            return tail[: place + 1]
    return []


def _call_end(tokenizer: Any, usual: set[int], control: set[int], options: dict[str, Any]) -> list[int]:
    """The control token that ends the call of a tool, where that is not one of the usual ends.

    It stands behind the call, or opens the result of the tool.
    """
    text = later = ""
    for arguments in (CALL["function"]["arguments"], json.dumps(CALL["function"]["arguments"])):
        call = {**CALL, "function": {**CALL["function"], "arguments": arguments}}
        asking: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
        talk = [{"role": "user", "content": ASKED}, asking]
        result = {"role": "tool", "tool_call_id": CALL["id"], "name": ASKED, "content": ASKED_AGAIN}
        text = text or _rendered(tokenizer, talk, tools=[TOOL], **options)
        later = later or _rendered(tokenizer, [*talk, result], tools=[TOOL], **options)
    behind = _ids(tokenizer, text.rpartition(ANSWERED)[2].rstrip()) if ANSWERED in text else []
    if usual & set(behind) or control & set(behind[-1:]):
        return [] if usual & set(behind) else behind[-1:]
    between = later.rpartition(ANSWERED)[2].partition(ASKED_AGAIN)[0] if ANSWERED in later else ""
    found = next((token for token in _ids(tokenizer, between) if token in control - {tokenizer.bos_token_id}), None)
    return [] if found is None or found in usual else [found]


def _opening(tokenizer: Any, options: dict[str, Any]) -> list[int]:
    talk = [{"role": "user", "content": ASKED}]
    without = _rendered(tokenizer, talk, **options)
    asking = _rendered(tokenizer, talk, add_generation_prompt=True, **options)
    return _ids(tokenizer, asking[len(without) :]) if asking.startswith(without) else []


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """The text of a conversation; empty where the template refuses so plain a one."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception:  # a template is a program of its author's and may raise anything
        return ""


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _starts(ids: Sequence[int], part: tuple[int, ...]) -> bool:
    return tuple(ids[: len(part)]) == part


def _ends(ids: Sequence[int], part: Sequence[int]) -> bool:
    return not part or tuple(ids[-len(part) :]) == tuple(part)


class ControlText:
    """Tokens of texts in which a user may have typed what looks like a control token: that stays text.

    A tokenizer reads ``<|im_end|>`` as the end of a turn wherever it stands. So a text with such words in its
    content is cut at the control tokens of its *frame*, and the stretches between are read with control tokens
    switched off. That this reads frames as the tokenizer does is tried out on each such text, without the words.

    Attributes:
        met: the examples with such words.
        untold: those of them where the tokenizer cannot tell them from the token.
        first: the first such word and where it was.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: Turns) -> None:
        """Take the control tokens of a tokenizer, the ends of turns among them."""
        self._tokenizer = tokenizer
        self._control = turns.control
        # An unknown character is no control token, unless the end of sequence stands for it (GPT-2).
        self._forbidden = set(self._control.values()) - ({tokenizer.unk_token_id} - turns.stops)
        words = sorted((word for word in self._control if word), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, words))})" if words else r"(\Zx)")
        self.met: set[str] = set()
        self.untold: set[str] = set()
        self.first = ""

    def found(self, text: str) -> bool:
        """Whether a text holds the words of a control token."""
        return self._pattern.search(text) is not None

    def note(self, name: str, *texts: str) -> None:
        """Remember that an example holds such words."""
        self.met.add(name)
        if not self.first and (hit := self._pattern.search("\n".join(texts))):
            self.first = f"{hit[0]!r} in example {name!r}"

    def ids(self, pieces: Sequence[tuple[str, bool]], name: str) -> list[int]:
        """The tokens of a text.

        Args:
            pieces: each with whether it is content, whose words stay text.
            name: of the example, for `first`.
        """
        self.note(name, *(text for text, content in pieces if content))
        harmless = [(self._pattern.sub("", text) if content else text, content) for text, content in pieces]
        expected = _ids(self._tokenizer, "".join(text for text, _ in harmless))
        for guard in GUARDS:
            kept = self._apart(pieces, guard)
            if kept is not None and self._apart(harmless, guard) == expected:
                return kept
        self.untold.add(name)
        return _ids(self._tokenizer, "".join(text for text, _ in pieces))

    def _apart(self, pieces: Sequence[tuple[str, bool]], guard: str) -> list[int] | None:
        """Read the stretches between the frame's control tokens as plain text; None where that cannot be done."""
        stretches, tokens = [""], []
        for text, content in pieces:
            first, *rest = [text] if content else self._pattern.split(text)
            stretches[-1] += first
            stretches += rest[1::2]
            tokens += [self._control[word] for word in rest[::2]]
        read = [self._plain(stretches[0]), *(self._plain(stretch, guard) for stretch in stretches[1:])]
        if any(self._forbidden.intersection(ids) for ids in read):
            return None
        return read[0] + [token for one, ids in zip(tokens, read[1:], strict=True) for token in (one, *ids)]

    def _plain(self, text: str, guard: str = "") -> list[int]:
        if not text:
            return []
        read = self._tokenizer(
            [guard + text, guard], add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids, before = read["input_ids"]
        return ids[len(before) :] if guard and ids[: len(before)] == before else ids
