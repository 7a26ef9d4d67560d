"""The one training loop: SFT and every distillation objective, on transformers' Trainer.

What it adds to the Trainer: batches of similar length, the loss at response positions only, the teacher (its cached
hidden states or the live model), student-written batches, and validation by ROUGE-L.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from srd.base import parallel
from srd.base.errors import RunError, UserError
from srd.base.files import atomic_write, disk_errors, read_json, remove, write_json
from srd.data.batching import (
    Collator,
    EncodedExamples,
    LengthBatches,
    learnt_spans,
    learnt_tokens,
    length_sorted_batches,
    lengths_of,
)
from srd.data.encoding import encode, is_encoded
from srd.data.turns import without_end
from srd.metrics.rouge import rouge_l_many
from srd.metrics.scripts import Words
from srd.models.architecture import position_limit
from srd.models.finite import blame, name_of
from srd.models.generation import Decoding, decode_batch, generate
from srd.models.head import (
    HeadWeights,
    head_is_enough,
    head_weights,
    response_hidden,
    response_logits,
    response_losses,
)
from srd.models.loading import load_model, load_tokenizer
from srd.models.pair import (
    check_read,
    head_width,
    kinds_differ,
    shared_vocabulary,
    token_count,
    tokenizers_differ,
)
from srd.models.reading import abilities, bears_packing
from srd.models.sharding import check_sharding, models_are_whole, shared_embeddings_together, whole_model
from srd.models.tokens import decoder_prefix, padding_id, stop_token_ids
from srd.training.alignment import ENOUGH_MASS, Reader, for_teacher, shares_told, sums_told, warn_of_mass
from srd.training.checkpoints import forget_older, last_checkpoint, seal, step_of
from srd.training.divergences.base import canonical_name, check_parameters
from srd.training.loss import LossParts, LossSettings, head_loss, logits_loss
from srd.training.methods.base import METHODS, Method, any_method
from srd.training.positions import (
    MakeLogits,
    choose_positions,
    entropies,
    entropies_of,
    gaps_of,
    log_likelihoods,
    random_scores,
)
from srd.training.refresh import Ahead, Refresher
from srd.training.rollouts import Rollouts, replace_responses
from srd.training.schedules import Schedule
from srd.training.teacher_cache import TeacherCache, build_cache
from srd.training.teachers.base import TeacherSource
from srd.training.teachers.cache import CachedTeacher
from srd.training.teachers.common import Teacher
from srd.training.teachers.live import LiveTeacher, live
from srd.training.written import Pen

logger = logging.getLogger(__name__)

MASKS = ("attention_mask", "decoder_attention_mask")  # of a batch: 1 where a token is read
ENOUGH = 16  # answers of the student, to say how many of them were cut

ROLLOUTS = "rollouts"  # the folder of what the student writes ahead
STATE_FILE = "distillation.json"  # what a checkpoint of ours holds beside the Trainer's own files


@dataclass
class Validation:
    """What a training is validated on.

    Attributes:
        examples: Encoded, for the loss.
        references: Of each example.
        decoding: Greedy by default.
        batch_size: Prompts at once.
        generate: Off: the loss only (cheap; for fine-tuning a teacher).
        words: How ROUGE-L reads texts (`srd.metrics.scripts`); None: as the references ask for.
    """

    examples: EncodedExamples
    references: list[list[str]]
    decoding: Decoding = field(default_factory=Decoding)
    batch_size: int = 32
    generate: bool = True
    words: Words | None = None


@dataclass
class Writing:
    """How the student writes what it trains on, and what of the loss changes as it does.

    Attributes:
        rollouts: Which batches it writes; None: none of them.
        decoding: How it chooses tokens.
        schedule: Of the loss; None: it stays as it is.
        ahead: How it writes ahead of its training; None: in every step.
    """

    rollouts: Rollouts | None = None
    decoding: Decoding = field(default_factory=Decoding)
    schedule: Schedule | None = None
    ahead: Ahead | None = None


def writing_of(method: Method, rollouts: Rollouts | None, schedule: Schedule | None, folder: Path) -> Writing:
    """How the student writes by a method's settings; what it writes ahead goes to ``folder``."""
    longest, every = method.longest_text(), method.refreshed()
    decoding = Decoding(longest, method.sampling_temperature()) if rollouts and longest else Decoding()
    return Writing(rollouts, decoding, schedule, Ahead(every, folder) if rollouts and every != "step" else None)


class DistillTrainer(Trainer):
    """A `transformers.Trainer` that distils: ``train()``, ``evaluate()``, ``save_model()``, callbacks, checkpoints.

    Args:
        model: The student.
        args: TrainingArguments; ``per_device_train_batch_size`` times ``gradient_accumulation_steps`` times processes
            is the number of examples in an optimizer step.
        train_dataset: Rows such as ``{"instruction": …, "output": …}`` in a list of dicts, a ``datasets.Dataset`` or a
            pandas, polars or pyarrow table; or what `srd.encode` gives, for another template or length.
        processing_class: The tokenizer that teacher and student share.
        teacher: A model, the name or folder of one, or what `srd.build_cache` gives; None for ``method="sft"``.
        objective: Name of the divergence, or ``{"name": "srkl", "alpha": 0.1}``; or `LossSettings`, which then say
            temperature and weight, too. A method with a divergence of its own uses that.
        temperature: Softmax temperature of the divergence.
        weight: Of the divergence; cross-entropy has the rest.
        eval_dataset: Rows likewise, for ``eval_loss`` (nats a token) and ``eval_rouge_l`` (0 to 1, of greedy answers)
            where TrainingArguments say so; or `Validation`.
        method: Whose text is trained on: ``kd`` and ``sft`` on the rows', ``gkd`` and ``distillm`` on the student's
            own, too, with their settings as in ``{"name": "gkd", "student_share": 1.0}``; or `Writing`.

    Attributes:
        tokens_read: Of prompts and responses, so far.
        log_row: Called with every logged row; None: nobody is.
        tell: Called with how far the student's writing ahead is, in words.
        collator: Pads batches.

    Raises:
        UserError: rows that are no examples, models that do not go together, an unknown name, a value out of range.

    Loss and gradient are sums over tokens divided by the valid tokens of the whole optimizer step: how it is split
    into micro-batches or processes changes nothing.
    """

    tokens_read = 0  # by all processes, if they read as much as this one
    _unchecked: tuple[Tensor, dict[str, Any], Any]  # the last micro-batch's loss, its inputs, and when it is there
    answers: Sequence[tuple[str, str, float]] = ()  # of the last validation: id, text, ROUGE-L
    _told_mass = False  # whether it was said that the teacher's tokens are others than the student's
    _told_cut = False  # whether it was said that most answers of the student are cut

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase,
        teacher: Any = None,
        objective: str | Mapping[str, Any] | LossSettings = "srkl",
        temperature: float = 1.0,
        weight: float = 1.0,
        eval_dataset: Any = None,
        method: str | Mapping[str, Any] | Method | Writing = "kd",
    ) -> None:
        self.tokenizer = tokenizer = processing_class
        writing, uses_teacher = _writing(method, args)
        self.settings = settings = _loss_settings(objective, temperature, weight, uses_teacher)
        examples = _encoded(train_dataset, tokenizer, model)
        self.teacher = _teacher(teacher, examples, model, tokenizer, args) if settings.objective else None
        _check_served(teacher, settings, writing)
        _check_writing(writing, examples, model, self.teacher)
        self.validation = validation = _validation(eval_dataset, tokenizer, model)
        self.reader = self.teacher.reader if self.teacher else None  # of a teacher with another tokenizer
        alike = None if self.teacher is None or self.reader is not None else self.teacher.model
        self.collator = make_collator(model, tokenizer, alike)
        use_one_device(args)
        widen(model, scaled=args.fp16)
        super().__init__(
            model=model,
            args=args,
            train_dataset=examples,
            eval_dataset=validation.examples if validation else None,
            data_collator=self.collator,
        )
        models_are_whole()
        self.rollouts, self.rollout_decoding, self.schedule = writing.rollouts, writing.decoding, writing.schedule
        if self.rollouts is not None or (validation is not None and validation.generate):
            abilities(self.model)  # measured before autocast rounds what it compares
        self.log_row: Callable[[dict[str, Any]], None] | None = None
        self.tell: Callable[[str], None] = lambda note: None
        self.model_accepts_loss_kwargs = True  # our loss is divided by the items of the whole step
        self.loss_is_scaled_for_ga = True
        self.can_return_loss = True
        self.batches = _length_batches(examples, args)
        check_sharding(self.accelerator)
        self.refresher = self._refresher(writing, examples, by_method=not isinstance(method, Writing))
        if self.teacher is not None and self.is_fsdp_enabled:
            self.teacher.shard()
        for callback in (_EpochOrder(self.batches), _FirstValidation(self), _StepEnd(self)):
            self.add_callback(callback)
        self._drifts: list[Tensor] = []  # [2] of each micro-batch since the last log: sum of log π − log π₀, and tokens
        self._parts: list[tuple[Tensor, ...]] = []
        self._parts_since = self._parts_before = 0  # the last log's step; parts of the steps before this one
        self._written = [0, 0]  # answers of the student, and how many of them were cut
        self._logged = [0, 0]  # of all processes at the last log
        self.validation_seconds = 0.0
        self._seconds_before, self._started = 0.0, time.perf_counter()

    # ------------------------------------------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches that are already this process's own: accelerate has nothing left to deal out."""
        assert isinstance(self.train_dataset, EncodedExamples)
        return DataLoader(
            self.train_dataset if self.refresher is None else range(len(self.train_dataset)),  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=_nothing
            if self.refresher is not None
            else _WithRows(self.collator, self.reader, rows=self.rollouts is not None),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def _prepare_input(self, data: Any) -> Any:
        # The Trainer's own copies make the program wait for all that the GPU has been given to do.
        if isinstance(data, Tensor) and not self.is_deepspeed_enabled and data.is_pinned():
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Fetch an optimizer step's micro-batches, let the student write if it is its turn, and count the tokens."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        rows, by_student = [batch.pop("rows", []) for batch in samples], False
        if self.refresher is not None:
            samples, rows = self._written_ahead(self.refresher)
        elif self.rollouts is not None:
            rows, by_student = replace_responses(
                rows, self.rollouts, self.state.global_step, self.state.max_steps, self._write
            )
        if by_student:
            samples = [self._by_student(own) for own in rows]
        self.tokens_read += self.args.world_size * sum(map(_tokens_in, samples))
        items = torch.tensor(sum(len(batch["targets"]) for batch in samples), device=device)
        if self.args.world_size > 1:
            items = self.accelerator.reduce(items, "sum")
        self._parts_before = len(self._parts)
        self._count_chosen(samples, device)
        if self.schedule is not None:
            self.schedule.begin_step(
                self.state.global_step, self.state.max_steps, lambda temperature: self._entropies(samples, temperature)
            )
        return samples, items.clamp(min=1)

    def _count_chosen(self, samples: list[dict[str, Any]], device: torch.device) -> None:
        """Tell each micro-batch at how many positions of the whole step the divergence is taken."""
        choice = self.settings.tokens
        if choice is None:
            return
        chosen = torch.tensor(sum(choice.count(n) for batch in samples for n in batch["counts"]), device=device)
        if self.args.world_size > 1:
            chosen = self.accelerator.reduce(chosen, "sum")
        for batch in samples:
            batch["chosen_items"] = chosen.clamp(min=1)

    @torch.no_grad()
    def _entropies(self, samples: list[dict[str, Any]], temperature: float) -> NDArray[np.float32]:
        """The teacher's entropies at all positions of a step, of all processes."""
        assert self.teacher is not None
        values = [np.zeros(0, np.float32)]
        for batch in samples:
            with self.compute_loss_context_manager():
                hidden = self.teacher.hidden(for_teacher(self._prepare_inputs(batch)))
            head = self.teacher.head_on(hidden.device)
            if hidden.shape[1] < head.vocabulary:
                for_teacher(batch)["teacher_hidden"] = hidden  # a live teacher has read the text, and need not again
            values.append(entropies(hidden, head, temperature).float().cpu().numpy())
        return np.concatenate(parallel.gather(np.concatenate(values)))

    def _refresher(self, writing: Writing, examples: EncodedExamples, *, by_method: bool) -> Refresher | None:
        """What lets the student write ahead, where it does; a method that is named has a whole teacher read once."""
        ahead, teacher = writing.ahead, self.teacher
        if ahead is None or writing.rollouts is None:
            return None
        if by_method and type(teacher) is LiveTeacher and not self.is_fsdp_enabled:
            model, collator = teacher.model, self.collator
            ahead.read = lambda rows, folder: build_cache(folder / "cache", lambda: model, rows, collator)
        decoding = replace(writing.decoding, seed=self.args.seed)
        refresher = Refresher(ahead, writing.rollouts, examples, self.batches, decoding)
        self.add_callback(_WrittenAhead(self, refresher))
        return refresher

    def _written_ahead(self, refresher: Refresher) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
        """The micro-batches of an optimizer step, and their rows: text that is written ahead, here if it is time."""
        step = self.state.global_step
        if refresher.begin(step, self.state.max_steps, self._pen, self.tell):
            self.log(refresher.summary())
        samples, batches = [], refresher.micro_batches(step)
        for rows in batches:
            batch = {**self.collator(rows), **_about(rows)}
            if any("log_likelihood" in row for row in rows):
                batch["log_likelihood"] = torch.tensor(
                    [value for row in rows for value in row.get("log_likelihood") or [math.nan] * learnt_tokens(row)]
                )
            samples.append(batch)
        return samples, batches

    @contextlib.contextmanager
    def _pen(self) -> Iterator[Pen]:
        """The student as it is now, to write with."""
        assert self.refresher is not None
        with self.whole_student() as student:
            student.eval()
            yield Pen(
                student, student, self.tokenizer, self.collator, self._readable(), self.refresher.ahead.batch_size
            )
            student.train()

    def _readable(self) -> int:
        """Ids from here on are not written, as the teacher could not read them."""
        alike = self.teacher is not None and self.reader is None
        return min(len(self.tokenizer), self.teacher.head.vocabulary) if alike and self.teacher else len(self.tokenizer)

    def _by_student(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A micro-batch of the student's own answers, on which there is no cross-entropy."""
        batch = {**self.collator(rows), **_about(rows)}
        batch["reference"] = torch.zeros(len(batch["targets"]))
        return batch if self.reader is None else {**batch, **self.reader.batch(rows, written=True)}

    @torch.no_grad()
    def _write(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        """Let the student answer prompts as it is now; the answers keep their end of sequence."""
        decoding = Decoding(
            self.rollout_decoding.max_new_tokens,
            self.rollout_decoding.temperature,
            self.rollout_decoding.top_p,
            seed=self.args.seed + self.state.global_step,
        )
        answers: list[list[int]] = []
        width = self._readable()
        with self.whole_student() as student:
            student.eval()
            for start in range(0, len(rows), self.args.per_device_train_batch_size):
                part = rows[start : start + self.args.per_device_train_batch_size]
                written, _ = decode_batch(
                    student,
                    [row["prompt_ids"] for row in part],
                    [row["id"] for row in part],
                    decoding,
                    stop_token_ids(student, self.tokenizer),
                    padding_id(self.tokenizer),
                    width=width,
                )
                answers += written
            stops = stop_token_ids(student, self.tokenizer)
            student.train()
        self._written[0] += len(answers)
        self._written[1] += sum(not without_end(answer, stops)[1] for answer in answers)
        return answers

    @contextlib.contextmanager
    def whole_student(self) -> Iterator[Any]:
        """The student with all its weights on this process, as generation needs it; every process must take part."""
        with whole_model(self.model_wrapped, self.accelerator) as student:
            yield student

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> Any:
        with shared_embeddings_together(self.model) if self.is_fsdp_enabled else contextlib.nullcontext():
            return super()._prepare_for_training(*arguments, **named)

    # --------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of one micro-batch: a sum over its tokens divided by the tokens of the whole step."""
        count = len(inputs["targets"]) if num_items_in_batch is None else num_items_in_batch
        items = torch.as_tensor(count, device=inputs["targets"].device).clamp(min=1)
        loss, parts = self.loss_of(model, inputs, items)
        self._unchecked = (loss.detach().to("cpu", non_blocking=True), inputs, _marked(loss.device))
        told = sums_told(inputs["alignment"], parts.mass) if "alignment" in inputs else []
        kd = parts.kd.sum() / inputs.get("chosen_items", items)
        self._parts.append((parts.ce.sum() / items, kd, *(part / items for part in told)))
        if parts.own is not None:
            self._watch(parts.own, inputs["log_likelihood"])
        # DDP averages gradients over processes, but our sum is divided by the global count already.
        return loss * self.accelerator.num_processes if self.accelerator.num_processes > 1 else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward pass of a micro-batch; no step is made with a loss that is not finite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        value, seen, copied = self._unchecked
        if copied is not None:
            copied.synchronize()  # waits for the forward pass alone: the backward pass is under way by now
        if not math.isfinite(value.item()):
            raise RunError(
                f"the loss is {value.item()} at step {self.state.global_step} (stage folder {self.args.output_dir}). "
                f"{self._blame(seen)} A lower training.learning_rate or a wider training.precision often helps."
            )
        return loss

    def loss_of(
        self, model: Any, inputs: dict[str, Any], items: Tensor, settings: LossSettings | None = None
    ) -> tuple[Tensor, LossParts]:
        """The loss through the student's head where it can be reached, else through the model's own logits."""
        core = self.accelerator.unwrap_model(model)
        settings, reference = settings or self.settings, inputs.get("reference")
        if self.schedule is not None:
            settings = self.schedule.settings(settings)
        extra: dict[str, Any] = {"teacher_hidden": None, "teacher_head": None, "reference": reference}
        width = None
        if settings.objective and self.teacher is not None:
            theirs, teacher_head = for_teacher(inputs), self.teacher.head_on(inputs["targets"].device)
            known = theirs.get("teacher_hidden")
            extra["teacher_hidden"] = self.teacher.hidden(theirs) if known is None else known
            extra["teacher_head"] = teacher_head
            width = teacher_head.vocabulary
            if self.reader is not None:
                width = head_width(core.config)
                extra["alignment"] = self.reader.alignment(inputs, teacher_head.vocabulary, width)
        extra["watch"] = "log_likelihood" in inputs
        if self._head_is_reachable(core):
            hidden, head = response_hidden(model, inputs, core=core), head_weights(core, width)
            own = head.computing_in(hidden)
            extra |= self._by_position(inputs, settings, own.vocabulary, lambda rows: own.logits(hidden[rows]), extra)
            return head_loss(hidden, head, inputs["targets"], settings, items, **extra)
        logits = response_logits(model, inputs, core=core)
        width = width or logits.shape[-1]
        extra |= self._by_position(inputs, settings, width, lambda rows: logits[rows, :width].float(), extra)
        return logits_loss(logits, width, inputs["targets"], settings, items, **extra)

    def _by_position(
        self,
        inputs: dict[str, Any],
        settings: LossSettings,
        vocabulary: int,
        student: MakeLogits,
        known: dict[str, Any],
    ) -> dict[str, Any]:
        """What the loss is told of each position beside the targets, by what the models say at all of them."""
        told: dict[str, Any] = {}
        teacher = {name: known[name] for name in ("teacher_hidden", "teacher_head")}
        if settings.tokens is not None:
            told |= self._chosen(inputs, settings, vocabulary, student, **teacher)
        if self.schedule is not None and self.schedule.wants_likelihoods:
            told["columns"] = self._columns(self.schedule, inputs, vocabulary, student, **teacher)
        return told

    def _columns(
        self, schedule: Schedule, inputs: dict[str, Any], vocabulary: int, student: MakeLogits, *,
        teacher_hidden: Tensor, teacher_head: HeadWeights,
    ) -> dict[str, Tensor]:  # fmt: skip
        """What the schedule gives the divergence for each text, repeated for its positions."""
        targets, counts = inputs["targets"], inputs["counts"]
        ends, written = np.cumsum(counts)[:-1], [count > 0 for count in counts]

        def means(logits: MakeLogits) -> NDArray[np.float64]:
            nats = log_likelihoods(logits, targets, vocabulary).double().cpu().numpy()
            return np.array([part.mean() if len(part) else 0.0 for part in np.split(nats, ends)])

        reference = inputs.get("reference")
        known = np.ones(len(targets)) if reference is None else reference.cpu().numpy()
        own = np.array([bool(len(part)) and not part[0] for part in np.split(known, ends)], dtype=bool)
        by_teacher = means(lambda rows: teacher_head.logits(teacher_hidden[rows]))
        found = schedule.of_rows(own[written], by_teacher[written], means(student)[written])
        dtype = torch.float64 if teacher_hidden.dtype == torch.float64 else torch.float32
        lengths = np.array(counts)[written]
        return {
            name: torch.tensor(np.repeat(values, lengths), dtype=dtype, device=targets.device)
            for name, values in found.items()
        }

    def _chosen(
        self, inputs: dict[str, Any], settings: LossSettings, vocabulary: int, student: MakeLogits, *,
        teacher_hidden: Tensor, teacher_head: HeadWeights,
    ) -> dict[str, Any]:  # fmt: skip
        """Where the divergence is taken, by what teacher and student say at all positions of a micro-batch."""
        choice, targets = settings.tokens, inputs["targets"]
        assert choice is not None
        if choice.by == "random":
            scores = random_scores(inputs["ids"], inputs["counts"], self.args.seed, self.state.global_step)
            scores = scores.to(targets.device)
        elif choice.by == "student_entropy":
            scores = entropies_of(student, targets, vocabulary)
        else:
            scores = gaps_of(student, teacher_hidden, teacher_head, vocabulary, settings.temperature)
        return {
            "chosen": choose_positions(scores, inputs["counts"], choice),
            "chosen_items": inputs["chosen_items"].to(targets.device),
        }

    def _watch(self, own: Tensor, before: Tensor) -> None:
        """Add up how far the student has moved away from the text that it wrote, ``[N]`` and ``[N]`` (NaN: not its)."""
        moved = (own - before).double()  # NaN where the text is another's, and where no logits were made
        self._drifts.append(torch.stack([moved.nansum(), (~moved.isnan()).sum()]))

    def drift(self, drifts: list[Tensor]) -> float | None:
        """Mean of log π − log π₀ in nats a token, over all processes; None without text of the student."""
        total = sum(drifts, torch.zeros(2, dtype=torch.float64, device=self.args.device))
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        moved, tokens = total.tolist()
        return moved / tokens if tokens else None

    def _head_is_reachable(self, core: Any) -> bool:
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled) and head_is_enough(core)

    def _blame(self, inputs: dict[str, Any]) -> str:
        """Whose fault a loss that is not finite is: the teacher's weights, the student's, or the rows'."""
        models = {"student": self.accelerator.unwrap_model(self.model)}
        if self.teacher is not None:
            if not torch.isfinite(self.teacher.head.weight).all():
                return "The weights of the teacher are not finite: its output head."
            models |= {"teacher": self.teacher.model} if self.teacher.model is not None else {}
        return blame(models, inputs.get("ids", []))

    # --------------------------------------------------------------------------------------------------- validation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Cross-entropy (nats a token) and ROUGE-L of greedy answers (0 to 1), of ``eval_dataset`` or of other rows."""
        validation = _validation(eval_dataset, self.tokenizer, self.model) or self.validation
        if validation is None:
            raise UserError("there is nothing to evaluate on: give eval_dataset=, here or to the trainer")
        started = time.perf_counter()
        with self.whole_student() as model:
            metrics = {f"{metric_key_prefix}_loss": validation_loss(model, validation, self.collator)}
            if validation.generate:
                answers = generate(
                    model,
                    self.tokenizer,
                    validation.examples.prompts,
                    validation.examples.ids,
                    validation.decoding,
                    batch_size=validation.batch_size,
                    share=True,
                )
                scores = rouge_l_many(answers, validation.references, validation.words)
                self.answers = list(zip(validation.examples.ids, answers, scores.tolist(), strict=True))
                metrics[f"{metric_key_prefix}_rouge_l"] = float(scores.mean())
        for name, value in metrics.items():
            if not math.isfinite(value):  # no checkpoint is better or worse than it
                raise RunError(
                    f"{name} is {value} at the validation of step {self.state.global_step} (stage folder "
                    f"{self.args.output_dir}). A lower training.learning_rate or a wider training.precision helps."
                )
        if self.rollouts is not None:
            self.rollouts.observe(metrics[f"{metric_key_prefix}_loss"])
        self.validation_seconds += time.perf_counter() - started
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control = control
        return metrics

    @property
    def seconds(self) -> float:
        """Time this training has taken, over all attempts."""
        return self._seconds_before + time.perf_counter() - self._started

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the two parts of the loss beside their sum."""
        if "loss" in logs and self._parts:
            # Micro-batches of one step add up; the mean is over the steps since the last log.
            steps = self.state.global_step - self._parts_since
            self._parts_since = self.state.global_step
            sums = torch.stack([torch.stack(part).sum() for part in zip(*self._parts, strict=True)])
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, "sum")
            ce, kd, *told = (sums / steps).tolist()
            logs = {
                **logs,
                "ce_loss": ce,
                "kd_loss": kd,
                **self._alignment(told),
                **(self.schedule.logged() if self.schedule else {}),
            }
            self._parts.clear()
        if "loss" in logs and self.rollouts is not None and self.refresher is None:
            logs = {**logs, **self._cut_share()}
        if "loss" in logs and self.refresher is not None:
            drift = self.drift(self._drifts)
            self._drifts.clear()
            logs = logs if drift is None else {**logs, "drift": drift}
        super().log(logs, start_time)
        if self.log_row is not None and self.is_world_process_zero():
            times = {"seconds": round(self.seconds, 3)}
            self.log_row({"step": self.state.global_step, "epoch": self.state.epoch, **logs, **times})

    def _alignment(self, sums: list[float]) -> dict[str, float]:
        """How much a teacher with another tokenizer supervised; see `srd.training.alignment.shares_told`."""
        told = shares_told(sums) if sums else {}
        if told.get("mass", 1.0) < ENOUGH_MASS and not self._told_mass:
            self._told_mass = True
            warn_of_mass(told["mass"])
        return told

    def _cut_share(self) -> dict[str, float]:
        """The share of the student's answers since the last log that were cut where they were written."""
        counts = torch.tensor(self._written, device=self.args.device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        before, self._logged = self._logged, counts.tolist()
        in_all, cut_in_all = self._logged
        if cut_in_all > in_all / 2 and in_all >= ENOUGH and not self._told_cut:
            self._told_cut = True
            logger.warning(
                "%d of the first %d answers of the student were cut at %d tokens: it learns no end from them. A higher "
                "max_new_tokens of the method lets more of them end.",
                cut_in_all, in_all, self.rollout_decoding.max_new_tokens,
            )  # fmt: skip
        written, cut = (now - then for now, then in zip(self._logged, before, strict=True))
        return {"cut_answers": cut / written} if written else {}

    def end_step(self) -> None:
        """Tell the schedule what the divergence of an optimizer step was, over all micro-batches and processes."""
        if self.schedule is None:
            return
        sums = [kd for _, kd, *_ in self._parts[self._parts_before :]]
        total = torch.stack(sums).sum() if sums else torch.zeros((), device=self.args.device)
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        self.schedule.end_step(float(total), self.state.global_step, self.state.max_steps, parallel.gather)

    # -------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        state: dict[str, Any] = {"seconds": self.seconds, "validation_seconds": self.validation_seconds}
        state["written_by"] = self._writer()
        state["rollouts"] = self.rollouts.state() if self.rollouts is not None else {}
        state["schedule"] = self.schedule.state() if self.schedule is not None else {}
        beside: list[Path] = []
        if self.refresher is not None:
            state["refresh"], beside = self.refresher.state(), self.refresher.needed(self.state.global_step)
        keep, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go when this one is complete
        try:
            with disk_errors(folder):
                if self.is_world_process_zero():  # the same on all: a run may go on with another number of processes
                    write_json(folder / STATE_FILE, state)
                super()._save_checkpoint(model, trial)
                parallel.barrier()
                if self.is_world_process_zero():
                    seal(folder, *beside)
        except RunError:
            if self.is_world_process_zero():
                remove(folder)
            raise
        finally:
            self.args.save_total_limit = keep
        if self.is_world_process_zero():
            forget_older(folder.parent, keep, self.state.best_model_checkpoint)
            if self.refresher is not None:
                self.refresher.forget(self.state.global_step)

    def _load_best_model(self) -> None:
        # Its path is as the process saw it that chose it, perhaps from another working directory.
        best = Path(self.args.output_dir) / Path(str(self.state.best_model_checkpoint)).name
        if not best.is_dir():
            raise RunError(f"{best}, the best checkpoint of this stage, is gone. The same command trains it again.")
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    def _writer(self) -> str:
        """Whose kind of checkpoint this training has: none of them reads another's."""
        if self.is_deepspeed_enabled:
            stage = self.accelerator.state.deepspeed_plugin.zero_stage
            return f"DeepSpeed ZeRO-{stage} on {self.args.world_size} processes"
        return "FSDP" if self.is_fsdp_enabled else "plain or data-parallel training"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the student, with its tokenizer, for ``from_pretrained``."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.is_world_process_zero():
            self.tokenizer.save_pretrained(output_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        remove(Path(output_dir or self.args.output_dir) / "training_args.bin")  # a pickle that nothing here reads

    def resume(self, checkpoint: Path | None = None) -> Any:
        """Train, going on from a checkpoint; None: the last whole one of the output folder, if there is one."""
        checkpoint = checkpoint or parallel.on_main(lambda: last_checkpoint(Path(self.args.output_dir)))
        state = read_json(checkpoint / STATE_FILE) if checkpoint else None
        if state:
            if (before := state.get("written_by", self._writer())) != self._writer():
                raise UserError(
                    f"{checkpoint} was written by {before}, which {self._writer()} cannot read. Go on as the run was "
                    "begun, or delete the checkpoint: this stage then begins again."
                )
            self._seconds_before, self.validation_seconds = state["seconds"], state["validation_seconds"]
            if self.rollouts is not None:
                self.rollouts.restore(state["rollouts"])
            if self.schedule is not None:
                self.schedule.restore(state["schedule"])
            if self.refresher is not None:
                self.refresher.restore(state["refresh"])
        self._started = time.perf_counter()
        self._parts_since = step_of(checkpoint)
        return self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _marked(device: torch.device) -> Any:
    """A place among what a GPU has been given to do, that can be waited for; None on other devices."""
    if device.type != "cuda":
        return None
    place = torch.cuda.Event()
    place.record()
    return place


class _EpochOrder(TrainerCallback):
    """Tells the batch sampler which epoch begins, also when a run resumes within one."""

    def __init__(self, batches: LengthBatches) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.set_epoch(int(state.epoch or 0))


class _FirstValidation(TrainerCallback):
    """Validates the student before it is trained, where rollouts compare later validations with that."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.rollouts is None or trainer.validation is None or not trainer.rollouts.wants_reference:
            return
        started = time.perf_counter()
        with trainer.whole_student() as student:
            loss = validation_loss(student, trainer.validation, trainer.collator)
        trainer.rollouts.observe(loss)
        trainer.validation_seconds += time.perf_counter() - started


class _StepEnd(TrainerCallback):
    """Ends a step for the trainer's schedule, before anything is logged or kept of it."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_step()


class _WrittenAhead(TrainerCallback):
    """Tells what writes ahead how far the student has moved, and when training ends."""

    def __init__(self, trainer: DistillTrainer, refresher: Refresher) -> None:
        self.trainer, self.refresher = trainer, refresher
        self.seen = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.refresher.ahead.every == "auto":  # asked now, so that a checkpoint of this step knows
            drifts = self.trainer._drifts
            self.refresher.watch(self.trainer.drift(drifts[self.seen :]))
            self.seen = len(drifts)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen = len(self.trainer._drifts)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.refresher.close()


def _nothing(rows: list[int]) -> dict[str, Any]:
    """In place of a batch whose rows are chosen when its step comes."""
    return {"rows": []}


def _tokens_in(batch: Mapping[str, Any]) -> int:
    """Tokens that a batch holds beside its padding; one that is packed has none."""
    masks = [batch[name] for name in MASKS if name in batch]
    return sum(int(mask.sum()) for mask in masks) if masks else batch["input_ids"].numel()


class _WithRows:
    """Collates, and keeps ids beside the tensors for messages, and the rows where the student may write them anew."""

    def __init__(self, collator: Collator, reader: Reader | None = None, *, rows: bool) -> None:
        self.collator, self.reader, self.rows = collator, reader, rows

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {**self.collator(rows), **_about(rows)}
        batch |= self.reader.batch(rows) if self.reader is not None else {}
        return {**batch, "rows": rows} if self.rows else batch


def _about(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Whose positions a batch holds, and how many of each."""
    counts = [sum(end - start for start, end in learnt_spans(row)) for row in rows]
    return {"ids": [row["id"] for row in rows], "counts": counts}


# ------------------------------------------------------------------------------- what is given, as the loop takes it


def _encoded(rows: Any, tokenizer: PreTrainedTokenizerBase, model: Any) -> EncodedExamples:
    """Rows as token ids; those that are so already are left as they are."""
    if isinstance(rows, EncodedExamples):
        return rows
    if not is_encoded(rows):
        rows = encode(rows, tokenizer, encoder_decoder=bool(model.config.is_encoder_decoder))
    return EncodedExamples(rows)


def _length_batches(examples: EncodedExamples, args: TrainingArguments) -> LengthBatches:
    """This process's part of batches of similar length."""
    return LengthBatches(
        examples.lengths,
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        micro_batch_size=args.per_device_train_batch_size,
        seed=args.seed,
        process=args.process_index,
        processes=args.world_size,
    )


def _validation(rows: Any, tokenizer: PreTrainedTokenizerBase, model: Any) -> Validation | None:
    if rows is None or isinstance(rows, Validation):
        return rows
    if not is_encoded(rows):
        rows = encode(rows, tokenizer, encoder_decoder=bool(model.config.is_encoder_decoder))
    return Validation(EncodedExamples(rows), list(rows["references"]))


def _loss_settings(objective: Any, temperature: float, weight: float, uses_teacher: bool) -> LossSettings:
    if isinstance(objective, LossSettings):
        return objective
    parameters = dict(objective) if isinstance(objective, Mapping) else {"name": objective}
    name = canonical_name(str(parameters.pop("name", "")))
    check_parameters(name, parameters)
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature is {temperature}, but must be above 0 and finite")
    if not 0 <= weight <= 1:
        raise UserError(f"weight is {weight}, but must be between 0 and 1")
    return LossSettings(name, parameters, temperature, weight) if uses_teacher else LossSettings()


def _writing(given: Any, args: TrainingArguments) -> tuple[Writing, bool]:
    """How the student writes by a method, and whether the teacher is asked."""
    if isinstance(given, Writing):
        return given, True
    try:
        settings = {"name": given} if isinstance(given, str) else given
        named = any_method().validate_python(dict(settings) if isinstance(settings, Mapping) else settings)
    except ValidationError as error:
        raise UserError(f"method: {error.errors()[0]['msg']}; known are {', '.join(METHODS.names())}") from error
    if named.text == "teacher":
        raise UserError(
            f"method: '{named.name}' trains on what the teacher has written. Give the teacher's answers as the rows "
            f"and method='sft'; srd.distill(…, method='{named.name}') does both."
        )
    if named.text == "both":
        raise UserError(
            f"method: '{named.name}' trains on what teacher and student have written beforehand. Use "
            f"srd.distill(…, method='{named.name}', objective='{named.own_objective}'), which lets them write."
        )
    folder = Path(str(args.output_dir)) / ROLLOUTS
    return writing_of(named, named.rollouts(args.seed), named.schedule(), folder), named.uses_teacher


def _check_writing(writing: Writing, examples: EncodedExamples, student: Any, teacher: Teacher | None) -> None:
    """Refuse a teacher that cannot be asked about what the student is yet to write, and text that has no place."""
    if writing.rollouts is None:
        return
    read_once = writing.ahead is not None and writing.ahead.read is not None
    if teacher is not None and not teacher.reads_new_text and not read_once:
        raise UserError("a teacher cache cannot foresee what the student writes. Give the teacher itself.")
    longest, prompt = writing.decoding.max_new_tokens, int(lengths_of(examples.prompts).max(initial=0))
    for model in filter(None, (student, teacher.model if teacher is not None else None)):
        limit = position_limit(model.config)
        if limit is not None and not model.config.is_encoder_decoder and prompt + longest > limit:
            raise UserError(
                f"method: max_new_tokens is {longest}, and the longest prompt has {prompt} tokens, but "
                f"{name_of(model)} takes {limit} together. Set max_new_tokens to at most {max(0, limit - prompt)}, or "
                "shorten the prompts."
            )


def _teacher(
    given: Any, examples: EncodedExamples, student: Any, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
) -> Teacher | None:
    """A teacher that is ready to be asked; where it is a cache the examples bring its states."""
    if given is None or isinstance(given, Teacher):
        return given
    if isinstance(given, TeacherCache):
        if not given.holds(examples):
            raise UserError(
                f"the teacher cache in {given.folder} lacks some of the rows. Build it from the same rows, with the "
                "same tokenizer, template and lengths: srd.build_cache"
            )
        examples.teacher = given
        head = given.head()
        width = min(head.vocabulary, head_width(student.config))
        _check_read(examples, width, tokenizer)
        return CachedTeacher(head.cut(width))
    if given is student:
        raise UserError("teacher and student are one and the same object. Load the teacher apart.")
    named = isinstance(given, str | Path)
    model = load_model(str(given), tokenizer=tokenizer, role="teacher") if named else given
    reason = kinds_differ(model.config, student.config)
    reason = reason or (tokenizers_differ(load_tokenizer(str(given)), tokenizer) if named else "")
    if reason:
        raise UserError(
            f"teacher and student read different tokens: {reason}. srd.distill(teacher, student, rows) aligns them; "
            "this trainer compares them position by position."
        )
    width = shared_vocabulary(model.config, student.config, tokenizer)
    _check_read(examples, width, tokenizer)
    return live(TeacherSource(lambda: model.to(args.device), width))


def _check_served(teacher: Any, settings: LossSettings, writing: Writing) -> None:
    """Refuse a divergence without a teacher, or one that what a cache keeps cannot serve."""
    if settings.objective and settings.weight > 0 and teacher is None:
        raise UserError(f"the objective '{settings.objective}' needs a teacher: give teacher=, or method='sft'")
    if not settings.objective or not isinstance(teacher, TeacherCache):
        return
    if problem := teacher.tier.problem(settings.objective, settings.temperature, writing.schedule):
        raise UserError(f"the teacher cache in {teacher.folder} is of the tier {teacher.tier.name}: {problem}.")


def _check_read(examples: EncodedExamples, width: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse examples with tokens that the teacher has not."""
    if width < token_count(tokenizer):
        for name, prompt, response in zip(examples.ids, examples.prompts, examples.responses, strict=True):
            check_read(name, prompt, response, width, tokenizer)


def use_one_device(args: TrainingArguments) -> None:
    """Keep the Trainer from splitting micro-batches over all GPUs that it sees, when no launcher was used.

    It would copy the model to each in every step (`torch.nn.DataParallel`), and the loss would see one copy only.
    """
    if args.n_gpu > 1:
        logger.warning(
            f"this machine has {args.n_gpu} GPUs, and this run uses one of them. To use all: "
            f"torchrun --nproc-per-node {args.n_gpu} -m srd run RECIPE --run-dir DIR"
        )
        args._n_gpu = 1


def widen(model: Any, *, scaled: bool) -> None:
    """Hold weights in float32 where half precision would lose what training is about; says so.

    Args:
        model: Changed in place.
        scaled: Whether the loss is scaled (training.precision=float16), so that float16 can hold the gradients.
    """
    half = (torch.float16, torch.bfloat16)
    trained = [weights for weights in model.parameters() if weights.requires_grad and weights.dtype in half]
    if trained:
        kind = str(trained[0].dtype).removeprefix("torch.")
        logger.warning(f"{kind} weights are trained as float32: small updates would be lost in them")
        for weights in trained:
            weights.data = weights.data.float()
    if not scaled and any(weights.dtype == torch.float16 for weights in model.parameters()):
        logger.warning(
            "the float16 weights below the adapters are held as float32: gradients get lost in float16 unless the loss "
            "is scaled, as with training.precision=float16. dtype=bfloat16 for this model takes half the memory."
        )
        for values in (*model.parameters(), *model.buffers()):
            if values.dtype == torch.float16:
                values.data = values.data.float()


def make_collator(model: Any, tokenizer: PreTrainedTokenizerBase, teacher: Any = None) -> Collator:
    """The collator that fits a model: decoder-only or encoder-decoder.

    Where the attention kernels of the model and of a live teacher keep packed examples apart (FlashAttention), and no
    state of theirs goes from one to the next, batches have no padding at all.
    """
    if model.config.is_encoder_decoder:
        return Collator(padding_id(tokenizer), decoder_prefix(model))
    models = [each for each in (model, teacher) if each is not None]
    kernels = [str(getattr(each.config, "_attn_implementation", "")) for each in models]
    flash = all(kernel.startswith("flash_attention") for kernel in kernels)
    return Collator(padding_id(tokenizer), packed=flash and all(map(bears_packing, models)))


@torch.no_grad()
def validation_loss(model: Any, validation: Validation, collator: Collator) -> float:
    """Mean cross-entropy over all response tokens of the validation examples, in nats."""
    device = next(model.parameters()).device
    examples, training = validation.examples, model.training
    model.eval()
    sums: list[tuple[float, int]] = []
    batches = length_sorted_batches(examples.lengths, validation.batch_size)
    for rows in batches[parallel.process() :: parallel.processes()]:
        batch = {name: value.to(device) for name, value in collator([examples.tokens(i) for i in rows]).items()}
        losses = response_losses(model, batch)
        sums.append((float(losses.double().sum()), len(losses)))
    model.train(training)
    # Put together in the order of the batches: the same to the last bit on any number of processes.
    everyone = parallel.gather(sums)
    ordered = [everyone[number % len(everyone)][number // len(everyone)] for number in range(len(batches))]
    return sum(total for total, _ in ordered) / max(1, sum(count for _, count in ordered))


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Optimizer steps in one pass; the last may be smaller."""
    return math.ceil(examples / batch_size)


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
    with atomic_write(path) as partial:
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in rows if keep(row)), encoding="utf-8")
