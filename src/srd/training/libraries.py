"""Optimizers and loggers by name: which there are, and which package each needs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

from srd.base.errors import UserError, nearest

# Beginning of a name -> the module it needs and the package that brings it; others come with torch and transformers.
OPTIMIZER_PACKAGES = {
    "adamw_torch_xla": ("torch_xla", "torch-xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch-npu"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    **dict.fromkeys(
        ("adamw_bnb_8bit", "adamw_8bit", "ademamix", "lion_", "paged_", "rmsprop_bnb"), ("bitsandbytes", "bitsandbytes")
    ),
}
# These train a projection of some modules, which they want to be told; a recipe has no field for that.
NOT_SERVED = ("galore_", "apollo_")
USUAL = ("adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop")
LOGGER_PACKAGES = {
    **{
        name: (name, name)
        for name in ("clearml", "codecarbon", "dagshub", "dvclive", "kubeflow", "mlflow", "neptune", "swanlab",
                     "tensorboard", "trackio", "wandb")
    },
    "azure_ml": ("azureml", "azureml-core"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "flyte": ("flytekit", "flytekit"),
}  # fmt: skip


def check_optimizer(name: str) -> str:
    """Return the name of an optimizer that can be used; ValueError with the known names otherwise."""
    if name in USUAL:
        return name
    from transformers.training_args import OptimizerNames  # takes seconds to import

    known = sorted(str(each.value) for each in OptimizerNames if not str(each.value).startswith(NOT_SERVED))
    if name.startswith(NOT_SERVED):
        raise ValueError(f"the optimizer '{name}' wants settings that a recipe has not. Known: {', '.join(known)}")
    if name not in known:
        raise ValueError(f"there is no optimizer '{name}'; {nearest(name, known)}")
    return name


def check_loggers(names: list[str]) -> list[str]:
    """Return the names of loggers; ValueError with the known names where one is another."""
    for name in names:
        if name not in LOGGER_PACKAGES:
            raise ValueError(f"there is no logger '{name}'; {nearest(name, LOGGER_PACKAGES)}")
    return names


def _wandb_is_ready() -> str:
    """Why W&B would refuse a run, or ask for a key, hours after the start; empty: it would not."""
    import wandb

    if wandb.setup().settings.mode != "online":
        return ""
    try:
        known = wandb.login(prompt=False)
    except TypeError:  # before 0.31 it cannot be asked without a prompt
        return ""
    except wandb.Error as error:
        return str(error)
    return "" if known else "it has no key"


#: A logger that can say at the start that it would not write -> what it says, and what to do.
READY: dict[str, tuple[Callable[[], str], str]] = {
    "wandb": (_wandb_is_ready, "Run: wandb login, or set the variable WANDB_MODE=offline to write to ./wandb")
}


def check_installed(field: str, optimizer: str, loggers: list[str]) -> None:
    """Refuse an optimizer or a logger whose package is missing here, and a logger that would not write.

    Raises:
        UserError: with the field and the command that helps.
    """
    needed = [
        (f"{field}.optimizer={optimizer}", package)
        for start, package in OPTIMIZER_PACKAGES.items()
        if optimizer.startswith(start)
    ]
    needed += [(f"{field}.log_to=[{name}]", LOGGER_PACKAGES[name]) for name in loggers]
    for setting, (module, package) in needed:
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{setting} needs a package that is not installed: pip install {package}")
    for name in loggers:
        refuses, remedy = READY.get(name, (str, ""))
        if reason := refuses():
            raise UserError(f"{field}.log_to=[{name}]: {name} would not log this run: {reason}. {remedy}")


def check_launch() -> None:
    """Refuse what accelerate's launcher and TrainingArguments may ask for by variables, and cannot be here.

    A student compiled whole would not see the hook that ends its forward pass before the head.
    """
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError(
            f"torch.compile is on for whole models (ACCELERATE_DYNAMO_BACKEND is {backend}, by accelerate's "
            "configuration or TrainingArguments): it would not see where srd leaves the student before its head. Set "
            "ACCELERATE_DYNAMO_BACKEND=no, and torch_compile=False. In a recipe, training.compile=loss is for the rest."
        )
    if os.environ.get("ACCELERATE_USE_MEGATRON_LM", "false") == "true":
        raise UserError(
            "accelerate's configuration asks for Megatron-LM, which is not for srd. Use ddp.yaml, fsdp.yaml or a "
            "DeepSpeed configuration (docs/parallel.md)."
        )
