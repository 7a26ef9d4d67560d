"""The curriculum inside TRL's own GKD trainer: the rows of every stage in their order, each with its settings.

TRL is optional: ``pip install 'trl>=1.0'``. Its GKD loss does not take the temperature of its configuration, which is
that of sampling; `StageCallback` gives the loss the temperature of the stage, and `StagedGKDTrainer` adds the weight.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainerCallback

from srd.base.errors import UserError
from srd.base.remedies import warn
from srd.base.tables import data_set
from srd.base.text import many
from srd.curation.curriculum import Stage
from srd.data.rows import as_table
from srd.run.curate import passes_of

try:
    from trl.experimental.gkd import GKDTrainer
except ImportError:  # the message comes where it is needed: `StageCallback` and `curriculum_dataset` do without
    GKDTrainer = None

logger = logging.getLogger(__name__)

WRITTEN = "written_labels"  # of the rows: where text is generated TRL puts the labels of that in their place
SETTINGS = ("stage", "temperature", "weight")


def curriculum_dataset(
    stages: str | Path | Iterable[Any], rows: Any = None, *, passes: float = 1, batch_size: int = 1, seed: int = 0
) -> datasets.Dataset:
    """All rows in the order of training, for a trainer that goes through them once and does not shuffle.

    Args:
        stages: The folder that ``srd curate --for trl`` wrote, which has the passes; or the stages themselves, from
            `srd.Curriculum.split` (then with ``rows``), or a list of ``{"rows": …, "temperature": …, "weight": …}``.
        rows: The examples of the stages, with ``id`` and the columns that TRL reads (``messages``, or ``prompt`` and
            ``completion``), in any container that `srd.rank` takes.
        passes: How often each stage is gone through, where that is not in the folder.
        batch_size: Rows of an optimizer step over all devices: what is left at the end of a stage is cut, so that no
            step has rows of two stages.
        seed: Of what each pass draws, where the stages are of ``order="fresh"``.

    Returns:
        The rows with ``stage, temperature, weight``, which `StageCallback.from_rows` reads.

    Raises:
        UserError: there is no such folder, no row, or a stage with fewer rows than a batch.
    """
    parts = _of_folder(Path(stages)) if isinstance(stages, str | Path) else _of_stages(stages, rows, passes, seed)
    cut = []
    for number, part in enumerate(parts):
        count = len(part) - len(part) % batch_size
        if not count:
            raise UserError(
                f"stage {number} has {many(len(part), 'row')} with all its passes, fewer than the {batch_size} of a "
                f"step (batch_size). Take at most {len(part)} here, and in the trainer's per_device_train_batch_size."
            )
        cut.append(part.select(range(count)))
    if not cut:
        raise UserError("there are no stages: give a folder of srd curate --for trl, or a list of stages")
    return datasets.concatenate_datasets(cut)


def _of_folder(folder: Path) -> list[datasets.Dataset]:
    """The stages of a curated folder, each with all its passes."""
    path = folder / "train.jsonl"
    if not path.is_file():
        raise UserError(f"there is no {path}. Write it with: srd curate RECIPE -o {folder} --for trl")
    with open(path, encoding="utf-8") as file:
        table = datasets.Dataset.from_list([json.loads(line) for line in file])
    stage = table["stage"]
    starts = [place for place in range(len(stage)) if place == 0 or stage[place] != stage[place - 1]]
    return [table.select(range(*span)) for span in zip(starts, [*starts[1:], len(table)], strict=True)]


def _of_stages(stages: Iterable[Any], rows: Any, passes: float, seed: int) -> list[datasets.Dataset]:
    listed = list(stages)
    if any(isinstance(stage, Stage) for stage in listed) and rows is None:
        raise UserError("curriculum_dataset: these stages have ids alone. Give their examples, too: rows=…")
    if any(isinstance(stage, Stage) and stage.row_weights for stage in listed):
        what = "curriculum_dataset: these stages weigh their rows (row_weights), and TRL counts all rows the same."
        warn(logger, what, "To train as they say, use srd run or srd.distill.")
    examples = None if rows is None else data_set(as_table(rows, ["id"], "rows"))
    place = {} if examples is None else {name: number for number, name in enumerate(examples["id"])}
    parts = []
    for number, stage in enumerate(listed):
        if isinstance(stage, Stage):
            if unknown := [name for name in stage.ids if name not in place]:
                raise UserError(f"stage {stage.index}: the rows lack the id {unknown[0]!r}. Give all rows.")
            assert examples is not None
            ids, settings = [name for each in passes_of(stage, passes, seed) for name in each], vars(stage)
            part = examples.select([place[name] for name in ids])
        else:
            own, settings = data_set(as_table(stage["rows"], [], "rows")), stage
            count = int(passes) * len(own) + round((passes - int(passes)) * len(own))
            part = own.select([number % len(own) for number in range(count)])
        values = {"stage": number, "temperature": float(settings["temperature"]), "weight": float(settings["weight"])}
        part = part.remove_columns([name for name in values if name in part.column_names])
        for name, value in values.items():
            part = part.add_column(name, [value] * len(part))
        parts.append(part)
    return parts


class StageCallback(TrainerCallback):
    """Gives a GKD trainer the temperature of each stage, and its logs the stage.

    ``GKDTrainer(…, callbacks=[callback])`` and then ``callback.bind(trainer)``; `StagedGKDTrainer` does both.

    Args:
        plan: For each stage its number of optimizer steps, its temperature and, where wanted, its weight:
            ``[(3, 1.0), (6, 2.0)]``.
        trainer: Whose temperature is set.

    Attributes:
        stage: The stage at this step.
        temperature: Its temperature.
        weight: Its weight of the divergence.

    Raises:
        UserError: the plan has no stages, or numbers that cannot be.
    """

    def __init__(self, plan: Sequence[Sequence[float]], trainer: Any = None) -> None:
        self.plan = [_planned(entry) for entry in plan]
        if not self.plan:
            raise UserError("StageCallback: the plan is empty. Give (steps, temperature) for every stage")
        self.trainer: Any = None
        self.stage = -1
        self.temperature, self.weight = self.plan[0][1:]
        if trainer is not None:
            self.bind(trainer)

    @classmethod
    def from_rows(cls, rows: datasets.Dataset, batch_size: int, trainer: Any = None) -> StageCallback:
        """The plan of what `curriculum_dataset` gives, with the ``batch_size`` that was given there."""
        missing = [name for name in SETTINGS if name not in rows.column_names]
        if missing:
            raise UserError(f"the rows lack the columns {missing}. Make them with curriculum_dataset(stages)")
        stages: dict[int, list[float]] = {}
        for stage, temperature, weight in zip(*(rows[name] for name in SETTINGS), strict=True):
            stages.setdefault(stage, [0, temperature, weight])[0] += 1
        if any(count % batch_size for count, *_ in stages.values()):
            raise UserError(
                f"a stage's rows are no multiple of the {batch_size} rows that a step of the trainer has "
                "(per_device_train_batch_size * gradient_accumulation_steps * devices). Make them with "
                f"curriculum_dataset(stages, batch_size={batch_size})"
            )
        return cls([(count // batch_size, *settings) for count, *settings in stages.values()], trainer)

    def bind(self, trainer: Any) -> StageCallback:
        """Say whose temperature is to be set."""
        if not hasattr(trainer, "generalized_jsd_loss"):
            raise UserError(
                f"{type(trainer).__name__} has no GKD loss that takes a temperature. Use GKDTrainer of "
                "trl.experimental.gkd"
            )
        self.trainer = trainer
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the stage of the step that training begins with, also where it goes on from a checkpoint."""
        if self.trainer is None:
            raise UserError("StageCallback knows no trainer. Call callback.bind(trainer) before trainer.train()")
        self._take(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up a stage at its first step."""
        self._take(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Say in the logs which stage it is."""
        for kept in (logs, *state.log_history[-1:]):  # what is shown, and what is kept of it
            if kept is not None:
                kept.update(stage=self.stage, temperature=self.temperature)

    def _take(self, step: int) -> None:
        stage, end = 0, self.plan[0][0]
        while step >= end and stage + 1 < len(self.plan):
            stage += 1
            end += self.plan[stage][0]
        if stage == self.stage:
            return
        self.stage, (_, self.temperature, self.weight) = stage, self.plan[stage]
        self.trainer.temperature = self.temperature
        # The loss is called without a temperature and would take 1.
        loss = type(self.trainer).generalized_jsd_loss
        self.trainer.generalized_jsd_loss = functools.partial(loss, temperature=self.temperature)
        logger.info("stage %d from step %d: temperature %g", stage, step, self.temperature)


def _planned(entry: Sequence[float]) -> tuple[int, float, float]:
    """Steps, temperature and weight of a stage."""
    values = tuple(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else ()
    if len(values) not in (2, 3) or any(isinstance(value, bool) or value != value for value in values):
        raise UserError(
            f"StageCallback: {entry!r} is no stage. Give (steps, temperature) or (steps, temperature, weight)"
        )
    steps, temperature, weight = (*values, 1.0)[:3]
    if int(steps) != steps or steps < 1 or temperature <= 0 or not 0 <= weight <= 1:
        raise UserError(
            f"StageCallback: {entry!r}: steps are whole numbers from 1, temperatures above 0, weights within 0 and 1"
        )
    return int(steps), float(temperature), float(weight)


_Base: Any = GKDTrainer or object


class StagedGKDTrainer(_Base):  # type: ignore[misc]
    """TRL's GKD trainer on the rows of `curriculum_dataset`, in their order, with the settings of each stage.

    The loss of a step is ``weight · T² · divergence(T) + (1 - weight) · cross-entropy``, as srd's own training has it,
    each a sum over the tokens of the step divided by their number, in however many micro-batches and on however many
    devices they come. T² is left out of reverse KL. Of the rows' tokens those are learnt that ``completion_mask``
    marks, where they bring it. On a micro-batch whose text was generated (``lmbda``, ``seq_kd``) there is no
    cross-entropy, and the divergence is the mean over its own tokens, divided by the number of micro-batches: how long
    these texts are is known only when the step is under way. One difference remains: all stages have one learning-rate
    schedule, where srd begins anew in each.

    Args:
        train_dataset: What `curriculum_dataset` gives, with the batch size of the arguments.
        args: ``trl.experimental.gkd.GKDConfig``; one pass, and the rows are not shuffled whatever it says.
        kwargs: As of ``GKDTrainer``.

    Raises:
        UserError: TRL is not installed, or the rows do not fit the batches.
    """

    def __init__(self, *, train_dataset: datasets.Dataset, args: Any, **kwargs: Any) -> None:
        if GKDTrainer is None:
            raise UserError("StagedGKDTrainer needs TRL's GKD trainer. Run: pip install 'trl>=1.0'")
        steps = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.stages = StageCallback.from_rows(train_dataset, steps)
        if args.num_train_epochs != 1 and args.max_steps <= 0:
            raise UserError(
                f"num_train_epochs is {args.num_train_epochs:g}, but the passes are in the rows. Set num_train_epochs=1"
            )
        args.train_sampling_strategy, args.packing = "sequential", False
        super().__init__(train_dataset=train_dataset, args=args, **kwargs)
        trainer: Any = self
        if getattr(trainer, "use_liger_gkd_loss", False):
            raise UserError("use_liger_kernel has a GKD loss that takes no temperature. Set use_liger_kernel=False")
        trainer.data_collator = _Masked(trainer.data_collator)
        self.add_callback(self.stages.bind(self))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the stage that training is in."""
        import torch

        labels, written = inputs["labels"], inputs.get(WRITTEN)
        divergence, outputs = super().compute_loss(model, inputs, return_outputs=True)  # see `generalized_jsd_loss`
        weight, scale = self.stages.weight, 1.0 if self.beta == 1 else self.stages.temperature**2
        loss = weight * scale * divergence
        generated = written is not None and not torch.equal(written, labels)
        if weight < 1 and not generated:
            loss = loss + (1 - weight) * _cross_entropy(outputs.logits, labels)
        loss = loss / self._divisor(labels, generated, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _divisor(self, labels: Any, generated: bool, items: Any) -> Any:
        """What the sum over a micro-batch's tokens is divided by, so that micro-batches add up and devices average."""
        if items is None or generated:  # `items` counts the rows' own tokens, not what was generated in their place
            own = (labels[:, 1:] != -100).sum().clamp_min(1)
            # Without `items` transformers divides by the micro-batches itself.
            return own if items is None else own * self.current_gradient_accumulation_steps
        # The items are those of all devices, whose gradients are averaged.
        alike = self.accelerator.num_processes // self.get_tp_size() if self.args.average_tokens_across_devices else 1
        return items / alike

    @staticmethod
    def generalized_jsd_loss(*logits: Any, **settings: Any) -> Any:
        """TRL's divergence summed over tokens: some of its versions take a mean of each micro-batch."""
        return GKDTrainer.generalized_jsd_loss(*logits, **settings, reduction="sum")


def _cross_entropy(logits: Any, labels: Any) -> Any:
    """Cross-entropy of the labels, summed over tokens."""
    import torch

    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


class _Masked:
    """TRL's collator, with the labels of just those tokens that the rows mark as learnt, and once more as `WRITTEN`."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collator(rows)
        for labels, row in zip(batch["labels"], rows, strict=True):
            mask = row.get("completion_mask")
            if mask is not None:  # padding stands on the left
                own = labels[len(labels) - len(mask) :]
                own[own.new_tensor(mask) == 0] = -100
        return {**batch, WRITTEN: batch["labels"]}
