"""A method is a file that says what it does; a plugin adds one with its own settings, and a recipe trains with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import srd
from srd.base.errors import UserError
from srd.recipe.reading import validate_recipe
from srd.recipe.schema import Recipe
from srd.training import inputs
from srd.training.methods import base
from srd.training.methods.base import METHODS, any_method
from srd.training.settings import TrainingConfig
from tests.runs import TinyRun

PLUGIN = """
import srd
from pydantic import Field
from srd.training.rollouts import OnPolicy

@srd.register_method("always_on_policy")
class AlwaysOnPolicy(srd.Method):
    text = "student"
    longest: int = Field(4, ge=1)

    def rollouts(self, seed):
        return OnPolicy(1.0, seed)

    def longest_text(self):
        return self.longest

    def written_share(self):
        return 1.0
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "always.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return str(path)


def test_what_each_method_says_it_does() -> None:
    said = {name: (method().text, method().uses_teacher) for name, method in known().items()}
    assert said == {
        "sft": ("reference", False),
        "seqkd": ("teacher", False),
        "kd": ("reference", True),
        "gkd": ("student", True),
        "distillm": ("student", True),
        "distillm2": ("both", True),
        "taid": ("reference", True),
        "entropy_aware": ("reference", True),
    }
    assert all((method().rollouts(0) is not None) == (method().text == "student") for method in known().values())
    assert all((method().longest_text() is None) == (method().text == "reference") for method in known().values())


def known() -> dict[str, type[srd.Method]]:
    return {name: METHODS.get(name) for name in METHODS.names()}


def test_a_plugin_adds_a_method_with_settings(plugin: str, tiny_run: TinyRun) -> None:
    method = {"name": "always_on_policy", "longest": 5}
    tiny_run.set(plugins=[plugin], training__method=method, training__curriculum=None, training__epochs=0.5)
    run = tiny_run.train()
    assert (tiny_run.run_dir / "student" / "model.safetensors").is_file()
    assert run.recipe.training.label == "always_on_policy" and run.recipe.training.on_policy
    assert "always_on_policy" in str(Recipe.model_json_schema())
    for wrong, message in {
        "always_on_polic": "unknown method 'always_on_polic'; did you mean 'always_on_policy'",
        ("longest", 0): "training.method.longest: input should be greater than or equal to 1",
        ("lngest", 1): "training.method.lngest: unknown key; did you mean 'longest'. Known: longest, name",
    }.items():
        changed: Any = wrong if isinstance(wrong, str) else {"name": "always_on_policy", wrong[0]: wrong[1]}
        with pytest.raises(UserError, match=message):
            validate_recipe({**tiny_run.recipe, "training": {"method": changed}}, "here")


@pytest.mark.parametrize("given", ["gkd", {"name": "gkd"}, METHODS.get("gkd")()])
def test_a_method_by_name_by_settings_or_made(given: Any) -> None:
    config = TrainingConfig(method=given)
    assert type(config.method) is METHODS.get("gkd")
    assert config.model_dump()["method"] == {
        "name": "gkd", "student_share": 0.5, "temperature": 1.0, "max_new_tokens": 256, "refresh": "step",
    }  # fmt: skip


@pytest.mark.parametrize("given", ["kd", {"name": "gkd", "student_share": 0.5}, METHODS.get("sft")()])
def test_a_trainer_imports_the_method_that_it_is_given_alone(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(base, "any_method", lambda *names: asked.append(names) or any_method(*names))
    inputs.writing_by(given, SimpleNamespace(output_dir="out", seed=0))
    with pytest.raises(UserError, match=r"Known: .*seqkd"):
        inputs.writing_by("nothing", SimpleNamespace(output_dir="out", seed=0))
    name = given if isinstance(given, str) else dict(given)["name"]
    assert asked == [(name,), ("nothing",)]
