"""Positions of encoder-decoders: what a model cannot read or write is refused, and a response is cut to what it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from srd.base.errors import UserError
from srd.data.examples import examples_from_rows
from srd.evaluation.models import longest_prompt
from srd.models.head import response_losses
from srd.models.loading.architecture import position_limit
from srd.models.loading.loading import load_config, load_model
from srd.recipe.reading import validate_recipe
from srd.run.checks.models import check_recipe
from srd.run.models import RecipeModels
from srd.training.batches import make_collator
from tests.models.test_every_family import tiny_config
from tests.runs import TinyRun
from tests.tiny import tiny_tokenizer

POSITIONS = 64


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Two tiny BARTs, whose decoders begin with two ids; positions are learnt, so that there is nothing beyond."""
    run, tokenizer = TinyRun(tmp_path_factory.mktemp("bart"), "t5"), tiny_tokenizer("t5")
    for folder in (run.teacher, run.student):
        config = BartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=POSITIONS,
            pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
        )  # fmt: skip
        model = BartForConditionalGeneration(config)
        model.generation_config.forced_bos_token_id = 7
        model.save_pretrained(folder)
    return run


def models_of(run: TinyRun, **changes: Any) -> RecipeModels:
    return RecipeModels(validate_recipe(run.twin().set(**changes).recipe, "tiny"))


def test_a_first_token_that_is_always_the_same_decides_what_is_trained(bart: TinyRun) -> None:
    """It may be found elsewhere in the same files by another version of this program."""
    models = models_of(bart)
    assert models.encoding[-2:] == [models.tokenizer_identity, [7]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data__max_prompt_length": 65},
            "data.max_prompt_length is 65, .* takes 64 tokens. Set a smaller data.max_pro",
        ),
        ({"generation__max_new_tokens": 64}, "generation.max_new_tokens is 64, .* takes 63 tokens. Set a smaller gen"),
        ({"training__method": {"name": "gkd", "max_new_tokens": 80}}, "training.method.max_new_tokens is 80"),
        ({"evaluation__tasks": ["gsm8k"]}, "the 512 tokens of an answer to evaluation.tasks: gsm8k .* Leave the task"),
    ],
)
def test_what_an_encoder_decoder_has_no_positions_for_is_refused(
    changes: dict[str, Any], said: str, bart: TinyRun
) -> None:
    with pytest.raises(UserError, match=said):
        check_recipe(models_of(bart, **changes))


def test_the_longest_that_is_allowed_is_read_and_written(bart: TinyRun) -> None:
    """``max_length`` is beyond the positions, as it must be for prompts as long as these."""
    models = models_of(bart, data__max_prompt_length=POSITIONS, generation__max_new_tokens=POSITIONS - 1)
    check_recipe(models)
    rows = [{"instruction": "Why is the sky blue? " * 30, "output": "Because. " * 60}]
    encoded = models.encoder.encode(examples_from_rows(rows, "rows"))[0]
    assert encoded["response_cut"] and len(encoded["prompt_ids"]) == POSITIONS
    assert len(encoded["response_ids"]) == POSITIONS - 1  # the decoder begins with two ids, and never reads the last
    student = load_model(str(bart.student), tokenizer=models.tokenizer)
    with torch.no_grad():
        assert torch.isfinite(response_losses(student, make_collator(student, models.tokenizer)([encoded]))).all()


def test_an_answer_that_a_decoder_has_no_positions_for_leaves_no_room(bart: TinyRun) -> None:
    config, tokenizer = load_config(str(bart.student)), tiny_tokenizer("t5")
    assert longest_prompt(config, tokenizer, POSITIONS - 1) == POSITIONS
    assert longest_prompt(config, tokenizer, 100) == POSITIONS - 100


def test_which_positions_a_configuration_speaks_of() -> None:
    assert position_limit(tiny_config("t5", n_positions=512)) is None  # a relic: its positions are relative
    led = tiny_config("led", max_encoder_position_embeddings=256, max_decoder_position_embeddings=64)
    assert (position_limit(led, "encoder"), position_limit(led)) == (256, 64)
    assert position_limit(tiny_config("gpt2")) == position_limit(tiny_config("marian")) == 128
