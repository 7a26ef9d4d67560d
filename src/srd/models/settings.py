"""Settings of models: which one, how it is loaded, how it writes, its adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from srd.base.settings import Named, Precision, Section


class ModelConfig(Section):
    """A pre-trained model. A plain string is short for ``model``."""

    short_for = "model"

    model: Named = Field(description="hub name, local folder, GGUF file, or smollm2 (the one the demo uses)")
    revision: Named | None = Field(None, description="commit, branch or tag on the hub")
    adapter: Named | None = Field(None, description="LoRA adapter folder that is merged on loading")
    dtype: Precision = Field("auto", description="precision of the weights in memory; auto: as they were saved")
    attn_implementation: Named | None = Field(
        None, description="sdpa, flash_attention_2, eager; none: the library's choice"
    )
    trust_remote_code: bool = Field(False, description="run Python code that the hub repository brings")


class LoraConfig(Section):
    """Low-rank adapters (peft)."""

    r: int = Field(16, ge=1, le=2**16, description="rank")
    alpha: float = Field(64, gt=0, le=2**20, description="scale is alpha / r")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout before the adapter")
    targets: Annotated[list[Named], Field(min_length=1)] | Literal["all-linear"] | None = Field(
        None, description="module names; else the family's usual"
    )
    merge: bool = Field(True, description="merge into the saved student; else save the adapter beside its base")
