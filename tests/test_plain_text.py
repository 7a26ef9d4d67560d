"""The extra language-modelling loss on running text."""

from __future__ import annotations

import pytest
import torch

from srd.base.errors import UserError
from srd.data.batching import Collator, EncodedExamples
from srd.data.encoding import encode_plain_text
from srd.recipe.schema import validate_recipe
from srd.training.loss import LossSettings
from srd.training.trainer import DistillTrainer, PlainText
from tests.conftest import TinyRun, logged, write_rows
from tests.test_trainer import arguments
from tests.tiny import tiny_model, tiny_tokenizer

TEXTS = ["The sea is wide and the whale is large. " * 4, "Small particles scatter the light of the sky. " * 4]


def test_running_text_is_cut_into_blocks_that_lose_nothing_but_the_rest() -> None:
    tokenizer = tiny_tokenizer("gpt2")
    blocks = encode_plain_text(TEXTS, tokenizer, 16)
    stream = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    joined = [token for p, r in zip(blocks["prompt_ids"], blocks["response_ids"], strict=True) for token in [*p, *r]]
    assert joined == stream[: len(joined)] and len(stream) - len(joined) < 16
    assert all(len(p) == 1 and len(r) == 15 for p, r in zip(blocks["prompt_ids"], blocks["response_ids"], strict=True))


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.plain_text has \d+ tokens, less than one block of data\.max_length"):
        encode_plain_text(["short"], tiny_tokenizer("gpt2"), 512)


def test_the_loss_is_that_of_the_examples_and_the_weighted_mean_over_the_text(tmp_path) -> None:  # type: ignore[no-untyped-def]
    tokenizer, model = tiny_tokenizer("llama"), tiny_model("llama")
    rows = {"id": ["a", "b"], "prompt_ids": [[5, 6, 7], [8, 9]], "response_ids": [[10, 11], [12, 13, 14]]}
    text = PlainText(EncodedExamples(encode_plain_text(TEXTS, tokenizer, 16)), weight=0.5, batch_size=2)
    trainer = DistillTrainer(
        model, arguments(tmp_path, 2, 1), train_dataset=EncodedExamples(rows), tokenizer=tokenizer,
        settings=LossSettings(), collator=Collator(0), plain_text=text,
    )  # fmt: skip
    trainer.state.max_steps = 1
    samples, items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    total = trainer.compute_loss(model, samples[0], num_items_in_batch=items)
    plain = samples[0]["plain_text"]

    def mean_loss(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].double()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    expected = mean_loss(samples[0]["input_ids"], samples[0]["attention_mask"], samples[0]["labels"])
    expected = expected + 0.5 * mean_loss(plain["input_ids"], plain["attention_mask"], plain["labels"])
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_run_with_running_text_trains_on_it(tiny_run: TinyRun) -> None:
    plain = write_rows(tiny_run.folder / "plain.jsonl", [{"text": text} for text in TEXTS * 4])
    tiny_run.set(data__plain_text=str(plain), training__curriculum=None, training__method={"name": "sft"})
    tiny_run.train()
    row = next(row for row in logged(tiny_run.run_dir) if "loss" in row)
    assert row["loss"] > 1.5 * row["ce_loss"]


def test_running_text_is_for_decoder_only_models(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = TinyRun(tmp_path, "t5")
    run.set(data__plain_text=str(write_rows(tmp_path / "plain.jsonl", [{"text": text} for text in TEXTS])))
    with pytest.raises(UserError, match="decoder-only"):
        run.train()


def test_a_file_name_is_enough() -> None:
    content = {"teacher": "t", "student": "s", "data": {"train": "x.jsonl", "plain_text": "y.jsonl"}}
    source = validate_recipe(content, "test").data.plain_text
    assert source is not None and (source.dataset, source.path) == ("plaintext", "y.jsonl")
