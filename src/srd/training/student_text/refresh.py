"""Student text that is written ahead of its training: an interval of optimizer steps at a time.

At a refresh the student answers the prompts of the coming interval, the teacher reads the answers once, and training
goes on as off-policy training does: with the teacher's head and its cached states. D(p, π) on given text is a valid
loss however old the text is; what grows old is which text it is. How far the student has moved away from it is the
drift, the mean of log π − log π₀ over its tokens.

Folder ``rollouts/`` of a stage::

    <n>.parquet       the text of refresh n (`srd.training.student_text.written`)
    <n>.parts/        its batches, until the file is there
    <n>.work/         the teacher's states for it (`srd.training.cache.teacher_cache`); goes when no step needs it
"""

from __future__ import annotations

import contextlib
import copy
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from srd.base import parallel
from srd.base.files import discard, fingerprint
from srd.base.remedies import warn
from srd.data.batching import EncodedExamples, LengthBatches, lengths_of
from srd.models.generation import Decoding
from srd.training.cache.teacher_cache import TeacherCache, example_key
from srd.training.methods.base import Refresh
from srd.training.rollouts import Rollouts, Row
from srd.training.student_text.written import Pen, Text, is_written, write_text

logger = logging.getLogger(__name__)

MOST_DRIFT = 0.1  # nats a token, beyond which `auto` writes anew
MANY_EMPTY = 0.1  # share of empty answers that is told
MANY_CUT = 0.5  # share of answers without an end that is told


@dataclass(frozen=True)
class Interval:
    """The optimizer steps from ``start`` to before ``end``, whose text is that of refresh ``number``.

    Attributes:
        number: From 0 in each stage.
        start: Step that it begins with.
        end: Step behind its last.
        share: Of student text when it began, which may rise.
    """

    number: int
    start: int
    end: int
    share: float


@dataclass
class Ahead:
    """How a trainer lets its student write ahead.

    Attributes:
        every: ``epoch``, ``stage``, ``auto``, or a number of optimizer steps.
        folder: ``rollouts/`` of the stage.
        batch_size: Prompts at once.
        read: ``(examples, folder) -> cache``: the teacher reads them once; None: a live one reads in every step.
        engine: ``student -> what decodes``, within a context; by default the student itself.
    """

    every: Refresh
    folder: Path
    batch_size: int = 32
    read: Callable[[EncodedExamples, Path], TeacherCache] | None = None
    engine: Callable[[Any], AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass
class _Standing:
    """What training is on now: an interval, its text, the teacher's states for it, and its batches by step."""

    interval: Interval
    text: Text
    cache: TeacherCache | None
    batches: dict[int, list[int]]


class Refresher:
    """Says which rows each optimizer step trains on, where the student writes ahead.

    Args:
        ahead: How it writes.
        rollouts: Which rows it writes.
        examples: Of the stage, with the teacher cache of the references where there is one.
        batches: In which order they come.
        decoding: How the student chooses tokens.
    """

    def __init__(
        self, ahead: Ahead, rollouts: Rollouts, examples: EncodedExamples, batches: LengthBatches, decoding: Decoding
    ) -> None:
        self.ahead, self.rollouts, self.examples, self.decoding = ahead, rollouts, examples, decoding
        self.batches, self.total_steps = batches, 0
        self.interval: Interval | None = None  # the last that has begun
        self.has_drifted = False
        self._standing: _Standing | None = None  # None: nothing is read yet, at the beginning and after a stop
        self._told = False

    # ----------------------------------------------------------------------------------------------------- intervals

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass."""
        return len(self.batches) // self.batches.accumulation

    def is_due(self, step: int) -> bool:
        """Whether the text is to be written anew before this step."""
        now = self.interval
        if now is None or step >= now.end or self.has_drifted or now.share != self.rollouts.share:
            return True
        if self._standing is None or self.rollouts.by_row or self.rollouts.writer(step, self.total_steps) != "student":
            return False
        # A buffer fills more slowly than foreseen where answers are empty: then more text is wanted.
        return any(self.examples.ids[i] not in self._standing.text.places for i in self._standing.batches[step])

    def next_interval(self, step: int) -> Interval:
        """The interval that begins with this step.

        ``auto`` foresees twice the steps that the last text has lasted, so that at most half of what is written is
        not trained on; and all that are left at first.
        """
        before, every = self.interval, self.ahead.every
        if every == "auto":
            end = step + 2 * (step - before.start) if before else self.total_steps
        elif every == "epoch":
            end = (step // self.steps_per_epoch + 1) * self.steps_per_epoch
        else:
            end = step + every if isinstance(every, int) else self.total_steps
        number = before.number + 1 if before else 0
        return Interval(number, step, min(end, self.total_steps), self.rollouts.share)

    def _planned(self, interval: Interval) -> list[tuple[int, int, list[list[int]]]]:
        """The examples of an interval's steps, epoch by epoch: the epoch, its first step here, indices by step."""
        order, planned, step = copy.copy(self.batches), [], interval.start
        while step < interval.end:
            epoch, place = divmod(step, self.steps_per_epoch)
            order.set_epoch(epoch)
            count = min(self.steps_per_epoch - place, interval.end - step)
            planned.append((epoch, step, order.batches()[place : place + count]))
            step += count
        return planned

    # ----------------------------------------------------------------------------------------------------- refreshing

    def begin(
        self, step: int, total_steps: int, pen: Callable[[], AbstractContextManager[Pen]], note: Callable[[str], None]
    ) -> bool:
        """Have the text of this step at hand: written anew where that is due, read again after a stop.

        Args:
            step: Optimizer step.
            total_steps: Of the training.
            pen: What is written with, within a context that every process enters.
            note: Told how far the writing is.

        Returns:
            Whether an interval begins.
        """
        self.total_steps = total_steps
        if self.interval is not None and self._standing is None and not self.is_due(step):
            with same_randomness():
                self._stand(self.interval)
        if not self.is_due(step):
            return False
        self.interval, self.has_drifted, self._standing = self.next_interval(step), False, None
        with same_randomness():
            self._write(self.interval, pen, note)
            self._stand(self.interval)
        return True

    def _write(
        self, interval: Interval, pen: Callable[[], AbstractContextManager[Pen]], note: Callable[[str], None]
    ) -> None:
        """Let the student write the text of an interval, unless just that is there."""
        names = [
            [self.examples.ids[i] for i in batch] for _, _, batches in self._planned(interval) for batch in batches
        ]
        chosen = self.rollouts.ahead(interval.number, interval.start, names, self.total_steps)
        examples = self.examples.subset([name for name in self.examples.ids if name in chosen])
        given, path = self.decoding, self._file(interval.number)
        decoding = Decoding(given.max_new_tokens, given.temperature, given.top_p, given.seed + interval.start)
        about = {**asdict(interval), "decoding": asdict(decoding), "examples": fingerprint(examples.ids)}
        with pen() as held:
            about["writer"] = _weights_of(held.student)
            if not parallel.on_main(lambda: is_written(path, about)):
                with self.ahead.engine(held.student) if len(examples) else contextlib.nullcontext() as writer:
                    write_text(
                        path, about, examples, decoding, replace(held, writer=writer),
                        lambda done, total: note(f"the student writes {done:,} of {total:,} answers"),
                    )  # fmt: skip
        parallel.on_main(lambda: discard(path.with_suffix(".parts")))

    def _stand(self, interval: Interval) -> None:
        """Read the text of an interval, and let the teacher read it."""
        planned = self._planned(interval)
        text = Text(self._file(interval.number), self._work(interval.number))
        self._warn(text)
        cache = self._read(interval, text, planned)
        self._standing = _Standing(interval, text, cache, self._batched(text, planned))

    def _read(
        self, interval: Interval, text: Text, planned: Sequence[tuple[int, int, list[list[int]]]]
    ) -> TeacherCache | None:
        """Let the teacher read what no cache holds of all that the interval may train on."""
        if self.ahead.read is None:
            return None
        ids = self.examples.ids
        used = sorted({i for _, _, batches in planned for batch in batches for i in batch})
        names = [ids[i] for i in used if text.own(ids[i]) is not None]
        answers = text.tokens.take([text.places[name] for name in names])
        rows = {"id": names, "prompt_ids": self.examples.subset(names).prompts, "response_ids": answers}
        others = [self.examples.tokens(i) for i in used if text.own(ids[i]) is None and not self._is_known(i)]
        others += self.rollouts.kept()
        if others:
            rows = _with_others(rows, others, self.examples.earlier is not None)
        return self.ahead.read(EncodedExamples(rows), self._work(interval.number)) if rows["id"] else None

    def _is_known(self, index: int) -> bool:
        """Whether the cache of the references holds an example."""
        cache: Any = self.examples.teacher
        return cache is not None and example_key(*self.examples.tokens(index).values()) in cache

    def _batched(self, text: Text, planned: Sequence[tuple[int, int, list[list[int]]]]) -> dict[int, list[int]]:
        """Indices of each step. Where rows are mixed one by one, each epoch's are batched anew by their new lengths."""
        lengths = self._lengths(text)
        found: dict[int, list[int]] = {}
        for epoch, first, batches in planned:
            if self.rollouts.by_row:
                draw = np.random.default_rng([self.batches.seed, epoch, first])
                order = draw.permutation(np.concatenate([np.asarray(batch, dtype=np.int64) for batch in batches]))
                batches = self.batches.cut(order, lengths, draw)
            found.update(enumerate(batches, start=first))
        return found

    def _lengths(self, text: Text) -> NDArray[np.int64]:
        """Tokens of each example, with its new text where it has one."""
        lengths, prompts, own = np.array(self.batches.lengths), lengths_of(self.examples.prompts), text.tokens.lengths
        for index, name in enumerate(self.examples.ids):
            if (place := text.own(name)) is not None:
                lengths[index] = prompts[index] + own[place]
        return lengths

    # ------------------------------------------------------------------------------------------------------------ rows

    def micro_batches(self, step: int) -> list[list[Row]]:
        """This process's rows of an optimizer step; text of the student has no cross-entropy (``soft``)."""
        standing = self._standing
        assert standing is not None
        batch = standing.batches[step]
        if self.rollouts.by_row:
            return [[self._row(standing, i) for i in part] for part in self.batches.own_part(batch)]
        writer = self.rollouts.writer(step, self.total_steps)
        if writer == "buffer":
            drawn = [{**row, "soft": True} for row in self.rollouts.draw(len(batch), step)]
            return [[self._with_states(standing, row) for row in part] for part in self.batches.own_part(drawn)]
        if writer == "student":
            rows = [row for i in batch if (row := self._answer(standing, self.examples.ids[i], i)) is not None]
            keys = ("id", "prompt_ids", "response_ids")
            self.rollouts.add([{key: row[key] for key in keys} for row in rows], standing.interval.start)
        own = self.batches.own_part(batch)
        return [[self._row(standing, i, by_student=writer == "student") for i in part] for part in own]

    def _row(self, standing: _Standing, index: int, *, by_student: bool = True) -> Row:
        """An example with its new text, where it has one that is not empty; else with its reference."""
        row = self._answer(standing, self.examples.ids[index], index) if by_student else None
        if row is None and (standing.cache is None or self._is_known(index)):
            return self.examples[index]
        if row is None:
            name = self.examples.ids[index]
            row = {"id": name, **self.examples.tokens(index), **self.examples.marks(name)}
        return self._with_states(standing, row)

    def _answer(self, standing: _Standing, name: str, index: int) -> Row | None:
        """An example with the student's answer; None where it has none, or an empty one."""
        place = standing.text.own(name)
        if place is None:
            return None
        return {
            "id": name, "prompt_ids": self.examples.prompts[index], "response_ids": standing.text.tokens[place],
            "soft": True, "log_likelihood": standing.text.likelihoods[place],
        }  # fmt: skip

    def _with_states(self, standing: _Standing, row: Row) -> Row:
        if standing.cache is None:
            return row
        earlier = [row["earlier"]] if "earlier" in row else []
        return {**row, "teacher_hidden": standing.cache.hidden(row["prompt_ids"], row["response_ids"], *earlier)}

    # ---------------------------------------------------------------------------------------------- what is told, kept

    def summary(self) -> dict[str, float]:
        """What is logged of the text that training is on."""
        assert self._standing is not None
        return {"refresh": self._standing.interval.number, **self._standing.text.summary()}

    def watch(self, drift: float | None) -> None:
        """Take note of the drift of an optimizer step, in nats a token; None: nothing of it was the student's."""
        self.has_drifted = self.ahead.every == "auto" and drift is not None and abs(drift) > MOST_DRIFT

    def _warn(self, text: Text) -> None:
        """Name a student that writes nothing, or never stops, once."""
        if self._told or not len(text):
            return
        empty, cut = float(text.blank.mean()), 1 - float(text.ended.mean())
        if empty > MANY_EMPTY:
            self._told = True
            warn(
                logger,
                f"{empty:.0%} of the {len(text):,} answers of the student are empty; these rows train on their "
                "reference.",
                "A student that answers, after student.warm_start for example, has more to learn from its own text.",
            )
        if cut > MANY_CUT:
            self._told = True
            warn(
                logger,
                f"{cut:.0%} of the {len(text):,} answers of the student do not end within "
                f"{self.decoding.max_new_tokens} tokens: it learns no end from them.",
                "A higher max_new_tokens of the method lets more of them end.",
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"interval": asdict(self.interval) if self.interval else None, "has_drifted": self.has_drifted}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.interval = Interval(**state["interval"]) if state["interval"] else None
        self.has_drifted, self._standing = state["has_drifted"], None

    def needed(self, step: int) -> list[Path]:
        """The files that training goes on from at this step."""
        return [] if self.interval is None or self.is_due(step) else [self._file(self.interval.number)]

    def forget(self, step: int) -> None:
        """Remove the teacher's states that no step from this one on needs."""
        now = self.interval.number + self.is_due(step) if self.interval else 0
        self._remove(lambda number: number < now, "*.work")

    def close(self) -> None:
        """Leave the text that was trained on, at the end of a stage, and nothing else."""
        last = self.interval.number if self.interval else -1
        self._remove(lambda number: True, "*.work")
        self._remove(lambda number: number > last, "*")
        self._remove(lambda number: number > last, ".*")

    def _remove(self, gone: Callable[[int], bool], pattern: str) -> None:
        for path in self.ahead.folder.glob(pattern):
            number = path.name.removeprefix(".").partition(".")[0]
            if number.isdigit() and gone(int(number)):
                discard(path)

    def _file(self, number: int) -> Path:
        return self.ahead.folder / f"{number}.parquet"

    def _work(self, number: int) -> Path:
        return self.ahead.folder / f"{number}.work"


def _with_others(rows: dict[str, Any], others: list[Row], turns: bool) -> dict[str, Any]:
    """Add rows of token ids to columns of them."""
    joined = {name: [*rows[name], *(row[name] for row in others)] for name in ("prompt_ids", "response_ids")}
    joined["id"] = [*rows["id"], *(row.get("id", "") for row in others)]
    if turns:
        joined["earlier"] = [*([] for _ in rows["id"]), *(row.get("earlier", []) for row in others)]
    return joined


@torch.no_grad()
def _weights_of(student: Any) -> str:
    """What tells the weights of a model from those of another step: sums over each of its tensors."""
    wide = torch.float64
    return fingerprint(
        [[float(w.sum(dtype=wide)), float(torch.linalg.vector_norm(w, dtype=wide))] for w in student.parameters()]
    )


@contextlib.contextmanager
def same_randomness() -> Iterator[None]:
    """Leave the random generators as they were: text may be there already after a stop, and dropout must not know."""
    state, numbers = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
    random.setstate(state)
    np.random.set_state(numbers)
