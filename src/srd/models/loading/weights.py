"""Whether a model's weights fit its configuration, by the headers of its files, before any work.

The library's own loader is asked, on tensors that have a name and a shape and no memory: so what it renames, joins or
ties is no concern here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from srd.base.errors import UserError
from srd.base.files import fingerprint, read_json
from srd.base.text import many, verb
from srd.models.loading.guard import guarded
from srd.models.measured import settings_of

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Masks and positions that old versions saved; they are computed anew.
HARMLESS = ("inv_freq", "masked_bias", "attn.bias", "attention.bias", "position_ids")

_fitting: set[str] = set()  # what stands for a class, a configuration and the shapes of weights that were found to fit


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, all of them there.

    Raises:
        UserError: there are none, only pickles, or some that the index names are missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        with guarded(str(folder)):
            names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"model '{folder}': {INDEX} names {many(len(names), 'file')} of weights, and {len(missing)} "
                f"{verb(len(missing))} missing, such as {missing[0]}. Copy or download them again."
            )
        return [folder / name for name in names]
    if found := sorted(path for path in folder.glob("*.safetensors") if path.is_file()):  # no pipe, which would wait
        return found
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise UserError(
            f"model '{folder}' has its weights in pickle files only (.bin, .pt), which run code when read. "
            "Convert them once, where you trust them: "
            "AutoModel.from_pretrained(folder, use_safetensors=False).save_pretrained(new_folder)"
        )
    raise UserError(f"model '{folder}': the folder has a config.json but no weights (*.safetensors).")


def read_headers(files: list[Path], source: str) -> dict[str, list[int]]:
    """Name and shape of every tensor in some safetensors files; a file that is cut short is refused."""
    shapes: dict[str, list[int]] = {}
    for path in files:
        with guarded(source):
            try:
                with safe_open(path, framework="pt") as file:
                    shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            except Exception as error:
                raise UserError(
                    f"model '{source}': {path} cannot be read ({error}): it is damaged or cut short. Copy or download "
                    "it again."
                ) from error
    return shapes


def check_names(source: str, model_class: Any, config: Any, shapes: dict[str, list[int]]) -> None:
    """Refuse weights that do not fit the configuration by name and shape.

    Raises:
        UserError: tensors are missing, have another shape, or belong to layers that the configuration lacks.
    """
    what = fingerprint(f"{model_class.__module__}.{model_class.__qualname__}", settings_of(config), shapes)
    if what in _fitting:
        return
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with guarded(source):
        model, report = model_class.from_pretrained(
            None, config=copy.deepcopy(config), state_dict=tensors, device_map="meta", output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    check_report(source, model, report)
    _fitting.add(what)


def check_report(source: str, model: nn.Module, report: dict[str, Any]) -> None:
    """Refuse a model that is not all of its files, or whose files are not all of it.

    Args:
        source: As the user named it.
        model: As it was loaded.
        report: What transformers says about loading it.
    """
    if report["mismatched_keys"]:
        name, here, wanted = min(report["mismatched_keys"])
        count = len(report["mismatched_keys"])
        raise UserError(
            f"model '{source}': the weights do not fit config.json: '{name}'{f', one of {count},' * (count > 1)} is "
            f"{list(here)} in the files, and would be {list(wanted)} by config.json. Take config.json from where the "
            "weights are from, or save the model again with save_pretrained."
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"model '{source}': the files lack {len(missing)} of its weights, such as '{missing[0]}', which "
            "would stay random. Give a language model with its output head, or save the model again."
        )
    surplus = sorted(name for name in report["unexpected_keys"] if not name.endswith(HARMLESS))
    own = [name for name in surplus if _belongs(name, model)]
    if own:
        raise UserError(
            f"model '{source}': its files hold {many(len(own), 'tensor')} that config.json has no place for, such as "
            f"'{own[0]}': without them it would be another model. Correct config.json (number of layers, biases, tied "
            "embeddings), or save the model again with save_pretrained."
        )


def _belongs(name: str, model: nn.Module) -> bool:
    """Whether a surplus tensor is of the language model itself: in one of its stacks of layers, or of a module it has.

    Other parts that checkpoints bring along (a vision tower, a reward's head) are of no use here and are left out.
    """
    stacks = [stack for stack, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    roots = [prefix for stack in stacks for prefix in (f"{stack}.", f"{stack.partition('.')[2]}.") if len(prefix) > 1]
    own = {path for path, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None}
    parent = name.rpartition(".")[0]
    return name.startswith(tuple(roots)) or parent in own
