"""`srd.distill` and `srd.run`: what goes in by hand goes through the same steps as a recipe. Public names only."""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState

import srd
from tests.runs import steps_finished, tiny_rows, write_rows
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

SETTINGS: dict[str, Any] = {
    "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "generation": {"max_new_tokens": 4},
    "data": {"template": "plain", "max_length": 96, "max_prompt_length": 48, "validation_size": 4, "test_size": 4,
             "train_limit": 16},
    "evaluation": {"seeds": [1]},
}  # fmt: skip


TRAINING: Any = importlib.import_module("srd.training.settings").TrainingConfig
RECIPE = {"teacher": "t", "student": "s", "data": "rows.jsonl"}
WRITTEN_OUT = {**RECIPE, "data": {"train": "rows.jsonl", "cleaning": "off"}, "reflection": {"out_of_sample": "off"},
               "training": {"curriculum": {"stages": 3, "select": 0.75, "weight": 1.0, "temperature": 1}}}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_this_file_uses_public_names_only() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert not re.findall(r"^\s*(?:from srd\b|import srd\.).*", source, re.MULTILINE)


def test_names_in_a_student_out(folder: Path) -> None:
    save_tiny("tiny-teacher", "llama", layers=4, seed=1)
    save_tiny("tiny-student", "llama", seed=2)
    rows = write_rows(folder / "rows.jsonl", tiny_rows())
    result = srd.distill("tiny-teacher", Path("tiny-student"), rows, curriculum=srd.Curriculum(stages=2), **SETTINGS)
    assert result.run_dir.parent == Path("runs") and (result.run_dir / "student").is_dir()
    assert set(result.metrics) == {"teacher", "student", "srd"} and "rouge_l" in result.metrics["srd"]["test"]
    assert result.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    prompt = result.tokenizer("What does the whale return?", return_tensors="pt")
    assert result.student(**prompt).logits.shape[-1] == len(result.tokenizer)
    assert not list(folder.glob("runs/*-inputs"))
    before = steps_finished(result.run_dir)
    again = srd.distill("tiny-teacher", Path("tiny-student"), rows, curriculum={"stages": 2}, **SETTINGS)
    assert again.run_dir == result.run_dir
    assert steps_finished(again.run_dir) == before  # the same call, however it is written, in the same directory


def test_models_and_rows_in_memory_are_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student, tokenizer = tiny_model("llama", seed=1), tiny_model("llama", seed=2), tiny_tokenizer("llama")
    weights = {name: values.clone() for name, values in student.state_dict().items()}
    table = pandas.DataFrame(tiny_rows())

    def distil(rows: Any, run_dir: Any = "out/", **changes: Any) -> srd.Result:
        models = {"teacher": teacher, "student": (student, tokenizer), "tokenizer": tokenizer, **changes}
        return srd.distill(rows=rows, run_dir=run_dir, evaluate=False, **models, **SETTINGS)

    result = distil(table)
    assert all(torch.equal(values, weights[name]) for name, values in student.state_dict().items())
    assert result.student.num_parameters() == student.num_parameters()
    inputs, before = sorted(folder.glob("out-inputs/*")), steps_finished(result.run_dir)
    assert len(inputs) == 5  # a folder and a note for each model, and a file of rows
    for same in (tiny_rows(), datasets.Dataset.from_list(tiny_rows())):
        assert steps_finished(distil(same, student=tiny_model("llama", seed=2)).run_dir) == before
    assert sorted(folder.glob("out-inputs/*")) == inputs
    tokenizer(["a", "longer than it"], truncation=True, max_length=9)  # which it remembers
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert steps_finished(distil(table).run_dir) == before and sorted(folder.glob("out-inputs/*")) == inputs
    assert tokenizer.backend_tokenizer.padding and tokenizer.backend_tokenizer.truncation["max_length"] == 9
    monkeypatch.setenv("HOME", str(folder))
    assert steps_finished(distil(table, run_dir="~/out").run_dir) == before
    monkeypatch.chdir(folder / "out")
    assert steps_finished(distil(table, run_dir=".").run_dir) == before
    monkeypatch.chdir(folder)
    for path in folder.glob("out-inputs/model-*/model.safetensors"):
        path.write_bytes(b"spoilt")
    next(folder.glob("out-inputs/train-*.jsonl")).write_text("spoilt", encoding="utf-8")
    assert steps_finished(distil(table).run_dir) == before  # what was spoilt is written again
    changed = steps_finished(distil(tiny_rows()[:-1]).run_dir)
    assert changed["examples"] != before["examples"]


def test_bad_rows_in_memory_are_listed_as_those_of_a_file(folder: Path) -> None:
    rows = [{"id": f"n{number}", **row} for number, row in enumerate(tiny_rows())]
    rows = [{"id": "empty", "instruction": "Why?", "input": "", "output": ""}, rows[0], rows[0], *rows[1:]]
    save_tiny("t", "llama", seed=1), save_tiny("s", "llama", seed=2)
    dropping = {**SETTINGS, "data": {**SETTINGS["data"], "bad_rows": "drop"}, "evaluate": False, "run_dir": "out"}
    made = []
    for kind in (list, pandas.DataFrame, datasets.Dataset.from_list):
        result = srd.distill("t", "s", {"train": kind(rows), "test": kind(tiny_rows()[:3])}, **dropping)
        made.append(steps_finished(result.run_dir))
    assert made[0] == made[1] == made[2]
    listed = [json.loads(line) for line in (result.run_dir / "examples/dropped.jsonl").open(encoding="utf-8")]
    assert [(each["place"], each["id"]) for each in listed] == [("train: row 1", "empty"), ("train: row 3", "n0")]
    assert "'output' holds an empty response" in listed[0]["reason"] and "is used twice" in listed[1]["reason"]
    assert listed[0]["row"] == "Why?"
    with pytest.raises(srd.UserError, match=r"(?s)^2 of 42 rows cannot become.*train: row 1: .*data\.bad_rows=drop"):
        srd.distill("t", "s", rows, run_dir="other", evaluate=False, **SETTINGS)
    assert not Path("other").exists() and not Path("other-inputs").exists()


def test_rows_in_memory_have_their_teachers_as_those_of_a_file(folder: Path) -> None:
    """The column that names them stays with the rows, wherever they are written between."""
    rows = [{"id": f"n{number}", **row, "subject": number % 2} for number, row in enumerate(tiny_rows())]
    student, source = save_tiny("s", "llama", seed=3), write_rows(folder / "rows.jsonl", rows)
    teachers = [
        {"model": str(save_tiny(name, "llama", seed=1)), "rows": mark} for mark, name in (("0", "a"), ("1", "b"))
    ]

    def distil(rows: Any, column: str = "subject") -> list[Any]:
        settings = {**SETTINGS, "data": {**SETTINGS["data"], "teacher_column": column}, "teachers": teachers}
        result = srd.distill(None, student, rows, evaluate=False, **settings)
        examples = datasets.Dataset.from_parquet(str(result.run_dir / "examples/train.parquet"))
        return sorted((row["instruction"], row["input"], row["extra"]) for row in examples)

    whole = {"train": rows, "test": tiny_rows()[:3]}  # where nobody teaches, there need be no column
    found = [distil(each) for each in (source, rows, pandas.DataFrame(rows), whole)]
    assert {json.loads(row[-1])["teacher"] for row in found[0]} == {"a", "b"}
    assert found[0] == found[1] == found[2] and {row[-1] for row in found[3]} == {row[-1] for row in found[0]}
    with pytest.raises(srd.UserError, match=r"train: row 1, .*: there is no 'subjet'.*Found: id, input, .*subject"):
        distil(rows, "subjet")


def test_a_call_that_is_refused_before_its_first_step_leaves_nothing(folder: Path) -> None:
    """And of a former call all that is there."""
    tokenizer = tiny_tokenizer("llama")
    teacher, student = (tiny_model("llama", seed=1), tokenizer), (tiny_model("llama", seed=2), tokenizer)

    def distil(**changes: Any) -> srd.Result:
        asked = {"teacher": teacher, "student": student, "rows": tiny_rows(), "evaluate": False, **SETTINGS, **changes}
        return srd.distill(**asked)

    def there() -> list[Path]:
        return sorted(folder.rglob("*"))

    refused: dict[str, dict[str, Any]] = {
        "max_length": {"data": {**SETTINGS["data"], "max_length": 4096}}, "nowhere": {"lora": {"targets": ["nowhere"]}},
        "drop_layers": {"student": {"drop_layers": [7]}},
    }  # fmt: skip
    for run_dir in (None, "out", "deep/out"):
        for said, changes in refused.items():
            with pytest.raises(srd.UserError, match=said):
                distil(run_dir=run_dir, **changes)
            assert there() == [], said
    distil(run_dir="out")
    before = there()
    for said, changes in refused.items():
        with pytest.raises(srd.UserError, match=said):
            distil(run_dir="out", rows=tiny_rows()[1:], **changes)
        assert there() == before, said


def test_a_recipe_as_a_name_a_file_or_a_mapping(folder: Path) -> None:
    teacher, student = save_tiny("t", "llama", seed=1), save_tiny("s", "llama", seed=2)
    rows = write_rows(folder / "rows.jsonl", tiny_rows())
    content: dict[str, Any] = {
        "name": "tiny", "teacher": teacher, "student": {"model": student}, "generation": {"max_new_tokens": 4},
        "data": {**SETTINGS["data"], "train": rows}, "training": {"curriculum": None, "method": "sft", "batch_size": 8},
        "evaluation": {"seeds": [1]},
    }  # fmt: skip
    result = srd.run(content, "training.epochs=1")
    assert result.run_dir == Path("runs/tiny") and set(result.metrics) == {"teacher", "student", "sft"}
    before = steps_finished(result.run_dir)
    again = srd.run("runs/tiny/recipe.yaml", run_dir=Path("runs/tiny"))
    assert steps_finished(again.run_dir) == before and again.metrics == result.metrics


def _shared_state() -> dict[str, Any]:
    """What the process shares with the user's own code."""
    loggers = [logging.getLogger(name) for name in ("srd", "transformers", "datasets", "huggingface_hub")]
    return {
        "random": random.getstate(), "numpy": numpy.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(), "environment": dict(os.environ), "filters": list(warnings.filters),
        "loggers": [(each.level, each.propagate, list(each.handlers)) for each in loggers],
        "bars": (transformers.utils.logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()),
        "precision": AcceleratorState._shared_state.get("_mixed_precision"),
        "handler": signal.getsignal(signal.SIGINT),
    }  # fmt: skip


def test_a_run_gives_the_process_back_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that fails on its way: the next training of the notebook is not in the precision of this one."""
    teacher, student, tokenizer = tiny_model("llama", seed=1), tiny_model("llama", seed=2), tiny_tokenizer("llama")
    transformers.utils.logging.enable_progress_bar()
    before = _shared_state()
    settings = {**SETTINGS, "tokenizer": tokenizer, "precision": "bfloat16"}
    result = srd.distill(teacher, student, tiny_rows(), **settings)
    assert _shared_state() == before
    srd.run(result.run_dir / "recipe.yaml", "training.epochs=2", run_dir=result.run_dir)
    assert _shared_state() == before

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.Trainer, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        srd.distill(teacher, student, tiny_rows(), run_dir="stopped", **settings)
    assert _shared_state() == before


def test_a_model_is_evaluated_on_a_file_or_on_rows(folder: Path) -> None:
    save_tiny("tiny-student", "llama", seed=2)
    model, tokenizer, rows = tiny_model("llama", seed=2), tiny_tokenizer("llama"), tiny_rows()[:3]
    path, asked = write_rows(folder / "rows.jsonl", rows), {"seeds": 1, "max_new_tokens": 4}
    expected = srd.evaluate(model, tokenizer, "instruction", path, **asked)
    for own in (rows, pandas.DataFrame(rows), datasets.Dataset.from_list(rows)):
        assert srd.evaluate(model, tokenizer, "instruction", own, **asked) == expected
    for own in (tokenizer, "tiny-student", Path("tiny-student"), None):
        assert srd.evaluate("tiny-student", own, "instruction", path, **asked) == expected
    assert srd.evaluate(model, "tiny-student", "instruction", path, **asked) == expected
    with pytest.raises(srd.UserError, match=r"^tokenizer: give a tokenizer.* and not None"):
        srd.evaluate(model, None, "instruction", path)
    with pytest.raises(srd.UserError, match="'instruction'"):  # before any model is loaded
        srd.evaluate("no-such-folder", tokenizer, "instructon", path)
    for call in (srd.evaluate, srd.build_cache):
        with pytest.raises(srd.UserError, match=r"^(model|teacher): give a loaded model"):
            call(tokenizer, model, rows, "cache")
    with pytest.raises(srd.UserError, match=r"^model: give a loaded model"):
        srd.reflect(tokenizer, model, rows)
    with pytest.raises(srd.UserError, match=r"^tokenizer: give a tokenizer"):
        srd.encode(rows, model)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: srd.run("demo-tiny", run_dir="rows.jsonl"), "run_dir rows.jsonl is a file. Name a folder."),
        (lambda: srd.run("demo-tiny", run_dir=5), "run_dir is of type int: give the name of a folder"),
        (lambda: srd.run(None), "the recipe is of type NoneType: give a name, a file or a mapping"),
        (lambda: srd.run("demo-tiny", ["seed=1"]), "a change of the recipe is of type list: give texts"),
        (lambda: srd.run({**RECIPE, "training": {"weight": 0.5}}), "training.weight (0.5) has no effect"),
        (
            lambda: srd.run(WRITTEN_OUT, "training.curriculum.preset=plus"),
            "training.curriculum.preset=plus changes nothing: all that a preset is about is set in the recipe",
        ),
        (lambda: srd.Curriculum(stage=2), "there is no setting 'stage'; did you mean 'stages'?"),
        (lambda: cache(batch_size=0), "batch_size is 0, but must be 1 or more"),
        (lambda: cache(folder=3), "folder is of type int: give the name of a folder"),
        (lambda: cache(folder="rows.jsonl"), "it lies below something that is no folder. Name another path."),
        (lambda: cache(tier="topk", top_k=0), "top_k is 0, but must be 1 or more"),
        (lambda: cache(tier="topk", top_k=1, max_kl=1e-9), "Set a larger top_k, or tier=int8 or exact"),
        (lambda: cache(max_length=64), "such as max_length=512, max_prompt_length=256"),
    ],
)
def test_a_call_is_told_of_by_its_own_arguments(call: Any, said: str, folder: Path) -> None:
    write_rows(folder / "rows.jsonl", tiny_rows())
    with pytest.raises(srd.UserError) as error:
        call()
    assert said in str(error.value) and "--" not in str(error.value) and "cache." not in str(error.value)


def cache(folder: Any = "cache", **given: Any) -> Any:
    return srd.build_cache(tiny_model("llama"), tiny_tokenizer("llama"), tiny_rows()[:8], folder, **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"limit": 0}, "limit is 0, but must be 1 or more"), ({"limit": "3"}, "limit is '3', but must be a whole"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"batch_size": 0}, "batch_size is 0"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0"), ({"samples": 2}, "Give several seeds instead"),
        ({"temperature": "hot"}, "temperature is hot, but must be 0"), ({"seeds": [1, 1]}, "seeds '1,1': give"),
        ({"max_new_tokens": 10**6}, "Give a smaller max_new_tokens"),
        ({"path": [{"instruction": "a", "output": "b"}, {"instruction": "a"}]}, "row 2: no question with"),
        ({"path": [{"instruction": "a", "output": 1}]}, "the rows: none of its rows"),
    ],
)  # fmt: skip
def test_evaluate_is_told_of_in_the_words_of_its_caller(folder: Path, given: dict[str, Any], said: str) -> None:
    """And not in those of the command line, nor by the file that rows are written into for it."""
    save_tiny("tiny-student", "llama", seed=2)
    tokenizer, rows = tiny_tokenizer("llama"), [{"instruction": "a", "output": "b"}]
    with pytest.raises(srd.UserError) as error:
        srd.evaluate("tiny-student", tokenizer, "instruction", **{"path": rows, **given})
    assert said in str(error.value)
    assert "--" not in str(error.value) and "rows.jsonl" not in str(error.value)


def test_run_is_a_function_and_a_room() -> None:
    light = (
        "import sys, srd; assert callable(srd.run) and dir(srd); from srd.run.folder import RunFolder;"
        "assert srd.run.folder.RunFolder is RunFolder and callable(srd.run);"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", light], check=True, timeout=60)
    flow = importlib.import_module("srd.run.flow")
    assert callable(srd.run) and srd.run.flow is flow


def test_every_public_name_is_there() -> None:
    assert all(getattr(srd, name) is not None and name in dir(srd) for name in srd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        srd.distil  # type: ignore[attr-defined]  # noqa: B018


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"epoch": 2}, r"training.epoch: unknown key; did you mean 'epochs'"),
    ({"objective": "skrl"}, r"objective: .*skrl.*srkl"),
    ({"objective": len}, r"objective: give the name of a divergence; srd.register_divergence"),
    ({"method": srd.Method}, r"method: give the name of a method; srd.register_method"),
    ({"curriculum": "plus"}, r"curriculum: give a mapping .is 'plus'.*Known: .*preset"),
    ({"teacher": 7}, r"teacher: cannot take a int"),
    ({"student": tiny_model("llama")}, r"student: a model that was not loaded brings no tokenizer"),
    ({"rows": 7}, r"cannot take a int"),
    ({"rows": []}, r"no rows"),
    ({"rows": {"test": tiny_rows()}}, r"rows: a mapping has 'train'"),
    ({"rows": [{"question": "Why?"}]}, r"row 1"),
    ({"rows": tiny_rows(), "lora": {"rank": 2}}, r"training.lora.rank: unknown key"),
    ({"rows": tiny_rows(), "run_dir": 3}, r"^run_dir is of type int: give the name of a folder$"),
    ({"rows": tiny_rows(), "run_dir": "rows.jsonl"}, r"^run_dir rows.jsonl is a file"),
    ({"rows": tiny_rows(), "run_dir": "rows.jsonl/x"}, r"rows.jsonl/x cannot be used: Not a directory"),
    ({"run_dir": "~nobody-here/x"}, r"a path begins with ~ and a name that this machine does not know"),
    ({"curriculum": {}, "baselines": {"a": {"weight": 0.5}}}, r"baselines.a.weight \(0.5\) has no effect"),
    ({"curriculum": {}, "weight": 0.5}, r"training.weight \(0.5\) has no effect: the curriculum has a weight"),
    (
        {"training": {"curriculum": {"stages": 2}, "weight": 0.5}},
        r"^training.weight \(0.5\) has no effect: the curriculum",
    ),
    (
        {"training": TRAINING(weight=0.5, curriculum=srd.Curriculum())},
        r"^training\.weight \(0.5\) has no effect: the c",
    ),
    ({"data": {"train": "rows.jsonl"}}, r"^'train' is given twice: by rows, and by data=\{'train': …\}. Leave one"),
    ({"data": "rows.jsonl"}, r"^'train' is given twice: by rows"),
    ({"epochs": 1, "training": {"epochs": 2}}, r"^'epochs' is given twice: by epochs=, and by training=\{'epochs'"),
    ({"method": "sft", "training": {"method": "kd"}}, r"^'method' is given twice: by method="),
]


def test_objects_say_what_they_were_given_and_no_more() -> None:
    """So that what stands beside a curriculum reaches it, and a recipe fills in the rest."""
    plain = importlib.import_module("srd.api")._plain
    given = TRAINING(method={"name": "gkd"}, objective={"name": "srkl", "alpha": 0.2}, weight=0.8,
                     curriculum=srd.Curriculum(preset="plus"))  # fmt: skip
    said = {"method": {"name": "gkd"}, "objective": {"name": "srkl", "alpha": 0.2}, "weight": 0.8,
            "curriculum": {"preset": "plus"}}  # fmt: skip
    assert plain({"training": given, "paths": (Path("a"),)}) == {"training": said, "paths": ["a"]}


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[message[:20] for _, message in MISTAKES])
def test_mistakes_are_told_before_anything_is_made(changes: dict[str, Any], message: str, folder: Path) -> None:
    errors = importlib.import_module("srd.base.errors")
    rows = write_rows(folder / "rows.jsonl", tiny_rows())
    with pytest.raises(errors.UserError, match=message):
        srd.distill(**{"teacher": "t", "student": "s", "rows": rows, "run_dir": "out", **changes})  # type: ignore[arg-type]
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
