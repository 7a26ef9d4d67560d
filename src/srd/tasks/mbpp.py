"""MBPP: short Python programs from a description and three tests, scored by pass@k in confinement."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from srd.data.sources import DATASETS
from srd.errors import UserError
from srd.metrics import FloatArray, pass_at_k
from srd.tasks.base import Decoding, Hub, Predictions, Row, Scores, Task, check_counts, means
from srd.tasks.confinement import Program, program_imports, program_names, require_permission, run_programs

FIRST_TEST_ID, LAST_TEST_ID = 11, 510
PASS_AT = (1, 10, 100)
TIMEOUT_SECONDS = 10.0
FENCE = re.compile(r"```[ \t]*[\w+-]*[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
BEGIN_DONE = re.compile(r"\[BEGIN\](.*?)(?:\[DONE\]|\Z)", re.DOTALL)
CODE_LINE = re.compile(r"^(?:(?:def|class|import|from|async)\b|@)", re.MULTILINE)
# Longer texts are not searched for the part that parses, which takes quadratic time.
LONGEST_SEARCHED = 20_000


def extract_program(text: str) -> str:
    """Take the program out of a model's answer.

    This is the first fenced block that defines something (else the first fenced block), the text between
    [BEGIN] and [DONE], or else the text itself: from its first line of code on, as far as it is valid Python.
    """
    blocks: list[str] = FENCE.findall(text)
    if blocks:
        return next((block for block in blocks if re.search(r"^\s*(def|class) ", block, re.MULTILINE)), blocks[0])
    between = BEGIN_DONE.search(text)
    if between:
        return between[1].strip("\r\n")
    start = CODE_LINE.search(text)
    if start is None or len(text) > LONGEST_SEARCHED or _is_valid(text):
        return text
    lines = text[start.start() :].splitlines(keepends=True)
    for end in range(len(lines), 0, -1):
        program = "".join(lines[:end])
        if _is_valid(program):
            return program
    return text


def _is_valid(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@dataclass(frozen=True)
class MbppTask(Task):
    """pass@k: the chance that one of k programs passes all the tests."""

    def is_test_row(self, row: Row) -> bool:
        """Keep the test split, task ids 11 to 510; rows without an id are the user's own."""
        number = row.get("task_id")
        return not isinstance(number, int) or FIRST_TEST_ID <= number <= LAST_TEST_ID

    def convert(self, row: Row, place: str) -> Row:
        """Describe the task and its tests with the instruction that training uses."""
        missing = [name for name in ("text", "code", "test_list", "task_id") if row.get(name) is None]
        if missing:
            raise UserError(f"{place}: field {missing[0]!r} is missing: MBPP rows have it")
        converted = DATASETS["mbpp"].convert(dict(row), "")
        assert converted is not None
        return converted

    def scoring_columns(self, row: Row, place: str) -> dict[str, Any]:
        """Take the tests, and from the reference program the names and imports that the tests lean on."""
        tests = row.get("test_list")
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise UserError(f"{place}: field 'test_list' must be a list of tests, found {tests!r:.80}")
        code = row.get("code") or ""
        try:
            names, imports = list(program_names(code)), program_imports(code)
        except SyntaxError as error:
            raise UserError(f"{place}: field 'code' is no valid Python: {error}") from error
        return {
            "references": [code],
            "tests": tests,
            "setup": row.get("test_setup_code") or "",
            "imports": imports,
            "names": names,
        }

    def score(self, predictions: Predictions, examples: Dataset, *, allow_code_execution: bool = False) -> Scores:
        """Run every program against its tests: ``pass@1``, with n samples ``pass@n``, and ``pass@10``, ``pass@100``.

        Raises:
            UserError: generated code may not run, or the counts differ.
        """
        check_counts(predictions, examples, self.name)
        require_permission(allow_code_execution)
        samples = [[answer] if isinstance(answer, str) else list(answer) for answer in predictions]
        if not all(samples):
            raise UserError(f"task 'mbpp': example {samples.index([]) + 1} has no answer: give at least one")
        programs = [
            program_for(text, example) for answers, example in zip(samples, examples, strict=True) for text in answers
        ]
        verdicts = run_programs(programs, allow=allow_code_execution, timeout=TIMEOUT_SECONDS)
        counts = np.array([len(answers) for answers in samples])
        starts = np.cumsum(counts) - counts
        right = np.add.reduceat(np.array([verdict.passed for verdict in verdicts], dtype=np.int64), starts)
        fewest = int(counts.min())
        wanted = sorted({k for k in PASS_AT if k <= fewest} | {fewest})
        per_example: dict[str, FloatArray] = {f"pass@{k}": pass_at_k(counts, right, k) for k in wanted}
        details = {
            "isolation": verdicts[0].isolation,
            "timeout_seconds": TIMEOUT_SECONDS,
            "samples": fewest,
            "reasons": dict(Counter(kind_of(verdict.reason) for verdict in verdicts).most_common()),
        }
        return Scores(means(per_example), per_example, self.primary, details)


def program_for(text: str, example: Row) -> Program:
    """Pair the program in a model's answer with the tests of its example."""
    names: Sequence[str] = example["names"]
    return Program(
        extract_program(text),
        tuple(example["tests"]),
        example["setup"],
        example["imports"],
        tuple(names) if names else None,
    )


def kind_of(reason: str) -> str:
    """Shorten a verdict's reason to what can be counted: "test 2: TypeError: ..." becomes "TypeError"."""
    return re.sub(r"^test \d+: ", "", reason).split(":")[0]


MBPP = MbppTask(
    name="mbpp",
    title="MBPP",
    licence="CC BY 4.0",
    source="Austin et al. 2021 (arXiv 2108.07732), 500 test problems (task ids 11 to 510)",
    primary="pass@1",
    hub=Hub("google-research-datasets/mbpp", "full"),
    decoding=Decoding(max_new_tokens=512),
    runs_code=True,
    takes_samples=True,
)
