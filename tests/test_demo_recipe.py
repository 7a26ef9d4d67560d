"""What the shipped `demo` compares, and what it takes."""

from __future__ import annotations

from srd.recipe.reading import load_recipe
from srd.run.outline.costs import DataFacts
from srd.run.plan.plan import make_plan

FLOPS_PER_SECOND = 1.1e11  # of two cores
AS_MEASURED = 1.5  # how much longer a run takes than its plan says there: loading, validation, short batches


def test_the_demo_shows_what_cleaning_gains_within_twelve_minutes_on_two_cores() -> None:
    recipe = load_recipe("demo")
    assert recipe.data.corruption is not None and recipe.data.corruption.share == 0.2
    assert recipe.data.cleaning.action == "repair" and recipe.takes_uncleaned("kd")
    taught = [training.model_dump(exclude={"cleaning", "curriculum"}) for training in recipe.variants.values()]
    assert taught[0] == taught[1], "but for the cleaning they are trained alike"
    data = DataFacts(180, 24, 150, 16.0, 14.0, 2520, exact=True)
    plan = make_plan(recipe, data=data, flops_per_second=FLOPS_PER_SECOND)
    assert plan.as_json()["total"]["seconds"] * AS_MEASURED < 12 * 60
