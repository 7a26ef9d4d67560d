"""How an example is shown to a model: the text of the prompt, in pieces that say which of them may be cut.

A prompt that is too long loses content, never its frame: a model that no longer sees "### Response:" does not
know that it should answer. A template's name is a file of this folder, which registers how it is made of a tokenizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from string import Formatter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from srd.base.errors import UserError, nearest
from srd.base.handed import check_call, check_kind
from srd.base.registry import Registry
from srd.data.messages import CALLS, REASONING, SYSTEM, conversation_of, extra_of, plain_text
from srd.data.turns import turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACES = ("instruction", "input")
GAP = "\n\n"  # between the turns of a conversation

Example = Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt.

    Attributes:
        text: what it says.
        cuttable: whether it may be shortened where the prompt is too long.
        cut_order: the cuttable piece with the lowest is shortened first, the next where that is used up.
        content: whether somebody typed it, so that the words of a control token in it are just words; what
            belongs to the frame, and a ready-made prompt, may hold control tokens.
    """

    text: str
    cuttable: bool
    cut_order: int = 0
    content: bool = False


@dataclass(frozen=True)
class Frame:
    """What a template puts around the turns of a conversation.

    Attributes:
        before: in front of a question.
        behind: behind it, where the answer follows.
        end: behind an answer.
        gap: behind that, and behind a system prompt, before what comes next.
    """

    before: str
    behind: str
    end: str
    gap: str


class PartedError(UserError):
    """An answer that does not follow its prompt in the text of a conversation."""


class Template(ABC):
    """Renders examples to prompts.

    Attributes:
        name: as in the configuration.
        adds_special_tokens: whether the tokenizer should put its own special tokens around the text (False
            where the text has them already). Of `auto` it depends on the row: ask `for_row(example)`.
        takes_options: whether the tokenizer's chat template has a part in this, which may take further arguments:
            it is then made of a tokenizer and these.
        in_turns: whether every row is shown in the turns of the tokenizer's chat template, which also close an answer.
        ready_made: whether prompts stand as they are, with nothing around them.
        options: those arguments.
        day: that the chat template takes for today.
        chat_at_hand: whether the tokenizer has a chat template, which may be advised in this one's place.
        notes: what the chat template does to rows that it should not, with the ids of the examples.
    """

    name: str
    adds_special_tokens: bool = True
    takes_options: ClassVar[bool] = False
    in_turns: ClassVar[bool] = False
    ready_made: ClassVar[bool] = False
    chat_at_hand: bool = True
    options: Mapping[str, Any] = MappingProxyType({})
    day: date | None = None
    notes: Mapping[str, dict[str, None]] = MappingProxyType({})

    @abstractmethod
    def render(self, example: Example) -> list[Segment]:
        """Return the prompt of one example in pieces; joined, they are the prompt."""

    def response(self, example: Example) -> list[Segment]:
        """Return the first reference in pieces, as it follows the prompt.

        Where the last piece is part of the frame, it may bring what closes the response; else the encoder closes it.
        """
        return [Segment(example["references"][0], False, content=True)]

    def earlier(self, example: Example) -> list[tuple[int, int]]:
        """Return where earlier answers that are learnt stand in the prompt's text, what ends them included."""
        return []

    def for_row(self, example: Example) -> Template:
        """Return the template that this row is rendered with: itself, except for `auto`."""
        return self

    def text(self, example: Example) -> str:
        """Return the whole prompt of one example, uncut."""
        return "".join(segment.text for segment in self.render(example))

    def frame(self) -> Frame | None:
        """Return what stands around each question, for a chat template that does the same; None: it cannot be said."""
        return None


class FormatTemplate(Template):
    """A text with the places `{instruction}` and `{input}`, in one wording with input and one without.

    ``FormatTemplate(name, with_input, without_input, end="")``: ``end`` ends earlier answers of a conversation.
    UserError: a wording with another place.

    Of a conversation it writes what came before in the same way: the system prompt first, then each question in its
    frame with its answer, what ends an answer, and an empty line.
    """

    def __init__(self, name: str, with_input: str, without_input: str, *, end: str = "") -> None:
        """Parse the two wordings; UserError where one has an unknown place. ``end`` is what ends an earlier answer."""
        self.name = name
        self._with_input = _parse(with_input)
        self._without_input = _parse(without_input)
        self._end = end

    def render(self, example: Example) -> list[Segment]:
        """Return the frame, with earlier turns to be cut first, then the input, then the instruction.

        Raises:
            UserError: a conversation of other turns than questions and answers.
        """
        return joined([segment for segment, _ in self._pieces(example)])

    def earlier(self, example: Example) -> list[tuple[int, int]]:
        """Return where earlier answers stand."""
        learnt = [turn.get("train", True) for turn in conversation_of(example) if turn["role"] == "assistant"]
        found, start = [], 0
        for segment, is_answer in self._pieces(example):
            if is_answer:
                found.append((start, start + len(segment.text) + len(self._end)))
            start += len(segment.text)
        return [span for span, own in zip(found, learnt, strict=True) if own]

    def frame(self) -> Frame:
        """Return what stands around a question without input."""
        before, behind, place = "", "", "before"
        for literal, field in self._without_input:
            before, behind = (before + literal, behind) if place == "before" else (before, behind + literal)
            place = "behind" if field == "instruction" else place
        return Frame(before, behind, self._end, GAP)

    def _pieces(self, example: Example) -> list[tuple[Segment, bool]]:
        """The pieces of a prompt, and whether each is an earlier answer."""
        system, before, question = _turns_of_text(example, self.name, self.chat_at_hand)
        pieces = [Segment(system, False, content=True), Segment(GAP if system else "", False)]
        found = [(piece, False) for piece in pieces]
        for place, (asked, answer) in enumerate(before, start=-2 * len(before)):
            found += [(piece, False) for piece in self._framed(asked, "", 2 * place)]
            found.append((Segment(answer, True, 2 * place + 1, content=True), True))
            found.append((Segment(f"{self._end}{GAP}", False), False))
        return [*found, *((piece, False) for piece in self._framed(question, example["input"]))]

    def _framed(self, instruction: str, context: str, first: int = 0) -> list[Segment]:
        segments = []
        for literal, field in self._with_input if context else self._without_input:
            segments.append(Segment(literal, False))
            if field:
                text, order = (context, first) if field == "input" else (instruction, first + 1)
                segments.append(Segment(text, True, cut_order=order, content=True))
        return segments


def _turns_of_text(example: Example, name: str, chat_at_hand: bool) -> tuple[str, list[tuple[str, str]], str]:
    """The system prompt, the questions that were answered with their answers, and the one that is asked.

    Raises:
        UserError: there is more in the conversation than that.
    """
    turns = conversation_of(example)
    if not turns:
        return "", [], example["instruction"]
    extra = extra_of(example)
    choose = "Choose data.template=chat" if chat_at_hand else "Take a model whose chat template writes {}"
    more = {key for turn in (*turns, extra.get("answer", {})) for key in turn if key == CALLS or key in REASONING}
    if more or extra.get("tools"):
        what = ", ".join(sorted(more)) or "tools"
        raise UserError(
            f"example {example['id']}: the template {name!r} has no place for {what}. {choose.format(what)}, or leave "
            "the row out."
        )
    start = next(place for place, turn in enumerate(turns) if turn["role"] not in SYSTEM)
    roles = [turn["role"] for turn in turns[start:]]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise UserError(
            f"example {example['id']}: the template {name!r} takes questions and answers in turn, not the roles "
            f"{', '.join(roles)}. {choose.format('these')}, or leave the row out."
        )
    *before, question = [plain_text(turn) for turn in turns[start:]]
    system = "\n\n".join(plain_text(turn) for turn in turns[:start])
    return system, list(zip(before[::2], before[1::2], strict=True)), question


def _check(name: str, make: Any) -> None:
    check_call(f"the template '{name}'", make, "tokenizer")


TEMPLATES: Registry[Callable[..., Template]] = Registry("template", "srd.data.templates", check=_check)
register_template = TEMPLATES.register


def get_template(
    name: str, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None, day: date | None = None
) -> Template:
    """Return a template by name, or made from a text of one's own.

    Args:
        name: Of the registry (`auto`, `alpaca`, `chat`, `plain`), or a text with `{instruction}` and, where wanted,
            `{input}` (`{{` and `}}` stand for braces).
        tokenizer: the chat template is taken from it.
        options: further arguments of the chat template (``enable_thinking``); ``chat_template`` names one of several.
        day: that a chat template writes where it asks for the date; today, unless said.

    Raises:
        UserError: an unknown name or place, a tokenizer without a chat template, or options that nothing takes.
    """
    if class_of(name).takes_options:
        return TEMPLATES.get(name)(tokenizer, options, day)
    if options:
        raise UserError(
            f"data.template_arguments ({', '.join(options)}) are for the chat template, which data.template={name!r} "
            "does not use. Leave them out, or choose template 'auto' or 'chat'."
        )
    if name in TEMPLATES:
        made = TEMPLATES.get(name)(tokenizer)
        check_kind(f"what the template {name!r} makes of a tokenizer", made, Template, "give a srd.FormatTemplate")
        made.chat_at_hand = bool(tokenizer.chat_template)
        return made
    if "{" in name:
        # Without a place of its own the input follows the instruction, as it must not get lost.
        places = [field for _, field in _parse(name)]
        with_input = name if "input" in places else name.replace("{instruction}", "{instruction}\n\n{input}")
        made = FormatTemplate(name, with_input, name, end=end_of(tokenizer, _parse(name)[-1][0]))
        made.chat_at_hand = bool(tokenizer.chat_template)
        return made
    raise UserError(
        f"template: there is no template {name!r}; {nearest(name, TEMPLATES.names())}. "
        "A text of your own must hold the place {instruction}."
    )


def end_of(tokenizer: PreTrainedTokenizerBase, frame: str = "") -> str:
    """The text of what ends an answer behind a frame that ends so."""
    if tokenizer.eos_token_id is None:
        return ""
    ids = tokenizer(frame, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(list(turns_of(tokenizer).closing(ids, chat=False))))


def class_of(name: str) -> type[Template]:
    """The class of a template by name; where a function makes it, or it is a text of one's own, `FormatTemplate`."""
    found = TEMPLATES.get(name) if name in TEMPLATES else None
    return found if isinstance(found, type) else FormatTemplate


def _parse(text: str) -> list[tuple[str, str]]:
    """Split a format text into (literal, field) pairs; the field after the last literal is empty."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise UserError(
            f"template {text!r}: {error}. Write {{{{ and }}}} for braces that are meant as such."
        ) from error
    parts = []
    for literal, field, specification, conversion in parsed:
        if field is not None and (field not in PLACES or specification or conversion):
            raise UserError(
                f"template {text!r}: there is no place {{{field}}}; {nearest(field, PLACES)}, "
                "without any format. Write {{ and }} for braces that are meant as such."
            )
        parts.append((literal, field or ""))
    fields = [field for _, field in parts]
    if "instruction" not in fields:
        raise UserError(f"template {text!r}: the place {{instruction}} is missing.")
    return parts


def joined(segments: Sequence[Segment]) -> list[Segment]:
    """Drop empty pieces and join neighbours of one kind of frame, so that joints fall only around content."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and not any(part.cuttable or part.content for part in (segment, joined[-1])):
            joined[-1] = Segment(joined[-1].text + segment.text, False)
        elif segment.text:
            joined.append(segment)
    return joined
