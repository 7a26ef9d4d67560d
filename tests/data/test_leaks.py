"""Equal prompts in training and in what models are compared on: found in every shape of row, counted, dropped."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from datasets import Dataset

from srd.base.errors import UserError
from srd.data.examples import examples_from_rows
from srd.data.leaks import without_leaks
from srd.recipe.reading import validate_recipe
from srd.run.flow import advance
from srd.run.steps import examples as examples_step
from srd.run.steps.examples import read_splits
from tests.runs import TinyRun, close, steps_finished, write_rows


def rows(*examples: Any, prefix: str = "row") -> Dataset:
    made = [{"instruction": each, "output": "x"} if isinstance(each, str) else each for each in examples]
    return examples_from_rows(made, "here", id_prefix=prefix)


CHAT = {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A."}]}
SYSTEM = {"messages": [{"role": "system", "content": "Be short."}, *CHAT["messages"]]}
TURNS = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, *CHAT["messages"]]}


@pytest.mark.parametrize(
    ("trained", "asked", "leaks"),
    [
        ("What is it?", "What is it?", True),
        ("What is it?", "  What\n is   it? ", True),
        ("What is it?", "What is that?", False),
        ("What is it?", "what is it?", False),
        ("What is it?", {"question": "What is it?", "answer": "x"}, True),
        ("What is it?", {"prompt": "What is it?", "completion": "x"}, True),
        ("What is it?", {"instruction": "What is it?", "output": "another answer"}, True),
        ("What is it?", {"instruction": "What is it?", "input": "a box", "output": "x"}, False),
        ("What is it? a box", {"instruction": "What is it?", "input": "a box", "output": "x"}, True),
        (CHAT, "What is it?", True),
        (SYSTEM, CHAT, True),
        (TURNS, CHAT, False),
        (TURNS, TURNS, True),
        ({"prompt": "", "completion": "a long text"}, {"prompt": "", "completion": "a long text"}, True),
        ({"prompt": "", "completion": "a long text"}, {"prompt": "", "completion": "another text"}, False),
        ("naïve\u00a0café", "naïve café", True),
    ],
)
def test_what_counts_as_the_same_prompt(trained: Any, asked: Any, leaks: bool) -> None:
    splits = {"train": rows(trained, "Another?"), "validation": rows("Third?"), "test": rows(asked, "Fourth?")}
    kept = without_leaks(splits, {}, "drop")["train"]
    assert len(kept) == (1 if leaks else 2)
    assert (
        without_leaks({**splits, "test": rows("Fourth?")}, {"task": splits["test"]}, "drop")["train"]["id"]
        == kept["id"]
    )


def test_counts_are_told(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": rows("a", "b", "b", "c", "d", "e"), "validation": rows("b", "x", "y"), "test": rows("c", "x")}
    with caplog.at_level(logging.WARNING, "srd"):
        logging.getLogger("srd").propagate = True
        kept = without_leaks(splits, {"dolly": rows("d", "c")}, "drop")
    assert kept["train"]["instruction"][:] == ["a", "e"]
    assert [kept[name]["id"][:] for name in ("validation", "test")] == [
        splits[name]["id"][:] for name in ("validation", "test")
    ]
    told = caplog.text
    for part in ("2 of the 6 training prompts are also in validation", "1 of the 6 training prompts is also in test",
                 "2 of the 6 training prompts are also in dolly", "1 of the 3 validation prompts is also in test",
                 "4 rows dropped from training"):  # fmt: skip
        assert part in told
    assert without_leaks(splits, {}, "warn")["train"] is splits["train"]
    with pytest.raises(UserError, match=r"data\.leaks: 2 of the 6 training prompts are also in validation; 1 of the 6"):
        without_leaks(splits, {}, "error")


def test_nothing_left(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": rows("a", "b"), "validation": rows("a"), "test": rows("b")}
    with pytest.raises(UserError, match=r"nothing to train on.*data\.leaks=warn"):
        without_leaks(splits, {}, "drop")
    assert without_leaks(splits, {}, "warn") == splits


def test_without_leaks_nothing_changes() -> None:
    splits = {"train": rows("a", "a", "b"), "validation": rows("c"), "test": rows("d")}
    for action in ("error", "drop", "warn"):
        assert without_leaks(splits, {"task": rows("e")}, action) == splits


def test_rows_and_tasks_are_read_once_for_fingerprint_and_files(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    original = examples_step.load_source
    monkeypatch.setattr(examples_step, "load_source", lambda *a, **n: (read.append(a), original(*a, **n))[1])
    path = write_rows(tiny_run.folder / "gsm8k.jsonl", [{"question": "Question 5?", "answer": "#### 5"}])
    run = tiny_run.set(evaluation__tasks=[{"name": "gsm8k", "path": str(path)}]).open()
    advance(run, "examples")
    close(run)
    assert len(read) == 1


def test_a_run_drops_before_it_trains(tiny_run: TinyRun) -> None:
    """The files of a recipe and its tasks; a limit counts what is left."""
    folder = tiny_run.folder
    questions = [{"instruction": f"Question {i}?", "output": f"answer {i}"} for i in range(12)]
    write_rows(folder / "rows.jsonl", questions)
    write_rows(folder / "test.jsonl", questions[:3])
    write_rows(folder / "gsm8k.jsonl", [{"question": "Question 5?", "answer": "#### 5"}])
    tiny_run.set(data__test=str(folder / "test.jsonl"), data__validation_size=2, data__train_limit=4)
    tiny_run.set(evaluation__tasks=[{"name": "gsm8k", "path": str(folder / "gsm8k.jsonl")}])
    run = tiny_run.open()
    advance(run, "examples")
    close(run)
    train = run.split("train")["instruction"][:]
    assert len(train) == 4 and not {f"Question {i}?" for i in (0, 1, 2, 5)} & set(train)
    assert len(run.split("test")) == 3
    assert any("are also in test" in warning and "is also in gsm8k" in warning for warning in run.warnings)
    assert any("dropped from training" in warning for warning in run.warnings)
    # Another task that takes nothing, or the same rows, makes nothing new; one that takes more does.
    before = steps_finished(tiny_run.run_dir)["examples"]
    tasks = [{"name": "gsm8k", "path": str(write_rows(folder / f"{name}.jsonl", [{"question": name,
    "answer": "#### 5"}])),
              "label": label} for name, label in (("Question 99?", "a"), ("Question 5?", "b"), ("Question 6?",
              "c"))]  # fmt: skip
    for count, kept in ((2, True), (3, False)):
        run = tiny_run.set(evaluation__tasks=tasks[:count]).open()
        advance(run, "examples")
        close(run)
        assert (steps_finished(tiny_run.run_dir)["examples"] == before) == kept
    assert "Question 6?" not in run.split("train")["instruction"][:]
    recipe = tiny_run.set(data__leaks="error").recipe
    with pytest.raises(UserError, match=r"data\.leaks"):
        read_splits(validate_recipe(recipe, "tiny"))
