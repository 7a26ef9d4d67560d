"""One optimizer and one learning-rate schedule over all stages: where a stage begins in it, and what it hands on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srd.base.files import atomic_write, file_digest, link

OPTIMIZER_FILE = "optimizer.pt"  # as transformers calls it in a checkpoint


@dataclass(frozen=True)
class Span:
    """The part of one schedule that falls to a stage.

    Attributes:
        before: Optimizer steps of the stages before it.
        total: Of all stages.
        state: The optimizer as the stage before has left it; None for the first stage.
    """

    before: int
    total: int
    state: Path | None = None

    def enter(self, optimizer: Any, scheduler: Any) -> None:
        """Bring a new optimizer and the scheduler of all steps to where the stage begins."""
        if self.state is not None:  # the groups of parameters have their rates from the scheduler
            kept = torch.load(self.state, map_location="cpu", weights_only=True)["state"]
            optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})
        rates = [base * rule(self.before) for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": self.before, "_last_lr": rates})
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def hand_on(trainer: Any, folder: Path) -> str:
    """Keep the optimizer of a stage that ends, as it was at the stage's best model; its digest."""
    target, best = folder / OPTIMIZER_FILE, trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and best is not None:
        link(Path(best) / OPTIMIZER_FILE, target)
    else:
        with atomic_write(target) as partial:
            torch.save(trainer.optimizer.state_dict(), partial)
    return file_digest(target)


def is_handed_on(folder: Path, metrics: dict[str, Any]) -> bool:
    """Whether the optimizer is there that a finished stage has handed on."""
    path = folder / OPTIMIZER_FILE
    return path.is_file() and file_digest(path) == metrics.get("optimizer")
