"""Runs of many rows through what is newer than plain distillation: seconds, memory, files, and a kill in the middle.

``python -m benchmarks.large --rows 40000``: every case; ``--case refresh pairs``: some of them. Models are tiny, so
that what is seen is what the program does for each row, not what a model does.

Each case is ended by SIGKILL in the middle of the step that is its own and continued by the same command. With
``--whole`` it also runs undisturbed, and both must leave the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.kills import digests, start, unfinished
from srd.base.console import set_up_logging
from srd.base.files import read_json, write_json

WORDS = ("whale", "dolphin", "octopus", "apple", "function", "list", "sky", "box", "item", "sea")
LOOK = 0.5  # seconds between two looks at a process

#: What each case changes of the recipe, and the step that it is killed in; names of folders stand for their models.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("reflection", {}),
    "refresh": ("train/srd", {"training": {"method": {"name": "gkd", "refresh": "stage", "max_new_tokens": 4}}}),
    "pairs": ("pairs", {"training": {"method": {"name": "distillm2", "max_new_tokens": 4}, "weight": 1.0}}),
    "alignment": ("cache", {"student": "other"}),
    "served": ("cache", {"teacher": {"endpoint": "SERVER", "model": "tiny"}, "cache": {"max_kl": 1.0}}),
    "several": ("cache", {"teacher": None, "teachers": [
        {"model": "teacher", "rows": "a"}, {"model": "second", "rows": "b"}]}),
    "mean": ("cache", {"teacher": None, "teachers": [{"model": "teacher"}, {"model": "second"}]}),
    "chats": ("reflection", {"teacher": "chat-teacher", "student": "chat-student", "data": {
        "train": "chats.jsonl", "template": "chat", "train_on": "all"}}),
    "cleaning": ("likelihoods", {"data": {"cleaning": {"action": "drop", "most": 1.0}}}),
    "repair": ("teacher repairs", {"teacher": {"model": "teacher", "sft": {"epochs": 1, "batch_size": 256}}, "data": {
        "train": "loops.jsonl", "cleaning": {"action": "repair", "most": 1.0}}}),
    "ray": ("reflection", {"cluster": {"engine": "ray", "actors": 2}}),
}  # fmt: skip


def write_rows(folder: Path, rows: int) -> None:
    """Questions and answers, the same with a fifth of the answers in a loop, and conversations of two turns each."""
    with (
        open(folder / "rows.jsonl", "w", encoding="utf-8") as plain,
        open(folder / "loops.jsonl", "w", encoding="utf-8") as loops,
        open(folder / "chats.jsonl", "w", encoding="utf-8") as chats,
    ):
        for number in range(rows):
            word, other = WORDS[number % 10], WORDS[number // 10 % 10]
            asked, said = f"What is {word} {number}?", f"The {word} is in the {other}."
            row = {"instruction": asked, "output": said, "teacher": "ab"[number % 2]}
            plain.write(json.dumps(row) + "\n")
            loops.write(json.dumps({**row, "output": f"{other} " * 12} if number % 5 == 0 else row) + "\n")
            turns = [asked, said, f"And {other}?", f"The {other} is item {number % 100}."]
            messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
            chats.write(json.dumps({"messages": messages}) + "\n")


def write_models(folder: Path) -> None:
    """Teachers of two layers, students of one."""
    from tests.tiny import save_tiny, sentencepiece_tokenizer

    for seed, (name, family, layers) in enumerate((
        ("teacher", "llama", 2), ("second", "llama", 2), ("student", "llama", 1),
        ("chat-teacher", "qwen2", 2), ("chat-student", "qwen2", 1),
    )):  # fmt: skip
        save_tiny(folder / name, family, layers=layers, hidden=16, seed=seed)
    save_tiny(folder / "other", "llama", layers=1, hidden=16, seed=9, vocab_size=640)
    sentencepiece_tokenizer().save_pretrained(folder / "other")


def recipe_of(folder: Path, case: str, url: str) -> Path:
    """The recipe of a case, as a file."""
    recipe: dict[str, Any] = {
        "name": "large", "teacher": "teacher", "student": "student",
        "data": {"train": "rows.jsonl", "template": "plain", "max_length": 96, "max_prompt_length": 48,
                 "validation_size": 8, "test_size": 8},
        "generation": {"max_new_tokens": 4, "batch_size": 256},
        "training": {"epochs": 1, "batch_size": 256, "evaluate_every": 0.5, "learning_rate": 1e-3,
                     "curriculum": {"stages": 2, "select": 0.25}},
        "evaluation": {"seeds": [1], "models": ["student"]},
    }  # fmt: skip
    for name, value in CASES[case][1].items():
        recipe[name] = {**recipe[name], **value} if isinstance(recipe.get(name), dict) else value
    text = json.dumps({name: value for name, value in recipe.items() if value is not None})
    for name in (
        "teacher",
        "second",
        "student",
        "other",
        "chat-teacher",
        "chat-student",
        "rows.jsonl",
        "loops.jsonl",
        "chats.jsonl",
    ):
        text = text.replace(f': "{name}"', f': "{folder / name}"')
    path = folder / f"{case}.yaml"
    path.write_text(text.replace("SERVER", url), encoding="utf-8")
    return path


@contextlib.contextmanager
def server(folder: Path, case: str) -> Iterator[str]:
    """The address of a server of the teacher, where a case asks one."""
    if case != "served":
        yield ""
        return
    import torch
    from tests.served import serving

    from srd.models.loading.loading import load_model, load_tokenizer

    torch.set_num_threads(1)
    with serving(load_model(str(folder / "teacher")), load_tokenizer(str(folder / "teacher"))) as running:
        yield running.url


def processor(process: int) -> float:
    """Seconds that a process has computed so far."""
    with contextlib.suppress(OSError):
        values = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def resident(process: int) -> float:
    """The most memory that a process has had so far, in GB."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    return 0.0


def run(recipe: Path, run_dir: Path, kill_in: tuple[str, float] | None = None) -> dict[str, Any]:
    """Run the command to its end, or until a step has gone on for so many seconds.

    Returns:
        Its ``status``, ``seconds``, seconds of ``processor`` time and ``memory`` in GB.
    """
    begun, memory, computed, since = time.perf_counter(), 0.0, 0.0, None
    said = run_dir.with_suffix(".log")
    with open(said, "w", encoding="utf-8") as file:
        process = start(recipe, run_dir, stderr=file)
    while process.poll() is None:
        memory, computed = max(memory, resident(process.pid)), max(computed, processor(process.pid))
        if kill_in is not None and unfinished(run_dir) == kill_in[0]:
            since = since or time.perf_counter()
            if time.perf_counter() - since >= kill_in[1]:
                process.send_signal(signal.SIGKILL)
        time.sleep(LOOK)
    assert process.returncode in (0, -signal.SIGKILL), said.read_text(encoding="utf-8")
    seconds = time.perf_counter() - begun
    return {"status": process.returncode, "seconds": seconds, "processor": computed, "memory": round(memory, 3)}


def seconds_of_steps(run_dir: Path) -> dict[str, float]:
    """What each step took."""
    steps = read_json(run_dir / "manifest.json")["steps"]
    return {name: step.get("seconds", 0.0) for name, step in steps.items()}


def measure(folder: Path, case: str, wait: float, whole: bool) -> dict[str, Any]:
    """Run a case killed and continued, and whole if that is asked for, and compare."""
    killed, undisturbed = folder / "killed", folder / "whole"
    for old in (killed, undisturbed):
        shutil.rmtree(old, ignore_errors=True)
    with server(folder, case) as url:
        recipe = recipe_of(folder, case, url)
        runs = [run(recipe, killed, (CASES[case][0], wait)), run(recipe, killed)]
        same = whole and bool(run(recipe, undisturbed)) and digests(undisturbed) == digests(killed)
    files = [path for path in killed.rglob("*") if path.is_file()]
    fullest = Counter(str(path.parent.relative_to(killed)) for path in files).most_common(1)[0]
    return {
        "case": case, "seconds": round(sum(each["seconds"] for each in runs), 1),
        "processor": round(sum(each["processor"] for each in runs), 1), "memory": max(each["memory"] for each in runs),
        "files": len(files), "fullest": fullest, "killed": runs[0]["status"] == -signal.SIGKILL,
        "same": same if whole else None, "steps": seconds_of_steps(killed),
    }  # fmt: skip


def main() -> None:
    """Run the cases that were asked for and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--case", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--wait", type=float, default=5.0, help="seconds after the step has begun")
    parser.add_argument("--whole", action="store_true", help="compare with runs that nobody kills")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    set_up_logging()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, options.rows)
        write_models(folder)
        for case in options.case:
            results.append({"rows": options.rows, **measure(folder, case, options.wait, options.whole)})
            print(json.dumps(results[-1]), flush=True)
    if options.output:
        write_json(options.output, results)
    sys.exit(0 if all(each["killed"] and each["same"] is not False for each in results) else 1)


if __name__ == "__main__":
    main()
