"""The help is shown, and a recipe read, checked and listed, without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "{'torch', 'transformers', 'datasets'} & set(sys.modules)"


@pytest.mark.parametrize(
    "work",
    [
        "import contextlib\nfrom srd.cli import app\nwith contextlib.suppress(SystemExit):\n    app(['--help'])\n"
        "assert not {'rich', 'numpy', 'pydantic'} & set(sys.modules)",
        "from srd.recipe.files import read_recipe, shipped_recipes\n"
        "[read_recipe(path) for path in shipped_recipes().values()]\nassert 'pydantic' not in sys.modules",
        "import srd.recipe.reading",
        "from srd.recipe.files import shipped_recipes\nfrom srd.recipe.reading import load_recipe\n"
        "[load_recipe(name) for name in shipped_recipes()]",
        "from srd.recipe.schema import Recipe\nRecipe.model_json_schema()",
        "from srd.recipe.reading import load_recipe\nfrom srd.run.plan import plan\n"
        "plan.hub_is_reachable = lambda: False\n"
        "assert plan.make_plan(load_recipe('gpt2'), flops_per_second=plan.measured_flops_per_second()).flops > 1e15",
    ],
)
def test_what_is_asked_for_first_imports_nothing_heavy(work: str) -> None:
    code = f"import sys\n{work}\nassert not {HEAVY}, {HEAVY}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-600:]
