"""TRL: `SFTTrainer`, and `GKDTrainer` with the temperature of each stage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from srd.base.remedies import warn
from srd.base.text import many
from srd.export.curated import TRAINERS, Trainer, start_model, teacher_model
from srd.export.texts import Shown
from srd.run.curate import Curated
from srd.training.arguments import micro_batch_size
from srd.training.divergences.base import DIVERGENCES

logger = logging.getLogger(__name__)

USAGE = """
```
pip install 'trl>=1.0'
python train_sft.py        # plain fine-tuning, stage after stage
python train_gkd.py        # distillation, with the temperature and weight of every stage (needs srd, too)
```

or with TRL's own command, in the folder above this one:

```
trl sft --model_name_or_path MODEL --dataset_name FOLDER --completion_only_loss true \\
    --train_sampling_strategy sequential --num_train_epochs 1 --output_dir out
```

Rows bring their tokens (`input_ids`, `completion_mask`), so that TRL trains on exactly those of the recipe, in whatever
frame. They are of the recipe's tokenizer: for a model with another one run `srd curate` with that model.
`shuffle_dataset=False` alone does not keep the order, as the sampler is random: `train_sampling_strategy="sequential"`
does. Leave `packing` off: it sorts by length.
"""

SFT = '''"""Fine-tune with TRL, stage after stage, in the order of the curriculum."""

from pathlib import Path

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).resolve().parent
STAGES = {stages}
model = {model!r}

rows = load_dataset(str(HERE), "train", split="train")
for stage in range(STAGES):
    args = SFTConfig(
        output_dir=str(HERE / "sft" / f"stage_{{stage}}"),
        num_train_epochs=1,  # the passes are in the rows
        per_device_train_batch_size={micro},
        gradient_accumulation_steps={steps},
        learning_rate={rate!r},
        lr_scheduler_type={schedule!r},
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        max_length={length},
        completion_only_loss=True,
        packing=False,  # it would sort by length
        train_sampling_strategy="sequential",  # without it the sampler shuffles
        report_to="none",
    )
    own = rows.filter(lambda row, stage=stage: row["stage"] == stage)
    trainer = SFTTrainer(model=model, args=args, train_dataset=own)
    trainer.train()
    trainer.save_model()
    model = trainer.model  # the next stage goes on from here, with an optimizer and a schedule of its own
'''

GKD = '''"""Distil with TRL's GKD trainer, with the temperature and the weight of every stage."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig

from srd.integrations.trl import StagedGKDTrainer, curriculum_dataset

HERE = Path(__file__).resolve().parent
student, teacher = {model!r}, {teacher!r}

args = GKDConfig(
    output_dir=str(HERE / "gkd"),
    num_train_epochs=1,  # the passes are in the rows
    per_device_train_batch_size={micro},  # a step has no more rows than the smallest stage
    gradient_accumulation_steps={steps},
    learning_rate={rate!r},
    lr_scheduler_type={schedule!r},
    bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    max_length={length},
    lmbda=0.0,  # on the rows; above 0 the student writes a share of them itself
    beta={beta},  # 0: forward KL, 1: reverse KL, between: Jensen-Shannon{beta_note}
    report_to="none",
)
tokenizer = AutoTokenizer.from_pretrained(student)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
trainer = StagedGKDTrainer(
    model=AutoModelForCausalLM.from_pretrained(student),
    teacher_model=AutoModelForCausalLM.from_pretrained(teacher),
    args=args,
    train_dataset=curriculum_dataset(HERE, batch_size=batch),
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model()
'''


def columns(row: Shown) -> dict[str, Any]:
    """The tokens: what TRL finds in a row it does not make anew."""
    return {"input_ids": row.input_ids, "completion_mask": row.learnt}


def contents(made: Curated) -> Iterator[tuple[str, str]]:
    """The scripts."""
    training, objective = made.run.recipe.training, made.run.recipe.training.objective
    micro = micro_batch_size(training)
    _check_batches(made)
    divergence = DIVERGENCES.get(objective.name)
    beta = divergence.beta_with(objective.parameters)
    values = {
        "stages": len(made.stages),
        "model": start_model(made.run),
        "teacher": teacher_model(made.run),
        "micro": micro,
        "steps": training.batch_size // micro,
        "rate": training.learning_rate,
        "schedule": training.schedule,
        "length": made.run.recipe.data.max_length,
        "beta": divergence.near_beta if beta is None else round(beta, 6),
        "beta_note": "" if beta is not None else f"; the nearest that TRL has to {objective.name}",
    }
    yield "train_sft.py", SFT.format(**values)
    yield "train_gkd.py", GKD.format(**values)


def _check_batches(made: Curated) -> None:
    """Say where a stage has too few rows for a step: no step of `StagedGKDTrainer` has rows of two stages."""
    training = made.run.recipe.training
    sizes = [(sum(map(len, made.passes(stage))), stage.index) for stage in made.stages]
    rows, stage = min(sizes, default=(training.batch_size, 0))
    if rows < training.batch_size:
        warn(
            logger,
            f"stage {stage} has {many(rows, 'row')} with all its passes, fewer than training.batch_size="
            f"{training.batch_size}: train_gkd.py would refuse it.",
            f"Curate again with training.batch_size={rows}"
            + (f" training.micro_batch_size={rows}." if training.micro_batch_size else "."),
        )


TRAINERS.register("trl")(
    Trainer(
        "TRL",
        USAGE,
        columns,
        ("train_sft.py", "train_gkd.py"),
        contents,
        learns_earlier=True,
        described={"input_ids, completion_mask": "the tokens of the recipe, and which of them are learnt"},
    )
)
