"""What is refused of a recipe before its models are looked at: what `srd plan` can tell without them, too."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from srd.base import parallel
from srd.base.errors import UserError, nearest
from srd.models import cluster
from srd.recipe.reading import validate_recipe
from srd.recipe.schema import Recipe
from srd.run.outline.costs import cache_tier, cached_trainings, temperatures_of
from srd.sandbox.outside import require_permission
from srd.tasks.base import get_task
from srd.training.libraries import check_installed, check_launch
from srd.training.methods.common import rollouts_of, schedule_of
from srd.training.tiers.base import TIERS


def check_evaluation(recipe: Recipe) -> None:
    """Refuse an evaluation that cannot be done, before the training that it would come after."""
    known = ("teacher", "student", *recipe.variants)
    for name in recipe.evaluation.models or []:
        if name not in known:
            raise UserError(f"evaluation.models: there is no model '{name}' in this run; {nearest(name, known)}")
    for named in recipe.evaluation.tasks:
        if get_task(named.name).runs_code:
            setting = "evaluation.allow_code_execution"
            require_permission(
                recipe.evaluation.allow_code_execution, f"evaluation.tasks: {named.name}", f"{setting}=true",
                f"{setting}=unconfined",
            )  # fmt: skip
        if named.path and not Path(named.path).expanduser().is_file():
            raise UserError(f"evaluation.tasks: {named.name}: there is no file '{named.path}'. Check the path.")
        if named.path:  # every row is looked at now, and not after the training
            get_task(named.name).examples(Path(named.path).expanduser(), named.limit)


def check_libraries(recipe: Recipe) -> None:
    """Refuse optimizers and loggers whose packages are missing, and what another library was told to do."""
    check_launch()
    named = {"teacher.sft": recipe.teacher.sft, "student.warm_start": recipe.student.warm_start}
    named |= {f"baselines.{name}": training for name, training in recipe.baselines.items()}
    for field, training in {**named, "training": recipe.training}.items():
        if training is not None:
            check_installed(field, training.optimizer, training.log_to)
    if recipe.cluster.engine == "ray":
        cluster.check_installed()
        if parallel.processes() > 1:
            raise UserError("cluster.engine=ray spreads the work of one process: start this run without a launcher.")


def check_methods(recipe: Recipe) -> None:
    """Refuse a method that says something else than who writes, and what of the loss changes."""
    for training in recipe.variants.values():
        rollouts_of(training.method, 0)
        schedule_of(training.method)


def check_optimizer(recipe: Recipe) -> None:
    """Refuse to hand an optimizer on from stage to stage of which each process has a part."""
    kept = [name for name, training in recipe.variants.items() if training.keeps_optimizer]
    for kind, name in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if kept and os.environ.get(name, "false") == "true":
            raise UserError(
                f"{kept[0]}: curriculum.optimizer is keep, but with {kind} each process has a part of the optimizer, "
                "and stages do not hand it on. Set curriculum.optimizer to restart, or start without it (ddp.yaml)."
            )


def check_cleaning(recipe: Recipe) -> None:
    """Refuse files of ids that are not there, before the reading that they come after."""
    for field in ("keep", "drop"):
        name = getattr(recipe.data.cleaning, field)
        if name and not Path(name).expanduser().is_file():
            raise UserError(f"data.cleaning.{field}: there is no file '{name}'. Check the path.")


def check_cache(recipe: Recipe, apart: str = "") -> None:
    """Refuse trainings that what the cache keeps cannot serve; ``apart``: why the teacher has tokens of its own."""
    tier = cache_tier(recipe, "float32")  # the precision does not matter here
    served = recipe.teacher.endpoint is not None
    if served and tier.with_head and cached_trainings(recipe):
        raise UserError(
            f"cache.tier is {tier.name}, which is made of hidden states, and a server gives log-probabilities. Set "
            "cache.tier=topk, or likelihood."
        )
    for training in cached_trainings(recipe):
        if apart and (found := tier.problem_apart(training.alignment)):
            instead = f"set cache.tier to {'likelihood' if served else 'int8 or exact'}"
            remedy = "leave training.alignment out" if tier.of_text else instead
            raise UserError(f"cache.tier is {tier.name}, {found} ({apart}): {remedy}.")
        for temperature in temperatures_of(training):
            if served and temperature != 1:
                place = "training.curriculum.temperature" if training.curriculum else "training.temperature"
                raise UserError(
                    f"{place} is {temperature:g} for '{training.label}', and a server tells its likeliest tokens at "
                    f"temperature 1 alone: the mass of the rest at another does not follow from them. Set {place}=1."
                )
            wanted = (training.objective.name, temperature, training.method.schedule())
            if problem := tier.problem(*wanted):
                if served:
                    others = (cache_tier(recipe, "float32", name) for name in TIERS.names())
                    able = [other.name for other in others if not other.with_head and not other.problem(*wanted)]
                    problem = f"{problem.partition('. Set ')[0]}. {_of_a_server(recipe, able)}"
                raise UserError(f"cache.tier is {tier.name}: {problem}.")


def serving_tiers(recipe: Recipe, apart: str) -> list[str]:
    """The tiers with which the recipe would not be refused; ``apart`` as in `check_cache`."""
    found, content = [], recipe.model_dump(mode="json")
    for name in TIERS.names():
        with contextlib.suppress(UserError):
            other = {**content, "cache": {**content["cache"], "tier": name}}
            check_cache(validate_recipe(other, recipe.name), apart)
            found.append(name)
    return found


def _of_a_server(recipe: Recipe, able: list[str]) -> str:
    """What helps where a served teacher's tier cannot serve a training; ``able``: the tiers of lists that can."""
    instead = "take the method kd with the objective fkl, which every tier serves, or a teacher without endpoint"
    if able and recipe.teacher.tokenizer is None:  # with tokens of its own chunks alone are compared
        return f"Set cache.tier to {' or '.join(able)}, where the server tells its likeliest tokens, or {instead}"
    return instead[0].upper() + instead[1:]
