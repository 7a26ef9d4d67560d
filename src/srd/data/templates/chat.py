"""The tokenizer's own chat template."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from srd.base.errors import UserError, nearest
from srd.data.messages import CALLS, REASONING, SYSTEM, Message, answer_of, conversation_of, extra_of, plain_text
from srd.data.templates.base import Example, PartedError, Segment, Template, joined, register_template
from srd.data.thoughts import (
    Thought,
    closes,
    closes_only,
    continued,
    holds,
    opened_by,
    tags_in,
    thought_of,
    told_in_fields,
)
from srd.data.turns import CALL, TOOL, Turns, turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = tuple[str, bool]  # a text, and whether it may be cut
Slot = tuple[Message, Message, str, list[Part]]  # a message, where a text of it stands, and the parts of that
SHOWN = 200  # characters of a text in a message
PROBE, THOUGHT = "QzProbe", "QzThought"
PLAIN, LAST = "choose data.template=plain", "set data.train_on=last"
TOOLLESS = "choose a model whose template writes tools, or leave the row out"
FORGETS = "leaves out what answers thought, which it would keep in their content, between <think> and </think>"
THINK = "give the answers what they thought: as reasoning_content, or in the content as <think>…</think>"
THINKS_NOT = "let it think (data.template_arguments switches that), or take out what the answers thought"
# What templates call to learn the time, and how it is to be told.
ASKED_TIME = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<form>[^"']*)(?P=quote)\s*\)""")
PROMPTS_KEPT = 1_000  # as many as are encoded together


@register_template("chat")
class ChatTemplate(Template):
    """The tokenizer's own chat template. Rows that are no conversation become one user message."""

    name = "chat"
    adds_special_tokens = False
    takes_options = in_turns = True

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None, day: date | None = None
    ) -> None:
        """Take the template of a tokenizer.

        Args:
            tokenizer: Has it.
            options: Further arguments of the template; ``chat_template`` names one of several.
            day: What it takes for today, in all that it renders; None: this day.

        Raises:
            UserError: it has none, or none of that name, or an option is not the user's to set.
        """
        self._tokenizer = tokenizer
        self.options = dict(options or {})
        self.day = day or date.today()
        self.notes: dict[str, dict[str, None]] = {}
        self._prompts: dict[str, str] = {}
        _check(tokenizer, self.options)

    def render(self, example: Example) -> list[Segment]:
        """Return the rendered conversation; messages are cuttable, oldest first, but no system messages."""
        messages, asked = self._conversation(example)
        text = self._asking(messages, example)
        self._look_for_tools(text, messages, example)
        if (segments := self._marked(messages, asked, text, example)) is not None:
            return segments
        # Templates that rewrite messages (dropping a model's thoughts, say) leave the last one as it is.
        texts = itertools.chain.from_iterable(parts for *_, parts in _slots(messages, asked))
        contents = [part.strip() for part, cuttable in texts if cuttable and part.strip()]
        last = contents[-1] if contents else ""
        start = text.rfind(last) if last else -1
        if start < 0:
            return [Segment(text, False)]
        end = start + len(last)
        parts = [Segment(text[:start], False), Segment(last, True, content=True), Segment(text[end:], False)]
        return joined(parts)

    def response(self, example: Example) -> list[Segment]:
        """Return what the template writes for the answer behind the prompt, up to what ends the turn.

        Raises:
            UserError: the conversation with its answer does not go on from the prompt.
        """
        messages, _ = self._conversation(example)
        prompt = self._asking(messages, example)
        (said,) = self._suited([answer_of(example)])
        whole, segments = self._answered(messages, said, prompt, example)
        answer = self._tagged(joined(_behind(segments, len(prompt))))
        text = "".join(segment.text for segment in segments)
        calls = whole[-1].get("tool_calls") or []
        given = [arguments for arguments in map(_arguments, calls) if isinstance(arguments, str)]
        if any(json.dumps(arguments, ensure_ascii=False) in text for arguments in given):
            self._note("quotes the arguments of calls, which are text and no objects, once more", example)
        if names := [name for name in map(_name, calls) if name not in "".join(piece.text for piece in answer)]:
            raise self._leaves_out(f"that the answer calls a tool ({names[0]!r})", example, TOOLLESS)
        return self._ended(answer, calls=bool(calls))

    def _answered(
        self, messages: Sequence[Message], answer: Message, prompt: str, example: Example
    ) -> tuple[list[Message], list[Segment]]:
        """A conversation with its answer, and its text in pieces, which goes on from the prompt.

        Of the ways to tell a thought the first counts that loses nothing of it.

        Raises:
            PartedError: in no way it goes on from the prompt.
        """
        whole, thought = [*messages, answer], thought_of(answer)
        text = first = self._apply(whole, example, ask=False)
        if thought is not None and closes(prompt):
            raise self._parted(prompt, first, example, THINKS_NOT)
        if thought is not None and (not _tells(text, prompt, thought.text) or self._writes_thoughts_untagged):
            said = "" if answer.get(CALLS) else thought.said  # many models write nothing beside a call
            for other in self._suited(list(told_in_fields(answer, thought))):
                told = self._apply([*messages, other], example, ask=False)
                if _tells(told, prompt, thought.text, said):
                    whole, text = [*messages, other], told
                    break
        if thought is not None and not _tells(text, prompt, thought.text):
            pieces = self._continued(whole, thought, prompt, example)
            if pieces is not None:
                return whole, pieces
            self._note(FORGETS, example)
        if not text.startswith(prompt):
            raise self._parted(prompt, first, example, THINK if opened_by(prompt)[1] else PLAIN)
        segments = self._marked(whole, None, text, example, answer_only=True)
        return whole, self._rewritten(whole, text, len(prompt), example) if segments is None else segments

    def _continued(
        self, whole: Sequence[Message], thought: Thought, prompt: str, example: Example
    ) -> list[Segment] | None:
        """The pieces of a conversation whose template cuts the thought of an answer, with that put back.

        None: it knows no thoughts, or the answer does not stand behind the prompt.
        """
        base, opening = opened_by(prompt)
        if thought.field != "content" and not opening and not self._cuts_thoughts:
            return None
        mark = _mark(whole)
        bare = {name: value for name, value in whole[-1].items() if name not in REASONING} | {"content": mark}
        before, found, behind = self._apply([*whole[:-1], *self._suited([bare])], example, ask=False).partition(mark)
        if not found or not before.startswith(base) or not closes_only(before[len(base) :], opening):
            return None
        said = continued(whole[-1], thought, opening)
        return [Segment(prompt, False), Segment(said, False, content=True), Segment(behind, False)]

    @cached_property
    def _writes_thoughts_untagged(self) -> bool:
        """Whether what an answer thought is written in a way of the template's own, and not between usual tags."""
        fields = dict.fromkeys(REASONING, THOUGHT)
        text = self._written({"role": "assistant", "content": PROBE, **fields})
        before, found, _ = text.rpartition(PROBE)[0].rpartition(THOUGHT)
        return bool(found) and not opened_by(before)[1]

    @cached_property
    def _cuts_thoughts(self) -> bool:
        """Whether what an answer thought is cut from its content."""
        text = self._written({"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>\n\n{PROBE}"})
        return PROBE in text and THOUGHT not in text

    def _written(self, answer: Message) -> str:
        """A plain question with an answer to it, in the form that this template reads."""
        asked, answer = self._suited([{"role": "user", "content": PROBE}, answer])
        return self._probe(asked["content"], [answer])

    def _tagged(self, answer: list[Segment]) -> list[Segment]:
        """An answer whose tags around a thought are the tokenizer's, where it has such: these are no words."""
        text = "".join(segment.text for segment in answer)
        tags = [(a, b) for a, b in tags_in(text) if text[a:b] in self._turns.control]
        pieces, begin = [], 0
        for segment in answer:
            last, end = begin, begin + len(segment.text)
            for a, b in [(a, b) for a, b in tags if segment.content and begin <= a < end]:
                pieces += [replace(segment, text=text[last:a]), Segment(text[a:b], False)]
                last = b
            pieces.append(replace(segment, text=text[last:end]))
            begin = end
        return joined(pieces)

    def earlier(self, example: Example) -> list[tuple[int, int]]:
        """Return where the template has written earlier answers that are learnt, up to what ends each turn.

        Raises:
            PartedError: it writes one elsewhere than behind what asks for it, without what was thought, or without an
                end at which a model stops.
        """
        turns, segments = conversation_of(example), self.render(example)
        messages, text = self._suited(turns), "".join(segment.text for segment in segments)
        found, slots = [], 0
        for place, turn in enumerate(turns):
            slots += sum(
                bool(part.strip()) for *_, parts in _slots(messages[place : place + 1], None) for part, _ in parts
            )
            if turn["role"] != "assistant" or not turn.get("train", True):
                continue
            prompt = self._apply(messages[:place], example)
            end, ended = self._end_behind(segments, len(prompt), slots - 1)
            if not text.startswith(prompt) or self._forgets(messages[: place + 1], turn, prompt, text[:end], example):
                raise self._parted(prompt, text, example, LAST)
            if not ended:
                raise self._unended(text[len(prompt) : end], text[end:], example)
            found.append((len(prompt), end))
        return found

    def _forgets(self, turns: Sequence[Message], turn: Message, prompt: str, text: str, example: Example) -> bool:
        """Whether a text lacks what a turn thought, which the turn has where it is the last."""
        thought = thought_of(turn)
        if thought is None or holds(text[len(prompt) :], thought.text):
            return False
        _, pieces = self._answered(turns[:-1], turns[-1], prompt, example)
        return _tells("".join(piece.text for piece in pieces), prompt, thought.text)

    def _end_behind(self, segments: list[Segment], start: int, slot: int) -> tuple[int, bool]:
        """Where a turn ends whose last content is the one with this number, and whether a token ends it there."""
        begin, content = 0, False
        for segment in segments:
            end = begin + len(segment.text)
            content = content or (segment.content and segment.cut_order == slot and end > start)
            if end > start and not segment.content:
                stop = self._stops.search(segment.text, max(0, start - begin))
                if stop or content:
                    return begin + (stop.end() if stop else 0), bool(stop)
            begin = end
        return begin, False

    @property
    def _turns(self) -> Turns:
        return turns_of(self._tokenizer, self.options)

    @cached_property
    def _dated(self) -> PreTrainedTokenizerBase:
        """The tokenizer with the day in its templates where they ask for it, so that a text is the same at any time."""
        found = self._tokenizer.chat_template
        if not ASKED_TIME.search(str(found)):
            return self._tokenizer
        now = datetime.combine(self.day or date.today(), time())
        told = {
            name: ASKED_TIME.sub(lambda call: json.dumps(now.strftime(call["form"]), ensure_ascii=False), text)
            for name, text in (found.items() if isinstance(found, dict) else [("", found)])
        }
        dated = copy.copy(self._tokenizer)
        dated.chat_template = told if isinstance(found, dict) else told[""]
        return dated

    @cached_property
    def _stops(self) -> re.Pattern[str]:
        return self._turns.stop_texts

    def _ended(self, segments: list[Segment], *, calls: bool) -> list[Segment]:
        """The pieces of an answer up to the token that ends the turn; without the frame behind it where none does.

        That token is the first one behind the content. Behind a tool's call, whose arguments are in the frame, it is
        the first of those that stand at the end.
        """
        if not segments or segments[-1].content:
            return segments
        last = segments[-1].text
        ends = list(self._stops.finditer(last))
        within = calls or len(segments) == 1
        place = len(ends) - 1 if within else 0
        while within and place > 0 and not last[ends[place - 1].end() : ends[place].start()].strip():
            place -= 1
        kept = last[: ends[place].end()] if ends else last if within else ""
        if calls and not ends:  # closed by what opens the tool's result
            kept += "".join(self._tokenizer.convert_ids_to_tokens(list(self._turns.call_end)))
        return joined([*segments[:-1], Segment(kept, False)])

    def _rewritten(self, whole: Sequence[Message], text: str, start: int, example: Example) -> list[Segment]:
        """The pieces of a conversation whose answer a template rewrites, by where it begins and what ends it."""
        mark, marked = _mark(whole), copy.deepcopy(list(whole))
        for _, holder, key, _ in _slots(marked[-1:], None):
            holder[key] = mark
        tail = self._apply(marked, example, ask=False).rpartition(mark)[2]
        end = len(text) - len(tail) if text[start:].endswith(tail) else start
        pieces = [
            Segment(text[:start], False),
            Segment(text[start:end], False, content=True),
            Segment(text[end:], False),
        ]
        return joined(pieces)

    def _marked(
        self, messages: Sequence[Message], asked: list[Part] | None, text: str, example: Example, *,
        answer_only: bool = False,
    ) -> list[Segment] | None:  # fmt: skip
        """Find contents by rendering marks in their place; None where with the contents put back it is another text.

        Args:
            messages: The conversation.
            asked: The parts of the last message, where it has several.
            text: The conversation as it is rendered.
            example: For messages.
            answer_only: Ends with an answer, and only that is looked for.

        Raises:
            UserError: a content is not in the text at all.
        """
        mark = _mark(messages)
        for strip in (False, True):
            marked = copy.deepcopy(list(messages))
            contents: list[Segment] = []
            needed: list[Message | None] = []  # whose content it is, but for thoughts, which many templates cut
            for message, holder, key, parts in _slots(marked[-1:] if answer_only else marked, asked):
                inside = ""
                for place, (part, cuttable) in enumerate(parts):
                    if not part.strip():  # some templates ask whether a message is blank
                        inside += part
                        continue
                    inside += f"{mark}{len(contents)}Q"
                    part = part.lstrip() if strip and place == 0 else part
                    part = part.rstrip() if strip and place == len(parts) - 1 else part
                    needed.append(None if key in REASONING else message)
                    contents.append(Segment(part, cuttable, cut_order=len(contents), content=True))
                holder[key] = inside
            pieces = re.split(f"{mark}([0-9]+)Q", self._apply(marked, example, ask=not answer_only))
            segments = joined(
                [contents[int(piece)] if place % 2 else Segment(piece, False) for place, piece in enumerate(pieces)]
            )
            found = set(map(int, pieces[1::2]))
            for place, own in enumerate(needed):
                if own is not None and place not in found:
                    self._refuse_lost(own, contents[place].text, example)
            if "".join(segment.text for segment in segments) == text:
                return segments
        return None

    def _refuse_lost(self, message: Message, text: str, example: Example) -> None:
        """Refuse a conversation of which the template drops a text; of one beside a call it is noted."""
        if message.get(CALLS):  # many models write nothing there
            self._note("leaves out what is said beside the call of a tool", example)
            return
        tool = message["role"] in ("tool", "function")
        raise self._leaves_out(
            f"what the {message['role']} says ({text[:SHOWN]!r})", example, TOOLLESS if tool else PLAIN
        )

    def _look_for_tools(self, text: str, messages: Sequence[Message], example: Example) -> None:
        """Refuse a text that lacks calls, note one that lacks tools: by their names, or as it is the same without."""
        tools = extra_of(example).get("tools", [])
        calls = [call for turn in messages for call in turn.get(CALLS) or []]
        bare = [{key: value for key, value in turn.items() if key != CALLS} for turn in messages]
        if tools and (_unnamed(tools, text) or self._same(text, messages, example, tools=None)):
            self._note("leaves out tools", example)
        if calls and (_unnamed(calls, text) or self._same(text, bare, example)):
            raise self._leaves_out("the calls of tools", example, TOOLLESS)

    def _leaves_out(self, what: str, example: Example, remedy: str) -> UserError:
        """What says that the template drops a part of a conversation."""
        error = UserError(
            f"example {example['id']}: the chat template of the tokenizer {self._tokenizer.name_or_path!r} leaves out "
            f"{what}. Correct the template (chat_template.jinja beside the model), or {remedy}."
        )
        error.fault = f"the chat template leaves out {what.partition(' (')[0]}"
        return error

    def _same(self, text: str, messages: Sequence[Message], example: Example, **options: Any) -> bool:
        """Whether messages have this very text; not where the template refuses them."""
        try:
            return self._apply(messages, example, **options) == text
        except UserError:
            return False

    def _note(self, what: str, example: Example) -> None:
        self.notes.setdefault(what, {})[example["id"]] = None

    def _conversation(self, example: Example) -> tuple[list[Message], list[Part] | None]:
        """The messages of a row before its answer, and the parts of the last one where it has several."""
        if example["messages"]:
            return self._suited(conversation_of(example)), None
        instruction, context = example["instruction"], example["input"]
        asked = [(f"{instruction}\n\n", False), (context, True)] if context else [(instruction, True)]
        return self._suited([{"role": "user", "content": "".join(text for text, _ in asked)}]), asked

    def _suited(self, messages: Sequence[Message]) -> list[Message]:
        """Messages as they are, but for a content in a form that this template cannot read."""
        suited = []
        for message in messages:
            kept = {key: value for key, value in message.items() if key != "train"}
            content = kept["content"]
            if isinstance(content, list) and not self._reads_parts:
                kept["content"] = plain_text({"content": content})
            elif isinstance(content, str) and self._wants_parts:
                kept["content"] = [{"type": "text", "text": content}]
            elif content is None and not self._reads_null:
                kept["content"] = ""
            if isinstance(calls := kept.get(CALLS), list) and self._arguments_are:
                kept[CALLS] = [_with_arguments(call, self._arguments_are) for call in calls]
            suited.append(kept)
        return suited

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether a list of text parts is read, and not printed as the list it is."""
        text = self._probe([{"type": "text", "text": PROBE}])
        return PROBE in text and "'type'" not in text

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether a content is only read as a list of parts."""
        return self._reads_parts and PROBE not in self._probe(PROBE)

    @cached_property
    def _reads_null(self) -> bool:
        """Whether an absent content beside the call of a tool is not written as a word."""
        text = self._probe("a", [{"role": "assistant", "content": None, "tool_calls": [CALL]}])
        return bool(text) and "None" not in text

    @cached_property
    def _arguments_are(self) -> str:
        """What the arguments of a call have to be: `text`, an `object`, or (empty) either.

        Some templates write text as JSON, quoted once more; others join it with other text, or print an object.
        """
        object, text = CALL["function"]["arguments"], json.dumps(CALL["function"]["arguments"])
        wrote = {}
        for kind, arguments in (("object", object), ("text", text)):
            call = {**CALL, "function": {**CALL["function"], "arguments": arguments}}
            wrote[kind] = self._probe("a", [{"role": "assistant", "content": "", "tool_calls": [call]}])
        reads = {"object": bool(wrote["object"]) and str(object) not in wrote["object"], "text": text in wrote["text"]}
        return "" if reads["object"] == reads["text"] else next(kind for kind, well in reads.items() if well)

    def _probe(self, content: Any, more: Sequence[Message] = ()) -> str:
        messages = [{"role": "user", "content": content}, *more]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=[TOOL] if more else None, tokenize=False, **self.options
            )
        except Exception:  # a template is a program of its author's and may raise anything
            return ""
        return str(text)

    def _asking(self, messages: Sequence[Message], example: Example) -> str:
        """The text of a prompt, which is asked for where it is rendered and again where its response is."""
        key = repr((messages, example.get("extra")))
        text = self._prompts.get(key)
        if text is None:
            if len(self._prompts) >= PROMPTS_KEPT:
                self._prompts.clear()
            text = self._prompts[key] = self._apply(messages, example)
        return text

    def _apply(self, messages: Sequence[Message], example: Example, *, ask: bool = True, **options: Any) -> str:
        """The text of messages, with or without what asks for an answer behind them."""
        options = {"tools": extra_of(example).get("tools"), **self.options, **options}
        try:
            text = self._dated.apply_chat_template(list(messages), add_generation_prompt=ask, tokenize=False, **options)
        except MemoryError:
            raise
        except Exception as error:  # a template is a program of its author's and may raise anything
            roles = ", ".join(message["role"] for message in messages)
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise UserError(
                f"example {example['id']}: the chat template of the tokenizer refuses this conversation "
                f"(roles: {roles}): {kind}{' '.join(str(error).split())[:SHOWN].rstrip('.')}. Change the messages, "
                "or correct the template (chat_template.jinja in the model's folder), or choose another one with "
                "data.template."
            ) from error
        return str(text)

    def _parted(self, prompt: str, whole: str, example: Example, remedy: str) -> PartedError:
        """What says that an answer does not follow its prompt."""
        same = len(os.path.commonprefix([prompt, whole]))  # noqa: RUF071 - of texts, not of paths
        shown = [repr(text[max(0, same - SHOWN // 2) : same + SHOWN]) for text in (prompt, whole)]
        error = PartedError(
            f"example {example['id']}: with the chat template of the tokenizer {self._tokenizer.name_or_path!r} an "
            f"answer does not follow its prompt. The prompt is …{shown[0]}, the conversation with its answer "
            f"…{shown[1]}. Correct the template (chat_template.jinja beside the model), or {remedy}."
        )
        error.fault = f"an answer does not follow its prompt: {remedy}"
        return error

    def _unended(self, answer: str, behind: str, example: Example) -> PartedError:
        """What says that an earlier answer has no end, which the last one has."""
        error = PartedError(
            f"example {example['id']}: the chat template of the tokenizer {self._tokenizer.name_or_path!r} writes "
            f"{behind[: SHOWN // 4]!r} behind the earlier answer {answer[:SHOWN]!r}, and not what ends the last one, "
            f"at which a model stops. Correct the template (chat_template.jinja beside the model), or {LAST}."
        )
        error.fault = f"an earlier answer has no end: {LAST}"
        return error


def _check(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
    """Refuse a tokenizer without such a template, and arguments that are not the user's to set."""
    found, wanted = getattr(tokenizer, "chat_template", None), options.get("chat_template")
    called = f"the tokenizer {tokenizer.name_or_path!r}"
    if not found:
        raise UserError(
            f"template 'chat': {called} has no chat template. "
            "Choose template 'alpaca' or 'plain', or a model that was tuned for conversation."
        )
    names = list(found) if isinstance(found, dict) else []
    if wanted is not None and wanted not in names:
        has = nearest(wanted, names) if names else "it has one without a name: data.template=chat"
        raise UserError(f"data.template: {called} has no chat template named {wanted!r}; {has}.")
    if names and wanted is None and "default" not in names:
        raise UserError(
            f"data.template: {called} has several chat templates ({', '.join(names)}) and none is the default. Choose "
            f"one: data.template.name={names[0]}"
        )
    ours = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters} - {"kwargs"}
    for name in options:
        if name in ours and name != "chat_template":
            raise UserError(f"data.template_arguments: {name!r} is not the recipe's to set. Leave it out.")


def _slots(messages: Sequence[Message], asked: list[Part] | None) -> Iterator[Slot]:
    """The texts of messages, and where they stand."""
    for place, message in enumerate(messages, start=1):
        cuttable = message["role"] not in SYSTEM
        for key in REASONING:
            if isinstance(message.get(key), str):
                yield message, message, key, [(message[key], cuttable)]
        content = message["content"]
        if isinstance(content, list):
            yield from ((message, part, "text", [(part["text"], cuttable)]) for part in content)
        elif isinstance(content, str):
            last = asked if place == len(messages) else None
            yield message, message, "content", last or [(content, cuttable)]


def _tells(text: str, prompt: str, *parts: str) -> bool:
    """Whether a text goes on from a prompt and has all of these behind it."""
    return text.startswith(prompt) and holds(text[len(prompt) :], *parts)


def _arguments(call: Any) -> Any:
    """What a tool is called with."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    return function.get("arguments") if isinstance(function, Mapping) else None


def _with_arguments(call: Any, kind: str) -> Any:
    """A call whose arguments are of a kind, where they can be."""
    arguments = _arguments(call)
    if kind == "text" and isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif kind == "object" and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return call
    return {**call, "function": {**call["function"], "arguments": arguments}} if "function" in call else call


def _unnamed(tools: Sequence[Any], text: str) -> bool:
    """Whether a tool, or the call of one, is not named in a text."""
    return any(_name(tool) not in text for tool in tools)


def _name(tool: Any) -> str:
    """What a tool is called, in its description or its call."""
    tool = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(tool.get("name", "")) if isinstance(tool, Mapping) else ""


def _mark(messages: Sequence[Message]) -> str:
    """A word that is in none of the messages."""
    mark = "QzContent"
    while mark in json.dumps(messages):
        mark += "z"
    return mark


def _behind(segments: list[Segment], start: int) -> list[Segment]:
    """The pieces behind so many characters."""
    kept = []
    for segment in segments:
        if start < len(segment.text):
            kept.append(Segment(segment.text[start:], False, content=segment.content))
        start = max(0, start - len(segment.text))
    return kept
