"""Whether a model has adapters, and the model inside: asked without importing peft."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel


def is_adapted(model: Any) -> TypeGuard[PeftModel]:
    """Whether a model has adapters: none has where nobody has imported peft."""
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the transformers model inside, adapters still in place."""
    if not is_adapted(model):
        return model  # type: ignore[return-value]
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    return inner
