"""What is handed over from Python, by a plugin or in a call, is looked at first: faults are told before any work."""

from __future__ import annotations

import inspect
from typing import Any

from srd.base.errors import UserError


def check_name(kind: str, name: Any) -> None:
    """Refuse to register under anything but a name: mostly the decorator was written without it.

    Raises:
        UserError: it is no text, or an empty one.
    """
    if not isinstance(name, str) or not name:
        given = getattr(name, "__name__", "a_name")
        raise UserError(f'a {kind} is registered under a name: write @srd.register_{kind}("{given}")')


def check_call(what: str, function: Any, *names: str, also: str = "") -> None:
    """Refuse what cannot be called as it will be.

    Args:
        what: How it is named in the message.
        function: What was handed over.
        names: Of the arguments, in their order.
        also: One that is given by its name.

    Raises:
        UserError: it is no function, or does not take these arguments.
    """
    wanted = ", ".join([*names, *([f"{also}=..."] if also else [])])
    if not callable(function):
        raise UserError(f"{what} must be a function of ({wanted}), but is of type {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a function in C does not say what it takes
    try:
        signature.bind(*names, **({also: None} if also else {}))
    except TypeError as error:
        raise UserError(f"{what} is called with ({wanted}), but is written for {signature}: {error}") from None


def check_kind(what: str, value: Any, kind: Any, instead: str) -> None:
    """Refuse what is not of the kind that is expected.

    Raises:
        UserError: with what to hand over instead.
    """
    if not isinstance(value, kind):
        found = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise UserError(f"{what} is {found}: {instead}")


def check_counts(**given: Any) -> None:
    """Refuse what is no number of things, by the names that its giver knows them by; None is left to a default.

    Raises:
        UserError: it is no whole number, or below 1.
    """
    for name, value in given.items():
        whole = hasattr(value, "__index__") and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):
            raise UserError(f"{name} is {value!r}, but must be {'1 or more' if whole else 'a whole number, 1 or more'}")


NEEDS = {  # what is asked for, an attribute that it has, and in words
    "model": ("config", "a loaded model, as AutoModelForCausalLM.from_pretrained(...) gives it"),
    "args": ("output_dir", "transformers.TrainingArguments"),
    "tokenizer": ("eos_token_id", "a tokenizer, as AutoTokenizer.from_pretrained(...) gives it"),
}
NEEDS |= {"teacher": NEEDS["model"], "processing_class": NEEDS["tokenizer"]}


def check_loaded(**given: Any) -> None:
    """Refuse what is no model, no arguments or no tokenizer, by the names of the arguments."""
    for name, value in given.items():
        has, wanted = NEEDS[name]
        if not hasattr(value, has):
            raise UserError(f"{name}: give {wanted}, and not {'None' if value is None else repr(value)[:80]}.")
