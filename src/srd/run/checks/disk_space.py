"""Whether the disk has room for all that a run is yet to write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from srd.base.errors import RunError
from srd.base.text import shown_bytes
from srd.run.checks.warnings import warn_of_frames, warn_of_memory
from srd.run.context import Run
from srd.run.outline.costs import DataFacts, Facts, shares_of_teachers
from srd.run.outline.forecast import Forecast
from srd.run.outline.order import Outline, costs_of
from srd.run.outline.sizes import other_sizes, sizes_of, whole_size


def facts_of(run: Run) -> Facts:
    """What the cost of a run's steps is worked out from, its examples being there."""
    examples = run.encoded("train")
    count, response = len(examples), examples.response_tokens
    prompt = sum(examples.lengths) - response
    counts = (count, len(run.split("validation")), len(run.split("test")))
    owned = shares_of_teachers(run.recipe, run.split("train"), examples.learnt)
    data = DataFacts(*counts, prompt / count, response / count, response, exact=True, owned=owned)
    own = run.recipe, run.configs
    return Facts(run.recipe, *sizes_of(*own), data, others=other_sizes(*own), whole=whole_size(*own))


#: Steps that write little and ask no model; to weigh them would take the tokens of all rows, which is most of the work.
WITHOUT_MODELS = ("examples", "cleaning", "ranking")


def look_ahead(run: Run, steps: Sequence[Outline]) -> None:
    """Say what a run will meet, as `srd doctor` does, and refuse what there is no room for, before any model is asked.

    What the examples themselves are warned of is said where they are made.

    Raises:
        RunError: as `check_room`.
    """
    todo = [step for step in steps if "finished" not in run.manifest.steps.get(step.name, {})]
    if all(step.name in WITHOUT_MODELS for step in todo):
        return
    warn_of_frames(run, run.split("train"))
    for split in ("train", "validation"):
        run.token_ids(split)  # says what is cut
    run.words  # noqa: B018 - says that words are counted by script
    check_room(run, steps, todo)


def check_room(run: Run, steps: Sequence[Outline], todo: Sequence[Outline]) -> None:
    """Refuse to begin what the disk has no room for: what the steps to do leave, and the most of scratch.

    The run is given its forecast, which is made of the same costs.

    Raises:
        RunError: with what is needed and what is free, where.
    """
    if run.recipe.cache.dir and any(step.name == "cache" for step in todo):
        Path(run.recipe.cache.dir).expanduser().mkdir(parents=True, exist_ok=True)  # or it cannot be one
    facts = facts_of(run)
    finished = {name: step["seconds"] for name, step in run.manifest.steps.items() if "finished" in step}
    run.forecast = Forecast(costs_of(steps, facts), finished)
    costs = costs_of(todo, facts)
    warn_of_memory(run.recipe, max(costs, key=lambda cost: cost.memory))
    shared = Path(run.recipe.cache.dir).expanduser() if run.recipe.cache.dir else run.folder
    elsewhere = _device(shared) != _device(run.folder)
    cache = sum(cost.disk for cost in costs if cost.step == "cache" and elsewhere)
    here = sum(cost.disk for cost in costs) - cache + max(cost.scratch for cost in costs)
    for folder, needed, remedy in ((run.folder, here, run.option), (shared, cache, "cache.dir")):
        free = shutil.disk_usage(existing(folder)).free
        if needed > free:
            parts = [f"{cost.name} {shown_bytes(cost.disk)}" for cost in costs if cost.disk]
            parts.append(f"checkpoints while training {shown_bytes(max(cost.scratch for cost in costs))}")
            raise RunError(
                f"the run will write {shown_bytes(needed)} to {folder}, and {shown_bytes(free)} are free "
                f"({', '.join(parts)}). Free some space, or choose another {remedy}."
            )


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _device(folder: Path) -> int:
    return os.stat(existing(folder)).st_dev
