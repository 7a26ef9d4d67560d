"""What a message tells to do, is done, and helps: every case is refused, mended as it says, and refused no more so.

A new message joins by a line in `CASES`. Settings that a message writes as ``key.path=value`` are followed without
being named there.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.models.loading import packages
from srd.recipe.reading import load_recipe
from srd.run.checks import models as checks
from srd.run.checks.models import check_recipe
from srd.run.models import RecipeModels
from srd.run.steps.examples import read_all
from tests.runs import tiny_rows, write_rows
from tests.tiny import save_tiny

Rows = list[dict[str, Any]]
Change = Callable[["World"], None]

SETTING = re.compile(r"(?<![\w.])[a-z_]+(?:\.[a-z_]+)+=(?:\[[^\]]*\]|\{[^}]*\}|[^\s;,)'…]*[^\s;.,:)'…])")


@dataclass
class World:
    """What a command is given: a folder with models and rows, and overrides of the recipe in it."""

    folder: Path
    rows: Rows = field(default_factory=tiny_rows)
    settings: dict[str, str] = field(default_factory=dict)
    data: str = "rows.jsonl"
    models: tuple[str, str] = ("teacher", "student")

    def attempt(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Do what a run does before a model is loaded; the message that it is refused with."""
        write_rows(self.folder / "rows.jsonl", self.rows)
        teacher, student = self.models
        recipe = {"teacher": {"model": teacher}, "student": {"model": student} if student else {},
                  "data": {"train": {"path": self.data}, "validation_size": 4, "test_size": 4}}  # fmt: skip
        (self.folder / "mine.yaml").write_text(json.dumps(recipe))
        monkeypatch.chdir(self.folder)
        monkeypatch.setattr(
            checks, "check_weights", lambda source, **options: None
        )  # they are sound, and looked at often
        try:
            loaded = load_recipe(
                "mine.yaml", [f"{key}={value}" if value else key for key, value in self.settings.items()]
            )
            models = RecipeModels(loaded)
            check_recipe(models)
            read_all(loaded, models)
        except UserError as error:
            return str(error)
        return ""


def put(text: str) -> Change:
    """Set ``key.path=value`` settings, several with spaces between."""

    def change(world: World) -> None:
        for setting in re.split(r" (?=[a-z_.]+=)", text):
            key, _, value = setting.partition("=")
            for known in [name for name in world.settings if name.startswith(f"{key}.")]:
                del world.settings[known]
            world.settings[key] = value

    return change


def leave_out(*keys: str) -> Change:
    return lambda world: [world.settings.pop(key) for key in keys] and None


def rows(given: Rows) -> Change:
    return lambda world: setattr(world, "rows", given)


def data(name: str) -> Change:
    return lambda world: setattr(world, "data", name)


def models(*names: str) -> Change:
    return lambda world: setattr(world, "models", names)


def file(name: str, content: str = "") -> Change:
    def change(world: World) -> None:
        path = world.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return change


def zipped(names: Iterable[str]) -> Change:
    def change(world: World) -> None:
        with zipfile.ZipFile(world.folder / "rows.zip", "w") as archive:
            for name in names:
                archive.writestr(name, LINES)

    return change


def copied(source: str, target: str, name: str = "", **changes: Any) -> Change:
    """A model folder of another name, with changes to one of its JSON files."""

    def change(world: World) -> None:
        shutil.copytree(world.folder / source, world.folder / target)
        if name:
            path = world.folder / target / name
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def all_of(*changes: Change) -> Change:
    return lambda world: [change(world) for change in changes] and None


def turns(*pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in pairs], **more}


def answered(**answer: str) -> Rows:
    """Questions, each with this answer."""
    asked = [{"role": "user", "content": f"Why {number}?"} for number in range(30)]
    return [{"messages": [question, {"role": "assistant", **answer}]} for question in asked]


ROWS = tiny_rows()
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TWO = turns(("user", "Why?"), ("user", "And why?"), ("assistant", "So."))
RENAMED = [{"task": row["instruction"], "solution": row["output"]} for row in ROWS]
BAD = [*ROWS, {"instruction": "a", "output": ""}]
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
CALLING = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
LONG_TALK = turns(("user", "Why?"), ("assistant", "So."), ("user", "And?"), ("assistant", "Yes."))
ASKS_OTHERWISE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>ANSWER\n{% endif %}"
)
DOCTORS = [{"messages": [{"who": "user", "says": f"Why {n}?"}, {"who": "Doctor", "says": "So."}]} for n in range(30)]
DROPS_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CONFIGS = "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: de.jsonl\n---\n"
ADAPTER = json.dumps({"base_model_name_or_path": "student", "peft_type": "LORA"})

# What is wrong: the change that makes it so, a part of the message, and what it says to do, each alone.
CASES: dict[str, tuple[Change, str, list[Change]]] = {
    # ------------------------------------------------------------------------------------------------------- data
    "rows that cannot be used": (rows(BAD), "Correct or remove them", [rows(ROWS)]),
    "an id twice": (rows([{"id": "a", **row} for row in ROWS]), "Make the ids unique, or leave the field 'id' out",
                    [rows(ROWS), rows([{"id": str(n), **row} for n, row in enumerate(ROWS)])]),
    "an id here and there": (rows([{"id": "a", **ROWS[0]}, *ROWS[1:]]), "Give every row an 'id', or none",
                             [rows(ROWS)]),
    "names of columns": (rows(RENAMED), "in the recipe `data: {train: {path: FILE, columns: {",
                         [put("data.train.columns={instruction: task, output: solution}")]),
    "names of speakers and their fields": (
        rows(DOCTORS), "Other names can be mapped with 'columns'",
        [put("data.train.columns={role: who, content: says, assistant: Doctor}")]),
    "a speaker that is not known": (
        all_of(rows(DOCTORS), put("data.train.columns={role: who, content: says}")),
        "Other names can be mapped with 'columns'",
        [put("data.train.columns={role: who, content: says, assistant: Doctor}")]),
    "a field that no turn has": (
        all_of(rows(DOCTORS), put("data.train.columns={role: whom, content: says, assistant: Doctor}")),
        "did you mean 'who'", [put("data.train.columns={role: who, content: says, assistant: Doctor}")]),
    "an id in two files": (
        all_of(rows([{"id": str(n), **row} for n, row in enumerate(ROWS)]),
               file("test.jsonl", json.dumps({"id": "7", "instruction": "Why?", "output": "So."}) + "\n"),
               put("data.test=test.jsonl")),
        "Make the ids unique, or leave the field 'id' out of all files",
        [all_of(rows(ROWS), file("test.jsonl", json.dumps({"instruction": "Why?", "output": "So."}) + "\n")),
         file("test.jsonl", json.dumps({"id": "x", "instruction": "Why?", "output": "So."}) + "\n")]),
    "answers that follow no prompt": (
        all_of(copied("student", "odd"), file("odd/chat_template.jinja", ASKS_OTHERWISE), models("odd", "odd"),
               rows([LONG_TALK, *ROWS])), "an answer does not follow its prompt",
        [put("data.template=plain"), file("odd/chat_template.jinja", ASKS_OTHERWISE.replace("ANSWER", "assistant"))]),
    "a system prompt that the template drops": (
        all_of(copied("student", "odd"), file("odd/chat_template.jinja", DROPS_SYSTEM), models("odd", "odd"),
               rows([turns(("system", "Be kind."), ("user", "Why?"), ("assistant", "So.")), *ROWS])),
        "leaves out what the system says",
        [put("data.template=plain"), file("odd/chat_template.jinja", DROPS_SYSTEM.replace("!= 'system'", "!= ''"))]),
    "calls that the template drops": (
        rows([{"messages": [{"role": "user", "content": "Why?"}, CALLING]}, *ROWS]),
        "choose a model whose template writes tools, or leave the row out", [rows(ROWS)]),
    "a column that is not there": (
        all_of(rows(RENAMED), put("data.train.columns={instruction: tsk, output: solution}")), "did you mean 'task'",
        [put("data.train.columns={instruction: task, output: solution}")]),
    "a column of ours": (put("data.train.columns={instructions: instruction}"), "did you mean 'instruction'",
                         [put("data.train.columns={instruction: instruction}")]),
    "splits that take all": (put("data.validation_size=20 data.test_size=20"), "make them smaller, or give more data",
                             [put("data.validation_size=10"), rows(ROWS * 3)]),
    "too few to split": (rows(ROWS[:3]), "give more", [rows(ROWS)]),
    "leaks refused": (all_of(file("test.jsonl", LINES[: LINES.index("\n")]),
                             put("data.leaks=error data.test=test.jsonl")),
                      "set data.leaks to drop or warn", [put("data.leaks=drop"), put("data.leaks=warn")]),
    "leaks everywhere": (all_of(file("test.jsonl", LINES), put("data.test=test.jsonl")), "nothing to train on", []),
    "a frame too long": (put("data.max_prompt_length=12 data.template=alpaca"), "Raise it, or use a shorter template",
                         [put("data.max_prompt_length=200"), put("data.template=plain")]),
    "no room for a response": (put("data.max_length=64"), "leaves no room for a response in max_length",
                               [put("data.max_prompt_length=32"), put("data.max_length=512")]),
    "a template's name": (put("data.template=alpca"), "did you mean 'alpaca'", [put("data.template=alpaca")]),
    "a place of a template": (put("data.template='{instruction} {inputs}'"), "did you mean 'input'",
                              [put("data.template='{instruction} {input}'"),
                               put("data.template='{instruction} {{inputs}}'")]),
    "braces of a template": (put("data.template='{instruction} }'"), "braces that are meant as such",
                             [put("data.template='{instruction} }}'")]),
    "no place in a template": (put("data.template='{input}'"), "{instruction} is missing",
                               [put("data.template='{input} {instruction}'")]),
    "no chat template": (all_of(models("plain-teacher", "plain"), put("data.template=chat")), "'alpaca' or 'plain'",
                         [put("data.template=alpaca"), put("data.template=plain"), models("teacher", "student")]),
    "arguments that nothing takes": (put("data.template=alpaca data.template_arguments={enable_thinking: false}"),
                                     "Leave them out, or choose template 'auto' or 'chat'",
                                     [leave_out("data.template_arguments"), put("data.template=auto"),
                                      put("data.template=chat")]),
    "an argument of ours": (put("data.template_arguments={tokenize: true}"), "Leave it out",
                            [leave_out("data.template_arguments")]),
    "a template of another name": (put("data.template.name=tool_use"), "it has one without a name", []),
    "calls in a template without roles": (
        all_of(rows([{**LONG_TALK, "tools": TOOLS}, *ROWS]), put("data.template=alpaca")),
        "leave the row out", [rows(ROWS)]),
    "roles in a template without roles": (all_of(rows([TWO, *ROWS]), put("data.template=plain")), "leave the row out",
                                          [rows(ROWS)]),
    "a split that is not there": (put("data.train.split=dev"), "Remove `split`", [leave_out("data.train.split")]),
    "a configuration of a file": (put("data.train.config=en"), "Remove it", [leave_out("data.train.config")]),
    "a file that is not there": (data("rows.json"), "there is no file", [data("rows.jsonl")]),
    "a folder among files": (all_of(file("more/a.jsonl", LINES), put("data.train.path=[rows.jsonl, more]")),
                             "as in more/**/*.jsonl", [put("data.train.path=[rows.jsonl, more/**/*.jsonl]")]),
    "a folder of no rows": (all_of(file("docs/readme.txt", "a"), file("docs/rows.txt", LINES), data("docs")),
                            "give other files by their names", [data("docs/rows.txt")]),
    "several configurations": (
        all_of(file("set/README.md", CONFIGS), file("set/en.jsonl", LINES), file("set/de.jsonl", LINES), data("set")),
        "config: en", [put("data.train={path: set, config: en}")]),
    "a set that is not known": (put("data.train.dataset=dollly"), "did you mean 'dolly'",
                                [put("data.train.dataset=dolly")]),
    "a link to nothing": (
        all_of(lambda world: (world.folder / "link.jsonl").symlink_to("gone.jsonl"), data("link.jsonl")),
        "this link leads to", [file("gone.jsonl", LINES)]),
    "a column twice": (all_of(file("rows.csv", "instruction,output,output\n" + "a,b,c\n" * 30), data("rows.csv")),
                       "Rename or remove one",
                       [file("rows.csv", "instruction,output,more\n" + "".join(f"a{n},b,c\n" for n in range(30)))]),
    "several lists in a file": (
        all_of(file("rows.json", json.dumps({"a": ROWS, "b": ROWS})), data("rows.json")), "Write each to a file",
        [file("rows.json", json.dumps({"a": ROWS}))]),
    "chat templates without a default": (
        all_of(copied("student", "named"), lambda world: (world.folder / "named/additional_chat_templates").mkdir(),
               lambda world: (world.folder / "named/chat_template.jinja").rename(
                   world.folder / "named/additional_chat_templates/tool_use.jinja"),
               models("teacher", "named"), put("data.template=chat")), "none is the default", []),
    "answers that thought nothing": (
        all_of(copied("student", "thinker"), file("thinker/chat_template.jinja", OPENS_THOUGHTS),
               models("thinker", "thinker"), rows(answered(content="So."))), "give the answers what they thought",
        [rows(answered(content="So.", reasoning_content="Hm.")), rows(answered(content="<think>Hm.</think>So."))]),
    "an archive of several files": (
        all_of(zipped(("a.jsonl", "b.jsonl")), data("rows.zip")), "Unpack it, and name the files in it",
        [zipped(("a.jsonl",)), all_of(file("a.jsonl", LINES), data("a.jsonl"))]),
    "rows all alike": (
        all_of(rows([{**row, "output": "the same for all"} for row in ROWS]), put("data.corruption.share=0.25")),
        "leave this kind out", [put("data.corruption.kinds=[truncated]")]),
    "all turns of an encoder": (all_of(models("t5", "t5-small"), put("data.train_on=all")), "an encoder-decoder", []),
    # ----------------------------------------------------------------------------------------------------- recipe
    "what a stage decides": (put("training.temperature=2"), "has no effect", [leave_out("training.temperature")]),
    "a setting that is not there": (put("training.epoch=2"), "did you mean 'epochs'",
                                    [all_of(leave_out("training.epoch"), put("training.epochs=2"))]),
    "a curriculum before reflection": (put("teacher.sft.curriculum={}"), "Remove curriculum",
                                       [leave_out("teacher.sft.curriculum")]),
    "a cache as a source": (put("teacher.source=cache"), "Remove source",
                            [leave_out("teacher.source"),
                             all_of(leave_out("teacher.source"), put("cache.enabled=true"))]),
    "no student": (models("teacher", ""), "give `model`, or `drop_layers`",
                   [put("student.drop_layers=1"), put("student.model=student")]),
    "a revision of no model": (all_of(models("teacher", ""), put("student.drop_layers=1 student.revision=main")),
                               "Remove it", [leave_out("student.revision")]),
    "a cache of what is yet to come": (
        put("cache.enabled=true training.method=gkd"), "Leave cache.enabled out, or use method kd",
        [leave_out("cache.enabled"), put("training.method=kd")]),
    "adapters on an adapter": (
        put("student.adapter=x training.lora.merge=false"), "Set lora.merge: true", [put("training.lora.merge=true")]),
    "a baseline's name": (put("baselines.student={}"), "choose another name",
                          [all_of(leave_out("baselines.student"), put("baselines.other={}"))]),
    # ----------------------------------------------------------------------------------------------------- models
    "a preset of a baseline alone": (
        put("baselines.b.curriculum.preset=plus"), "a preset is of a whole run",
        [put("baselines.b.curriculum={select: 1.0, stages: 1, weight: 1.0, temperature: 1.0}")]),
    "a revision of a folder": (put("student.revision=main"), "Remove revision", [leave_out("student.revision")]),
    "a part of a distribution over other tokens": (
        all_of(models("plain-teacher", "student"), put("cache.tier=topk")), "set cache.tier to int8 or exact",
        [put("cache.tier=int8")]),
    "chunks of the same tokens": (put("training.alignment=chunks"), "Leave training.alignment out",
                                  [put("training.alignment=auto")]),
    "a module that is not there": (put("training.lora.targets=[q_prj]"), "did you mean 'q_proj'",
                                   [put("training.lora.targets=[q_proj]")]),
    "an adapter for a model": (all_of(file("adapter/adapter_config.json", ADAPTER), models("teacher", "adapter")),
                               "Give its base model as `model` and this as `adapter`",
                               [all_of(models("teacher", "student"), put("student.adapter=adapter"))]),
    "a run directory": (all_of(file("run/recipe.yaml"), copied("student", "run/student"), models("teacher", "run")),
                        "Name the student in it: run/student", [models("teacher", "run/student")]),
    "a folder that is no model": (all_of(file("empty/a.txt"), models("teacher", "empty")),
                                  "Give a folder that save_pretrained wrote", [models("teacher", "student")]),
    "a file that is no model": (all_of(file("student.bin"), models("teacher", "student.bin")),
                                "Give the folder it lies in", [models("teacher", "student")]),
    "an engine that is not installed": (put("generation.engine=vllm"), "vLLM is not installed", []),
    "longer than positions": (put("data.max_length=4096"), "Set a smaller data.max_length",
                              [put("data.max_length=600")]),
    "a model to compare": (put("evaluation.models=[studnt]"), "did you mean 'student'",
                           [put("evaluation.models=[student]")]),
    "a token that is none": (
        all_of(copied("student", "odd", "generation_config.json", eos_token_id=100000), models("teacher", "odd")),
        "Correct it, or delete the file",
        [lambda world: (world.folder / "odd/generation_config.json").unlink()]),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of every kind that the cases name."""
    folder = tmp_path_factory.mktemp("models")
    for name, family, layers in (
        ("teacher", "qwen2", 3), ("student", "qwen2", 2), ("plain-teacher", "llama", 3), ("plain", "llama", 2),
        ("t5", "t5", 3), ("t5-small", "t5", 2),
    ):  # fmt: skip
        save_tiny(folder / name, family, layers=layers, seed=layers)
    return folder


def world_in(folder: Path, made: Path, *changes: Change) -> World:
    """A new world, so that one remedy does not help the next."""
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).symlink_to(path)
    world = World(folder)
    for change in changes:
        change(world)
    return world


@pytest.mark.parametrize("case", CASES)
def test_a_remedy_helps(case: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, says, remedies = CASES[case]
    message = world_in(tmp_path / "wrong", made, wrong).attempt(monkeypatch)
    assert message and says in message, message
    told = re.sub(r" with .* has \d+ mistakes?:", "", message)  # what was set is no remedy
    settings = [put(setting) for setting in SETTING.findall(told)]
    assert settings or remedies, f"nothing to follow in: {message}"
    for number, remedy in enumerate([*settings, *remedies]):
        world = world_in(tmp_path / str(number), made, wrong, remedy)
        left = world.attempt(monkeypatch)
        assert says not in left, (SETTING.findall(message), world, left)


def test_a_package_that_is_named_is_the_one_that_is_missing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once what `pip install` names is there, the model is refused for it no more."""
    wrong = put("teacher.attn_implementation=flash_attention_2")
    there: set[str] = set()
    known = packages.is_installed
    monkeypatch.setattr(packages, "is_installed", lambda module: module in there or known(module))
    message = world_in(tmp_path / "wrong", made, wrong).attempt(monkeypatch)
    (command,) = re.findall(r"pip install ([\w -]+)", message)
    there.update(command.split())
    assert "pip install" not in world_in(tmp_path / "mended", made, wrong).attempt(monkeypatch)
