"""A first recipe from a few answers: short, with what each setting means beside it."""

from __future__ import annotations

import re
import shlex
from typing import Any

from srd.base.errors import UserError
from srd.data.settings import DataConfig
from srd.recipe.comments import commented
from srd.recipe.reading import validate_recipe
from srd.recipe.schema import Recipe

HEAD = """\
# A recipe of srd. What is not said here has its default: `srd recipes {file} --comments` shows every setting.
# What it would take: srd plan {file}    Run it, or go on with it: srd run {file}
"""
#: What is written out though it is the default: the settings that are changed first.
SHOWN: dict[str, list[str]] = {
    "training": ["objective", "epochs", "learning_rate", "batch_size", "curriculum"],
    "evaluation": ["seeds", "temperature"],
}


def first_recipe(name: str, teacher: str, student: str, data: str, *, epochs: float, answer: int) -> Recipe:
    """A recipe from what a person answers: ``student`` may be a model, or how many of the teacher's layers it loses.

    Raises:
        UserError: something is wrong with one of them.
    """
    small: dict[str, Any] = {"model": student}
    if re.fullmatch(r"[+-]?\d+([.,]\d*)?", student):
        if not (student.isdecimal() and 0 < int(student) < 10_000):
            raise UserError(f"--student {student}: a number says how many layers of the teacher go; give 1, 2, 3, …")
        small = {"drop_layers": int(student), "warm_start": {"epochs": 1.0}}  # without layers it first has to recover
    lengths = DataConfig.model_fields
    prompt, whole = int(lengths["max_prompt_length"].default), int(lengths["max_length"].default)
    content = {
        "name": name,
        "teacher": {"model": teacher},
        "student": small,
        "data": {"train": {"path": data}, "max_length": max(whole, prompt + answer), "max_prompt_length": prompt},
        "generation": {"max_new_tokens": answer},
        "training": {"objective": "srkl", "epochs": epochs},
    }
    return validate_recipe(content, "this recipe")


def first_text(recipe: Recipe) -> str:
    """The file of such a recipe."""
    full = recipe.model_dump(mode="json")
    student = full["student"]
    small = {"model": student["model"]} if student["model"] else {
        "drop_layers": student["drop_layers"], "warm_start": {"epochs": student["warm_start"]["epochs"]}}  # fmt: skip
    curriculum = {key: full["training"]["curriculum"][key] for key in ("stages", "select", "temperature", "weight")}
    values: dict[str, Any] = {
        "name": recipe.name,
        "teacher": {"model": full["teacher"]["model"]},
        "student": small,
        "data": {
            "train": {"path": full["data"]["train"]["path"]},
            **{key: full["data"][key] for key in ("template", "max_length", "max_prompt_length")},
        },
        "generation": {"max_new_tokens": full["generation"]["max_new_tokens"]},
        **{section: {key: full[section][key] for key in keys} for section, keys in SHOWN.items()},
    }
    values["training"]["curriculum"] = curriculum
    return HEAD.format(file=shlex.quote(f"{recipe.name}.yaml")) + commented(recipe, values)
