"""Shortened models: which layers go, and that the rest computes what it did, in memory and from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from srd.base.errors import UserError
from srd.models.loading.loading import load_model, save_model
from srd.models.pruning import drop_layers, layer_stacks, pairwise_angles
from srd.run.outline.sizes import shortened
from tests.models.test_every_family import tiny_of
from tests.runs import in_turn
from tests.tiny import DECODER_ONLY, ENCODER_DECODER, FAMILIES, tiny_model, tiny_tokenizer

DEPTH = 4


def batch(family: str, rows: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 400, (rows, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, 8:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family in ENCODER_DECODER:
        inputs |= {"decoder_input_ids": ids[:, :6], "decoder_attention_mask": mask[:, 3:9]}
    return inputs


def generate(model: torch.nn.Module, family: str, **options: object) -> list[list[int]]:
    inputs = batch(family)
    return model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
        max_new_tokens=8, min_new_tokens=8, do_sample=False, **options,
    ).tolist()  # fmt: skip


@pytest.mark.parametrize("family", in_turn(FAMILIES, "llama", "gemma2", "t5"))
def test_a_reloaded_student_generates_the_same_with_and_without_cache(family: str, tmp_path: Path) -> None:
    student, dropped = drop_layers(tiny_model(family, layers=DEPTH), [1, 2])
    assert dropped == {stack: [1, 2] for stack in layer_stacks(student)}
    save_model(student, tiny_tokenizer(family), tmp_path / "student")
    again = load_model(str(tmp_path / "student"))
    assert again.config.num_hidden_layers == 2
    assert generate(again, family) == generate(student, family) == generate(student, family, use_cache=False)


@pytest.mark.parametrize("family", in_turn(DECODER_ONLY, "llama", "gemma2"))
def test_the_student_is_the_teacher_with_layers_skipped(family: str) -> None:
    teacher = tiny_model(family, layers=DEPTH)
    # gemma2's third layer is of another type than its second, so a list of types cut in the wrong place would
    # show.
    student, _ = drop_layers(teacher, [1])
    inputs = batch(family, rows=1) | {"attention_mask": torch.ones(1, 12, dtype=torch.long)}
    for module in layer_stacks(teacher)["decoder"][1][1].children():
        for parameter in module.parameters():
            parameter.data.zero_()  # a layer whose weights are all zero adds nothing to the residual stream
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", in_turn(FAMILIES, "llama", "gemma2", "t5"))
def test_the_teacher_stays_as_it_is(family: str) -> None:
    teacher, reference = tiny_model(family, layers=DEPTH), tiny_model(family, layers=DEPTH)
    student, _ = drop_layers(teacher, 1, [batch(family)])
    for parameter in student.parameters():
        parameter.data.fill_(7.0)
    assert teacher.config.to_dict() == reference.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), reference.parameters(), strict=True))
    assert generate(teacher, family) == generate(reference, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_ties_stay_as_they_are(family: str) -> None:
    teacher = tiny_model(family, layers=DEPTH)
    student, _ = drop_layers(teacher, [2])
    tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (teacher, student)]
    assert tied == [family not in ("llama", "mt5")] * 2
    assert torch.equal(student.get_output_embeddings().weight, teacher.get_output_embeddings().weight)


def test_precision_and_training_state_are_the_teachers() -> None:
    teacher = tiny_model("llama", layers=DEPTH).to(torch.bfloat16)
    student, _ = drop_layers(teacher, [0])
    assert student.dtype == torch.bfloat16
    assert student.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not student.training


# ------------------------------------------------------------------------------------------------ the measure


@pytest.mark.parametrize("family", in_turn(FAMILIES, "llama", "gemma2", "t5"))
def test_angles_equal_those_of_the_models_own_hidden_states(family: str) -> None:
    model, inputs = tiny_model(family, layers=DEPTH), batch(family)
    angles = np.diagonal(pairwise_angles(model, [inputs])["decoder"], offset=2)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    encoder_decoder = family in ENCODER_DECODER
    states = output.decoder_hidden_states if encoder_decoder else output.hidden_states
    real = inputs["decoder_attention_mask" if encoder_decoder else "attention_mask"].bool()
    expected = []
    for start in range(DEPTH - 2):  # the last state is after the final norm and cannot be compared
        cosine = nn.functional.cosine_similarity(states[start][real], states[start + 2][real], dim=-1)
        expected.append((cosine.double().clamp(-1, 1).arccos() / torch.pi).mean().item())
    assert angles.shape == (DEPTH - 1,)
    np.testing.assert_allclose(angles[:-1], expected, atol=1e-4)
    assert ((angles > 0) & (angles < 1)).all()


def test_padding_and_the_split_into_batches_do_not_count() -> None:
    model, inputs = tiny_model("llama", layers=DEPTH), batch("llama")
    whole = pairwise_angles(model, [inputs])["decoder"]
    short = {name: value[1:, :8] for name, value in inputs.items()}
    split = pairwise_angles(model, [{name: value[:1] for name, value in inputs.items()}, short])["decoder"]
    np.testing.assert_allclose(split, whole, atol=1e-4)  # arccos of nearly 1 loses half the digits


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "t5"])
def test_the_layers_that_do_nothing_are_found(family: str) -> None:
    teacher = tiny_model(family, layers=6)
    for _, blocks in layer_stacks(teacher).values():
        for block in blocks[2:4]:
            # Output projections of attention and feed-forward at zero, or gemma2's norms after them.
            for name, parameter in block.named_parameters():
                if any(part in name for part in ("c_proj", "o_proj", "down_proj", ".o.", ".wo.")):
                    parameter.data.zero_()
    student, dropped = drop_layers(teacher, 2, [batch(family)])
    assert all(layers == [2, 3] for layers in dropped.values())
    assert generate(student, family) == generate(teacher, family)


def test_hooks_are_gone_and_the_training_mode_is_back() -> None:
    model = tiny_model("llama").train()
    pairwise_angles(model, [batch("llama")])
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------ asking for
# it


def test_both_stacks_of_an_encoder_decoder_are_shortened() -> None:
    student, dropped = drop_layers(tiny_model("t5", layers=DEPTH), [2, 1])
    assert dropped == {"decoder": [1, 2], "encoder": [1, 2]}
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 2)
    student, dropped = drop_layers(tiny_model("t5", layers=DEPTH), 1, [batch("t5")])
    assert {stack: len(layers) for stack, layers in dropped.items()} == {"encoder": 1, "decoder": 1}
    assert (student.config.num_layers, student.config.num_decoder_layers) == (DEPTH - 1, DEPTH - 1)


@pytest.mark.parametrize(
    ("family", "drop", "message"),
    [
        ("llama", 0, "from 1 to 3"),
        ("llama", 4, "from 1 to 3"),
        ("llama", [], "at least one"),
        ("llama", [0, 1, 2, 3], "leave at least one"),
        ("llama", [1, 1], "named twice"),
        ("llama", [1, 4], r"\[4\] cannot be dropped.*from 0 to 3"),
        ("llama", [-1], r"\[-1\] cannot be dropped"),
        ("t5", [0], "position bias"),
        ("llama", 2, "no examples to measure"),
    ],
)
def test_wishes_that_cannot_be_met(family: str, drop: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drop_layers(tiny_model(family, layers=DEPTH), drop)


def test_a_model_without_layers() -> None:
    model = tiny_model("gpt2")
    model.transformer.h = nn.ModuleList()
    with pytest.raises(UserError, match="no stack of equal layers"):
        drop_layers(model, [0])


@pytest.mark.parametrize("family", ["mamba", "falcon_h1", "lfm2", "qwen3_next"])
def test_kinds_of_layers_are_kept_however_a_family_tells_them(family: str) -> None:
    model = tiny_of(family)
    shorter, _ = drop_layers(model, [0], [])
    ids = torch.tensor([[5, 6, 7]])
    assert shorter(input_ids=ids, use_cache=False).logits.shape == (1, 3, 64)
    assert shorter.config.num_hidden_layers == shortened(model.config, 1).num_hidden_layers == 1
    assert list(shorter.config.layer_types) == list(model.config.layer_types)[1:]


def test_kinds_that_go_by_the_number_of_a_layer_stay_in_their_order() -> None:
    with pytest.raises(UserError, match=r"those that stay \(sliding_attention\) are not what it would make of 1"):
        drop_layers(tiny_of("recurrent_gemma"), [0], [])
    shorter, _ = drop_layers(tiny_of("recurrent_gemma"), [1], [])
    assert shorter.config.num_hidden_layers == 1
