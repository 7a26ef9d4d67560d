"""Every model family goes through the whole flow, plain and with SRD; only `models/` and the collator know which."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from srd.base.files import read_json
from srd.run.assemble import collator
from srd.run.flow import advance
from srd.training.divergences.base import DIVERGENCES
from tests.conftest import TinyRun, in_turn, logged
from tests.tiny import DECODER_ONLY, ENCODER_DECODER, FAMILIES

MakeRun = Callable[..., TinyRun]


def finite_losses(run_dir: Path, arm: str) -> list[float]:
    losses = [row["loss"] for row in logged(run_dir) if row["arm"] == arm and "loss" in row]
    assert losses and all(loss == loss and loss < 1e4 for loss in losses)
    return losses


@pytest.mark.parametrize("family", in_turn(FAMILIES, "gpt2", "t5"))
def test_whole_flow_with_kd_and_srd(make_tiny_run: MakeRun, family: str) -> None:
    tiny = make_tiny_run(family)
    tiny.set(baselines={"kd": {"curriculum": None}}, training__objective="srkl", training__curriculum={"stages": 2})
    tiny.set(student={"drop_layers": 2})  # of the teacher's four
    run = tiny.set(data__train_limit=16, evaluation__seeds=[1]).advance()
    teacher, student = (read_json(path / "config.json") for path in (tiny.teacher, run.folder / "student"))
    names = [name for name in ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers") if name in teacher]
    assert names and all(student[name] == teacher[name] - 2 for name in names)
    assert any((run.folder / "student").glob("*.safetensors"))
    metrics = read_json(run.folder / "evaluation/metrics.json")
    assert set(metrics) == {"teacher", "student", "kd", "srd"}
    finite_losses(run.folder, "kd")
    finite_losses(run.folder, "srd")
    auto = AutoModelForSeq2SeqLM if family in ENCODER_DECODER else AutoModelForCausalLM
    model, report = auto.from_pretrained(run.folder / "student", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "student")
    prompt = tokenizer("Name the whale.", return_tensors="pt")
    answer = model.generate(
        input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=4, do_sample=False
    )
    assert answer.shape[0] == 1 and answer.numel() > 1


def test_t5_with_every_divergence(make_tiny_run: MakeRun) -> None:
    objectives = ("fkl", "rkl", "jsd", "tvd", "sfkl", "srkl")
    assert set(objectives) <= set(DIVERGENCES.names())
    tiny = make_tiny_run("t5")
    tiny.set(training__curriculum=None, baselines={name: {"objective": name} for name in objectives})
    run = tiny.set(data__train_limit=16).train()
    before = load_file(tiny.student / "model.safetensors")
    after = {name: load_file(run.folder / f"baselines/{name}/student/model.safetensors") for name in objectives}
    for name, trained in after.items():
        assert any(not torch.equal(before[weight], trained[weight]) for weight in before), name
        finite_losses(run.folder, name)
    for one, other in itertools.combinations(after.values(), 2):
        assert any(not torch.equal(one[weight], other[weight]) for weight in before)


@pytest.mark.parametrize(("teacher_width", "student_width"), [(432, 400), (400, 432), (416, 432)])
def test_widths_that_differ_by_padding_rows(make_tiny_run: MakeRun, teacher_width: int, student_width: int) -> None:
    tiny = make_tiny_run("qwen2", teacher={"vocab_size": teacher_width}, student={"vocab_size": student_width})
    tiny.set(training__curriculum={"stages": 1}, training__weight_decay=0, data__train_limit=16)
    run = tiny.train()
    name = "model.embed_tokens.weight"
    before = load_file(tiny.student / "model.safetensors")[name]
    after = load_file(run.folder / "student/model.safetensors")[name]
    assert after.shape == before.shape == (student_width, 32)
    shared = min(teacher_width, student_width)
    assert torch.equal(before[shared:], after[shared:])
    assert not torch.equal(before[:shared], after[:shared])


def test_padding_rows_of_the_teacher_send_nothing(make_tiny_run: MakeRun) -> None:
    """The same teacher with 32 further rows, full of large values, makes the same student."""
    students = []
    for width in (400, 432):
        tiny = make_tiny_run("qwen2", teacher={"vocab_size": 400})
        if width > 400:
            model = AutoModelForCausalLM.from_pretrained(tiny.teacher)
            model.resize_token_embeddings(width, mean_resizing=False)
            with torch.no_grad():
                model.get_input_embeddings().weight[400:] = 100.0
            model.save_pretrained(tiny.teacher)
        tiny.set(training__curriculum=None, data__train_limit=16)
        students.append((tiny.train().folder / "student/model.safetensors").read_bytes())
    assert students[0] == students[1]


@pytest.mark.parametrize("family", DECODER_ONLY)
def test_pad_equal_to_end_of_sequence_is_still_learnt(make_tiny_run: MakeRun, family: str) -> None:
    """Every reference ends with the end of sequence and that token counts, whatever the pad token is."""
    tiny = make_tiny_run(family)
    run = tiny.open()
    try:
        advance(run, "examples")
        examples, collate = run.encoded("train"), collator(run)
        batch = collate([examples[0], examples[1]])
    finally:
        run._lock.close()
    end = run.tokenizer.eos_token_id
    assert [ids[-1] for ids in examples.responses[:2]] == [end, end]
    assert (batch["targets"] == end).sum() == 2
    assert len(batch["index"]) == len(batch["targets"]) == sum(len(ids) for ids in examples.responses[:2])
