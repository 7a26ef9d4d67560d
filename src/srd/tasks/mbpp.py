"""MBPP: short Python programs from a description and three tests, scored by pass@k in confinement."""

from __future__ import annotations

import ast
import builtins
import importlib
import logging
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from srd.base.errors import UserError
from srd.metrics.common import FloatArray
from srd.metrics.statistics import pass_at_k
from srd.sandbox.outside import (
    Permission,
    Program,
    check_references,
    program_imports,
    program_names,
    reference_of,
    require_permission,
    run_programs,
)
from srd.tasks._thoughts import without_thoughts
from srd.tasks.base import PUBLISHED, Decoding, Hub, Predictions, Row, Scores, Task, check_counts, means, register_task

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

FIELDS = ("text", "code", "test_list", "task_id")
LAST_IDS = {"prompt": 10, "test": 510, "validation": 600}  # the last task id of each split; "train" has the others
PASS_AT = (1, 10, 100)
TIMEOUT_SECONDS = 10.0
SHOWN = 5
# Functions that tests use as helpers.
_MODULES = ("collections", "decimal", "fractions", "functools", "itertools", "math", "operator", "re", "statistics")
HELPERS = {name for module in _MODULES for name in dir(importlib.import_module(module)) if not name.startswith("_")}
FENCE = re.compile(r"(?P<fence>```|~~~)[ \t]*[\w+#.-]*(?:[ \t{][^\n`]*)?\r?\n(?P<code>.*?)(?:(?P=fence)|\Z)", re.DOTALL)
DEFINITION = re.compile(r"^\s*(def|class) ", re.MULTILINE)
DEFINING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
SHOWING = (ast.Expr, ast.Assert, ast.If, ast.For, ast.While, ast.With, ast.Try)
BEGIN_DONE = re.compile(r"\[BEGIN\](.*?)(?:\[DONE\]|\Z)", re.DOTALL)
CODE_LINE = re.compile(r"^(?:(?:def|class|import|from|async)\b|@)", re.MULTILINE)
# Longer texts are not searched for the part that parses, which takes quadratic time.
LONGEST_SEARCHED = 20_000


def extract_program(text: str) -> str:
    """Take the program out of a model's answer, its thoughts left out.

    This is the fenced blocks together, the text between [BEGIN] and [DONE], or else the text itself: from its first
    line of code on, as far as it is valid Python.
    """
    text = without_thoughts(text)
    between = BEGIN_DONE.search(text)
    if not between and CODE_LINE.search(text) and len(text) <= LONGEST_SEARCHED and _is_valid(text):
        return text  # though its comments may have fences
    blocks = [match["code"] for match in FENCE.finditer(text)]
    if blocks:
        return _joined(blocks)
    if between:
        return between[1].strip("\r\n")
    start = CODE_LINE.search(text)
    if start is None or len(text) > LONGEST_SEARCHED:
        return text
    lines = text[start.start() :].splitlines(keepends=True)
    for end in range(len(lines), 0, -1):
        program = "".join(lines[:end])
        if _is_valid(program):
            return program
    return text


def _joined(blocks: list[str]) -> str:
    """Make one program of an answer's fenced blocks, in their order, so that the last definition of a name counts.

    Blocks that are no Python (commands, outputs) are left out, and of several that are also the statements that only
    show the program at work: an example that fails makes no program wrong.
    """
    dedented = [block if _is_valid(block) else textwrap.dedent(block) for block in blocks]  # in a list it is indented
    programs = [program for program in dedented if _is_valid(program)]
    if len(programs) < 2:
        return programs[0] if programs else next((block for block in blocks if DEFINITION.search(block)), blocks[0])
    nodes = [node for program in programs for node in ast.parse(program).body]
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    kept = [node for node in nodes if not _only_shows(node, names)]
    kept.sort(key=lambda node: not (isinstance(node, ast.ImportFrom) and node.module == "__future__"))
    return ast.unparse(ast.Module(kept, []))


def _only_shows(statement: ast.stmt, names: set[str]) -> bool:
    """Whether a statement defines nothing, and asserts, is a bare value, or runs or prints what is defined."""
    if not isinstance(statement, SHOWING):
        return False
    nodes = list(ast.walk(statement))
    if any(isinstance(node, DEFINING) for node in nodes):
        return False
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    bare = isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Call)
    return bare or isinstance(statement, ast.Assert) or not used.isdisjoint({*names, "print", "input", "__name__"})


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
        return not isinstance(number, int) or LAST_IDS["prompt"] < number <= LAST_IDS["test"]

    def convert(self, row: Row, place: str) -> Row:
        """Describe the task and its tests, which alone say what the function is called."""
        text, code, tests, number = (self.field(row, name, place) for name in FIELDS)
        instruction = "\n".join([text, "", "Your code should pass these tests:", *tests])
        return {"id": f"mbpp-{number}", "instruction": instruction, "output": code.replace("\r\n", "\n")}

    def split_of(self, number: int, row: Row, place: str) -> str:
        """The split of a task id."""
        task_id = self.field(row, "task_id", place)
        if not isinstance(task_id, int):
            raise UserError(f"{place}: field 'task_id': expected a whole number, found {task_id!r:.40}")
        return next((name for name, last in LAST_IDS.items() if task_id <= last), "train")

    def asked(self, row: Row, place: str) -> Row:
        """Describe the task with the instruction that training uses."""
        if missing := [name for name in FIELDS if row.get(name) is None]:
            raise UserError(f"{place}: field {missing[0]!r} is missing: MBPP rows have it")
        return self.convert(row, place)

    def scoring_columns(self, row: Row, place: str) -> dict[str, Any]:
        """Take the tests, and from the reference program the names and imports that the tests use.

        Raises:
            UserError: a field has the wrong type or is no Python, or it is not clear whose function a test means.
        """
        tests = row.get("test_list")
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise UserError(f"{place}: field 'test_list' must be a list of tests, found {tests!r:.80}")
        trees = [_parsed(test, "test_list", place) for test in tests]
        if not all(tree.body for tree in trees):
            raise UserError(f"{place}: field 'test_list' has an empty test: every program passes it. Remove it")
        setup, code = row.get("test_setup_code") or "", row.get("code") or ""
        trees.append(_parsed(setup, "test_setup_code", place))
        _parsed(code, "code", place)
        names, imports = list(program_names(code)), program_imports(code)
        if not names:
            _check_helpers(trees, place)
        shown = place if row.get("task_id") is None else f"mbpp-{row['task_id']}"
        columns = {"references": [code], "tests": tests, "setup": setup, "imports": imports, "names": names}
        return {**columns, "shown": shown}

    def judgeable(self, examples: Dataset, *, allow_code_execution: Permission) -> list[int]:
        """Return the positions of the examples whose own program passes their tests; say which ones do not."""
        fit, _ = self._fit(examples, allow_code_execution)
        return [position for position, good in enumerate(fit) if good]

    def _fit(self, examples: Dataset, allow: Permission) -> tuple[list[bool], list[tuple[str, ...]]]:
        """Whether each example's own program passes, and the operators of own classes that its tests rely on."""
        rows = list(examples)
        own = [reference_of(program_for("", row), row["references"][0]) for row in rows]
        with_code = [program for program in own if program.source]
        found = dict(zip(with_code, check_references(with_code, allow=allow, timeout=TIMEOUT_SECONDS), strict=True))
        fit = [program not in found or found[program].passed for program in own]
        failed = [(row["shown"], found[own[n]].reason) for n, row in enumerate(rows) if not fit[n]]
        if failed:
            listed = "; ".join(f"{name} ({reason})" for name, reason in failed[:SHOWN])
            more = f" and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
            log.warning(
                "task 'mbpp': left out %d of %d rows, whose own program ('code') does not pass their tests: "
                "%s%s", len(failed), len(rows), listed, more,
            )  # fmt: skip
        if not any(fit):
            raise UserError(
                f"task 'mbpp': no row's own program ('code') passes its own tests, for one {failed[0][0]}: "
                f"{failed[0][1]}. Correct the rows: without one that passes there is nothing to score"
            )
        return fit, [found[program].operators if program in found else () for program in own]

    def score(self, predictions: Predictions, examples: Dataset, *, allow_code_execution: Permission = False) -> Scores:
        """Run every program against its tests: ``pass@1``, with n samples ``pass@n``, and ``pass@10``, ``pass@100``.

        Examples whose own program fails are not counted: their values in ``per_example`` are NaN.

        Raises:
            UserError: generated code may not run or cannot be confined, or the counts differ.
        """
        check_counts(predictions, examples, self.name)
        require_permission(allow_code_execution)
        samples = [[answer] if isinstance(answer, str) else list(answer) for answer in predictions]
        if not all(samples):
            raise UserError(f"task 'mbpp': example {samples.index([]) + 1} has no answer: give at least one")
        fit, operators = self._fit(examples, allow_code_execution)
        kept = np.flatnonzero(fit)
        programs = [
            replace(program_for(text, example), operators=own)
            for answers, example, own, judged in zip(samples, examples, operators, fit, strict=True)
            for text in (answers if judged else ())
        ]
        verdicts = run_programs(programs, allow=allow_code_execution, timeout=TIMEOUT_SECONDS)
        counts = np.array([len(samples[index]) for index in kept])
        starts = np.cumsum(counts) - counts
        right = np.add.reduceat(np.array([verdict.passed for verdict in verdicts], dtype=np.int64), starts)
        fewest = int(counts.min())
        per_example: dict[str, FloatArray] = {}
        for k in sorted({k for k in PASS_AT if k <= fewest} | {fewest}):
            per_example[f"pass@{k}"] = np.full(len(samples), np.nan)
            per_example[f"pass@{k}"][kept] = pass_at_k(counts, right, k)
        details = {
            "isolation": verdicts[0].isolation,
            "timeout_seconds": TIMEOUT_SECONDS,
            "samples": fewest,
            "reasons": dict(Counter(kind_of(verdict.reason) for verdict in verdicts).most_common()),
        }
        if len(kept) < len(fit):
            left_out = [name for name, good in zip(examples["shown"], fit, strict=True) if not good]
            details["not_counted"] = {"count": len(left_out), "first": left_out[:SHOWN]}
        return Scores(means({name: v[kept] for name, v in per_example.items()}), per_example, self.primary, details)


def _parsed(text: Any, field: str, place: str) -> ast.Module:
    """Read a field as Python."""
    if not isinstance(text, str):
        raise UserError(f"{place}: field {field!r} must be Python as a text, found {text!r:.80}")
    try:
        compile(text, field, "exec")
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{place}: field {field!r} is no valid Python: {error}: {text!r:.80}") from error


def _check_helpers(trees: Sequence[ast.Module], place: str) -> None:
    """Without the row's own program, refuse tests whose helpers could be the program's or Python's own."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bound = {
        alias.asname or alias.name for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for alias in n.names
    }
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    unknown = sorted(called.intersection(used) - bound - set(dir(builtins)))
    helpers = [name for name in unknown if name in HELPERS]
    if len(unknown) > 1 and helpers:
        raise UserError(
            f"{place}: the tests call {', '.join(unknown)}, and without the row's own program nobody can tell whether "
            f"{helpers[0]!r} is the program's or Python's: add the field 'code', or import it in the test"
        )


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
    splits=(*PUBLISHED, "prompt"),
    size=({"train": 374, "validation": 90, "test": 500}, 150, 70),
    decoding=Decoding(max_new_tokens=512),
    runs_code=True,
    takes_samples=True,
)
register_task("mbpp")(MBPP)
