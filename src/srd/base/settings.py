"""What the settings of all rooms are made of: sections of a recipe, and the values that several of them take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from srd.base.limits import sampling_problem, temperature_problem

LONGEST_NAME = 100  # characters; file systems take 255 bytes, and other names grow from this one


def named(value: str) -> str:
    """Refuse an empty name of a file, a folder or a module."""
    if not value.strip():
        raise ValueError("is empty: give a name, or leave the field out")
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError("begins with ~ and a name that this machine does not know. Write the whole path") from error
    return value


def folder_name(value: str) -> str:
    """Refuse a name that would be no folder, or one elsewhere: a recipe may come from somebody else."""
    if not value.strip(" ."):
        raise ValueError("is no name of a folder: give one with letters or digits")
    if len(value) > LONGEST_NAME:
        raise ValueError(f"has {len(value)} characters, but names a folder: at most {LONGEST_NAME}")
    if not value.isprintable() or any(letter in "/\\" for letter in value):
        raise ValueError("names a folder, so it cannot hold '/', '\\' or invisible characters")
    if value != value.strip() or value[0] == "." or value[-1] == ".":
        raise ValueError("names a folder, so it cannot begin or end with a space or a dot")
    return value


def each_once(values: list[Any]) -> list[Any]:
    """Refuse a value that a list has twice."""
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"{twice[0]!r} is there twice: list each once")
    return values


OffIsAWord = BeforeValidator(lambda value: "off" if value is False else value)  # as YAML reads it


def _without(problem: Callable[[float], str | None]) -> AfterValidator:
    """Refuses a number that has a problem."""

    def check(value: float) -> float:
        if said := problem(value):
            raise ValueError(said)
        return value

    return AfterValidator(check)


SamplingTemperature = Annotated[float, _without(sampling_problem)]
DivergenceTemperature = Annotated[float, _without(temperature_problem)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy and torch take no larger one
Named = Annotated[str, AfterValidator(named)]
FolderName = Annotated[str, AfterValidator(folder_name)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors.

    Attributes:
        short_for: The key that a plain value in the place of the section stands for; empty: there is no short form.
        plain: What counts as a plain value.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=False, allow_inf_nan=False)

    short_for: ClassVar[str] = ""
    plain: ClassVar[tuple[type, ...]] = (str,)

    @model_validator(mode="before")
    @classmethod
    def _from_plain_value(cls, value: Any) -> Any:
        return {cls.short_for: value} if cls.short_for and isinstance(value, cls.plain) else value

    @classmethod
    def alternatives(cls) -> list[type[Section]]:
        """The sections that may stand where this one is asked for."""
        return [cls]
