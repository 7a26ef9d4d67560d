"""GGUF files: converted once to a folder that transformers reads, and kept in a cache."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, GgufConfig

from srd.base.errors import UserError
from srd.base.files import digest_of, discard, is_as_noted, read_sealed, state_of, walk, write_sealed
from srd.base.locks import by_turns
from srd.models.loading.architecture import auto_class
from srd.models.loading.guard import guarded
from srd.models.loading.packages import is_installed
from srd.models.tokenizers.tokens import set_generation_tokens

logger = logging.getLogger(__name__)

# Raise it when the conversion changes what it writes: folders of the old one are then not used any more.
CONVERSION = 1
NOTE = ".files.json"  # in a converted folder: what was written there
ABANDONED_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """Where converted models are kept: ``$SRD_CACHE/models``, else ``~/.cache/srd/models``."""
    root = os.environ.get("SRD_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "srd") / "models"


def converted_folder(path: Path) -> Path:
    """Where the conversion of the GGUF file ``path`` lies, or will lie: keyed by content, not by place."""
    return cache_folder() / f"{path.stem}-{digest_of(path)[:16]}-{CONVERSION}"


def is_converted(folder: Path) -> bool:
    """Whether a conversion is there and is what was written; one without a note is of a version that made none."""
    noted = read_sealed(folder / NOTE).get("files", {})
    return folder.is_dir() and all(is_as_noted(folder / name, state) for name, state in noted.items())


def convert_gguf(path: Path) -> Path:
    """Convert a GGUF file to a float32 safetensors folder with its tokenizer, once, and return the folder.

    The folder appears under its name only when it is complete, so a killed conversion leaves nothing that is
    used, and of several that run at once the first converts. The quantised file unpacks to about 4 bytes a
    parameter.

    Raises:
        UserError: the gguf package is missing, the architecture is unknown, or the cache cannot be written.
    """
    folder = converted_folder(path)
    if is_converted(folder):
        return folder
    _check_installed(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {folder.parent} ({error.strerror}). Set SRD_CACHE to another folder."
        ) from error
    try:
        with by_turns(folder.parent / f".{folder.name}.lock"):
            if is_converted(folder):  # by another command, meanwhile
                return folder
            _write_converted(path, partial)
            files = {str(file.relative_to(partial)): state_of(file) for file in walk(partial)}
            write_sealed(partial / NOTE, {"files": files})
            partial.chmod(0o755)
            if folder.is_dir() and not is_converted(folder):
                logger.warning("%s is not what was written there: %s is converted again", folder, path)
                discard(folder, [folder / NOTE])
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


def _remove_abandoned(cache: Path) -> None:
    """Delete what killed conversions left behind, but nothing that another process may be writing now."""
    for partial in cache.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # another command has just finished it
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


def _check_installed(path: Path) -> None:
    if not is_installed("gguf"):
        raise UserError(f"model '{path}': reading GGUF files needs a package. Run: pip install gguf")


def check_gguf(path: Path) -> None:
    """Read the header of a GGUF file, and whether all of its tensors are there."""
    _check_installed(path)
    from gguf import GGUFReader

    with guarded(str(path)):
        GGUFReader(path)
