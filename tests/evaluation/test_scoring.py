"""Files of predictions against files of references, right and wrong ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from rouge_score import rouge_scorer

from srd.base.errors import UserError
from srd.evaluation.scoring import score_files
from tests.marks import needs_bubblewrap

REFERENCES = [{"output": "the cat sat"}, {"output": ["a dog", "ran away"]}, {"output": "x"}]
PREDICTIONS = [{"text": "The cat sat."}, {"text": "it ran"}, {"text": "y"}]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return _write


def test_line_by_line_unrounded_percentages(write: Any) -> None:
    result = score_files(write("p.jsonl", PREDICTIONS), write("r.jsonl", REFERENCES))
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    second = scorer.score("ran away", "it ran")["rougeL"].fmeasure
    assert result == {
        "rouge_l": pytest.approx(100 * (1 + second) / 3, abs=1e-10),
        "exact_match": pytest.approx(100 / 3, abs=1e-10),
        "count": 3,
    }


def test_rows_are_joined_by_id_where_both_have_one(write: Any) -> None:
    references = [{**row, "id": number} for number, row in enumerate(REFERENCES)]
    predictions = [{**row, "id": str(number)} for number, row in enumerate(PREDICTIONS)][::-1]
    by_line = score_files(write("p.jsonl", PREDICTIONS), write("r.jsonl", REFERENCES))
    assert score_files(write("pi.jsonl", predictions), write("ri.jsonl", references)) == by_line
    # Ids on one side only cannot be joined.
    assert score_files(write("p.jsonl", PREDICTIONS), write("ri.jsonl", references)) == by_line


@pytest.mark.parametrize(
    ("task", "prediction", "reference", "expected"),
    [
        ("gsm8k", "so 4\n#### 4", {"question": "?", "answer": "#### 4"}, {"accuracy": 100.0}),
        (
            "xsum",
            "a b",
            {"document": "d", "summary": "a b"},
            {"rouge_1": 100.0, "rouge_2": 100.0, "rouge_l": 100.0},
        ),
        ("sinst", "b", {"output": ["a", "b"]}, {"rouge_l": 100.0, "exact_match": 100.0}),
    ],
)
def test_tasks(write: Any, task: str, prediction: str, reference: dict[str, Any], expected: dict[str, float]) -> None:
    result = score_files(write("p.jsonl", [{"text": prediction}]), write("r.jsonl", [reference]), task)
    assert result == {**expected, "count": 1}


def test_other_scripts_are_scored_by_their_words_and_that_is_said(write: Any, caplog: Any) -> None:
    predictions = write("p.jsonl", [{"text": "我爱北京"}, {"text": "a b"}])
    result = score_files(predictions, write("r.jsonl", [{"output": "我爱上海"}, {"output": "a c"}]))
    assert result == {"rouge_l": 50.0, "exact_match": 0.0, "count": 2, "rouge_words": "unicode"}
    assert [record.message.count("counts words by script") for record in caplog.records] == [1]


def test_translation_carries_signatures(write: Any) -> None:
    rows = [{"translation": {"en": "x", "de": "der Hund ist groß"}}]
    result = score_files(write("p.jsonl", [{"text": "der Hund ist groß"}]), write("r.jsonl", rows), "iwslt2017")
    assert result["bleu"] == pytest.approx(100) and "tok:13a" in result["signatures"]["bleu"]


@needs_bubblewrap
def test_programs_need_permission_and_are_then_run(write: Any) -> None:
    reference = {"task_id": 3, "code": "def f(): return 1", "test_list": ["assert f() == 1"]}
    predictions = write("p.jsonl", [{"text": ["def f(): return 1", "def f(): return 2"], "task_id": 3}])
    references = write("r.jsonl", [reference])
    with pytest.raises(UserError, match="--allow-code-execution"):
        score_files(predictions, references, "mbpp")
    result = score_files(predictions, references, "mbpp", allow_code_execution=True)
    assert (result["pass@1"], result["count"]) == (50.0, 1)


WRONG_INPUT = {
    "counts": (PREDICTIONS[:2], REFERENCES, "has 2 predictions, but .* has 3 references"),
    "no text": ([{"response": "a"}], REFERENCES[:1], r"p\.jsonl:1: no field 'text': .*found response"),
    "text no text": ([{"text": 3}], REFERENCES[:1], r"p\.jsonl:1: field 'text' must be a text, found 3"),
    "samples": ([{"text": ["a"]}], REFERENCES[:1], "field 'text' must be a text"),
    "no output": (PREDICTIONS[:1], [{"input": "a"}], r"r\.jsonl:1: no reference: .*output.*found input"),
    "empty list": (PREDICTIONS[:1], [{"output": []}], r"r\.jsonl:1: field 'output' is an empty list"),
    "no list of texts": (PREDICTIONS[:1], [{"output": [1]}], "text or a list of texts"),
    "empty file": ([], REFERENCES, "no rows"),
    "ids that differ": (
        [{"id": "a", "text": ""}], [{"id": "b", "output": "x"}], "ids that are not in .*r.jsonl: 'a'"),
    "ids missing": (
        [{"id": "a", "text": ""}],
        [{"id": "a", "output": "x"}, {"id": "b", "output": "x"}],
        "no prediction for ids of .*: 'b'",
    ),
    "id twice": (
        [{"id": "a", "text": ""}] * 2,
        [{"id": "a", "output": "x"}] * 2,
        r"p\.jsonl:2: id 'a' was used before",
    ),
    "id in part": (
        [{"id": "a", "text": ""}, {"text": ""}], [{"id": "a", "output": "x"}] * 2, r"p\.jsonl:2: no 'id'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_wrong_input(write: Any, case: str) -> None:
    predictions, references, message = WRONG_INPUT[case]
    with pytest.raises(UserError, match=message):
        score_files(write("p.jsonl", predictions), write("r.jsonl", references))


def test_missing_file_and_unknown_task(write: Any, tmp_path: Path) -> None:
    references = write("r.jsonl", REFERENCES)
    with pytest.raises(UserError, match="nowhere"):
        score_files(tmp_path / "nowhere.jsonl", references)
    with pytest.raises(UserError, match="did you mean 'xsum'"):
        score_files(references, references, "xsom")


def test_ten_thousand_answers_take_seconds(write: Any) -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away from it"
    words = text.split()
    rows = [" ".join(words[number % 11 :] + words[: number % 13] * 6) for number in range(10_000)]
    predictions = write("p.jsonl", [{"text": row} for row in rows])
    references = write("r.jsonl", [{"output": row} for row in rows[::-1]])
    start = time.process_time()
    assert score_files(predictions, references)["count"] == 10_000
    assert time.process_time() - start < 10
