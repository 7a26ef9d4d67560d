"""Whole runs with a teacher and a student of different tokenizers, and what of them is refused."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import normalizers
from typer.testing import CliRunner

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.cli import app
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.tokenizers.tokens import tokenizer_identity
from srd.recipe.reading import validate_recipe
from srd.report.reading import read_run
from srd.report.teaching import alignment_table
from srd.run.checks.models import check_alignment
from srd.run.models import RecipeModels
from srd.run.parts.assemble import reader_of
from srd.run.parts.scores import teacher_losses
from srd.run.parts.teacher_caches import place_of_cache
from srd.run.plan.plan import make_plan
from srd.training.alignment import Coverage, warn_of_coverage
from srd.training.cache.teacher_cache import TeacherCache
from srd.training.trainer import DistillTrainer
from tests.faults import in_a_process_of_its_own
from tests.runs import TinyRun, close, logged
from tests.served import serving
from tests.tiny import save_tiny, sentencepiece_tokenizer, tiny_tokenizer

TRAINING = {"epochs": 2, "batch_size": 4, "micro_batch_size": 4, "evaluate_every": 0.5, "select_by": "loss",
            "learning_rate": 3e-3, "curriculum": None, "weight": 0.7}  # fmt: skip


def two_tokenizers(folder: Path, teacher: str = "qwen2", student: str = "llama") -> TinyRun:
    """A teacher of byte-level BPE, and a student that reads SentencePiece."""
    folder.mkdir(exist_ok=True)
    tiny = TinyRun(folder, student, student={"vocab_size": 640})
    save_tiny(folder / "teacher", teacher, layers=2, seed=1)
    sentencepiece_tokenizer().save_pretrained(folder / "student")
    return tiny.set(training=dict(TRAINING), data__train_limit=8, evaluation__models=["student"])


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRun:
    return two_tokenizers(tmp_path / "pair")


def models_of(tiny: TinyRun) -> RecipeModels:
    return RecipeModels(validate_recipe(tiny.recipe, "tiny"))


def test_a_run_by_the_command_line_is_killed_and_goes_on(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["distill", str(tiny.write_recipe()), "--run-dir"]
    whole, killed = (str(tiny.folder / name) for name in ("whole", "killed"))
    original, steps = DistillTrainer.training_step, [0]

    def dies(self: Any, *arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(DistillTrainer, "training_step", dies)
        assert in_a_process_of_its_own(lambda: CliRunner().invoke(app, [*command, killed]))[0] == -signal.SIGKILL
    for folder in (whole, killed):
        assert CliRunner().invoke(app, [*command, folder]).exit_code == 0
    weights = [(Path(folder) / "student/model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    rows = [row for row in logged(Path(whole)) if "loss" in row]
    assert all(0.9 < row["supervised"] <= 1 and 0.9 < row["mass"] <= 1 and row["kd_loss"] > 0 for row in rows)
    step = read_json(Path(whole) / "manifest.json")["steps"]["train/kd"]
    for name in ("supervised", "by_chunks", "mass"):
        assert step["summary"][name] == pytest.approx(sum(row[name] for row in rows) / len(rows), abs=1e-4)
    table = alignment_table(read_run(Path(whole)))
    assert table is not None and table.rows[0][1:] == [step["summary"][n] for n in ("supervised", "by_chunks", "mass")]
    assert list((Path(whole) / "alignment").glob("*.npz"))
    meta = read_json(next(Path(whole).glob("cache/*/meta.json")))
    assert meta["tokenizer"] == tokenizer_identity(models_of(tiny).teacher_tokenizer)


CASES: dict[str, dict[str, Any]] = {
    "the student's own text": {"training__method": {"name": "gkd", "student_share": 1.0, "max_new_tokens": 5}},
    "a teacher tuned on its own tokens, live": {
        "teacher__sft": {"epochs": 1, "batch_size": 8},
        "cache__enabled": False,
    },
    "the teacher's texts": {"training__method": {"name": "seqkd", "max_new_tokens": 5}},
    "scores of both": {"training__curriculum": {"stages": 2, "score": "gap"}},
    "a threshold of entropies": {"training__method": "entropy_aware"},
    "chunks in smaller micro-batches": {"training__alignment": "chunks", "training__micro_batch_size": 1},
}


@pytest.mark.parametrize(
    "case", [*list(CASES)[:1], *(pytest.param(c, marks=pytest.mark.slow) for c in list(CASES)[1:])]
)
def test_every_way_to_learn_goes_with_two_tokenizers(tiny: TinyRun, case: str) -> None:
    run = tiny.set(training__epochs=1, training__evaluate_every=1, **CASES[case]).train()
    assert run.files.student(run.recipe.training.label).is_dir()
    rows = [row for row in logged(tiny.run_dir) if "loss" in row and row["arm"] != "teacher_sft"]
    assert rows and all(row["loss"] > 0 for row in rows)


REPAIR = {"action": "repair", "most": 1.0}
RANKS = {"training__method": "sft", "training__curriculum": {"stages": 2, "score": "gap"}}


@pytest.mark.parametrize("changes", [RANKS, {"training__method": "sft", "data__cleaning": REPAIR}])
def test_a_teacher_that_only_ranks_or_repairs_reads_its_own_tokens(tiny: TinyRun, changes: dict[str, Any]) -> None:
    assert not models_of(tiny.twin().set(training__method="sft")).apart
    assert models_of(tiny.twin().set(**changes)).apart


def test_a_teacher_that_only_ranks_says_what_its_cache_says(tiny: TinyRun) -> None:
    found = []
    for number, method in enumerate(("sft", "kd")):
        run = tiny.twin().set(**RANKS | {"training__method": method})
        run.run_dir = tiny.folder / f"run{number}"
        table = pq.read_table(run.advance("ranking").files.measures).sort_by("id")
        found.append(np.array(table["teacher_ce"]))
    assert found[0] == pytest.approx(found[1], rel=2e-3) and len(set(found[0].round(3))) > 4


def test_how_much_is_supervised_is_told_and_warned_of(tiny: TinyRun, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny.advance("examples")
    logging.getLogger("srd").propagate = True
    with caplog.at_level(logging.INFO, "srd"):
        for method, enough in (("auto", True), ("identical", False)):
            caplog.clear()
            reader = reader_of(run, run.recipe.training.model_copy(update={"alignment": method}))
            told = reader.coverage_of(run.encoded("train"))
            assert (told.supervised > 0.8) == enough
            assert f"it supervises {told.supervised:.1%} of the student's tokens" in caplog.text
            assert ("cut these texts at different places" in caplog.text) != enough
    close(run)


@pytest.mark.parametrize(
    ("told", "warned"),
    [
        (Coverage(100, 80, 0, 90, 10), []),
        (Coverage(100, 79, 21, 90, 10), ["79% of the student's tokens, and 21% more"]),
        (Coverage(100, 0, 90, 90, 10), []),  # by chunks alone
        (Coverage(100, 0, 70, 90, 10), ["0% of the student's tokens, and 70% more"]),
        (Coverage(100, 90, 0, 89, 11), ["89% of the teacher's own tokens"]),
        (Coverage(100, 50, 0, 50, 50), ["50% of the student's tokens", "50% of the teacher's own tokens"]),
    ],
)
def test_shares_under_the_limits_are_warned_of(
    told: Coverage, warned: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("srd"), "propagate", True)
    warn_of_coverage(told)
    messages = dict.fromkeys(caplog.messages)  # told twice where another test has left a handler on the logger
    assert [each in message for each, message in zip(warned, messages, strict=True)] == [True] * len(warned)


def test_a_plan_tells_how_much_is_supervised_and_counts_the_teachers_own_tokens(tiny: TinyRun) -> None:
    made = make_plan(validate_recipe(tiny.recipe, "tiny"))
    run = tiny.advance("examples")
    theirs = run.read_by_teacher("train").response_tokens
    assert made.data.teacher_tokens == theirs != made.data.response_tokens
    assert made.cache_bytes == theirs * 32 * 2  # float16 states
    assert [note for note in made.notes if "it supervises" in note and "by distributions" in note]
    close(run)


def test_the_student_text_is_read_anew_by_its_bytes(tiny: TinyRun) -> None:
    run = tiny.advance("examples")
    reader = reader_of(run, run.recipe.training)
    name, ids = run.encoded("train").ids[0], run.tokenizer("x The whale ü", add_special_tokens=False)["input_ids"]
    for end, cut in (([run.tokenizer.eos_token_id], 0), ([], 1)):  # ended, and cut within a character
        row = {"id": name, "prompt_ids": [5], "response_ids": [*ids[: len(ids) - cut], *end]}
        batch = reader.batch([row], written=True)
        theirs = batch["teacher"]["targets"].tolist()
        text = run.teacher_tokenizer.decode(theirs, skip_special_tokens=True)
        assert text.strip() == ("x The whale ü" if end else "x The whale")
        assert (theirs[-1] == run.teacher_tokenizer.eos_token_id) == bool(end)
        assert (batch["alignment"]["position"] >= 0).float().mean() > 0.5
    close(run)


def test_conversations_are_read_in_each_models_own_frame(tmp_path: Path) -> None:
    talk = [("user", "Why is the sky blue?"), ("assistant", "Because of the air."),
            ("user", "Why is it red?"), ("assistant", "Because of the light.")]  # fmt: skip
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for _ in range(30)]
    for number, row in enumerate(rows):
        row["messages"][0]["content"] += f" {number}"
    tiny = two_tokenizers(tmp_path / "chat").set(data__template="chat", data__train_on="all")
    frame = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    student = sentencepiece_tokenizer()
    student.chat_template = frame + "{% if add_generation_prompt %}[assistant]{% endif %}"
    student.save_pretrained(tiny.student)
    tiny.rows.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run = tiny.advance("examples")
    reader, own = reader_of(run, run.recipe.training), run.encoded("train")
    told = reader.coverage_of(own)
    assert told.tokens == own.response_tokens  # of both answers
    assert told.supervised > 0.8
    close(run)


@pytest.fixture
def served(tiny: TinyRun) -> Iterator[TinyRun]:
    """The same teacher behind a server that tells how likely the tokens of a text are, and no others."""
    with serving(load_model(str(tiny.teacher)), load_tokenizer(str(tiny.teacher)), ways=("echo texts",)) as running:
        server = {"endpoint": running.url, "model": "tiny", "tokenizer": str(tiny.teacher)}
        yield tiny.twin().set(teacher=server)


def test_a_served_teacher_with_tokens_of_its_own_teaches_by_chunks(tiny: TinyRun, served: TinyRun) -> None:
    served.run_dir = tiny.folder / "asked"
    run = served.set(training__epochs=1).train()
    here = tiny.set(cache__tier="likelihood", cache__max_kl=10.0).advance("cache")
    assert run.recipe.cache.tier == "likelihood" and run.apart
    rows = [run.read_by_teacher("train").tokens(i) for i in range(8)]
    told, own = (
        torch.cat([TeacherCache(place_of_cache(each)).hidden(*row.values()) for row in rows]) for each in (run, here)
    )
    assert (told[:, 0] == own[:, 0]).all()  # the text's own tokens
    torch.testing.assert_close(told[:, 1].view(torch.float32), own[:, 1].view(torch.float32), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(teacher_losses(run, tiny.folder), teacher_losses(here, tiny.folder), rtol=1e-4)
    run.keys.pop("cache")  # the server is asked for them
    np.testing.assert_allclose(teacher_losses(run, tiny.folder), teacher_losses(here, tiny.folder), rtol=1e-4)
    logs = [row for row in logged(served.run_dir) if "loss" in row]
    assert logs and all(row["by_chunks"] > 0.9 and row["supervised"] == 0 and row["kd_loss"] > 0 for row in logs)
    plan = make_plan(validate_recipe(served.recipe, "tiny"))
    assert any("by the likelihood of chunks" in note for note in plan.notes)
    close(run)


def test_a_served_teacher_writes_in_tokens_of_its_own(tiny: TinyRun, served: TinyRun) -> None:
    changes = {"training__method": {"name": "seqkd", "max_new_tokens": 6}}
    texts = []
    for name, each in (("there", served), ("here", tiny)):
        run = each.set(**changes).advance("teacher text", run_dir=tiny.folder / name)
        texts.append(pq.read_table(run.files.teacher_text).column("tokens").to_pylist())
        close(run)
    assert texts[0] == texts[1]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pairs of texts": ({"training__method": "distillm2"}, "set training.method to kd or gkd"),
    "text written ahead": ({"training__method": {"name": "gkd", "refresh": "epoch"}}, "set its refresh to step"),
    "a part of the distribution": ({"cache__tier": "topk"}, "cache.tier is topk.*int8 or exact"),
    "distributions of likelihoods": (
        {"cache__tier": "likelihood", "training__alignment": "prefix"},
        "of chunks alone.*leave training.alignment out",
    ),
    "a part of what a server tells": (
        {"cache__tier": "topk", "teacher": {"endpoint": "http://h/v1", "model": "m", "tokenizer": "OF THE TEACHER"}},
        "cache.tier is topk.*set cache.tier to likelihood",
    ),
    "chosen positions": ({"training__tokens": {"share": 0.5}}, "leave training.tokens out"),
}


def lower_casing() -> Any:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_aligned_is_refused(tiny: TinyRun, case: str) -> None:
    changes, message = REFUSED[case]
    if isinstance(teacher := changes.get("teacher"), dict):
        changes = {**changes, "teacher": {**teacher, "tokenizer": str(tiny.teacher)}}
    with pytest.raises(UserError, match=f"(?s){message}"):
        check_alignment(models_of(tiny.set(**changes)))


def test_a_teacher_that_lower_cases_is_refused_but_its_texts_can_be_learnt(tiny: TinyRun) -> None:
    for method in ("kd", "seqkd"):
        models = models_of(tiny.set(training__method=method))
        models.original_teacher_tokenizer = lower_casing()
        if method == "seqkd":
            check_alignment(models)
            continue
        with pytest.raises(UserError, match=r"(?s)aligned by the bytes.*back byte for byte.*training\.method=seqkd"):
            check_alignment(models)


def test_one_tokenizer_stays_on_the_usual_path(make_tiny_run: Callable[..., TinyRun]) -> None:
    one = make_tiny_run("llama")
    models = models_of(one)
    assert models.apart == "" and models.teacher_encoder is models.encoder
    with pytest.raises(UserError, match=r"training\.alignment is chunks, but .* read the same tokens"):
        check_alignment(models_of(one.set(training__alignment="chunks")))


def test_another_end_of_sequence_is_aligned_by_its_role(tmp_path: Path) -> None:
    """A base model teaches a student that ends its turns with another token of one vocabulary."""
    tiny = TinyRun(tmp_path, "qwen2").set(training=dict(TRAINING))
    base = tiny_tokenizer("qwen2")
    base.eos_token = "<|endoftext|>"
    base.chat_template = None
    base.save_pretrained(tiny.teacher)
    run = tiny.advance("examples")
    told = reader_of(run, run.recipe.training).coverage_of(run.encoded("train"))
    assert told.supervised == told.shared_tokens == 1
    assert "ends its answers" in run.apart
    close(run)


def test_an_encoder_decoder_teaches_a_decoder(tmp_path: Path) -> None:
    tiny = two_tokenizers(tmp_path / "kinds", teacher="t5").set(training__epochs=1)
    run = tiny.train()
    rows = [row for row in logged(tiny.run_dir) if "loss" in row]
    assert rows and all(row["supervised"] > 0.9 and row["kd_loss"] > 0 for row in rows)
    assert place_of_cache(run).is_dir()
