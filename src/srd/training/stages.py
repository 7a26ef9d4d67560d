"""One training of a run, stage by stage: each stage starts from the best checkpoint of the stage before it."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from srd.base import parallel
from srd.base.errors import RunError, UserError
from srd.base.files import atomic_write, disk_errors, fingerprint, read_json, remove, write_json
from srd.base.text import many, shown_bytes
from srd.curation.curriculum import Stage
from srd.data.batching import EncodedExamples
from srd.models.adapters import add_lora, load_adapter
from srd.models.loading import load_model, save_model
from srd.models.merging import merge_adapter
from srd.models.sharding import is_sharded, models_are_whole, whole_weights
from srd.training.checkpoints import damage, last_checkpoint, list_files, readable_json, step_of
from srd.training.loss import LossSettings, TokenChoice
from srd.training.rollouts import Rollouts
from srd.training.schedules import Schedule
from srd.training.settings import TrainingConfig
from srd.training.teacher_cache import TeacherCache
from srd.training.teachers.common import Teacher
from srd.training.tracking import Tables, names_of
from srd.training.trainer import (
    ROLLOUTS,
    DistillTrainer,
    Validation,
    Writing,
    append_row,
    filter_rows,
    read_rows,
    steps_per_epoch,
    use_one_device,
    widen,
    writing_of,
)

logger = logging.getLogger(__name__)

OPTIONS_OF_STAGES = ("role", "dtype", "attn_implementation", "trust_remote_code")  # what loads the model of a stage too
METRICS_FILE = "metrics.json"  # written last: a stage that has it is done
SCORES_FILE = "scores.parquet"  # of a stage that chose its examples anew
ROLLOUTS_FILE = "rollouts.json"  # what a stage hands on to the next beside its model: who writes,
SCHEDULE_FILE = "schedule.json"  # ... and how far the loss has come
ANSWERS_FILE = "validation.jsonl"  # what the best model of a stage answered in validation


@dataclass
class Training:
    """Everything one training needs.

    Attributes:
        label: Its name in files and tables, such as srd or kd.
        config: Its settings.
        folder: Its stages lie in ``folder/stages/<i>``.
        start: Where the student comes from (hub name or folder).
        load_options: How the student is loaded (dtype, revision …).
        examples: Encoded training examples, with the teacher cache where there is one.
        tokenizer: Of student and teacher.
        validation: What checkpoints are chosen by.
        stages: What each stage trains on. `reflect_again` may replace a stage's examples.
        seed: Fixes order, dropout and student text.
        load_teacher: Gives the teacher; None where the method needs none.
        read_once: ``(examples, folder) -> cache``: lets the teacher read what the student has written ahead; None: it
            is asked in every step.
        engine: ``(student, folder) -> what it writes with``, within a context; the folder is free for it.
        choose_again: ``(model, stage) -> stage`` before every stage but the first; None: stages are as planned.
        metrics_file: Every logged value goes here, one JSON object a line, ...
        log_file: ... and here, where this training's are alone.
        progress: ``(done, total, note)`` in optimizer steps of all stages.
        kept_tokenizer: What is saved beside the trained model; None: the tokenizer as it is.
    """

    label: str
    config: TrainingConfig
    folder: Path
    start: str
    load_options: dict[str, Any]
    examples: EncodedExamples
    tokenizer: PreTrainedTokenizerBase
    validation: Validation
    stages: list[Stage]
    seed: int
    metrics_file: Path
    log_file: Path
    load_teacher: Callable[[], Teacher] | None = None
    read_once: Callable[[EncodedExamples, Path], TeacherCache] | None = None
    engine: Callable[[Any, Path], AbstractContextManager[Any]] = lambda student, folder: nullcontext(student)
    choose_again: Callable[[Any, Stage], Stage] | None = None
    progress: Callable[..., None] = lambda *values: None
    kept_tokenizer: PreTrainedTokenizerBase | None = None
    _teacher: Teacher | None = field(default=None, init=False)

    def stage_folder(self, index: int) -> Path:
        """Where a stage keeps its checkpoints, its metrics and its best model."""
        return self.folder / "stages" / str(index)

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, loaded at its first use."""
        if self._teacher is None and self.load_teacher is not None:
            self._teacher = self.load_teacher()
        return self._teacher


def train(training: Training, final: Path) -> dict[str, Any]:
    """Run all the stages that are not done yet and write the trained student to ``final``.

    Returns:
        A summary: passes over the training data, examples used, optimizer steps, seconds, the best validation score.
    """
    model = None
    done = parallel.on_main(lambda: _stages_done(training))
    for stage in training.stages[done:]:
        if model is None:
            model = load_student(training, stage.index)
        if stage.index and training.choose_again is not None:
            stage = training.choose_again(model, stage)
        model = train_stage(training, stage, model)
    if model is None:  # killed between the last stage and the end
        model = load_student(training, len(training.stages))
    _save_final(training, model, final)
    return summarise(training)


def _stages_done(training: Training) -> int:
    """How many stages need not be trained again; what lies of the others is removed, but for the first's checkpoints.

    A stage is done if its numbers can be read, and its files are as they were written.
    """
    folders = [training.stage_folder(stage.index) for stage in training.stages]
    finished = list(takewhile(lambda metrics: metrics is not None, map(_metrics, folders)))
    done = next(
        (number for number, metrics in enumerate(finished) if _is_damaged(folders[number], metrics)), len(finished)
    )
    if done == len(finished) < len(folders) and (folders[done] / METRICS_FILE).exists():
        logger.warning(f"{folders[done] / METRICS_FILE} is damaged: stage {done} is trained again")
    for number, folder in enumerate(folders):
        if number < done:  # a kill may have come between the metrics and the checkpoints' removal
            _remove_checkpoints(folder)
        elif number == done:
            for name in (METRICS_FILE, ROLLOUTS_FILE, SCHEDULE_FILE, "model"):
                remove(folder / name)
        else:
            remove(folder)
    return done


def _is_damaged(folder: Path, metrics: dict[str, Any]) -> bool:
    reason = damage(folder, metrics["files"])
    if reason:
        logger.warning(f"{folder} is damaged ({reason}): stage {folder.name} is trained again")
    return reason is not None


def _metrics(folder: Path) -> Any:
    """What a finished stage says about itself; None where it is not finished, or not as it was written."""
    metrics = readable_json(folder / METRICS_FILE)
    if not isinstance(metrics, dict):
        return None
    digest = metrics.pop("digest", None)
    return metrics if digest == fingerprint(metrics) and "files" in metrics else None


def load_student(training: Training, stage: int) -> Any:
    """The student as it enters a stage: as it started, or the best of the stage before.

    Trained weights are float32, whatever the model's files or the recipe say: see `srd.training.trainer.widen`.
    """
    device = parallel.state().device if torch.cuda.is_available() else None
    model = _load_student(training, stage)
    widen(model, scaled=resolve_precision(training.config.precision) == "float16")
    return model.to(device) if device is not None else model


def _load_student(training: Training, stage: int) -> Any:
    before = training.stage_folder(stage - 1) / "model"
    lora = training.config.lora
    options = {"role": "teacher" if training.label == "teacher_sft" else "student", **training.load_options}
    if lora is None:
        if options.get("dtype", "auto") not in ("auto", "float32"):
            kind = options["dtype"]
            logger.warning(f"{training.start}: all weights are trained, so they are held as float32 and not {kind}")
        options["dtype"] = "float32"  # AdamW on half-precision weights loses small updates
        if stage:  # a whole model that lies here
            options = {name: options[name] for name in OPTIONS_OF_STAGES if name in options}
        return load_model(str(before) if stage else training.start, tokenizer=training.tokenizer, **options)
    base = load_model(training.start, tokenizer=training.tokenizer, **options)
    if stage:
        return load_adapter(base, str(before), trainable=True)
    set_seed(training.seed)  # the adapter's random start
    return add_lora(base, lora)


def train_stage(training: Training, stage: Stage, model: Any) -> Any:
    """Train one stage, going on from its last checkpoint if there is one, and keep its best model.

    Returns:
        The best model; None where no process has all of it, and it must be loaded from its file.
    """
    folder = training.stage_folder(stage.index)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = parallel.on_main(lambda: last_checkpoint(folder))
    _forget_rows(training, stage, checkpoint)
    set_seed(training.seed + stage.index)
    trainer = make_trainer(training, stage, model)
    trainer.resume(checkpoint)
    best = trainer.state.best_metric if training.config.select_by != "last" else None
    weights = whole_weights(trainer.model_wrapped, trainer.accelerator)
    # Without autocast, which a model read from its file has not either.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if parallel.is_main():
        with disk_errors(folder):
            save_model(model, training.tokenizer, folder / "model", weights)
            if trainer.rollouts is not None:
                write_json(folder / ROLLOUTS_FILE, trainer.rollouts.state())
            if trainer.schedule is not None:
                write_json(folder / SCHEDULE_FILE, trainer.schedule.state())
            metrics = {
                "stage": stage.index, "examples": stage.size, "steps": trainer.state.global_step,
                "temperature": stage.temperature, "weight": stage.weight,
                "best_metric": best, "best_step": trainer.state.best_global_step,
                "seconds": round(trainer.seconds, 3), "validation_seconds": round(trainer.validation_seconds, 3),
                "files": list_files(folder, "model", ROLLOUTS_FILE, SCHEDULE_FILE, SCORES_FILE, ROLLOUTS),
            }  # fmt: skip
            write_json(folder / METRICS_FILE, {**metrics, "digest": fingerprint(metrics)})
        _remove_checkpoints(folder)
    parallel.barrier()
    return None if is_sharded(trainer.accelerator) else model


def _remove_checkpoints(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        remove(path)


def make_trainer(training: Training, stage: Stage, model: Any) -> DistillTrainer:
    """The trainer of one stage."""
    config = training.config
    examples = training.examples.subset(stage.ids)
    passes = stage.size / len(training.examples)
    before = sum(s.size / len(training.examples) * config.epochs for s in training.stages[: stage.index])

    def log_row(row: dict[str, Any]) -> None:
        # Which stage a row belongs to, and how far the arm is in epoch equivalents of the whole training set.
        told = {"arm": training.label, "stage": stage.index, "passes": before + (row["epoch"] or 0) * passes, **row}
        if config.needs_teacher and "loss" in row:
            told.update(temperature=stage.temperature, weight=stage.weight)
        for path in (training.log_file, training.metrics_file):
            append_row(path, told)

    arguments = training_arguments(training, stage)
    arguments.use_cache = bool(getattr(model.config, "use_cache", False))  # the Trainer would switch it off for good
    trainer = DistillTrainer(
        model,
        arguments,
        examples,
        training.tokenizer,
        teacher=training.teacher if config.needs_teacher else None,
        objective=loss_settings(config, stage),
        eval_dataset=training.validation,
        method=_stage_writing(training, stage),
    )
    trainer.tell = lambda note: training.progress(trainer.state.global_step, trainer.state.max_steps, note)
    trainer.batches.draw(stage.subset)
    trainer.log_row = log_row
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Report(training, stage, trainer))
    if config.log_to:
        trainer.add_callback(Tables(trainer, _told_stages(training), _questions(training)))
    return trainer


def _told_stages(training: Training) -> list[dict[str, Any]]:
    """What trackers are told of the stages."""
    return [
        {
            "stage": stage.index,
            "examples": stage.size,
            "epochs": training.config.epochs,
            "steps": total_steps(training.config, stage),
            "temperature": stage.temperature,
            "weight": stage.weight,
        }
        for stage in training.stages
    ]


def _questions(training: Training) -> dict[str, tuple[str, str]]:
    """Prompt and first reference of the validation examples, by id."""
    validation = training.validation
    examples = validation.examples
    texts = (training.tokenizer.decode(examples.prompts[place]) for place in range(len(examples)))
    return {
        name: (text, references[0])
        for name, text, references in zip(examples.ids, texts, validation.references, strict=True)
    }


def loss_settings(config: TrainingConfig, stage: Stage) -> LossSettings:
    """What a stage minimises."""
    if not config.needs_teacher:
        return LossSettings()
    return LossSettings(
        config.objective.name,
        config.objective.parameters,
        stage.temperature,
        stage.weight,
        config.temperature_scaling,
        tokens=TokenChoice(config.tokens.share, config.tokens.by)
        if config.tokens and config.tokens.share < 1
        else None,
    )


def _stage_writing(training: Training, stage: Stage) -> Writing:
    """How the student writes in a stage."""
    folder = training.stage_folder(stage.index) / ROLLOUTS
    writing = writing_of(
        training.config.method, _stage_rollouts(training, stage), _stage_schedule(training, stage), folder
    )
    if writing.ahead is not None:
        writing.ahead.batch_size, writing.ahead.read = training.validation.batch_size, training.read_once
        writing.ahead.engine = lambda student: training.engine(student, folder / "writer")
    return writing


def _stage_rollouts(training: Training, stage: Stage) -> Rollouts | None:
    """Who writes the responses of a stage; what has been learnt of it in the stage before is taken up."""
    rollouts = training.config.method.rollouts(training.seed + stage.index)
    if rollouts is not None:
        steps = [total_steps(training.config, each) for each in training.stages]
        if rollouts.goes_on(training.seed, sum(steps[: stage.index]), sum(steps)) and stage.index:
            rollouts.restore(read_json(training.stage_folder(stage.index - 1) / ROLLOUTS_FILE))
    return rollouts


def _stage_schedule(training: Training, stage: Stage) -> Schedule | None:
    """What of the loss changes in a stage; it goes on from the stage before."""
    schedule = training.config.method.schedule()
    if schedule is not None:
        steps = [total_steps(training.config, each) for each in training.stages]
        schedule.goes_on(sum(steps[: stage.index]), sum(steps))
        if stage.index:
            schedule.restore(read_json(training.stage_folder(stage.index - 1) / SCHEDULE_FILE))
    return schedule


def training_arguments(training: Training, stage: Stage) -> TrainingArguments:
    """Our settings in the Trainer's terms."""
    config = training.config
    micro = micro_batch_size(config)
    steps = steps_per_epoch(stage.size, config.batch_size)
    total = total_steps(config, stage)
    every = max(1, round(steps * config.evaluate_every))
    precision = resolve_precision(config.precision)
    schedule = {"cosine": "cosine_with_min_lr", "linear": "linear", "constant": "constant_with_warmup"}[config.schedule]
    arguments = TrainingArguments(
        output_dir=str(training.stage_folder(stage.index)),
        max_steps=total,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * parallel.processes()),
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedule,
        # As a share: transformers would ask the optimizer for its learning rate, and DeepSpeed's wrapper does not say.
        lr_scheduler_kwargs={"min_lr_rate": config.min_learning_rate / config.learning_rate}
        if config.schedule == "cosine"
        else {},
        warmup_steps=math.ceil(config.warmup * total),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optimizer,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        **({"gradient_checkpointing": True} if config.gradient_checkpointing else {}),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        load_best_model_at_end=config.select_by != "last",
        metric_for_best_model=None if config.select_by == "last" else config.select_by,
        greater_is_better=config.select_by == "rouge_l",
        logging_steps=max(1, min(10, steps // 2)),
        logging_nan_inf_filter=False,
        log_level_replica="error",  # as the main process: transformers would let the others warn
        disable_tqdm=True,
        report_to=config.log_to or "none",
        **names_of(training.metrics_file.parent.name, training.label, stage.index),
        seed=training.seed + stage.index,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=parallel.on_cpu(),
        ddp_find_unused_parameters=False,
    )
    use_one_device(arguments)
    models_are_whole()  # the teacher is loaded after this
    return arguments


def total_steps(config: TrainingConfig, stage: Stage) -> int:
    """Optimizer steps of a stage."""
    return max(1, math.ceil(steps_per_epoch(stage.size, config.batch_size) * config.epochs))


def micro_batch_size(config: TrainingConfig) -> int:
    """Examples in one forward pass of one process."""
    processes = parallel.processes()
    largest = config.batch_size // processes
    if largest * processes != config.batch_size:
        raise UserError(
            f"training.batch_size ({config.batch_size}) is no multiple of the {processes} processes. "
            f"Use a batch size of {processes * max(1, largest)} or another number of processes."
        )
    micro = min(config.micro_batch_size or largest, largest)
    if largest % micro:
        raise UserError(
            f"training.micro_batch_size ({micro}) does not divide the {largest} examples that each of {processes} "
            "processes has in an optimizer step"
        )
    return micro


def resolve_precision(precision: str) -> str:
    """What ``auto`` means on this machine."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


#: What a training says of itself while it works: key in the log -> name, decimals and factor.
SHOWN = {
    "loss": ("loss", 3, 1),
    "eval_loss": ("validation loss", 3, 1),
    "eval_rouge_l": ("validation ROUGE-L", 1, 100),
}


class _Report(TrainerCallback):
    """Progress, and a validation at the very last step, with a checkpoint where the best one is to be chosen."""

    def __init__(self, training: Training, stage: Stage, trainer: DistillTrainer) -> None:
        self.training = training
        self.stage = stage
        self.trainer = trainer
        steps = [total_steps(training.config, each) for each in training.stages]
        self.before, self.total = sum(steps[: stage.index]), sum(steps)
        self.values: dict[str, float] = {}
        self.started = self._seconds()

    def _seconds(self) -> float:
        """Time spent on training alone."""
        return self.trainer.seconds - self.trainer.validation_seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self._seconds()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = True
            control.should_save = self.training.config.select_by != "last"  # else the model itself is written next
        self.training.progress(self.before + state.global_step, self.total, self.note())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.values |= {name: logs[name] for name in SHOWN if logs and name in logs}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Keep the answers of the best model so far, for the report."""
        key, best = self.training.config.select_by, state.best_metric
        value = metrics.get(f"eval_{key}")
        better = best is None or value is None or (value > best if key == "rouge_l" else value < best)
        if better and self.trainer.answers and parallel.is_main():
            rows = [{"id": name, "text": text, "rouge_l": score} for name, text, score in self.trainer.answers]
            with atomic_write(self.training.stage_folder(self.stage.index) / ANSWERS_FILE) as partial:
                partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def note(self) -> str:
        """Stage, speed and the last values."""
        seconds, stages = self._seconds() - self.started, len(self.training.stages)
        parts = [f"stage {self.stage.index + 1} of {stages}"] if stages > 1 else []
        parts += [f"{self.trainer.tokens_read / seconds:,.0f} tokens a second"] if seconds > 0 else []
        shown = [(SHOWN[name], value) for name, value in self.values.items()]
        return ", ".join(parts + [f"{name} {factor * value:.{digits}f}" for (name, digits, factor), value in shown])


def _forget_rows(training: Training, stage: Stage, checkpoint: Path | None) -> None:
    """Drop logged rows of steps that are taken again, and the last one, which the Trainer logs at every end."""
    if not parallel.is_main():
        return
    step = step_of(checkpoint)

    def keep(row: dict[str, Any]) -> bool:
        if row.get("arm") != training.label or row["stage"] < stage.index:
            return True
        # A refresh comes before its step, and is told again by the attempt that takes the step.
        last = step - 1 if "refresh" in row else step
        return row["stage"] == stage.index and row["step"] <= last and "train_runtime" not in row

    for path in (training.log_file, training.metrics_file):
        filter_rows(path, keep)


def _save_final(training: Training, model: Any, final: Path) -> None:
    if parallel.is_main():
        lora = training.config.lora
        if lora is not None and lora.merge:
            model = merge_adapter(model)
        elif lora is not None and Path(training.start).is_dir():
            # So that from_pretrained finds the base from any working directory.
            model.peft_config["default"].base_model_name_or_path = str(Path(training.start).resolve())
        with disk_errors(final):
            save_model(model, training.kept_tokenizer or training.tokenizer, final, portable=True)
    parallel.barrier()


def summarise(training: Training) -> dict[str, Any]:
    """What a training took, from its stages' metrics."""
    stages = [read_json(training.stage_folder(stage.index) / "metrics.json") for stage in training.stages]
    everything = len(training.examples)
    texts = 2 if training.config.on_pairs else 1  # of each example
    total = sum(stage["seconds"] for stage in stages)
    checking = sum(stage["validation_seconds"] for stage in stages)
    return {
        "passes": round(sum(s["examples"] for s in stages) * training.config.epochs / everything, 4),
        "examples": (everything if training.stages[-1].subset else max(s["examples"] for s in stages)) // texts,
        "steps": sum(stage["steps"] for stage in stages),
        "stages": len(stages),
        "seconds": round(total, 2),
        "training_seconds": round(total - checking, 2),
        "validation_seconds": round(checking, 2),
        "best_validation": stages[-1]["best_metric"],
        **_alignment(training),
    }


def _alignment(training: Training) -> dict[str, float]:
    """How much a teacher with tokens of its own supervised: the mean of what was logged."""
    rows = [row for row in read_rows(training.log_file) if "supervised" in row]
    values = {name: [row[name] for row in rows if name in row] for name in ("supervised", "by_chunks", "mass")}
    return {name: round(math.fsum(own) / len(own), 4) for name, own in values.items() if own}


def told_of(summary: dict[str, Any], config: TrainingConfig | None) -> str:
    """A summary in words: what was trained on, and the best validation; nothing of what was not trained."""
    if config is None or "steps" not in summary:
        return ""
    stages = f" in {many(summary['stages'], 'stage')}" if summary["stages"] > 1 else ""
    if "supervised" in summary:
        stages += f" by a teacher that supervised {summary['supervised']:.1%} of the positions"
        stages += f" and {chunks:.1%} by chunks" if (chunks := summary.get("by_chunks", 0)) else ""
    told = f"trained for {many(summary['steps'], 'step')}{stages}, {summary['passes']:.3g} passes over the data"
    best = summary["best_validation"]
    if best is None:
        return told
    return (
        told
        + (f", ROUGE-L {100 * best:.1f}" if config.select_by == "rouge_l" else f", loss {best:.3f}")
        + (" in validation")
    )


def needed_disk(parameters: int) -> int:
    """Bytes that a stage's two checkpoints (weights, two moments) and the kept models take at most."""
    return parameters * 4 * (2 * 3 + 2)


def check_disk(folder: Path, parameters: int) -> None:
    """Refuse to begin a training whose checkpoints cannot be written."""
    free, needed = shutil.disk_usage(folder).free, needed_disk(parameters)
    if free < needed:
        raise RunError(
            f"training needs {shown_bytes(needed)} for checkpoints in {folder}, and {shown_bytes(free)} are free. "
            "Free some space, or choose another --run-dir."
        )
