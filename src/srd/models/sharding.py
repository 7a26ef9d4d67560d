"""Models whose weights are spread over processes (FSDP2, DeepSpeed ZeRO-3): whole again where one process needs all.

Training goes through the wrapped model's own forward, where the libraries fetch each layer's weights in time.
Generation is different: processes answer different prompts and take different numbers of steps, so that they must not
wait for each other within a step. The student is small enough for one device: its weights are put together once and
dropped afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers.integrations import unset_hf_deepspeed_config

from srd.base.errors import UserError

logger = logging.getLogger(__name__)


def check_sharding(accelerator: Accelerator) -> None:
    """Refuse a kind of FSDP whose layers cannot be made whole for generation.

    Raises:
        UserError: the accelerate configuration asks for the first version of FSDP, or torch is too old.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
            logger.warning("accelerate takes up FSDP on GPUs only: here every process has the whole student")
        return
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise UserError("fsdp_version is 1 in the accelerate configuration. Set fsdp_version: 2, as in `fsdp.yaml`.")
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise UserError(f"FSDP needs torch 2.13 or newer, but this is {torch.__version__}. Update it, or use ddp.yaml.")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether a process has only a part of the prepared model's weights."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
    return accelerator.distributed_type == DistributedType.FSDP


@contextlib.contextmanager
def whole_model(model: nn.Module, accelerator: Accelerator) -> Iterator[Any]:
    """The model with all its weights on this process. Every process must enter and leave together."""
    core = accelerator.unwrap_model(model)
    if not is_sharded(accelerator):
        yield core
    elif accelerator.distributed_type == DistributedType.FSDP:
        # FSDP wants the whole model to be called first, but generation may begin with its encoder.
        core._get_fsdp_state()._lazy_init()
        units = [module for module in core.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield core
        finally:
            for unit in units:
                unit.set_reshard_after_forward(True, recurse=False)
            # FSDP has noted every forward pass of the generation, of which each process made another number, and would
            # fetch weights by these notes in the next backward pass: in another order on each, so that all would wait.
            core.reset_iter_state()
    else:
        with _gathered_by_deepspeed(model, core):
            yield core


@contextlib.contextmanager
def _gathered_by_deepspeed(engine: Any, core: nn.Module) -> Iterator[None]:
    """Gather ZeRO-3's parameters, and keep its hooks from releasing them layer by layer meanwhile.

    The hook before each forward pass goes too: it compares notes with the other processes, which make another number
    of passes.
    """
    import deepspeed

    offload = engine.optimizer.parameter_offload
    with deepspeed.zero.GatheredParameters(list(core.parameters())):
        for hook in [*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload.setup_zero_stage3_hooks()


def models_are_whole() -> None:
    """Take back what transformers does everywhere once a training with ZeRO-3 is set up.

    It would spread every model that is loaded from then on, and let processes generate in step though they answer
    different numbers of prompts. Only the student is spread here, by DeepSpeed itself.
    """
    unset_hf_deepspeed_config()


@contextlib.contextmanager
def shared_embeddings_together(model: nn.Module) -> Iterator[None]:
    """Keep accelerate from sharding the embedding of an encoder-decoder on its own while it prepares the model.

    Encoder, decoder and often the head share that weight, and torch refuses a weight that two shards have in common
    (accelerate 1.15 expects one embedding only). Left alone, all of them go with the rest of the model.
    """
    if not model.config.is_encoder_decoder:  # type: ignore[union-attr]
        yield
        return
    hidden: Any = model
    hidden.get_input_embeddings = hidden.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del hidden.get_input_embeddings, hidden.get_output_embeddings


def shard_for_inference(model: nn.Module) -> None:
    """Spread a frozen model's weights over all processes, layer by layer (FSDP2).

    Args:
        model: With a list of layers, as every transformer has; it is changed in place.
    """
    layers = [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
    names = set(getattr(model, "_no_split_modules", None) or [])
    for layer in layers:
        if not names or type(layer).__name__ in names:
            fully_shard(layer)
    fully_shard(model)


@torch.no_grad()
def whole_weights(model: nn.Module, accelerator: Accelerator) -> dict[str, Any] | None:
    """The full state dictionary of a sharded model, on the main process; None where the model is whole anyway."""
    if not is_sharded(accelerator):
        return None
    return accelerator.get_state_dict(model)
