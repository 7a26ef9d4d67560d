"""Any model on any benchmark: the task's own prompt, decoding and scoring, answers that are kept, models compared."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.evaluation import answers, models
from srd.evaluation.models import (
    longest_prompt,
    parse_seeds,
    read_benchmarks,
    results_table,
    short_names,
)
from srd.metrics.rouge import rouge_l
from srd.models.loading.loading import load_config, load_tokenizer
from tests.marks import needs_bubblewrap
from tests.runs import evaluated, write_rows
from tests.tiny import save_tiny

DOLLY = [
    {"instruction": "Name three animals.", "input": "", "output": "The whale, the dolphin and the octopus."},
    {"instruction": "Why is the sky blue?", "input": "In the day.", "output": "Small particles scatter the light."},
    {"instruction": "How many apples are there?", "input": "", "output": ["42 together.", "There are 42."]},
]
GSM8K = [{"question": f"How many are {n} and {n}?", "answer": f"<<{n}+{n}={2 * n}>>\n#### {2 * n}"} for n in range(4)]
XSUM = [{"document": "The whale lives in the sea. " * 60, "summary": "A whale."}, {"document": "A.", "summary": "B."}]
MBPP = [
    {"task_id": 11, "text": "Return the sum.", "code": "def add(a, b):\n    return a + b",
     "test_list": ["assert add(1, 2) == 3"], "test_setup_code": "", "challenge_test_list": []}
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and benchmark files; read only."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "teacher", "llama", layers=3, seed=1)
    save_tiny(folder / "student", "llama", seed=2)
    save_tiny(folder / "t5", "t5")
    for name, rows in (("dolly", DOLLY), ("gsm8k", GSM8K), ("xsum", XSUM), ("mbpp", MBPP)):
        write_rows(folder / f"{name}.jsonl", rows)  # type: ignore[arg-type]
    return folder


def task(files: Path, name: str) -> str:
    return f"{name}={files / name}.jsonl"


def test_each_task_keeps_its_own_decoding_and_scoring(files: Path, tmp_path: Path) -> None:
    tasks = [task(files, "dolly"), task(files, "gsm8k"), task(files, "xsum")]
    results = evaluated([str(files / "student")], tasks, tmp_path, max_new_tokens=4, seeds="3,4")
    scores = results["student"]
    assert set(results) == {"student"}
    assert set(scores["dolly"]) == {"rouge_l", "exact_match"}
    assert set(scores["dolly"]["rouge_l"]["seeds"]) == {"3", "4"}  # sampled
    assert set(scores["gsm8k"]["accuracy"]["seeds"]) == {"3"}  # greedy: one is enough
    assert {"rouge_1", "rouge_2", "rouge_l"} <= set(scores["xsum"])
    assert read_json(tmp_path / "metrics.json") == results
    lines = [json.loads(line) for line in (tmp_path / "predictions/student.dolly.3.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line, row in zip(lines, DOLLY, strict=True):
        references = row["output"] if isinstance(row["output"], list) else [row["output"]]
        assert line["rouge_l"] == pytest.approx(rouge_l(line["text"], references))
    mean = 100 * sum(line["rouge_l"] for line in lines) / 3
    assert scores["dolly"]["rouge_l"]["seeds"]["3"] == pytest.approx(mean)


def test_prompt_is_the_tasks_own_unless_told_otherwise(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = answers.generate

    def spy(model: Any, tokenizer: Any, prompts: list[list[int]], *arguments: Any, **named: Any) -> list[str]:
        asked.append(tokenizer.decode(prompts[0], skip_special_tokens=True))
        return original(model, tokenizer, prompts, *arguments, **named)

    monkeypatch.setattr(answers, "generate", spy)
    arguments: dict[str, Any] = {"max_new_tokens": 2, "seeds": "1", "limit": 1}
    model, tasks = [str(files / "student")], [task(files, "dolly")]
    evaluated(model, tasks, tmp_path, **arguments)
    evaluated(model, tasks, tmp_path, template="Q: {instruction}\nA:", **arguments)
    assert "### Instruction:\nName three animals." in asked[0] and asked[0].rstrip().endswith("### Response:")
    assert asked[1] == "Q: Name three animals.\nA:"
    assert read_json(tmp_path / "details.json")["templates"] == {"dolly": {"student": "Q: {instruction}\nA:"}}


def test_answers_are_kept_and_an_evaluation_resumes(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    original = models.load_model

    def spy(source: str, **named: Any) -> Any:
        loaded.append(source)
        return original(source, **named)

    monkeypatch.setattr(models, "load_model", spy)
    model = str(files / "student")

    def run(folder: Path) -> dict[str, Any]:
        return evaluated([model], [task(files, "dolly")], folder, max_new_tokens=4, seeds="1,2")

    first = run(tmp_path)
    assert run(tmp_path) == first
    assert loaded == [model]
    (tmp_path / "predictions/student.dolly.2.jsonl").unlink()
    assert run(tmp_path) == first
    assert loaded == [model, model]


def test_another_model_under_the_same_name_is_not_taken_for_the_first(files: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "a/student", "llama", seed=5)
    answers = []
    for path in (files / "student", tmp_path / "a/student"):
        evaluated([str(path)], [task(files, "dolly")], tmp_path / "out", max_new_tokens=4, seeds="1")
        answers.append((tmp_path / "out/predictions/student.dolly.1.jsonl").read_text())
    assert answers[0] != answers[1]


def test_two_models_are_compared_over_the_examples(files: Path, tmp_path: Path) -> None:
    models = [str(files / "student"), str(files / "teacher")]
    results = evaluated(models, [task(files, "dolly")], tmp_path, max_new_tokens=4, seeds="1,2,3")
    (row,) = results["comparisons"]
    assert (row["a"], row["b"], row["task"], row["metric"]) == ("student", "teacher", "dolly", "rouge_l")
    means = [results[name]["dolly"]["rouge_l"]["mean"] for name in ("student", "teacher")]
    assert row["difference"] == pytest.approx(means[0] - means[1])
    assert row["low"] <= row["difference"] <= row["high"]
    assert read_json(tmp_path / "comparisons.json") == [row]
    one = evaluated(models, [task(files, "dolly")], tmp_path / "one", max_new_tokens=4, seeds="1,2", limit=1)
    assert [(row["low"], row["high"]) for row in one["comparisons"]] == [(None, None)]  # one question is always drawn


def test_a_corpus_score_is_compared_without_an_interval(files: Path, tmp_path: Path) -> None:
    rows = [{"translation": {"en": f"The {word} is here.", "de": f"Der {word} ist da."}} for word in ("Hut", "Ball")]
    tasks = [f"iwslt2017:en-de={write_rows(tmp_path / 'rows.jsonl', rows)}"]
    models = [str(files / name) for name in ("student", "teacher")]
    results = evaluated(models, tasks, tmp_path / "out", max_new_tokens=8)
    (row,) = results["comparisons"]
    bleu = [results[name]["iwslt2017:en-de"]["bleu"]["mean"] for name in ("student", "teacher")]
    assert row["difference"] == pytest.approx(bleu[0] - bleu[1])
    assert (row["metric"], row["low"], row["high"]) == ("bleu", None, None)
    shown = io.StringIO()
    Console(file=shown, width=200).print(results_table(results))
    assert f"{row['difference']:+.2f} (no interval)" in shown.getvalue()


def test_encoder_decoder(files: Path, tmp_path: Path) -> None:
    results = evaluated([str(files / "t5")], [task(files, "xsum")], tmp_path, max_new_tokens=4)
    assert 0 <= results["t5"]["xsum"]["rouge_l"]["mean"] <= 100


def test_code_needs_permission_before_anything_is_generated(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load_model", lambda *arguments, **named: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="--allow-code-execution"):
        evaluated([str(files / "student")], [task(files, "dolly"), task(files, "mbpp")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_bubblewrap
def test_code_runs_with_permission(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "generate", lambda *arguments, **named: ["def add(a, b):\n    return b + a"])
    results = evaluated(
        [str(files / "student")], [task(files, "mbpp")], tmp_path, max_new_tokens=4, allow_code_execution=True
    )
    assert results["student"]["mbpp"]["pass@1"]["mean"] == 100


@needs_bubblewrap
def test_several_samples_give_pass_at_k(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def written(model: Any, tokenizer: Any, prompts: Any, ids: Any, decoding: Any, **named: Any) -> list[str]:
        asked.append((prompts, ids, decoding))
        return ["def add(a, b):\n    return a + b" if number % 4 == 0 else "pass" for number in range(len(ids))]

    monkeypatch.setattr(answers, "generate", written)
    results = evaluated(
        [str(files / "student")], [task(files, "mbpp")], tmp_path,
        max_new_tokens=4, samples=10, temperature=0.8, allow_code_execution=True,
    )  # fmt: skip
    scores = results["student"]["mbpp"]
    assert scores["pass@1"]["mean"] == pytest.approx(30)  # 3 of 10 pass
    assert scores["pass@10"]["mean"] == 100
    [(prompts, ids, decoding)] = asked
    assert len(set(ids)) == 10 and len({tuple(prompt) for prompt in prompts}) == 1 and decoding.temperature == 0.8
    row = json.loads((tmp_path / "predictions/student.mbpp.0.jsonl").read_text())
    assert len(row["text"]) == 10 and row["pass@1"] == pytest.approx(0.3)
    assert read_json(tmp_path / "details.json")["tasks"]["mbpp"]["samples"] == 10


@needs_bubblewrap
def test_samples_differ_and_the_first_is_the_only_one_of_a_single(files: Path, tmp_path: Path) -> None:
    answers = {}
    for samples in (1, 3):
        evaluated(
            [str(files / "student")], [task(files, "mbpp")], tmp_path / str(samples),
            max_new_tokens=6, samples=samples, temperature=1.0, allow_code_execution=True,
        )  # fmt: skip
        file = tmp_path / str(samples) / "predictions/student.mbpp.0.jsonl"
        answers[samples] = json.loads(file.read_text())["text"]
    assert len(set(answers[3])) == 3 and answers[3][0] == answers[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"tasks": ["dollyy=x.jsonl"]}, "'dolly'"),
        ({"tasks": ["dolly=nowhere.jsonl"]}, "nowhere.jsonl"),
        ({"tasks": ["{dolly}", "{dolly}"]}, "more than once"),
        ({"seeds": "1,two"}, "'1,two'"),
        ({"seeds": "1,1"}, "'1,1'"),
        ({"limit": 0}, "--limit is 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"template": "alpacca"}, "'alpaca'"),
        ({"max_new_tokens": 1024}, "smaller --max-new-tokens"),
        ({"samples": 0}, "--samples is 0"),
        ({"samples": 2}, "task 'dolly' scores one answer at a time"),
        pytest.param(
            {"samples": 2, "tasks": ["{mbpp}"], "allow_code_execution": True},
            "give --temperature",
            marks=needs_bubblewrap,
        ),
        ({"temperature": -1.0}, "--temperature is -1"),
        ({"max_prompt_length": 1022}, "--max-prompt-length is 1022"),
        ({"models": ["{student}", "{student}"]}, "given twice"),
        ({"models": ["/nowhere/at/all"]}, "/nowhere/at/all"),
    ],
)
def test_wrong_arguments(files: Path, tmp_path: Path, arguments: dict[str, Any], expected: str) -> None:
    places = {"dolly": task(files, "dolly"), "mbpp": task(files, "mbpp"), "student": str(files / "student")}
    given: dict[str, Any] = {"models": ["{student}"], "tasks": ["{dolly}"], "max_new_tokens": 4, **arguments}
    for name in ("models", "tasks"):
        given[name] = [text.format(**places) for text in given[name]]
    with pytest.raises(UserError, match=expected):
        evaluated(given.pop("models"), given.pop("tasks"), tmp_path, **given)


def test_seeds() -> None:
    assert parse_seeds("10, 20,30") == (10, 20, 30)
    assert parse_seeds("7") == (7,)


def test_names_tell_models_apart(tmp_path: Path) -> None:
    assert short_names(["Qwen/Qwen2.5-0.5B", "smollm2"]) == {"Qwen/Qwen2.5-0.5B": "Qwen2.5-0.5B", "smollm2": "smollm2"}
    folders = [str(tmp_path / run / "student") for run in ("first", "second")]
    assert list(short_names(folders).values()) == ["first-student", "second-student"]
    assert "/" not in "".join(short_names(["/a/b/student", "/c/b/student"]).values())


def test_prompts_take_what_the_model_leaves_beside_the_answer(files: Path) -> None:
    config, tokenizer = load_config(str(files / "student")), load_tokenizer(str(files / "student"))
    assert longest_prompt(config, tokenizer, 100) == 1024 - 100
    assert longest_prompt(load_config(str(files / "t5")), tokenizer, 100) == 1024
    tokenizer.model_max_length = int(1e30)
    assert longest_prompt(load_config(str(files / "t5")), tokenizer, 100) is None


def test_limit_takes_the_first_examples(files: Path) -> None:
    (benchmark,) = read_benchmarks([task(files, "gsm8k")], limit=2)
    assert benchmark.examples["instruction"][:] == ["How many are 0 and 0?", "How many are 1 and 1?"]
    assert benchmark.seeds == (0,) and benchmark.decoding.temperature == 0
