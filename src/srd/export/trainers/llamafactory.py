"""LLaMA-Factory: whole texts with the template ``empty``, which adds nothing to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from srd.export.curated import TRAINERS, Trainer, stage_configurations
from srd.export.texts import Shown
from srd.models.settings import LoraConfig
from srd.run.curate import Curated, stage_file
from srd.training.arguments import micro_batch_size

CONFIGURATION = "llamafactory_stage_{}.yaml"
USAGE = """
In this folder, one stage after the other, each from the model of the one before:

```
llamafactory-cli train llamafactory_stage_0.yaml
llamafactory-cli train llamafactory_stage_1.yaml
…
```

`disable_shuffling` keeps the order of the rows. The texts are whole, with what begins and closes them, so that the
template is `empty`. `dataset_info.json` also names the conversations (`srd_chat_stage_0`, …) for a template of
LLaMA-Factory's own, where the rows are conversations.
"""


def columns(row: Shown) -> dict[str, Any]:
    """The text up to the answer, and the answer, whole: the template ``empty`` adds nothing."""
    return {"source": row.begin + row.prompt, "target": row.completion + row.end}


def contents(made: Curated) -> Iterator[tuple[str, str]]:
    """The list of data sets, and a configuration for every stage."""
    training = made.run.recipe.training
    chat = all(made.run.split("train")["messages"])
    yield "dataset_info.json", json.dumps(_data_sets(made, chat), indent=2) + "\n"

    def settings(stage: int, start: str, model: str, output: str) -> dict[str, Any]:
        return {
            **_weights(training.lora, start, model),
            "stage": "sft",
            "do_train": True,
            "dataset_dir": ".",
            "dataset": f"srd_stage_{stage}",
            "template": "empty",
            "cutoff_len": made.run.recipe.data.max_length,
            "disable_shuffling": True,
            "packing": False,
            "val_size": 0,
            "output_dir": output,
            "num_train_epochs": made.epochs,
            "per_device_train_batch_size": micro_batch_size(training),
            "gradient_accumulation_steps": training.batch_size // micro_batch_size(training),
            "learning_rate": training.learning_rate,
            "lr_scheduler_type": training.schedule,
            "report_to": "none",
        }

    yield from stage_configurations(made, CONFIGURATION, "saves/stage_{}", settings)


def _weights(lora: LoraConfig | None, start: str, model: str) -> dict[str, Any]:
    """What is trained, and from where: the adapter of the stage before goes on upon the model that it is one of."""
    if lora is None:
        return {"model_name_or_path": model, "finetuning_type": "full"}
    before = {} if model == start else {"adapter_name_or_path": model}
    targets = ",".join(lora.targets) if isinstance(lora.targets, list) else "all"
    return {
        "model_name_or_path": start, **before, "finetuning_type": "lora", "lora_rank": lora.r,
        "lora_alpha": int(lora.alpha), "lora_dropout": lora.dropout, "lora_target": targets,
    }  # fmt: skip


def _data_sets(made: Curated, chat: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in made.stages:
        file = {"file_name": stage_file(stage.index)}
        found[f"srd_stage_{stage.index}"] = {**file, "columns": {"prompt": "source", "response": "target"}}
        if chat:
            tags = {f"{role}_tag": role for role in ("role", "content", "user", "assistant", "system")}
            found[f"srd_chat_stage_{stage.index}"] = {
                **file, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags
            }  # fmt: skip
    return found


TRAINERS.register("llamafactory")(
    Trainer(
        "LLaMA-Factory",
        USAGE,
        columns,
        ("dataset_info.json", CONFIGURATION),
        contents,
        takes_lora=True,
        described={"source, target": "the whole text up to the answer, and the answer with what closes it"},
    )
)
