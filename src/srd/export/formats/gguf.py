"""GGUF: one file with weights, tokenizer and chat template, for llama.cpp, Ollama, LM Studio and others."""

from __future__ import annotations

from pathlib import Path

from srd.base.files import atomic_write
from srd.export.base import FORMATS, Exported, Format
from srd.export.gguf import check_gguf_export, write_gguf


def file_name(exported: Exported, default: str) -> str:
    """The name of the file, which says how the weights are stored."""
    return f"{exported.name}-{exported.settings.kind or default}.gguf"


def names(exported: Exported) -> list[str]:
    """The file, of a model that GGUF holds."""
    check_gguf_export(exported)
    return [file_name(exported, "f16")]


def write(exported: Exported, folder: Path) -> None:
    """Write it."""
    with atomic_write(folder / file_name(exported, "f16")) as partial:
        write_gguf(exported, partial, exported.settings.kind or "f16")


def then(exported: Exported, folder: Path) -> str:
    """What to do with it."""
    return f"llama-cli -m {folder / file_name(exported, 'f16')}, or any other tool that reads GGUF"


FORMATS.register("gguf")(Format("GGUF", names, write, then, takes=("kind",)))
