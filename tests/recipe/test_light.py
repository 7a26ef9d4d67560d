"""The help is shown, and a recipe read, checked and listed, without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys

#: One behind the other in one process, since each needs all that those before it need: what it does, and what none of
#: them has imported by then.
LIGHT = """
import contextlib, sys

HEAVY = {'torch', 'transformers', 'datasets'}

def nothing_of(*names):
    assert not (found := (HEAVY | {*names}) & set(sys.modules)), found

from srd.cli import app
with contextlib.suppress(SystemExit):
    app(['--help'])
nothing_of('rich', 'numpy', 'pydantic')

from srd.recipe.files import read_recipe, shipped_recipes
[read_recipe(path) for path in shipped_recipes().values()]
nothing_of('pydantic')

import srd.recipe.reading
nothing_of()

[srd.recipe.reading.load_recipe(name) for name in shipped_recipes()]
nothing_of()

srd.recipe.schema.Recipe.model_json_schema()
nothing_of()

from srd.run.plan import plan
plan.hub_is_reachable = lambda: False
made = plan.make_plan(srd.recipe.reading.load_recipe('gpt2'), flops_per_second=plan.measured_flops_per_second())
assert made.flops > 1e15
nothing_of()
"""


def test_what_is_asked_for_first_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-600:]
