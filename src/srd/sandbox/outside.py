"""Run generated programs apart from everything, and judge them by tests they cannot see.

Each program gets two sandboxes, one for the program and one for the tests (see ``inside.py`` for why a pass cannot
be faked). ``bubblewrap`` makes a sandbox: a process of its own with limits on time, memory, processes, files and what
it writes, an empty working folder, an empty environment, no network, no capabilities, no way to new ones, and no view
of the user's files. Where it is missing or cannot work, programs are not run, unless the user asks for
``"unconfined"`` in so many words. Then the processes are still two, and the judge is still out of the program's reach.
"""

from __future__ import annotations

import ast
import binascii
import contextlib
import ctypes
import json
import marshal
import os
import selectors
import shutil
import signal
import socket
import subprocess
import symtable
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from srd.base.errors import UserError

# The user's permission to run generated programs.
Permission = bool | Literal["unconfined"]

# It runs in processes of its own.
_SCRIPT = Path(__file__).with_name("inside.py")
# The only folder that can be written to, in memory, and what fits into it.
_FOLDER = "/tmp"
_FOLDER_BYTES = 16 << 20
_FILE_BYTES = 8 << 20
_OPEN_FILES = 48
_PROCESSES = 4
# The kernel does not count the processes of root, so those of a root caller run as this user, who owns nothing.
_NOBODY = 65_534
_BECOME_NOBODY = (
    f"import os, sys; os.setgroups([]); os.setresgid({_NOBODY}, {_NOBODY}, {_NOBODY}); "
    f"os.setresuid({_NOBODY}, {_NOBODY}, {_NOBODY}); os.execv(sys.argv[1], sys.argv[1:])"
)
# References that share a sandbox, which takes longer to start than most of them take to run.
_BATCH = 25
# A reference that is slow on this machine today is no wrong one.
_REFERENCE_PATIENCE = 3
# Seconds that a process may take to start, however short a program's own time is: all of them start at once.
_START_PATIENCE = 60.0
INSTALL = (
    "Install it: `apt-get install bubblewrap` (Debian, Ubuntu), `dnf install bubblewrap` (Fedora) or `brew install "
    "bubblewrap` (Homebrew on Linux); it needs Linux, elsewhere use a container"
)


@dataclass(frozen=True)
class Program:
    """A generated program with the tests it has to pass.

    Attributes:
        source: Python source text.
        tests: statements to run one after the other, ``assert f(1) == 2``.
        setup: statements before the tests; they may use the program's names.
        imports: import statements that the tests need.
        names: the names that the tests take from the program; None: those that neither Python nor ``imports``
            define. A name that shadows a builtin has to be listed, or the builtin is meant.
        operators: operators of the program's own classes (``__len__``) that the tests may rely on; None: all.
    """

    source: str
    tests: tuple[str, ...]
    setup: str = ""
    imports: str = ""
    names: tuple[str, ...] | None = None
    operators: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class Verdict:
    """What became of one program: whether it passed every test, why not, how long it took, what the tests relied on."""

    passed: bool
    reason: str
    seconds: float
    isolation: str
    operators: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------- the sandbox


def isolation(allow: Permission = True) -> str:
    """Say how programs are kept apart: ``bubblewrap``, or not at all."""
    if allow == "unconfined":
        return "none: the programs ran unconfined, with the user's own rights"
    old = "" if _forbids_user_namespaces() else " (older than 0.8: new user namespaces are not forbidden)"
    return f"bubblewrap{old}"


@lru_cache(maxsize=1)
def problem() -> str | None:
    """Say why bubblewrap cannot be used here; None where it can. It is found out by using it."""
    if sys.platform != "linux":
        return f"bubblewrap needs Linux. {INSTALL}"
    if not shutil.which("bwrap"):
        return f"bubblewrap is not installed. {INSTALL}"
    try:
        done = subprocess.run(
            [*_sandbox(), _python(), "-I", "-S", "-c", ""], env={}, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        done = subprocess.CompletedProcess([], 1, "", str(error))
    if not done.returncode:
        return None
    reason = (done.stderr.strip().splitlines() or ["it ends without a word"])[-1]
    return (
        f"bubblewrap does not work here ({reason}). It needs user namespaces: in a container start that with "
        "`--security-opt seccomp=unconfined --security-opt systempaths=unconfined`; on Ubuntu 24.04 and later allow "
        "them with `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
    )


@lru_cache(maxsize=1)
def _forbids_user_namespaces() -> bool:
    listed = subprocess.run([_bwrap(), "--help"], capture_output=True, text=True, check=False)
    return "--disable-userns" in listed.stdout + listed.stderr


def _bwrap() -> str:
    return os.path.realpath(shutil.which("bwrap") or "bwrap")


def _python() -> str:
    """Return the interpreter itself; the one of a virtual environment only points to it."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@lru_cache(maxsize=1)
def _sandbox() -> list[str]:
    """Return the start of a command that runs the rest under bubblewrap, with Python and nothing else."""
    apart = ["--unshare-user", *(["--disable-userns"] if _forbids_user_namespaces() else [])]
    apart += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    files = _interpreter_files()
    command = [_bwrap(), *apart, "--cap-drop", "ALL", "--die-with-parent", "--new-session", "--clearenv", *files]
    for name in ("site-packages", "dist-packages"):
        packages = Path(sysconfig.get_path("stdlib")).resolve() / name
        if packages.is_dir():
            command += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--perms", "1777", "--size", str(_FOLDER_BYTES), "--tmpfs", _FOLDER, "--chdir", _FOLDER]
    command += ["--remount-ro", "/"]
    if not _is_root():
        return command
    # The interpreter may lie where only root can look (/root): so root shows it to that user first.
    view = [_bwrap(), "--die-with-parent", *files, *_bind(_bwrap()), "--dev-bind", "/dev", "/dev"]
    view += ["--dev-bind", "/proc", "/proc", "--perms", "1777", "--tmpfs", "/tmp"]
    return [*view, _python(), "-I", "-S", "-c", _BECOME_NOBODY, *command]


def _is_root() -> bool:
    """Whether this is the machine's root, and not the root of a container whose users are others outside."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text(encoding="ascii").split()[1] == "0"


def _interpreter_files() -> list[str]:
    """Bind only what the interpreter loads: shared libraries, the executable, the standard library."""
    found: list[str] = []
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64"):
        if os.path.islink(folder):
            found += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            found += _bind(folder)
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    paths = {sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")}
    paths |= {sysconfig.get_config_var("LIBDIR"), "/etc/ld.so.cache", _python()}
    for path in sorted({os.path.realpath(path) for path in paths if path}):
        if os.path.exists(path):
            found += _bind(path)
    return found


def _bind(path: str) -> list[str]:
    """Show a path inside, in folders that all may enter: bubblewrap gives them the mode of the originals."""
    parents = [
        part for parent in reversed(Path(path).parents[:-1]) for part in ("--perms", "0755", "--dir", str(parent))
    ]
    return [*parents, "--ro-bind", path, path]


def permission(confined: bool, unconfined: bool) -> Permission:
    """Return what two options of the command line allow together."""
    return "unconfined" if unconfined else confined


def require_permission(
    allow: Permission,
    task: str = "this task",
    confined: str = "--allow-code-execution",
    unconfined: str = "--allow-unconfined-code-execution",
) -> None:
    """Refuse to go on unless generated programs may be run, and can be confined if they have to be.

    Raises:
        UserError: ``allow`` is false, or it is true and bubblewrap is missing or does not work.
    """
    if not allow:
        raise UserError(
            f"{task} runs programs that a model wrote, and you have not allowed that. Add {confined}: they run in a "
            "sandbox then"
        )
    if os.name != "posix":
        raise UserError("programs can be run on POSIX systems only, and confined on Linux only: run this task there")
    reason = None if allow == "unconfined" else problem()
    if reason:
        raise UserError(
            f"{task} runs programs that a model wrote, and they cannot be confined: {reason}. Or, at your own risk, "
            f"let them do what you can do: {unconfined}"
        )


# ---------------------------------------------------------------------------------------------- the processes


@lru_cache(maxsize=1)
def _script() -> str:
    """Return what the processes run, compiled: to compile it takes longer than to run most programs."""
    code = marshal.dumps(compile(_SCRIPT.read_text("utf-8"), "<confined>", "exec", optimize=2))
    return f"import binascii, marshal; exec(marshal.loads(binascii.a2b_base64({binascii.b2a_base64(code)!r})))"


def _start(
    role: str, end: socket.socket, settings: dict[str, Any], allow: Permission, folder: str, **streams: Any
) -> subprocess.Popen[bytes]:
    """Start one process; everything secret comes through its streams, later."""
    prefix = [] if allow == "unconfined" else _sandbox()
    own = json.dumps({**settings, "socket": end.fileno()})
    return subprocess.Popen(
        [*prefix, _python(), "-I", "-S", "-B", "-c", _script(), role, own],
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        start_new_session=True,
        pass_fds=(end.fileno(),),
        **streams,
    )


def _settings(allow: Permission, timeout: float, memory_bytes: int) -> dict[str, Any]:
    resources = {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_CPU": int(timeout) + 1,
        "RLIMIT_FSIZE": _FILE_BYTES,
        "RLIMIT_NOFILE": _OPEN_FILES,
        "RLIMIT_NPROC": _PROCESSES,
        "RLIMIT_CORE": 0,
    }
    if allow == "unconfined":
        # The processes of a sandbox are counted apart and end with it. Here there must be none that outlives its
        # program, or it could reach the judge of a later one while that starts.
        resources["RLIMIT_NPROC"] = 0
    return {"resources": resources, "unconfined": allow == "unconfined"}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything in its sandbox."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def _lines(process: subprocess.Popen[bytes], timeout: float) -> Iterator[bytes]:
    """Give the lines that a process writes, until it ends or no line comes for ``timeout`` seconds (TimeoutError)."""
    assert process.stdout
    number, buffer = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(number, selectors.EVENT_READ)
        deadline = time.monotonic() + timeout
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            data = os.read(number, 1 << 16)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield line
                deadline = time.monotonic() + timeout


def _judged(programs: Sequence[Program], allow: Permission, timeout: float, memory_bytes: int) -> list[Verdict]:
    """Judge programs one after the other in one pair of processes; the list ends at the first that ends its process.

    The judge is ready, and closed to others, before the candidate starts.
    """
    settings = _settings(allow, timeout * len(programs), memory_bytes)
    jobs = json.dumps([vars(program) for program in programs]).encode()
    ours, theirs = socket.socketpair()
    verdicts: list[Verdict] = []
    start, ready = time.monotonic(), b""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="srd-", ignore_cleanup_errors=True))
        with ours, theirs:
            judge = _start("judge", ours, settings, allow, folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(_kill, judge)
            with contextlib.suppress(TimeoutError):
                ready = next(_lines(judge, max(timeout, _START_PATIENCE)), b"")
            lines = _lines(judge, timeout)
            silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            candidate = _start("candidate", theirs, settings, allow, folder, **silent)
            stack.callback(_kill, candidate)
        reason = "the tests ran out of memory or time" if ready else "the judge could not start"
        try:
            assert judge.stdin
            with judge.stdin:
                judge.stdin.write(jobs)
            for line in lines:
                passed, why, operators = json.loads(line)
                seconds = time.monotonic() - start
                verdicts.append(Verdict(bool(passed), str(why), seconds, isolation(allow), tuple(operators)))
                start = time.monotonic()
        except TimeoutError:
            reason = f"not done after {timeout:g} seconds" if ready else reason
        except BrokenPipeError:
            pass
    if len(verdicts) < len(programs):
        verdicts.append(Verdict(False, reason, time.monotonic() - start, isolation(allow)))
    return verdicts


def run_programs(
    programs: Sequence[Program],
    *,
    allow: Permission,
    timeout: float = 10.0,
    memory_bytes: int = 512 << 20,
    workers: int | None = None,
) -> list[Verdict]:
    """Run each program against its tests, several at a time, each in a sandbox of its own.

    Args:
        programs: what to run; verdicts do not depend on their order.
        allow: the user's permission to run generated code; ``"unconfined"``: without a sandbox.
        timeout: seconds a program and its tests may take together.
        memory_bytes: address space of a process.
        workers: programs at a time; None: one for each processor. Unconfined ones run one at a time.

    Returns:
        One verdict a program, in their order.

    Raises:
        UserError: ``allow`` is false, or the programs cannot be confined.
    """
    require_permission(allow)
    # Samples are often the same.
    different = list(dict.fromkeys(programs))
    with _closed_to_others(allow), ThreadPoolExecutor(_workers(allow, workers)) as pool:
        verdicts = pool.map(lambda program: _judged([program], allow, timeout, memory_bytes)[0], different)
        found = dict(zip(different, verdicts, strict=True))
    return [found[program] for program in programs]


def _workers(allow: Permission, wanted: int | None = None) -> int:
    return 1 if allow == "unconfined" else wanted or os.cpu_count() or 1


@contextlib.contextmanager
def _closed_to_others(allow: Permission) -> Iterator[None]:
    """Keep unconfined programs from reading this process's memory, which holds the tests."""
    if allow != "unconfined" or sys.platform != "linux":
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    before = prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
    prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    try:
        yield
    finally:
        prctl(4, before, 0, 0, 0)


# -------------------------------------------------------------------------------------- reference programs

_CHECKED: dict[tuple[Program, bool], Verdict] = {}


def check_references(programs: Sequence[Program], *, allow: Permission, timeout: float = 10.0) -> list[Verdict]:
    """Run reference programs against their own tests, many to a sandbox; what was found is kept for this process.

    A verdict names the operators of own classes that the tests rely on, for the programs that models write.
    """
    require_permission(allow)
    patience = timeout * _REFERENCE_PATIENCE
    unconfined = allow == "unconfined"
    waiting = [program for program in dict.fromkeys(programs) if (program, unconfined) not in _CHECKED]

    def check(batch: Sequence[Program]) -> None:
        for program, verdict in zip(batch, _judged(batch, allow, patience, 512 << 20), strict=False):
            _CHECKED[program, unconfined] = verdict

    with _closed_to_others(allow), ThreadPoolExecutor(_workers(allow)) as pool:
        list(pool.map(check, [waiting[start : start + _BATCH] for start in range(0, len(waiting), _BATCH)]))
        # Each of those that failed gets a sandbox of its own, as an earlier one may have damaged the shared one.
        failed = [p for p in waiting if (p, unconfined) not in _CHECKED or not _CHECKED[p, unconfined].passed]
        list(pool.map(lambda program: check([program]), failed))
    return [_CHECKED[program, unconfined] for program in programs]


def reference_of(program: Program, source: str) -> Program:
    """Put a row's own program in the place of a model's."""
    return replace(program, source=source, operators=None)


# ------------------------------------------------------------------------------------- what tests use


def program_names(reference: str) -> tuple[str, ...]:
    """List the names that a reference program defines at its top level: functions, classes, variables."""
    table = symtable.symtable(reference, "<reference>", "exec")
    own = [s for s in table.get_symbols() if (s.is_assigned() or s.is_namespace()) and not s.is_imported()]
    return tuple(sorted(symbol.get_name() for symbol in own))


def program_imports(reference: str) -> str:
    """Return the top-level import statements of a reference program, for tests that use them."""
    imports = [node for node in ast.parse(reference).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(ast.unparse(node) for node in imports)
