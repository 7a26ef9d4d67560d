"""Run generated programs apart from everything, and judge them by tests they cannot see.

Each program gets two sandboxes, one for the program and one for the tests (see ``confined.py`` for why a pass
cannot be faked). A sandbox is a separate process with limits on time, memory, processes and file size, an
empty working folder, an empty environment, no network and no view of the user's files. Debian's
``bubblewrap`` makes it. Where it is missing, Linux namespaces alone are used, and where these are forbidden
too, only the limits remain; ``isolation()`` and every verdict say which it was and what is missing.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from srd.errors import UserError

# It is run, not imported: it needs modules that only POSIX systems have.
_SCRIPT = Path(__file__).with_name("confined.py")
# Inside the sandbox: the script, and the only folder that can be written to (in memory, small).
_SCRIPT_INSIDE = "/confined.py"
_FOLDER_INSIDE = "/tmp"
_FOLDER_BYTES = 16 << 20
_FILE_BYTES = 8 << 20
_OPEN_FILES = 48
_PROCESSES = 4
# Deeper recursion than CPython's default of 1000 overflows the C stack of some builds.
_RECURSION = 1000
# Users that own nothing; taken in turn so that programs running side by side have separate limits on
# processes.
_SPARE_USERS = itertools.count()
_FIRST_SPARE_USER, _SPARE_USER_COUNT = 60_000, 5_000


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
    """

    source: str
    tests: tuple[str, ...]
    setup: str = ""
    imports: str = ""
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of one program: whether it passed every test, why not, and how long it took."""

    passed: bool
    reason: str
    seconds: float
    isolation: str


@dataclass(frozen=True)
class Isolation:
    """How programs are kept apart on this machine, and what of it the machine does not offer."""

    name: str
    gaps: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say both in one line."""
        return self.name + (f" (NOT confined: {', '.join(self.gaps)})" if self.gaps else "")


@lru_cache(maxsize=1)
def isolation() -> Isolation:
    """Find the best sandbox that works here, by trying each."""
    if shutil.which("bwrap") and _works([*_bubblewrap(), _python(), "-I", "-S", "-c", ""]):
        return Isolation("bubblewrap")
    if shutil.which("unshare") and _works([*_namespaces(), _python(), "-I", "-S", "-c", ""]):
        return Isolation("namespaces", ("reading and writing the user's files",))
    return Isolation("limits only", ("reading and writing the user's files", "network", "other processes"))


def _works(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, env={}, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _python() -> str:
    """Return the interpreter itself; the one of a virtual environment only points to it."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _bubblewrap() -> list[str]:
    """Return the start of a command that runs the rest under bubblewrap, with Python and nothing else."""
    apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() != 0:
        apart += ["--unshare-user"]
    command = [shutil.which("bwrap") or "bwrap", *apart, "--die-with-parent", "--new-session", "--clearenv"]
    # Only what the interpreter loads: shared libraries, the executable, the standard library.
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    paths = {sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")}
    paths.add(sysconfig.get_config_var("LIBDIR"))
    for path in sorted({_python(), *(os.path.realpath(path) for path in paths if path)}):
        if os.path.exists(path):
            # Parents are made readable: bubblewrap gives them the mode of the originals, and /root's is 700.
            for parent in reversed(Path(path).parents[:-1]):
                command += ["--perms", "0755", "--dir", str(parent)]
            command += ["--ro-bind", path, path]
    for name in ("site-packages", "dist-packages"):
        packages = Path(sysconfig.get_path("stdlib")).resolve() / name
        if packages.is_dir():
            command += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    command += ["--ro-bind", str(_SCRIPT), _SCRIPT_INSIDE, "--proc", "/proc", "--dev", "/dev"]
    command += ["--remount-ro", "/dev", "--perms", "1777", "--size", str(_FOLDER_BYTES)]
    return [*command, "--tmpfs", _FOLDER_INSIDE, "--chdir", _FOLDER_INSIDE, "--remount-ro", "/"]


def _namespaces() -> list[str]:
    """Return the start of a command that runs the rest in namespaces of its own, but with all the files."""
    command = [
        shutil.which("unshare") or "unshare",
        "--net",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    return command if os.geteuid() == 0 else [*command, "--user", "--map-root-user"]


def _spare_user() -> int | None:
    """Return the id of a user that owns nothing where this process is root and may become that user."""
    if os.geteuid() != 0:
        return None
    mapped = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    if int(mapped[2]) <= _FIRST_SPARE_USER + _SPARE_USER_COUNT:
        return None
    if isolation().name != "bubblewrap" and not _open_to_all(Path(sysconfig.get_path("stdlib")).resolve()):
        # That user could not import the standard library from within root's home folder.
        return None
    return _FIRST_SPARE_USER + next(_SPARE_USERS) % _SPARE_USER_COUNT


def _open_to_all(folder: Path) -> bool:
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


def _limits(timeout: float, memory_bytes: int) -> dict[str, Any]:
    resources = {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_CPU": int(timeout) + 1,
        "RLIMIT_FSIZE": _FILE_BYTES,
        "RLIMIT_NOFILE": _OPEN_FILES,
        "RLIMIT_NPROC": _PROCESSES,
        "RLIMIT_CORE": 0,
    }
    return {"resources": resources, "user": _spare_user()}


def _start(role: str, job: dict[str, Any], folder: Path, **streams: Any) -> subprocess.Popen[bytes]:
    """Start one sandbox; the job is a file that only it can see."""
    path = folder / f"{role}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    script, job_inside = str(_SCRIPT), str(path)
    command: list[str] = []
    working_folder = folder / role
    working_folder.mkdir(mode=0o777)
    working_folder.chmod(0o777)
    if isolation().name == "bubblewrap":
        script, job_inside = _SCRIPT_INSIDE, "/job.json"
        # Before "--remount-ro /", after which no more can be bound.
        prefix = _bubblewrap()
        command = [*prefix[:-2], "--ro-bind", str(path), job_inside, *prefix[-2:]]
    elif isolation().name == "namespaces":
        command = _namespaces()
    return subprocess.Popen(
        [*command, _python(), "-I", "-S", "-B", script, role, job_inside],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=working_folder,
        env={},
        start_new_session=True,
        pass_fds=(job["requests"], job["replies"]),
        **streams,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a sandbox and everything in it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.wait()


def _run_program(program: Program, timeout: float, memory_bytes: int) -> Verdict:
    start = time.monotonic()
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    pipes = [request_read, request_write, reply_read, reply_write]
    tests = {
        "tests": program.tests,
        "setup": program.setup,
        "imports": program.imports,
        "names": program.names,
    }
    code = {"source": program.source, "recursion": _RECURSION}
    with tempfile.TemporaryDirectory(prefix="srd-program-", ignore_cleanup_errors=True) as name:
        limits = [_limits(timeout, memory_bytes) for _ in range(2)]
        candidate = _start(
            "candidate",
            {**code, "limits": limits[0], "requests": request_read, "replies": reply_write},
            Path(name),
            stdout=subprocess.DEVNULL,
        )
        judge = _start(
            "judge",
            {**tests, "limits": limits[1], "requests": request_write, "replies": reply_read},
            Path(name),
            stdout=subprocess.PIPE,
        )
        for pipe in pipes:
            os.close(pipe)
        try:
            output, _ = judge.communicate(timeout=timeout)
            # The last line: what the tests print comes before it.
            lines = output.splitlines()
            passed, reason = json.loads(lines[-1]) if lines else (False, "the tests ran out of memory or time")
        except subprocess.TimeoutExpired:
            passed, reason = False, f"not done after {timeout:g} seconds"
        finally:
            _kill(candidate)
            _kill(judge)
            if judge.stdout:
                judge.stdout.close()
    return Verdict(bool(passed), str(reason), time.monotonic() - start, str(isolation()))


def require_permission(allow: bool) -> None:
    """Refuse to go on unless the user allowed generated programs to be run.

    Raises:
        UserError: ``allow`` is false.
    """
    if not allow:
        raise UserError(
            "this task runs programs that a model wrote, and you have not allowed that: add "
            f"--allow-code-execution. On this machine they would be confined by: {isolation()}"
        )


def run_programs(
    programs: Sequence[Program],
    *,
    allow: bool,
    timeout: float = 10.0,
    memory_bytes: int = 512 << 20,
    workers: int | None = None,
) -> list[Verdict]:
    """Run each program against its tests, several at a time, each in a sandbox of its own.

    Args:
        programs: what to run; verdicts do not depend on their order.
        allow: the user's permission to run generated code.
        timeout: seconds a program and its tests may take together.
        memory_bytes: address space of a process.
        workers: programs at a time; None: one for each processor.

    Returns:
        One verdict a program, in their order.

    Raises:
        UserError: ``allow`` is false, or the system is not a POSIX one.
    """
    require_permission(allow)
    if os.name != "posix":
        raise UserError("programs can be confined on Linux and other POSIX systems only: run this task there")
    if isolation().gaps:
        warnings.warn(
            f"generated programs are confined by {isolation()}. "
            "Install bubblewrap (apt-get install bubblewrap) to confine them fully.",
            stacklevel=2,
        )
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda program: _run_program(program, timeout, memory_bytes), programs))


def program_names(reference: str) -> tuple[str, ...]:
    """List the names that a reference program defines at its top level: functions, classes, variables."""
    names: set[str] = set()
    for node in ast.parse(reference).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names.update(part.id for part in ast.walk(node) if isinstance(part, ast.Name) and _is_stored(part))
    return tuple(sorted(names))


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def program_imports(reference: str) -> str:
    """Return the top-level import statements of a reference program, for tests that lean on them."""
    imports = [node for node in ast.parse(reference).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(ast.unparse(node) for node in imports)
