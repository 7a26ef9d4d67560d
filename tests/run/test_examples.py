"""The examples step: rows that cannot be used are refused or left out there, before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from srd.base.errors import UserError
from srd.recipe.reading import validate_recipe
from srd.run.context import Run
from srd.run.plan.plan import make_plan
from srd.run.steps import examples as step
from srd.run.steps.base import do
from srd.run.steps.examples import Examples
from tests.runs import TinyRun, close, tiny_rows, write_rows

TALK = [{"role": "user", "content": "Name the whale."}, {"role": "assistant", "content": "The whale."}]
BAD: list[dict[str, Any]] = [
    {"instruction": "Name the whale.", "output": ""},
    {"messages": [{"role": "system", "content": "Be kind. " * 40}, *TALK]},
]


def make(tiny: TinyRun) -> dict[str, Any]:
    """Do the step; what the manifest says of it."""
    run = tiny.open()
    try:
        do(run, Examples())
        return dict(run.manifest.steps["examples"])
    finally:
        close(run)


@pytest.fixture
def tiny(make_tiny_run: Callable[..., TinyRun]) -> TinyRun:
    tiny = make_tiny_run("qwen2").set(data__template="auto", data__max_prompt_length=128, data__max_length=200)
    write_rows(tiny.rows, [*tiny_rows(), *BAD])
    return tiny


def test_bad_rows_are_refused_with_a_remedy_that_works(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (make, lambda tiny: make_plan(validate_recipe(tiny.recipe, "tiny"))):
        with pytest.raises(UserError, match=r"2 of 42 rows(.|\n)*data.bad_rows=drop"):
            ask(tiny)
    entry = make(tiny.set(data__bad_rows="drop"))
    assert entry["summary"] == {"train": 32, "validation": 4, "test": 4, "dropped": 2}
    assert "examples/dropped.jsonl" in entry["outputs"]
    dropped = [json.loads(line) for line in (tiny.run_dir / "examples/dropped.jsonl").open()]
    assert [record["place"] for record in dropped] == [f"{tiny.rows}:41", f"{tiny.rows}:42"]
    monkeypatch.setattr(step, "load_source", None)  # nothing is read again
    assert make(tiny) == entry


def test_frames_matter_where_they_refuse_a_row_and_nowhere_else(tiny: TinyRun) -> None:
    before = make(tiny.set(data__bad_rows="drop"))
    assert make(tiny.set(data__max_length=190))["finished"] == before["finished"]
    assert make(tiny.set(data__max_prompt_length=400, data__max_length=500))["summary"]["dropped"] == 1
    write_rows(tiny.rows, tiny_rows())
    clean = make(tiny.set(data__bad_rows="error"))
    assert "dropped" not in clean["summary"] and not (tiny.run_dir / "examples/dropped.jsonl").exists()
    assert make(tiny.set(data__bad_rows="drop", data__template="plain"))["fingerprint"] == clean["fingerprint"]


def test_an_id_of_two_files_is_one_bad_row(tiny: TinyRun, tmp_path: Path) -> None:
    """What models are compared on stays; where nothing is left of a split, that is no fault of some rows."""
    rows = [{"id": f"{number}", **row} for number, row in enumerate(tiny_rows())]
    write_rows(tiny.rows, rows[:30])
    test = write_rows(tmp_path / "test.jsonl", [*rows[32:], {**rows[33], "id": "7"}])
    tiny.set(data__test=str(test))
    with pytest.raises(UserError, match=r"1 of 39 rows.*\n  1 × train: 7: the id '7' is in train and in another split"):
        make(tiny)
    entry = make(tiny.set(data__bad_rows="drop"))
    assert entry["summary"] == {"train": 25, "validation": 4, "test": 9, "dropped": 1}
    assert "7" not in pq.read_table(tiny.run_dir / "examples/train.parquet")["id"].to_pylist()
    write_rows(test, rows)
    with pytest.raises(UserError, match=r"data.train: none of its rows can become"):
        make(tiny)


def test_the_same_row_in_two_splits_is_a_leak_and_no_wrong_id(tiny: TinyRun, tmp_path: Path) -> None:
    """Its id is made from its content, which the user could not change."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = tiny_rows()
    for name, part in (
        ("train", [*rows[:30], rows[32], rows[32], rows[36]]),
        ("dev", rows[30:34]),
        ("test", rows[34:]),
    ):
        write_rows(folder / f"{name}.jsonl", part)
    entry = make(tiny.set(data__train=str(folder), data__leaks="drop"))
    assert entry["summary"] == {"train": 30, "validation": 4, "test": 6}
    entry = make(tiny.set(data__leaks="warn"))
    assert entry["summary"] == {"train": 33, "validation": 4, "test": 6}
    ids = pq.read_table(tiny.run_dir / "examples/train.parquet")["id"].to_pylist()
    assert len(set(ids)) == 33 and [name.endswith("-train") for name in ids] == [False] * 30 + [True, False, True]


def test_splits_go_by_what_they_are_for(tiny: TinyRun, tmp_path: Path) -> None:
    """A README and the hub may call the validation split dev."""
    rows, folder = tiny_rows(), tmp_path / "set"
    for name, part in (("a", rows[:30]), ("b", rows[30:35]), ("c", rows[35:])):
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        write_rows(folder / "rows" / f"{name}.jsonl", part)
    files = "".join(f"\n  - {{split: {split}, path: rows/{name}.jsonl}}" for split, name in zip(
        ("train", "dev", "Test"), "abc", strict=True))  # fmt: skip
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:{files}\n---\n")
    assert make(tiny.set(data__train=str(folder)))["summary"] == {"train": 30, "validation": 5, "test": 5}
    write_rows(tiny.rows, rows[:30])
    assert make(tiny.set(data__train=str(tiny.rows), data__validation=str(folder)))["summary"]["validation"] == 5
    files = files.replace("dev", "late")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:{files}\n---\n")
    with pytest.raises(
        UserError, match=r"train, late, Test, and none is called validation.*data.validation.split=train"
    ):
        make(tiny)
    tiny.set(data__validation={"path": str(folder), "split": "late"})
    assert make(tiny)["summary"]["validation"] == 5


def test_a_named_task_is_asked_in_full_or_not_at_all(tiny: TinyRun, tmp_path: Path) -> None:
    write_rows(tiny.rows, tiny_rows())
    assert make(tiny.set(data__bad_rows="drop"))["summary"]["train"] == 32
    path = write_rows(tmp_path / "asked.jsonl", [tiny_rows()[0], {**BAD[1], "output": "The whale."}])
    tiny.set(evaluation__tasks=[{"name": "instruction", "path": str(path)}])
    for ask in (make, lambda tiny: make_plan(validate_recipe(tiny.recipe, "tiny"))):
        with pytest.raises(UserError, match=r"instruction: 1 of 2 examples cannot be asked(.|\n)*max_prompt_length"):
            ask(tiny)


def test_runs_of_a_sweep_look_at_the_rows_once(tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        run = Run(validate_recipe(tiny.set(data__bad_rows="drop").recipe, "tiny"), tmp_path / name, tmp_path / "shared")
        do(run, Examples())
        close(run)
        assert (tmp_path / name / "examples/dropped.jsonl").exists()
        monkeypatch.setattr(step, "load_source", None)


def test_a_step_that_wrote_less_in_an_earlier_version_is_kept(tiny: TinyRun) -> None:
    write_rows(tiny.rows, tiny_rows())
    before = make(tiny)
    run = tiny.open()
    del run.manifest.steps["examples"]["places"][-1]
    run.manifest.save()
    close(run)
    assert make(tiny) == before


CUTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)


def test_conversations_of_a_template_that_cuts_thoughts_are_learnt_answer_by_answer(tiny: TinyRun) -> None:
    """Of `data.train_on=all`, to train and to validate; the test split asks for the last answer only."""
    for folder in (tiny.teacher, tiny.student):
        (folder / "chat_template.jinja").write_text(CUTS)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>Hm.</think>So."}]
    asked = [{"role": "user", "content": f"Why {number}?"} for number in range(20)]
    talks = [[question, turns[1], *(turns if number < 12 else [])] for number, question in enumerate(asked)]
    write_rows(tiny.rows, [{"id": f"talk-{number}", "messages": talk} for number, talk in enumerate(talks)])
    last, every = make(tiny), make(tiny.set(data__train_on="all"))
    assert last["fingerprint"] != every["fingerprint"]
    assert sum(last["summary"].values()) == 20
    divided = {}
    for split in ("train", "validation", "test"):
        ids = pq.read_table(tiny.run_dir / f"examples/{split}.parquet")["id"].to_pylist()
        divided[split] = [name for name in ids if "#2" in name]
        assert {name.partition("#")[0] for name in divided[split]} <= set(ids)
    assert len(divided["train"]) > 5 and not divided["test"]
    assert len(divided["train"]) + len(divided["validation"]) == sum(every["summary"].values()) - 20


def test_a_task_that_cannot_be_had_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are compared with the training data, and wanted at the end: a file of them will do."""

    def away(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", away)

    def found(task: Any) -> Any:
        recipe = {"teacher": "a", "student": "b", "data": "rows.jsonl", "evaluation": {"tasks": [task]}}
        return step._Found(validate_recipe(recipe, "tiny"), None).benchmarks

    with pytest.raises(UserError, match=r"'gsm8k': could not read .* no network\. .* as in `path: gsm8k\.jsonl`"):
        found("gsm8k")
    path = write_rows(tmp_path / "gsm8k.jsonl", [{"question": "How many?", "answer": "Four.\n#### 4"}])
    assert len(found({"name": "gsm8k", "path": str(path)})["gsm8k"]) == 1
