"""Hidden states and head give each family's own logits, at response positions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from srd.base.errors import UserError
from srd.models.head import (
    HeadWeights,
    cross_entropy,
    head_is_enough,
    head_weights,
    logit_rule,
    model_inputs,
    plain_head,
    response_hidden,
    response_logits,
    response_losses,
    same_logits,
)
from srd.models.loading.adapters import add_lora
from srd.training.batches import make_collator
from tests.tiny import ENCODER_DECODER, FAMILIES, tiny_model, tiny_tokenizer
from tests.training.test_trainer import encoded


def batch_for(family: str, count: int = 5) -> tuple[Any, dict[str, Any]]:
    model, tokenizer = tiny_model(family, seed=1), tiny_tokenizer(family)
    return model, make_collator(model, tokenizer)(list(encoded(count, tokenizer)))


@torch.no_grad()
def own_logits(model: Any, batch: dict[str, Any]) -> Tensor:
    """The model's own forward, and the response positions of its output."""
    logits: Tensor = model(**model_inputs(batch)).logits
    return logits.flatten(0, 1)[batch["index"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_times_head_are_the_models_logits(family: str) -> None:
    """OPT's projection, T5's rescaling of a tied head and Gemma's soft cap included."""
    model, batch = batch_for(family)
    with torch.no_grad():
        hidden = response_hidden(model, batch)
        assert hidden.shape == (len(batch["targets"]), head_weights(model).weight.shape[1])
        expected = own_logits(model, batch)
        torch.testing.assert_close(head_weights(model).logits(hidden), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(response_logits(model, batch), expected, rtol=1e-4, atol=1e-5)
    assert head_is_enough(model)


def test_tokens_that_an_adapter_adds_are_noticed() -> None:
    """Prompt tuning puts them in front: every position would be taken for an earlier one."""
    model, batch = batch_for("llama")
    added = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapted = peft.get_peft_model(model, added)
    for read in (response_hidden, response_logits, response_losses):
        with pytest.raises(UserError, match=r"tokens of the shape .*Adapters that add tokens"):
            read(adapted, batch)
    kept = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model, batch = batch_for("llama")
    adapted = peft.get_peft_model(model, kept).eval()
    torch.testing.assert_close(response_logits(adapted, batch), own_logits(adapted, batch), rtol=1e-4, atol=1e-5)


def test_what_t5_does_before_its_head_matters() -> None:
    """A tied T5 head without the rescaling would be wrong by the square root of its width."""
    model, batch = batch_for("t5")
    with torch.no_grad():
        raw = model.decoder(
            input_ids=batch["decoder_input_ids"],
            encoder_hidden_states=model.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state,
            encoder_attention_mask=batch["attention_mask"],
        ).last_hidden_state.flatten(0, 1)[batch["index"]]
        torch.testing.assert_close(response_hidden(model, batch), raw * model.model_dim**-0.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_computes_no_more_than_it_must(family: str) -> None:
    """One position for hidden states, the response positions for logits; hooks are gone afterwards."""
    model, batch = batch_for(family)
    head = model.get_output_embeddings()
    logit_rule(model)  # which is measured once
    shapes: list[tuple[int, ...]] = []
    handle = head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[:-1])))
    response_hidden(model, batch)
    response_logits(model, batch)
    assert shapes == [(1, 1), (1, len(batch["targets"]))]
    handle.remove()
    assert not head._forward_pre_hooks and not head._forward_hooks


def test_hooks_are_gone_after_an_error() -> None:
    model, batch = batch_for("llama")
    with pytest.raises((IndexError, RuntimeError)):
        response_hidden(model, {**batch, "input_ids": batch["input_ids"] + 10_000})
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_gradients_flow_through_both_ways(family: str) -> None:
    model, batch = batch_for(family)
    gradients = []
    for logits in (
        lambda: head_weights(model).logits(response_hidden(model, batch)),
        lambda: response_logits(model, batch),
    ):
        model.zero_grad()
        logits().square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_batch_without_examples(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(family)
    batch = make_collator(model, tokenizer)([])
    assert response_hidden(model, batch).shape == (0, 32)
    logits = response_logits(model, batch)
    assert logits.shape == (0, 400)
    logits.sum().backward()
    assert sum(p.grad is not None for p in model.parameters()) > 3  # every process takes part in the reductions


def test_logits_of_a_head_by_its_definition() -> None:
    hidden, weight, bias = torch.randn(3, 4), torch.randn(7, 4), torch.randn(7)
    expected = 2.0 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 2.0)
    torch.testing.assert_close(HeadWeights(weight, bias, 0.5, 2.0).logits(hidden), expected)
    cut = HeadWeights(weight, bias, 0.5, 2.0).cut(5)
    assert cut.vocabulary == 5
    torch.testing.assert_close(cut.logits(hidden), expected[:, :5])
    assert HeadWeights(weight.bfloat16()).logits(hidden).dtype == torch.float32
    assert HeadWeights(weight.double()).logits(hidden).dtype == torch.float64


def test_a_head_may_be_cut() -> None:
    assert head_weights(tiny_model("gemma2")).softcap == 3.0
    assert head_weights(tiny_model("gpt2"), 300).vocabulary == 300


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled by a number of its own": lambda logits: logits * 1.5,
    "shifted": lambda logits: logits + torch.linspace(0, 1, logits.shape[-1]),
    "sorted": lambda logits: logits.sort(-1).values,
    "capped where it is large": lambda logits: 40 * torch.tanh(logits / 40),
    "by position": lambda logits: logits + torch.arange(logits.shape[-2])[:, None],
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_family_that_does_more_uses_its_own_logits(family: str, odd: str) -> None:
    """Measured, not recognised: losses are those of the model's own logits, and no head is handed out."""
    model, batch = batch_for(family)
    plain = model.forward

    def forward(*args: Any, **arguments: Any) -> Any:
        output = plain(*args, **arguments)
        output.logits = ODD[odd](output.logits)
        return output

    model.forward = forward
    with torch.no_grad():
        expected = own_logits(model, batch)
        torch.testing.assert_close(response_logits(model, batch), expected, rtol=1e-4, atol=1e-4)
        losses = nn.functional.cross_entropy(expected, batch["targets"], reduction="none")
        torch.testing.assert_close(response_losses(model, batch), losses, rtol=1e-4, atol=1e-4)
    assert not head_is_enough(model)
    with pytest.raises(UserError, match=r"do not follow from its last hidden state .*cache\.enabled=false"):
        head_weights(model)


def test_measuring_leaves_no_trace() -> None:
    """Neither mode, nor hooks, nor random numbers; and the rule stays with the model."""
    model = tiny_model("llama").train()
    model.model.eval()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    rule = logit_rule(model)
    assert torch.equal(torch.rand(3), expected)
    assert model.training and not model.model.training and not model.get_output_embeddings()._forward_pre_hooks
    assert logit_rule(model) is rule and logit_rule(tiny_model("llama")) is not rule


def test_a_model_that_gives_nan_is_refused_by_name() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.inf
    with pytest.raises(UserError, match=r"not finite.*'model\.layers\.1\.mlp\.up_proj\.weight' \(1 of its 2048 values"):
        logit_rule(model)


def test_plain_heads() -> None:
    model = tiny_model("llama")
    assert plain_head(model)
    model.set_output_embeddings(nn.Sequential(nn.Linear(32, 400)))
    assert not plain_head(model)
    assert not head_is_enough(model)


def test_an_adapter_on_the_head_is_not_bypassed() -> None:
    """LoRA on the head: the plain path is refused, and the model's own logits carry the adapter."""

    class Settings:
        r, alpha, dropout, targets = 4, 8.0, 0.0, ["q_proj", "lm_head"]

    adapted = add_lora(tiny_model("llama", seed=1), Settings())  # type: ignore[arg-type]
    assert not plain_head(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    batch = batch_for("llama")[1]
    torch.testing.assert_close(response_logits(adapted, batch).detach(), own_logits(adapted, batch))
    assert plain_head(add_lora(tiny_model("llama"), type("Plain", (Settings,), {"targets": None})()))


@pytest.mark.parametrize("family", FAMILIES)
def test_cross_entropy_in_chunks(family: str) -> None:
    model, batch = batch_for(family)
    with torch.no_grad():
        hidden = response_hidden(model, batch)
        expected = nn.functional.cross_entropy(own_logits(model, batch), batch["targets"], reduction="none")
        for rows in (1, 7, 256):
            ours = cross_entropy(hidden, head_weights(model), batch["targets"], rows)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert cross_entropy(hidden[:0], head_weights(model), batch["targets"][:0]).shape == (0,)
    assert model.config.is_encoder_decoder == (family in ENCODER_DECODER)


def test_a_model_is_measured_in_its_own_precision_though_training_has_begun() -> None:
    """Under autocast the model's own product and ours are rounded apart, and the head would not be relied on."""
    model = tiny_model("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert logit_rule(model).head
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize(("noise", "same"), [(0.012, True), (0.03, True), (0.2, False)])
def test_what_halves_round_is_told_from_what_is_wrong(noise: float, same: bool) -> None:
    """24 layers of bfloat16 do 0.012; of 0.03 the largest of so many errors is over 3 % of the largest logit."""
    model = tiny_model("llama").to(torch.bfloat16)
    torch.manual_seed(0)
    theirs = 0.6 * torch.randn(9, 150_000)
    ours = theirs * (1 + noise * torch.randn(9, 1)) + 0.6 * noise * torch.randn(9, 150_000)
    assert same_logits(model, ours, theirs) is same
    assert not same_logits(tiny_model("llama"), ours, theirs), "float32 has no such error"


def test_a_head_computes_as_autocast_lets_its_layers() -> None:
    """The Trainer lets the forward pass alone compute in halves, whose last norm gives float32 again."""
    model, batch = batch_for("llama")
    assert response_hidden(model, batch).dtype == torch.float32
    losses = response_losses(model, batch)
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    hidden, head = response_hidden(model, batch), head_weights(model)
    assert hidden.dtype == head.computing_in(hidden).weight.dtype == torch.bfloat16
    assert HeadWeights(head.weight.double()).computing_in(hidden).weight.dtype == torch.float64
    rounded = response_losses(model, batch)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, losses)
    torch.testing.assert_close(rounded, losses, rtol=0.02, atol=0.02)
