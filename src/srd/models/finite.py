"""Where NaN and infinity come from: the weights of a model, and which of them, or what it was given to read.

Weights are looked at only after something that is not finite was seen, so that all this costs nothing in a good run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

WIDER = "load it in a wider precision (dtype: float32)"


def non_finite_tensor(model: nn.Module) -> str | None:
    """Name the first tensor of a model that holds NaN or infinity, and how many of its values do; None: all are finite.

    Of buffers only NaN counts: masks are full of minus infinity.
    """
    for name, tensor in model.named_parameters():
        if bad := _count(tensor.detach(), torch.isfinite):
            return f"'{name}' ({bad} of its {tensor.numel()} values are NaN or infinite)"
    for name, buffer in model.named_buffers():
        if bad := _count(buffer, lambda values: ~torch.isnan(values)):
            return f"'{name}' ({bad} of its {buffer.numel()} values are NaN)"
    return None


def _count(tensor: Tensor, fine: Any) -> int:
    """Values that are not fine; of a tensor that is spread over processes, in this process's part."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    if local.device.type == "meta" or not (local.is_floating_point() or local.is_complex()):
        return 0
    return int((~fine(local)).sum())


def set_name(model: nn.Module, name: str) -> None:
    """Say how messages call a model: ``the teacher '/models/large'``."""
    model.srd_name = name  # type: ignore[assignment]


def name_of(model: Any, role: str | None = None) -> str:
    """How messages call a model: by its role where that is known, and by where it was loaded from."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    if named := getattr(core, "srd_name", None):
        return str(named)
    place = getattr(getattr(core, "config", None), "_name_or_path", "") or ""
    return f"the {role or 'model'} '{place}'" if place else f"the {role or 'model'} ({type(core).__name__})"


def blame(models: dict[str, Any], rows: Sequence[str] = ()) -> str:
    """Say where NaN or infinity comes from: a tensor of one of these models, or else these rows.

    Args:
        models: Everything whose weights took part, by its role.
        rows: Ids of the examples that were read.

    Returns:
        Sentences that name it, and say what to do.
    """
    for role, model in models.items():
        tensor = non_finite_tensor(model) if isinstance(model, nn.Module) else None
        if tensor is not None:
            name = name_of(model, role)
            return f"The weights of {name} are not finite: tensor {tensor}. Save or train that model again."
    names = " and ".join(name_of(model, role) for role, model in models.items())
    told = f" with the examples {list(rows)[:16]}" if rows else ""
    return f"All weights of {names} are finite, so it happens on the way{told}. Look at these rows, or {WIDER}."


def not_finite(model: Any, rows: Sequence[str] = ()) -> str:
    """What is said of a model that gives NaN; ``rows``: ids of the examples that it read."""
    return f"{name_of(model)} gives logits that are not finite. {blame({'model': model}, rows)}"
