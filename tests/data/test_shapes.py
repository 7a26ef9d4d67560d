"""Rows as people have them become conversations, or questions with answers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from srd.base.errors import UserError
from srd.data.examples import as_examples
from srd.data.settings import SourceConfig
from srd.data.shapes import Columns, recognised
from srd.tasks.base import load_source

Row = dict[str, Any]
USER = {"role": "user", "content": "Weather?"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
SEEN = {"role": "tool", "content": "blue"}
DONE = {"role": "assistant", "content": "It is blue."}
KIND = {"role": "system", "content": "Be kind."}


def said(speaker: str, value: Any, **more: Any) -> Row:
    return {"from": speaker, "value": value, **more}


ASKED, ANSWERED = said("human", "Weather?"), said("gpt", "It is blue.")
CALLED = said("function_call", json.dumps({"name": "look", "arguments": {"at": "sky"}}))

#: A row, the messages it becomes, and a word of how its shape is called.
CONVERSATIONS: list[tuple[Row, list[Row], str]] = [
    ({"conversations": [ASKED, ANSWERED]}, [USER, DONE], "ShareGPT"),
    ({"conversations": json.dumps([ASKED, ANSWERED])}, [USER, DONE], "ShareGPT"),
    ({"conversation": [said("user", "Weather?"), said("chatgpt", "It is blue.")]}, [USER, DONE], "ShareGPT"),
    ({"messages": [said("Human", "Weather?"), said("GPT", "It is blue.")]}, [USER, DONE], "ShareGPT"),
    ({"system": "Be kind.", "conversations": [ASKED, ANSWERED]}, [KIND, USER, DONE], "ShareGPT"),
    ({"system": "x", "conversations": [said("system", "Be kind."), ASKED, ANSWERED]}, [KIND, USER, DONE], "ShareGPT"),
    ({"system": "", "conversations": [ASKED, ANSWERED]}, [USER, DONE], "ShareGPT"),
    ({"conversations": [ASKED, CALLED, said("observation", "blue"), ANSWERED]}, [USER, CALLING, SEEN, DONE],
     "ShareGPT"),
    ({"conversations": [ASKED, CALLED, said("tool", "blue"), ANSWERED]}, [USER, CALLING, SEEN, DONE], "ShareGPT"),
    ({"conversations": [ASKED, said("function_call", json.dumps([{"name": "look", "arguments": '{"at": "sky"}'}]))]},
     [USER, CALLING], "ShareGPT"),
    ({"conversations": [USER, DONE]}, [USER, DONE], "role"),
    ({"messages": [USER, CALLING, SEEN, DONE]}, [USER, {**CALLING, "content": None}, SEEN, DONE], "role"),
    ({"messages": [USER, {**DONE, "weight": 0}]}, [USER, {**DONE, "weight": 0}], "role"),
    ({"instruction": "Weather?", "system": "Be kind.", "output": "It is blue."}, [KIND, USER, DONE], "system prompt"),
    ({"system_prompt": "Be kind.", "question": "Weather?", "response": "It is blue."}, [KIND, USER, DONE],
     "system prompt"),
    ({"instruction": "And now?", "input": "At sea.", "output": "Grey.", "history": [["Weather?", "It is blue."]]},
     [USER, DONE, {"role": "user", "content": "And now?\n\nAt sea."}, {"role": "assistant", "content": "Grey."}],
     "history"),
    ({"instruction": "So?", "output": "Yes.", "history": json.dumps([USER, DONE])},
     [USER, DONE, {"role": "user", "content": "So?"}, {"role": "assistant", "content": "Yes."}], "history"),
    ({"prompt": "Weather?", "system": "Be kind.", "response": "It is blue."}, [KIND, USER, DONE], "system prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages", "title"), CONVERSATIONS)
def test_conversations(row: Row, messages: list[Row], title: str) -> None:
    shape, native = recognised({**row, "id": 7, "tools": "[]", "nothing": None}, "here")
    assert native["messages"] == messages
    assert title in shape
    assert native["id"] == 7 and native["tools"] == "[]"


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Say", "input": "a", "output": "b", "system": "", "history": []},
        {"instruction": "Say", "input": "a", "output": "b", "system": None, "history": None},
        {"instruction": "Say", "input": "a", "output": "b", "history": "[]"},
        {"query": "Say", "input": "a", "response": "b"},
        {"problem": "Say", "context": "a", "solution": "b"},
        {"question": "Say", "context": "a", "response": "b"},
        {"Question": "Say", "CONTEXT": "a", " Answer ": "b"},
    ],
)
def test_questions_with_answers(row: Row, tmp_path: Path) -> None:
    (example,) = load(tmp_path, [row])
    assert (example["instruction"], example["input"], example["references"]) == ("Say", "a", ["b"])
    assert example["messages"] == example["prompt"] == ""


def test_tools_are_kept_in_every_shape(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    for row in (
        {"conversations": [ASKED, ANSWERED], "tools": json.dumps([tool])},
        {"conversations": [ASKED, ANSWERED], "tools": json.dumps([tool["function"]])},
        {"messages": [USER, DONE], "functions": [tool["function"]]},
        {"query": "Weather?", "response": "It is blue.", "tools": [tool]},
        {"prompt": [USER], "completion": [DONE], "tools": [tool]},
    ):
        (example,) = load(tmp_path, [row])
        assert json.loads(example["extra"])["tools"] == [tool] and json.loads(example["messages"]) == [USER]


@pytest.mark.parametrize("texts", [["Weather?", "It is blue."], ["Hi", "Hello", "Weather?", "It is blue.", "Thanks"]])
def test_a_conversation_may_be_a_list_of_texts_in_turn(texts: list[str], tmp_path: Path) -> None:
    """LIMA's rows. What the user says last is not answered."""
    for row in ({"conversations": texts, "source": "x"}, {"dialog": json.dumps(texts)}):
        (example,) = load(tmp_path, [{**row, "system": "Be kind."}])
        assert example["references"] == ["It is blue."] and example["instruction"] == "Weather?"
        (system, *turns) = json.loads(example["messages"])
        assert system == KIND and [turn["role"] for turn in turns] == ["user", "assistant", "user"][: len(turns)]
    with pytest.raises(UserError, match="no assistant message"):
        load(tmp_path, [{"conversations": ["Weather?"]}])


def test_arguments_of_the_chat_template_are_no_matter_of_a_row(tmp_path: Path) -> None:
    row = {"messages": [USER, DONE]}
    for given in ({"enable_thinking": False}, '{"enable_thinking": false}', {"enable_thinking": False, "x": None}):
        with pytest.raises(UserError, match=r'"enable_thinking": false.*data\.template_arguments'):
            load(tmp_path, [{**row, "chat_template_kwargs": given}])
    for none in ({}, None, "", "{}", {"enable_thinking": None}):
        (example,) = load(tmp_path, [{**row, "chat_template_kwargs": none}])
        assert example["references"] == ["It is blue."]


def test_empty_lists_of_tools_and_calls_are_none(tmp_path: Path) -> None:
    said = {**DONE, "tool_calls": []}
    for row in ({"messages": [USER, said], "tools": "[]"}, {"messages": [USER, said, USER, said], "tools": []}):
        (example,) = load(tmp_path, [row])
        assert example["extra"] == "" and "tool_calls" not in example["messages"]


def test_what_tables_leave_null_inside_of_calls_and_tools_is_not_there(tmp_path: Path) -> None:
    """Arguments differ from call to call, and a table has those of all calls in each."""

    def row(**arguments: str) -> Row:
        tool = {
            "type": "function",
            "function": {"name": "look", "parameters": {name: {"type": "string"} for name in arguments}},
        }
        call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
        asked = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return {"messages": [*asked, {"role": "tool", "content": "Blue."}, DONE], "tools": [tool]}

    rows = [row(city="Paris"), row(date="today")]
    wanted = load(tmp_path, rows)
    assert '"arguments": {"date": "today"}' in wanted[1]["messages"]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "t.parquet")
    found = load_source(SourceConfig(path=str(tmp_path / "t.parquet")))
    messages, extra = ([example[name] for example in wanted] for name in ("messages", "extra"))
    assert found["messages"][:] == messages and found["extra"][:] == extra
    for given in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset(), table, rows):
        assert as_examples(given)["extra"][:] == extra


def test_a_dialogue_in_running_text_beside_a_question_is_none(tmp_path: Path) -> None:
    (example,) = load(tmp_path, [{"instruction": "Sum it up.", "output": "They greet.", "dialogue": "A: Hi\nB: Hi"}])
    assert (example["instruction"], example["messages"]) == ("Sum it up.", "")


def test_what_goes_into_a_question_must_be_text(tmp_path: Path) -> None:
    row = {"system": "Be kind.", "question": "Why?", "answer": "So."}
    for wrong in ({"context": ["a", "b"]}, {"question": 7, "context": "a"}):
        with pytest.raises(UserError, match="expected text, found"):
            load(tmp_path, [{**row, **wrong}])


def test_a_prompt_may_be_a_conversation(tmp_path: Path) -> None:
    for answer in ("It is blue.", [DONE], [ANSWERED]):
        (example,) = load(tmp_path, [{"prompt": [ASKED], "completion": answer, "system": "Be kind."}])
        assert json.loads(example["messages"]) == [KIND, USER] and example["references"] == ["It is blue."]


def test_an_empty_conversation_beside_a_question_is_none(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"instruction": "Say", "output": "b", "messages": []},
        {"messages": [USER, DONE], "output": None},
    ]
    assert [row["references"] for row in load(tmp_path, rows)] == [["b"], ["It is blue."]]


def test_pictures_are_refused_in_every_shape(tmp_path: Path) -> None:
    for row in ({"conversations": [ASKED, ANSWERED]}, {"instruction": "a", "output": "b", "system": "c"}):
        with pytest.raises(UserError, match="'images' is more than text"):
            load(tmp_path, [{**row, "images": ["a.png"]}])


def test_ids_are_texts_or_whole_numbers_under_any_capitals(tmp_path: Path) -> None:
    rows: list[Row] = [{"Id": "a", "Input": "x", "Output": "y"}, {"id": 7, "input": "x", "output": "y"},
                       {"id": 8.0, "query": "x", "response": "y"}]  # fmt: skip
    assert [row["id"] for row in load(tmp_path, rows)] == ["a", "7", "8"]


def test_an_input_may_be_the_question(tmp_path: Path) -> None:
    for row in ({"input": "Say", "output": "b"}, {"instruction": "", "input": "Say", "output": "b"}):
        (example,) = load(tmp_path, [row])
        assert (example["instruction"], example["input"], example["references"]) == ("Say", "", ["b"])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversations": [ASKED, said("function_call", "look()"), ANSWERED]}, ["turn 2", "JSON", "look()"]),
        ({"conversations": [said("critic", "No."), ANSWERED]}, ["'critic'"]),
        ({"conversations": "hello"}, ["messages"]),
        ({"conversations": 7}, ["messages", "int 7"]),
        ({"instruction": "a", "output": "b", "history": "before"}, ["'history'", "before"]),
        ({"instruction": "a", "output": "b", "history": [["only"]]}, ["'history'", "only"]),
        ({"instruction": "a", "output": ["b", "c"], "system": "d"}, ["'output'", "several answers"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, row: Row, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, [row])
    for word in [f"{tmp_path / 'rows.jsonl'}:1", *words]:
        assert word in str(caught.value)


def load(folder: Path, rows: list[Row], **fields: Any) -> list[Row]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(load_source(SourceConfig(path=str(path), **fields)))  # type: ignore[arg-type]


def test_mixed_rows_are_all_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"conversations": [ASKED, ANSWERED]}] * 3 + [{"instruction": "a", "output": "b"}] * 2
    with caplog.at_level(logging.INFO, "srd"):
        assert len(load(tmp_path, rows)) == 5
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path / 'rows.jsonl'}: JSON lines: 3 conversations in the form of ShareGPT")
    assert told.endswith("2 instructions with answers")


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"instruction": "task", "output": "solved", "input": "about"}, {"task": "Say", "about": "a", "solved": "b"}),
        ({"instruction": "q.text", "output": "a.0", "input": "q.at"}, {"q": {"text": "Say", "at": "a"}, "a.0": "b"}),
        ({"instruction": "output", "output": "instruction"}, {"output": "Say", "input": "a", "instruction": "b"}),
    ],
)  # fmt: skip
def test_columns_of_rows(tmp_path: Path, columns: dict[str, str], row: Row) -> None:
    (example,) = load(tmp_path, [row], columns=columns)
    assert (example["instruction"], example["input"], example["references"]) == ("Say", "a", ["b"])


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"messages": "dialog", "role": "who", "content": "what"},
         {"dialog": [{"who": "user", "what": "Weather?"}, {"who": "assistant", "what": "It is blue."}]}),
        ({"role": "who", "content": "what", "user": "Patient", "assistant": "Doctor"},
         {"conversations": [{"who": "Patient", "what": "Weather?"}, {"who": "Doctor", "what": "It is blue."}]}),
        ({"from": "who", "value": "what", "human": "Patient", "gpt": "Doctor"},
         {"conversations": [{"who": "Patient", "what": "Weather?"}, {"who": "Doctor", "what": "It is blue."}]}),
        ({"role": "who", "content": "what", "user": "Patient", "assistant": "Doctor", "developer": "Clinic"},
         {"conversations": [{"who": "Patient", "what": "Weather?"}, {"who": "Doctor", "what": "It is blue."}]}),
        ({"user": "me", "assistant": "you", "messages": "log.turns"},
         {"log": {"turns": [said("me", "Weather?"), said("you", "It is blue.")]}}),
        ({"role": "author.role", "content": "content.parts.text"},
         {"messages": [{"author": {"role": role, "name": None}, "content": {"parts": {"text": text}}}
                       for role, text in (("user", "Weather?"), ("assistant", "It is blue."))]}),
        ({"role": "a.b", "content": "says"},
         {"dialog": [{"a.b": "user", "says": "Weather?"}, {"a.b": "assistant", "says": "It is blue."}]}),
    ],
)  # fmt: skip
def test_columns_inside_conversations(columns: dict[str, str], row: Row) -> None:
    assert recognised(Columns(columns).renamed(row, "here"), "here")[1]["messages"] == [USER, DONE]


@pytest.mark.parametrize("name", ["system", "developer"])
def test_who_sets_the_scene_is_named_like_any_other_speaker(name: str, tmp_path: Path) -> None:
    """`system` may be a column of the row, too: only where neither is there the name is wrong."""
    row = {"conversations": [said("Narrator", "Be brief."), USER, DONE]}
    columns = Columns({name: "Narrator"})
    messages = recognised(columns.renamed(row, "here"), "here")[1]["messages"]
    assert [turn["role"] for turn in messages] == [name, "user", "assistant"]
    columns.check()
    with pytest.raises(UserError, match=r"columns\.system: there is no column 'Narator'"):
        load(tmp_path, [row], columns={"system": "Narator"})


@pytest.mark.parametrize(
    ("columns", "answer"),
    [({}, "m"), ({"instruction": "q", "output": "a"}, "n"), ({"prompt": "q", "completion": "a"}, "n"),
     ({"conversations": "talk"}, "o"), ({"id": "q"}, "m")],
)  # fmt: skip
def test_what_columns_name_is_what_is_read(tmp_path: Path, columns: dict[str, str], answer: str) -> None:
    """Whatever else there is in a row that could be read."""
    row = {"messages": [USER, {**DONE, "content": "m"}], "talk": [USER, {**DONE, "content": "o"}],
           "q": "Weather?", "a": "n", "instruction": "Why?", "output": "p"}  # fmt: skip
    (example,) = load(tmp_path, [row], columns=columns)
    assert (example["instruction"], example["references"]) == ("Weather?", [answer])


def test_columns_of_one_of_several_shapes(tmp_path: Path) -> None:
    rows: list[Row] = [{"task": "a", "solved": "b"}, {"messages": [USER, DONE]}]
    columns = {"instruction": "task", "output": "solved"}
    assert [row["references"] for row in load(tmp_path, rows, columns=columns)] == [["b"], ["It is blue."]]
    rows[1] = {"text": "a", "task": "c", "answer": "d"}
    with pytest.raises(UserError, match=r"1 of 2 rows(.|\n)*rows.jsonl:2: no question with an answer"):
        load(tmp_path, rows, columns=columns)


@pytest.mark.parametrize("field", ["weight", "loss_mask", "train"])
def test_columns_say_what_is_learnt(field: str, tmp_path: Path) -> None:
    """A name that no turn has is wrong: what was not to be learnt would be."""
    turns = [USER, {**DONE, "meta": {"on": 1}}, USER, {**DONE, "content": "Grey.", "meta": {"on": 0}}]
    (example,) = load(tmp_path, [{"messages": turns}], columns={field: "meta.on"})
    assert example["references"] == ["It is blue."] and "meta" not in example["messages"]
    with pytest.raises(UserError, match=rf"turn 1: columns\.{field}: no turn has a field 'meta\.off'"):
        load(tmp_path, [{"messages": turns}], columns={field: "meta.off"})


def test_columns_the_other_way_round(tmp_path: Path) -> None:
    """As pandas renames them; the message has them as they are to be."""
    rows: list[Row] = [{"Frage": "a", "Antwort": "b"}]
    said = r"there is no column 'Frage' of ours;.* first: \{question: Frage, answer: Antwort\}, if"
    with pytest.raises(UserError, match=said):
        load(tmp_path, rows, columns={"Frage": "question", "Antwort": "answer"})
    (example,) = load(tmp_path, rows, columns={"question": "Frage", "answer": "Antwort"})
    assert (example["instruction"], example["references"]) == ("a", ["b"])


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    rows: list[Row] = [{"task": "a", "answer": "b", "about": "c"}, {"task": "a", "answer": "b"}]
    columns = {"instruction": "task", "output": "answer", "input": "about"}
    assert [row["input"] for row in load(tmp_path, rows, columns=columns)] == ["c", ""]
    for wrong, near in (
        ({"input": "abuot"}, "'about'"),
        ({"instruction": "tsk"}, "'task'"),
        ({"instrucion": "a"}, "'instruction'"),
    ):
        with pytest.raises(UserError, match=f"columns.*did you mean {near}"):
            load(tmp_path, rows, columns={**columns, **wrong})
