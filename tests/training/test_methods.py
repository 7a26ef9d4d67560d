"""Every way of training, plain and on a curriculum, through the one loop; adapters, precisions and plugins with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.run.flow import advance
from srd.run.steps import training as training_step
from srd.training.methods.distillm import DistillmMethod
from srd.training.trainer import DistillTrainer
from srd.training.training import Training
from tests.runs import TinyRun, close, in_turn, logged, steps_finished
from tests.tiny import tiny_tokenizer

MakeRun = Callable[..., TinyRun]
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "seqkd": {"name": "seqkd", "max_new_tokens": 8},
    "kd": {"name": "kd"},
    "gkd": {"name": "gkd", "max_new_tokens": 8, "student_share": 1.0},
    "gkd-mixed": {"name": "gkd", "max_new_tokens": 8, "student_share": 0.5},
    "distillm": {"name": "distillm", "max_new_tokens": 8, "student_share": 0.6, "capacity": 12},
}


def losses(run_dir: Path, variant: str) -> list[float]:
    return [row["loss"] for row in logged(run_dir) if row["arm"] == variant and "loss" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", in_turn(METHODS, "distillm"))
def test_every_method_plain_and_with_curriculum(tiny_run: TinyRun, method: str) -> None:
    plain = {"curriculum": None, "epochs": 2}
    tiny_run.set(training__method=METHODS[method], training__curriculum={"stages": 2}, baselines={"plain": plain})
    tiny_run.set(data__train_limit=16)
    run = tiny_run.train()
    start = weights(tiny_run.student)
    for folder, steps in ((run.folder, 1 + 2), (run.folder / "baselines/plain", 2 * 2)):
        trained = weights(folder / "student")
        assert sum(read_json(path)["steps"] for path in folder.glob("stages/*/metrics.json")) == steps
        assert all(torch.isfinite(value).all() for value in trained.values())
        assert any(not torch.equal(start[name], value) for name, value in trained.items())
    assert losses(run.folder, "srd") and losses(run.folder, "plain")
    # The cache is for text that is known beforehand; the teacher's text is for seqkd alone.
    steps = steps_finished(run.folder)
    assert ("cache" in steps) == (method == "kd")
    assert ("teacher text" in steps) == (method == "seqkd")


def test_seqkd_trains_on_what_the_teacher_wrote(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Training] = []
    original = training_step.train

    def spy(training: Training, final: Path) -> dict[str, Any]:
        seen.append(training)
        return original(training, final)

    monkeypatch.setattr(training_step, "train", spy)
    tiny_run.set(training__method=METHODS["seqkd"], training__curriculum=None)
    run = tiny_run.train()
    written = pq.read_table(run.folder / "seqkd/responses.parquet").to_pydict()
    by_id = dict(
        zip(written["id"], zip(*(written[c] for c in ("response", "tokens", "ended")), strict=True), strict=True)
    )
    references = {row["id"]: row["references"][0] for row in run.split("train")}
    tokenizer = tiny_tokenizer("llama")
    (training,) = seen
    assert training.label == "seqkd" and len(training.examples) == len(by_id) == 32
    assert not all(written["ended"])  # eight tokens are few, and what was cut has no end
    for name, ids in zip(training.examples.ids, training.examples.responses, strict=True):
        text, tokens, ended = by_id[name]
        assert text != references[name]
        assert ids == tokens + [tokenizer.eos_token_id] * ended
        assert len(tokens) == 8 or ended
    # ... and the teacher's text is what the teacher itself answers.
    teacher = AutoModelForCausalLM.from_pretrained(tiny_run.teacher)
    row = run.split("train")[0]
    (prompt,), _, _ = run.encoder.prompts([row])
    answer = teacher.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(answer[0][len(prompt) :], skip_special_tokens=True) == by_id[row["id"]][0]
    assert answer[0][len(prompt) :].tolist()[: len(by_id[row["id"]][1])] == by_id[row["id"]][1]


def test_the_teachers_text_survives_a_second_run(tiny_run: TinyRun) -> None:
    tiny_run.set(training__method=METHODS["seqkd"], training__curriculum=None, data__train_limit=16).train()
    before = steps_finished(tiny_run.run_dir)
    tiny_run.train()
    assert steps_finished(tiny_run.run_dir) == before


@pytest.mark.parametrize(("method", "by_student"), [("gkd", 4), ("gkd-mixed", None), ("kd", 0)])
def test_who_writes_the_batches(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, method: str, by_student: int | None
) -> None:
    """Student text carries no cross-entropy: its batches are marked, and their reference mask is zero."""
    references: list[float] = []
    original = DistillTrainer.loss_of

    def spy(self: DistillTrainer, model: Any, inputs: dict[str, Any], items: torch.Tensor) -> Any:
        mask = inputs.get("reference")
        references.append(1.0 if mask is None else float(mask.mean()))
        return original(self, model, inputs, items)

    answers: list[list[int]] = []
    write = DistillTrainer._write

    def writing(self: DistillTrainer, rows: list[dict[str, Any]]) -> list[list[int]]:
        answers.extend(written := write(self, rows))
        return written

    monkeypatch.setattr(DistillTrainer, "loss_of", spy)
    monkeypatch.setattr(DistillTrainer, "_write", writing)
    tiny_run.set(training__method=METHODS[method], training__curriculum=None, training__weight=0.5)
    run = tiny_run.set(training__epochs=1).train()
    told = [row["cut_answers"] for row in logged(run.folder) if "cut_answers" in row]
    cut = [answer[-1] != run.tokenizer.eos_token_id for answer in answers]
    assert (sum(told) / len(told) == pytest.approx(sum(cut) / len(cut))) if answers else not told
    assert len(references) == 4 and set(references) <= {0.0, 1.0}
    if by_student is not None:
        assert references.count(0.0) == by_student
    else:
        settings = tiny_run.open(tiny_run.folder / "other").recipe.training.method
        rollouts = settings.rollouts(0)
        assert settings.written_share() == 0.5 and rollouts is not None
        assert references == [float(rollouts.writer(step, 4) == "data") for step in range(4)]


def test_distillm_keeps_threshold_reference_and_buffer_through_stages(
    make_tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first validation comes before training; nothing begins anew with a stage."""
    made: list[Any] = []
    states: list[Any] = []
    original = DistillmMethod.rollouts

    def spy(self: DistillmMethod, seed: int) -> Any:
        states.extend(copy.deepcopy(each.state()) for each in made[-1:])
        made.append(original(self, seed))
        return made[-1]

    monkeypatch.setattr(DistillmMethod, "rollouts", spy)
    method = {**METHODS["distillm"], "student_share": 0.5, "share_step": 0.125, "capacity": 99}
    tiny_run = make_tiny_run(teacher={"layers": 4}, student={"layers": 2}).set(generation__max_new_tokens=8)
    tiny_run.set(training__method=method, training__curriculum={"stages": 2}, training__learning_rate=0.3)
    tiny_run.set(training__epochs=2).train()
    made, states = made[1:], states[1:]  # the first is of the checks before any work
    assert [each.steps_before for each in made] == [0, 4] and {each.steps_in_all for each in made} == {10}
    assert [(each.seed, each.wants_reference) for each in made] == [(made[0].seed, False)] * 2
    assert read_json(tiny_run.run_dir / "stages/0/rollouts.json") == states[0]
    validation = [row["eval_loss"] for row in logged(tiny_run.run_dir) if "eval_loss" in row]
    # Training lowers the loss here, so that threshold and reference stay what they were before it.
    assert made[0].reference_loss == made[1].reference_loss > max(validation)
    assert made[0].threshold == made[1].threshold == 0.5
    old = {(row["id"], row["written"]) for row in states[0]["buffer"]}
    assert old and {"id", "prompt_ids", "response_ids", "written"} <= set(made[1].buffer[0])
    assert old <= {(row["id"], row["written"]) for row in made[1].buffer}


def test_reflecting_again_ranks_with_the_student_as_it_is_then(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run.set(training__curriculum={"reflect_again": True}, training__learning_rate=5e-3)
    run = tiny_run.train()
    first = pq.read_table(run.folder / "reflection/scores.parquet").to_pydict()
    for stage in (1, 2):
        later = pq.read_table(run.folder / f"stages/{stage}/scores.parquet").to_pydict()
        assert later["id"] == first["id"]
        assert sum(later["ce"]) < sum(first["ce"])
    assert not list(run.folder.glob("stages/*/batches"))
    assert " ".join(capsys.readouterr().err.split()).count("has learnt rows of the stages before: what it knows") == 1


# ------------------------------------------------------------------------------------------------------------ adapters

LORA = {"r": 4, "alpha": 8, "dropout": 0.1}


@pytest.mark.parametrize("family", in_turn(["llama", "gpt2", "t5"], "gpt2"))
def test_lora_merged(make_tiny_run: MakeRun, family: str) -> None:
    tiny = make_tiny_run(family)
    tiny.set(training__lora=LORA, training__learning_rate=5e-3, training__curriculum={"stages": 2})
    run = tiny.set(data__train_limit=16).train()
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    start, trained = auto.from_pretrained(tiny.student), auto.from_pretrained(run.folder / "student")
    assert not (run.folder / "student/adapter_config.json").exists()
    changed = [name for name, value in start.state_dict().items() if not torch.equal(value, trained.state_dict()[name])]
    assert changed and all("attn" in name or "attention" in name.lower() for name in changed)
    for stage in range(2):
        assert (run.folder / f"stages/{stage}/model/adapter_model.safetensors").exists()


@pytest.mark.slow  # a saved adapter is a student or teacher by itself, below
def test_lora_adapter_beside_its_base(tiny_run: TinyRun) -> None:
    tiny_run.set(training__lora={**LORA, "merge": False}, training__learning_rate=5e-3)
    run = tiny_run.set(data__train_limit=16, training__curriculum={"stages": 1}).advance()
    assert (run.folder / "student/adapter_model.safetensors").exists()
    assert not (run.folder / "student/model.safetensors").exists()
    model = AutoModelForCausalLM.from_pretrained(run.folder / "student")
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "student")
    adapter = load_file(run.folder / "student/adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)
    prompt = tokenizer("Name the whale.", return_tensors="pt")
    base = AutoModelForCausalLM.from_pretrained(tiny_run.student)
    assert not torch.allclose(model(**prompt).logits, base(**prompt).logits)
    assert set(read_json(run.folder / "evaluation/metrics.json")) == {"teacher", "student", "srd"}


def test_one_adapter_goes_through_all_stages(tiny_run: TinyRun) -> None:
    """Merged student = start + the last stage's adapter alone, and each stage goes on from the one before."""
    tiny_run.set(training__lora=LORA, training__learning_rate=5e-3, training__select_by="last")
    run = tiny_run.set(data__train_limit=16).train()
    adapters = [load_file(run.folder / f"stages/{stage}/model/adapter_model.safetensors") for stage in range(3)]
    assert adapters[0].keys() == adapters[2].keys()
    name = next(name for name in adapters[2] if "lora_A" in name)
    scale = LORA["alpha"] / LORA["r"]
    delta = scale * adapters[2][name.replace("lora_A", "lora_B")] @ adapters[2][name]
    plain = name.removeprefix("base_model.model.").replace(".lora_A", "")
    torch.testing.assert_close(
        weights(run.folder / "student")[plain], weights(tiny_run.student)[plain] + delta, atol=1e-6, rtol=1e-5
    )


@pytest.mark.slow  # a saved adapter is a teacher by itself, below
def test_teacher_as_base_plus_adapter(make_tiny_run: MakeRun) -> None:
    """A teacher's adapter is merged on loading and counts: it is another teacher than its base."""
    first = make_tiny_run()
    first.set(training__lora={**LORA, "merge": False}, training__method="sft", training__curriculum=None,
              training__learning_rate=5e-2, data__train_limit=16)  # fmt: skip
    adapter = first.train().folder / "student"
    runs = []
    for teacher in ({"model": str(first.student), "adapter": str(adapter)}, {"model": str(first.student)}):
        tiny = make_tiny_run()
        tiny.set(teacher=teacher, training__curriculum=None, data__train_limit=16)
        runs.append(tiny.train())
    kept = [read_json(run.folder / "manifest.json")["steps"]["teacher"]["fingerprint"] for run in runs]
    assert kept[0] != kept[1]
    assert losses(runs[0].folder, "kd") != losses(runs[1].folder, "kd")


# --------------------------------------------------------------------------------------------- memory and precision


PLAIN = {"learning_rate": 5e-3}
ADAPTED = {**PLAIN, "lora": {**LORA, "dropout": 0.0}}
WAYS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "plain-checkpointed": {**PLAIN, "gradient_checkpointing": True},
    "plain-in-micro-batches": {**PLAIN, "micro_batch_size": 2},
    "plain-in-bfloat16": {**PLAIN, "precision": "bfloat16"},
    "adapted": ADAPTED,
    "adapted-checkpointed": {**ADAPTED, "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Plain distillation in several ways, from the same examples and the same cache; read only."""
    tiny = TinyRun(tmp_path_factory.mktemp("ways"))
    tiny.set(training__curriculum=None, training__precision="float32", baselines=WAYS).train()
    return tiny


@pytest.mark.xdist_group("ways")
@pytest.mark.parametrize(
    ("one", "other"),
    [("plain", "plain-checkpointed"), ("plain", "plain-in-micro-batches"), ("adapted", "adapted-checkpointed")],
)
def test_what_saves_memory_changes_nothing(ways: TinyRun, one: str, other: str) -> None:
    assert len(losses(ways.run_dir, one)) == 2  # of four steps
    assert losses(ways.run_dir, other) == pytest.approx(losses(ways.run_dir, one), rel=1e-4)


def test_micro_batches_change_no_method(tmp_path: Path) -> None:
    """Row by row, too, where the last step is a short one: of seven rows, or their fourteen texts, by four."""
    writing = {name: {"name": name, "max_new_tokens": 8} for name in ("distillm2", "entropy_aware")}
    own = {"gkd-mixed": METHODS["gkd-mixed"], "taid": {"name": "taid"}, **writing}
    apart = {f"{name}-{size}": {"method": own[name], "micro_batch_size": size} for name in own for size in (1, 4)}
    tiny = TinyRun(tmp_path)
    tiny.set(training__curriculum=None, training__batch_size=4, training__epochs=1, data__train_limit=7)
    tiny.set(baselines=apart).train()
    for name in own:
        one, whole = (weights(tiny.run_dir / "baselines" / f"{name}-{size}" / "student") for size in (1, 4))
        for key, tensor in whole.items():
            torch.testing.assert_close(one[key], tensor, atol=2e-5, rtol=1e-3, msg=f"{name}: {key}")


@pytest.mark.xdist_group("ways")
def test_bfloat16_autocast_is_close_to_float32(ways: TinyRun) -> None:
    for way in ("plain", "plain-in-bfloat16"):
        kept = weights(ways.run_dir / "baselines" / way / "student").values()
        assert {value.dtype for value in kept} == {torch.float32}
    found = [losses(ways.run_dir, way) for way in ("plain", "plain-in-bfloat16")]
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.xdist_group("ways")
def test_teacher_in_bfloat16_beside_a_float32_student(ways: TinyRun, tiny_run: TinyRun) -> None:
    tiny_run.set(teacher={"model": str(tiny_run.teacher), "dtype": "bfloat16"}, training__curriculum=None).train()
    for dtype, stored, folder in (("float32", "float16", ways.run_dir), ("bfloat16", "bfloat16", tiny_run.run_dir)):
        (head,) = folder.glob("cache/*/head.safetensors")
        assert load_file(head)["weight"].dtype == getattr(torch, dtype)
        (shard,) = folder.glob("cache/*/shard-*.safetensors")
        assert load_file(shard)["hidden"].dtype == getattr(torch, stored)
    assert losses(tiny_run.run_dir, "kd") == pytest.approx(losses(ways.run_dir, "kd"), rel=0.05)


def test_another_teacher_dtype_redoes_what_the_teacher_says(tiny_run: TinyRun) -> None:
    tiny_run.set(training__curriculum=None, data__train_limit=16, cache__dtype="float32").advance("cache")
    (first,) = (tiny_run.run_dir / "cache").iterdir()
    tiny_run.set(teacher={"model": str(tiny_run.teacher), "dtype": "bfloat16"}).advance("cache")
    (second,) = set((tiny_run.run_dir / "cache").iterdir()) - {first}
    states = [load_file(next(folder.glob("shard-*.safetensors")))["hidden"] for folder in (first, second)]
    assert states[0].shape == states[1].shape and not torch.equal(*states)


# ------------------------------------------------------------------------------------------------------------- plugins

PLUGIN = '''
import srd


@srd.register_divergence("{name}")
def half_squared_hellinger(log_p, log_q, factor=1.0):
    """Squared Hellinger distance."""
    return factor * (1 - ((log_p + log_q) / 2).exp().sum(-1))
'''


def test_a_divergence_from_a_plugin(tiny_run: TinyRun) -> None:
    plugin = tiny_run.folder / "my_divergence.py"
    plugin.write_text(PLUGIN.format(name="tiny_hellinger"))
    tiny_run.set(plugins=[str(plugin)], training__objective={"name": "tiny_hellinger", "factor": 2.0})
    tiny_run.set(training__curriculum=None)
    run = tiny_run.train()
    assert run.recipe.training.objective.parameters == {"factor": 2.0}
    rows = [row["kd_loss"] for row in logged(run.folder) if "kd_loss" in row]
    assert rows and all(0 <= value <= 2 for value in rows)


# ---------------------------------------------------------------------------------------------------- learning to stop


@pytest.mark.slow  # that the end of sequence is learnt from: tests/models/test_every_family.py
def test_students_learn_to_stop_where_pad_is_end_of_sequence(make_tiny_run: MakeRun) -> None:
    """Llama has no pad token, so end of sequence pads; a student trained on short answers still ends by itself."""
    tiny = make_tiny_run("llama")
    tiny.set(training__method="sft", training__curriculum=None, training__epochs=40, training__learning_rate=1e-2,
             training__evaluate_every=40, training__select_by="loss", data__train_limit=8)  # fmt: skip
    run = tiny.train()
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "student")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = list(run.split("train"))[:8]
    prompts, _, _ = run.encoder.prompts(rows)
    ended = {}
    for name, folder in (("before", tiny.student), ("after", run.folder / "student")):
        model = AutoModelForCausalLM.from_pretrained(folder)
        answers = [
            model.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False,
                           pad_token_id=tokenizer.eos_token_id)[0][len(prompt):].tolist()
            for prompt in prompts
        ]  # fmt: skip
        ended[name] = sum(answer[-1] == tokenizer.eos_token_id and len(answer) < 32 for answer in answers)
    assert ended["after"] >= 6 > ended["before"]


def test_a_saved_adapter_is_a_student_or_teacher_by_itself(make_tiny_run: MakeRun) -> None:
    """The folder that `lora.merge: false` leaves names its base, so that the next run can start from it."""
    first = make_tiny_run()
    first.set(training__lora={**LORA, "merge": False}, training__learning_rate=5e-3)
    folder = first.set(training__curriculum=None, data__train_limit=16).train().folder / "student"
    second = make_tiny_run()
    second.set(student=str(folder), teacher=str(folder), training__curriculum=None, data__train_limit=16)
    metrics = read_json(second.advance().folder / "evaluation/metrics.json")
    assert metrics["teacher"]["test"]["rouge_l"] == metrics["student"]["test"]["rouge_l"]
    # Teacher and student are one model, so that there is nothing to learn in the first step.
    assert losses(second.run_dir, "kd")[0] == pytest.approx(0, abs=0.01)


OTHER_FRAME = (
    "{% for m in messages %}<|im_start|>[{{ m['role'] }}] {{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>[answer] {% endif %}"
)


def test_the_teacher_writes_in_its_own_frame(make_tiny_run: MakeRun) -> None:
    """With one vocabulary and two chat templates the teacher reads its own, where it writes and is evaluated."""
    tiny = make_tiny_run("qwen2")
    tokenizer = AutoTokenizer.from_pretrained(tiny.teacher)
    tokenizer.chat_template = OTHER_FRAME
    tokenizer.save_pretrained(tiny.teacher)
    tiny.set(data__template="chat", training__method=METHODS["seqkd"], training__curriculum=None)
    tiny.set(evaluation__temperature=0, evaluation__models=["teacher"], generation__max_new_tokens=8)
    run = tiny.set(data__train_limit=8).advance()
    teacher = AutoModelForCausalLM.from_pretrained(tiny.teacher)

    def answer(row: dict[str, Any]) -> list[int]:
        """What the teacher itself says, up to 8 tokens; the end of a turn ends it, whichever frame it belongs to."""
        content = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
        written = teacher.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=ends, pad_token_id=0)
        kept: list[int] = [token for token in written[0, ids.shape[1] :].tolist() if token not in ends]
        return kept

    text = pq.read_table(run.folder / "seqkd/responses.parquet").to_pylist()
    rows = {row["id"]: row for name in ("train", "test") for row in run.split(name)}
    assert all(row["tokens"] == answer(rows[row["id"]]) for row in text[:6])
    predictions = (run.folder / "evaluation/predictions/teacher.test.1.jsonl").read_text().splitlines()
    for line in map(json.loads, predictions):
        assert line["text"] == tokenizer.decode(answer(rows[line["id"]]), skip_special_tokens=True)
    # What it says token by token is asked in the student's frame, and that is told.
    again = tiny.set(training__method="kd").open(tiny.folder / "other")
    advance(again, "cache")
    close(again)
    (told,) = [warning for warning in again.warnings if "chat template of the teacher" in warning]
    assert str(tiny.teacher) in told and str(tiny.student) in told


def test_a_teacher_from_a_plugin(tiny_run: TinyRun) -> None:
    """It teaches what a model with such logits teaches, and with another teacher the training is made again."""
    plugin = tiny_run.folder / "halved.py"
    plugin.write_text(
        "import srd\n\n@srd.register_teacher('halved')\nclass Halved(srd.LogitTeacher):\n"
        "    def logits(self, batch):\n        return super().logits(batch) / 2\n"
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_run.teacher)
    model.lm_head.weight.data /= 2
    model.save_pretrained(tiny_run.folder / "half")
    AutoTokenizer.from_pretrained(tiny_run.teacher).save_pretrained(tiny_run.folder / "half")
    tiny_run.set(training={"method": "kd", "epochs": 1, "batch_size": 4, "curriculum": None}, data__train_limit=8)

    def distilled(teacher: Path, source: str) -> list[float]:
        run = tiny_run.set(teacher={"model": str(teacher), "source": source}).train()
        assert not (run.folder / "cache").exists()
        return [row["kd_loss"] for row in logged(run.folder) if "kd_loss" in row]

    plain = distilled(tiny_run.teacher, "live")
    tiny_run.set(plugins=[str(plugin)])
    halved = distilled(tiny_run.teacher, "halved")
    assert distilled(tiny_run.teacher, "live") == plain  # with the same plugins: the source alone has changed
    assert halved == pytest.approx(distilled(tiny_run.folder / "half", "live"), rel=1e-5)
    assert halved[0] != pytest.approx(plain[0], rel=1e-2)
    with pytest.raises(UserError, match="unknown teacher 'halve'; did you mean 'halved'"):
        distilled(tiny_run.teacher, "halve")
    narrow = tiny_run.folder / "narrow.py"
    narrow.write_text(plugin.read_text().replace("'halved'", "'narrow'").replace(" / 2", "[:, :3]"))
    tiny_run.set(plugins=[str(plugin), str(narrow)])
    with pytest.raises(UserError, match=r"Halved.logits gives \[\d+, 3\], expected a tensor \[\d+, 400\]"):
        distilled(tiny_run.teacher, "narrow")
