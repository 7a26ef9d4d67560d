"""What a message is: a role, a content, and whatever else a chat template may read of it, kept as it is.

A conversation lies in an example as JSON: ``messages`` has the turns before the answer, ``references`` the answer's
text, and ``extra`` what there is beyond that (empty for most): the ``tools``, and the ``answer`` where it is more than
its text. A turn that is not to be learnt has ``"train": false``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srd.base.errors import UserError
from srd.base.text import texts_in

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SYSTEM = ("system", "developer")
ASSISTANT = "assistant"
CALLS = "tool_calls"
REASONING = ("reasoning_content", "reasoning", "thinking")
CONTENTS = ("content", *REASONING)
MAPPED = "Other names can be mapped with 'columns', in the recipe `data: {train: {path: FILE, columns: {%s}}}`."
NAMES = MAPPED % "role: who, content: says, assistant: Doctor"
# Fields by which exports say whether a turn is learnt: 1 and true say yes.
MASKS = ("train", "weight", "loss_mask")
# Columns of a row that holds more than text.
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def read_messages(value: Any, place: str, field: str) -> list[Message]:
    """The turns of a conversation: each with a role and a content, and its further fields as they are.

    Raises:
        UserError: it is no such list, a role is unknown, a content is neither text, parts of text nor absent.
    """
    value = _from_json(value, place, field)
    if not isinstance(value, list) or not value:
        raise UserError(f"{place}: field {field!r}: expected a list of messages, found {kind(value)}.")
    return [_message(message, place, f"{field}[{index}]") for index, message in enumerate(value)]


def _from_json(value: Any, place: str, field: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: field {field!r} is text but not usable JSON ({error}).") from error


def _message(message: Any, place: str, name: str) -> Message:
    if not isinstance(message, Mapping) or "role" not in message:
        raise UserError(f"{place}: {name}: expected {{role, content}}, found {kind(message)}. {NAMES}")
    # A field that is null counts as missing: tables have one for every row.
    kept = {str(key): value for key, value in message.items() if value is not None and key not in MASKS}
    if "function_call" in kept:  # what one call was called before there were several
        called = {"type": "function", "function": kept.pop("function_call")}
        kept.setdefault("tool_calls", [called])
    if kept.get(CALLS) == []:  # as servers log it; templates take it for a call
        del kept[CALLS]
    if message["role"] not in ROLES:
        raise UserError(f"{place}: {name}.role is {message['role']!r}, expected one of {', '.join(ROLES)}. {NAMES}")
    if "content" in kept or message["role"] != ASSISTANT:
        kept["content"] = _content(kept.get("content"), place, f"{name}.content")
    else:  # one that calls a tool, most often
        kept["content"] = None
    if "reasoning_content" in kept:
        text_of(kept["reasoning_content"], place, f"{name}.reasoning_content")
    ordered = {"role": str(kept.pop("role")), "content": kept.pop("content"), **kept}
    if message["role"] == ASSISTANT and not _is_learnt(message, place, name):
        ordered["train"] = False
    try:
        json.dumps(ordered).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: {name} holds what JSON cannot ({error}). Make it text, or remove it.") from error
    return ordered


def _content(value: Any, place: str, name: str) -> str | list[Message]:
    if not isinstance(value, list):
        return text_of(value, place, name)
    parts: list[Message] = []
    for part in value:
        found = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(found, Mapping) or found.get("type", "text") != "text":
            shown = found.get("type") if isinstance(found, Mapping) else kind(part)
            raise UserError(f"{place}: {name} has a part of the type {shown!r}: only text can be learnt.")
        parts.append(
            {"type": "text", **{str(key): item for key, item in found.items() if item is not None}}
            | {"text": text_of(found.get("text"), place, f"{name}.text")}
        )
    return parts


def _is_learnt(message: Mapping[str, Any], place: str, name: str) -> bool:
    said = {mask: message[mask] for mask in MASKS if message.get(mask) is not None}
    for mask, value in said.items():
        if value not in (0, 1):
            raise UserError(f"{place}: {name}.{mask}: expected 0 or 1, true or false, found {kind(value)}.")
    return all(said.values())


def read_tools(value: Any, place: str) -> list[Any]:
    """The tools of a conversation, as the chat template wants them."""
    tools = _from_json(value, place, "tools")
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"{place}: field 'tools': expected a list of tools, found {kind(tools)}.")
    return tools


def refuse_media(row: Mapping[str, Any], place: str) -> None:
    """Refuse a row with images or sound, which no text stands for."""
    for name in MEDIA:
        value = row.get(name)
        if value is not None and (not hasattr(value, "__len__") or len(value)):
            raise UserError(f"{place}: field {name!r} is more than text: only text can be learnt.")


def refuse_arguments(row: Mapping[str, Any], place: str) -> None:
    """Refuse a row that has arguments of the chat template, as TRL has them: here all rows have the same."""
    value = row.get("chat_template_kwargs")
    given = _from_json(value, place, "chat_template_kwargs") if value else {}
    if isinstance(given, Mapping):
        given = {name: one for name, one in given.items() if one is not None}
    if given:
        raise UserError(
            f"{place}: field 'chat_template_kwargs' holds {json.dumps(given, default=str):.60}, but arguments of the "
            "chat template are the same for all rows. Set them in data.template_arguments, and take the field out."
        )


def plain_text(message: Message) -> str:
    """What a message says, as one text; of the call of a tool the call, as JSON."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    calls = message.get(CALLS)
    return json.dumps(calls, ensure_ascii=False) if calls and not text.strip() else text


def conversation_of(example: Mapping[str, Any]) -> list[Message]:
    """The turns before the answer; none of a row that is no conversation."""
    return json.loads(example["messages"]) if example["messages"] else []


def answer_of(example: Mapping[str, Any]) -> Message:
    """The answer as a message: all that the row says of it, as long as its text is still the row's."""
    answer = extra_of(example).get("answer")
    if answer is None or plain_text(answer) != example["references"][0]:
        return {"role": ASSISTANT, "content": example["references"][0]}
    return dict(answer)


def extra_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """What a conversation has beyond the texts of its turns."""
    return json.loads(example["extra"]) if example.get("extra") else {}


def owners_of(rows: Iterable[Mapping[str, Any]], titles: Sequence[str]) -> list[int]:
    """Of each row, the number of the teacher that its column names."""
    numbers = {title: number for number, title in enumerate(titles)}
    return [numbers[extra_of(row)["teacher"]] for row in rows]


def texts_beside(example: Mapping[str, Any]) -> list[str]:
    """The texts that a conversation brings beside its contents: names, calls and tools."""
    if not example["messages"]:
        return []
    turns = [*conversation_of(example), extra_of(example).get("answer", {})]
    beside = [{key: value for key, value in turn.items() if key not in CONTENTS} for turn in turns]
    return list(texts_in([*beside, extra_of(example).get("tools", [])]))


def text_of(value: Any, place: str, field: str) -> str:
    """A field that must be text, and valid text."""
    if not isinstance(value, str):
        raise UserError(f"{place}: field {field!r}: expected text, found {kind(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: field {field!r} holds half a surrogate pair at character {error.start}, which is no "
            "valid text. Repair the escape sequence in the file."
        ) from error
    return value


def kind(value: Any) -> str:
    """A value and its type, shortened, for messages."""
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"
