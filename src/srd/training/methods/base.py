"""What a method is: a section of the recipe that says who writes the text and whether the teacher is asked.

To add one, register a section of settings::

    @srd.register_method("half_on_policy")
    class HalfOnPolicy(srd.Method):
        text = "student"
        max_new_tokens: int = 64

        def rollouts(self, seed):
            return OnPolicy(0.5, seed)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import SchemaValidator, core_schema

from srd.base.errors import UserError
from srd.base.handed import check_call, check_name
from srd.base.registry import Registry
from srd.base.settings import Section

if TYPE_CHECKING:
    from srd.training.loss.schedules import Schedule
    from srd.training.rollouts import Rollouts


def _how_often(value: Any) -> Any:
    """Refuse what says neither in a word nor in steps how often the student writes anew."""
    if value in REFRESHES if isinstance(value, str) else type(value) is int and value >= 1:
        return value
    raise ValueError(f"expected {', '.join(REFRESHES)} or a number of optimizer steps, at least 1")


#: When the student's text is written anew: in every step, or once for an epoch, a stage or so many optimizer steps;
#: auto: when the student has moved away from it.
REFRESHES = ("step", "epoch", "stage", "auto")
Refresh = Annotated[
    Literal["step", "epoch", "stage", "auto"] | int,
    BeforeValidator(_how_often),
    Field(description="when the student writes anew: step, epoch, stage, auto, or so many optimizer steps"),
]


Writers = Literal["reference", "teacher", "student", "both"]
WRITERS: tuple[str, ...] = get_args(Writers)


class Method(Section):
    """A method of training; a subclass adds settings and says what it does.

    Attributes:
        name: What it is registered under.
        title: What it is called in tables; empty: its name.
        text: Who writes the responses: the data, the teacher once beforehand, (at least now and then) the student, or
            teacher and student both, once beforehand.
        uses_teacher: Whether the teacher's distribution enters the loss.
        own_objective: The divergence that it prescribes; None: it goes with any.
    """

    name: str = Field("", description="what it is registered under")
    title: ClassVar[str] = ""
    text: ClassVar[Writers] = "reference"
    uses_teacher: ClassVar[bool] = True
    own_objective: ClassVar[str | None] = None

    def rollouts(self, seed: int) -> Rollouts | None:
        """Who writes the responses, step by step; None: all of them are there beforehand."""
        return None

    def schedule(self) -> Schedule | None:
        """What of the loss changes as the training goes on; None: nothing."""
        return None

    # What follows is said by settings of these names, where a method has them.

    def longest_text(self) -> int | None:
        """Tokens of the longest response that a model writes for it (``max_new_tokens``); None: it writes none."""
        return getattr(self, "max_new_tokens", None)

    def refreshed(self) -> Refresh:
        """When the student's text is written anew (``refresh``); if not in every step, it is written ahead of them."""
        return getattr(self, "refresh", "step")

    def all_by_student(self) -> bool:
        """Whether the student writes every response, so that no reference is trained on."""
        return False

    def written_share(self) -> float:
        """The share of the responses that the student writes (``student_share``), as far as it is known beforehand."""
        return getattr(self, "student_share", 0.0)

    def sampling_temperature(self) -> float:
        """Temperature of the student where it writes (``temperature``); 0 is greedy."""
        return getattr(self, "temperature", 1.0)

    @classmethod
    def alternatives(cls) -> list[type[Method]]:  # type: ignore[override]
        """Every method where any may stand; else this one."""
        return [METHODS.get(name) for name in METHODS.names()] if cls is Method else [cls]


def _is_registered(name: str, method: Any) -> None:
    """Refuse what did not go through `register_method`, which an entry point may name."""
    if not (isinstance(method, type) and issubclass(method, Method) and method.model_fields["name"].default == name):
        raise UserError(f"the method '{name}' is {method!r}: name a module that calls srd.register_method")


METHODS: Registry[type[Method]] = Registry("method", "srd.training.methods", check=_is_registered)
M = TypeVar("M", bound=Method)


def register_method(name: str) -> Callable[[type[M]], type[M]]:
    """Register a subclass of `Method` under ``name``: ``training.method`` takes it, with its settings.

    Raises:
        UserError: the name is taken.
    """
    check_name("method", name)

    def decorate(method: type[M]) -> type[M]:
        _check(name, method)
        field = method.model_fields["name"]
        field.annotation, field.default = Literal[name], name  # type: ignore[assignment]
        method.model_rebuild(force=True)
        METHODS.register(name)(method)
        return method

    return decorate


def _check(name: str, method: Any) -> None:
    """Refuse a class that is no method, or whose functions do not fit what it says of itself."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"the method '{name}' is {method!r}: write a class that inherits from srd.Method")
    check_call(f"{method.__name__}.rollouts", method.rollouts, "self", "seed")
    check_call(f"{method.__name__}.schedule", method.schedule, "self")
    if isinstance(vars(method).get("text"), property) or not isinstance(method.text, str):
        return  # its settings say who writes
    if method.text not in WRITERS:
        raise UserError(f"{method.__name__}.text is {method.text!r}, but must be one of {', '.join(WRITERS)}")
    if (method.rollouts is not Method.rollouts) != (method.text == "student"):
        said = "has rollouts(seed)" if method.text != "student" else "has text = 'student'"
        other = "text = 'student'" if method.text != "student" else "rollouts(seed), which says when the student writes"
        raise UserError(f"the method '{name}' {said}, but not what belongs to it: add {other}")


def any_method(*names: str) -> SchemaValidator:
    """What checks a method's settings: those of the one that is named, of these or of all there are by now."""
    return _one_of(tuple(METHODS.get(name) for name in names or METHODS.names()))


@cache
def _one_of(methods: tuple[type[Method], ...]) -> SchemaValidator:
    return SchemaValidator(_choice(methods))


def _choice(methods: Iterable[type[Method]]) -> core_schema.CoreSchema:
    choices = {str(each.model_fields["name"].default): each.__pydantic_core_schema__ for each in methods}
    return core_schema.tagged_union_schema(choices, "name")


def method_of(value: Any, *, strict: bool = True) -> Any:
    """A method from its settings; the others are imported only where it is not clear which one is meant."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return any_method(*([name] if isinstance(name, str) else [])).validate_python(value, strict=strict)


class _Named:
    """The registered method that a recipe names; plugins may add some at any time."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(method_of)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return handler(_choice(Method.alternatives()))


AnyMethod = Annotated[Method, _Named()]
