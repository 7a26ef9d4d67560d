"""Rows in the shapes that people have, brought into the few that become examples.

A shape is a line of `SHAPES`: how it is called, which rows have it, and what becomes of them. What comes out is
``messages`` (turns with a role and a content, ``tools`` beside them), or a question and its answer (`PAIRS`) with what
the question is about (`CONTEXTS`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from srd.base.errors import UserError, nearest
from srd.data.messages import MASKS, REASONING, text_of

Row = Mapping[str, Any]
Pair = tuple[str, str]  # the fields of a question and of its answer

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
SYSTEM = ("system", "system_prompt")
# The questions and the answers that go with them, in order of preference.
PAIRS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("instruction", ("output", "response")),
    ("prompt", ("completion", "response", "output")),
    ("question", ("answer", "response")),
    ("query", ("response", "answer", "output")),
    ("problem", ("solution", "answer")),
    ("input", ("output", "response")),
)
CONTEXTS = ("input", "context")
QUESTIONS = [question for question, _ in PAIRS if question not in CONTEXTS]
TURN_FIELDS = (
    "role", "from", "content", "value", "name", "tool_calls", "tool_call_id", "function_call", *REASONING, *MASKS
)  # fmt: skip
ROLE_NAMES = ("user", "assistant", "tool", "developer", "human", "gpt")
ROW_FIELDS = frozenset(
    {"id", "tools", "functions", "history", "references", *CONVERSATIONS, *SYSTEM, *CONTEXTS}
    | {name for question, answers in PAIRS for name in (question, *answers)}
)
#: Who speaks, as other tools call them.
SPEAKERS = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("observation", "tool_response", "function_response"), "tool"),
    **{name: name for name in ("system", "developer", "user", "assistant", "tool")},
}
CALLS = ("function_call", "tool_call")


@dataclass(frozen=True)
class Shape:
    """A shape of rows.

    Attributes:
        title: as one is said.
        fits: whether a row, without its nulls, has it; beside the row stands what `pair_of` says of it.
        native: what becomes of it.
    """

    title: str
    fits: Callable[[Row, Pair | None], bool]
    native: Callable[[Row, str], Row] = lambda row, place: row


def recognised(row: Row, place: str) -> tuple[str, Row]:
    """What shape a row has, and the row as it becomes an example; as it is where it has none.

    Raises:
        UserError: something in it is not what its shape says.
    """
    for names in (row.keys(), [str(name).strip().lower() for name in row]):  # `Question` is a question, too
        present = {name: value for name, value in zip(names, row.values(), strict=True) if value is not None}
        pair = pair_of(present)
        if pair:  # a table of rows of several shapes has an empty conversation in the others
            present = {name: value for name, value in present.items() if _may_be_turns(name, value)}
        for shape in SHAPES:
            if shape.fits(present, pair):
                return shape.title, shape.native(present, place)
    return "", row


# ------------------------------------------------------------------------------------------------------ conversations


def _turns(row: Row) -> list[Any] | None:
    """The turns of a row that is a conversation, as they are."""
    value = next((row[name] for name in CONVERSATIONS if name in row), None)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):  # turn about, as LIMA's are
        return [{"role": ROLE_NAMES[place % 2], "content": text} for place, text in enumerate(value)]
    return value if isinstance(value, list) else None


def _may_be_turns(name: str, value: Any) -> bool:
    """Whether a column that is called as a conversation may be one; a dialogue in running text is none."""
    if name not in CONVERSATIONS:
        return True
    return bool(value) and (not isinstance(value, str) or name == "messages" or value.lstrip().startswith("["))


def _is_share_gpt(row: Row, pair: Pair | None) -> bool:
    return _is_conversation(row, pair) and any(
        isinstance(turn, Mapping) and "from" in turn for turn in _turns(row) or []
    )


def _is_conversation(row: Row, pair: Pair | None) -> bool:
    return not row.keys().isdisjoint(CONVERSATIONS)


def _conversation(row: Row, place: str) -> Row:
    """A conversation with its turns as ``messages``, a system prompt that stands beside them in front."""
    turns = _turns(row)
    if turns is None:  # no list: for what reads `messages` to say
        return {**row, "messages": next(row[name] for name in CONVERSATIONS if name in row)}
    kept = {name: row[name] for name in row if name not in (*CONVERSATIONS, *SYSTEM, "functions")}
    functions = [{"type": "function", "function": function} for function in _listed(row, "functions") or []]
    tools = {"tools": functions} if functions and not row.get("tools") else {}
    return {**kept, **tools, "messages": _with_system(row, turns, place)}


def _share_gpt(row: Row, place: str) -> Row:
    """A conversation whose tools may be bare functions: they become tools as chat templates read them."""
    found, tools = _conversation(row, place), _listed(row, "tools")
    if not isinstance(tools, list) or not tools:
        return found
    bare = [isinstance(tool, Mapping) and "name" in tool and "function" not in tool for tool in tools]
    pairs = zip(tools, bare, strict=True)
    whole = [{"type": "function", "function": tool} if is_bare else tool for tool, is_bare in pairs]
    return {**found, "tools": whole}


def _prompt_of_turns(row: Row, place: str) -> Row:
    """The same where the prompt is a conversation, and the completion its next turns or their text."""
    kept = {name: row[name] for name in row if name not in SYSTEM}
    answers = {
        name: [_turn(turn, f"{place}: {name}") for turn in row[name]]
        for name in dict(PAIRS)["prompt"]
        if isinstance(row.get(name), list)
    }
    return {**kept, **answers, "prompt": _with_system(row, row["prompt"], place)}


def _with_system(row: Row, turns: list[Any], place: str) -> list[Any]:
    messages = [_turn(turn, f"{place}: turn {number}") for number, turn in enumerate(turns, start=1)]
    system = _system(row)
    has_own = bool(messages) and isinstance(messages[0], Mapping) and messages[0].get("role") == "system"
    return [{"role": "system", "content": system}, *messages] if system and not has_own else messages


def _turn(turn: Any, place: str) -> Any:
    """A turn with `role` and `content`, whoever it calls them so."""
    if not isinstance(turn, Mapping):
        return turn
    speaker = turn.get("role") or turn.get("from")
    known = str(speaker).lower()
    rest = {name: value for name, value in turn.items() if name not in ("role", "from", "content", "value")}
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if known in CALLS:
        return {"role": "assistant", "tool_calls": _calls(content, place), **rest}
    if speaker is None:
        return turn
    return {"role": SPEAKERS.get(known, speaker), "content": content, **rest}


def _calls(value: Any, place: str) -> list[dict[str, Any]]:
    """What a turn calls: one function or several, as JSON."""
    try:
        listed = json.loads(value) if isinstance(value, str) else value
        calls = listed if isinstance(listed, list) else [listed]
        return [
            {"type": "function", "function": {"name": call["name"], "arguments": _arguments(call)}} for call in calls
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{place}: the call of a function is to be JSON with `name` and `arguments`, found {value!r:.60}."
        ) from error


def _arguments(call: Mapping[str, Any]) -> Any:
    arguments = call.get("arguments", call.get("parameters", {}))
    return json.loads(arguments) if isinstance(arguments, str) else arguments


# --------------------------------------------------------------------------------------------- questions and answers


def pair_of(row: Row) -> Pair | None:
    """The fields of a row that hold its question and its answer; one that is not empty is preferred."""
    found = [(question, name) for question, names in PAIRS if question in row for name in names if name in row]
    filled = [pair for pair in found if not isinstance(row[pair[0]], str) or row[pair[0]].strip()]
    return next(iter([*filled, *found]), None)


def _system(row: Row) -> Any:
    return next((row[name] for name in SYSTEM if row.get(name)), None)


def _is_pair_with_more(row: Row, pair: Pair | None) -> bool:
    return pair is not None and bool(_system(row) or _listed(row, "history") or _listed(row, "tools"))


def _listed(row: Row, name: str) -> Any:
    """A field that is a list, or JSON of one."""
    value = row.get(name)
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _with_more(row: Row, place: str) -> Row:
    """A question with a system prompt, turns that came before, or tools: a conversation."""
    pair = pair_of(row)
    assert pair is not None
    question, answer = (row[name] for name in pair)
    context = next((name for name in CONTEXTS if row.get(name) and name not in pair), None)
    if isinstance(answer, list):
        raise UserError(
            f"{place}: field {pair[1]!r} holds several answers, beside a system prompt, a history or tools. Keep one."
        )
    system, history = _system(row), _listed(row, "history") or []
    turns = [{"role": "system", "content": system}] if system else []
    if not isinstance(history, list):
        raise UserError(f"{place}: field 'history': expected a list of pairs, found {history!r:.60}.")
    for before in history:
        turns += _before(before, place)
    asked = text_of(question, place, pair[0])
    if context:
        asked += f"\n\n{text_of(row[context], place, context)}"
    turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    kept = {name: row[name] for name in row if name not in (*pair, *CONTEXTS, *SYSTEM, "history", "references")}
    return {**kept, "messages": turns}


def _before(value: Any, place: str) -> list[Any]:
    """Turns of a history: a question with its answer, or one turn."""
    if isinstance(value, Mapping):
        return [_turn(value, place)]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise UserError(f"{place}: field 'history': expected pairs of question and answer, found {value!r:.60}.")
    return [{"role": "user", "content": value[0]}, {"role": "assistant", "content": value[1]}]


def _is_pair_of(question: str) -> Callable[[Row, Pair | None], bool]:
    return lambda row, pair: pair is not None and pair[0] == question


SHAPES = (
    Shape("conversation in the form of ShareGPT (from, value)", _is_share_gpt, _share_gpt),
    Shape("conversation (role, content)", _is_conversation, _conversation),
    Shape("conversation in the prompt", lambda row, pair: isinstance(row.get("prompt"), list), _prompt_of_turns),
    Shape("instruction with a system prompt, a history or tools", _is_pair_with_more, _with_more),
    Shape("instruction with answers", _is_pair_of("instruction")),
    Shape("prompt with completions", _is_pair_of("prompt")),
    Shape("question with answers", _is_pair_of("question")),
    Shape("query with responses", _is_pair_of("query")),
    Shape("problem with solutions", _is_pair_of("problem")),
    Shape("input with outputs", _is_pair_of("input")),
)


# ------------------------------------------------------------------------------------------------------------ columns


class Columns:
    """Names of our fields for those that a file has, of a row and of the turns in it.

    A name of ours may be a field of a row, of a turn (`role`, `content`), or a role (`user`, `assistant`), which the
    file calls otherwise; `system` is a column or a role. Their fields may lie deeper: `data.question`, `author.role`.

    Args:
        names: ours -> theirs.
        known: whether a row is of a data set known by name, whose fields are its own.
    """

    def __init__(self, names: Mapping[str, str], *, known: bool = False) -> None:
        self._met: set[str] = set()
        self._missing: dict[str, UserError] = {}
        ours = {*ROW_FIELDS, *TURN_FIELDS, *ROLE_NAMES}
        for name in names if not known else ():
            if name not in ours:
                turned = ", ".join(f"{their}: {name}" for name, their in names.items() if their in ours - names.keys())
                said = f" Ours stands first: {{{turned}}}, if the other is a column of the file." if turned else ""
                raise UserError(f"columns: there is no column {name!r} of ours; {nearest(name, ours)}.{said}")
        self._turn = {} if known else {name: their for name, their in names.items() if name in TURN_FIELDS}
        roles = () if known else (*ROLE_NAMES, "system")
        self._roles = {their: SPEAKERS[name] for name, their in names.items() if name in roles}
        inside = () if known else (*TURN_FIELDS, *ROLE_NAMES)
        self._row = {name: their for name, their in names.items() if name not in inside}
        self._asking = set() if known else {*CONVERSATIONS, *QUESTIONS}

    def renamed(self, row: Row, place: str) -> Row:
        """A row with our names; what is not named stays as it is.

        Where a row has the question that is named, no other one in it counts.
        """
        ours = {}
        for name, theirs in self._row.items():
            found = _at(row, theirs)
            if found:
                ours[name] = found[0]
            elif name not in self._missing:  # rows of one file may have different fields
                known = nearest(theirs, map(str, row))
                self._missing[name] = UserError(f"{place}: columns.{name}: there is no column {theirs!r}; {known}.")
        self._met.update(ours)
        gone = {*self._row.values(), *(self._asking if self._asking & ours.keys() else ())}
        row = {**{name: value for name, value in row.items() if name not in gone}, **ours}
        turns = _turns(row) if self._turn or self._roles else None
        if turns is None:
            return row
        found = [self._renamed_turn(turn, f"{place}: turn {number}") for number, turn in enumerate(turns, start=1)]
        return {**row, "messages": found}

    def check(self) -> None:
        """All rows have been seen: refuse a name for a field that none of them has, nor any of their turns."""
        for ours in self._missing.keys() - self._met:
            raise self._missing[ours]

    def _renamed_turn(self, turn: Any, place: str) -> Any:
        if not isinstance(turn, Mapping):
            return turn
        ours, gone = {}, set()
        for name, theirs in self._turn.items():
            if found := _at(turn, theirs):
                ours[name] = found[0]
                gone.add(theirs if theirs in turn else theirs.partition(".")[0])
            elif name not in self._missing:
                known = nearest(theirs, map(str, turn))
                self._missing[name] = UserError(f"{place}: columns.{name}: no turn has a field {theirs!r}; {known}.")
        self._met.update(ours)
        turn = {**{name: value for name, value in turn.items() if name not in gone}, **ours}
        speaker = "role" if "role" in turn else "from"
        role = self._roles.get(turn.get(speaker))
        if role is None:
            return turn
        self._met.add(role)  # a system that speaks in turns is no missing column
        return {**turn, speaker: role}


def _at(row: Row, name: str) -> list[Any]:
    """A field, which may lie in others; nothing where it is not there."""
    if name in row:
        return [row[name]]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return []
        value = value[part]
    return [value]
