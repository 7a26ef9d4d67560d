"""The flow of a run: the one driver that goes through its steps, in the order of `srd.run.outline.order`."""

from __future__ import annotations

from collections.abc import Sequence

from srd.base import parallel
from srd.models.cluster import check_address
from srd.recipe.schema import Recipe
from srd.run.checks.disk_space import look_ahead
from srd.run.checks.models import check_recipe
from srd.run.context import Run
from srd.run.manifest import check_as_written
from srd.run.outline.order import Outline, cleaning_steps, planned, uncleaned_steps
from srd.run.parts.served import asks_server, check_server
from srd.run.steps.base import Step, do
from srd.run.steps.cards import Cards
from srd.run.steps.cleaning import Cleaning, Likelihoods
from srd.run.steps.evaluation import Evaluation
from srd.run.steps.examples import Examples
from srd.run.steps.measures import Measures
from srd.run.steps.pairs import Pairs
from srd.run.steps.ranking import Ranking
from srd.run.steps.reflection import Reflection
from srd.run.steps.repair import Repair, Repairs
from srd.run.steps.student import Student
from srd.run.steps.teacher import Cache, Teacher, TeacherText
from srd.run.steps.training import Training, Uncleaned, write_metrics

#: How each step of `srd.run.outline.order` is made; the trainings, one for each label, beside them.
STEPS: tuple[type[Step], ...] = (
    Examples, Likelihoods, Cleaning, Teacher, Repairs, Repair, TeacherText, Cache, Student, Pairs, Reflection, Measures,
    Ranking, Evaluation, Cards,
)  # fmt: skip


def planned_steps(recipe: Recipe, *wanted: str) -> list[Step]:
    """The steps that a run goes through, in their order: see `srd.run.outline.order.planned`."""
    return _made(recipe, planned(recipe, *wanted))


def _made(recipe: Recipe, outlines: Sequence[Outline]) -> list[Step]:
    """What makes the steps of an outline."""
    trainings = (Uncleaned(label) if recipe.takes_uncleaned(label) else Training(label) for label in recipe.variants)
    made: dict[str, Step] = {step.name: step for step in [*(step() for step in STEPS), *trainings]}
    return [made[each.name] for each in outlines]


def advance(run: Run, *wanted: str) -> None:
    """Check a run, then go through its steps as far as they are asked for; none: through all of them."""
    parallel.together(lambda: check_recipe(run))
    steps = planned_steps(run.recipe, *wanted)
    todo = [step.name for step in steps if "finished" not in run.manifest.steps.get(step.name, {})]
    others = [step.name for step in steps if isinstance(step, Uncleaned) and step.name in todo]
    todo += [step.name for step in uncleaned_steps(run.recipe, *others)] if others else []
    if asks_server(run.recipe, todo):  # a run that has asked all it needs goes on without
        parallel.on_main(lambda: check_server(run))
    if todo and run.recipe.cluster.engine == "ray":
        check_address(run.recipe.cluster)
    for step in steps:
        if isinstance(step, Uncleaned):  # after most of the steps that the others have, on the rows as they came
            other = run.uncleaned
            for each in _made(other.recipe, uncleaned_steps(run.recipe, step.name)):
                do(other, each)
            parallel.on_main(other.settle)
        do(run, step)
        if step.name == "examples":
            parallel.on_main(lambda: look_ahead(run, steps))
    parallel.on_main(run.settle)


def check_written(run: Run) -> None:
    """Refuse to tell of a run whose files are not what its steps wrote; see `srd.run.manifest.check_as_written`."""
    check_as_written(run.folder)
    write_metrics(run)


def cleaned_steps(recipe: Recipe) -> list[str]:
    """Names of the steps that mark wrong rows and change them."""
    return [*(cleaning_steps(recipe) or ("cleaning",))]


def training_steps(recipe: Recipe) -> list[str]:
    """Names of the compared trainings' steps, and of the ranking that the main one goes by."""
    return [
        *(["ranking"] if recipe.training.curriculum is not None else []),
        *(f"train/{variant}" for variant in recipe.variants),
    ]
