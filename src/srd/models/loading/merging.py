"""Adding an adapter to the weights it was trained beside, and whether the sum says the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from srd.base.errors import UserError
from srd.models.adapted import base_model, is_adapted
from srd.models.finite import name_of
from srd.models.head import in_evaluation, probe_logits, same_logits

if TYPE_CHECKING:
    from peft import PeftModel


def merge_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Add the adapter to the weights and return the plain model; a plain one comes back as it is.

    Where the adapter sits on the output head or the embedding and the two share their weight, they are untied first:
    adding to one must not change the other. The merged model's logits are compared with the adapted one's.

    Raises:
        UserError: they differ by more than the rounding of the weights' precision.
    """
    if not is_adapted(model):
        return model  # type: ignore[return-value]
    name, training = name_of(model), model.training
    expected = _logits(model)
    _untie_adapted(base_model(model))
    merged = model.merge_and_unload(safe_merge=True)
    assert isinstance(merged, PreTrainedModel)
    if not same_logits(merged, _logits(merged), expected):
        raise UserError(
            f"{name}: merged into its weights, the adapter gives other logits than beside them. Load the model in "
            "float32, or keep the adapter beside it (lora.merge: false)."
        )
    for parameter in merged.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return merged.train(training)


def _logits(model: Any) -> Tensor:
    with in_evaluation(model):
        return probe_logits(model)


def _untie_adapted(model: PreTrainedModel) -> None:
    """Give the output head a weight of its own where an adapter sits on it, or on the embedding that it shares."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not any(isinstance(module, BaseTunerLayer) for module in (head, embedding)):
        return
    inside = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    if not any(inside.weight is weight for weight in _weights_but(model, inside)):
        return
    inside.weight = nn.Parameter(inside.weight.detach().clone(), requires_grad=inside.weight.requires_grad)
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    # What `save_pretrained` leaves out, and `from_pretrained` ties again.
    heads = {name for name, module in model.named_modules() if module is head}
    tied = model.all_tied_weights_keys
    model.all_tied_weights_keys = {name: to for name, to in tied.items() if name.rpartition(".")[0] not in heads}


def _weights_but(model: nn.Module, module: nn.Module) -> list[Tensor]:
    """The parameters of all other modules, each as often as it is used."""
    return [weight for other in model.modules() if other is not module for weight in other.parameters(recurse=False)]
