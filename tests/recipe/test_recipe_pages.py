"""The pages of docs/recipes say what the recipes say."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import families

from srd.recipe.reading import load_recipe
from srd.recipe.schema import Recipe
from srd.report.tables import Cell, Column, Table, to_markdown
from srd.training.settings import TrainingConfig

PAGES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
METHODS = ("teacher", "sft", "seqkd", "gkd", "kd", "srd")


def in_words(value: object) -> str:
    return " → ".join(f"{item:g}" for item in value) if isinstance(value, list) else f"{value:g}"


def settings_row(name: str, recipe: Recipe) -> list[Cell]:
    """One line of the table: how a recipe trains what it is named after."""
    training: TrainingConfig = recipe.training
    curriculum = training.curriculum
    objective = training.objective.name if training.needs_teacher else None
    temperature, weight = (
        in_words(getattr(curriculum or training, key)) if training.needs_teacher else None
        for key in ("temperature", "weight")
    )
    epochs = f"{curriculum.stages} × {training.epochs:g}" if curriculum else f"{training.epochs:g}"
    lora = f"r {training.lora.r}, α {training.lora.alpha:g}" if training.lora else "–"
    rate = f"{training.learning_rate:.0e}".replace("e-0", "e-")
    return [name, objective, rate, str(training.batch_size), epochs, temperature, weight, lora]


def settings_table(family: str) -> str:
    """The table of a family's page."""
    names = [f"{family}-{method}" for method in METHODS]
    titles = ("recipe", "objective", "learning rate", "batch", "epochs", "temperature", "weight", "LoRA")
    rows = [settings_row(name, load_recipe(name)) for name in names]
    return to_markdown(Table([Column(title) for title in titles], rows))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_page_says_what_the_recipes_say(family: str) -> None:
    page, recipe = (PAGES / f"{family}.md").read_text(encoding="utf-8"), load_recipe(family)
    assert settings_table(family).strip() in page
    assert str(recipe.teacher.model) in page and str(recipe.student.model) in page
    lengths = f"{recipe.data.max_length} tokens in all, {recipe.data.max_prompt_length} of prompt"
    assert lengths in page


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_page_says_what_the_plan_says(family: str) -> None:
    page = (PAGES / f"{family}.md").read_text(encoding="utf-8")
    assert families.plan_text(family) in page, "run: python -m benchmarks.families"


def test_the_table_of_all_families_is_what_the_plans_say() -> None:
    page = (PAGES.parent / "recipes.md").read_text(encoding="utf-8")
    assert families.table() in page, "run: python -m benchmarks.families"
