"""Axolotl: rows of the type ``input_output``, which adds nothing to the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from srd.export.curated import TRAINERS, Trainer, stage_configurations
from srd.export.texts import Shown
from srd.models.settings import LoraConfig
from srd.recipe.schema import Recipe
from srd.run.curate import Curated, stage_file
from srd.training.arguments import micro_batch_size

CONFIGURATION = "axolotl_stage_{}.yaml"
USAGE = """
In this folder, one stage after the other, each from the model of the one before:

```
axolotl train axolotl_stage_0.yaml
axolotl train axolotl_stage_1.yaml
…
```

`curriculum_sampling` keeps the order of the rows, and `sample_packing` stays off, as it would not.
"""


def columns(row: Shown) -> dict[str, Any]:
    """The text in stretches: Axolotl adds neither a frame nor control tokens to them."""
    return {"segments": [{"label": learnt, "text": text} for text, learnt in row.segments()]}


def contents(made: Curated) -> Iterator[tuple[str, str]]:
    """A configuration for every stage."""
    recipe = made.run.recipe

    def settings(stage: int, start: str, model: str, output: str) -> dict[str, Any]:
        return {
            "datasets": [{"path": f"./{stage_file(stage)}", "ds_type": "json", "type": "input_output"}],
            "train_on_inputs": False,
            "dataset_prepared_path": f"./prepared/stage_{stage}",
            "output_dir": output,
            "num_epochs": made.epochs,
            **trained(recipe, start, model),
        }

    return stage_configurations(made, CONFIGURATION, "./outputs/stage_{}", settings)


def trained(recipe: Recipe, start: str, model: str) -> dict[str, Any]:
    """What is trained and how, in the order of the rows: ``model``, which may be an adapter of ``start``."""
    training, micro = recipe.training, micro_batch_size(recipe.training)
    return {
        **_weights(training.lora, start, model),
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "sample_packing": False,
        "val_set_size": 0,
        "sequence_len": recipe.data.max_length,
        "micro_batch_size": micro,
        "gradient_accumulation_steps": training.batch_size // micro,
        "learning_rate": training.learning_rate,
        "lr_scheduler": training.schedule,
        "optimizer": training.optimizer,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
    }


def _weights(lora: LoraConfig | None, start: str, model: str) -> dict[str, Any]:
    """What is trained, and from where: the adapter of the stage before goes on upon the model that it is one of."""
    if lora is None:
        return {"base_model": model}
    before = {} if model == start else {"lora_model_dir": model}
    named = {"lora_target_modules": lora.targets} if isinstance(lora.targets, list) else {"lora_target_linear": True}
    return {
        "base_model": start, **before, "adapter": "lora", "lora_r": lora.r, "lora_alpha": int(lora.alpha),
        "lora_dropout": lora.dropout, **named,
    }  # fmt: skip


TRAINERS.register("axolotl")(
    Trainer(
        "Axolotl",
        USAGE,
        columns,
        (CONFIGURATION,),
        contents,
        learns_earlier=True,
        takes_lora=True,
        described={"segments": "the whole text in stretches, each with whether it is learnt"},
    )
)
