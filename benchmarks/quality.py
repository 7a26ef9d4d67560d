"""``python -m benchmarks.quality``: how good the student is after how long, by every way that a user might go.

The same rows, the same teacher (SmolLM2-135M, fine-tuned on them), the same student (layers of it removed, healed),
as many passes in steps of as many rows. Quality is ROUGE-L of greedy answers to validation questions. The clock runs
from when the libraries are imported: loading, caching, reflecting and writing count. Validation and checkpoints do
not, for any way. Each is a process of its own, with no other beside it. What is finished is not run again.

Every way has its learning rate chosen alike: that of ``--rates`` with which the student of the first seed ends best.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import conventional, peers
from benchmarks.workload import READS, WRITES, forget_peak, peak_memory, timed_parts
from srd.base.files import atomic_write, fingerprint, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "bench-quality"
DOCUMENT = ROOT / "docs" / "speed.md"
PLOT = ROOT / "docs" / "plots" / "quality.svg"
SPLITS = ("train", "validation", "test")
LOADS = "loading, reflecting"
NO_GPU = "no GPU"
NO_TIME = "no time was left"
GAIN = 0.9  # of the best gain: the time to it is compared

Result = dict[str, Any]
Point = tuple[int, float, float]  # optimizer step, seconds, ROUGE-L


@dataclass(frozen=True)
class Plan:
    """What every way works on.

    Attributes:
        rows: That are trained on.
        questions: Of the validation.
        passes: Over the rows.
        points: Validations of a training.
        batch_size: Rows of an optimizer step.
        tokens: Of the longest text that a model writes.
        max_length: Of prompt and response; longer ones are cut.
        teacher: Its model, which is fine-tuned first.
        drop: Layers of it that the student lacks, healed first; 0: the student is this model as it comes.
        data: Where the rows come from.
    """

    rows: int = 960
    questions: int = 300
    passes: int = 6
    points: int = 6
    batch_size: int = 16
    tokens: int = 64
    max_length: int = 256
    teacher: str = "smollm2"
    drop: int = 10
    data: str = "pydocs"

    @property
    def steps(self) -> int:
        """Optimizer steps of a training."""
        return self.passes * (-(-self.rows // self.batch_size))

    def is_due(self, step: int) -> bool:
        """Whether the student is validated after this step."""
        return step * self.points // self.steps > (step - 1) * self.points // self.steps

    def recipe(self, **settings: Any) -> Result:
        """A recipe over these rows; settings of sections replace these."""
        data = {
            "train": self.data, "template": "plain", "max_length": self.max_length, "max_prompt_length": 64,
            "train_limit": self.rows, "validation_limit": self.questions, "test_limit": 4,
        }  # fmt: skip
        # A GPU takes as long for a token of 100 texts as for one of all; two cores little more than for one of 32.
        generation = {"max_new_tokens": self.tokens, "batch_size": 640 if torch.cuda.is_available() else 100}
        return {"data": data, "generation": generation, **settings}

    def models(self) -> Result:
        """The recipe that makes teacher and student."""
        tuning = {"epochs": 2, "learning_rate": 5e-5, "batch_size": self.batch_size, "select_by": "last"}
        healing = {**tuning, "epochs": 1, "learning_rate": 2e-4}
        shortened = {"drop_layers": self.drop, "warm_start": healing}
        teacher = {"model": self.teacher, "sft": tuning}
        return self.recipe(teacher=teacher, student=shortened if self.drop else self.teacher)


@dataclass(frozen=True)
class Case:
    """One training: a way, its seed, its highest learning rate."""

    system: str
    seed: int
    rate: float

    def file(self, folder: Path) -> Path:
        """Where its result lies."""
        return folder / f"{self.system}-{self.seed}-{self.rate:g}.json"


# ------------------------------------------------------------------------------------------------- clock and validation


@dataclass
class Watch:
    """The clock of a training, which stands while it is paused, and the points that it notes."""

    started: float = field(default_factory=lambda: time.perf_counter())
    paused: float = 0.0
    points: list[Point] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """That count so far."""
        return time.perf_counter() - self.started - self.paused

    def now(self) -> float:
        """The seconds, once all is done that was begun."""
        _wait()
        return self.seconds

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What is done within does not count."""
        _wait()
        began = time.perf_counter()
        try:
            yield
        finally:
            _wait()
            self.paused += time.perf_counter() - began

    def note(self, step: int, rouge_l: float) -> None:
        """A point of the curve, in points of ROUGE-L of 100."""
        self.points.append((step, self.now(), 100 * rouge_l))
        if step == 0:
            self.end_part(LOADS)

    def end_part(self, part: str) -> None:
        """All seconds so far that belong to no other part belong to this one."""
        self.parts[part] = self.now() - sum(self.parts.values())


def _wait() -> None:
    """For all that a GPU has been given to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Prepared:
    """Teacher and student, the rows as token ids, and how good both are."""

    plan: Plan
    folder: Path

    @property
    def teacher(self) -> str:
        """Its folder."""
        return str(self.folder / "models" / "teacher")

    @property
    def student(self) -> str:
        """Its folder, or the name of a model that is trained as it comes."""
        return str(self.folder / "models" / "start") if self.plan.drop else self.plan.teacher

    @property
    def splits(self) -> dict[str, str]:
        """Files of the examples."""
        return {name: str(self.folder / f"{name}.jsonl") for name in SPLITS}

    def content(self) -> Result:
        """Rows and scores."""
        return dict(read_json(self.folder / "prepared.json"))


def half() -> torch.autocast:
    """What computes in bfloat16 on a GPU."""
    return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available())


def rouge_of(model: Any, tokenizer: Any, questions: list[Result], plan: Plan) -> float:
    """Mean ROUGE-L of greedy answers, 0 to 1, as `DistillTrainer.evaluate` gives it."""
    from srd.metrics.rouge import rouge_l_many
    from srd.models.generation import Decoding, generate

    training = model.training
    model.eval()
    prompts, names = [row["prompt_ids"] for row in questions], [row["id"] for row in questions]
    size = plan.recipe()["generation"]["batch_size"]
    with half():
        answers = generate(model, tokenizer, prompts, names, Decoding(plan.tokens), batch_size=size)
    model.train(training)
    return float(rouge_l_many(answers, [row["references"] for row in questions]).mean())


def load(model: str, tokenizer: Any = None) -> Any:
    """A model of `Prepared`, in float32, where it is to compute; its tokenizer where none is given."""
    from srd.models.loading.loading import load_model, load_tokenizer

    if tokenizer is None:
        return load_tokenizer(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(model, tokenizer=tokenizer, dtype="float32").to(device)


def prepare(plan: Plan, folder: Path) -> None:
    """Make teacher and student, and everything that peers are given."""
    from srd.recipe.reading import validate_recipe
    from srd.run.context import Run
    from srd.run.flow import advance

    where = Prepared(plan, folder)
    run = Run(validate_recipe(plan.models(), "quality"), folder / "models")
    advance(run, "student", "teacher")
    train, asked = run.encoded("train"), run.encoded("validation")
    keys = ("id", "prompt_ids", "response_ids")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(train.ids, train.prompts, train.responses, strict=True)]
    references = list(run.split("validation")["references"])
    questions = [
        {"id": name, "prompt_ids": prompt, "references": list(known)}
        for name, prompt, known in zip(asked.ids, asked.prompts, references, strict=True)
    ]
    for name, file in where.splits.items():
        with open(file, "w", encoding="utf-8") as output:
            output.writelines(json.dumps(_instruction(row)) + "\n" for row in run.split(name))
    run.close()
    content: Result = {"rows": rows, "questions": questions}
    tokenizer = load(where.student)
    for name, source in (("student", where.student), ("teacher", where.teacher)):
        content[name] = rouge_of(load(source, tokenizer), tokenizer, questions, plan)
    write_json(folder / "prepared.json", content)


def _instruction(row: Result) -> Result:
    """An example as a row of a file."""
    return {"id": row["id"], "instruction": row["instruction"], "input": row["input"], "output": row["references"][0]}


# ----------------------------------------------------------------------------------------------------------------- ways


def by_recipe(case: Case, where: Prepared, watch: Watch, start: float) -> None:
    """This project: a recipe, as far as its trained student."""
    from srd.recipe.reading import validate_recipe
    from srd.run.context import Run
    from srd.run.flow import advance

    plan, folder = where.plan, where.folder / "runs" / f"{case.system}-{case.seed}-{case.rate:g}"
    training = {
        "curriculum": None, "epochs": plan.passes, "batch_size": plan.batch_size, "learning_rate": case.rate,
        "seed": case.seed, "select_by": "rouge_l", **OURS[case.system],
    }  # fmt: skip
    if training["method"]["name"] == "gkd":
        training["method"] = {**training["method"], "max_new_tokens": plan.tokens}
    training["evaluate_every"] = plan.passes / plan.points
    settings = plan.recipe(teacher=where.teacher, student=where.student, training=training)
    settings["data"] |= where.splits  # made already, as they are for the other ways
    _remove(folder)
    with _noted(watch, start):
        run = Run(validate_recipe(settings, "quality"), folder)
        advance(run, f"train/{run.recipe.training.label}")
        run.close()
    _remove(folder)


def _remove(folder: Path) -> None:
    from srd.base.files import remove

    remove(folder)


@contextlib.contextmanager
def _noted(watch: Watch, start: float) -> Iterator[None]:
    """Note every validation of our trainer; stop the clock while it validates or writes checkpoints."""
    from srd.training.trainer import DistillTrainer

    own = {name: getattr(DistillTrainer, name) for name in ("train", "evaluate", "_save_checkpoint")}
    before = 0

    def train(trainer: Any, *given: Any, **named: Any) -> Any:
        nonlocal before
        if not watch.points:
            watch.note(0, start)
        done = own["train"](trainer, *given, **named)
        before += trainer.state.global_step
        return done

    def evaluate(trainer: Any, *given: Any, **named: Any) -> Any:
        with watch.pause():
            metrics = own["evaluate"](trainer, *given, **named)
        if "eval_rouge_l" in metrics:
            watch.note(before + trainer.state.global_step, metrics["eval_rouge_l"])
        return metrics

    def save(trainer: Any, *given: Any, **named: Any) -> Any:
        with watch.pause():
            return own["_save_checkpoint"](trainer, *given, **named)

    patched: Any = DistillTrainer
    patched.train, patched.evaluate, patched._save_checkpoint = train, evaluate, save
    try:
        with timed_parts(watch.now) as watch.parts:
            yield
    finally:
        patched.train, patched.evaluate, patched._save_checkpoint = own.values()


def by_peer(case: Case, where: Prepared, watch: Watch, start: float) -> None:
    """Another way: a loop over the same token ids, which asks after every step whether to validate."""
    from srd.models.reading import abilities

    plan, content = where.plan, where.content()
    tokenizer = load(where.student)
    student, teacher = load(where.student, tokenizer), load(where.teacher, tokenizer)
    teacher.eval().requires_grad_(False)
    abilities(student)  # measured before anything is rounded

    def ended(step: int) -> None:
        if step == 0:
            watch.note(0, start)
        elif plan.is_due(step):
            with watch.pause():
                score = rouge_of(student, tokenizer, content["questions"], plan)
            watch.note(step, score)

    PEERS[case.system](case, plan, student, teacher, tokenizer, content["rows"], ended)


def conventional_way(
    case: Case, plan: Plan, student: Any, teacher: Any, tokenizer: Any, rows: list[Result], ended: Callable[[int], None]
) -> None:
    """As published training scripts have it; forward KL alone, a cosine without warm-up."""
    random = np.random.default_rng(case.seed)
    orders = [random.permutation(len(rows)) for _ in range(plan.passes)]
    size = plan.batch_size
    steps = [[rows[i] for i in order[at : at + size]] for order in orders for at in range(0, len(rows), size)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    conventional.train(
        student, teacher, steps, pad, 1.0, 1.0,
        learning_rate=case.rate, length=plan.max_length, ended=ended, precision=half,
    )  # fmt: skip


def trl_gkd(
    case: Case, plan: Plan, student: Any, teacher: Any, tokenizer: Any, rows: list[Result], ended: Callable[[int], None]
) -> None:
    """TRL's GKDTrainer, with the settings that it has by default."""
    own = {"lmbda": 1.0 if case.system.endswith("on") else 0.0, "max_new_tokens": plan.tokens}
    peers.train_gkd(student, teacher, tokenizer, rows, ended, **own, **_trl(case, plan))


def trl_distillation(
    case: Case, plan: Plan, student: Any, teacher: Any, tokenizer: Any, rows: list[Result], ended: Callable[[int], None]
) -> None:
    """TRL's DistillationTrainer, with the settings that it has by default."""
    own = {"max_completion_length": plan.tokens}
    peers.train_distillation(student, teacher, tokenizer, rows, ended, **own, **_trl(case, plan))


def _trl(case: Case, plan: Plan) -> Result:
    gpu = torch.cuda.is_available()
    return {
        "learning_rate": case.rate, "per_device_train_batch_size": plan.batch_size, "num_train_epochs": plan.passes,
        "seed": case.seed, "use_cpu": not gpu, "bf16": gpu,
    }  # fmt: skip


#: What our recipes say of their training.
OURS: dict[str, Result] = {
    "kd": {"method": {"name": "kd"}},
    "kd-tokens": {"method": {"name": "kd"}, "tokens": {"share": 0.2, "by": "student_entropy"}},
    "gkd-step": {"method": {"name": "gkd", "student_share": 1.0}},
    "gkd-stage": {"method": {"name": "gkd", "student_share": 1.0, "refresh": "stage"}},
    "plus": {"method": {"name": "kd"}, "curriculum": {"preset": "plus"}},
}
PEERS: dict[str, Callable[..., None]] = {
    "conventional": conventional_way, "trl-gkd-off": trl_gkd, "trl-gkd-on": trl_gkd,
    "trl-distillation": trl_distillation,
}  # fmt: skip
TITLES = {
    "conventional": "the conventional way", "trl-gkd-off": "TRL GKDTrainer, off-policy (lmbda 0)",
    "trl-gkd-on": "TRL GKDTrainer, on-policy (lmbda 1)", "trl-distillation": "TRL DistillationTrainer",
    "kd": "ours, off-policy KD", "kd-tokens": "ours, KD at 20 % of the positions",
    "gkd-step": "ours, on-policy, refresh: step", "gkd-stage": "ours, on-policy, refresh: stage",
    "plus": "ours, preset: plus",
}  # fmt: skip
COLORS = dict(
    zip(
        TITLES,
        ("#8c8c8c", "#c99700", "#a04000", "#d4709a", "#1f6fb4", "#64b5f6", "#5b3f9e", "#00897b", "#2e7d32"),
        strict=True,
    )
)


def run_case(case: Case, where: Prepared) -> Result:
    """Train one student in this process."""
    _import_all(case.system)
    start = where.content()["student"]
    forget_peak()
    watch = Watch()
    (by_recipe if case.system in OURS else by_peer)(case, where, watch, start)
    watch.end_part("training")
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else NO_GPU
    measured = {"points": watch.points, "parts": watch.parts, "seconds": watch.seconds, "memory": memory}
    return {**asdict(case), **measured, "device": device}


def _import_all(system: str) -> None:
    """Import what takes seconds and differs between machines more than between ways; and wake a GPU."""
    import srd.run.flow  # noqa: F401

    if system.startswith("trl"):
        peers.import_trl()
    if torch.cuda.is_available():
        # Its gradients of rows that are padded on the left may be NaN (github.com/pytorch/pytorch/issues/196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.zeros(1, device="cuda")


# ---------------------------------------------------------------------------------------------- processes, one by one


def child(arguments: list[str], done: Path, log: Path, end: float = math.inf) -> str:
    """Run a part of this benchmark in a process of its own, unless its file is there; why it failed, or nothing."""
    if done.exists():
        return ""
    if time.perf_counter() > end:
        return NO_TIME
    command = [sys.executable, "-m", "benchmarks.quality", *arguments]
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "TRL_EXPERIMENTAL_SILENCE": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with open(log, "w", encoding="utf-8") as output:
        code = subprocess.run(command, stdout=output, stderr=output, env=environment, cwd=ROOT, check=False).returncode
    failed = "" if not code and done.exists() else f"status {code}, see {log}"
    print(f"{done.stem}: {failed or 'done'} ({time.perf_counter() - began:.0f} s)", flush=True)
    return failed


def missing(system: str) -> str:
    """Why a way cannot be gone here."""
    return "TRL is not installed" if system.startswith("trl") and find_spec("trl") is None else ""


def measure_all(
    systems: list[str], where: Prepared, seeds: int, rates: list[float], run: Callable[[Case], str], jobs: int
) -> dict[str, str]:
    """All trainings, ``jobs`` side by side; why ways failed.

    The first seed of every way with every rate comes first, then the other seeds with the best of these.
    """
    failed = {name: why for name in systems if (why := missing(name))}
    with ThreadPoolExecutor(jobs) as pool:
        ways = [name for name in systems if name not in failed]
        tried = {pool.submit(run, Case(name, 0, rate)): name for name in ways for rate in rates}
        whys: dict[str, list[str]] = {name: [] for name in ways}
        others: list[tuple[str, Future[str]]] = []
        for ended in as_completed(tried):
            name = tried[ended]
            whys[name].append(ended.result())
            if len(whys[name]) < len(rates):
                continue
            if all(whys[name]):
                failed[name] = whys[name][0]
            else:
                best = best_rate(where, name, rates)
                others += [(name, pool.submit(run, Case(name, seed, best))) for seed in range(1, seeds)]
    return {**{name: why for name, ended in reversed(others) if (why := ended.result())}, **failed}


def best_rate(where: Prepared, system: str, rates: list[float]) -> float:
    """With which the student of the first seed ends best."""
    ends = {}
    for rate in rates:
        file = Case(system, 0, rate).file(where.folder)
        if file.exists():
            ends[rate] = read_json(file)["points"][-1][2]
    return max(ends, key=lambda rate: ends[rate])


def results_of(where: Prepared, system: str, seeds: int, rates: list[float]) -> list[Result]:
    """What is there of a way, at its best rate."""
    if not any(Case(system, 0, rate).file(where.folder).exists() for rate in rates):
        return []
    best = best_rate(where, system, rates)
    files = [Case(system, seed, best).file(where.folder) for seed in range(seeds)]
    return [read_json(file) for file in files if file.exists()]


# ------------------------------------------------------------------------------------------------------ table and plot


def mean_curve(results: list[Result]) -> list[tuple[float, float]]:
    """Seconds and ROUGE-L, means over the seeds."""
    curves = np.array([[point[1:] for point in result["points"]] for result in results])
    return [(float(seconds), float(rouge)) for seconds, rouge in curves.mean(0)]


def pace(results: list[Result], plan: Plan) -> float:
    """Seconds of a pass, over the last half of the points: what was loaded, cached or written before is not in it."""
    points = [result["points"][(len(result["points"]) - 1) // 2 :] for result in results]
    steps = plan.steps / plan.passes
    return float(np.mean([steps * (some[-1][1] - some[0][1]) / (some[-1][0] - some[0][0]) for some in points]))


def time_to(curve: list[tuple[float, float]], goal: float) -> float | None:
    """When a curve first reaches a value, between two points in proportion; None: it does not."""
    for (before, low), (after, high) in itertools.pairwise(curve):
        if high >= goal:
            return before if low >= goal else before + (after - before) * (goal - low) / (high - low)
    return None


def table(content: Result, found: dict[str, list[Result]], failed: dict[str, str], plan: Plan) -> str:
    """A row a way, and what it is measured by."""
    curves = {system: mean_curve(results) for system, results in found.items() if results}
    if not curves:
        return "\n".join(f"{TITLES[system]}: {why}" for system, why in failed.items())
    start = 100 * content["student"]
    best = max(rouge for curve in curves.values() for _, rouge in curve)
    goal = start + GAIN * (best - start)
    times = {system: time_to(curve, goal) for system, curve in curves.items()}
    peer = min((t for system, t in times.items() if system in PEERS and t is not None), default=None)
    lines = [
        f"The student starts at {start:.2f} ROUGE-L, the teacher has {100 * content['teacher']:.2f}, the best student "
        f"{best:.2f}; 90 % of its gain is {goal:.2f}.",
        "",
        "| way | learning rate | seeds | best ROUGE-L | at the end | training | a pass | time to 90 % | best peer ÷ "
        "| memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for system in TITLES:
        if system in curves:
            results, curve, time_there = found[system], curves[system], times[system]
            ratio = f"{peer / time_there:.2f}" if peer is not None and time_there else "–"
            cells = [
                f"{results[0]['rate']:g}", str(len(results)), f"{max(rouge for _, rouge in curve):.2f}",
                f"{curve[-1][1]:.2f}", f"{curve[-1][0]:.0f} s", f"{pace(results, plan):.1f} s",
                "not reached" if time_there is None else f"{time_there:.0f} s", ratio,
                f"{max(result['memory'] for result in results) / 2**20:,.0f} MiB",
            ]  # fmt: skip
            lines.append(f"| {TITLES[system]} | {' | '.join(cells)} |")
        if (why := failed.get(system)) and not (system in curves and why == NO_TIME):
            lines.append(f"| {TITLES[system]}: {why} |" + " – |" * 9)
    return "\n".join(lines)


def equal_table(start: float, found: dict[str, list[Result]]) -> str:
    """When each peer has 90 % of what it gains itself, and when ours is as good; points of ROUGE-L of 100."""
    lines = [f"| peer | 90 % of its own gain | its time | {TITLES['kd']} | ÷ |", "|---|---:|---:|---:|---:|"]
    for system in PEERS:
        if not found.get(system) or not found.get("kd"):
            continue
        curve = mean_curve(found[system])
        goal = start + GAIN * (max(rouge for _, rouge in curve) - start)
        theirs, ours = time_to(curve, goal), time_to(mean_curve(found["kd"]), goal)
        if theirs and goal > start:
            told = ("not reached", "–") if ours is None else (f"{ours:.0f} s", f"{theirs / ours:.1f}")
            lines.append(f"| {TITLES[system]} | {goal:.2f} | {theirs:.0f} s | {' | '.join(told)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def parts_table(found: dict[str, list[Result]]) -> str:
    """Where the seconds of our ways go, means over the seeds; by step, all that is written is part of the training."""
    names = (LOADS, READS, WRITES, "training")
    lines = [f"| way | {' | '.join(names)} | in all |", f"|---|{'---:|' * (len(names) + 1)}"]
    for system in OURS:
        if results := found.get(system):
            spent = [float(np.mean([result["parts"].get(name, 0.0) for result in results])) for name in names]
            lines.append(f"| {TITLES[system]} | {' | '.join(f'{part:.1f} s' for part in (*spent, sum(spent)))} |")
    return "\n".join(lines)


def plot(content: Result, found: dict[str, list[Result]]) -> str:
    """Quality over time, a line a way."""
    from benchmarks.plots import line_plot
    from srd.report.plots import Series

    series = [Series(TITLES[name], COLORS[name], mean_curve(found[name])) for name in TITLES if found.get(name)]
    title, x_label, y_label = "Quality of the student over time", "seconds", "ROUGE-L of the validation"
    return line_plot(series, title=title, x_label=x_label, y_label=y_label)


# ----------------------------------------------------------------------------------------------------------------- main


def tiny_teacher(folder: Path) -> str:
    """A model of three small layers with random weights, whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="<end>")
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=512, eos_token_id=1, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


TINY = Plan(rows=8, questions=4, passes=3, points=3, batch_size=4, tokens=4, max_length=96, drop=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a random model and a few rows: does everything work?")
    for name, help_text in {
        "rows": "that are trained on", "questions": "of the validation", "passes": "over the rows",
        "points": "validations of a training", "batch-size": "rows of an optimizer step",
        "tokens": "longest text that a model writes", "max-length": "of prompt and response, in tokens",
        "drop": "layers of the teacher that the student lacks; 0: the student is its model as it comes",
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, help=f"{help_text} ({getattr(Plan, name.replace('-', '_'))})")
    parser.add_argument("--teacher", help=f"the model that is fine-tuned as the teacher ({Plan.teacher})")
    parser.add_argument("--data", help=f"data set known by name, or a file of rows ({Plan.data})")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4], help="learning rates to try")
    parser.add_argument("--systems", choices=[*TITLES], nargs="+", default=[*TITLES], help="ways to go")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, which makes times worth less")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing more after these")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, help="where all is kept")
    parser.add_argument(
        "--document", nargs="?", const="quality", metavar="PLACE",
        help="put table and plot into docs/, where speed.md has this place (quality)",
    )  # fmt: skip
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that is asked for."""
    names = ("rows", "questions", "passes", "points", "batch_size", "tokens", "max_length", "drop", "teacher", "data")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    plan = replace(TINY if options.tiny else Plan(), **given)
    return replace(plan, teacher=str(options.output / "tiny-teacher")) if options.tiny and not options.teacher else plan


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not there yet, and show the table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    options.output = options.output.absolute()
    end = time.perf_counter() + 60 * options.minutes
    plan = plan_of(options)
    if plan.points > plan.steps:
        parser.error(f"--points is {plan.points}: give at most {plan.steps}, the steps")
    folder = options.output / fingerprint(asdict(plan))[:12]
    where = Prepared(plan, folder)
    if options.prepare:
        if options.tiny and not options.teacher:
            tiny_teacher(Path(plan.teacher))
        prepare(plan, folder)
        return
    if options.case:
        case = Case(**json.loads(options.case))
        result = run_case(case, where)
        write_json(case.file(folder), result)
        return
    same = [*arguments, "--output", str(options.output)]
    if failed := child([*same, "--prepare"], folder / "prepared.json", folder / "logs" / "prepare.txt"):
        sys.exit(f"teacher and student could not be made: {failed}")
    how = options.seeds, options.rates

    def run(case: Case) -> str:
        file = case.file(folder)
        given = ["--case", json.dumps(asdict(case))]
        return child([*same, *given], file, folder / "logs" / f"{file.stem}.txt", end)

    reasons = measure_all(options.systems, where, *how, run, options.jobs)
    found = {name: results_of(where, name, *how) for name in options.systems}
    show(options, where, found, reasons)


def show(options: argparse.Namespace, where: Prepared, found: dict[str, list[Result]], failed: dict[str, str]) -> None:
    """Print the table, and keep it beside the plot."""
    from benchmarks.run import machine

    content, plan = where.content(), where.plan
    device = next((result["device"] for results in found.values() for result in results), NO_GPU)
    where_run = machine() if device == NO_GPU else device
    about = (
        f"{where_run}; {len(content['rows'])} rows, {len(content['questions'])} questions, "
        f"{plan.passes} passes in steps of {plan.batch_size}, texts of at most {plan.tokens} tokens"
        f"{f'; {options.jobs} trainings side by side' if options.jobs > 1 else ''}."
    )
    tables = (table(content, found, failed, plan), equal_table(100 * content["student"], found), parts_table(found))
    text = "\n\n".join(filter(None, (about, *tables))) + "\n"
    drawn = plot(content, found)
    for file, written in ((where.folder / "table.md", text), (where.folder / "plot.svg", drawn)):
        with atomic_write(file) as partial:
            partial.write_text(written, encoding="utf-8")
    print(f"\n{text}\n{where.folder}")
    if options.document:
        from benchmarks.plots import write_plot
        from benchmarks.tables import write_document

        write_document(DOCUMENT, {options.document: text.strip()})
        write_plot(PLOT.with_stem(options.document), drawn)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
