"""Packages that a model needs beside those that come along: known from its files and settings, before anything runs."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_imports

from srd.base.errors import UserError

#: Quantisation in config.json -> the modules it needs. Others need what comes with torch and transformers.
QUANTISATION = {
    "aqlm": ("aqlm",), "auto-round": ("auto_round",), "awq": ("gptqmodel",), "bitsandbytes": ("bitsandbytes",),
    "bitsandbytes_4bit": ("bitsandbytes",), "bitsandbytes_8bit": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",), "eetq": ("kernels",), "fp_quant": ("fp_quant",),
    "gptq": ("optimum", "gptqmodel"), "higgs": ("flute", "fast_hadamard_transform"), "hqq": ("hqq",),
    "metal": ("kernels",), "nvfp4": ("kernels",), "quanto": ("optimum.quanto",), "quark": ("quark",),
    "sinq": ("sinq",), "spqr": ("spqr_quant",), "torchao": ("torchao",), "vptq": ("vptq",),
}  # fmt: skip
#: Tokenizers without a tokenizer.json whose class, by the beginning of its name, needs more than its files say.
TOKENIZERS = {
    "BertJapanese": ("fugashi", "unidic_lite"), "BioGpt": ("sacremoses",), "Cpm": ("jieba",), "FSMT": ("sacremoses",),
    "Flaubert": ("sacremoses",), "RoFormer": ("rjieba",), "XLMTokenizer": ("sacremoses",),
}  # fmt: skip
SENTENCEPIECE = ("sentencepiece", "google.protobuf")
SENTENCEPIECE_FILES = ("*.model", "*.spm")
#: Modules whose package has another name.
PACKAGES = {
    "aqlm": "'aqlm[gpu,cpu]'", "auto_round": "auto-round", "compressed_tensors": "compressed-tensors",
    "flute": "flute-kernel", "google.protobuf": "protobuf", "optimum.quanto": "optimum-quanto", "quark": "amd-quark",
    "spqr_quant": "'spqr_quant[gpu]'", "tiktoken": "tiktoken blobfile", "unidic_lite": "unidic-lite",
    "bs4": "beautifulsoup4", "cv2": "opencv-python", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml",
    "flash_attn": "flash-attn", "google": "protobuf", "mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d",
}  # fmt: skip
#: Modules that an extra of this package brings.
EXTRAS = {
    "sentencepiece": "sentencepiece", "google.protobuf": "sentencepiece", "tiktoken": "tiktoken", "gguf": "demo",
    "bitsandbytes": "bitsandbytes", "gptqmodel": "gptq", "optimum": "gptq", "compressed_tensors": "compressed-tensors",
}  # fmt: skip


@dataclass(frozen=True)
class Missing:
    """What a model needs and does not find here.

    Attributes:
        what: The model, and what of it needs a package.
        modules: What Python would import.
    """

    what: str
    modules: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return pip_install(*self.modules)

    @property
    def need(self) -> str:
        """What is missing, and by which extra of this package it comes."""
        extras = [EXTRAS[module] for module in self.modules if module in EXTRAS]
        named = f" (extra '{extras[0]}')" if extras else ""
        return f"{self.what} needs what is not installed here{named}"

    def __str__(self) -> str:
        return f"{self.need}: {self.remedy}"


def pip_install(*modules: str) -> str:
    """The command that installs the packages of some modules."""
    return f"pip install {' '.join(PACKAGES.get(module, module.partition('.')[0]) for module in modules)}"


def missing_packages(
    source: str, folder: Path | None, config: Any, *, attn_implementation: str | None = None
) -> list[Missing]:
    """What a model needs and does not find here.

    Args:
        source: As the user named it.
        folder: Where its files are; None: not on this machine yet, so that its tokenizer cannot be looked at.
        config: Its configuration.
        attn_implementation: The kernels of attention that are asked for.
    """
    needed = [*_for_weights(config), *_for_attention(attn_implementation)]
    if folder is not None:
        needed += [*_for_tokenizer(folder), *(_for_code(folder) if getattr(config, "auto_map", None) else ())]
    found = [(what, tuple(module for module in modules if not is_installed(module))) for what, modules in needed]
    return [Missing(f"model '{source}': {what}", modules) for what, modules in found if modules]


def quantisation(config: Any) -> str | None:
    """The method by which a model's weights are quantised, empty where it is not named; None: they are not."""
    quantised = getattr(config, "quantization_config", None)
    if quantised is None:
        return None
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    if method is None and isinstance(quantised, dict):  # as bitsandbytes once wrote it
        return "bitsandbytes" if quantised.get("load_in_4bit") or quantised.get("load_in_8bit") else ""
    return "" if method is None else str(getattr(method, "value", method))


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # the package around it is not there
        return False


def _for_weights(config: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    method = quantisation(config)
    if method in QUANTISATION:
        yield f"the quantisation '{method}' of its weights", QUANTISATION[method]


def _for_attention(kernels: str | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    name = str(kernels or "")
    if "/" in name or (name.startswith("flash_attention") and not is_installed("flash_attn")):
        yield f"attn_implementation '{name}'", ("kernels",)


def _for_code(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What the Python code imports that a model brings."""
    for path in sorted(folder.glob("*.py")):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # it is told when it is loaded
            yield f"its code ({path.name})", tuple(sorted(get_imports(path)))


def _for_tokenizer(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    if (folder / "tokenizer.json").is_file():
        return
    named = _tokenizer_class(folder)
    yield from ((f"its tokenizer ({named})", modules) for name, modules in TOKENIZERS.items() if named.startswith(name))
    for path in sorted({path for pattern in (*SENTENCEPIECE_FILES, "*.tiktoken") for path in folder.glob(pattern)}):
        yield f"its tokenizer ({path.name})", ("tiktoken",) if _is_tiktoken(path) else SENTENCEPIECE


def _tokenizer_class(folder: Path) -> str:
    """What tokenizer_config.json calls the tokenizer's class; a file that is damaged is told when it is loaded."""
    path = folder / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r'"tokenizer_class"\s*:\s*"(\w+)"', text)
    return found[1] if found else ""


def _is_tiktoken(path: Path) -> bool:
    """Whether a vocabulary is tiktoken's: lines of a token in base64 and its rank."""
    with open(path, "rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.read(200)) is not None


def check_packages(missing: list[Missing]) -> None:
    """Refuse what needs a package that is missing, all of it together.

    Raises:
        UserError: with what needs it and the command that installs it.
    """
    if missing:
        raise UserError("\n".join(map(str, dict.fromkeys(missing))))


def missing_of(error: ImportError) -> str:
    """The command that helps against an import that failed; "" where its message has one, or nobody can know."""
    text = str(error)
    if "pip install" in text:
        return ""
    known = {**dict.fromkeys(SENTENCEPIECE), **PACKAGES, **EXTRAS}
    named = [module for module in known if re.search(rf"\b{re.escape(module)}\b", text)]
    absent = [module for module in [*named, error.name] if module and not is_installed(module)]
    return f" Run: {pip_install(absent[0])}" if absent else ""


def refused_by(method: str, error: Exception) -> str:
    """What helps where the packages of a quantisation are there and refuse: others below them, or newer ones."""
    if not isinstance(error, ImportError) or method not in QUANTISATION or "pip install" in str(error):
        return ""
    return missing_of(error) or f" Run: {pip_install('--upgrade', *QUANTISATION[method])}"
