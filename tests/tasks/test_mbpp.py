"""Programs taken out of answers, and pass@k."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from srd.base.errors import UserError
from srd.tasks.base import get_task
from srd.tasks.mbpp import extract_program
from tests.marks import needs_bubblewrap

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
        (f"<think>\n```python\n{WRONG}```\n</think>\n{RIGHT}", "\n" + RIGHT),
        (f"```python\n{WRONG}```\nno, wait</think>```python\n{RIGHT}```", RIGHT),
        (f"<think>```python\n{RIGHT}```", ""),
        (f"1. Like this:\n   ```python\n{textwrap.indent(RIGHT, '   ')}   ```\n2. Done.", RIGHT),
        (f"~~~py\n{RIGHT}~~~", RIGHT),
        (f"``` {{.python}}\n{RIGHT}```", RIGHT),
        (f"{RIGHT}# so:\n# ```\n'''\n```\nadd(1)\n```\n'''\n", f"{RIGHT}# so:\n# ```\n'''\n```\nadd(1)\n```\n'''\n"),
    ],
)
def test_extract_program(text: str, program: str) -> None:
    assert extract_program(text) == program


def fenced(*blocks: str) -> str:
    return "\n".join(f"then\n```python\n{block}\n```" for block in blocks)


# Answers of several blocks, whose function g must return 3.
TOGETHER = {
    "a helper first": fenced("def h():\n    return 3", "def g():\n    return h()"),
    "a helper last": fenced("def g():\n    return h()", "def h():\n    return 3"),
    "imports and constants apart": fenced("import math", "N = 9", "def g():\n    return math.isqrt(N)"),
    "the last definition": fenced("def g():\n    return 1", "def g():\n    return 3"),
    "a draft whose own test fails": fenced("def g():\n    return 1\nassert g() == 3", "def g():\n    return 3"),
    "examples that would fail": fenced("def g():\n    return 3", "print(g(1))\ng(2)\nassert g() == 4\ninput()"),
    "a program's start": fenced("def g():\n    return 3", "if __name__ == '__main__':\n    print(1 / 0)"),
    "a loop over examples": fenced("def g():\n    return 3", "for x in (1, 2):\n    print(g(x))"),
    "commands and outputs": fenced("pip install x", "def g():\n    return 3", ">>> g()\n3", "3", "[1, 2]", "{'a': b}"),
    "the future late": fenced("def h():\n    return 3", "from __future__ import annotations\ndef g():\n    return h()"),
    "a block that is broken": fenced("def g(:", "def g():\n    return 3"),
    "a class in a list": fenced("   class A:\n       x = 3", "   def g():\n       return A.x"),
    "calls that matter": fenced("import sys\nsys.setrecursionlimit(2000)", "def g():\n    return 3"),
    "an optional import": fenced("try:\n    import x\nexcept ImportError:\n    x = 3", "def g():\n    return x"),
    "a name for a function": fenced("def h():\n    return 3", "g = h"),
    "a decorator": fenced("import functools\n@functools.cache\ndef h():\n    return 3", "async def a(): pass\ng = h"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_blocks_are_taken_together(case: str) -> None:
    names: dict[str, Any] = {}
    exec(extract_program(TOGETHER[case]), names)
    assert names["g"]() == 3


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


@needs_bubblewrap
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
        ({"test_list": []}, "'test_list' must be a list"),
        ({"test_list": "assert True"}, "'test_list' must be a list"),
        ({"test_list": ["assert add(1, 2) =="]}, "'test_list' is no valid Python.*assert add"),
        ({"test_list": ["assert add(1, 2) == 3\x00"]}, "'test_list' is no valid Python"),
        ({"test_list": ["return add"]}, "'test_list' is no valid Python"),
        ({"test_list": ["assert add(1, 2) == 3", "  # later"]}, "'test_list' has an empty test"),
        ({"test_setup_code": 3}, "'test_setup_code' must be Python as a text, found 3"),
        ({"test_setup_code": ["import math"]}, "'test_setup_code' must be Python as a text"),
        ({"test_setup_code": "import"}, "'test_setup_code' is no valid Python"),
        ({"code": "def ("}, "'code' is no valid Python"),
        ({"code": 7}, "'code' must be Python as a text"),
        ({"code": "", "test_list": ["assert isclose(add(1, 2), 3)"]}, "call add, isclose.*add the field 'code'"),
    ],
)
def test_bad_rows(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"file:3: .*{message}"):
        get_task("mbpp").scoring_columns({**ROW, **change}, "file:3")


# Rows of one's own: what the tests do, a right program, and one that must not pass.
JUDGED = {
    "changes in place": (
        "def f(x): x.sort()", "def f(x): pass", "a = [3, 1]\nf(a)\nassert a == [1, 3]", ""),
    "changes deep inside": (
        "def f(m): m[0][0] = 9", "def f(m): m[0] = [9, 2]",
        "m = [[1, 2]]\nrow = m[0]\nf(m)\nassert row == [9, 2] and m == [[9, 2]]", ""),
    "exceptions": (
        "def f(x): raise ValueError('neg')", "def f(x): raise KeyError('neg')",
        "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'neg'", ""),
    "an exception of its own": (
        "class E(ValueError): pass\ndef f(x): raise E('q')", "class E(ValueError): pass\ndef f(x): raise ValueError",
        "try:\n    f(1)\n    assert False\nexcept E as error:\n    assert error.args == ('q',)", ""),
    "an end is no exception": (
        "def f(x): raise ValueError", "def f(x): raise SystemExit",
        "try:\n    f(1)\n    assert False\nexcept AssertionError:\n    raise\nexcept:\n    pass", ""),
    "functions as arguments": (
        "def f(g, x): return [g(i) for i in x]", "def f(g, x): return x",
        "assert f(lambda v: v * 2, [1, 2]) == [2, 4] and f(str, [1]) == ['1'] and f(str.upper, ['a']) == ['A']", ""),
    "functions as results": (
        "def f(n): return lambda x: x + n", "def f(n): return lambda x: n", "assert f(2)(3) == 5", ""),
    "functions that note": (
        "def f(g): g(1)", "def f(g): pass", "seen = []\nf(seen.append)\nassert seen == [1]", ""),
    "fractions and decimals": (
        "from fractions import Fraction\nfrom decimal import Decimal\ndef f(): return Fraction(1, 3), Decimal('1.10')",
        "def f(): return 1 / 3, 1.1", "assert f() == (Fraction(2, 6), Decimal('1.1'))", ""),
    "dates": (
        "import datetime\ndef f(): return datetime.date(2020, 1, 2), datetime.timedelta(1)",
        "def f(): return '2020-01-02', 1",
        "import datetime\nassert f() == (datetime.date(2020, 1, 2), datetime.timedelta(days=1))", ""),
    "named tuples, counters and orders": (
        "from collections import *\nP = namedtuple('P', 'x y')\n"
        "def f(): return P(1, 2), Counter('aab'), OrderedDict(b=1, a=2)",
        "from collections import *\ndef f(): return (1, 2), {'a': 2, 'b': 1}, OrderedDict(a=2, b=1)",
        "p, c, o = f()\nassert c == {'a': 2, 'b': 1} and o == OrderedDict(b=1, a=2) and p.x == 1", ""),
    "a class of its own": (
        "class S:\n    def __init__(self, *d): self.d = d\n    def __len__(self): return len(self.d)\n"
        "    def __eq__(self, o): return isinstance(o, S) and self.d == o.d\n"
        "    def __add__(self, o): return S(*self.d, *o.d)\n    def __iter__(self): return iter(self.d)",
        "class S:\n    def __init__(self, *d): self.d = d",
        "assert len(S(1, 2)) == 2 and S(1) + S(2) == S(1, 2) and S(1) != S(2) and list(S(3)) == [3]\n"
        "assert isinstance(S(1), S) and not S()", ""),
    "set-up code after the program": (
        "class Node:\n    def __init__(self, v): self.v = v\ndef f(n): return n.v + n.next.v",
        "class Node:\n    def __init__(self, v): self.v = v\ndef f(n): return n.v",
        "assert f(root) == 3", "root = Node(1)\nroot.next = Node(2)"),
    "a class of the set-up code": (
        "def f(n): return n.v + len(n)", "def f(n): return n.v",
        "assert f(M(1)) == 3", "class M:\n    def __init__(self, v): self.v = v\n    def __len__(self): return 2"),
    "names in a branch": (
        "try:\n    import nothing\nexcept ImportError:\n    def f(): return 1", "def f(): return 2",
        "assert f() == 1", ""),
    "modules that only the tests use": (
        "def f(x): return x ** .5", "class math:\n    isclose = print\ndef f(x): return x",
        "assert math.isclose(f(16), 4)", ""),
}  # fmt: skip


@needs_bubblewrap
def test_rows_of_ones_own_are_judged_rightly() -> None:
    task = get_task("mbpp")
    rows = [{"code": right, "test_list": [test], "test_setup_code": setup} for right, _, test, setup in JUDGED.values()]
    examples = Dataset.from_list([task.scoring_columns(row, name) for name, row in zip(JUDGED, rows, strict=True)])
    assert task.judgeable(examples, allow_code_execution=True) == list(range(len(JUDGED)))
    wrong = [wrong for _, wrong, _, _ in JUDGED.values()]
    passed = task.score(wrong, examples, allow_code_execution=True).per_example["pass@1"]
    assert [name for name, value in zip(JUDGED, passed, strict=True) if value] == []


@needs_bubblewrap
def test_models_may_use_the_operators_that_the_row_relies_on_and_no_others() -> None:
    task = get_task("mbpp")
    right, _, test, _ = JUDGED["a class of its own"]
    rows = [{"code": right, "test_list": [test]}]
    rows.append({"code": "def f(): return 2", "test_list": ["assert f() - 1 < 2"]})
    rows.append({"code": right + "\ndef f(): return 2", "test_list": [test, "assert f() == 2"]})
    liar = "class A:\n    __sub__ = __lt__ = __eq__ = lambda self, other: True\ndef f(): return A()"
    examples = Dataset.from_list([task.scoring_columns(row, "here") for row in rows])
    scores = task.score([right, liar, f"{right}\n{liar}"], examples, allow_code_execution=True)
    assert scores.per_example["pass@1"].tolist() == [1.0, 0.0, 0.0]


@needs_bubblewrap
def test_rows_whose_own_program_fails_are_told_and_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    task = get_task("mbpp")
    bad = {**ROW, "task_id": 12, "test_list": ["assert add(1, 2) == 4"]}
    liar = "class A:\n    __eq__ = lambda self, other: True\ndef add(a, b): return A()"
    examples = Dataset.from_list([task.scoring_columns(row, "here") for row in (ROW, bad, ROW)])
    with caplog.at_level("WARNING"):
        scores = task.score([RIGHT, RIGHT, liar], examples, allow_code_execution=True)
    assert scores.metrics == {"pass@1": 0.5}
    assert scores.per_example["pass@1"].tolist() == pytest.approx([1.0, float("nan"), 0.0], nan_ok=True)
    assert scores.details["not_counted"] == {"count": 1, "first": ["mbpp-12"]}
    assert "left out 1 of 3 rows" in caplog.text and "mbpp-12 (test 1: the assertion does not hold)" in caplog.text
    assert task.judgeable(examples, allow_code_execution=True) == [0, 2]
    with pytest.raises(UserError, match=r"no row's own program.*mbpp-12"):
        task.score([RIGHT], examples.select([1]), allow_code_execution=True)


@needs_bubblewrap
def test_one_bad_reference_does_not_spoil_the_others() -> None:
    task = get_task("mbpp")
    codes = ["def f(): return 1", "import os\nos._exit(0)\ndef f(): return 1", "def f():\n    return 1"]
    rows = [{"code": code, "test_list": ["assert f() == 1"]} for code in codes]
    examples = Dataset.from_list([task.scoring_columns(row, "here") for row in rows])
    assert task.judgeable(examples, allow_code_execution=True) == [0, 2]


def test_code_needs_permission() -> None:
    task = get_task("mbpp")
    with pytest.raises(UserError, match="--allow-code-execution"):
        task.score([RIGHT], Dataset.from_list([task.scoring_columns(ROW, "here")]))
