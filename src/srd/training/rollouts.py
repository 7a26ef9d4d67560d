"""Who writes the responses a batch trains on: the data, the student itself, or a replay buffer of student text.

Every choice is drawn from (seed, step), so that all processes choose alike and a resumed run chooses the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from srd.base import parallel
from srd.base.errors import UserError

Row = dict[str, Any]  # id, prompt_ids, response_ids
Writer = Literal["data", "student", "buffer"]


@dataclass
class OnPolicy:
    """GKD (arXiv 2306.13649): with probability ``student_share`` the student writes the batch.

    Attributes:
        student_share: 1 is on-policy, between 0 and 1 mixed.
        seed: Fixes the choices.
    """

    student_share: float
    seed: int = 0
    has_buffer: ClassVar[bool] = False  # whether student text is used again
    wants_reference: ClassVar[bool] = False  # whether the model is to be validated before it is trained
    by_row: ClassVar[bool] = True  # whether text that is written ahead is mixed with references row by row

    def __post_init__(self) -> None:
        if not 0 <= self.student_share <= 1:
            raise UserError(f"srd.OnPolicy: student_share is {self.student_share}, but must be from 0 to 1")

    @property
    def share(self) -> float:
        """The share of student text that text is written ahead for."""
        return self.student_share

    def writer(self, step: int, total_steps: int) -> Writer:
        """Who writes the batch of this optimizer step."""
        return "student" if _random(self.seed, step).random() < self.student_share else "data"

    def ahead(self, number: int, first: int, batches: Sequence[Sequence[str]], total_steps: int) -> set[str]:
        """The examples that a refresh lets the student answer, drawn one by one from (seed, example, refresh).

        Args:
            number: Of the refresh.
            first: The optimizer step that it comes before.
            batches: Ids of the examples of each step from there on that the text is for.
            total_steps: Of the whole training.
        """
        names = {name for batch in batches for name in batch}
        return {name for name in names if _chance(self.seed, number, name) < self.student_share}

    def observe(self, validation_loss: float) -> None:
        """Take note of a validation; nothing follows from it here."""

    def add(self, rows: list[Row], step: int) -> None:
        """Take note of fresh student text; it is not used again."""

    def draw(self, count: int, step: int) -> list[Row]:
        """There is no buffer to draw from."""
        raise AssertionError("on-policy training has no buffer")

    def kept(self) -> list[Row]:
        """There is no text that is used again."""
        return []

    def goes_on(self, seed: int, steps_before: int, steps_in_all: int) -> bool:
        """Each stage chooses for itself."""
        return False

    def state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


@dataclass
class AdaptiveOffPolicy:
    """DistiLLM (arXiv 2402.03898, section 3.2): student text when the student needs it, old text when it will do.

    A batch is student text with probability ``threshold``. The validation loss before training is the first reference;
    a validation at least ``tolerance`` above the reference raises the threshold by ``step_size`` and becomes the
    reference, any other leaves both as they are, so that a slow rise counts too. Student text is written fresh until
    the buffer is full; from then on the fresh share is what is left of the training, and the rest is drawn from the
    buffer. All of it lives through the whole training, stages included, as in the published code.

    Attributes:
        threshold: Probability of student text now.
        step_size: What a rise of validation loss adds.
        tolerance: The rise that counts, in nats a token.
        capacity: Responses the buffer holds; the oldest leave first.
        seed: Fixes the choices.
        reference_loss: What a validation loss is compared with; None: the next one is taken.
        buffer: Student text with the step it was written at.
        steps_before: Optimizer steps of the stages before this one, whose steps begin at 0.
        steps_in_all: Of all stages; None: of this one.
    """

    threshold: float = 0.0
    step_size: float = 0.1
    tolerance: float = 0.1
    capacity: int = 1000
    seed: int = 0
    reference_loss: float | None = None
    buffer: list[Row] = field(default_factory=list)
    steps_before: int = 0
    steps_in_all: int | None = None
    has_buffer: ClassVar[bool] = True
    by_row: ClassVar[bool] = False

    @property
    def share(self) -> float:
        """The share of student text that text is written ahead for."""
        return self.threshold

    @property
    def wants_reference(self) -> bool:
        """Whether the model is to be validated before it is trained."""
        return self.reference_loss is None

    def writer(self, step: int, total_steps: int) -> Writer:
        """Who writes the batch of this optimizer step."""
        return self._writer(step, total_steps, len(self.buffer))

    def _writer(self, step: int, total_steps: int, held: int) -> Writer:
        """Who writes the batch of a step at whose beginning the buffer holds so many responses."""
        step, total_steps = self.steps_before + step, self.steps_in_all or total_steps
        chance = _random(self.seed, step).random()
        if chance >= self.threshold:
            return "data"
        left = max(0.0, 1.0 - step / max(1, total_steps))
        return "student" if held < self.capacity or chance < self.threshold * left else "buffer"

    def ahead(self, number: int, first: int, batches: Sequence[Sequence[str]], total_steps: int) -> set[str]:
        """The examples of the steps that are to be fresh student text while the threshold stays as it is."""
        held, names = len(self.buffer), set[str]()
        for step, batch in enumerate(batches, start=first):
            if self._writer(step, total_steps, held) == "student":
                names.update(batch)
                held = min(self.capacity, held + len(batch))
        return names

    def observe(self, validation_loss: float) -> None:
        """Raise the threshold, and the reference, when the validation loss has risen above the reference."""
        if self.reference_loss is None:
            self.reference_loss = validation_loss
        elif validation_loss >= self.reference_loss + self.tolerance:
            self.threshold = min(1.0, self.threshold + self.step_size)
            self.reference_loss = validation_loss

    def add(self, rows: list[Row], step: int) -> None:
        """Put fresh student text into the buffer with the step it was written at."""
        self.buffer.extend({**row, "written": self.steps_before + step} for row in rows)
        del self.buffer[: -self.capacity]

    def draw(self, count: int, step: int) -> list[Row]:
        """Draw rows from the buffer, without repetition where there are enough."""
        random = _random(self.seed, self.steps_before + step, 1)
        chosen = random.choice(len(self.buffer), size=count, replace=count > len(self.buffer))
        return [self.buffer[i] for i in chosen]

    def kept(self) -> list[Row]:
        """The text that may be used again."""
        return self.buffer

    def goes_on(self, seed: int, steps_before: int, steps_in_all: int) -> bool:
        """Take a stage as a part of the whole training, whose steps are counted through; it takes up `state`."""
        self.seed, self.steps_before, self.steps_in_all = seed, steps_before, steps_in_all
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, and a stage hands on to the next."""
        return {"threshold": self.threshold, "reference_loss": self.reference_loss, "buffer": self.buffer}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.threshold, self.reference_loss = state["threshold"], state["reference_loss"]
        self.buffer = [dict(row) for row in state["buffer"]]


Rollouts = OnPolicy | AdaptiveOffPolicy


def replace_responses(
    batches: list[list[Row]],
    rollouts: Rollouts,
    step: int,
    total_steps: int,
    write: Callable[[list[Row]], list[list[int]]],
) -> tuple[list[list[Row]], bool]:
    """The rows to train on instead of an optimizer step's own, and whether the student wrote them.

    How the step is cut into micro-batches and dealt out to processes changes nothing: every process learns what the
    others wrote, so that their buffers are the same, and takes its part of what is drawn for the whole step.

    Args:
        batches: This process's micro-batches of the data.
        rollouts: Decides who writes.
        step: Optimizer step, from 0.
        total_steps: Of the whole training.
        write: Lets the student answer the rows' prompts; token ids, end of sequence included. Called once on every
            process, perhaps without rows.
    """
    writer = rollouts.writer(step, total_steps)
    if writer == "data":
        return batches, False
    if writer == "buffer":
        sizes = parallel.gather([len(batch) for batch in batches])
        drawn = iter(rollouts.draw(sum(map(sum, sizes)), step))
        dealt = [[[next(drawn) for _ in range(size)] for size in turn] for turn in zip(*sizes, strict=True)]
        return [turn[parallel.process()] for turn in dealt], True
    rows = [row for batch in batches for row in batch]
    answers = iter(write(rows))
    written = [
        [{"id": row["id"], "prompt_ids": row["prompt_ids"], "response_ids": next(answers)} for row in batch]
        for batch in batches
    ]
    if rollouts.has_buffer:
        everyone = zip(*parallel.gather(written), strict=True)  # micro-batches in the order of the whole step
        rollouts.add([row for turn in everyone for part in turn for row in part], step)
    return written, True


def _random(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _chance(seed: int, number: int, name: str) -> float:
    """A number from 0 to 1 that depends on nothing but seed, refresh and example."""
    key = hashlib.blake2b(f"{seed}\0{number}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(key, "little") >> 11) / 2.0**53  # below 1: as many bits as a float has
