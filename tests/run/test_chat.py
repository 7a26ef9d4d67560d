"""Talking with a model: the same tokens as the evaluation gives, as text that is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.base.files import write_sealed
from srd.base.locks import held
from srd.cli import _Talk, app
from srd.export.base import Exported, Settings
from srd.export.push import prepared
from srd.models.generation import Decoding, decode_batch, stream_tokens
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.tokenizers.tokens import padding_id, stop_token_ids
from srd.recipe.reading import validate_recipe, write_recipe
from srd.run import chat
from srd.run.chat import chat_models, chosen
from tests.runs import TinyRun
from tests.tiny import save_tiny

ASKED = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as far as talking needs it: a recipe, and a student that is a copy of its start."""
    tiny = TinyRun(tmp_path_factory.mktemp("chat"))
    tiny.run_dir.mkdir()
    write_recipe(validate_recipe(tiny.recipe, "tiny"), tiny.run_dir / "recipe.yaml")
    student = save_tiny(tiny.run_dir / "student", "llama", layers=2, seed=2)
    (student / "chat_template.jinja").write_text("<s>{{ messages[-1]['content'] }}\n")
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5, "eos_token_id": 2}
    (student / "generation_config.json").write_text(json.dumps(settings))
    write_sealed(tiny.run_dir / "manifest.json", {"steps": {"cards": {"fingerprint": "a", "finished": "today"}}})
    return tiny.run_dir


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("decoding", [Decoding(9), Decoding(9, 1.0, 0.9, seed=3)])
def test_a_stream_has_the_tokens_of_a_batch(tmp_path: Path, family: str, decoding: Decoding) -> None:
    source = str(save_tiny(tmp_path / family, family))
    tokenizer = load_tokenizer(source)
    model = load_model(source, tokenizer=tokenizer)
    prompt, stop = tokenizer("Why is the sky blue?")["input_ids"], stop_token_ids(model, tokenizer)
    (wanted,), _ = decode_batch(model, [prompt], ["x"], decoding, stop, padding_id(tokenizer), width=len(tokenizer))
    got = stream_tokens(model, prompt, "x", decoding, stop, padding_id(tokenizer), width=len(tokenizer))
    assert list(got) == wanted


def test_a_student_writes_as_it_was_evaluated_unless_told_otherwise(trained: Path) -> None:
    (student,), notes = chat_models(str(trained))
    assert (student.name, notes) == ("student", [])
    own = student.decoding()
    assert own == Decoding(5, 0.7, 0.9)
    assert chosen(own, 7, 0.0, None, 4) == Decoding(7, 0.0, 0.9, seed=4)
    pieces = list(student.answer(ASKED, own, "chat 1"))
    assert "".join(pieces) == "".join(student.answer(ASKED, own, "chat 1"))
    assert len(pieces) > 1


def test_a_student_that_was_not_evaluated_yet_writes_as_it_will_be(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "manifest.json").unlink()
    (student,), _ = chat_models(str(run))
    assert student.decoding() == Decoding(4, 1.0, 1.0)  # of the recipe, not of the files that it was loaded from


def test_what_does_not_fit_is_refused_and_not_cut(trained: Path) -> None:
    (student,), _ = chat_models(str(trained))
    with pytest.raises(UserError, match=r"longer than the .* tokens .* beside an answer of 4"):
        list(student.answer([{"role": "user", "content": "long " * 5000}], Decoding(4), "x"))


@pytest.mark.parametrize("option", [("--top-p", "0.5"), ("--seed", "3")])
def test_options_of_sampling_are_refused_where_nothing_is_sampled(option: tuple[str, str], trained: Path) -> None:
    words = ["chat", str(trained), "--prompt", "Why?", *option]
    app([*words, "--temperature", "1"], standalone_mode=False)
    with pytest.raises(UserError, match=f"{option[0]} has no effect on greedy answers: give --temperature"):
        app([*words, "--temperature", "0"], standalone_mode=False)


class Echo:
    """Answers three turns at most."""

    name = "echo"

    def answer(self, turns: list[dict[str, str]], *_: object) -> Iterator[str]:
        if len(turns) > 3:
            raise UserError("too long")
        yield "yes"


def test_a_question_that_is_refused_takes_back_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter(["one", "caf\udce9", "two", "three"])

    def ask(_: str) -> str:
        if (question := next(asked, None)) is None:
            raise EOFError
        return question

    monkeypatch.setattr("builtins.input", ask)
    talk = _Talk([Echo()], None)
    talk.converse()
    assert [turn["content"] for turn in talk.turns] == ["one", "yes", "two", "yes"]


def test_compare_asks_teacher_start_and_student(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    for name in ("run", "run/student", str(trained)):
        found, _ = chat_models(name, compare=True)
        assert [model.name for model in found] == ["teacher", "start", "student"]
        assert {model.tokenizer.chat_template for model in found} == {"<s>{{ messages[-1]['content'] }}\n"}
    assert all("".join(model.answer(ASKED, Decoding(4), "x")) is not None for model in found)


def test_half_characters_wait_for_their_other_half(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (student,), _ = chat_models(str(trained))
    ids: list[int] = student.tokenizer("é 😀", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(chat, "stream_tokens", lambda *given, **more: iter([*ids, 2]))
    pieces = list(student.answer(ASKED, Decoding(9), "x"))
    assert "".join(pieces) == "é 😀" and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "has trained no student yet. Train it: srd run .*recipe.yaml --run-dir"),
        ({"name": "elsewhere", "compare": True}, "--compare needs a run directory"),
    ],
)
def test_what_cannot_be_talked_to(trained: Path, tmp_path: Path, arguments: Any, told: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text((trained / "recipe.yaml").read_text())
    with pytest.raises(UserError, match=told):
        chat_models(arguments.pop("name", str(run)), **arguments)


def test_a_student_that_another_command_is_making_is_to_be_waited_for(trained: Path, tmp_path: Path) -> None:
    """Not to be trained, nor looked for on the hub."""
    run = shutil.copytree(trained, tmp_path / "run")
    (student,), _ = chat_models(str(run))
    with held(run, "--run-dir"):
        chat_models(str(run))  # one that is there is talked to
        for path in ("tokenizer.json", "config.json"):
            (run / "student" / path).unlink()
        for read in (lambda: chat_models(str(run)), lambda: chat_models(str(run / "student")), lambda: student.model):
            with pytest.raises(UserError, match=rf"^another srd command works in {run}, .* Wait for it\.$"):
                read()
        shutil.rmtree(run / "student")
        for read in (
            lambda: chat_models(str(run)), lambda: Exported(run, Settings()).folder,
            *(lambda data=data: prepared(str(run), "me/mine", data=data).__enter__() for data in (False, True)),
        ):  # fmt: skip
            with pytest.raises(UserError, match=rf"^another srd command works in {run}, .* Wait for it\.$"):
                read()
    with pytest.raises(UserError, match="has trained no student yet"):
        chat_models(str(run))


def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for known in ("no run", "other"):
        with pytest.raises(UserError, match=rf"there is no run 'runs/mine' here. runs holds: {known}"):
            chat_models("runs/mine")
        (tmp_path / "runs" / "other").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "other" / "recipe.yaml").touch()
