"""Attacks on the confinement of generated programs: none harms, none passes, each ends within the limit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from srd.base.errors import UserError
from srd.sandbox import outside
from srd.sandbox.outside import (
    Permission,
    Program,
    program_imports,
    program_names,
    run_programs,
)
from tests.marks import needs_bubblewrap

LIMIT = 2.0
# Starting and ending processes on a busy machine.
GRACE = 6.0
TESTS = ("assert answer(20) == 42", "assert answer(40) == 82")

pytestmark = needs_bubblewrap


def attack(source: str, tests: tuple[str, ...] = TESTS, **settings: object) -> outside.Verdict:
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

# What these do is to go on: all that time shows of them is that they are ended.
ENDLESS = (
    "endless loop", "endless loop in a call", "endless sleep", "infinite generator", "memory bomb",
    "deep recursion without a limit", "flooded output", "signal handlers",
)  # fmt: skip


# Programs whose results lie about what they are.
LIARS = {
    "pickled": "class R:\n    __reduce__ = __reduce_ex__ = lambda self, *_: (int, (42,))",
    "class": "class R:\n    __class__ = int\n    __int__ = __index__ = lambda self: 42",
    "hash": "class R:\n    def __hash__(self): return hash(42)\n    def __eq__(self, other): return True",
    "operators": "class R:\n    __sub__ = __abs__ = lambda self, *a: self\n    __lt__ = __le__ = lambda self, o: True",
    **{
        f"{kind} subclass": f"class R({kind}):\n    __eq__ = lambda self, o: True\n    __ne__ = lambda self, o: False\n"
        "    __hash__ = lambda self: 42\n    __iter__ = lambda self: iter([42])\n    __len__ = lambda self: 42"
        for kind in ("int", "float", "str", "list", "tuple", "dict", "set", "bytearray")
    },
    "named tuple": "import collections\nclass R(collections.namedtuple('R', '')):\n    __eq__ = lambda self, o: True",
    "fraction": "import fractions\nclass R(fractions.Fraction):\n    __eq__ = lambda self, o: True",
}
FORGERIES = {
    **{f"a {name} that lies": f"{source}\ndef answer(x): return R()" for name, source in LIARS.items()},
    **{
        f"patched {name}": f"import {name.partition('.')[0]}\n{name} = lambda *a, **k: True\ndef answer(x): return 0"
        for name in ("math.isclose", "operator.eq", "json.loads", "sys.exit", "builtins.abs", "builtins.isinstance")
    },
    "a module of its own": "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef answer(x): return 0",
    "asking the judge for its names": (
        "import sys, gc\ndef answer(x):\n"
        "    peer = next(o for o in gc.get_objects() if type(o).__name__ == 'Candidate')\n"
        "    for request in (('get', x, '__globals__'), ('call', eval, ['42'], {}), ('operate', 'eq', x, x)):\n"
        "        try: return peer.ask(*request)['expected']\n        except Exception: pass"
    ),
    "reading the judge": (
        "import os, re\ndef answer(x):\n    others = set(os.listdir('/proc')) - {str(os.getpid()), 'self'}\n"
        "    for pid in filter(str.isdigit, others):\n"
        "        try:\n            for line in open(f'/proc/{pid}/maps'):\n"
        "                start, end = (int(part, 16) for part in line.split()[0].split('-'))\n"
        "                with open(f'/proc/{pid}/mem', 'rb', 0) as file:\n                    file.seek(start)\n"
        "                    found = re.search(rb'answer.20. == (\\d+)', file.read(min(end - start, 1 << 24)))\n"
        "                    if found: return int(found[1])\n"
        "        except (OSError, ValueError, OverflowError): pass\n"
        "    for folder, _, files in os.walk('/tmp'):\n        for name in files:\n            try:\n"
        "                found = re.search(r'answer.20. == (\\d+)', open(os.path.join(folder, name)).read(1 << 20))\n"
        "                if found and 'srd' in folder: return int(found[1])\n"
        "            except (OSError, ValueError): pass"
    ),
    "tracing the judge": (
        "import ctypes, os\ndef answer(x):\n    ptrace = ctypes.CDLL(None).ptrace\n"
        "    pids, pid = [], os.getppid()  # not whatever else runs on the machine\n"
        "    while pid > 1:\n"
        "        pids.append(pid)\n"
        "        pid = int(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[1])\n"
        "    return 2 * x + 2 if any(ptrace(16, pid, 0, 0) == 0 for pid in pids) else 0"
    ),
}  # fmt: skip
READING = ("reading the judge", "tracing the judge")
# Passes where one of the three holds.
HELPED_TEST = (
    "held = []\nfor check in (lambda: answer(20) == 42, lambda: math.isclose(answer(20), 42),\n"
    "              lambda: abs(answer(20) - 42) < 1e-6):\n"
    "    try: held.append(check())\n    except Exception: pass\nassert any(held)"
)


def programs_of(attacks: dict[str, str], tests: tuple[str, ...] = TESTS) -> list[Program]:
    return [Program(source, tests) for source in attacks.values()]


def not_held(attacks: dict[str, str], verdicts: list[outside.Verdict]) -> dict[str, str]:
    return {name: verdict.reason for name, verdict in zip(attacks, verdicts, strict=True) if verdict.passed}


def test_attacks_fail_and_end_in_time() -> None:
    endless = {name: HARMLESS_ATTACKS[name] for name in ENDLESS}
    ending = {name: source for name, source in HARMLESS_ATTACKS.items() if name not in ENDLESS}
    for attacks, limit in ((endless, LIMIT / 2), (ending, LIMIT)):
        verdicts = run_programs(programs_of(attacks), allow=True, timeout=limit, workers=6)
        assert not_held(attacks, verdicts) == {}
        assert max(verdict.seconds for verdict in verdicts) < limit + GRACE


@pytest.mark.parametrize("allow", [True, "unconfined"])
def test_no_pass_can_be_forged(allow: Permission) -> None:
    some = ("a class that lies", "patched math.isclose", "asking the judge for its names", *READING)
    attacks = FORGERIES if allow is True else {name: FORGERIES[name] for name in some}
    verdicts = run_programs(programs_of(attacks, (HELPED_TEST,)), allow=allow, timeout=4, workers=4)
    assert not_held(attacks, verdicts) == {}
    assert {verdict.isolation for verdict in verdicts} == {outside.isolation(allow)}


def test_what_a_test_passes_leads_nowhere() -> None:
    tests = ("expected = 42\ndef passed(v): return v", "assert answer(passed) == expected")
    asking = {"asking": FORGERIES["asking the judge for its names"]}
    assert not_held(asking, run_programs(programs_of(asking, tests), allow=True)) == {}


# What programs find in their sandbox: each of these passes where it is as tight as it should be.
TIGHT = {
    "no capabilities": (
        "def answer(x): return [s for s in open('/proc/self/status') if s.startswith('Cap') and int(s.split()[1], 16)]",
        "assert answer(1) == []",
    ),
    "no user namespace": (
        "import ctypes\ndef answer(x): return ctypes.CDLL(None).unshare(0x10000000)",
        "assert answer(1) != 0",
    ),
    "few processes": (
        "import os, time\ndef answer(x):\n    started = 0\n    try:\n        for _ in range(200):\n"
        "            if os.fork() == 0: time.sleep(100)\n            started += 1\n    except OSError: pass\n"
        "    return started",
        "assert 0 <= answer(1) <= 8",
    ),
    "few threads": (
        "import threading, time\ndef answer(x):\n    started = 0\n    try:\n        for _ in range(200):\n"
        "            threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n            started += 1\n"
        "    except RuntimeError: pass\n    return started",
        "assert 0 <= answer(1) <= 8",
    ),
    "little disk": (
        "import os\ndef answer(x):\n    assert os.listdir('.') == []\n    written = 0\n"
        "    for number in range(40):\n        try:\n            with open(str(number), 'wb') as file:\n"
        "                for _ in range(128): written += file.write(bytes(1 << 16))\n"
        "        except OSError: pass\n    return written",
        f"assert 0 < answer(1) <= {16 << 20}",
    ),
    "little memory": (
        "def answer(x):\n    got = []\n    try:\n        while True: got.append(bytearray(1 << 24))\n"
        "    except MemoryError: return len(got) << 24",
        f"assert 0 < answer(1) <= {512 << 20}",
    ),
    "few files": (
        "def answer(x):\n    got = []\n    try:\n        while True: got.append(open('/dev/null'))\n"
        "    except OSError: return len(got)",
        "assert answer(1) < 64",
    ),
    "nothing in the environment": (
        "import os\ndef answer(x):\n    texts = [str(dict(os.environ))]\n"
        "    for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "        try: texts.append(open(f'/proc/{pid}/environ').read())\n        except OSError: pass\n"
        "    return any('SECRET' in text or 'HOME' in text for text in texts)",
        "assert answer(1) is False",
    ),
    "nothing to write": (
        "def answer(x):\n    written = []\n"
        "    for path in ('/mark', '/dev/shm/mark', '/etc/mark', '/usr/lib/mark', '/proc/sys/kernel/hostname'):\n"
        "        try:\n            with open(path, 'a') as file: file.write('x')\n            written.append(path)\n"
        "        except OSError: pass\n    return written",
        "assert answer(1) == []",
    ),
    "few other processes": (
        "import os\ndef answer(x): return len(list(filter(str.isdigit, os.listdir('/proc'))))",
        "assert answer(1) == 2",
    ),
}


def test_sandbox_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRD_SECRET", "42")
    verdicts = run_programs([Program(source, (test,)) for source, test in TIGHT.values()], allow=True, workers=4)
    assert [(name, v.reason) for name, v in zip(TIGHT, verdicts, strict=True) if not v.passed] == []


AS_NOBODY = """
import json, sys, types
for name in ("srd", "srd.base", "srd.sandbox"):  # their packages import libraries that this Python need not have
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
from srd.sandbox.outside import Program, problem, run_programs
if problem():
    sys.exit("skip: " + problem())
for allow, timeout, cases in json.load(sys.stdin):
    programs = [Program(source, (test,)) for source, test in cases]
    print(json.dumps([v.passed for v in run_programs(programs, allow=allow, timeout=timeout, workers=4)]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_ordinary_user_is_held_as_well() -> None:
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if not python:
        pytest.skip("there is no Python that all users can run")
    reading = [(FORGERIES[name], TESTS[0]) for name in READING]
    jobs = [
        (True, 10, [*TIGHT.values(), *reading]),
        ("unconfined", 4, [("def answer(x): return 2 * x + 2", TESTS[0]), *reading]),  # one reads until it is stopped
    ]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        for name in ("base/errors.py", "sandbox/outside.py", "sandbox/inside.py"):
            copy = Path(folder) / "srd" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(outside.__file__).parents[1] / name, copy)
        done = subprocess.run(
            [python, "-c", AS_NOBODY, folder], input=json.dumps(jobs), capture_output=True, text=True, timeout=120,
            user=65_533, group=65_533, extra_groups=[], cwd="/", env={"HOME": "/"},
        )  # fmt: skip
    if done.stderr.startswith("skip") or "SyntaxError" in done.stderr:
        pytest.skip(done.stderr)
    confined, unconfined = map(json.loads, done.stdout.splitlines())
    assert (confined, unconfined) == ([True] * len(TIGHT) + [False] * 2, [True, False, False]), done.stderr


@pytest.mark.parametrize(
    ("bwrap", "reason"),
    [
        (None, "bubblewrap is not installed.*apt-get install bubblewrap.*dnf.*brew.*container"),
        ("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1", "No permissions.*seccomp"),
    ],
)
def test_without_bubblewrap_nothing_runs(
    bwrap: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bwrap:
        (tmp_path / "bwrap").write_text(bwrap, encoding="utf-8")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found_out = (outside.problem, outside._sandbox, outside._forbids_user_namespaces)
    for function in found_out:
        function.cache_clear()
    try:
        with pytest.raises(UserError, match=f"(?s){reason}.*--allow-unconfined-code-execution"):
            run_programs([Program("", TESTS)], allow=True)
        assert run_programs([Program("def answer(x): return 42", TESTS[:1])], allow="unconfined")[0].passed
    finally:
        for function in found_out:
            function.cache_clear()


def test_shadowed_builtins_keep_their_meaning_in_the_tests() -> None:
    shadows = ("sorted", "set", "abs", "round", "__builtins__", "__import__")
    attacks = {name: f"{name} = lambda *a, **k: 0\ndef answer(x): return [1]" for name in shadows}
    tests = ("assert sorted(answer(1)) == sorted([1, 2]) or set(answer(1)) == set([1, 2])",)
    assert not_held(attacks, run_programs(programs_of(attacks, tests), allow=True)) == {}


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
    for process in filter(str.isdecimal, os.listdir("/proc")):
        # A process or a file may be gone by the time it is looked at; a glob of all of them would end there.
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    if open_file in os.readlink(f"/proc/{process}/fd/{number}"):
                        found.add(process)
    return len(found)


def test_files_of_the_user_cannot_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("42", encoding="utf-8")
    tmp_path.chmod(0o777)
    fails(f"def answer(x): return int(open({str(secret)!r}).read())", ("assert answer(1) == 42",))
    fails(f"def answer(x): return len(open({__file__!r}).read()) > 0", ("assert answer(1) is True",))
    home = str(Path.home())
    listed = sorted(os.listdir(home))
    fails(f"import os\ndef answer(x): return sorted(os.listdir({home!r}))", (f"assert answer(1) == {listed!r}",))


def test_nothing_can_be_written_outside(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    targets = [str(tmp_path / "mark"), outside.__file__]
    source = (
        f"def answer(x):\n    written = []\n    for path in {targets!r}:\n        try:\n"
        "            with open(path, 'a') as file: file.write('x')\n            written.append(path)\n"
        "        except OSError: pass\n    return written"
    )
    assert attack(source, ("assert answer(1) == []",)).passed
    assert not (tmp_path / "mark").exists()


def test_no_connection_to_this_machine() -> None:
    name = f"srd-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        fails(f"import socket\nsocket.socket(socket.AF_UNIX).connect('\\0{name}')\ndef answer(x): return 2 * x + 2")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        port = listener.getsockname()[1]
        fails(
            f"import socket\nconnection = socket.create_connection(('127.0.0.1', {port}), 1)\n"
            "connection.sendall(b'hello')\ndef answer(x): return 42"
        )
        with pytest.raises(TimeoutError):
            listener.accept()


def test_parent_is_out_of_reach() -> None:
    source = (
        f"import os, signal\nfor pid in ({os.getpid()}, os.getppid(), -1):\n"
        "    for number in (signal.SIGTERM, signal.SIGKILL):\n"
        "        try: os.kill(pid, number)\n        except OSError: pass\n"
        "def answer(x): return 0"
    )
    fails(source)


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


def test_a_judge_that_is_slow_to_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where many start at once: a program's own time begins when it does."""
    program = Program("def answer(x): return 2 * x + 2", TESTS)
    start = outside._start

    def late(role: str, *rest: Any, **streams: Any) -> Any:
        monkeypatch.setattr(outside, "_script", lambda: f"import time; time.sleep({late_by}); " + script)
        return start(role, *rest, **streams)

    script, late_by = outside._script(), 1.5
    monkeypatch.setattr(outside, "_start", late)
    assert run_programs([program], allow=True, timeout=5.0)[0].passed
    assert "not done after" in run_programs([program], allow=True, timeout=1.0)[0].reason
    monkeypatch.setattr(outside, "_START_PATIENCE", 0.5)
    assert run_programs([program], allow=True, timeout=0.5)[0].reason == "the judge could not start"


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


def test_names_and_imports_of_a_reference_program() -> None:
    reference = "import math\nfrom re import sub as s\nLIMIT, (a, b) = 1, (2, 3)\nclass C: pass\ndef f(x): y = x"
    assert program_names(reference) == ("C", "LIMIT", "a", "b", "f")
    assert program_imports(reference) == "import math\nfrom re import sub as s"
