"""The model itself, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from srd.models.engines.base import ENGINES, EngineKind


class Transformers(EngineKind):
    """Serves every model, on every machine."""

    draws_alike = True

    def load(self, source: str, longest: int, options: dict[str, Any], load_model: Callable[[], Any]) -> Any:
        return load_model()


ENGINES.register("transformers")(Transformers())
