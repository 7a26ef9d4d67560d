"""The teacher of a recipe where it is served: how it is asked, and when it must be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srd.base import parallel
from srd.models.served.client import Address
from srd.models.served.endpoint import Away, Endpoint
from srd.recipe.schema import Recipe, TeacherConfig
from srd.run.models import RecipeModels
from srd.run.outline.order import needs_of


def endpoint_of(teacher: TeacherConfig, top: int) -> Endpoint:
    """A served teacher, ready to be asked.

    Raises:
        UserError: its key is not set.
    """
    assert teacher.endpoint is not None
    at_once = max(1, teacher.parallel // parallel.processes())  # the processes of a run share what is allowed
    times = (teacher.timeout, teacher.patience)
    address = Address(teacher.endpoint, teacher.model, teacher.api_key_env, at_once, *times, teacher.tokenizer)
    return Endpoint(address, top)


def asks_server(recipe: Recipe, steps: Sequence[str]) -> bool:
    """Whether steps of these names ask a served teacher."""
    asking = {"teacher text", "teacher repairs", "cache"}
    asking |= {"pairs"}  # whose texts are asked about as a training begins
    asking |= {"evaluation"} if "teacher" in (recipe.evaluation.models or ["teacher"]) else set()
    asking |= {"measures"} if "teacher" in needs_of(recipe) else set()
    return recipe.teacher.endpoint is not None and not asking.isdisjoint(steps)


def check_server(models: RecipeModels) -> None:
    """Refuse a recipe's server that cannot serve it, before the work that comes before its first answer.

    Raises:
        UserError: see `Endpoint.check`.
    """
    recipe = models.recipe
    taught = any(training.needs_teacher for training in recipe.student_trainings)
    for teacher in recipe.all_teachers:
        endpoint = endpoint_of(teacher, recipe.cache.listed if taught else 0)
        needed = taught or "teacher" in needs_of(recipe)
        endpoint.check(reads_with(models), recipe.data.max_length, needs_likelihoods=needed)


def reads_with(models: RecipeModels) -> Any:
    """The tokenizer whose ids a server is asked about: its own where it is `apart`, else the student's."""
    return models.teacher_tokenizer if models.apart else models.tokenizer


def told_of_server(models: RecipeModels) -> list[str]:
    """What a plan says of the teacher's server: that it is asked, or that it is not there yet.

    Raises:
        UserError: it is there and cannot serve the recipe.
    """
    recipe = models.recipe
    if recipe.teacher.endpoint is None:
        return []
    try:
        check_server(models)
    except Away as error:
        return [f"the teacher's server is not checked: {error}"]
    return [f"the teacher '{each.model}' at {each.endpoint} is there and fits" for each in recipe.all_teachers]
