"""Programs taken out of answers, and pass@k."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from srd.errors import UserError
from srd.tasks import get_task
from srd.tasks.mbpp import extract_program

ROW = {
    "task_id": 11,
    "text": "Write a function to add two numbers.",
    "code": "import math\r\ndef add(a, b):\r\n  return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert math.isclose(add(.1, .2), .3)"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return 3\n"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (RIGHT, RIGHT),
        (f"Sure:\n```python\n{RIGHT}```\nIt adds.", RIGHT),
        (f"```\npip install it\n```\nthen\n```py\n{RIGHT}```", RIGHT),
        (f"```python\r\n{RIGHT}", RIGHT),
        (f"[BEGIN]\n{RIGHT}[DONE]\nmore", RIGHT.rstrip("\n")),
        (f"Here it is.\n\n{RIGHT}\nThis adds two numbers.", RIGHT + "\n"),
        (f"{RIGHT}def broken(", RIGHT),
        ("no code at all", "no code at all"),
    ],
)
def test_extract_program(text: str, program: str) -> None:
    assert extract_program(text) == program


def test_examples_are_the_test_split_with_tests_in_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    rows = [{**ROW, "task_id": number} for number in (10, 11, 510, 511)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    examples = get_task("mbpp").examples(path)
    assert examples["id"][:] == ["mbpp-11", "mbpp-510"]
    assert "assert add(1, 2) == 3" in examples[0]["instruction"]
    assert examples[0]["tests"] == ROW["test_list"]
    assert (examples[0]["names"], examples[0]["imports"]) == (["add"], "import math")
    assert get_task("mbpp").examples(path, limit=1)["id"][:] == ["mbpp-11"]


def test_pass_at_k_over_samples() -> None:
    task = get_task("mbpp")
    examples = Dataset.from_list([task.scoring_columns(ROW, "here")] * 2)
    samples = [[WRONG] * 9 + [RIGHT], [WRONG] * 10]
    scores = task.score(samples, examples, allow_code_execution=True)
    assert scores.per_example["pass@1"].tolist() == pytest.approx([0.1, 0.0])
    assert scores.metrics == pytest.approx({"pass@1": 0.05, "pass@10": 0.5})
    assert scores.details["reasons"] == {"the assertion does not hold": 19, "passed": 1}
    assert scores.details["samples"] == 10 and scores.details["isolation"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_list": []}, "test_list"),
        ({"test_list": "assert True"}, "test_list"),
        ({"code": "def ("}, "no valid Python"),
    ],
)
def test_bad_rows(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"file:3: .*{message}"):
        get_task("mbpp").scoring_columns({**ROW, **change}, "file:3")


def test_code_needs_permission() -> None:
    task = get_task("mbpp")
    with pytest.raises(UserError, match="--allow-code-execution"):
        task.score([RIGHT], Dataset.from_list([task.scoring_columns(ROW, "here")]))
