"""An example as the text and the tokens that a model sees: what every trainer is given alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srd.data.batching import learnt_spans
from srd.data.encoding import Encoder


@dataclass(frozen=True)
class Shown:
    """What a model sees of an example.

    Attributes:
        begin: What the tokenizer would put before the prompt by itself (a BOS), as text.
        prompt: The prompt's text, in its frame, as it is read: cut where it was too long.
        completion: The text of the response behind it.
        end: The text of what closes the response; empty where the response was cut.
        earlier: Where answers within the prompt's text are learnt, too: first character and behind the last.
        input_ids: All tokens, ``[T]``.
        learnt: Which of them are learnt, 0 or 1, ``[T]``.
    """

    begin: str
    prompt: str
    completion: str
    end: str
    earlier: tuple[tuple[int, int], ...]
    input_ids: list[int]
    learnt: list[int]

    def segments(self) -> list[tuple[str, bool]]:
        """The whole text in stretches, with whether each is learnt; it needs no tokens of the tokenizer's own."""
        found, place = [], 0
        for start, stop in self.earlier:
            found += [(self.prompt[place:start], False), (self.prompt[start:stop], True)]
            place = stop
        found.append((self.prompt[place:], False))
        found[0] = (self.begin + found[0][0], False)
        return [*((text, own) for text, own in found if text), (self.completion + self.end, True)]


def shown(encoder: Encoder, rows: Sequence[dict[str, Any]]) -> list[Shown]:
    """What a model sees of some examples, whose responses are their first references."""
    prompts, texts, cut = encoder.prompts(rows)
    encoded = encoder.encode_rows(rows)
    found = []
    for place, row in enumerate(rows):
        tokens = {name: values[place] for name, values in encoded.items()}
        template = encoder.template.for_row(row)
        completion, end = _answer(encoder, row, prompts[place], tokens)
        ids = [*tokens["prompt_ids"], *tokens["response_ids"]]
        learnt = [0] * len(ids)
        for start, stop in learnt_spans(tokens):
            learnt[start:stop] = [1] * (stop - start)
        found.append(
            Shown(
                begin=_text(encoder, encoder.turns.before) if template.adds_special_tokens else "",
                prompt=texts[place],
                completion=completion,
                end=end,
                earlier=tuple(template.earlier(row)) if encoder.train_on == "all" and not cut[place] else (),
                input_ids=ids,
                learnt=learnt,
            )
        )
    return found


def _answer(encoder: Encoder, row: dict[str, Any], prompt: list[int], tokens: dict[str, Any]) -> tuple[str, str]:
    """The text of a response, and of what closes it."""
    if tokens["response_cut"]:
        return _text(encoder, tokens["response_ids"]), ""
    pieces = encoder.template.response(row)
    text = "".join(piece.text for piece in pieces)
    ends = list(encoder.turns.stop_texts.finditer(text)) if pieces and not pieces[-1].content else []
    if ends and not text[ends[-1].end() :].strip():
        return text[: ends[-1].start()], ends[-1].group()
    chat = encoder.template.for_row(row).in_turns
    return text, _text(encoder, encoder.turns.closing(prompt, chat=chat))


def _text(encoder: Encoder, ids: Sequence[int]) -> str:
    text = encoder.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text) if len(ids) else ""
