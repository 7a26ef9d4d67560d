"""Text that the student writes ahead: when it is written, what a step trains on, and how far the student has moved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from srd.base import parallel
from srd.data.batching import Collator, LengthBatches
from srd.models.generation import Decoding
from srd.models.head import head_weights, response_hidden
from srd.models.tokenizers.tokens import padding_id
from srd.run.outline.costs import stages_of, written_ahead
from srd.training.cache.building import build_cache
from srd.training.loss.response_loss import head_loss, logits_loss
from srd.training.loss.settings import LossSettings
from srd.training.methods.base import any_method
from srd.training.rollouts import AdaptiveOffPolicy, OnPolicy
from srd.training.settings import TrainingConfig
from srd.training.student_text.refresh import Ahead, Refresher
from srd.training.student_text.writing import Writing
from srd.training.student_text.written import Pen, write_text
from srd.training.teachers.cache import CachedTeacher
from srd.training.trainer import DistillTrainer
from tests.runs import TinyRun
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_trainer import arguments, encoded

TOKENIZER = tiny_tokenizer("llama")
ROWS = 12


def gkd(refresh: Any, share: float = 1.0) -> dict[str, Any]:
    return {"name": "gkd", "refresh": refresh, "student_share": share, "max_new_tokens": 6}


def trainer(folder: Path, method: Any, steps: int = 6, **changes: Any) -> DistillTrainer:
    """Three steps an epoch."""
    given = {"teacher": tiny_model("llama", seed=2), "objective": "fkl", **changes}
    args = arguments(folder, 2, 2, max_steps=steps, seed=3)
    return DistillTrainer(
        tiny_model("llama", seed=1), args, encoded(ROWS, TOKENIZER), TOKENIZER, method=method, **given
    )


def seen(made: DistillTrainer) -> list[list[dict[str, Any]]]:
    """The micro-batches of every step of a training."""
    steps: list[list[dict[str, Any]]] = []
    original = made.get_batch_samples

    def spy(*given: Any) -> Any:
        samples, items = original(*given)
        steps.append([dict(batch) for batch in samples])
        return samples, items

    made.get_batch_samples = spy  # type: ignore[method-assign]
    made.train()
    return steps


def logs(made: DistillTrainer, key: str) -> list[float]:
    return [row[key] for row in made.state.log_history if key in row]


def test_text_for_one_step_is_the_text_of_the_step(tmp_path: Path) -> None:
    """Written ahead of each single step, read once and cached: the losses of writing and reading in the step."""
    ahead, within = (trainer(tmp_path / str(every), gkd(every), 4) for every in (1, "step"))
    ahead.train()
    within.train()
    assert logs(ahead, "loss") == pytest.approx(logs(within, "loss"), rel=1e-4)
    assert logs(ahead, "refresh") == list(range(4)) and logs(ahead, "drift") == pytest.approx([0] * 4, abs=1e-4)
    assert "refresh" not in {key for row in within.state.log_history for key in row}


@pytest.mark.parametrize(
    ("every", "share", "starts"),
    [("stage", 1.0, [0]), ("epoch", 0.5, [0, 3, 6]), (2, 0.5, [0, 2, 4, 6]), (4, 1.0, [0, 4]), (99, 1.0, [0])],
)
def test_when_text_is_written(every: Any, share: float, starts: list[int], tmp_path: Path) -> None:
    made = trainer(tmp_path, gkd(every, share), steps=7)
    steps = seen(made)
    assert [row["step"] for row in made.state.log_history if "refresh" in row] == starts
    files = sorted((tmp_path / "rollouts").iterdir())
    assert [path.name for path in files if path.suffix == ".parquet"] == [f"{n}.parquet" for n in range(len(starts))]
    assert not [path for path in files if path.is_dir()]  # the teacher's states have gone
    for epoch in (steps[:3], steps[3:6]):  # every example once, whatever the intervals
        assert sorted(name for step in epoch for batch in step for name in batch["ids"]) == sorted(
            f"e{i}" for i in range(ROWS)
        ) or isinstance(every, int)
    written = sum(logs(made, "written"))
    assert written < 7 * 4 if share < 1 else written == {"stage": 12, 4: 24, 99: 12}[every]


def test_what_a_step_trains_on(tmp_path: Path) -> None:
    """Text of the student without cross-entropy, references with it but for doubtful ones; the teacher's states."""
    teacher, doubtful = tiny_model("llama", seed=2), frozenset(f"e{i}" for i in range(0, ROWS, 2))
    made = trainer(tmp_path, gkd("epoch", 0.5), teacher=teacher, weight=0.5)
    made.train_dataset.soft = made.train_dataset.doubtful = doubtful
    steps, kinds = seen(made), set()
    for number, step in enumerate(steps):
        text = {row["id"]: row for row in pq.read_table(tmp_path / f"rollouts/{number // 3}.parquet").to_pylist()}
        for batch in step:
            rows = []
            for name in batch["ids"]:
                index, by_student = int(name[1:]), name in text
                kinds.add((by_student, name in doubtful))
                answer = text[name]["tokens"] if by_student else made.train_dataset.responses[index]
                rows.append({"prompt_ids": made.train_dataset.prompts[index], "response_ids": answer,
                             "soft": by_student or name in doubtful})  # fmt: skip
            assert batch["doubtful"] == [name in doubtful and name not in text for name in batch["ids"]]
            expected = Collator(padding_id(TOKENIZER))(rows)
            assert torch.equal(batch["targets"], expected["targets"])
            soft = expected.get("reference", torch.ones(len(batch["targets"])))
            assert torch.equal(batch.get("reference", torch.ones(len(batch["targets"]))), soft)
            with torch.no_grad():
                states = response_hidden(teacher, expected)
                torch.testing.assert_close(batch["teacher_hidden"].float(), states, rtol=1e-3, atol=1e-3)
    assert len(kinds) == 4


class Mute:
    """An engine that lets some prompts go without an answer."""

    def __init__(self, silent: Sequence[str]) -> None:
        self.silent = silent

    def decode_batch(
        self, prompts: Any, names: Any, decoding: Any, stop: Any, references: Any, width: Any = None
    ) -> Any:
        return [[stop[0]] if name in self.silent else [7] * decoding.max_new_tokens for name in names], []


@pytest.mark.parametrize(
    ("silent", "said"), [(["e1", "e2"], "17% of the 12 answers of the student are empty"), ([], "100% .* do not end")]
)
def test_a_student_that_writes_nothing_or_never_stops(
    silent: list[str], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named with its share, and the reference stands in for an empty answer."""
    teacher, collator = tiny_model("llama", seed=2), Collator(padding_id(TOKENIZER))

    @contextlib.contextmanager
    def engine(student: Any) -> Iterator[Any]:
        yield Mute(silent)

    ahead = Ahead(
        "stage",
        tmp_path / "rollouts",
        4,
        lambda rows, folder: build_cache(folder, lambda: teacher, rows, collator),
        engine,
    )
    made = trainer(
        tmp_path, Writing(OnPolicy(1.0), Decoding(3), ahead=ahead), 3, teacher=CachedTeacher(head_weights(teacher))
    )
    steps = seen(made)
    assert said.partition(" .*")[0] in caplog.text
    assert logs(made, "empty_answers") == [pytest.approx(len(silent) / ROWS, abs=1e-6)]
    for batch in (batch for step in steps for batch in step):
        lengths = [
            3 if name not in silent else len(made.train_dataset.responses[int(name[1:])]) for name in batch["ids"]
        ]
        assert len(batch["targets"]) == sum(lengths) == len(batch["teacher_hidden"])
        by_student = [
            float(name not in silent) for name, length in zip(batch["ids"], lengths, strict=True) for _ in range(length)
        ]
        none = torch.full((sum(lengths),), torch.nan)
        assert (1 - batch.get("reference", torch.ones(sum(lengths)))).tolist() == by_student
        assert (~batch.get("log_likelihood", none).isnan()).float().tolist() == by_student


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_loss_says_how_likely_its_targets_are(temperature: float, weight: float) -> None:
    """At temperature 1, whatever the divergence has, and without a change of loss or gradient."""
    model, teacher = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    hidden, states = torch.randn(9, 32), torch.randn(9, 32)
    targets, settings = torch.randint(400, (9,)), LossSettings("fkl", {}, temperature, weight)
    head, of_teacher = head_weights(model), head_weights(teacher)
    given = {"teacher_hidden": states, "teacher_head": of_teacher}
    plain, _ = head_loss(hidden, head, targets, settings, torch.tensor(9), **given)
    watched, parts = head_loss(hidden, head, targets, settings, torch.tensor(9), watch=True, **given)
    logits = head.logits(hidden)
    expected = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
    assert torch.equal(plain, watched) and parts.own is not None
    torch.testing.assert_close(parts.own, expected)
    _, parts = logits_loss(logits, head.vocabulary, targets, settings, torch.tensor(9), watch=True, **given)
    torch.testing.assert_close(parts.own, expected)


def refresher(every: Any, rollouts: Any, steps: int = 30) -> Refresher:
    rows = encoded(40, TOKENIZER)
    made = Refresher(Ahead(every, Path("nowhere")), rollouts, rows, LengthBatches(rows.lengths, 4), Decoding(4))
    made.total_steps = steps
    return made


def test_auto_writes_anew_where_the_student_has_moved() -> None:
    """Past 0.1 nat either way, at the next step; the next text is for twice the steps that the last one held."""
    made, starts, ends = refresher("auto", OnPolicy(1.0)), [], []
    drifts = {4: 0.11, 9: -0.101, 10: None}  # after these steps
    for step in range(30):
        if made.is_due(step):
            made.interval, made.has_drifted = made.next_interval(step), False
            starts.append(made.interval.start), ends.append(made.interval.end)
        made.watch(drifts.get(step, 0.09))
        kept = made.state()
        made.restore(kept)
    assert starts == [0, 5, 10, 20] and ends == [30, 15, 20, 30]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_written_ahead_is_what_distillm_asks_for(seed: int) -> None:
    """Just the prompts of the steps that turn out to be fresh student text; a higher threshold ends an interval."""
    random = np.random.default_rng(seed)
    rollouts = AdaptiveOffPolicy(0.3, step_size=0.3, tolerance=0.0, capacity=24, seed=seed, reference_loss=0.0)
    made, text, fresh, shares = refresher("epoch", rollouts), set[str](), 0, []
    for step in range(30):
        if made.is_due(step):
            made.interval = made.next_interval(step)
            planned = [batch for _, _, batches in made._planned(made.interval) for batch in batches]
            names = [[made.examples.ids[i] for i in batch] for batch in planned]
            text, start = rollouts.ahead(made.interval.number, step, names, 30), step
        own = set(names[step - start])
        if rollouts.writer(step, 30) == "student":
            assert own <= text
            rollouts.add([{"id": name} for name in own], step)
            fresh += 1
        else:
            assert not own & text
        if step % 5 == 4 and random.random() < 0.5:
            rollouts.observe(float(step))
        shares.append(made.interval.share if made.interval else 0.0)
    assert fresh and len(set(shares)) > 1


def test_rows_are_drawn_one_by_one_for_each_refresh() -> None:
    names = [[f"e{i}" for i in range(2000)]]
    drawn = [OnPolicy(0.3, seed=1).ahead(number, 0, names, 9) for number in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(abs(len(each) - 600) < 5 * np.sqrt(2000 * 0.21) for each in drawn)
    assert [len(OnPolicy(share).ahead(0, 0, names, 9)) for share in (0.0, 1.0)] == [0, 2000]


@pytest.mark.parametrize("value", ["never", 0, -3, True, 1.5, None, "7"])
def test_what_no_refresh_is(value: Any) -> None:
    with pytest.raises(ValueError, match="expected step, epoch, stage, auto or a number of optimizer steps"):
        any_method().validate_python({"name": "gkd", "refresh": value}, strict=True)


def test_a_run_reads_its_text_once_and_keeps_it(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole flow, both methods: the head alone serves the training, which reads nothing live."""
    methods = {"gkd": gkd("stage"), "distillm": {**gkd("epoch", 0.6), "name": "distillm", "capacity": 8}}
    tiny_run.set(training={**tiny_run.recipe["training"], "curriculum": None, "method": methods["gkd"]})
    tiny_run.set(
        data__train_limit=16, training__select_by="last", baselines={"distillm": {"method": methods["distillm"]}}
    )
    kinds = []
    original = DistillTrainer.__init__

    def spy(self: Any, *given: Any, **named: Any) -> None:
        kinds.append(type(named["teacher"]))
        original(self, *given, **named)

    monkeypatch.setattr(DistillTrainer, "__init__", spy)
    run = tiny_run.train()
    assert kinds == [CachedTeacher, CachedTeacher]
    for folder in (run.folder, run.folder / "baselines/distillm"):
        table = pq.read_table(folder / "stages/0/rollouts/0.parquet")
        assert all(len(row["tokens"]) == len(row["log_likelihood"]) for row in table.to_pylist())
    assert table.column_names == ["id", "response", "tokens", "log_likelihood", "ended"]
    assert len(pq.read_table(run.folder / "stages/0/rollouts/0.parquet")) == 16


@pytest.mark.parametrize("every", ["stage", "epoch", 5, 10, 20, 7])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_plan_counts_what_is_written(every: Any, share: float) -> None:
    """Refreshes, answers and tokens; of rows that are drawn, the expected number, of epochs that are torn, at most."""
    made, starts, rows = refresher(every, OnPolicy(share), steps=20), [], 0
    for step in range(20):
        if made.is_due(step):
            made.interval = made.next_interval(step)
            starts.append(step)
            names = [
                [made.examples.ids[i] for i in batch] for _, _, own in made._planned(made.interval) for batch in own
            ]
            rows += len(made.rollouts.ahead(made.interval.number, step, names, 20))
    config = TrainingConfig.model_validate({"method": gkd(every, share), "epochs": 2, "batch_size": 4})
    planned = written_ahead(config, stages_of(config, 40), response=20.0)
    assert planned.refreshes == len(starts)
    assert (
        planned.rows >= rows if every == 7 and share == 1 else planned.rows == pytest.approx(rows, abs=80 * (1 - share))
    )
    assert planned.tokens == planned.rows * 6  # no longer than the method lets them be
    assert written_ahead(TrainingConfig(), stages_of(config, 40), 20.0).refreshes == 0


def test_each_process_writes_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other: each answers every other batch, and the file is that of one process."""
    rows, model = encoded(ROWS, TOKENIZER), tiny_model("llama", seed=1).eval()
    pen = Pen(model, model, TOKENIZER, Collator(padding_id(TOKENIZER)), len(TOKENIZER), 4)
    answered: list[str] = []
    original = Pen.answer

    def spy(self: Pen, names: list[str], *given: Any) -> Any:
        answered.extend(names)
        return original(self, names, *given)

    monkeypatch.setattr(Pen, "answer", spy)
    for folder, processes in (("one", 1), ("two", 2)):
        for process in reversed(range(processes)):  # the main process joins what is there
            monkeypatch.setattr(parallel, "processes", lambda count=processes: count)
            monkeypatch.setattr(parallel, "process", lambda number=process: number)
            monkeypatch.setattr(parallel, "barrier", lambda: None)
            monkeypatch.setattr(parallel, "on_main", lambda work, number=process: work() if number == 0 else None)
            answered.clear()
            write_text(tmp_path / f"{folder}/0.parquet", {}, rows, Decoding(4, 1.0), pen, lambda done, total: None)
            assert len(answered) == {(1, 0): 12, (2, 0): 8, (2, 1): 4}[processes, process]
    assert (tmp_path / "one/0.parquet").read_bytes() == (tmp_path / "two/0.parquet").read_bytes()
