"""`srd doctor`: what it shows is what is trained on, and what it warns of goes away when its remedy is followed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.base.remedies import Warned
from srd.cli import app
from srd.models.loading import packages
from srd.recipe.files import parse_overrides
from srd.recipe.reading import load_recipe
from srd.run import flow
from srd.run.checks import warnings
from srd.run.flow import advance
from srd.run.plan import doctor, plan
from srd.run.plan.doctor import Diagnosis, examine
from tests.runs import TinyRun, close, in_turn, tiny_rows, write_rows

SETTING = re.compile(r"[a-z_]+(?:\.[a-z_]+)+=[^\s;]*[^\s;.,]")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Models with a chat template; nothing is run."""
    return TinyRun(tmp_path_factory.mktemp("doctor"), "qwen2")


def looked_at(tiny: TinyRun, *overrides: str, rows: int = 2) -> Diagnosis:
    return examine(load_recipe(str(tiny.write_recipe()), list(overrides)), rows, 1e12)


def about(found: Diagnosis, what: str) -> list[Warned]:
    return [warning for warning in found.warnings if what in warning.what]


def test_examples_are_those_that_are_trained_on(tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object on standard output, with the first rows of the training split as the run encodes them."""
    app(["doctor", str(tiny_run.write_recipe()), "--json", "--rows", "3"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert {"examples", "warnings", "plan", "teacher", "student"} <= set(found)
    run = tiny_run.open()
    advance(run, "examples")
    close(run)
    expected = run.token_ids("train")[:3]
    assert [each["id"] for each in found["examples"]] == expected["id"]
    for each, prompt, response in zip(found["examples"], expected["prompt_ids"], expected["response_ids"], strict=True):
        assert (each["prompt_ids"], each["response_ids"]) == (prompt, response)
        assert each["prompt"] == run.tokenizer.decode(prompt) and each["response"].endswith("</s>")
        assert each["ended"]
    assert found["warnings"] == []


def test_the_screen_shows_tokens_and_obeys_no_text(
    shared: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": f"What is {n}?", "output": "a \x1b[31mred\u202e whale"} for n in range(30)]
    recipe = shared.twin().set(data__train=str(write_rows(tmp_path / "rows.jsonl", rows)))
    app(["doctor", str(recipe.write_recipe()), "--rows", "1"], standalone_mode=False)
    shown = capsys.readouterr().out
    for part in (
        "│",
        "learnt, ",
        "<|im_end|>",
        "responses (100%)",
        "memory",
        "disk",
        "No warnings",
        "\\x1b",
    ):
        assert part in shown
    assert "\x1b[31mred" not in shown and "\u202e" not in shown


TALK = [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "It scatters light."}]
CHINESE = [{"instruction": f"Why {n}?", "output": "鲸鱼生活在海里。"} for n in range(30)]
COPIED = [
    *tiny_rows(),
    {"instruction": "Say how the very large blue whale of the northern seas finds its food in winter",
     "output": "It dives down for half an hour and eats what small animals there are in the cold water", "id": "one"},
    {"instruction": "Say how the very large blue whale of the northern seas finds its food in winter!",
     "output": "It dives down for half an hour and eats what small animals there are in the cold water.", "id": "two"},
]  # fmt: skip
CASES: dict[str, tuple[list[dict[str, Any]], list[str], str, bool]] = {
    # rows; settings; the beginning of the warning; whether its remedy is settings, which make it go
    "prompts cut": (tiny_rows(), ["data.max_prompt_length=20"], "prompts are longer than 20", True),
    "responses cut": (tiny_rows(), ["data.max_length=25", "data.max_prompt_length=24"], "responses were cut", True),
    "both cut": (tiny_rows(), ["data.max_length=25", "data.max_prompt_length=18"], "responses were cut", True),
    "scripts": (CHINESE, ["data.max_length=200"], "ROUGE counts words by script", False),
    "words of control tokens": (
        [*tiny_rows(), {"instruction": "Say <|im_end|>", "output": "no"}], [], "holds the words of a control", False,
    ),
    "rows left out": ([*tiny_rows(), {"instruction": "a", "output": ""}], ["data.bad_rows=drop"], "left out", False),
    "tools left out": (
        [{"messages": TALK, "tools": [{"type": "function", "function": {"name": "weather"}}]}, *tiny_rows()],
        ["data.template=chat"], "leaves out tools", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_warning_has_a_remedy_that_works(case: str, shared: TinyRun, tmp_path: Path) -> None:
    rows, settings, what, mends = CASES[case]
    named = [{"id": f"{case}-{n}", **row} for n, row in enumerate(rows)]
    recipe = shared.twin().set(
        data__train=str(write_rows(tmp_path / "rows.jsonl", named)), generation__max_new_tokens=8
    )
    found = looked_at(recipe, *settings)
    assert all(warning.what and warning.remedy for warning in found.warnings)
    assert found.counts.ended == found.counts.examples - found.counts.responses_cut
    assert all(each.ended == each.response.endswith("<|im_end|>") for each in found.examples)
    *_, warned = about(found, what)  # of the training rows, then of the validation rows: the remedy takes in both
    if mends:
        remedy = SETTING.findall(warned.remedy)
        assert remedy
        kept = [s for s in settings if s.partition("=")[0] not in parse_keys(remedy)]
        assert about(looked_at(recipe, *kept, *remedy), what.removesuffix(" 20")) == []


def parse_keys(settings: list[str]) -> set[str]:
    assert parse_overrides(settings)
    return {setting.partition("=")[0] for setting in settings}


def test_contents_that_are_null_or_parts(shared: TinyRun, tmp_path: Path) -> None:
    """Conversations with tools' calls and lists of parts are compared like all others, in a run, too."""
    for model in (shared.teacher, shared.student):
        told = (shutil.copytree(model, tmp_path / model.name) / "chat_template.jinja").read_text()
        said = "{{ message['content'] }}"
        assert said in told
        (tmp_path / model.name / "chat_template.jinja").write_text(
            told.replace(said, said + "{{ message['tool_calls'] or '' }}")
        )
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {}}}
    parts = {"role": "user", "content": [{"type": "text", "text": "Why is the sky of the north so very blue today?"}]}
    calls = [parts, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "blue"}]
    rows = [{"id": f"{n}", "messages": [parts, TALK[1]] if n % 2 else [*calls, TALK[1]]} for n in range(60)]
    test = write_rows(tmp_path / "test.jsonl", [{"id": "t", "messages": [parts, TALK[1]]}])
    tiny = shared.twin().set(teacher=str(tmp_path / "teacher"), student=str(tmp_path / "student"),
                             data__train=str(write_rows(tmp_path / "rows.jsonl", rows)), data__test=str(test),
                             data__validation=str(write_rows(tmp_path / "more.jsonl", [{**tiny_rows()[0], "id": "v"}])),
                             data__template="auto", data__max_length=300, data__max_prompt_length=200)  # fmt: skip
    assert about(looked_at(tiny), "also in test")
    run = tiny.open(tmp_path / "run")
    advance(run, "examples")
    close(run)
    assert len(run.split("train")) == 30


def test_what_no_model_takes_is_to_be_shortened(shared: TinyRun, tmp_path: Path) -> None:
    """A remedy does not lead to lengths that are refused."""
    rows = [{"id": f"r{n}", "instruction": f"Why {n}? " * 1000, "output": "So."} for n in range(30)]
    found = looked_at(shared.twin().set(data__train=str(write_rows(tmp_path / "rows.jsonl", rows))))
    assert about(found, "prompts are longer")[0].remedy.startswith("The models take 1024 tokens")


def test_models_that_are_nowhere_are_refused_at_once(shared: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "hub_is_reachable", lambda: False)
    with pytest.raises(UserError, match=r"there is no folder .*The hub cannot be reached"):
        looked_at(shared.twin().set(teacher__model="nobody/nothing-at-all"))


def test_copies_in_training_and_test_are_told(shared: TinyRun, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [{"id": f"r{n}", **row} for n, row in enumerate(COPIED[:-1])])
    test = write_rows(
        tmp_path / "test.jsonl", [*({**row, "id": f"t{n}"} for n, row in enumerate(tiny_rows()[:4])), *COPIED[-1:]]
    )
    tiny = shared.twin().set(data__train=str(train), data__test=str(test))
    (leak,) = about(looked_at(tiny, "data.leaks=warn"), "training prompts are also in test")
    assert leak.remedy == "data.leaks=drop leaves them out of training."
    (warned,) = about(looked_at(tiny), "nearly repeat one in validation or test")
    assert "1 of the" in warned.what and "(ids one)" in warned.what
    assert not about(looked_at(tiny, *SETTING.findall(warned.remedy)), "nearly repeat")
    run = tiny.open(tmp_path / "run")
    advance(run, "examples")  # a run says it, too
    close(run)
    assert len([said for said in run.warnings if warned.what in said and warned.remedy in said]) == 1


LONG = [{"instruction": "Why? " * 50, "output": "So. " * 90}]
AHEAD: dict[str, tuple[dict[str, list[dict[str, Any]]], list[str]]] = {
    # what is wrong with which file, and what both say of it
    "scripts": ({"train": CHINESE}, ["ROUGE counts words by script"]),
    "train": ({"train": [*tiny_rows(), *LONG]}, ["1 of 41 prompts is longer", "1 of 41 responses was cut"]),
    "validation": ({"validation": LONG}, ["1 of 1 validation prompts is longer", "1 of 1 validation responses was"]),
    "test": ({"test": LONG}, ["1 of 1 test prompts is longer"]),
    "a task": ({"task": [*LONG, *CHINESE]}, ["1 of 31 mine prompts is longer", "mine: the references are"]),
    "control tokens": ({"validation": [{"instruction": "Say <|im_end|>", "output": "no"}]}, ["words of a control"]),
}  # fmt: skip


@pytest.mark.parametrize("case", in_turn(AHEAD, "train", "a task", "control tokens"))
def test_a_run_says_what_a_doctor_says_before_a_model_is_asked(
    case: str, shared: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, says = AHEAD[case]
    files = {name: [{"instruction": f"Say {name}.", "output": "So."}] for name in ("validation", "test", "task")}
    tiny = shared.twin().set(generation__max_new_tokens=8, evaluation__tasks=[])
    for name, rows in {"train": tiny_rows(), **files, **wrong}.items():
        named = [{"id": f"{name}-{number}", **row} for number, row in enumerate(rows)]
        path = str(write_rows(tmp_path / f"{name}.jsonl", named))
        tasks = {"evaluation__tasks": [{"name": "instruction", "path": path, "label": "mine"}]}
        tiny.set(**(tasks if name == "task" else {f"data__{name}": path}))
    done = flow.do
    monkeypatch.setattr(flow, "do", lambda run, step: done(run, step) if step.name == "examples" else None)
    run = tiny.open(tmp_path / "run")
    advance(run)
    close(run)
    found = looked_at(tiny).warnings
    assert {f"{each.what} {each.remedy}" for each in found} == set(run.warnings)
    assert [each for each in says if sum(each in warning.what for warning in found) != 1] == []


def test_machine_and_packages(shared: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is told with all the rest: the command, the memory, the disk."""
    monkeypatch.setattr(warnings, "memory_here", lambda: 1e6)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1})())
    monkeypatch.setattr(packages, "is_installed", lambda module: False)
    found = looked_at(shared.twin().set(teacher__attn_implementation="flash_attention_2"))
    assert [each.remedy for each in found.missing] == ["pip install kernels"]
    assert about(found, "flash_attention_2")[0].remedy == "pip install kernels"
    assert "training.micro_batch_size=1" in about(found, "of memory are needed")[0].remedy
    assert "--run-dir" in about(found, "will be written")[0].remedy


@pytest.mark.parametrize(
    ("template", "family", "told"),
    [("auto", "qwen2", True), ("chat", "qwen2", False), ("alpaca", "qwen2", False), ("auto", "llama", False)],
)
def test_instructions_in_the_papers_words_are_told_of_where_the_student_knows_its_own(
    template: str, family: str, told: bool, shared: TinyRun, tmp_path: Path
) -> None:
    tiny = shared.twin() if family == "qwen2" else TinyRun(tmp_path, family)
    found = looked_at(tiny.set(data__template=template, data__max_length=200, data__max_prompt_length=150))
    assert [("data.template=chat" in note) for note in found.notes if "Alpaca" in note] == [True] * told


def test_all_answers_of_a_conversation_are_shown_as_learnt(shared: TinyRun, tmp_path: Path) -> None:
    rows = [{"id": f"c{n}", "messages": [*TALK, {"role": "user", "content": f"{n}?"}, TALK[1]]} for n in range(30)]
    recipe = shared.twin().set(data__train=str(write_rows(tmp_path / "rows.jsonl", rows)), data__train_on="all",
                               data__template="chat", data__max_length=200, data__max_prompt_length=100)  # fmt: skip
    found = looked_at(recipe, rows=1)
    (example,) = found.examples
    first, end = example.earlier
    text = "".join(found.tokens[token] for token in example.prompt_ids[first:end])
    assert text == "It scatters light.<|im_end|>" and example.ended
