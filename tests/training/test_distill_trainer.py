"""`srd.DistillTrainer` as somebody meets it who has what a `transformers.Trainer` takes. Public names only."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments

import srd
from tests.runs import tiny_rows
from tests.tiny import brief, save_tiny, tiny_model, tiny_tokenizer

ROWS, EVALUATED = tiny_rows()[:16], tiny_rows()[16:20]


def test_this_file_uses_public_names_only() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert not re.findall(r"^\s*(?:from srd\b|import srd\.).*", source, re.MULTILINE)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": 1e-3, "use_cpu": True,
        "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "eval_strategy": "epoch",
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**settings, **changes})


def trainer(folder: Path, **changes: Any) -> srd.DistillTrainer:
    given = {
        "model": brief(tiny_model("llama", seed=1)), "args": arguments(folder), "train_dataset": ROWS,
        "processing_class": tiny_tokenizer("llama"), "teacher": tiny_model("llama", seed=2), "objective": "srkl",
    }  # fmt: skip
    return srd.DistillTrainer(**{**given, **changes})


def test_train_evaluate_and_save(tmp_path: Path) -> None:
    made = trainer(tmp_path, eval_dataset=EVALUATED, args=arguments(tmp_path, save_strategy="epoch"))
    before = made.evaluate()
    assert set(before) >= {"eval_loss", "eval_rouge_l"} and 0 <= before["eval_rouge_l"] <= 1
    made.train()
    assert made.tokens_read == sum(made.train_dataset.lengths)  # one epoch
    assert made.state.global_step == 2 and made.evaluate()["eval_loss"] != before["eval_loss"]
    assert set(made.evaluate(EVALUATED[:2], metric_key_prefix="two")) >= {"two_loss", "two_rouge_l"}
    made.save_model(str(tmp_path / "student"))
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "student")) == len(tiny_tokenizer("llama"))
    trained = made.model.state_dict()
    assert all(torch.equal(values, trained[name]) for name, values in student.state_dict().items())
    again = trainer(tmp_path, eval_dataset=EVALUATED, args=arguments(tmp_path, num_train_epochs=2))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def losses(made: srd.DistillTrainer) -> list[float]:
    made.train()
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def test_a_teacher_is_a_model_a_cache_or_a_name(tmp_path: Path) -> None:
    """And rows come in any container, or encoded: each gives the same losses."""
    place, tokenizer = save_tiny(tmp_path / "teacher", "llama", seed=2), tiny_tokenizer("llama")
    no_eval = arguments(tmp_path, eval_strategy="no")
    expected = losses(trainer(tmp_path, args=no_eval))
    cache = srd.build_cache(tiny_model("llama", seed=2), tokenizer, ROWS, tmp_path / "cache")
    table = datasets.Dataset.from_list(ROWS)
    encoded = srd.encode(ROWS, tokenizer)
    for changes in ({"teacher": str(place)}, {"teacher": cache, "train_dataset": table}, {"train_dataset": encoded}):
        assert losses(trainer(tmp_path, args=no_eval, **changes)) == pytest.approx(expected, rel=1e-4)


def test_methods_and_objectives(tmp_path: Path) -> None:
    no_eval = arguments(tmp_path, eval_strategy="no", max_steps=1)
    sft = losses(trainer(tmp_path, args=no_eval, teacher=None, method="sft"))
    mixed = losses(trainer(tmp_path, args=no_eval, objective={"name": "srkl", "alpha": 0.3}, temperature=2, weight=0.5))
    own = trainer(tmp_path, args=no_eval, method={"name": "gkd", "student_share": 1.0, "max_new_tokens": 4})
    assert len({*sft, *mixed, *losses(own)}) == 3
    assert own.state.log_history[0]["ce_loss"] == 0


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"teacher": None}, "needs a teacher"),
    ({"objective": "skrl"}, "unknown objective 'skrl'.*srkl"),
    ({"objective": len}, "srd.register_divergence gives one to yours"),
    ({"objective": {"name": "srkl", "beta": 1}}, "no parameter 'beta'"),
    ({"temperature": 0}, "temperature is 0"),
    ({"weight": 2}, "weight is 2"),
    ({"method": "gdk"}, "unknown method 'gdk'; did you mean 'gkd'"),
    ({"method": 7}, "method: name: .* dictionary"),
    ({"method": {"name": "gkd", "student_share": 2}}, "method: student_share: .*less than or equal to 1"),
    ({"method": {"name": "gkd", "max_new_tokens": 1020}}, "max_new_tokens is 1020, and the longest prompt has"),
    ({"method": "seqkd"}, "trains on what the teacher has written"),
    ({"train_dataset": [{"question": "Why?"}]}, "row 1"),
    ({"train_dataset": []}, "no rows"),
    ({"model": "HuggingFaceTB/SmolLM2-135M"}, "model: give a loaded model.*not 'HuggingFaceTB/SmolLM2-135M'"),
    ({"args": None}, "args: give transformers.TrainingArguments, and not None"),
    ({"processing_class": None}, "processing_class: give a tokenizer"),
    ({"compute_metrics": len}, "compute_metrics has no effect here"),
    ({"peft_config": None}, "peft_config has no effect here: .*peft.get_peft_model"),
    ({"dataset_text_field": "text"}, "dataset_text_field has no effect here: Known: .*optimizers"),
    ({"objectiv": "fkl"}, "objectiv has no effect here: did you mean 'objective'"),
    (
        {"args": TrainingArguments("out", label_smoothing_factor=0.1)},
        "label_smoothing_factor has no effect here.*Set it to 0",
    ),
    ({"args": TrainingArguments("out", train_sampling_strategy="sequential")}, "keep an order.*own_loop"),
    ({"args": TrainingArguments("out", dataloader_drop_last=True)}, "dataloader_drop_last has no effect here"),
    ({"args": TrainingArguments("out", auto_find_batch_size=True)}, "auto_find_batch_size has no effect here"),
    (
        {"args": TrainingArguments("out", per_device_train_batch_size=0)},
        "per_device_train_batch_size is 0, but must be 1 or more",
    ),
    (
        {"args": TrainingArguments("out", gradient_accumulation_steps=0)},
        "gradient_accumulation_steps is 0, but must be 1 or more",
    ),
    ({"teacher": tiny_model("t5")}, "(?i)encoder-decoder"),
    ({"teacher": tiny_model("llama", vocab_size=100)}, "that a model does not have: its vocabulary ends at 100"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[message[:20] for _, message in MISTAKES])
def test_mistakes(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message) as caught:
        trainer(tmp_path, **changes)
    assert type(caught.value).__name__ == "UserError"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "BACKEND is INDUCTOR.*Set ACCELERATE_DYNAMO_BACKEND=no"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM, which is not for srd. Use ddp.yaml"),
    ],
)
def test_what_a_launcher_asks_for_in_vain(
    variable: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TrainingArguments(torch_compile=True) sets the first variable, too."""
    monkeypatch.setenv(variable, value)
    for call in (lambda: trainer(tmp_path), lambda: srd.run("demo-tiny", run_dir=tmp_path / "run")):
        with pytest.raises(Exception, match=message) as caught:
            call()
        assert type(caught.value).__name__ == "UserError"
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(variable, {"true": "false"}.get(value, "no"))
    trainer(tmp_path, args=arguments(tmp_path, eval_strategy="no"))


def test_data_seed_draws_the_batches(tmp_path: Path) -> None:
    orders = []
    for seeds in ({}, {"data_seed": 42}, {"data_seed": 5}):
        made = trainer(tmp_path, args=arguments(tmp_path, eval_strategy="no", **seeds))
        orders.append(made.batches.batches())
    assert orders[0] == orders[1] != orders[2]


class Watch(TrainerCallback):
    """Counts steps, and stops after some."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps, self.stop_at = 0, stop_at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        control.should_training_stop = state.global_step == self.stop_at


def test_what_the_trainer_takes_beside_and_what_it_answers(tmp_path: Path) -> None:
    watch, student = Watch(), tiny_model("llama", seed=1)
    before = [values.clone() for values in student.state_dict().values()]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    no_eval = arguments(tmp_path, eval_strategy="no")
    made = trainer(tmp_path, model=student, args=no_eval, callbacks=[watch], optimizers=(optimizer, None))
    made.train()
    assert watch.steps == 2
    assert all(torch.equal(each, begun) for each, begun in zip(student.state_dict().values(), before, strict=True))
    answers, references, scores = made.predict(ROWS[:2])
    assert [each[0] for each in references] == [row["output"] for row in ROWS[:2]]
    best = [srd.rouge_l(answer, list(texts)) for answer, texts in zip(answers, references, strict=True)]
    assert scores["test_rouge_l"] == pytest.approx(sum(best) / 2) and scores["test_loss"] > 0
    assert made.answers == ()  # those of a validation
    with pytest.raises(Exception, match="nothing to evaluate on"):
        made.predict(None)


def test_going_on_takes_up_what_the_method_keeps(tmp_path: Path) -> None:
    """TAID's target moves by what the loss has done so far: a run that goes on must not begin with it again."""

    def made(folder: str, *callbacks: Any) -> srd.DistillTrainer:
        args = arguments(tmp_path / folder, eval_strategy="no", num_train_epochs=3, save_strategy="steps", save_steps=1)
        return trainer(tmp_path, args=args, method={"name": "taid", "rate": 0.2}, callbacks=list(callbacks))

    expected = losses(made("whole"))
    made("parts", Watch(stop_at=3)).train()
    parts = made("parts")
    parts.train(resume_from_checkpoint=True)
    assert [row["loss"] for row in parts.state.log_history if "loss" in row] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(srd.UserError, match="no checkpoint to go on from"):
        parts.train(resume_from_checkpoint=tmp_path / "none" / "checkpoint-3")


def test_a_checkpoint_goes_on_under_any_name_but_not_by_any_method(tmp_path: Path) -> None:
    no_eval = arguments(tmp_path, eval_strategy="no", save_strategy="steps", save_steps=1, max_steps=2)
    given = {"args": no_eval, "teacher": None, "method": "sft"}
    trainer(tmp_path, **given).train()
    best = shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "best")
    again = trainer(tmp_path, **given)
    again.train(best)
    assert again.state.global_step == 2
    for method in ("taid", "distillm"):
        with pytest.raises(srd.UserError, match=r"best was written by another method"):
            trainer(tmp_path, args=no_eval, method=method).train(best)
    with pytest.raises(srd.UserError, match="no checkpoint to go on from"):
        again.train(tmp_path)


def test_an_adapter_that_adds_tokens_is_refused(tmp_path: Path) -> None:
    for config in (peft.PromptTuningConfig, peft.PromptEncoderConfig):
        adapted = peft.get_peft_model(tiny_model("llama"), config(task_type="CAUSAL_LM", num_virtual_tokens=4))
        with pytest.raises(srd.UserError, match=f"{config.__name__}.* puts tokens before the text.*use LoRA"):
            trainer(tmp_path, model=adapted)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    made = trainer(tmp_path, model=peft.get_peft_model(tiny_model("llama"), config), eval_dataset=EVALUATED)
    made.train()
    assert made.state.global_step == 2 and made.state.log_history[0]["loss"] > 0


@pytest.mark.parametrize("kind", ["training", "validation", "cache"])
def test_encoded_rows_have_a_prompt(kind: str, tmp_path: Path) -> None:
    rows = srd.encode(ROWS, tiny_tokenizer("llama")).to_list()
    rows = datasets.Dataset.from_list([*rows[:2], {**rows[2], "prompt_ids": []}, *rows[3:]])
    calls: dict[str, Callable[[], Any]] = {
        "training": lambda: trainer(tmp_path, train_dataset=rows),
        "validation": lambda: trainer(tmp_path, eval_dataset=rows).evaluate(),
        "cache": lambda: srd.build_cache(tiny_model("llama"), tiny_tokenizer("llama"), rows, tmp_path / "cache"),
    }
    with pytest.raises(srd.UserError, match=r"row 3 \(id .*\) has no prompt_ids.*beginning-of-sequence token"):
        calls[kind]()


def test_a_teacher_that_cannot_be(tmp_path: Path) -> None:
    student, tokenizer = tiny_model("llama"), tiny_tokenizer("llama")
    with pytest.raises(Exception, match="one and the same object"):
        trainer(tmp_path, model=student, teacher=student)
    cache = srd.build_cache(tiny_model("llama", seed=2), tokenizer, ROWS[:8], tmp_path / "cache")
    with pytest.raises(Exception, match="lacks some of the rows"):
        trainer(tmp_path, teacher=cache)
    with pytest.raises(Exception, match="cannot foresee what the student writes"):
        trainer(tmp_path, train_dataset=ROWS[:8], teacher=cache, method="gkd")
    with pytest.raises(Exception, match="nothing to evaluate on"):
        trainer(tmp_path, args=arguments(tmp_path, eval_strategy="no")).evaluate()
