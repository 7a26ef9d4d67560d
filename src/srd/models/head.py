"""Last hidden states at response positions, and the head that turns them into logits.

A forward pre-hook on the model's output embedding sees what enters the head: the last hidden state with everything
the family does before the product (T5's rescaling of a tied head, OPT's projection). It keeps the response positions
and lets the head compute a single position, or only those positions. So this holds for every family, and through
DDP, FSDP and DeepSpeed, which call the model's own forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from srd.errors import RunError, UserError
from srd.loss import HeadWeights

MODEL_INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", "position_ids")


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a collated batch that the model itself takes."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


@contextlib.contextmanager
def _before_head(core: nn.Module, replace: Any) -> Iterator[None]:
    head = core.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda module, args: (replace(args[0]),))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def head_input(core: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what enters the head ``[B, L, d]`` in each forward pass; the head itself computes one position only."""
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden[:1, :1]

    with _before_head(core, keep):
        yield seen


def response_hidden(model: nn.Module, batch: dict[str, Any], *, core: nn.Module | None = None) -> Tensor:
    """Run the model up to its head.

    Args:
        model: The model as it is called (perhaps wrapped by DDP).
        batch: From `srd.data.batching.Collator`.
        core: The model inside the wrapper; None: the model itself.

    Returns:
        Hidden states at the response positions ``[N, d]``, with their graph.
    """
    with head_input(core or model) as seen:
        model(**model_inputs(batch), use_cache=False)
    hidden = seen[0]
    return hidden.reshape(-1, hidden.shape[-1])[batch["index"]]


def response_logits(model: nn.Module, batch: dict[str, Any], *, core: nn.Module | None = None) -> Tensor:
    """Logits at the response positions ``[N, V]`` by the model's own head, whatever it is wrapped in."""

    def select(hidden: Tensor) -> Tensor:
        chosen = hidden.reshape(-1, hidden.shape[-1])[batch["index"]]
        # One position at least, so that a process without tokens still takes part in the collective operations.
        return (chosen if len(chosen) else hidden.reshape(-1, hidden.shape[-1])[:1]).unsqueeze(0)

    with _before_head(core or model, select):
        logits: Tensor = model(**model_inputs(batch), use_cache=False).logits
    return logits[0][: len(batch["index"])]


def plain_head(model: Any) -> bool:
    """Whether the head is one matrix product on weights that are all here (no adapter, no shards, no hooks)."""
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and head.weight.dim() == 2 and not hasattr(head.weight, "device_mesh")


def head_weights(model: Any, width: int | None = None) -> HeadWeights:
    """The model's head with what the family does after the product.

    Raises:
        UserError: the model's output layer is no single linear layer.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(f"{type(model).__name__} has an output layer of type {type(head).__name__}, not a linear one")
    config = model.config.get_text_config()
    scale = 1.0
    if getattr(config, "logit_scale", None):  # Cohere
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None):  # Granite
        scale = 1.0 / float(config.logits_scaling)
    return HeadWeights(head.weight, head.bias, scale, getattr(config, "final_logit_softcapping", None), width)


@torch.no_grad()
def verify_head(model: Any, batch: dict[str, Any]) -> None:
    """Check that hidden states and head give the model's own logits, once for every model used this way.

    Raises:
        RunError: they differ, so that this family does something to its logits that is not known here.
    """
    ours = head_weights(model).logits(response_hidden(model, batch))
    theirs = response_logits(model, batch).to(ours.dtype)
    finite = torch.isfinite(theirs)
    difference = (ours - theirs)[finite].abs().max().item() if len(theirs) else 0.0
    scale = theirs[finite].abs().max().item() if len(theirs) else 1.0
    tolerance = 1e-3 if next(model.parameters()).dtype in (torch.float32, torch.float64) else 3e-2
    if difference > tolerance * max(1.0, scale):
        raise RunError(
            f"{type(model).__name__}: logits recomputed from the last hidden state differ from the model's own by "
            f"{difference:.3g}. Set cache.enabled=false to run the teacher live."
        )


def cross_entropy(hidden: Tensor, head: HeadWeights, targets: Tensor, rows: int = 256) -> Tensor:
    """Negative log-likelihood of each target in nats, ``[N]``, a chunk of rows at a time."""
    parts = []
    for start in range(0, len(targets), rows):
        logits = head.logits(hidden[start : start + rows])
        chosen = logits.gather(-1, targets[start : start + rows, None]).squeeze(-1)
        parts.append(torch.logsumexp(logits, -1) - chosen)
    return torch.cat(parts) if parts else hidden.new_zeros(0)
