"""Last hidden states at response positions, the head that turns them into logits, and whether that is all there is.

A forward pre-hook on the model's output embedding sees what enters the head: the last hidden state with everything
the family does before the product (T5's rescaling of a tied head, OPT's projection). It keeps the response positions
and lets the head compute a single position, or only those positions. This goes through DDP, FSDP and DeepSpeed, which
call the model's own forward.

What a family does after the product (scaling, soft-capping) is measured once for every model, in a padded batch of
several rows: `logit_rule`. Where the head with all that is known here does not give the model's own logits, the model's
own logits are used, everywhere.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from srd.base.errors import UserError
from srd.models.adapted import base_model
from srd.models.finite import name_of, not_finite
from srd.models.measured import measured

logger = logging.getLogger(__name__)

MODEL_INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", "position_ids")
# Lengths of the rows that a model is measured with. The second row is the beginning of the first one.
PROBE = (9, 5, 7)
LARGE = 60.0  # largest logit of the measurement's second half, where every soft cap shows
HALVES = (torch.bfloat16, torch.float16)


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a collated batch that the model itself takes."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def logits_alone(model: Any) -> dict[str, bool]:
    """What asks a model for its logits and nothing beside, whatever its configuration asks for.

    A mixture of experts with ``output_router_logits`` would work out a loss of its routing, for which it wants to see
    the whole text at once.
    """
    config = base_model(model).config.get_text_config()
    return {"output_router_logits": False} if getattr(config, "output_router_logits", False) else {}


# --------------------------------------------------------------------------------------------- what the head does


@dataclass(frozen=True)
class HeadWeights:
    """What turns a last hidden state into logits: ``softcap(scale · (hidden @ weight.T + bias))``.

    Attributes:
        weight: ``[V, d]``.
        bias: ``[V]`` or None.
        scale: Factor on the logits (Cohere, Granite).
        softcap: ``c · tanh(logits / c)`` (Gemma 2), or None.
        width: The first so many ids count; the rest are padding rows.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    width: int | None = None

    def cut(self, width: int) -> HeadWeights:
        """The same head on the first ``width`` ids."""
        return replace(self, width=width)

    @property
    def vocabulary(self) -> int:
        """Ids that get a logit."""
        return self.width or self.weight.shape[0]

    def computing_in(self, hidden: Tensor) -> HeadWeights:
        """The same head in half precision, where autocast made the hidden states so but the weights are float32."""
        if self.weight.dtype != torch.float32 or hidden.dtype not in HALVES:
            return self
        return self.changed(lambda tensor: tensor.to(hidden.dtype))

    def changed(self, change: Callable[[Tensor], Tensor]) -> HeadWeights:
        """The same head of other tensors, such as copies."""
        return replace(self, weight=change(self.weight), bias=None if self.bias is None else change(self.bias))

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """``[n, d] -> [n, V]`` in float32 (float64 where the weights are); ``out`` has the weights' type."""
        weight = self.weight[: self.vocabulary]
        hidden = hidden.to(weight.dtype)
        logits = product(hidden, weight.T) if out is None else torch.mm(hidden, weight.T, out=out)
        if self.bias is not None:
            logits += self.bias[: self.vocabulary]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return after_product(logits, self.scale, self.softcap)


def gives_float32(left: Tensor) -> bool:
    """Whether a product of halves can be had as it is added up: GPUs do that, and this release of torch hands it on."""
    return left.device.type == "cuda" and left.dtype in HALVES and "dtype" in torch.ops.aten.mm.overloads()


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, of halves in float32 where that costs nothing."""
    return torch.mm(left, right, out_dtype=torch.float32) if gives_float32(left) else torch.mm(left, right)


def after_product(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What some families do to their logits, in place."""
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


@dataclass(frozen=True)
class LogitRule:
    """How a model's logits come from what enters its head.

    Attributes:
        head: Whether ``softcap(scale · (hidden @ weight.T + bias))`` gives the model's own logits.
        scale: See `HeadWeights`.
        softcap: See `HeadWeights`.
        select: Whether the head may be given the response positions alone, in one row.
        vocabulary: Logits of a token.
    """

    head: bool
    scale: float = 1.0
    softcap: float | None = None
    select: bool = False
    vocabulary: int = 0


_rules: WeakKeyDictionary[nn.Module, LogitRule] = WeakKeyDictionary()


def logit_rule(model: Any) -> LogitRule:
    """How a model's logits come about, measured at the first call for this model and remembered with it.

    Raises:
        UserError: its logits are not finite, or the logits of a token depend on tokens behind it.
    """
    core = base_model(model)
    rule = _rules.get(core)
    if rule is None:
        hold_weights(core)
        with in_evaluation(core):
            rule = _rules[core] = measured(core, "logit rule", lambda: _measure(core))
        if not rule.head:
            logger.warning(
                "%s: its logits do not follow from its last hidden state and its head alone. Its own logits are used, "
                "which takes more memory.", name_of(core),
            )  # fmt: skip
    return rule


@contextlib.contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """No dropout, no gradient, and no random number drawn that training would miss; everything as before afterwards.

    No autocast either: what is measured here would differ by its rounding, where training has begun already.
    """
    training = [module for module in model.modules() if module.training]
    kind = next(model.parameters()).device.type
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast(kind, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def probe_ids(model: Any, length: int, shift: int = 0) -> list[int]:
    """Token ids to measure a model with: all over the vocabulary, always the same."""
    width = max(2, model.config.get_text_config().vocab_size)
    return [(7919 * (place + 1) + 613 * shift) % width for place in range(length)]


def probe_logits(model: Any) -> Tensor:
    """A model's own logits at the real positions of the batch that models are measured with, ``[N, V]``."""
    batch = _probe(base_model(model))
    logits: Tensor = _forward(model, batch).logits
    return logits.flatten(0, 1)[batch["index"]].float()


def hold_weights(model: nn.Module) -> None:
    """Keep a family from dividing weights of its own whenever it is evaluated.

    RWKV does so for half precision, and takes it back in training: what is saved, copied or adapted in between would
    be another model.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "_rescale_layers"):
            was, module.training = module.training, True
            module._rescale_layers()  # as they were, if they have been divided
            module.training, module.config.rescale_every = was, 0


def _probe(model: Any) -> dict[str, Tensor]:
    """A padded batch of several rows, with ``index`` of its real positions."""
    device = next(model.parameters()).device
    first, longest = probe_ids(model, PROBE[0]), max(PROBE)
    rows = [first[: PROBE[0]], first[: PROBE[1]], probe_ids(model, PROBE[2], shift=1)]
    ids = torch.tensor([row + [row[0]] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    batch = {"input_ids": ids, "attention_mask": mask, "index": mask.flatten().nonzero()[:, 0]}
    if model.config.is_encoder_decoder:  # the encoder reads the first row each time
        batch |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        batch |= {"input_ids": ids[:1].expand(len(rows), -1), "attention_mask": torch.ones_like(mask)}
    return batch


def _measure(model: Any) -> LogitRule:
    batch, seen = _probe(model), []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0])) if head is not None else None
    try:
        logits = _forward(model, batch).logits
    finally:
        if handle is not None:
            handle.remove()
    own = logits.flatten(0, 1)[batch["index"]].float()
    _check_probe(model, own)
    unknown = LogitRule(head=False, vocabulary=logits.shape[-1])
    if not seen or seen[0].shape[:-1] != logits.shape[:-1]:
        return unknown
    hidden = seen[0].flatten(0, 1)[batch["index"]]
    product = HeadWeights(head.weight, head.bias).logits(hidden) if plain_head(model) else None
    factor = 1.0 if product is None else max(1.0, LARGE / max(1e-6, float(product.abs().max())))
    selected = _selected(model, batch, torch.cat([hidden, hidden * factor]))
    select = selected is not None and same_logits(model, selected[: len(own)], own)
    if product is None:
        return replace(unknown, select=select)
    expected = [(product, own)]
    if selected is not None and select:
        expected.append((HeadWeights(head.weight, head.bias).logits(hidden * factor), selected[len(own) :]))
    return replace(_fitting(model, expected) or unknown, select=select, vocabulary=unknown.vocabulary)


def _check_probe(model: Any, own: Tensor) -> None:
    """Refuse a model that gives NaN, or that knows the tokens it is to predict."""
    if torch.isnan(own).any() or torch.isposinf(own).any():
        raise UserError(not_finite(model))
    both = min(PROBE[:2])
    if not same_logits(model, own[:both], own[PROBE[0] : PROBE[0] + both]):
        raise UserError(
            f"{name_of(model)} ({type(model).__name__}) is no language model as it is configured: what it predicts "
            "depends on the tokens that follow. Give a model that generates text (BERT-like ones need is_decoder: true "
            "in config.json)."
        )


def _selected(model: Any, batch: dict[str, Any], hidden: Tensor) -> Tensor | None:
    """What the model makes of these inputs of its head, ``[n, V]``; None where it cannot be given them."""
    try:
        with _before_head(model, lambda _: hidden[None]):
            logits: Tensor = _forward(model, batch).logits
    except (RuntimeError, ValueError, IndexError):  # it counts on as many positions as it has read
        return None
    return logits[0].float() if logits.shape[:-1] == (1, len(hidden)) else None


def _fitting(model: Any, expected: list[tuple[Tensor, Tensor]]) -> LogitRule | None:
    """The rule that comes nearest to the expected logits, of those that the configuration's numbers suggest.

    Args:
        model: Whose configuration is asked.
        expected: Products of the head ``[n, V]``, and the model's own logits for each.
    """
    best: tuple[float, LogitRule] | None = None
    for scale, softcap in _candidates(model):
        pairs = [(after_product(product.clone(), scale, softcap).float(), own) for product, own in expected]
        if all(same_logits(model, ours, own) for ours, own in pairs):
            distance = max(_distance(ours, own) for ours, own in pairs)
            if best is None or distance < best[0] / 2:  # of two that fit alike, the first
                best = distance, LogitRule(True, scale, softcap)
    return best[1] if best else None


def _candidates(model: Any) -> Iterator[tuple[float, float | None]]:
    """Scales and soft caps that a configuration may mean: Cohere multiplies by its number, Granite divides by it."""
    config = model.config.get_text_config()
    scales: list[float] = [1.0]
    caps: list[float | None] = [None]
    for name, value in vars(config).items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            continue
        if "logit" in name and "cap" in name:
            caps.insert(0, float(value))
        elif "scal" in name or "multipl" in name:
            scales += [float(value), 1.0 / float(value)]
    return itertools.product(dict.fromkeys(scales), dict.fromkeys(caps))


def same_logits(model: Any, ours: Tensor, theirs: Tensor) -> bool:
    """Whether two ways to a model's logits agree up to the rounding of its precision.

    Of halves the mean error counts: the largest of some 100,000 grows with the vocabulary and the depth (1.5 % of the
    largest logit after 24 layers of bfloat16), while a model that is misread is wrong everywhere.
    """
    if ours.shape != theirs.shape or not torch.equal(torch.isfinite(ours), torch.isfinite(theirs)):
        return False
    weight = next(model.parameters())
    if weight.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False):
        # a GPU may have been told to multiply float32 in fewer digits
        exact = weight.device.type != "cuda" or torch.get_float32_matmul_precision() == "highest"
        return _distance(ours, theirs) <= (1e-3 if exact else 1e-2)
    return _mean_distance(ours, theirs) <= 5e-2


def _distance(ours: Tensor, theirs: Tensor) -> float:
    finite = torch.isfinite(theirs)
    if not finite.any():
        return 0.0
    return float((ours - theirs)[finite].abs().max()) / max(1.0, float(theirs[finite].abs().max()))


def _mean_distance(ours: Tensor, theirs: Tensor) -> float:
    """Root of the mean square of the difference, as a share of the logits'."""
    finite = torch.isfinite(theirs)
    if not finite.any():
        return 0.0
    error, size = ((each[finite] ** 2).mean().sqrt() for each in (ours - theirs, theirs))
    return float(error / size.clamp(min=1e-2))


def plain_head(model: Any) -> bool:
    """Whether the head is one matrix product on weights that are all here (no adapter, no shards)."""
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and head.weight.dim() == 2 and not hasattr(head.weight, "device_mesh")


def head_is_enough(model: Any) -> bool:
    """Whether hidden states and `head_weights` give the model's own logits."""
    return plain_head(model) and logit_rule(model).head


def head_weights(model: Any, width: int | None = None) -> HeadWeights:
    """The model's head with what the family does after the product.

    Raises:
        UserError: that is not all that makes the model's logits.
    """
    if not head_is_enough(model):
        raise UserError(
            f"the logits of {name_of(model)} ({type(model).__name__}) do not follow from its last hidden state and its "
            "head alone, so that no cache can keep them. Set cache.enabled=false to run the teacher live."
        )
    head, rule = model.get_output_embeddings(), logit_rule(model)
    return HeadWeights(head.weight, head.bias, rule.scale, rule.softcap, width)


class OwnLogits(HeadWeights):
    """Stands where a head does for a model that gives its own logits: what comes in are logits already."""

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """``[n, V] -> [n, width]``, a copy, in float32 (float64 where they are)."""
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return hidden[:, : self.vocabulary].to(dtype, copy=True)


def own_logits(model: Any) -> OwnLogits:
    """The stand-in for the head of a model whose own logits are used; it knows the vocabulary and no weights."""
    weight = next(model.parameters())
    return OwnLogits(torch.empty(logit_rule(model).vocabulary, 0, device=weight.device, dtype=weight.dtype))


# ------------------------------------------------------------------------------- hidden states, logits and losses


@contextlib.contextmanager
def _before_head(core: nn.Module, replacement: Any) -> Iterator[None]:
    """Replace what enters the head, in forward passes of this thread: others may be under way at the same time."""
    head, thread = core.get_output_embeddings(), threading.get_ident()  # type: ignore[operator]

    def own(module: nn.Module, args: Any) -> Any:
        return (replacement(args[0]),) if threading.get_ident() == thread else None

    handle = head.register_forward_pre_hook(own)
    try:
        yield
    finally:
        handle.remove()


def _check_places(core: nn.Module, values: Tensor, ids: Tensor) -> None:
    """Refuse a forward pass that has other positions than the tokens that it was given."""
    if values.shape[:-1] != ids.shape:
        raise UserError(
            f"{name_of(core)} makes positions of the shape {list(values.shape[:-1])} of tokens of the shape "
            f"{list(ids.shape)}, so that nobody knows which belongs to which token. Adapters that add tokens (prompt "
            "tuning, P-tuning) are not trained here: use LoRA."
        )


def _hidden(core: nn.Module, forward: Callable[[], Any], index: Tensor, ids: Tensor) -> Tensor:
    """What enters the head at some positions ``[N, d]``; the head itself computes one position only."""
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        _check_places(core, hidden, ids)
        seen.append(_as_multiplied(hidden))
        return hidden[:1, :1]

    with _before_head(core, keep):
        forward()
    return seen[0].reshape(-1, seen[0].shape[-1])[index]


def _as_multiplied(hidden: Tensor) -> Tensor:
    """What autocast makes of a float32 factor before a product.

    A norm leaves what enters the head in float32, and autocast has ended where the product is made in its place: a head
    in float32 would then be the most expensive part of a step.
    """
    kind = hidden.device.type
    if hidden.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return hidden
    return hidden.to(torch.get_autocast_dtype(kind))


def _logits(core: nn.Module, forward: Callable[[], Any], index: Tensor, ids: Tensor) -> Tensor:
    """The model's own logits at some positions ``[N, V]``."""

    def select(hidden: Tensor) -> Tensor:
        _check_places(core, hidden, ids)
        flat = hidden.reshape(-1, hidden.shape[-1])
        # One position at least, so that a process without tokens still takes part in the collective operations.
        return (flat[index] if len(index) else flat[:1]).unsqueeze(0)

    with contextlib.ExitStack() as stack:
        whole = not logit_rule(core).select
        if not whole:
            stack.enter_context(_before_head(core, select))
        logits: Tensor = forward().logits
    if not whole:
        return logits[0][: len(index)]
    _check_places(core, logits, ids)
    return logits.flatten(0, 1)[index]


def _predicting(batch: dict[str, Any]) -> Tensor:
    """The tokens whose positions a collated batch counts, ``[B, L]``: an encoder-decoder's are its decoder's."""
    ids: Tensor = batch.get("decoder_input_ids", batch["input_ids"])
    return ids


def _forward(model: Any, batch: dict[str, Any], core: Any = None) -> Any:
    """Run a model over a collated batch, keeping no state."""
    return model(**model_inputs(batch), use_cache=False, **logits_alone(core or model))


def response_hidden(model: nn.Module, batch: dict[str, Any], *, core: nn.Module | None = None) -> Tensor:
    """Run the model up to its head.

    Args:
        model: The model as it is called (perhaps wrapped by DDP).
        batch: From `srd.data.batching.Collator`.
        core: The model inside the wrapper; None: the model itself.

    Returns:
        Hidden states at the response positions ``[N, d]``, with their graph.
    """
    return _hidden(core or model, lambda: _forward(model, batch, core), batch["index"], _predicting(batch))


def response_logits(model: nn.Module, batch: dict[str, Any], *, core: nn.Module | None = None) -> Tensor:
    """Logits at the response positions ``[N, V]`` by the model's own head, whatever it is wrapped in."""
    return _logits(core or model, lambda: _forward(model, batch, core), batch["index"], _predicting(batch))


def response_losses(model: Any, batch: dict[str, Any]) -> Tensor:
    """Cross-entropy of each target of a collated batch, in nats, ``[N]``."""
    return token_losses(model, lambda: _forward(model, batch), batch["index"], batch["targets"], _predicting(batch))


def token_losses(model: Any, forward: Callable[[], Any], index: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy in nats, ``[N]``: through the head where it is enough, else of the model's own logits.

    Args:
        model: Whose logits count.
        forward: Runs it over ``[B, L]`` tokens.
        index: Positions in the flattened ``[B · L]``, ``[N]``.
        targets: What they must predict, ``[N]``.
        ids: The tokens, ``[B, L]``.
    """
    if head_is_enough(model):
        hidden = _hidden(model, forward, index, ids)
        return cross_entropy(hidden, head_weights(model).computing_in(hidden), targets)
    return cross_entropy(_logits(model, forward, index, ids), own_logits(model), targets)


def cross_entropy(hidden: Tensor, head: HeadWeights, targets: Tensor, rows: int = 256) -> Tensor:
    """Negative log-likelihood of each target in nats, ``[N]``, a chunk of rows at a time."""
    parts = []
    for start in range(0, len(targets), rows):
        logits = head.logits(hidden[start : start + rows])
        chosen = logits.gather(-1, targets[start : start + rows, None]).squeeze(-1)
        parts.append(torch.logsumexp(logits, -1) - chosen)
    return torch.cat(parts) if parts else hidden.new_zeros(0)
