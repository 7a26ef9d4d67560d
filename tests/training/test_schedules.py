"""What of a loss changes as the training goes on: by its formula, however a step is cut, and kept in checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.data.batching import Collator, EncodedExamples
from srd.data.encoding import encode
from srd.models.tokenizers.alignment import NONE
from srd.recipe.reading import load_recipe
from srd.training.alignment import Reader
from srd.training.divergences import entropy_aware
from srd.training.loss.schedules import InterpolatedTeacher, UncertainTeacher, quantile_between
from srd.training.methods.base import METHODS
from srd.training.settings import TrainingConfig
from srd.training.teachers.live import LiveTeacher
from srd.training.trainer import DistillTrainer
from srd.training.training import SCHEDULE_FILE
from tests.runs import TinyRun, logged
from tests.tiny import sentencepiece_tokenizer, tiny_model, tiny_tokenizer
from tests.training.test_trainer import arguments, encoded


def test_taid_follows_its_formula() -> None:
    """Against the recurrence written out, over the steps of two stages; a checkpoint in between changes nothing."""
    losses = np.abs(np.random.default_rng(3).normal(2, 1, 40)) + 0.1
    share, momentum, expected = 0.2, 0.0, []
    for number, loss in enumerate(losses):
        if number:
            momentum = 0.9 * momentum + 0.1 * (losses[number - 1] - loss) / losses[number - 1]
        adaptive = share + 0.3 / (1 + math.exp(-momentum)) * (1 - share)
        share = min(0.9, max(0.2 + 0.7 * (number + 1) / 40, adaptive))
        expected.append(share)
    schedule, shares = InterpolatedTeacher(start=0.2, end=0.9, rate=0.3, inertia=0.9), []
    assert schedule.logged() == {"teacher_share": 0.2}
    for number, loss in enumerate(losses):
        if number % 10 == 0:
            kept, schedule = schedule.state(), InterpolatedTeacher(start=0.2, end=0.9, rate=0.3, inertia=0.9)
            schedule.restore(kept)
            schedule.goes_on(0 if number < 25 else 25, 40)
        schedule.steps_before = 0 if number < 25 else 25
        schedule.end_step(float(loss), number + 1 - schedule.steps_before, 25 if number < 25 else 15)
        shares.append(schedule.logged()["teacher_share"])
    assert shares == pytest.approx(expected, rel=1e-12)


def test_taid_reaches_the_teacher_by_the_line_alone() -> None:
    schedule = METHODS.get("taid")(rate=0.0).schedule()
    assert schedule is not None
    for step in range(1, 11):
        schedule.end_step(1.0, step, 10)
        assert schedule.logged()["teacher_share"] == pytest.approx(0.4 + 0.06 * step)


@pytest.mark.parametrize(
    ("quantile", "above"),
    [(0.0, 10), (0.25, 8), (0.8, 2), (0.95, 0), (1.0, 0)],  # a quarter of 10 is rounded to even
)
def test_a_threshold_lies_between_two_values(quantile: float, above: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(10)).astype(np.float32)
    assert (values > quantile_between(values, quantile)).sum() == above


def trainer_of(
    folder: Path, method: dict[str, Any], micro: int = 4, accumulation: int = 1, kill_at: int | None = None
) -> DistillTrainer:
    """Six steps with a checkpoint after every second."""

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == kill_at:
                raise InterruptedError

    tokenizer = tiny_tokenizer("llama")
    trainer = DistillTrainer(
        tiny_model("llama", seed=1),
        arguments(folder, micro, accumulation, num_train_epochs=2, save_strategy="steps", save_steps=2),
        encoded(12, tokenizer), tokenizer, teacher=tiny_model("llama", seed=2, hidden=48), objective="fkl",
        temperature=1.5, method=method,
    )  # fmt: skip
    trainer.add_callback(Kill())
    return trainer


SCHEDULED = {
    "taid": {"name": "taid", "rate": 0.2, "inertia": 0.5},
    "entropy_aware": {"name": "entropy_aware", "quantile": 0.6},
}


def test_a_teachers_entropies_have_the_temperature_of_the_divergence(tmp_path: Path) -> None:
    """All rows are in each step, so that every step has the same threshold, the first one, too."""
    trainer = trainer_of(tmp_path, SCHEDULED["entropy_aware"], micro=12)
    trainer.train()
    teacher, values = tiny_model("llama", seed=2, hidden=48).double(), []
    for row in encoded(12, tiny_tokenizer("llama")):
        prompt, response = row["prompt_ids"], row["response_ids"]
        with torch.no_grad():
            logits = teacher(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        log_p = torch.log_softmax(logits / 1.5, -1)
        values += (-(log_p.exp() * log_p).sum(-1)).tolist()
    assert isinstance(trainer.schedule, UncertainTeacher)
    assert trainer.schedule.threshold == pytest.approx(quantile_between(np.array(values, np.float32), 0.6), rel=1e-3)


def test_the_threshold_is_among_the_entropies_that_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the classes of a teacher with another tokenizer, at aligned positions: a fifth of them is above."""
    own, theirs = tiny_tokenizer("llama"), sentencepiece_tokenizer()
    sentence = "Because small particles of the air scatter blue light more strongly than red light."
    rows = [{"instruction": f"Why is {n} blue?", "output": f"{sentence} And {n} apples do."} for n in range(6)]
    examples, read = (EncodedExamples(encode(rows, tokenizer)) for tokenizer in (own, theirs))
    teacher = LiveTeacher(tiny_model("llama", seed=1, vocab_size=len(theirs)))
    teacher.reader = Reader(theirs, own, read, Collator(theirs.eos_token_id))
    trainer = DistillTrainer(
        tiny_model("llama", seed=2), arguments(tmp_path, 6, 1, num_train_epochs=1), examples, own, teacher=teacher,
        objective="entropy_aware", temperature=1.5, method={"name": "entropy_aware", "quantile": 0.8},
    )  # fmt: skip
    seen: list[torch.Tensor] = []
    measure = entropy_aware.entropy
    monkeypatch.setattr(entropy_aware, "entropy", lambda log_p: seen.append(measure(log_p)) or seen[-1])
    (batch,) = map(trainer._prepare_inputs, trainer.get_train_dataloader())
    trainer.loss_of(trainer.model, batch, torch.tensor(1.0))
    compared = torch.cat(seen)[batch["alignment"]["position"] != NONE].numpy()
    trainer.train()
    assert isinstance(trainer.schedule, UncertainTeacher) and 50 < len(compared) < len(batch["targets"])
    assert (compared > trainer.schedule.threshold).mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_a_scheduled_loss_resumes_to_the_same_bytes_however_it_is_cut(schedule: str, tmp_path: Path) -> None:
    method = SCHEDULED[schedule]
    rows: dict[str, list[dict[str, Any]]] = {"whole": [], "cut": [], "killed": []}
    trainers = {
        "whole": trainer_of(tmp_path / "whole", method),
        "cut": trainer_of(tmp_path / "cut", method, micro=1, accumulation=4),
        "killed": trainer_of(tmp_path / "killed", method),
    }
    with pytest.raises(InterruptedError):
        trainer_of(tmp_path / "killed", method, kill_at=5).resume()
    for name, trainer in trainers.items():
        trainer.log_row = rows[name].append
        trainer.resume()
    states = {name: trainer.model.state_dict() for name, trainer in trainers.items()}
    for name, value in states["whole"].items():
        assert torch.equal(states["killed"][name], value)
        torch.testing.assert_close(states["cut"][name], value, rtol=1e-3, atol=2e-5)
    key = "teacher_share" if schedule == "taid" else "entropy_threshold"
    told = {name: [row[key] for row in logs if key in row] for name, logs in rows.items()}
    assert len(told["whole"]) == 6 and len(set(told["whole"])) >= 3
    assert told["killed"] == told["whole"][4:]
    assert told["cut"] == pytest.approx(told["whole"], rel=1e-5)


def test_a_schedule_goes_through_the_stages_with_the_cache(tiny_run: TinyRun) -> None:
    tiny_run.set(training__method={"name": "taid", "start": 0.2}, training__objective="srkl", data__train_limit=16)
    tiny_run.set(training__curriculum={"stages": 2}, training__batch_size=2, training__epochs=2).train()
    shares = [row["teacher_share"] for row in logged(tiny_run.run_dir) if "teacher_share" in row]
    assert shares == sorted(shares) and shares[0] > 0.2 and shares[-1] == 1.0
    first = read_json(tiny_run.run_dir / "stages/0" / SCHEDULE_FILE)["share"]
    assert 0.2 < first < 0.7 and (tiny_run.run_dir / "cache").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": {"name": "taid", "start": 0.9, "end": 0.5}}, r"start \(0.9\) is above end \(0.5\)"),
        ({"method": "entropy_aware", "objective": "srkl"}, "Use objective=entropy_aware with it"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("demo-tiny", [f"training.{key}={value}" for key, value in settings.items()])


def test_a_method_with_a_divergence_of_its_own_takes_it() -> None:
    for given in ({}, {"objective": "entropy_aware"}):
        assert TrainingConfig(method="entropy_aware", **given).objective.name == "entropy_aware"
    config = TrainingConfig(method={"name": "entropy_aware", "student_share": 1.0})  # type: ignore[arg-type]
    assert config.on_policy and config.method.longest_text() == 256 and config.method.rollouts(0) is not None
