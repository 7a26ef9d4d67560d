"""Steps of decoding whose kernels are recorded once and launched together from then on (CUDA graphs).

A step of a small model is a thousand small kernels. Launched one by one from Python they take the same time for one row
as for hundreds, with the GPU waiting; recorded, they are launched at once. A recording works on fixed memory. So keys
and values lie in buffers with room for tokens to come, the mask covers that room, and what changes from step to step is
changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # tokens that a recording has room for: little memory beside a prompt's, and one recording in many steps


class RoomyLayer(DynamicLayer):
    """Keys and values ``[B, H, room, d]``, all of which are given; new ones are written to one place."""

    def __init__(self, layer: DynamicLayer, room: int, place: Tensor) -> None:
        super().__init__()
        self.place = place
        self.keys, self.values = (pad(each, (0, 0, 0, room)) for each in (layer.keys, layer.values))
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values of one token ``[B, H, 1, d]``."""
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values


class Replay:
    """Goes on reading a batch from where plain steps have come to.

    Args:
        forward: ``(ids [B, 1], mask [B, 1, 1, L], positions [B, 1], state) -> logits [B, V]`` of a model.
        state: Keys and values of what was read, which stay as they are.
        mask: Which of the tokens that were read are no padding, ``[B, read]``.

    Attributes:
        left: Tokens that there is room for.
    """

    def __init__(self, forward: Callable[..., Tensor], state: DynamicCache, mask: Tensor) -> None:
        self.left, self.read = ROOM, mask.shape[1]
        self._place = torch.tensor([self.read - 1], device=mask.device)
        self._tokens = torch.zeros(len(mask), 1, dtype=torch.long, device=mask.device)
        self._positions = mask.sum(-1, keepdim=True) - 1
        self._mask = pad(mask.bool(), (0, ROOM))[:, None, None]
        self._state = DynamicCache()
        self._state.layers = [RoomyLayer(layer, ROOM, self._place) for layer in state.layers]
        self._step = recorded(lambda: self._next(forward), mask.device)

    def _next(self, forward: Callable[..., Tensor]) -> Tensor:
        self._place += 1
        self._positions += 1
        self._mask.index_fill_(-1, self._place, True)
        return forward(self._tokens, self._mask, self._positions, self._state)

    def step(self, tokens: Tensor) -> Tensor:
        """Read the tokens ``[B]``; logits of the next ones ``[B, V]``, which the next step overwrites."""
        self._tokens.copy_(tokens[:, None])
        self.left, self.read = self.left - 1, self.read + 1
        return self._step()

    def state(self) -> tuple[DynamicCache, Tensor]:
        """Keys and values of what was read by now, and which of it is no padding: for plain steps."""
        state = DynamicCache()
        state.layers = [_plain(layer, self.read) for layer in self._state.layers]
        return state, self._mask[:, 0, 0, : self.read].long()


def _plain(layer: Any, read: int) -> DynamicLayer:
    """The first so many keys and values of a layer, where they lie."""
    plain = DynamicLayer()
    plain.lazy_initialization(layer.keys, layer.values)
    plain.keys, plain.values = layer.keys[:, :, :read], layer.values[:, :, :read]
    return plain


def recorded(function: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """What does the same as a function, on the same memory, without going through Python; on a GPU alone."""
    if device.type != "cuda":
        return function
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    # torch.cuda.graph would collect garbage and empty the allocator first: a second each time, for rows that leave.
    with torch.cuda.stream(aside):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            result = function()
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(aside)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def can_be_recorded(model: Any) -> bool:
    """Whether a forward pass is on a GPU, and nothing but kernels as far as can be seen from outside: no hook runs."""
    return _is_on_gpu(model) and not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )


def _is_on_gpu(model: Any) -> bool:
    return bool(next(model.parameters()).device.type == "cuda")
