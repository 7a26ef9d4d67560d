"""The folder of an evaluation: damage is noticed, leftovers go, what is not ours stays, one command at a time."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.base.locks import held
from srd.evaluation import answers, models, predictions
from srd.evaluation.predictions import evaluation_files, predictions_path, read_answers, read_scores, scores_path
from srd.models import generation
from srd.recipe.reading import validate_recipe
from tests.marks import needs_bubblewrap
from tests.run.test_resume import Killed, kill
from tests.runs import evaluated, write_rows
from tests.tiny import save_tiny

ROWS = [{"instruction": f"What is {name}?", "output": f"It is {name}."} for name in ("red", "blue", "green")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and a benchmark; read only."""
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate(("a", "b")):
        save_tiny(folder / name, "llama", layers=1, seed=seed)
    write_rows(folder / "rows.jsonl", ROWS)
    return folder


def evaluate(files: Path, folder: Path, models: str = "ab", seeds: str = "1,2", **named: Any) -> dict[str, Any]:
    tasks = named.pop("tasks", [f"dolly={files / 'rows.jsonl'}"])
    return evaluated([str(files / m) for m in models], tasks, folder, max_new_tokens=3, seeds=seeds, **named)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(old: bytes, new: bytes) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        before = path.read_bytes()
        assert old in before
        path.write_bytes(before.replace(old, new, 1))

    return changed


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00{"),
    "too deep": lambda path: path.write_bytes(b"[" * 100_000),
    "a list": lambda path: path.write_bytes(b"[1, 2]\n"),
    "a row more": lambda path: path.write_bytes(path.read_bytes() * 2),
    "a number": change(b'"exact_match": 0.0', b'"exact_match": 1.0'),
}


def test_damaged_answers_and_scores_are_made_again(files: Path, tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(logging.getLogger("srd"), "propagate", True)
    results = evaluate(files, tmp_path)
    before = content(tmp_path)
    path = predictions_path(tmp_path, "b", "dolly", 2)
    with caplog.at_level(logging.INFO, "srd"):
        for damaged in (path, scores_path(path)):
            for name, damage in DAMAGES.items():
                damage(damaged)
                assert read_scores(path) is None, name
                assert read_answers(path) is None or not scores_path(path).exists(), name
                caplog.clear()
                assert evaluate(files, tmp_path) == results, name
                assert f"{path} or its scores were changed" in caplog.text, name
                assert content(tmp_path) == before, name
    caplog.clear()
    (tmp_path / "metrics.json").write_text("{}")
    assert evaluate(files, tmp_path) == results
    assert content(tmp_path) == before
    assert caplog.text == ""


def test_what_is_no_longer_wanted_goes_and_the_rest_stays(files: Path, tmp_path: Path) -> None:
    evaluate(files, tmp_path)
    (tmp_path / "predictions" / "a.dolly.3.jsonl").write_text("mine")
    (tmp_path / "predictions" / "notes.jsonl").write_text("mine")
    (tmp_path / "thesis.txt").write_text("mine")
    index = tmp_path / "predictions" / "index.json"
    outside = write_rows(tmp_path / "outside.jsonl", ROWS)
    index.write_text(json.dumps({"files": [*json.loads(index.read_text())["files"], "../outside.jsonl", 3]}))
    evaluate(files, tmp_path, "b", "2,1")
    mine = {"predictions/a.dolly.3.jsonl", "predictions/notes.jsonl", "thesis.txt", "outside.jsonl"}
    made = {f"predictions/b.dolly.{seed}.{ending}" for seed in (1, 2) for ending in ("jsonl", "scores.json")}
    made |= {"predictions/index.json", "metrics.json", "details.json"}
    former = {name for name in content(tmp_path) if name.startswith("former/1/")}
    assert set(content(tmp_path)) - {".lock"} - former == made | mine
    assert {str(path.relative_to(tmp_path)) for path in evaluation_files(tmp_path)} == made
    assert outside.is_file()


def test_a_former_result_is_kept_beside_the_one_that_takes_its_place(files: Path, tmp_path: Path, caplog: Any) -> None:
    evaluate(files, tmp_path, "a")
    first = {name: text for name, text in content(tmp_path).items() if name != ".lock"}
    evaluate(files, tmp_path, "ab")  # says all that the first said, and more
    assert not (tmp_path / "former").exists()
    evaluate(files, tmp_path, "a")
    assert "predictions/b.dolly.1.jsonl" in content(tmp_path / "former" / "1")
    with caplog.at_level(logging.INFO, "srd"):
        logging.getLogger("srd").propagate = True
        evaluate(files, tmp_path, "b", seeds="1")
    assert content(tmp_path / "former" / "2") == first
    assert f"the former result (a on dolly) is kept in {tmp_path / 'former' / '2'}" in caplog.text
    DAMAGES["no text"](tmp_path / "metrics.json")  # which is no result
    evaluate(files, tmp_path, "a")
    assert sorted(path.name for path in (tmp_path / "former").iterdir()) == ["1", "2"]


@pytest.mark.parametrize("wanted", ["ab", "b"])
@pytest.mark.parametrize(("owner", "name"), [
    (predictions, "link"), (answers, "_answer"), (answers, "write_answers"), (answers, "finish"),
    (models, "settle"),
])  # fmt: skip
def test_kills_leave_one_copy_of_a_former_result(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wanted: str
) -> None:
    """While it is put aside, before and within the answers, before the new result is whole, and behind that."""
    evaluate(files, tmp_path, "a")
    first = {name: text for name, text in content(tmp_path).items() if name != ".lock"}
    for call in (1, 1, 2):
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            kill(patched, owner, name, call)
            evaluate(files, tmp_path, wanted)
        assert {place.name for place in (tmp_path / "former").glob("*")} <= {"1", "last"}
    evaluate(files, tmp_path, wanted)
    kept = {place.name: content(place) for place in (tmp_path / "former").glob("*")}
    assert kept == ({"1": first} if wanted == "b" else {})


def batch_by_batch(files: Path, folder: Path, **asked: Any) -> dict[str, Any]:
    """Two models answer three rows, one at a time."""
    benchmarks = models.read_benchmarks([f"dolly={files / 'rows.jsonl'}"], max_new_tokens=3, **asked)
    return models.evaluate_models([str(files / name) for name in "ab"], benchmarks, folder, batch_size=1)


def killed_at(place: tuple[Any, str, int], files: Path, folder: Path, **asked: Any) -> None:
    """`batch_by_batch`, killed at the n-th call of a function: (module, name, n)."""
    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Killed):
        kill(patched, *place)
        batch_by_batch(files, folder, **asked)


@pytest.mark.parametrize(("temperature", "batches"), [(1.0, 12), (0.0, 6)])
def test_a_killed_evaluation_loses_one_batch_at_most(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, batches: int
) -> None:
    """In the middle of a file of answers, twice; sampled answers are the same, too. Other questions begin anew."""
    asked: dict[str, Any] = {"seeds": "1,2", "temperature": temperature}
    results = batch_by_batch(files, tmp_path / "whole", **asked)
    for number in (1, 2):
        killed_at((generation, "_decode", 3), files, tmp_path / "killed", **asked)
        assert len([*tmp_path.glob("killed/predictions/batches/*/batch-*.json")]) == (2 * number) % 3
    calls = kill(monkeypatch, generation, "_decode", -1)
    assert batch_by_batch(files, tmp_path / "killed", **asked) == results and calls[0] == batches - 4
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not (tmp_path / "killed/predictions/batches").exists()


def test_batches_of_a_question_that_is_not_asked_again_go(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at((generation, "_decode", 3), files, tmp_path, seeds="1")
    calls = kill(monkeypatch, generation, "_decode", -1)
    batch_by_batch(files, tmp_path, seeds="2")
    assert calls[0] == 6 and not (tmp_path / "predictions/batches").exists()


def test_answers_that_could_not_be_scored_are_kept(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs programs may take longer than the model does."""
    killed_at((answers, "_write_predictions", 1), files, tmp_path, seeds="1")
    calls = kill(monkeypatch, generation, "_decode", -1)
    batch_by_batch(files, tmp_path, seeds="1")
    assert calls[0] == 3


def test_other_answers_with_the_same_scores_are_another_result(files: Path, tmp_path: Path) -> None:
    first = evaluate(files, tmp_path, "a", limit=1)
    assert evaluate(files, tmp_path, "a", limit=2) == first  # both models say nothing that is right
    assert len((tmp_path / "former/1/predictions/a.dolly.1.jsonl").read_text().splitlines()) == 1


@needs_bubblewrap
def test_a_changed_row_is_scored_again_whatever_its_column(files: Path, tmp_path: Path) -> None:
    row = {"task_id": 11, "text": "Add.", "code": "def f(a): return a", "test_list": ["assert f(1) == 1"],
           "test_setup_code": "", "challenge_test_list": []}  # fmt: skip
    path = write_rows(tmp_path / "mbpp.jsonl", [row])
    seen = []
    for setup in ("", "import math"):
        write_rows(path, [{**row, "test_setup_code": setup}])
        evaluate(files, tmp_path / "out", "a", "1", tasks=[f"mbpp={path}"], allow_code_execution=True)
        scores = read_scores(predictions_path(tmp_path / "out", "a", "mbpp", 1))
        assert scores is not None
        seen.append(scores["fingerprint"])
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        *((name, is_folder) for name in ("metrics.json", "details.json", "comparisons.json", "train_samples.jsonl")
          for is_folder in (True, False)),
        ("predictions/a.dolly.1.jsonl", True), ("predictions/a.dolly.1.scores.json", False), ("predictions", False),
        ("predictions/batches", False), ("predictions/batches/mine.txt", False),
    ],
)  # fmt: skip
def test_what_is_not_ours_is_refused_and_left(files: Path, tmp_path: Path, name: str, is_folder: bool) -> None:
    path = tmp_path / name / "mine.txt" if is_folder else tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=rf"{name} .*Move it away"):
        evaluate(files, tmp_path)
    assert content(tmp_path) == {str(path.relative_to(tmp_path)): b"mine"}


def test_a_folder_in_the_place_of_our_file(files: Path, tmp_path: Path) -> None:
    evaluate(files, tmp_path, "a")
    before = content(tmp_path)
    path = tmp_path / "metrics.json"
    path.unlink()
    (path / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"metrics\.json is a folder, .*Move it away"):
        evaluate(files, tmp_path, "a", "3")
    assert (path / "mine").is_dir()
    assert {**content(tmp_path), "metrics.json": b""} == {**before, "metrics.json": b""}


def test_one_command_at_a_time(files: Path, tmp_path: Path) -> None:
    with held(tmp_path, "-o"), pytest.raises(UserError, match=r"another srd command works in .* another -o"):
        evaluate(files, tmp_path, "a")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"-o .*file.* cannot be used"):
            evaluate(files, folder, "a")
    evaluate(files, tmp_path, "a")  # what held the folder has let it go


TASK: dict[str, Any] = {"name": "gsm8k", "path": "a.jsonl"}


@pytest.mark.parametrize(
    "tasks",
    [
        [TASK, {**TASK, "path": "b.jsonl"}],
        ["gsm8k", {**TASK, "limit": 1}],
        [{**TASK, "label": "one"}, {**TASK, "label": "ONE"}],
        ["iwslt2017:de-en", {**TASK, "label": "iwslt2017-de-en"}],
        [{**TASK, "label": "test"}],
        [{**TASK, "label": "a/b"}],
        [{**TASK, "label": "a.b"}],
    ],
)
def test_two_results_of_one_name_are_refused(tasks: list[Any]) -> None:
    recipe = {"teacher": "a", "student": "b", "data": "rows.jsonl", "evaluation": {"tasks": tasks}}
    with pytest.raises(UserError, match=r"evaluation\.tasks.*label"):
        validate_recipe(recipe, "recipe")
