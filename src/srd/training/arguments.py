"""The settings of a training in the Trainer's terms, on this machine and its processes."""

from __future__ import annotations

import logging
import math
import os

import torch
from transformers import TrainingArguments

from srd.base import parallel
from srd.base.errors import UserError
from srd.curation.curriculum import Stage
from srd.models.sharding import models_are_whole
from srd.training.precision import resolve_precision
from srd.training.settings import TrainingConfig, steps_between_validations, steps_per_epoch
from srd.training.tracking import names_of
from srd.training.training import Training

logger = logging.getLogger(__name__)

#: What accelerate calls the precisions of a recipe.
MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def training_arguments(training: Training, stage: Stage) -> TrainingArguments:
    """Our settings in the Trainer's terms."""
    config = training.config
    micro = micro_batch_size(config)
    steps = steps_per_epoch(stage.size, config.batch_size)
    total = total_steps(config, stage)
    scheduled = all_steps(training) if config.keeps_optimizer else total
    every = steps_between_validations(stage.size, config)
    precision = resolve_precision(config.precision)
    # A launcher leaves its own there, and it would win where the recipe says float32.
    os.environ["ACCELERATE_MIXED_PRECISION"] = MIXED[precision]
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
        warmup_steps=math.ceil(config.warmup * scheduled),
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


def all_steps(training: Training, before: int | None = None) -> int:
    """Optimizer steps of all stages, or of those before one."""
    return sum(total_steps(training.config, stage) for stage in training.stages[:before])


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
