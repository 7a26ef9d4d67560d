"""Who writes text: the choice that ``generation.engine`` names, besides the transformers model itself."""

from __future__ import annotations

import sys
from typing import Any

from srd.models.architecture import position_limit
from srd.models.generation import Engine
from srd.models.loading import load_config
from srd.models.sources import resolve_source
from srd.models.vllm_engine import LOADING, VllmEngine


def load_vllm(source: str, longest: int, options: dict[str, Any]) -> Engine:
    """A model that only writes, loaded by vLLM.

    Args:
        source: Of the model.
        longest: Tokens of the longest text; the model's own limit where that is less.
        options: Those of `load_model`; the ones that do not apply are left out.
    """
    named = {name: options[name] for name in LOADING if options.get(name)}
    source, config = str(resolve_source(source)), load_config(source, **named)
    longest = min(longest, position_limit(config) or sys.maxsize)
    return VllmEngine(source, longest, dtype=options.get("dtype", "auto"), config=config, **named)


ENGINES = {"vllm": load_vllm}
