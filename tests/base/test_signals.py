"""Signals and closed pipes: a message, the signal's exit status, and the same command continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from srd import cli
from srd.base import parallel
from srd.base.files import read_json
from tests.faults import begun, ended
from tests.parallel_worker import line
from tests.runs import TinyRun

STOPPED = "stopped. The same command continues where it was."
# Commands of the program's own main() that never end by themselves, so that what a signal does is seen in a second.
COMMANDS = {
    "works in Python": "while True: time.sleep(0.01)",
    "waits for the system": "time.sleep(60)",
    "turns the interruption into another error": """
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise RuntimeError("a library's own") from None""",
    "swallows the interruption": """
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass""",
}
PROGRAM = """
import sys, time
from srd import cli
from srd.base import parallel
parallel.TIDYING = 0.2
def app(**options):
    print("ready", flush=True)
    exec(sys.argv[1])
cli.app = app
cli.main()
"""


def start(*arguments: str, ignoring: signal.Signals | None = None) -> subprocess.Popen[str]:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it
        if ignoring is not None:
            signal.signal(ignoring, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignore,
    )


CASES = [(command, signal.SIGTERM) for command in COMMANDS]
CASES += [("waits for the system", number) for number in (signal.SIGHUP, signal.SIGINT)]


@pytest.mark.parametrize(("command", "number"), CASES)
def test_a_signal_stops_with_its_status_and_a_message(command: str, number: signal.Signals) -> None:
    process = start("-c", PROGRAM, COMMANDS[command])
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert STOPPED in told and "Traceback" not in told and told.count("stopped") == 1


def test_what_two_threads_come_to_is_said_once() -> None:
    """The other one waits until it is said: it may end the process."""
    said: list[str] = []
    begun = threading.Event()

    def tell() -> None:
        begun.set()
        time.sleep(0.05)
        said.append("stopped")

    once = cli._once(tell)
    listener = threading.Thread(target=once)
    listener.start()
    assert begun.wait(10)
    once()
    assert said == ["stopped"]
    listener.join()
    assert said == ["stopped"]


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    process = start("-c", PROGRAM, "time.sleep(0.5)", ignoring=signal.SIGHUP)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told


def test_a_real_run_is_stopped(tiny_run: TinyRun) -> None:
    """That it continues to the same bytes is shown with the kills: this is the gentler end."""
    recipe, manifest, words = tiny_run.write_recipe(), tiny_run.run_dir / "manifest.json", tiny_run.folder / "said"

    def command() -> None:
        os.dup2(os.open(words, os.O_CREAT | os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
        line("run", str(recipe), "--run-dir", str(tiny_run.run_dir))

    process, reading = begun(command)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (manifest.exists() and "reflection" in read_json(manifest)["steps"]):
        time.sleep(0.005)
    os.kill(process, signal.SIGTERM)
    status = ended(process, reading)
    assert status == (143, ""), words.read_text()
    told = words.read_text(encoding="utf-8")
    assert STOPPED in " ".join(told.split()) and "Traceback" not in told
    steps = read_json(manifest)["steps"]
    assert steps["examples"]["finished"] and "evaluation" not in steps
    assert not list(tiny_run.run_dir.rglob(".partial-*"))


def test_one_of_several_processes_is_interrupted_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are at work: to meet them would take as long as they do, or for ever."""
    monkeypatch.setattr(cli, "app", lambda **options: cli.INTERRUPTED)
    monkeypatch.setattr(parallel, "leave", lambda: pytest.fail("waits for the others"))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == cli.INTERRUPTED == 130


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("for line in range(100000): print(line)", 1),  # more than fits into the buffer
        ("print('few words')", 1),
        ("raise cli.UserError('no')", 2),
        ("raise ValueError('a bug')", 1),
    ],
)
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_nobody_reads_the_output(command: str, status: int, closed: str) -> None:
    """As in `srd recipes | head -1`: no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    script = PROGRAM.replace('print("ready", flush=True)', "pass")
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writing}
    done = subprocess.run([sys.executable, "-c", script, command], text=True, **streams)
    os.close(writing)
    expected = 0 if closed == "stderr" and "print" in command else status
    assert done.returncode in (expected, 1)  # the console ends the process with 1 where it finds its pipe closed
    assert "Traceback" not in (done.stderr or "") and "Exception ignored" not in (done.stderr or "")
