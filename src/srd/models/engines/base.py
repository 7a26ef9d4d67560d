"""What an engine is: it loads a model that only writes, for the teacher's text, reflection and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from srd.base.errors import UserError
from srd.base.handed import check_kind
from srd.base.registry import Registry
from srd.base.settings import Named, Section


class EngineKind:
    """The choice that ``generation.engine`` names; what it loads is a model, or a `srd.models.generation.Engine`.

    Attributes:
        writes_behind: Tokens that it must write behind a text to score it.
        draws_alike: Whether its samples are those that are drawn where no engine is named.
        reads_files: Whether it loads a model's files, so that one in training has to be written for it.
    """

    writes_behind: ClassVar[int] = 0
    draws_alike: ClassVar[bool] = False
    reads_files: ClassVar[bool] = False

    def check(self, encoder_decoder: bool, models: Sequence[Any]) -> None:
        """Refuse what the engine cannot serve, before the training that may come before its first answer.

        Args:
            encoder_decoder: Whether the models are.
            models: Their settings, `srd.models.settings.ModelConfig`.

        Raises:
            UserError: it is not installed, or does not serve such models.
        """

    def load(self, source: str, longest: int, options: dict[str, Any], load_model: Callable[[], Any]) -> Any:
        """Load a model that writes.

        Args:
            source: Folder or hub name.
            longest: Tokens of the longest text, a prompt and its answer together.
            options: Of `srd.models.loading.loading.load_model`; an engine leaves out what does not apply to it.
            load_model: Loads it as a model of transformers.
        """
        raise NotImplementedError


def _check(name: str, engine: Any) -> None:
    check_kind(f"the engine '{name}'", engine, EngineKind, "register what a subclass of EngineKind makes: MyEngine()")
    if type(engine).load is EngineKind.load:
        raise UserError(f"the engine '{name}' has no load(source, longest, options, load_model): write one")


ENGINES: Registry[EngineKind] = Registry("engine", "srd.models.engines", "unknown generation.engine '{}'", check=_check)


def load_by(name: str, source: str, longest: int, options: dict[str, Any], load_model: Callable[[], Any]) -> Any:
    """Load a model that writes by the engine of this name; the other arguments are those of `EngineKind.load`.

    Raises:
        UserError: there is no such engine, or it loads nothing.
    """
    writer = ENGINES.get(name).load(source, longest, options, load_model)
    if writer is None:
        raise UserError(f"the engine '{name}' has loaded nothing: its load returns None. Let it return a model")
    return writer


class GenerationConfig(Section):
    """How text is generated in reflection, validation and evaluation."""

    engine: Annotated[Named, AfterValidator(ENGINES.name_of)] = Field(
        "transformers", description="or vllm: pip install vllm"
    )
    batch_size: int = Field(32, ge=1, description="prompts generated at once")
    max_new_tokens: int = Field(256, ge=1, description="longest response")
