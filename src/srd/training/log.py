"""The log of a training: a JSON object a line, of which a kill may tear the last; what is summed for a line."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from srd.base.files import disk_errors, write_text
from srd.training.alignment import ENOUGH_MASS, shares_told, sums_told, warn_of_mass
from srd.training.loss.row_losses import LossParts
from srd.training.loss.schedules import Schedule

logger = logging.getLogger(__name__)

ENOUGH = 16  # answers of the student, to say how many of them were cut


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one line to a JSON-lines log in one write."""
    with disk_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines log; a line torn by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) else []
    return rows


def filter_rows(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a JSON-lines log with the rows that ``keep`` accepts; a line torn by a kill is dropped."""
    rows = read_rows(path)
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows if keep(row)))


class Sums:
    """What is added up between two logs, over micro-batches and, when it is asked for, over processes.

    Attributes:
        since: The optimizer step of the last log.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.since = accelerator, 0
        self._parts: list[tuple[Tensor, ...]] = []  # of each micro-batch: cross-entropy, divergence, what is aligned
        self._step_begins = 0  # parts of the steps before this one
        self._drifts: list[Tensor] = []  # [2] of each micro-batch: sum of log π − log π₀, and tokens
        self._drifts_seen = 0
        self._answers = [0, 0]  # of the student, and how many of them were cut
        self._logged = [0, 0]  # of all processes at the last log
        self._told_mass = False  # whether it was said that the teacher's tokens are others than the student's
        self._told_cut = False  # whether it was said that most answers of the student are cut

    def of_all(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(value, "sum") if self.accelerator.num_processes > 1 else value

    def begin_step(self) -> None:
        """Note that what comes belongs to the next optimizer step."""
        self._step_begins = len(self._parts)

    def add_losses(self, parts: LossParts, inputs: Mapping[str, Any], items: Tensor) -> None:
        """Add a micro-batch."""
        told = sums_told(inputs["alignment"], parts.mass) if "alignment" in inputs else []
        kd = parts.kd.sum() / inputs.get("chosen_items", items)
        self._parts.append((parts.ce.sum() / items, kd, *(part / items for part in told)))
        if parts.own is not None:  # how far the student has moved away from the text that it wrote
            moved = (parts.own - inputs["log_likelihood"]).double()  # NaN: another's text, or no logits were made
            self._drifts.append(torch.stack([moved.nansum(), (~moved.isnan()).sum()]))

    def add_answers(self, written: int, cut: int) -> None:
        """Add answers of the student, and how many of them were cut."""
        self._answers = [self._answers[0] + written, self._answers[1] + cut]

    def losses(self, step: int, schedule: Schedule | None) -> dict[str, float]:
        """The two parts of the loss and what goes with them, as means over the steps since the last log."""
        if not self._parts:
            return {}
        steps, self.since = step - self.since, step
        sums = self.of_all(torch.stack([torch.stack(part).sum() for part in zip(*self._parts, strict=True)]))
        ce, kd, *told = (sums / steps).tolist()
        self._parts.clear()
        return {"ce_loss": ce, "kd_loss": kd, **self._alignment(told), **(schedule.logged() if schedule else {})}

    def _alignment(self, sums: list[float]) -> dict[str, float]:
        """How much a teacher with another tokenizer supervised; see `srd.training.alignment.shares_told`."""
        told = shares_told(sums) if sums else {}
        if told.get("mass", 1.0) < ENOUGH_MASS and not self._told_mass:
            self._told_mass = True
            warn_of_mass(told["mass"])
        return told

    def divergence_of_step(self) -> float:
        """The divergence of this optimizer step."""
        sums = [kd for _, kd, *_ in self._parts[self._step_begins :]]
        total = torch.stack(sums).sum() if sums else torch.zeros((), device=self.accelerator.device)
        return float(self.of_all(total))

    def _drift(self, drifts: list[Tensor]) -> float | None:
        """Mean of log π − log π₀ in nats a token; None without text of the student."""
        total = self.of_all(sum(drifts, torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)))
        moved, tokens = total.tolist()
        return moved / tokens if tokens else None

    def new_drift(self) -> float | None:
        """The drift since this was last asked, or since the last log."""
        seen, self._drifts_seen = self._drifts_seen, len(self._drifts)
        return self._drift(self._drifts[seen:])

    def drifts(self) -> dict[str, float]:
        """The drift since the last log."""
        drift = self._drift(self._drifts)
        self._drifts.clear()
        self._drifts_seen = 0
        return {} if drift is None else {"drift": drift}

    def cut_answers(self, longest: int) -> dict[str, float]:
        """The share of the student's answers since the last log that were cut after ``longest`` tokens."""
        counts = self.of_all(torch.tensor(self._answers, device=self.accelerator.device))
        before, self._logged = self._logged, counts.tolist()
        in_all, cut_in_all = self._logged
        if cut_in_all > in_all / 2 and in_all >= ENOUGH and not self._told_cut:
            self._told_cut = True
            logger.warning(
                "%d of the first %d answers of the student were cut at %d tokens: it learns no end from them. A higher "
                "max_new_tokens of the method lets more of them end.",
                cut_in_all, in_all, longest,
            )  # fmt: skip
        written, cut = (now - then for now, then in zip(self._logged, before, strict=True))
        return {"cut_answers": cut / written} if written else {}
