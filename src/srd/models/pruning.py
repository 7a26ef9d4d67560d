"""A student from its teacher: drop the layers that change the hidden state least (arXiv 2403.17887).

A block of n layers is as dispensable as the hidden state that leaves it points the way the one that enters it
does. The shortened model is built anew from a shortened configuration, so what is in memory is what a reload
gives: cache positions, layer types and ties need no patching, and the teacher is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from srd.base.errors import UserError

Drop = int | list[int]

# Bounds the memory for comparing all depths: tokens x layers x width in float32.
TOKENS_AT_ONCE = 256

# Where configurations keep the depth of the encoder and of the decoder, and one value for every layer.
DEPTH_NAMES = {"encoder": ("num_layers", "encoder_layers"), "decoder": ("num_decoder_layers", "decoder_layers")}
PER_LAYER_NAMES = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")


def layer_stacks(model: PreTrainedModel) -> dict[str, tuple[str, nn.ModuleList]]:
    """Find the stacks of blocks, (name, blocks) each: ``decoder``, after ``encoder`` where there is one.

    Raises:
        UserError: no list of equal blocks is found.
    """
    if not model.config.is_encoder_decoder:
        return {"decoder": _longest_list(model, model)}
    return {"encoder": _longest_list(model, model.get_encoder()), "decoder": _longest_list(model, model.get_decoder())}


def _longest_list(model: nn.Module, part: nn.Module) -> tuple[str, nn.ModuleList]:
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    lists = [
        (names[id(module)], module)
        for module in part.modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    # Lists inside a block (T5's sub-layers, experts) may be longer than the stack itself.
    inside = [name for name, _ in lists for other, _ in lists if name.startswith(f"{other}.")]
    outer = [(name, blocks) for name, blocks in lists if name not in inside]
    if not outer:
        raise UserError(
            f"drop_layers: no stack of equal layers in {type(model).__name__}. Name a student model instead."
        )
    return max(outer, key=lambda pair: len(pair[1]))


# ------------------------------------------------------------------------------------- which layers


@torch.no_grad()
def pairwise_angles(model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Mean angles, in units of pi, between the hidden states at all depths, from one pass a batch.

    Args:
        model: decoder-only or encoder-decoder model with L layers in a stack.
        batches: From `srd.data.batching.Collator`.

    Returns:
        For each stack [L + 1, L + 1]; entry (i, j) compares what enters layer i with what enters layer j, and
        L is the output of the last layer before the final norm. The mean is over all real tokens. The paper
        takes the last token of each text; on SmolLM2 that chooses much worse layers.
    """
    stacks = {name: blocks for name, (_, blocks) in layer_stacks(model).items()}
    sums = {name: np.zeros((len(blocks) + 1, len(blocks) + 1)) for name, blocks in stacks.items()}
    counts = dict.fromkeys(stacks, 0)
    was_training = model.training
    model.eval()
    for batch in batches:
        states, masks = _hidden_states(model, stacks, batch)
        for name in stacks:
            total, count = _angle_sum(states[name], masks[name])
            sums[name] += total
            counts[name] += count
    model.train(was_training)
    if not all(counts.values()):
        raise UserError("drop_layers: there are no examples to measure the layers with. Name the layers, or give data.")
    return {name: sums[name] / counts[name] for name in stacks}


def _hidden_states(
    model: PreTrainedModel, stacks: dict[str, nn.ModuleList], batch: Mapping[str, torch.Tensor]
) -> tuple[dict[str, list[torch.Tensor]], dict[str, torch.Tensor]]:
    """Run one batch; return each stack's L + 1 hidden states [batch, length, d] and mask of real tokens.

    Hooks, because ``output_hidden_states`` gives the last one after the final norm, which turns it.
    """
    states: dict[str, list[torch.Tensor]] = {name: [] for name in stacks}
    read = ("input_ids", "attention_mask", "decoder_input_ids")
    call = {name: batch[name].to(model.device) for name in read if name in batch}
    real = call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()
    masks = {"decoder": real}
    if model.config.is_encoder_decoder:
        masks = {"encoder": real, "decoder": batch["decoder_attention_mask"].to(model.device).bool()}
    hooks = []
    for name, blocks in stacks.items():
        for block in blocks:
            hooks.append(block.register_forward_pre_hook(_keep_input(states[name]), with_kwargs=True))
        hooks.append(blocks[-1].register_forward_hook(_keep_output(states[name])))
    try:
        # Where there is an inner model, it spares the head; T5 is its own inner model.
        model.base_model(**call, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states, masks


def _keep_input(states: list[torch.Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    return hook


def _keep_output(states: list[torch.Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    return hook


def _angle_sum(states: list[torch.Tensor], mask: torch.Tensor) -> tuple[np.ndarray, int]:
    """Sum the angles [L + 1, L + 1] over the real tokens, and count these."""
    total = np.zeros((len(states), len(states)))
    real = [state[mask] for state in states]
    for pieces in zip(*(torch.split(state, TOKENS_AT_ONCE) for state in real), strict=True):
        directions = nn.functional.normalize(torch.stack(pieces, dim=1).float(), dim=-1)
        angles = (directions @ directions.transpose(1, 2)).clamp(-1, 1).arccos() / torch.pi
        total += angles.double().sum(dim=0).cpu().numpy()
    return total, int(mask.sum())


# ------------------------------------------------------------------------------------- dropping them


def drop_layers(
    model: PreTrainedModel, drop: Drop, batches: Iterable[Mapping[str, torch.Tensor]] | None = None
) -> tuple[PreTrainedModel, dict[str, list[int]]]:
    """Return a new model without some of the layers, and which they were; ``model`` stays as it is.

    Args:
        model: the model to shorten, in any precision, on any device.
        drop: a number n drops the n successive layers that turn the hidden state least on ``batches``; a list
            names the layers (from 0). In an encoder-decoder model either holds for both stacks. T5's first layer
            holds the position bias of its stack and stays.
        batches: see ``pairwise_angles``; not read where the layers are named.

    Raises:
        UserError: a layer is out of range or named twice, no layer would remain, or there are no batches to
            measure.
    """
    stacks, first = layer_stacks(model), check_drop(model, drop)
    if isinstance(drop, int):
        angles = pairwise_angles(model, batches or [])
        starts = {name: start + int(np.diagonal(angles[name], drop)[start:].argmin()) for name, start in first.items()}
        dropped = {name: list(range(start, start + drop)) for name, start in starts.items()}
    else:
        dropped = {name: sorted(drop) for name in stacks}
    return _without(model, stacks, dropped), dropped


def check_drop(model: PreTrainedModel, drop: Drop) -> dict[str, int]:
    """The first layer of each stack that can be dropped; what cannot is refused, of a model without weights, too.

    Raises:
        UserError: as `drop_layers`.
    """
    first = {}
    for name, (_, blocks) in layer_stacks(model).items():
        first[name] = _first_droppable(blocks)
        _check_drop(drop, name, len(blocks), first[name])
    return first


def _first_droppable(blocks: nn.ModuleList) -> int:
    """1 where the first layer computes the position bias for all the others (T5), else 0."""
    return int(any(getattr(module, "has_relative_attention_bias", False) for module in blocks[0].modules()))


def _check_drop(choice: Drop, stack: str, depth: int, first: int) -> None:
    where = f"drop_layers: {choice} of the {depth} layers of the {stack}"
    if isinstance(choice, int):
        if not 1 <= choice < depth:
            raise UserError(f"{where}: give a number from 1 to {depth - 1}.")
        return
    if not choice or len(choice) >= depth:
        raise UserError(f"{where}: name at least one layer, and leave at least one.")
    if len(set(choice)) != len(choice):
        raise UserError(f"{where}: layers are named twice.")
    if wrong := [index for index in choice if not first <= index < depth]:
        reason = ", as the first layer holds the position bias of the stack" if first and wrong == [0] else ""
        raise UserError(f"{where}: {wrong} cannot be dropped{reason}. Layers go from {first} to {depth - 1}.")


def _without(
    model: PreTrainedModel, stacks: dict[str, tuple[str, nn.ModuleList]], dropped: dict[str, list[int]]
) -> PreTrainedModel:
    """Build the shortened model and give it copies of the weights of the layers that stay."""
    config = copy.deepcopy(model.config)
    origin: dict[str, str] = {}  # name of a layer in the new model -> its name in the old one
    for stack, layers in dropped.items():
        name, blocks = stacks[stack]
        kept = [index for index in range(len(blocks)) if index not in layers]
        _shorten_config(config, stack, kept)
        origin |= {f"{name}.{new}.": f"{name}.{old}." for new, old in enumerate(kept)}
    with no_init_weights():
        student = type(model)(config)
    # The old model's head may have weights of its own, whatever the configuration says (mT5).
    for name in student.all_tied_weights_keys.keys() - model.all_tied_weights_keys.keys():
        student.all_tied_weights_keys.pop(name)
    student.tie_weights(recompute_mapping=False)
    nn.Module.to(student, model.device)
    values = model.state_dict()
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        prefix = next((layer for layer in origin if name.startswith(layer)), "")
        source = origin.get(prefix, "") + name[len(prefix) :]
        if source in values:  # buffers that are not saved are computed from the configuration
            tensor.data = values[source].detach().clone()
    old, new = model.get_input_embeddings(), student.get_input_embeddings()
    if isinstance(old, nn.Embedding) and isinstance(new, nn.Embedding):
        new.padding_idx = old.padding_idx
    student.generation_config = copy.deepcopy(model.generation_config)
    student.eval()
    return student


def _shorten_config(config: PreTrainedConfig, stack: str, kept: list[int]) -> None:
    """Write the new depth, and keep the values of the layers that stay in lists with one value a layer."""
    if config.is_encoder_decoder:
        for name in DEPTH_NAMES[stack]:
            if hasattr(config, name):
                setattr(config, name, len(kept))
        return
    config = config.get_text_config()
    values = {name: list(getattr(config, name)) for name in PER_LAYER_NAMES if getattr(config, name, None) is not None}
    wanted = {name: [own[index] for index in kept] for name, own in values.items()}
    for name in wanted:
        if is_set(config, name):
            setattr(config, name, wanted[name])
    config.num_hidden_layers = len(kept)
    for name, kinds in wanted.items():  # some families work it out, by the number of the layer
        if list(getattr(config, name)) != kinds:
            raise UserError(
                f"student.drop_layers: architecture '{config.model_type}' says by their number what kinds its layers "
                f"are, and those that stay ({', '.join(map(str, kinds))}) are not what it would make of {len(kept)}. "
                "Give a list of layers that leaves the order of kinds as it was."
            )


def is_set(config: PreTrainedConfig, name: str) -> bool:
    """Whether a value of a configuration can be set, and is not worked out from others."""
    value = getattr(type(config), config.attribute_map.get(name, name), None)
    return not (isinstance(value, property) and value.fset is None)
