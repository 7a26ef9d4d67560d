"""One training of a run, stage by stage: each stage starts from the best checkpoint of the stage before it."""

from __future__ import annotations

import logging
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from srd.base import parallel
from srd.base.files import discard, disk_errors, fingerprint, read_json, write_json
from srd.curation.curriculum import Stage
from srd.models.finite import non_finite_tensor
from srd.models.loading.adapters import add_lora, load_adapter
from srd.models.loading.loading import load_model, save_model
from srd.models.loading.merging import merge_adapter
from srd.models.sharding import is_sharded, whole_weights
from srd.training.arguments import all_steps, total_steps, training_arguments
from srd.training.checkpoints import STATE_FILE, damage, last_checkpoint, list_files, readable_json, remove_all, step_of
from srd.training.log import append_row, filter_rows, read_rows
from srd.training.loss.schedules import Schedule
from srd.training.loss.settings import LossSettings, TokenChoice
from srd.training.methods.common import rollouts_of, schedule_of
from srd.training.one_schedule import OPTIMIZER_FILE, Span, hand_on, is_handed_on
from srd.training.precision import resolve_precision, widen
from srd.training.progress import Report, summarise
from srd.training.rollouts import Rollouts
from srd.training.settings import TrainingConfig
from srd.training.student_text.writing import ROLLOUTS, Writing, writing_of
from srd.training.tracking import Tables
from srd.training.trainer import DistillTrainer
from srd.training.training import ANSWERS_FILE, METRICS_FILE, ROLLOUTS_FILE, SCHEDULE_FILE, SCORES_FILE, Training

logger = logging.getLogger(__name__)

#: What a stage leaves beside its model.
FILES = (ROLLOUTS_FILE, SCHEDULE_FILE, SCORES_FILE, ROLLOUTS, ANSWERS_FILE)
OPTIONS_OF_STAGES = ("role", "dtype", "attn_implementation", "trust_remote_code")  # what loads the model of a stage too


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
        if stage.index and training.reflect_again is not None:
            stage = training.reflect_again(model, stage)
        model = train_stage(training, stage, model)
    if model is None:  # killed between the last stage and the end
        model = load_student(training, len(training.stages))
    _save_final(training, model, final)
    return summarise(training)


def _stages_done(training: Training) -> int:
    """How many stages need not be trained again; what lies of others is removed, but for the first's checkpoints."""
    folders = [training.stage_folder(stage.index) for stage in training.stages]
    done = _whole_stages(training, folders)
    for number, folder in enumerate(folders):
        if number < done:  # a kill may have come between the metrics and the checkpoints' removal
            remove_all(folder)
            if number < done - 1:
                discard(folder / OPTIMIZER_FILE)
        elif number == done:
            for name in (METRICS_FILE, ROLLOUTS_FILE, SCHEDULE_FILE, OPTIMIZER_FILE, "model"):
                discard(folder / name)
        else:
            discard(folder)
    return done


def _whole_stages(training: Training, folders: list[Path]) -> int:
    """How many stages are done, from the first on: their numbers can be read, and their files are as written."""
    finished = list(takewhile(lambda metrics: metrics is not None, map(_metrics, folders)))
    damaged = (number for number, metrics in enumerate(finished) if _is_damaged(training, number, metrics))
    done = next(damaged, len(finished))
    if training.config.keeps_optimizer:
        while 0 < done < len(folders) and not is_handed_on(folders[done - 1], finished[done - 1]):
            done -= 1
            logger.warning(f"{folders[done] / OPTIMIZER_FILE} is missing or damaged: stage {done} is trained again")
    if done == len(finished) < len(folders) and (folders[done] / METRICS_FILE).exists():
        logger.warning(f"{folders[done] / METRICS_FILE} is damaged: stage {done} is trained again")
    return done


def _is_damaged(training: Training, stage: int, metrics: dict[str, Any]) -> bool:
    folder = training.stage_folder(stage)
    reason = damage(folder, metrics["files"])
    if reason is None and "log" in metrics and metrics["log"] != _logged(training, stage):
        reason = f"{training.log_file} has another content"
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

    Trained weights are float32, whatever the model's files or the recipe say: see `srd.training.precision.widen`.
    """
    device = parallel.own_gpu()
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
    checkpoint = parallel.on_main(lambda: _checkpoint_with_log(training, stage))
    set_seed(training.seed + stage.index)
    trainer = make_trainer(training, stage, model)
    trainer.resume(checkpoint)
    best = trainer.state.best_metric if training.config.select_by != "last" else None
    weights = whole_weights(trainer.model_wrapped, trainer.accelerator)
    # Without autocast, which a model read from its file has not either.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    vars(model).pop("_is_accelerate_prepared", None)  # or the next stage would do without autocast
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
                "files": list_files(folder, "model", *FILES),
                "log": _logged(training, stage.index),
            }  # fmt: skip
            if training.config.keeps_optimizer and stage.index + 1 < len(training.stages):
                metrics["optimizer"] = hand_on(trainer, folder)
            write_json(folder / METRICS_FILE, {**metrics, "digest": fingerprint(metrics)})
        remove_all(folder)
        if stage.index:
            discard(training.stage_folder(stage.index - 1) / OPTIMIZER_FILE)
    parallel.barrier()
    return None if is_sharded(trainer.accelerator) else model


def make_trainer(training: Training, stage: Stage, model: Any) -> DistillTrainer:
    """The trainer of one stage."""
    config = training.config
    examples = training.examples.subset(stage.ids)
    passes = stage.size / len(training.examples)
    before = sum(s.size / len(training.examples) * config.epochs for s in training.stages[: stage.index])

    def log_row(row: dict[str, Any]) -> None:
        # Which stage a row belongs to, and how far the variant is in epoch equivalents of the whole training set.
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
    trainer.span, trainer.row_weights = _span(training, stage), stage.row_weights or {}
    trainer.batches.draw(stage.subset)
    trainer.log_row, trainer.logged = log_row, lambda: _logged(training, stage.index)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Report(training, stage, trainer))
    if config.log_to:
        trainer.add_callback(Tables(trainer, _told_stages(training), _questions(training)))
    return trainer


def _span(training: Training, stage: Stage) -> Span | None:
    """The part of a stage in the learning-rate schedule of all; None where each has its own."""
    if not training.config.keeps_optimizer:
        return None
    state = training.stage_folder(stage.index - 1) / OPTIMIZER_FILE if stage.index else None
    return Span(all_steps(training, stage.index), all_steps(training), state)


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
        return LossSettings(compiled=config.compile == "loss")
    return LossSettings(
        config.objective.name,
        config.objective.parameters,
        stage.temperature,
        stage.weight,
        config.temperature_scaling,
        tokens=TokenChoice(config.tokens.share, config.tokens.by)
        if config.tokens and config.tokens.share < 1
        else None,
        compiled=config.compile == "loss",
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
    rollouts = rollouts_of(training.config.method, training.seed + stage.index)
    if rollouts is None or not rollouts.goes_on(training.seed, all_steps(training, stage.index), all_steps(training)):
        return rollouts
    if stage.index:
        rollouts.restore(read_json(training.stage_folder(stage.index - 1) / ROLLOUTS_FILE))
    return rollouts


def _stage_schedule(training: Training, stage: Stage) -> Schedule | None:
    """What of the loss changes in a stage; it goes on from the stage before."""
    schedule = schedule_of(training.config.method)
    if schedule is not None:
        schedule.goes_on(all_steps(training, stage.index), all_steps(training))
        if stage.index:
            schedule.restore(read_json(training.stage_folder(stage.index - 1) / SCHEDULE_FILE))
    return schedule


def _logged(training: Training, stage: int) -> str:
    """What stands for the rows that a stage has logged so far."""
    return fingerprint([row for row in read_rows(training.log_file) if row.get("stage") == stage])


def _checkpoint_with_log(training: Training, stage: Stage) -> Path | None:
    """The last whole checkpoint of a stage, its log cut to the steps up to there; None where the stage begins anew."""
    folder = training.stage_folder(stage.index)
    checkpoint = last_checkpoint(folder)
    _forget_rows(training, stage, checkpoint)
    noted = read_json(checkpoint / STATE_FILE).get("log") if checkpoint else None
    if noted in (None, _logged(training, stage.index)):
        return checkpoint
    logger.warning(f"{training.log_file} is not what was logged up to {checkpoint}: stage {stage.index} begins again")
    remove_all(folder)
    _forget_rows(training, stage, None)
    return None


def _forget_rows(training: Training, stage: Stage, checkpoint: Path | None) -> None:
    """Drop logged rows of steps that are taken again, and the last one, which the Trainer logs at every end."""
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
        if tensor := non_finite_tensor(model):  # of a token that no row has: nothing has read it so far
            logger.warning(
                f"the trained model holds a tensor that is not finite: {tensor}. Nothing of this run has read these "
                f"values, but a text may. They came with {training.start}: repair that model, and train again."
            )
        with disk_errors(final):
            save_model(model, training.kept_tokenizer or training.tokenizer, final, portable=True)
    parallel.barrier()
