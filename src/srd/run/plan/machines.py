"""What a run takes on several machines, from the plans for one of them and for all.

What asks a model about every row falls into shards, which any process or actor takes as it is free. Training divides
its batch among the processes of torchrun; with Ray the machine of the command trains alone. Not counted: loading the
models on every machine, and what the network costs but for the gradients, which are shown apart.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from srd.base.text import duration, shown_bytes
from srd.recipe.schema import Recipe
from srd.run.outline.costs import Phase
from srd.run.plan.plan import Plan, make_plan

NETWORK = 1.25e9  # bytes a second between two machines: 10 Gbit


@dataclass(frozen=True)
class StepOnMachines:
    """What a step takes, in seconds.

    Attributes:
        name: Of the step.
        kind: ``shards`` or ``training``.
        one: On one machine.
        torchrun: On all, each process of which does its part of everything; None where that cannot be.
        ray: On all, of which one trains.
        gradients: Of ``torchrun``, what the gradients take over a network of 10 Gbit a second, if nothing hides it.
    """

    name: str
    kind: str
    one: float
    torchrun: float | None
    ray: float
    gradients: float


@dataclass(frozen=True)
class Machines:
    """A run on several machines.

    Attributes:
        nodes: Machines.
        devices: Of each.
        steps: Those that compute.
        memory: Bytes on one device, the batch being divided among all.
        hindrance: Why torchrun cannot divide the training so, and what can be done; empty: it can.
    """

    nodes: int
    devices: int
    steps: tuple[StepOnMachines, ...]
    memory: float
    hindrance: str = ""

    def total(self, way: str) -> float | None:
        """Seconds of all steps, ``one``, ``torchrun`` (gradients included) or ``ray``; None where that cannot be."""
        if way == "torchrun" and self.hindrance:
            return None
        gradients = math.fsum(step.gradients for step in self.steps) if way == "torchrun" else 0.0
        return math.fsum(getattr(step, way) for step in self.steps) + gradients

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**asdict(self), "total": {way: self.total(way) for way in ("one", "torchrun", "ray")}}


def on_machines(recipe: Recipe, plan: Plan, nodes: int) -> Machines:
    """Work out what a run takes on several machines."""
    devices = plan.devices * nodes
    sft = recipe.teacher.sft
    trainings = (*recipe.student_trainings, *([sft] if sft else []))
    hindrance = next(filter(None, (_hindrance(each.batch_size, nodes, plan.devices) for each in trainings)), "")
    largest = make_plan(recipe, devices=devices, flops_per_second=plan.flops_per_second, data=plan.data)
    shards = math.ceil(plan.data.train / recipe.generation.batch_size)
    busy = replace(largest, devices=max(1, min(devices, max(shards, plan.devices))))
    found = []
    for phase, same in zip(plan.phases, largest.phases, strict=True):
        if not phase.flops:
            continue
        one, trains = plan.seconds(phase), phase.steps > 0
        everywhere = (largest if trains else busy).seconds(same)
        moved = _gradient_bytes(recipe, plan, phase, nodes) * phase.steps if trains else 0.0
        kind, ray = ("training", one) if trains else ("shards", everywhere)
        found.append(StepOnMachines(phase.name, kind, one, None if hindrance else everywhere, ray, moved / NETWORK))
    return Machines(nodes, plan.devices, tuple(found), largest.memory, hindrance)


def _hindrance(batch: int, nodes: int, devices: int) -> str:
    """Why a batch cannot be divided among machines, and what can be done; empty: it can."""
    if batch % (nodes * devices) == 0:
        return ""
    fits = [count for count in range(1, nodes) if batch % (count * devices) == 0]
    fewer = f"--nodes {max(fits)}, or " if fits else ""
    return (
        f"torchrun cannot divide a batch of {batch} examples (batch_size) among {nodes} × {devices} = "
        f"{nodes * devices} devices: {fewer}a multiple of {nodes * devices} in the recipe"
    )


def _gradient_bytes(recipe: Recipe, plan: Plan, phase: Phase, nodes: int) -> float:
    """What a machine sends in a step: of every gradient, in float32, twice the other machines' share (a ring)."""
    if phase.step == "teacher" and recipe.teacher.sft is not None:
        trained = plan.teacher.trained(recipe.teacher.sft)
    else:
        trained = plan.student.trained(recipe.variants.get(phase.step.removeprefix("train/"), recipe.training))
    return 2.0 * (nodes - 1) / nodes * 4 * trained


def print_machines(machines: Machines, console: Console) -> None:
    """Print what each step takes, in one table."""
    each = f"{machines.nodes} machines of {machines.devices} device{'s' if machines.devices > 1 else ''}"
    table = Table(box=None, pad_edge=False, title=each, title_justify="left")
    for index, heading in enumerate(("step", "divides as", "one machine", "torchrun", "gradients", "Ray")):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for step in machines.steps:
        times = (step.one, step.torchrun, None if machines.hindrance else step.gradients or None, step.ray)
        table.add_row(step.name, step.kind, *map(_shown, times))
    totals = [(machines.total(way), 1 if way == "one" else machines.nodes) for way in ("one", "torchrun", "ray")]
    one, torchrun, ray = (_shown(seconds) for seconds, _ in totals)
    table.add_row("all", "", one, torchrun, "included", ray)
    one, torchrun, ray = ("" if value is None else f"{value * count / 3600:.3g}" for value, count in totals)
    table.add_row("machine-hours", "", one, torchrun, "", ray)
    console.print(table)
    console.print(
        f"memory: {shown_bytes(machines.memory)} at the peak on each device with torchrun. Gradients: over 10 Gbit a "
        "second, if no computing hides them. With Ray the machine of the command trains alone; the others can go then.",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    if machines.hindrance:
        console.print(f"note: {machines.hindrance}", soft_wrap=True, markup=False)


def _shown(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
