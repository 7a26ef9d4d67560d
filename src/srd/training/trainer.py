"""The one training loop: SFT and every distillation objective, on transformers' Trainer.

What it adds to the Trainer: batches of similar length, the loss at response positions only, the teacher (its cached
hidden states or the live model), student-written batches, and validation by ROUGE-L.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PredictionOutput

from srd.base import parallel
from srd.base.errors import RunError, UserError
from srd.base.files import disk_errors, read_json, remove, write_json
from srd.data.batching import EncodedExamples, learnt_count
from srd.data.turns import without_end
from srd.models.finite import blame, name_of, non_finite_tensor
from srd.models.generation import decode_batch
from srd.models.head import head_is_enough, head_weights, response_hidden, response_logits
from srd.models.reading import abilities
from srd.models.sharding import check_sharding, models_are_whole, shared_embeddings_together, whole_model
from srd.models.tokenizers.pair import head_width, token_count
from srd.models.tokenizers.tokens import padding_id, stop_token_ids
from srd.training.alignment import for_teacher
from srd.training.arguments import use_one_device
from srd.training.batches import AheadLoader, WithRows, about, length_batches, make_collator, nothing, tokens_in
from srd.training.cache.building import build_cache
from srd.training.checkpoints import (
    STATE_FILE,
    TRAINER_STATE,
    check_place,
    forget_older,
    last_checkpoint,
    seal,
    step_of,
)
from srd.training.inputs import (
    check_given,
    check_served,
    check_writing,
    encoded,
    settings_of,
    teacher_of,
    validation_of,
    writing_by,
)
from srd.training.log import Sums
from srd.training.loss.aligned_loss import Alignment
from srd.training.loss.positions import entropies, told_by_position
from srd.training.loss.response_loss import head_loss, logits_loss
from srd.training.loss.row_losses import LossParts
from srd.training.loss.settings import LossSettings
from srd.training.methods.base import Method
from srd.training.one_schedule import Span
from srd.training.precision import widen
from srd.training.rollouts import replace_responses
from srd.training.student_text.refresh import Refresher
from srd.training.student_text.writing import Writing
from srd.training.student_text.written import Pen
from srd.training.teachers.live import LiveTeacher
from srd.training.validation import Validation, answered, validation_loss


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
        trainer: ``callbacks``, ``optimizers`` and ``optimizer_cls_and_kwargs``, as `transformers.Trainer` takes them.

    Attributes:
        tokens_read: Of prompts and responses, so far.
        log_row: Called with every logged row; None: nobody is.
        logged: Gives what stands for all of them, for checkpoints.
        tell: Called with how far the student's writing ahead is, in words.
        row_weights: What each example counts in the loss, by its id; empty: all the same.
        span: The part of a learning-rate schedule over several trainings that falls to this one; None: it has its own.
        collator: Pads batches.

    Raises:
        UserError: rows that are no examples, models that do not go together, an unknown name, a value out of range.

    Loss and gradient are sums over tokens divided by the valid tokens of the whole optimizer step: how it is split
    into micro-batches or processes changes nothing.
    """

    tokens_read = 0  # by all processes, if they read as much as this one
    _unchecked: tuple[Tensor, dict[str, Any], Any]  # the last micro-batch's loss, its inputs, and when it is there
    answers: Sequence[tuple[str, str, float]] = ()  # of the last validation: id, text, ROUGE-L
    span: Span | None = None
    row_weights: Mapping[str, float] = {}

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
        **trainer: Any,
    ) -> None:
        check_given(model, args, processing_class, trainer)
        self.tokenizer = tokenizer = processing_class
        writing, uses_teacher = writing_by(method, args)
        self.settings = settings = settings_of(objective, temperature, weight, uses_teacher)
        examples = encoded(train_dataset, tokenizer, model)
        self.teacher = teacher_of(teacher, examples, model, tokenizer, args) if settings.objective else None
        check_served(teacher, settings, writing)
        check_writing(writing, examples, model, self.teacher)
        self.validation = validation = validation_of(eval_dataset, tokenizer, model, args)
        self.reader = self.teacher.reader if self.teacher else None  # of a teacher with another tokenizer
        alike = None if self.teacher is None or self.reader is not None else self.teacher.model
        self.collator = make_collator(model, tokenizer, alike)
        self.collator.check(examples)
        use_one_device(args)
        widen(model, scaled=args.fp16)
        super().__init__(
            model=model,
            args=args,
            train_dataset=examples,
            eval_dataset=validation.examples if validation else None,
            data_collator=self.collator,
            **trainer,
        )
        models_are_whole()
        self.rollouts, self.rollout_decoding, self.schedule = writing.rollouts, writing.decoding, writing.schedule
        # Measured before the Trainer wraps the forward pass in autocast, which rounds what is compared.
        self._head_is_reachable(self.model)
        if self.rollouts is not None or (validation is not None and validation.generate):
            abilities(self.model)
        self.log_row: Callable[[dict[str, Any]], None] | None = None
        self.logged: Callable[[], str | None] = lambda: None
        self.tell: Callable[[str], None] = lambda note: None
        self.model_accepts_loss_kwargs = True  # our loss is divided by the items of the whole step
        self.loss_is_scaled_for_ga = True
        self.can_return_loss = True
        self.batches = length_batches(examples, args)
        check_sharding(self.accelerator)
        self.refresher = self._refresher(writing, examples, by_method=writing is not method)
        if self.teacher is not None and self.is_fsdp_enabled:
            self.teacher.shard()
        self.add_callback(_Hooks(self))
        self.sums = Sums(self.accelerator)
        self.validation_seconds = 0.0
        self._seconds_before, self._started = 0.0, time.perf_counter()

    # ---------------------------------------------------------------------------------------------------------- batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches that are already this process's own: accelerate has nothing left to deal out."""
        assert isinstance(self.train_dataset, EncodedExamples)
        on_gpu, workers = self.args.device.type == "cuda", self.args.dataloader_num_workers
        loader = AheadLoader if on_gpu and not workers and self.reader is None else DataLoader
        return loader(
            self.train_dataset if self.refresher is None else range(len(self.train_dataset)),  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=nothing
            if self.refresher is not None
            else WithRows(self.collator, self.reader, rows=self.rollouts is not None),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and on_gpu,
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
        self.tokens_read += self.args.world_size * sum(map(tokens_in, samples))
        items = self.sums.of_all(torch.tensor(sum(len(batch["targets"]) for batch in samples), device=device))
        self.sums.begin_step()
        self._count_chosen(samples, device)
        if self.schedule is not None:
            self.schedule.begin_step(self.state.global_step, self.state.max_steps, lambda: self._entropies(samples))
        return samples, items.clamp(min=1)

    def _count_chosen(self, samples: list[dict[str, Any]], device: torch.device) -> None:
        """Tell each micro-batch at how many positions of the whole step the divergence is taken."""
        choice = self.settings.tokens
        if choice is None:
            return
        count = sum(choice.count(n) for batch in samples for n in batch["counts"])
        chosen = self.sums.of_all(torch.tensor(count, device=device))
        for batch in samples:
            batch["chosen_items"] = chosen.clamp(min=1)

    @torch.no_grad()
    def _entropies(self, samples: list[dict[str, Any]]) -> NDArray[np.float32]:
        """The teacher's entropies where it is compared in a step, of all processes, at the divergence's temperature."""
        assert self.teacher is not None
        values = [np.zeros(0, np.float32)]
        for batch in samples:
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                hidden = self.teacher.hidden(for_teacher(inputs))
            head = self.teacher.head_on(hidden.device)
            if hidden.shape[1] < head.vocabulary:
                for_teacher(batch)["teacher_hidden"] = hidden  # a live teacher has read the text, and need not again
            alignment = self._alignment(inputs, head.vocabulary) if self.reader is not None else None
            values.append(entropies(hidden, head, self.settings.temperature, alignment).float().cpu().numpy())
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
        return Refresher(ahead, writing.rollouts, examples, self.batches, decoding)

    def _written_ahead(self, refresher: Refresher) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
        """The micro-batches of an optimizer step, and their rows: text that is written ahead, here if it is time."""
        step = self.state.global_step
        if refresher.begin(step, self.state.max_steps, self._pen, self.tell):
            self.log(refresher.summary())
        samples, batches = [], refresher.micro_batches(step)
        for rows in batches:
            batch = {**self.collator(rows), **about(rows)}
            if any("log_likelihood" in row for row in rows):
                batch["log_likelihood"] = torch.tensor(
                    [value for row in rows for value in row.get("log_likelihood") or [math.nan] * learnt_count(row)]
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
        own = token_count(self.tokenizer)
        return min(own, self.teacher.head.vocabulary) if alike and self.teacher else own

    def _by_student(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A micro-batch of the student's own answers, on which there is no cross-entropy."""
        batch = {**self.collator(rows), **about(rows)}
        batch["reference"] = torch.zeros(len(batch["targets"]))
        return batch if self.reader is None else {**batch, **self.reader.batch(rows, written=True)}

    @torch.no_grad()
    def _write(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        """Let the student answer prompts as it is now; the answers keep their end of sequence."""
        decoding = replace(self.rollout_decoding, seed=self.args.seed + self.state.global_step)
        answers: list[list[int]] = []
        with self.whole_student() as student:
            student.eval()
            stops = stop_token_ids(student, self.tokenizer)
            for start in range(0, len(rows), self.args.per_device_train_batch_size):
                part = rows[start : start + self.args.per_device_train_batch_size]
                written, _ = decode_batch(
                    student,
                    [row["prompt_ids"] for row in part],
                    [row["id"] for row in part],
                    decoding,
                    stops,
                    padding_id(self.tokenizer),
                    width=self._readable(),
                )
                answers += written
            student.train()
        self.sums.add_answers(len(answers), sum(not without_end(answer, stops)[1] for answer in answers))
        return answers

    def whole_student(self) -> AbstractContextManager[Any]:
        """The student with all its weights on this process, as generation needs it; every process must take part."""
        return whole_model(self.model_wrapped, self.accelerator)

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> Any:
        with shared_embeddings_together(self.model) if self.is_fsdp_enabled else contextlib.nullcontext():
            return super()._prepare_for_training(*arguments, **named)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate schedule of this training, or of all that it is a part of, where this one begins."""
        if self.span is None:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler = super().create_scheduler(self.span.total, optimizer)
        self.span.enter(self.optimizer, scheduler)
        return scheduler

    # ------------------------------------------------------------------------------------------------------------- loss

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
        self.sums.add_losses(parts, inputs, items)
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

    def loss_of(self, model: Any, inputs: dict[str, Any], items: Tensor) -> tuple[Tensor, LossParts]:
        """The loss through the student's head where it can be reached, else through the model's own logits."""
        core = self.accelerator.unwrap_model(model)
        settings = self.settings if self.schedule is None else self.schedule.settings(self.settings)
        extra: dict[str, Any] = {"teacher_hidden": None, "teacher_head": None, "reference": inputs.get("reference")}
        width = None
        if settings.objective and self.teacher is not None:
            theirs, teacher_head = for_teacher(inputs), self.teacher.head_on(inputs["targets"].device)
            known = theirs.get("teacher_hidden")
            extra["teacher_hidden"] = self.teacher.hidden(theirs) if known is None else known
            extra["teacher_head"] = teacher_head
            width = teacher_head.vocabulary
            if self.reader is not None:
                width = head_width(core.config)
                extra["alignment"] = self._alignment(inputs, teacher_head.vocabulary)
        extra["watch"] = "log_likelihood" in inputs
        extra["weights"] = self._weights_of(inputs)
        by_position = partial(
            told_by_position,
            inputs,
            settings,
            self.schedule,
            (self.args.seed, self.state.global_step),
            extra["teacher_hidden"],
            extra["teacher_head"],
        )
        if self._head_is_reachable(core):
            hidden, head = response_hidden(model, inputs, core=core), head_weights(core, width)
            own = head.computing_in(hidden)
            extra |= by_position(own.vocabulary, lambda rows: own.logits(hidden[rows]))
            return head_loss(hidden, head, inputs["targets"], settings, items, **extra)
        logits = response_logits(model, inputs, core=core)
        width = width or logits.shape[-1]
        extra |= by_position(width, lambda rows: logits[rows, :width].float())
        return logits_loss(logits, width, inputs["targets"], settings, items, **extra)

    def _alignment(self, inputs: dict[str, Any], teacher_width: int) -> Alignment:
        """How the positions of a batch go with those of a teacher with another tokenizer."""
        assert self.reader is not None
        return self.reader.alignment(inputs, teacher_width, head_width(self.model.config))

    def _weights_of(self, inputs: dict[str, Any]) -> Tensor | None:
        """What each position of a batch counts, ``[N]``; None where all count the same.

        On text in doubt, which has no cross-entropy, the divergence has the whole weight.
        """
        if not self.row_weights and not any(inputs.get("doubtful", ())):
            return None
        whole = 1 / (self.settings.weight or 1.0)
        rows = zip(inputs["ids"], inputs["doubtful"], strict=True)
        weights = torch.tensor([self.row_weights.get(name, 1.0) * (whole if doubt else 1.0) for name, doubt in rows])
        return weights.repeat_interleave(torch.tensor(inputs["counts"], dtype=torch.long)).to(inputs["targets"].device)

    def _head_is_reachable(self, core: Any) -> bool:
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled) and head_is_enough(core)

    def _blame(self, inputs: dict[str, Any]) -> str:
        """Whose fault a loss that is not finite is: the teacher's weights, the student's, or the rows'."""
        models = {"student": self.accelerator.unwrap_model(self.model)}
        if lost := self._lost(models["student"]):
            return lost
        if self.teacher is not None:
            if not torch.isfinite(self.teacher.head.weight).all():
                return "The weights of the teacher are not finite: its output head."
            models |= {"teacher": self.teacher.model} if self.teacher.model is not None else {}
        return blame(models, inputs.get("ids", []))

    def _lost(self, model: Any) -> str:
        """What is said where this training itself has made the student's weights NaN or infinite; empty: it has not."""
        tensor = non_finite_tensor(model) if self.state.global_step else None
        who = name_of(model, "student")
        return f"The training has made the weights of {who} not finite: tensor {tensor}." if tensor else ""

    @contextlib.contextmanager
    def _diverged(self, model: Any) -> Iterator[None]:
        """Blame the training for weights that it has made useless, and not the files that it began with."""
        try:
            yield
        except (UserError, RunError) as error:
            if not (lost := self._lost(model)):
                raise
            raise self._useless(f"{lost} This shows") from error

    def _useless(self, told: str) -> RunError:
        """What a validation has shown, with what helps."""
        return RunError(
            f"{told} at the validation of step {self.state.global_step} (stage folder {self.args.output_dir}). "
            "A lower training.learning_rate or a wider training.precision helps."
        )

    # ------------------------------------------------------------------------------------------------------- validation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Cross-entropy (nats a token) and ROUGE-L of greedy answers (0 to 1), of ``eval_dataset`` or of other rows."""
        _, metrics = self._validated(eval_dataset, metric_key_prefix)
        if self.rollouts is not None:
            self.rollouts.observe(metrics[f"{metric_key_prefix}_loss"])
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control = control
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> PredictionOutput:
        """The student's greedy answers to rows (``predictions``), their references (``label_ids``), and both scores."""
        before, (validation, metrics) = self.answers, self._validated(test_dataset, metric_key_prefix)
        (_, answers, _), self.answers = zip(*self.answers, strict=True), before
        return PredictionOutput(np.array(answers, object), np.array(validation.references, object), metrics)

    def _validated(self, rows: Any, prefix: str) -> tuple[Validation, dict[str, float]]:
        """What the student scores on some rows, or on those that the trainer was given."""
        validation = validation_of(rows, self.tokenizer, self.model, self.args) or self.validation
        if validation is None:
            raise UserError("there is nothing to evaluate on: give eval_dataset=, here or to the trainer")
        self.collator.check(validation.examples)
        started = time.perf_counter()
        with self.whole_student() as model, self._diverged(model):
            metrics = {f"{prefix}_loss": validation_loss(model, validation, self.collator)}
            if validation.generate:
                answers, scores = answered(model, self.tokenizer, validation)
                self.answers = list(zip(validation.examples.ids, answers, scores.tolist(), strict=True))
                metrics[f"{prefix}_rouge_l"] = float(scores.mean())
        self._check_finite(metrics)
        self.validation_seconds += time.perf_counter() - started
        return validation, metrics

    def _check_finite(self, metrics: dict[str, float]) -> None:
        """Refuse a validation that no checkpoint is better or worse than, and no later one above or below."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self._useless(f"{name} is {value}")

    @property
    def seconds(self) -> float:
        """Time this training has taken, over all attempts."""
        return self._seconds_before + time.perf_counter() - self._started

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the two parts of the loss beside their sum."""
        if "loss" in logs:
            logs = {**logs, **self.sums.losses(self.state.global_step, self.schedule)}
            if self.refresher is not None:
                logs |= self.sums.drifts()
            elif self.rollouts is not None:
                logs |= self.sums.cut_answers(self.rollout_decoding.max_new_tokens)
        logs = {name: value for name, value in logs.items() if name != "train_loss"}  # of this attempt's steps alone
        super().log(logs, start_time)
        if self.log_row is not None and self.is_world_process_zero():
            times = {"seconds": round(self.seconds, 3)}
            self.log_row({"step": self.state.global_step, "epoch": self.state.epoch, **logs, **times})

    def validate_first(self) -> None:
        """Validate the student before it is trained, where rollouts compare later validations with that."""
        if self.rollouts is None or self.validation is None or not self.rollouts.wants_reference:
            return
        started = time.perf_counter()
        with self.whole_student() as student:
            loss = validation_loss(student, self.validation, self.collator)
        self._check_finite({"eval_loss": loss})
        self.rollouts.observe(loss)
        self.validation_seconds += time.perf_counter() - started

    def end_step(self) -> None:
        """Tell what an optimizer step gave to what changes with it: the text that is written ahead, the schedule."""
        if self.refresher is not None and self.refresher.ahead.every == "auto":  # so that a checkpoint knows
            self.refresher.watch(self.sums.new_drift())
        if self.schedule is not None:
            divergence = self.sums.divergence_of_step()
            self.schedule.end_step(divergence, self.state.global_step, self.state.max_steps, parallel.gather)

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        state: dict[str, Any] = {"seconds": self.seconds, "validation_seconds": self.validation_seconds}
        state["written_by"], state["log"] = self._writer(), self.logged()
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

    def train(self, resume_from_checkpoint: Any = None, *others: Any, **named: Any) -> Any:
        """Train, going on from a checkpoint where one is given; True: as `resume` does."""
        if resume_from_checkpoint is True:
            return self.resume()
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint and not (checkpoint / TRAINER_STATE).is_file():
            raise UserError(f"no checkpoint to go on from: {checkpoint}. Begin by train()")
        state = read_json(checkpoint / STATE_FILE) if checkpoint and (checkpoint / STATE_FILE).is_file() else None
        if state:
            if (before := state.get("written_by", self._writer())) != self._writer():
                raise UserError(
                    f"{checkpoint} was written by {before}, which {self._writer()} cannot read. Go on as the run was "
                    "begun, or delete the checkpoint: this stage then begins again."
                )
            self._seconds_before, self.validation_seconds = state["seconds"], state["validation_seconds"]
            kept: dict[str, Any] = {"rollouts": self.rollouts, "schedule": self.schedule, "refresh": self.refresher}
            for name, part in kept.items():
                if part is not None:
                    self._take_up(part, state.get(name) or {}, checkpoint)
        self._started = time.perf_counter()
        self.sums.since = step_of(checkpoint)
        return super().train(str(checkpoint) if checkpoint else None, *others, **named)

    def _take_up(self, part: Any, state: dict[str, Any], checkpoint: Path | None) -> None:
        """Let what a method keeps go on from a checkpoint, which is to have it."""
        try:
            part.restore(state)
        except KeyError as error:
            raise UserError(
                f"{checkpoint} was written by another method, which does not keep {error} of this one. Go on by the "
                "method that it was begun with; or give its folder as the student, and begin by train()."
            ) from error

    def resume(self, checkpoint: Path | None = None) -> Any:
        """Train, going on from a checkpoint; None: the last whole one of the output folder, if there is one."""
        return self.train(checkpoint or parallel.on_main(lambda: last_checkpoint(Path(self.args.output_dir))))


def _marked(device: torch.device) -> Any:
    """A place among what a GPU has been given to do, that can be waited for; None on other devices."""
    if device.type != "cuda":
        return None
    place = torch.cuda.Event()
    place.record()
    return place


class _Hooks(TrainerCallback):
    """What the Trainer calls at the seams of its loop, also when a run resumes within an epoch."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parallel.on_main(lambda: check_place(Path(args.output_dir)))
        self.trainer.validate_first()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.batches.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_step()  # before anything is logged or kept of it

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.refresher is not None and state.is_world_process_zero:
            self.trainer.refresher.close()
