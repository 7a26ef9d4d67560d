"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: adding and loading.

peft is imported where an adapter is made or read: most runs have none, and it takes long.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import hf_hub_download
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from srd.base.errors import UserError, nearest
from srd.base.text import many
from srd.models.loading.guard import guarded, no_folder

if TYPE_CHECKING:
    from peft import PeftModel

    from srd.models.settings import LoraConfig as LoraSettings

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Freeze ``model`` and put trainable low-rank adapters on the modules that ``settings.targets`` names.

    ``targets`` are module names or endings of them (``q_proj``, ``mlp.down_proj``), ``"all-linear"`` for
    every linear layer but the output head and the outputs of state-space mixers, or None for what peft chooses for the
    architecture. The model may lie on the meta device, to see whether it can be done.

    Raises:
        UserError: a target matches no module, none is given and peft knows no default for the architecture, or peft
            cannot adapt a module.
    """
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    targets = settings.targets
    if isinstance(targets, list):
        check_targets(model, targets)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes floats too
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=(_mixer_outputs(model) or None) if targets == "all-linear" else None,
        task_type=TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Model has `tie_word_embeddings")  # untied before it is merged
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise UserError(_refusal(model, settings, error)) from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _refusal(model: PreTrainedModel, settings: LoraSettings, error: Exception) -> str:
    """Why peft does not adapt a model, and what would help."""
    names = f"'all-linear', or a list of: {', '.join(_linear_names(model))}"
    if settings.targets is None and "target_modules" in str(error):
        return f"lora.targets: peft has no default for architecture '{model.config.model_type}'. Use {names}"
    if settings.dropout and "dropout" in str(error):
        return (
            f"lora.dropout is {settings.dropout:g}, but the targets are experts whose weights lie in one tensor, and "
            "their adapters take no dropout. Set lora.dropout: 0, or choose other lora.targets."
        )
    return f"lora.targets: architecture '{model.config.model_type}' cannot be adapted so: {error} Use {names}"


def _mixer_outputs(model: nn.Module) -> list[str]:
    """Output layers of state-space mixers, whose kernels read the weight itself, so that no adapter would be seen."""
    names = {name for name, _ in model.named_modules()}
    return sorted(
        name for name in names if name.endswith(".out_proj") and f"{name.removesuffix('out_proj')}conv1d" in names
    )


def _linear_names(model: nn.Module) -> list[str]:
    """Last parts of the names of the linear modules that adapters are for, such as ``q_proj``."""
    linear = (nn.Linear, Conv1D)
    left_out = {"lm_head", *(name.rpartition(".")[2] for name in _mixer_outputs(model))}
    named = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)}
    return sorted(named - left_out)


def put_in_order(folder: Path) -> None:
    """Sort what peft holds as sets in the configuration of a saved adapter: written as they come, no two would agree.

    Args:
        folder: Of the adapter; one that holds another model stays as it is.
    """
    path = folder / ADAPTER_CONFIG
    if path.is_file():
        sets = ("target_modules", "exclude_modules")
        values = json.loads(path.read_text(encoding="utf-8"))
        values |= {name: sorted(values[name]) for name in sets if isinstance(values.get(name), list)}
        path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def check_targets(model: nn.Module, targets: list[str]) -> None:
    """Refuse a target that is the name, or the ending of the name, of no module."""
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(
                f"lora.targets: no module of the model is called '{target}'; {nearest(target, _linear_names(model))}"
            )


def adapter_folder(source: str) -> Path:
    """Return the local folder of an adapter: ``source`` itself, or the hub's snapshot of it.

    Raises:
        UserError: there is none, or its weights are no safetensors (pickle runs code when it is read).
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            hf_hub_download(source, ADAPTER_CONFIG)
            return Path(hf_hub_download(source, ADAPTER_WEIGHTS)).parent
        except (OSError, ValueError) as error:
            raise UserError(
                f"adapter '{source}': {no_folder(source)}, and the hub does not give its {ADAPTER_CONFIG} and "
                f"{ADAPTER_WEIGHTS} ({str(error).splitlines()[0]}). "
                "Check the name, or save the adapter as safetensors."
            ) from error
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"adapter '{source}': the folder has no {name}. Give a folder that peft's save_pretrained "
                "wrote; adapters in .bin files (pickle) are not read, save them again as safetensors."
            )
    return folder


def load_adapter(model: PreTrainedModel, source: str, *, trainable: bool = False) -> PeftModel:
    """Put a saved adapter (a folder or a hub name) on ``model``.

    Raises:
        UserError: the adapter is not there, or belongs to a model of another shape. Adapter weights that find
            no place, and places that find no weight, count as another shape: peft alone would only warn.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = adapter_folder(source)
    remedy = "It was made for another model: give the base model it was trained on."
    try:
        with warnings.catch_warnings(), guarded(source, "adapter"):
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error below
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except UserError as error:
        raise UserError(f"adapter '{source}' does not fit the model: {str(error).splitlines()[0]}. {remedy}") from error
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        names = file.keys()
        saved = {name for name in names if ".lora_" in name}
    places = {name for name in get_peft_model_state_dict(adapted) if ".lora_" in name}
    if saved != places:
        odd = sorted(saved ^ places)
        raise UserError(
            f"adapter '{source}' does not fit the model: {many(len(odd), 'tensor')}, such as '{odd[0]}'. {remedy}"
        )
    return adapted.eval() if not trainable else adapted
