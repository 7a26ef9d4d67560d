"""Reading and writing configurations, tokenizers and models.

Everything a user can get wrong here (a name, a folder, a format, a missing package) ends in one UserError.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

from srd.base.errors import UserError
from srd.base.files import atomic_folder, file_times
from srd.models.finite import set_name
from srd.models.head import logit_rule
from srd.models.loading.adapters import ADAPTER_WEIGHTS, adapter_folder, load_adapter, put_in_order
from srd.models.loading.architecture import TRUSTED, auto_class, generating, precision_of
from srd.models.loading.gguf import check_gguf, converted_folder, is_converted
from srd.models.loading.guard import first_lines, guarded
from srd.models.loading.merging import merge_adapter
from srd.models.loading.offload import device_map
from srd.models.loading.packages import (
    Missing,
    check_packages,
    is_installed,
    missing_packages,
    quantisation,
    refused_by,
)
from srd.models.loading.portable import make_portable
from srd.models.loading.sources import gguf_file, is_gguf, resolve_source, split_adapter
from srd.models.loading.weights import check_names, check_report, read_headers, weight_files
from srd.models.measured import note_loaded
from srd.models.settings import ModelConfig
from srd.models.tokenizers.tokens import let_stop_tokens_learn, set_generation_tokens

if TYPE_CHECKING:
    from peft import PeftModel

MOST_LAYERS = 10_000
#: What a decoder begins with.
DECODER_STARTS = ("decoder_start_token_id", "forced_bos_token_id")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")

_configs: dict[str, tuple[list[int], PreTrainedConfig]] = {}  # that were read, by their folders


# ----------------------------------------------------------------------------------------- loading


def load_config(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read the configuration only; a GGUF file that is not converted yet is asked for its header."""
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    place: str | Path
    source, _ = split_adapter(source)
    if is_gguf(source):
        path = gguf_file(source)
        place = converted_folder(path)
        if not is_converted(place):
            place, options = path.parent, {"gguf_file": path.name}
    else:
        place = resolve_source(source)
    if revision is not None and Path(place).exists():
        raise UserError(
            f"model '{source}': revision '{revision}' is for models of the hub, and this one is on this machine. "
            "Remove revision."
        )
    file = Path(place) / "config.json"
    times = file_times(file) if file.is_file() and "gguf_file" not in options and not trust_remote_code else []
    before, known = _configs.get(str(place), (None, None))
    if known is not None and before == times:
        return copy.deepcopy(known)
    with guarded(source):
        config: PreTrainedConfig = AutoConfig.from_pretrained(place, **options)
        if trust_remote_code:
            setattr(config, TRUSTED, True)
        auto_class(config)
        _check_config(source, config)
    if times:
        _configs[str(place)] = times, copy.deepcopy(config)
    return config


def _check_config(source: str, config: PreTrainedConfig) -> None:
    """Refuse what the library would stumble over later, or skip without a word."""
    dtype = precision_of(config)
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"model '{source}': config.json says dtype '{dtype}', which is none. Use float32 or bfloat16.")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:  # even without weights each of them takes a millisecond
        raise UserError(f"model '{source}': config.json says {layers} layers, which no model has. Correct it.")
    method = quantisation(config)
    if method == "":
        raise UserError(
            f"model '{source}': quantization_config in config.json cannot be read: it has no quant_method. Remove it "
            "if the weights are not quantised."
        )
    if method is not None and method not in (*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"):
        raise UserError(
            f"model '{source}': quantization_config in config.json names the method '{method}', which this version of "
            f"transformers does not know. Known: {', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}."
        )


def packages_missing(named: ModelConfig) -> list[Missing]:
    """What a model of a recipe needs and does not find here: nothing is loaded, so that all of it can be told.

    Raises:
        UserError: its configuration cannot be read, or this machine cannot load weights that are quantised so.
    """
    source, _ = split_adapter(str(named.model))
    if is_gguf(source):
        known = is_installed("gguf") or is_converted(converted_folder(gguf_file(source)))
        return [] if known else [Missing(f"model '{source}': its file", ("gguf",))]
    config = load_config(source, **named.found)
    folder = _weights_folder(source, named.revision)
    missing = missing_packages(source, folder, config, attn_implementation=named.attn_implementation)
    if (bits := getattr(named, "bits", None)) and not is_installed("bitsandbytes"):
        missing.append(Missing(f"model '{source}': load_in_{bits}bit", ("bitsandbytes",)))
    method = quantisation(config)
    if method is not None and not missing:
        try:
            AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True).validate_environment(
                dtype=None, device_map=None, weights_only=True
            )
        except Exception as error:
            raise UserError(
                f"model '{source}': its weights are quantised ('{method}'), and this machine cannot load them: "
                f"{first_lines(error)}{refused_by(method, error)} Or give the model as it was before."
            ) from error
    return missing


def load_generation_config(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False, config: PreTrainedConfig | None = None
) -> GenerationConfig:
    """Read where answers begin and stop; what generation_config.json does not say, config.json says.

    ``config`` is the model's, where it is read already.

    Raises:
        UserError: one of the files cannot be read, or names something that is no token id.
    """
    place = resolve_source(split_adapter(source)[0])
    if config is None:
        config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    generation = _own_generation_config(source, place, revision)
    if generation is None:
        generation = GenerationConfig.from_model_config(config)
        _check_ids(source, generation, config, "config.json")
    else:
        _check_ids(source, generation, config, "generation_config.json")
    if config.is_encoder_decoder:
        found = SimpleNamespace(**_configured(source, place, revision))
        _check_ids(source, found, config, "config.json")
        for name in DECODER_STARTS:
            if getattr(generation, name, None) is None:
                setattr(generation, name, getattr(found, name, None))
    return generation


def _own_generation_config(source: str, place: str, revision: str | None) -> GenerationConfig | None:
    """The model's generation_config.json, if it has one."""
    if Path(place).is_dir() and not (Path(place) / "generation_config.json").is_file():
        return None
    try:
        with guarded(source):
            return GenerationConfig.from_pretrained(place, revision=revision)
    except UserError as error:
        if not Path(place).is_dir() and isinstance(error.__cause__, OSError):  # the hub has none
            return None
        raise UserError(f"{error} The file is generation_config.json.") from error


def _configured(source: str, place: str, revision: str | None) -> dict[str, Any]:
    """What config.json itself says of a decoder's first tokens: transformers keeps no forced one in its objects."""
    with guarded(source):
        found, _ = PreTrainedConfig.get_config_dict(place, revision=revision)
    return {name: found[name] for name in DECODER_STARTS if name in found}


def _check_ids(source: str, said: Any, config: Any, file: str) -> None:
    """Refuse what is no token id where one belongs."""
    width = config.get_text_config().vocab_size
    or_else = ", or delete the file: config.json then decides" if file == "generation_config.json" else ""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", *DECODER_STARTS):
        value = getattr(said, name, None)
        ids = value if isinstance(value, list) and name == "eos_token_id" else [] if value is None else [value]
        for token in ids:
            below = token < 0 and name in DECODER_STARTS if isinstance(token, int) else True
            if below or isinstance(token, bool) or token >= width:
                raise UserError(
                    f"model '{source}': {name} in {file} is {value!r}, which is no token id below {width}. Correct it"
                    f"{or_else}."
                )


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Where it has no pad token, eos is used: a token is never added.

    Raises:
        UserError: there is no tokenizer, or it has no end-of-sequence token.
    """
    base, adapter = split_adapter(source)
    own = adapter is not None and _has_tokenizer(Path(adapter).expanduser())
    place = str(Path(source).expanduser()) if own else resolve_source(base)
    if Path(place).is_dir() and not _has_tokenizer(Path(place)):
        # transformers would make an empty tokenizer out of config.json alone.
        raise UserError(
            f"model '{source}': the folder has no tokenizer. Save it there: tokenizer.save_pretrained(folder)"
        )
    if Path(place).is_dir():  # the library's own message names any of the packages that it tried
        check_packages(missing_packages(source, Path(place), None))
    with guarded(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=trust_remote_code
        )
    if not isinstance(longest := tokenizer.model_max_length, int | float):
        raise UserError(
            f"model '{source}': model_max_length in tokenizer_config.json is {longest!r}, which is no number."
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model '{source}': its tokenizer has no end-of-sequence token, so that an answer cannot end. Name "
            'one of its tokens in tokenizer_config.json, for example "eos_token": "</s>".'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)


def load_model(
    source: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    adapter: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    role: str = "model",
    offload: Path | None = None,
    bits: int | None = None,
) -> PreTrainedModel:
    """Load a causal or sequence-to-sequence language model in eval mode, ready to generate, and try it out.

    Args:
        source: hub name, folder, GGUF file, ``smollm2``, or the folder of an adapter that lies beside its base.
        tokenizer: the tokenizer in use; its eos and pad become the model's. None: as in the model's files.
        dtype: auto (as saved), float32, bfloat16 or float16.
        revision: commit, branch or tag on the hub.
        adapter: LoRA adapter (folder or hub name) to merge into the weights.
        attn_implementation: sdpa, flash_attention_2, eager; None leaves it to transformers.
        trust_remote_code: run Python code that comes with the model.
        device: where to put it; None leaves it on the CPU.
        role: what messages call it: teacher, student.
        offload: leave its layers on disk (see `LayerGroups`); a folder for weights that have to be written anew.
        bits: 8 or 4: quantise its weights while they are loaded, by bitsandbytes.

    Raises:
        UserError: it cannot be read, or its weights are missing, pickled, for another configuration, or give NaN.
    """
    if adapter is None:
        source, adapter = split_adapter(source)
    place = resolve_source(source)
    read_headers(files := weight_files(Path(place)) if Path(place).is_dir() else [], source)
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    generation = load_generation_config(source, revision=revision, config=config)
    placed = _placed(config, device or "cpu", offload, bits)
    with guarded(source):
        model, report = auto_class(config).from_pretrained(
            place, dtype=dtype if dtype == "auto" else getattr(torch, dtype), revision=revision,
            attn_implementation=attn_implementation, trust_remote_code=trust_remote_code, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **placed,
        )  # fmt: skip
    check_report(source, model, report)  # also of mismatched sizes, which it names better
    model.generation_config = generation
    if adapter is not None:
        model = merge_adapter(load_adapter(model, adapter))
    set_generation_tokens(model, tokenizer)
    let_stop_tokens_learn(model, tokenizer)
    set_name(model, f"the {role} '{source}'")
    with guarded(source):
        loaded: PreTrainedModel = model.eval()
        if not placed and device is not None:
            loaded = loaded.to(device)  # type: ignore[arg-type]
        whole = [] if adapter or trust_remote_code else files  # of what decides what it computes
        note_loaded(loaded, whole, device, attn_implementation, offload is not None, bits)
        logit_rule(loaded)
    return loaded


def _placed(config: PreTrainedConfig, device: Any, offload: Path | None, bits: int | None) -> dict[str, Any]:
    """What makes transformers put a model's parts where they belong while it loads them; nothing: it does not."""
    if offload is not None:
        return {"device_map": device_map(config, device), "offload_folder": str(offload)}
    if bits is not None:
        quantised = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
        return {"quantization_config": quantised, "device_map": {"": device}}
    return {}


def check_weights(
    source: str, *, revision: str | None = None, adapter: str | None = None, trust_remote_code: bool = False
) -> None:
    """Refuse a model whose weights are missing, damaged or of another configuration, from the headers of its files.

    A hub model is looked at where it is in the hub's cache already; a GGUF file that is not converted yet, by its
    header.

    Raises:
        UserError: naming the model, the file or tensor, and what to do.
    """
    if adapter is None:
        source, adapter = split_adapter(source)
    if adapter is not None:
        read_headers([adapter_folder(adapter) / ADAPTER_WEIGHTS], adapter)
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    folder = _weights_folder(source, revision)
    if folder is None:
        return
    load_generation_config(source, revision=revision, config=config)
    shapes = read_headers(weight_files(folder), source)
    if type(config) in generating(config) and getattr(config, "quantization_config", None) is None:
        classes = generating(config)[type(config)]
        check_names(source, classes[0] if isinstance(classes, tuple) else classes, config, shapes)


def _weights_folder(source: str, revision: str | None) -> Path | None:
    """Where a model's weights lie; None where they are still to be fetched or converted."""
    if is_gguf(source):
        path = gguf_file(source)
        folder = converted_folder(path)
        if not is_converted(folder):
            check_gguf(path)
            return None
        return folder
    place = resolve_source(source)
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not here yet
        return None


# ------------------------------------------------------------------------------------------ saving


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, Any] | None = None,
    *,
    portable: bool = False,
) -> None:
    """Write model and tokenizer to ``folder``, whole or not at all, as ``from_pretrained`` reads them.

    An adapted model writes its adapter only; merge it first (``merge_adapter``) to write a plain model.
    ``weights`` is the whole state dictionary of a model that has only a part of its weights here. A ``portable`` one is
    read by other programs, too.
    """
    set_generation_tokens(model, tokenizer)
    with atomic_folder(folder) as partial:
        model.save_pretrained(str(partial), state_dict=weights)
        put_in_order(partial)
        tokenizer.save_pretrained(str(partial))
        if portable:
            make_portable(partial, tokenizer)
