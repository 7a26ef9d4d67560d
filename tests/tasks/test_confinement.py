"""Attacks on the confinement of generated programs: none harms, none passes, each ends within the limit."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from srd.errors import UserError
from srd.tasks import confinement
from srd.tasks.confinement import (
    Isolation,
    Program,
    isolation,
    program_imports,
    program_names,
    run_programs,
)

LIMIT = 2.0
# Starting and ending processes on a busy machine.
GRACE = 6.0
TESTS = ("assert answer(20) == 42", "assert answer(40) == 82")

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="confinement needs Linux")
confined = pytest.mark.skipif(
    sys.platform != "linux" or bool(isolation().gaps),
    reason=f"this system confines by {isolation()}: install bubblewrap, and allow namespaces",
)
pytestmark = needs_linux


def attack(source: str, tests: tuple[str, ...] = TESTS, **settings: object) -> confinement.Verdict:
    start = time.monotonic()
    verdict = run_programs([Program(source, tests)], allow=True, timeout=LIMIT, **settings)[0]
    assert time.monotonic() - start < LIMIT + GRACE
    return verdict


def fails(source: str, tests: tuple[str, ...] = TESTS) -> None:
    verdict = attack(source, tests)
    assert not verdict.passed, verdict


def test_right_program_passes_and_wrong_one_fails_at_the_test_it_breaks() -> None:
    assert attack("def answer(x): return 2 * x + 2").passed
    verdict = attack("def answer(x): return 42")
    assert (verdict.passed, verdict.reason) == (False, "test 2: the assertion does not hold")


def test_reasons_name_the_error() -> None:
    assert attack("def answer(x): return x + 'a'").reason.startswith("test 1: TypeError: ")
    assert attack("def answer(x) return x").reason.startswith("SyntaxError")
    assert attack("def other(x): return x").reason == "test 1: NameError: name 'answer' is not defined"


def test_permission_is_required() -> None:
    with pytest.raises(UserError, match="--allow-code-execution"):
        run_programs([Program("", TESTS)], allow=False)


HARMLESS_ATTACKS = {
    "endless loop": "while True: pass",
    "endless loop in a call": "def answer(x):\n    while True: pass",
    "endless sleep": "import time\ndef answer(x): time.sleep(1000)",
    "infinite generator": "def answer(x):\n    while True: yield x",
    "memory bomb": "data = []\nwhile True: data.append(bytearray(1 << 26))",
    "memory bomb in one go": "def answer(x): return 'x' * (1 << 40)",
    "deep recursion": "def answer(x): return answer(x) + 1",
    "deep recursion without a limit": ("import sys\nsys.setrecursionlimit(10**9)\ndef answer(x): return answer(x)"),
    "deeply nested result": "def answer(x):\n    r = []\n    for _ in range(10**5): r = [r]\n    return r",
    "exit": "import os\nos._exit(0)",
    "exit in a call": "import os\ndef answer(x): os._exit(0)",
    "system exit": "raise SystemExit(0)",
    "system exit in a call": "def answer(x): raise SystemExit(0)",
    "keyboard interrupt": "def answer(x): raise KeyboardInterrupt",
    "abort": "import os\ndef answer(x): os.abort()",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef answer(x): return 0",
    "closing all files": "import os\nos.closerange(0, 100)\ndef answer(x): return 42",
    "killing everyone": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "faked report": "print('[true, \"passed\"]', flush=True)\nimport os\nos._exit(0)",
    "faked report on every file": (
        "import os\nfor number in range(100):\n    for text in (b'[true, \"passed\"]\\n', b'passed\\n'):\n"
        "        try: os.write(number, text)\n        except OSError: pass\nos._exit(0)"
    ),
    "flooded output": "import sys\nwhile True: sys.stdout.write('x' * 65536); sys.stderr.write('x' * 65536)",
    "flooded pipes": (
        "import os\nwhile True:\n    for number in range(3, 20):\n"
        "        try: os.write(number, b'x' * 65536)\n        except OSError: pass"
    ),
    "patched builtins": (
        "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\n"
        "builtins.__build_class__ = None\nbuiltins.isinstance = lambda *a: True\n"
        "builtins.all = builtins.any = builtins.len = lambda *a: 42\ndef answer(x): return 0"
    ),
    "equal to everything": (
        "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __hash__ = None\ndef answer(x): return Any()"
    ),
    "number equal to everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n"
        "    def __ne__(self, other): return False\n"
        "def answer(x): return Any(0)"
    ),
    "patched int and json": (
        "import json, sys\njson.dumps = lambda *a, **k: '[\"value\", true]'\nsys.exit = print\n"
        "def answer(x): return True"
    ),
    "reading the caller's frames": (
        "import sys, gc\ndef answer(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            if isinstance(value, str) and 'assert' in value: return int(value.split('==')[1])\n"
        "        frame = frame.f_back\n"
        "    found = [o for o in gc.get_objects() if isinstance(o, str) and 'assert answer' in o]\n"
        "    return int(found[0].split('==')[1])"
    ),
    "reading other processes' memory": (
        "import os, re\ndef answer(x):\n    for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "        for name in ('cmdline', 'environ'):\n"
        "            try: text = open(f'/proc/{pid}/{name}').read()\n            except OSError: continue\n"
        "            found = re.search(r'assert answer\\(20\\) == (\\d+)', text)\n"
        "            if found: return int(found[1])\n    return 0"
    ),
    "thread that outlives": (
        "import threading, os\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n"
        "def answer(x): return 0"
    ),
    "signal handlers": (
        "import signal, time\nfor number in range(1, 32):\n    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: time.sleep(1)"
    ),
}


@pytest.mark.parametrize("name", HARMLESS_ATTACKS)
def test_attack_fails(name: str) -> None:
    fails(HARMLESS_ATTACKS[name])


@pytest.mark.parametrize("shadow", ["sorted", "set", "abs", "round", "__builtins__", "__import__"])
def test_shadowed_builtin_keeps_its_meaning_in_the_tests(shadow: str) -> None:
    source = f"{shadow} = lambda *a, **k: 0\ndef answer(x): return [1]"
    tests = ("assert sorted(answer(1)) == sorted([1, 2])", "assert set(answer(1)) == set([1, 2])")
    fails(source, tests)


def test_forged_answers_cannot_bring_names_of_their_own() -> None:
    # The program answers the judge's first question itself, and offers functions that nobody asked for.
    names = ", ".join(f'["{name}", ["handle", 0]]' for name in ("answer", "sorted", "set", "abs"))
    reply = f'["value", ["dict", [{names}]]]'
    source = (
        "import os\n"
        f"reply = {reply!r} + '\\n' + '[\"value\", 0]\\n' * 50\n"
        "for number in range(3, 20):\n    try: os.write(number, reply.encode())\n    except OSError: pass\n"
        "def answer(x): return 0"
    )
    fails(source, ("assert abs(answer(1)) == 5",))


def test_module_that_the_tests_use_is_the_real_one() -> None:
    reference = "import math\ndef answer(x): return math.sqrt(x)"
    fake = "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef answer(x): return 0"
    tests = ("assert math.isclose(answer(16), 4.0)",)
    programs = [
        Program(source, tests, imports=program_imports(reference), names=program_names(reference))
        for source in (reference, fake)
    ]
    assert [verdict.passed for verdict in run_programs(programs, allow=True, timeout=LIMIT)] == [True, False]


@confined
def test_fork_bomb_ends_and_leaves_nothing_running() -> None:
    # Its processes inherit an open file of this name: other tests' programs run on this machine at the same time.
    name = f"bomb{os.getpid()}"
    source = f"import os\nos.memfd_create({name!r})\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    most = 0
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(fails, source)
        while not verdict.done():
            most = max(most, _processes_with(name))
            time.sleep(0.05)
        verdict.result()
    assert most > 1, "the bomb did not go off"
    time.sleep(0.2)
    assert _processes_with(name) == 0


def _processes_with(open_file: str) -> int:
    """How many processes of this machine have this file in memory open."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if open_file in os.readlink(path):
                found.add(path.parts[2])
    return len(found)


@confined
def test_processes_are_counted() -> None:
    source = (
        "import os, time\ndef answer(x):\n    started = 0\n    try:\n        for _ in range(50):\n"
        "            if os.fork() == 0: time.sleep(100)\n            started += 1\n"
        "    except OSError: pass\n    return started"
    )
    assert attack(source, ("assert 0 <= answer(1) <= 8",)).passed


@confined
def test_big_files_are_cut_off_and_the_folder_is_small_and_empty() -> None:
    source = (
        "import os\ndef answer(x):\n    assert os.listdir('.') == []\n    written = 0\n"
        "    for number in range(1000):\n        try:\n            with open(str(number), 'wb') as file:\n"
        "                for _ in range(160): written += file.write(bytes(1 << 16))\n"
        "        except OSError: pass\n    return written"
    )
    assert attack(source, (f"assert 0 < answer(1) < {64 << 20}",)).passed
    fails("with open('big', 'wb') as file:\n    for _ in range(10 * 1024): file.write(bytes(1 << 20))")


@confined
def test_files_of_the_user_cannot_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("42", encoding="utf-8")
    tmp_path.chmod(0o777)
    fails(f"def answer(x): return int(open({str(secret)!r}).read())", ("assert answer(1) == 42",))
    fails(f"def answer(x): return len(open({__file__!r}).read()) > 0", ("assert answer(1) is True",))
    home = str(Path.home())
    listed = sorted(os.listdir(home))
    fails(f"import os\ndef answer(x): return sorted(os.listdir({home!r}))", (f"assert answer(1) == {listed!r}",))


@confined
def test_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRD_SECRET", "42")
    source = (
        "import os\ndef answer(x):\n    texts = [str(dict(os.environ))]\n"
        "    for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "        try: texts.append(open(f'/proc/{pid}/environ').read())\n        except OSError: pass\n"
        "    return any('SECRET' in text or 'HOME' in text for text in texts)"
    )
    assert attack(source, ("assert answer(1) is False",)).passed


@confined
def test_nothing_can_be_written_outside(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    targets = [str(tmp_path / "mark"), "/mark", "/dev/shm/mark", "/etc/mark", "/usr/lib/mark", "/confined.py"]
    source = (
        f"def answer(x):\n    written = []\n    for path in {targets!r}:\n        try:\n"
        "            with open(path, 'a') as file: file.write('x')\n            written.append(path)\n"
        "        except OSError: pass\n    return written"
    )
    assert attack(source, ("assert answer(1) == []",)).passed
    assert not (tmp_path / "mark").exists()


@confined
def test_no_connection_to_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        port = listener.getsockname()[1]
        fails(
            f"import socket\nconnection = socket.create_connection(('127.0.0.1', {port}), 1)\n"
            "connection.sendall(b'hello')\ndef answer(x): return 42"
        )
        with pytest.raises(TimeoutError):
            listener.accept()


@confined
def test_parent_is_out_of_reach() -> None:
    source = (
        f"import os, signal\nfor pid in ({os.getpid()}, os.getppid(), -1):\n"
        "    for number in (signal.SIGTERM, signal.SIGKILL):\n"
        "        try: os.kill(pid, number)\n        except OSError: pass\n"
        "def answer(x): return 0"
    )
    fails(source)


@confined
def test_all_at_once_and_next_to_each_other() -> None:
    everything = (
        "import os, sys, socket, threading\n"
        "def bomb():\n    data = []\n    while True:\n"
        "        try: data.append(bytearray(1 << 24)); os.fork()\n"
        "        except BaseException: pass\n"
        "def write():\n    while True:\n"
        "        try: open('big', 'ab').write(bytes(1 << 20)); print('x' * 1000)\n"
        "        except BaseException: pass\n"
        "for job in (bomb, write, bomb):\n    try: threading.Thread(target=job).start()\n"
        "    except BaseException: pass\n"
        "sys.setrecursionlimit(10**6)\ndef answer(x): return answer(x)"
    )
    right = "def answer(x): return 2 * x + 2"
    programs = [Program(source, TESTS) for source in (everything, right, everything, right)]
    start = time.monotonic()
    verdicts = run_programs(programs, allow=True, timeout=4.0, workers=2)
    assert [verdict.passed for verdict in verdicts] == [False, True, False, True]
    assert time.monotonic() - start < 2 * 4.0 + GRACE


def test_verdicts_keep_the_order_and_do_not_depend_on_it() -> None:
    programs = [Program(f"def answer(x): return x + {number}", ("assert answer(1) == 3",)) for number in range(4)]
    forwards = run_programs(programs, allow=True, timeout=10, workers=2)
    backwards = run_programs(programs[::-1], allow=True, timeout=10, workers=2)
    assert [verdict.passed for verdict in forwards] == [False, False, True, False]
    assert [verdict.passed for verdict in backwards] == [False, True, False, False]


@pytest.mark.parametrize(
    ("source", "test"),
    [
        ("def f(): return {1: [2.5, (None, True)], 'a': {3}}", "f() == {1: [2.5, (None, True)], 'a': {3}}"),
        ("from collections import Counter\ndef f(x): return Counter(x)", "f('aab') == {'a': 2, 'b': 1}"),
        ("def f(n): return 2 ** n", "f(100000) == 2 ** 100000"),
        ("def f(): return float('inf'), -0.0, 1 + 2j, b'\\xff', 'é\\ud800'",
         "f() == (float('inf'), -0.0, 1 + 2j, b'\\xff', 'é\\ud800')"),
        ("def f(x): return map(str, x)", "list(f([1, 2])) == ['1', '2']"),
        ("def f(x, kind): return [i for i in x if type(i) is kind]", "f((1, 'a', 2.5), str) == ['a']"),
        ("class Node:\n    def __init__(self, v): self.v = v\ndef f(n): return n.v + n.next.v",
         "f(root) == 3"),
        ("def f(x, y=1): return [x, y]", "f(1, y=[2]) == [1, [2]]"),
        ("import dataclasses as d\n@d.dataclass\nclass P:\n    x: int\ndef f(): return P(3)", "f().x == 3"),
    ],
)  # fmt: skip
def test_values_travel_unchanged(source: str, test: str) -> None:
    setup = "root = Node(1)\nroot.next = Node(2)" if "Node" in source else ""
    verdict = run_programs([Program(source, (f"assert {test}",), setup)], allow=True, timeout=10)[0]
    assert verdict.passed, verdict


@pytest.mark.parametrize("name", ["namespaces", "limits only"])
def test_weaker_isolation_works_and_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "namespaces" and not confinement._works([*confinement._namespaces(), "/bin/true"]):
        pytest.skip("this system has no namespaces for us")
    monkeypatch.setattr(confinement, "isolation", lambda: Isolation(name, ("files",)))
    programs = [Program(source, TESTS) for source in ("def answer(x): return 2 * x + 2", "raise SystemExit")]
    with pytest.warns(UserWarning, match=f"{name} .NOT confined: files"):
        verdicts = run_programs(programs, allow=True, timeout=10)
    assert [verdict.passed for verdict in verdicts] == [True, False]
    assert verdicts[0].isolation == f"{name} (NOT confined: files)"


def test_names_and_imports_of_a_reference_program() -> None:
    reference = "import math\nfrom re import sub as s\nLIMIT, (a, b) = 1, (2, 3)\nclass C: pass\ndef f(x): y = x"
    assert program_names(reference) == ("C", "LIMIT", "a", "b", "f")
    assert program_imports(reference) == "import math\nfrom re import sub as s"
