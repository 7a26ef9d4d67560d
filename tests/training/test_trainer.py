"""The one training loop: how a step is cut changes nothing, what enters the loss, what a checkpoint holds."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from srd.base.errors import RunError, UserError
from srd.data.batching import Collator, EncodedExamples
from srd.models.generation import Decoding
from srd.models.head import logit_rule, response_hidden, response_logits
from srd.models.loading.adapters import add_lora
from srd.models.reading import bears_packing
from srd.models.settings import LoraConfig
from srd.models.tokenizers.tokens import padding_id
from srd.training import batches
from srd.training import trainer as trainer_module
from srd.training.batches import make_collator
from srd.training.checkpoints import STATE_FILE
from srd.training.loss.row_losses import LossParts
from srd.training.loss.settings import LossSettings
from srd.training.precision import widen
from srd.training.rollouts import AdaptiveOffPolicy, OnPolicy
from srd.training.student_text.writing import Writing
from srd.training.teachers.base import TeacherSource
from srd.training.teachers.cache import CachedTeacher
from srd.training.teachers.common import Teacher
from srd.training.teachers.live import LiveTeacher, live
from srd.training.trainer import DistillTrainer
from srd.training.validation import Validation, validation_loss
from tests.models.test_every_family import tiny_of
from tests.runs import in_turn
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_divergences import naive

SETTINGS = LossSettings("jsd", {}, 2.0, 0.6)


def encoded(count: int, tokenizer: Any, seed: int = 0, teacher: Any = None) -> EncodedExamples:
    """Random token ids of very different lengths; every response ends with the end of sequence."""
    random = np.random.default_rng(seed)

    def tokens(longest: int) -> list[int]:
        return random.integers(5, 400, random.integers(1, longest)).tolist()

    rows = {
        "id": [f"e{i}" for i in range(count)],
        "prompt_ids": [tokens(20) for _ in range(count)],
        "response_ids": [[*tokens(25), tokenizer.eos_token_id] for _ in range(count)],
    }
    return EncodedExamples(rows, teacher)


class InMemory:
    """A teacher cache without files."""

    def __init__(self, teacher: Any, collator: Collator) -> None:
        self.teacher, self.collator = teacher, collator

    @torch.no_grad()
    def hidden(self, prompt_ids: Any, response_ids: Any) -> Tensor:
        row = {"prompt_ids": list(prompt_ids), "response_ids": list(response_ids)}
        return response_hidden(self.teacher, self.collator([row]))


class Recorder(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        self.steps.append(grads)


def arguments(folder: Path, micro: int, accumulation: int, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-3, "max_grad_norm": 0.0, "logging_steps": 1, "disable_tqdm": True, "report_to": "none",
        "use_cpu": True, "remove_unused_columns": False, "save_strategy": "no", "num_train_epochs": 1,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**{**settings, **changes})


def run(
    family: str, folder: Path, micro: int = 8, accumulation: int = 1, *, count: int = 8, cached: bool = False,
    settings: LossSettings = SETTINGS, student: Any = None, collator: Collator | None = None, rollouts: Any = None,
    teacher: Teacher | None = None, doubtful: tuple[str, ...] = (), **changes: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, Tensor]], DistillTrainer]:  # fmt: skip
    """Train a tiny student; its logged rows, the gradients of each step, and the trainer."""
    tokenizer = tiny_tokenizer(family)
    student = student or tiny_model(family, seed=1)
    teacher_model = tiny_model(family, seed=2, hidden=48)
    collator = collator or make_collator(student, tokenizer)
    teacher = teacher or LiveTeacher(teacher_model)
    source = InMemory(teacher_model, collator) if cached else None
    if cached:
        teacher = CachedTeacher(teacher.head)
    rows: list[dict[str, Any]] = []
    recorder = Recorder()
    examples = encoded(count, tokenizer, 0, source)
    examples.soft = examples.doubtful = frozenset(doubtful)
    trainer = DistillTrainer(
        student, arguments(folder, micro, accumulation, **changes), examples, tokenizer, teacher=teacher,
        objective=settings, method=Writing(rollouts, Decoding(6, 1.0)),
    )  # fmt: skip
    trainer.collator, trainer.log_row = collator, rows.append
    trainer.add_callback(recorder)
    trainer.train()
    return [row for row in rows if "loss" in row], recorder.steps, trainer


def assert_same(one: list[dict[str, Tensor]], two: list[dict[str, Tensor]], tolerance: float = 2e-5) -> None:
    assert len(one) == len(two) > 0
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys() and mine
        norm = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
        assert norm > 0
        for name, gradient in mine.items():
            assert (gradient - theirs[name]).norm() < tolerance * norm, name


@pytest.mark.parametrize(
    ("family", "cached"),
    [
        ("llama", True),
        ("t5", False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("llama", False), ("t5", True))),
    ],
)
def test_splitting_a_step_changes_neither_loss_nor_gradient(family: str, cached: bool, tmp_path: Path) -> None:
    """1 x 8, 2 x 4, 8 x 1; eleven examples, so that the last step is short and has micro-batches without any."""
    outcomes = [run(family, tmp_path, m, a, count=11, cached=cached) for m, a in ((8, 1), (4, 2), (1, 8))]
    logged, gradients, trainer = outcomes[0]
    assert [row["step"] for row in logged] == [1, 2] and trainer.state.global_step == 2
    for other, others, _ in outcomes[1:]:
        for mine, theirs in zip(logged, other, strict=True):
            for name in ("loss", "ce_loss", "kd_loss"):
                assert theirs[name] == pytest.approx(mine[name], rel=2e-5)
        assert_same(others, gradients)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_packed_batches_have_no_padding_and_the_same_gradient(family: str, tmp_path: Path) -> None:
    """Attention keeps packed examples apart by their positions; here the kernel that every CPU has does so."""
    padded, gradients, _ = run(family, tmp_path)
    collator = Collator(padding_id(tiny_tokenizer(family)), packed=True)
    packed, others, trainer = run(family, tmp_path, collator=collator)
    assert packed[0]["loss"] == pytest.approx(padded[0]["loss"], rel=2e-5)
    assert_same(others, gradients)
    examples = trainer.train_dataset
    batch = collator([examples[i] for i in range(len(examples))])
    assert batch["input_ids"].shape == (1, sum(examples.lengths)) and "attention_mask" not in batch


def test_packing_is_for_kernels_that_can_do_it() -> None:
    tokenizer, model = tiny_tokenizer("llama"), tiny_model("llama")
    assert not make_collator(model, tokenizer).packed
    model.config._attn_implementation_internal = "flash_attention_2"
    assert make_collator(model, tokenizer).packed
    assert not make_collator(model, tokenizer, tiny_model("llama", seed=3)).packed


@pytest.mark.parametrize(
    ("family", "packed"), [("llama", True), ("gemma2", True), ("lfm2", False), ("qwen3_next", False), ("mamba", False)]
)
def test_packing_is_not_for_states_that_go_on(family: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_of(family)
    assert bears_packing(model) == packed
    monkeypatch.setattr(batches, "bears_packing", lambda other: bears_packing(tiny_of(family)))
    model.config._attn_implementation_internal = "flash_attention_2"
    assert make_collator(model, tiny_tokenizer("llama")).packed == packed


@pytest.mark.parametrize(
    ("family", "doubtful"),
    [("llama", ()), ("llama", ("e1", "e6")), ("t5", ()), ("t5", ("e0",))],
)
def test_loss_and_gradient_are_the_plain_formulas(family: str, doubtful: tuple[str, ...], tmp_path: Path) -> None:
    """The definition, one example at a time without padding, over the model's own logits in float64.

    Of doubtful rows the teacher's weight is 1.
    """
    logged, gradients, _ = run(family, tmp_path, 4, 2, doubtful=doubtful, learning_rate=0.0)
    tokenizer = tiny_tokenizer(family)
    student, teacher = tiny_model(family, seed=1).double(), tiny_model(family, seed=2, hidden=48).double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in encoded(8, tokenizer):
        prompt, response = row["prompt_ids"], torch.tensor(row["response_ids"])
        logits = []
        for model in (student, teacher):
            if model.config.is_encoder_decoder:
                output = model(input_ids=torch.tensor([prompt]), labels=response[None]).logits[0]
            else:
                output = model(input_ids=torch.tensor([prompt + row["response_ids"]])).logits[0, len(prompt) - 1 : -1]
            logits.append(output)
        ce = nn.functional.cross_entropy(logits[0], response, reduction="none")
        kd = naive("jsd", logits[0], logits[1].detach(), 2.0)
        weight = 1.0 if row["id"] in doubtful else 0.6
        total = total + ((1 - weight) * ce + weight * 4 * kd).sum()
        count += len(response)
    (total / count).backward()
    assert logged[0]["loss"] == pytest.approx(float(total.detach()) / count, rel=1e-4)  # the log rounds
    exact = {name: p.grad.float() for name, p in student.named_parameters() if p.grad is not None}
    assert_same(gradients[:1], [exact])


def test_text_in_doubt_has_the_teachers_whole_weight(tmp_path: Path) -> None:
    """Whatever else the row counts, and whatever the weight of the stage is."""
    _, _, trainer = run("llama", tmp_path, count=1)
    batch = {
        "ids": ["e1", "e2", "e1"],
        "counts": [1, 2, 1],
        "doubtful": [True, False, False],
        "targets": torch.zeros(4),
    }
    for weights, found in (({}, [1, 1, 1]), ({"e1": 1.5, "e2": 0.3}, [1.5, 0.3, 1.5])):
        trainer.row_weights = weights
        expected = torch.tensor([found[0] / 0.6, found[1], found[1], found[2]])
        torch.testing.assert_close(trainer._weights_of(batch), expected)


@pytest.mark.parametrize("family", in_turn(["llama", "gpt2", "t5"], "gpt2", "t5"))
def test_other_padding_and_other_order(family: str, tmp_path: Path) -> None:
    """Neither the id that pads nor the order within a batch matters; for gpt2 pad is the end of sequence."""
    logged, gradients, _ = run(family, tmp_path)
    base = make_collator(tiny_model(family), tiny_tokenizer(family))
    for changes in ({"collator": Collator(77, base.decoder_start_id)}, {"seed": 5}):
        other, others, _ = run(family, tmp_path, **changes)
        assert other[0]["loss"] == pytest.approx(logged[0]["loss"], rel=2e-5)
        assert_same(others, gradients)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_models_own_logits_give_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The path for sharded models and adapters on the head."""
    logged, gradients, _ = run(family, tmp_path)
    monkeypatch.setattr(DistillTrainer, "_head_is_reachable", lambda *arguments: False)
    other, others, _ = run(family, tmp_path, 2, 4)
    assert other[0]["loss"] == pytest.approx(logged[0]["loss"], rel=2e-5)
    assert_same(others, gradients)


def test_softcapped_heads_are_capped_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2: the head's weights alone are not the model's logits, nor are its raw logits."""
    logged, gradients, _ = run("gemma2", tmp_path)
    monkeypatch.setattr(DistillTrainer, "_head_is_reachable", lambda *arguments: False)
    other, others, _ = run("gemma2", tmp_path)
    assert other[0]["loss"] == pytest.approx(logged[0]["loss"], rel=2e-5)
    assert_same(others, gradients)


def test_plain_fine_tuning_is_cross_entropy(tmp_path: Path) -> None:
    logged, gradients, _ = run("llama", tmp_path, settings=LossSettings())
    student, tokenizer = tiny_model("llama", seed=1), tiny_tokenizer("llama")
    batch = make_collator(student, tokenizer)(list(encoded(8, tokenizer)))
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["index"] + 1] = batch["targets"]
    output = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
    output.loss.backward()
    assert logged[0]["loss"] == pytest.approx(output.loss.item(), rel=1e-4)
    assert_same(gradients, [{name: p.grad for name, p in student.named_parameters() if p.grad is not None}])


def test_padding_rows_of_the_head_stay_untouched(tmp_path: Path) -> None:
    """Qwen2.5: widths that differ in one family. Surplus rows get no gradient through the loss."""
    tokenizer = tiny_tokenizer("qwen2")
    student, teacher = tiny_model("llama", vocab_size=420, seed=1), tiny_model("llama", vocab_size=410, seed=2)
    recorder = Recorder()
    trainer = DistillTrainer(
        student, arguments(tmp_path, 8, 1), train_dataset=encoded(8, tokenizer), processing_class=tokenizer,
        objective=SETTINGS, teacher=LiveTeacher(teacher, 410),
    )  # fmt: skip
    trainer.add_callback(recorder)
    trainer.train()
    gradient = recorder.steps[0]["lm_head.weight"]
    assert (gradient[410:] == 0).all() and (gradient[:410] != 0).any()


def test_student_text_is_trained_without_cross_entropy(tmp_path: Path) -> None:
    """With the student as the only writer, cross-entropy is out of the loss and the teacher scores its text.

    It counts the same where the prompt's own text is in doubt.
    """
    logged, _, trainer = run("llama", tmp_path, rollouts=OnPolicy(1.0), doubtful=("e1", "e6"))
    assert logged[0]["ce_loss"] == 0 and logged[0]["kd_loss"] > 0
    assert logged[0]["loss"] == pytest.approx(0.6 * 4 * logged[0]["kd_loss"], rel=1e-3)
    batch = trainer._by_student([{"id": "x", "prompt_ids": [7, 8], "response_ids": [9, 2]}])
    assert batch["targets"].tolist() == [9, 2] and (batch["reference"] == 0).all()
    assert batch["input_ids"].tolist() == [[7, 8, 9, 2]] and batch["index"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("family", "rollouts"),
    [
        pytest.param("llama", OnPolicy(0.5), id="llama-mixed"),
        pytest.param("t5", AdaptiveOffPolicy(0.7), id="t5-adaptive"),
        pytest.param("llama", AdaptiveOffPolicy(0.7), id="llama-adaptive", marks=pytest.mark.slow),
        pytest.param("t5", OnPolicy(0.5), id="t5-mixed", marks=pytest.mark.slow),
    ],
)
def test_student_text_does_not_depend_on_the_split(family: str, rollouts: Any, tmp_path: Path) -> None:
    outcomes = [
        run(family, tmp_path, m, a, count=22, rollouts=copy.deepcopy(rollouts), learning_rate=1e-4)
        for m, a in ((8, 1), (2, 4))
    ]
    assert [row["loss"] for row in outcomes[0][0]] == pytest.approx([row["loss"] for row in outcomes[1][0]], rel=1e-4)
    assert_same(outcomes[1][1], outcomes[0][1], 1e-3)


def test_every_epoch_sees_every_example_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    original = DistillTrainer.loss_of

    def spy(self: Any, model: Any, inputs: Any, items: Any) -> Any:
        seen.append(inputs.get("ids", []))
        return original(self, model, inputs, items)

    monkeypatch.setattr(DistillTrainer, "loss_of", spy)
    run("llama", tmp_path, 2, 2, count=11, num_train_epochs=3)
    names = [name for ids in seen for name in ids]
    epochs = [names[start : start + 11] for start in range(0, 33, 11)]
    assert len(names) == 33
    assert all(sorted(epoch) == sorted(f"e{i}" for i in range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_resumed_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    """Stopped within an epoch, its last checkpoint torn; weights, optimizer, order and rollouts come back."""

    def trainer(folder: Path, stop_at: int | None = None) -> DistillTrainer:
        tokenizer = tiny_tokenizer("llama")
        student, teacher = tiny_model("llama", seed=1), tiny_model("llama", seed=2, hidden=48)

        class Stop(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                control.should_training_stop = state.global_step == stop_at

        made = DistillTrainer(
            student, arguments(folder, 2, 2, num_train_epochs=2, save_strategy="steps", save_steps=2, max_grad_norm=1),
            train_dataset=encoded(19, tokenizer), processing_class=tokenizer, objective=SETTINGS,
            teacher=LiveTeacher(teacher), method=Writing(AdaptiveOffPolicy(0.8, capacity=9), Decoding(5, 1.0)),
        )  # fmt: skip
        made.add_callback(Stop())
        return made

    whole = trainer(tmp_path / "whole")
    whole.resume()
    broken = trainer(tmp_path / "broken", stop_at=7)
    broken.resume()
    torn = tmp_path / "broken" / "checkpoint-7"
    torn.mkdir(exist_ok=True)
    for name in (STATE_FILE, "trainer_state.json"):
        (torn / name).write_text("{", encoding="utf-8")
    resumed = trainer(tmp_path / "broken")
    resumed.resume()
    assert not torn.exists()
    assert resumed.state.global_step == whole.state.global_step == 10
    for (name, mine), theirs in zip(
        resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):  # fmt: skip
        assert torch.equal(mine, theirs), name
    assert resumed.rollouts is not None and whole.rollouts is not None
    assert resumed.rollouts.state() == whole.rollouts.state()
    assert not list(tmp_path.glob("**/training_args.bin"))


@pytest.mark.parametrize("select_by", ["loss", "rouge_l"])
def test_a_validation_that_is_not_finite_is_an_error(select_by: str, tmp_path: Path) -> None:
    """Nothing is better than NaN, so that the first checkpoint would stay the best."""
    student, tokenizer = tiny_model("llama", seed=1), tiny_tokenizer("llama")
    trainer = DistillTrainer(
        student, arguments(tmp_path, 8, 1, metric_for_best_model=select_by), train_dataset=encoded(8, tokenizer),
        processing_class=tokenizer, objective=LossSettings(),
        eval_dataset=Validation(encoded(2, tokenizer, 1), [["a"]] * 2, Decoding(2), generate=select_by == "rouge_l"),
    )  # fmt: skip
    assert all(np.isfinite(value) for value in trainer.evaluate().values())
    for weights in student.parameters():
        weights.data.fill_(torch.nan)
    with pytest.raises(RunError, match=r"(?i)nan"):
        trainer.evaluate()
    trainer.state.global_step = 3  # it has made steps: they have spoilt the weights, and no file
    said = {"loss": "eval_loss is nan", "rouge_l": "The training has made the weights .* not finite: .*embed_tokens"}
    with pytest.raises(RunError, match=rf"^{said[select_by]}.* step 3 .*learning_rate"):
        trainer.evaluate()


def test_a_first_validation_that_is_not_finite_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No later validation would be above NaN, so that the threshold would never rise."""
    student, tokenizer, rollouts = tiny_model("llama", seed=1), tiny_tokenizer("llama"), AdaptiveOffPolicy()
    trainer = DistillTrainer(
        student, arguments(tmp_path, 8, 1), train_dataset=encoded(8, tokenizer), processing_class=tokenizer,
        objective=LossSettings(), eval_dataset=Validation(encoded(2, tokenizer, 1), [["a"]] * 2),
        method=Writing(rollouts, Decoding(2)),
    )  # fmt: skip
    monkeypatch.setattr(trainer_module, "validation_loss", lambda *arguments: torch.nan)
    with pytest.raises(RunError, match="eval_loss is nan at the validation of step 0"):
        trainer.validate_first()
    assert rollouts.wants_reference


def test_several_gpus_without_a_launcher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One is used, and it is said how to use all: nn.DataParallel would show the loss the first replica alone."""
    args = arguments(tmp_path, 8, 1)
    args._n_gpu = 2
    logging.getLogger("srd").propagate = True
    tokenizer = tiny_tokenizer("llama")
    trainer = DistillTrainer(
        tiny_model("llama"),
        args,
        train_dataset=encoded(8, tokenizer),
        processing_class=tokenizer,
        objective=LossSettings(),
    )
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 8
    assert "torchrun --nproc-per-node 2 -m srd run" in caplog.text
    trainer.train()
    assert not isinstance(trainer.model_wrapped, nn.DataParallel)


HALF: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float16 base, float32": (torch.float16, {}),
    "float16 base, bfloat16 autocast": (torch.float16, {"bf16": True}),
    "bfloat16 base, float32": (torch.bfloat16, {}),
}


@pytest.mark.parametrize("case", in_turn(HALF, "float16 base, float32"))
def test_adapters_on_half_precision_bases_get_the_whole_gradient(case: str, tmp_path: Path) -> None:
    """As of a float32 base, though a token's share of the step's loss is below what float16 can hold."""

    def adapted(kind: torch.dtype) -> Any:
        base = tiny_model("llama", seed=1, vocab_size=4000)
        base.lm_head.weight.data.mul_(0.1)
        model = add_lora(base.to(kind), LoraConfig(r=4, alpha=8, dropout=0.0))
        generator = torch.Generator().manual_seed(0)
        for _, weights in sorted((n, w) for n, w in model.named_parameters() if w.requires_grad):
            weights.data = torch.randn(weights.shape, generator=generator) * 0.1
        return model

    (dtype, changes), tokenizer, found = HALF[case], tiny_tokenizer("llama"), []
    teacher = tiny_model("llama", seed=2, vocab_size=4000)
    for kind, more in ((torch.float32, {}), (dtype, changes)):
        recorder = Recorder()
        trainer = DistillTrainer(
            adapted(kind), arguments(tmp_path, 64, 1, **more), train_dataset=encoded(64, tokenizer),
            processing_class=tokenizer, objective=LossSettings("fkl", {}, 2.0), teacher=LiveTeacher(teacher),
        )  # fmt: skip
        trainer.add_callback(recorder)
        trainer.train()
        found.append(torch.cat([gradient.flatten() for gradient in recorder.steps[0].values()]))
    assert float(found[1].norm() / found[0].norm()) == pytest.approx(1, abs=0.01)
    assert torch.cosine_similarity(found[1], found[0], 0) > 0.999


def test_half_precision_weights_are_trained_as_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = tiny_model("t5").to(dtype)
        widen(model, scaled=True)
        assert {weights.dtype for weights in model.parameters()} == {torch.float32}
    frozen = tiny_model("llama").half().requires_grad_(False)
    widen(frozen, scaled=True)
    assert {weights.dtype for weights in frozen.parameters()} == {torch.float16}
    widen(frozen, scaled=False)
    assert {weights.dtype for weights in frozen.parameters()} == {torch.float32}


@pytest.mark.parametrize("guilty", ["student", "teacher", "rows"])
def test_a_loss_that_is_not_finite_names_the_guilty(
    guilty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that became NaN after the model was tried out; and a loss that is NaN though all weights are finite."""
    models = {"student": tiny_model("llama", seed=1), "teacher": tiny_model("llama", seed=2)}
    teacher = LiveTeacher(models["teacher"])
    logit_rule(models["student"])
    message = r"the loss is nan at step 0 .*All weights of the student .* with the examples \['e\d"
    if guilty == "rows":
        nothing = LossParts(torch.zeros(1), torch.zeros(1))
        lost = torch.tensor(torch.nan, requires_grad=True)
        monkeypatch.setattr(trainer_module, "head_loss", lambda *a, **k: (lost, nothing))
    else:
        models[guilty].model.norm.weight.data[0] = torch.nan
        message = rf"the loss is nan at step 0 .*weights of the {guilty} .*tensor 'model.norm.weight' \(1 of its 32"
    with pytest.raises(RunError, match=message):
        run("llama", tmp_path, student=models["student"], teacher=teacher)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_models_whose_head_is_not_enough_train_on_their_own_logits(family: str, tmp_path: Path) -> None:
    """Teacher and student that scale their logits in a way of their own: loss and gradient as of heads that do."""

    def models(odd: bool) -> tuple[Any, Any]:
        made = tiny_model(family, seed=1), tiny_model(family, seed=2, hidden=48)
        for model in made:
            plain = model.forward

            def forward(*args: Any, plain: Any = plain, **arguments: Any) -> Any:
                output = plain(*args, **arguments)
                output.logits = 1.5 * output.logits
                return output

            if odd:
                model.forward = forward
            else:
                model.get_output_embeddings().weight = nn.Parameter(1.5 * model.get_output_embeddings().weight.data)
        return made

    def trained(odd: bool) -> tuple[Any, Any]:
        student, teacher = models(odd)
        rows, gradients, _ = run(
            family, tmp_path / str(odd), student=student, teacher=live(TeacherSource(lambda: teacher, 400))
        )
        return rows[0]["loss"], {name: value for name, value in gradients[0].items() if "norm" in name}

    (loss, gradient), (expected, other) = trained(True), trained(False)
    assert loss == pytest.approx(expected, rel=2e-5)
    assert_same([gradient], [other])


def test_an_objective_without_a_teacher_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("llama")
    with pytest.raises(UserError, match="the objective 'fkl' needs a teacher"):
        DistillTrainer(
            tiny_model("llama"), arguments(tmp_path, 8, 1), train_dataset=encoded(8, tokenizer),
            processing_class=tokenizer, objective=LossSettings("fkl"),
        )  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "t5", "gemma2"])
def test_validation_loss_is_the_mean_over_tokens(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(family)
    collator, examples = make_collator(model, tokenizer), encoded(9, tokenizer)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in examples:
            batch = collator([row])
            logits = response_logits(model, batch)
            total += nn.functional.cross_entropy(logits.float(), batch["targets"], reduction="sum").item()
            count += len(batch["targets"])
    for size in (1, 4, 32):
        validation = Validation(examples, [[""]] * 9, batch_size=size)
        assert validation_loss(model, validation, collator) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("family", in_turn(["llama", "t5"], "llama"))
def test_gradient_checkpointing_changes_nothing_but_memory(family: str, tmp_path: Path) -> None:
    logged, gradients, _ = run(family, tmp_path, 4, 2)
    other, others, _ = run(family, tmp_path, 4, 2, gradient_checkpointing=True)
    assert other[0]["loss"] == pytest.approx(logged[0]["loss"], rel=1e-6)
    assert_same(others, gradients)


def test_bfloat16_autocast_is_near_and_keeps_float32_weights(tmp_path: Path) -> None:
    logged, gradients, _ = run("llama", tmp_path, 4, 2)
    other, others, trainer = run("llama", tmp_path, 4, 2, bf16=True)
    assert other[0]["loss"] == pytest.approx(logged[0]["loss"], rel=0.03)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert all(gradient.dtype == torch.float32 for gradient in others[0].values())
    assert_same(others, gradients, 0.1)


def test_autocast_does_not_keep_the_loss_from_the_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The Trainer wraps the forward pass in autocast; measured behind that, a head looks like no plain product."""
    _, _, trainer = run("llama", tmp_path, 4, 1, bf16=True)
    assert logit_rule(trainer.accelerator.unwrap_model(trainer.model)).head
    assert "do not follow" not in caplog.text


@pytest.mark.parametrize("targets", [None, ["q_proj", "lm_head"]], ids=["usual", "head"])
def test_adapters_do_not_depend_on_the_split(targets: list[str] | None, tmp_path: Path) -> None:
    """LoRA, also on the head itself, where the loss goes through the model's own logits."""

    def adapted() -> Any:
        model = add_lora(tiny_model("llama", seed=1), LoraConfig(r=4, alpha=8, dropout=0.0, targets=targets))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
                assert "lora" in name
        return model

    outcomes = [run("llama", tmp_path, m, a, student=adapted()) for m, a in ((8, 1), (2, 4))]
    assert outcomes[1][0][0]["loss"] == pytest.approx(outcomes[0][0][0]["loss"], rel=2e-5)
    assert all("lora" in name for name in outcomes[0][1][0])
    assert any("lm_head" in name for name in outcomes[0][1][0]) == (targets is not None)
    assert_same(outcomes[1][1], outcomes[0][1])
