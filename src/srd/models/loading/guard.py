"""The one place where what libraries raise over a model's files becomes a message: which model, why, and what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import torch

from srd.base.errors import RunError, UserError
from srd.models.loading.packages import missing_of

# What the machine lacks, not the model: whoever reports full disks and the like says it.
MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
SHOWN = 300  # characters of what an error says


@contextlib.contextmanager
def guarded(source: str, kind: str = "model") -> Iterator[None]:
    """Turn whatever a library raises over a model or adapter into one error that says what to do.

    Raises:
        UserError: the model's files are to blame.
        RunError: there is too little memory.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except ImportError as error:
        told = f"{first_lines(error)}{missing_of(error)}"
        raise UserError(f"{kind} '{source}' needs a package that is missing. {told}") from error
    except OSError as error:
        if error.errno in MACHINE:
            raise
        raise _unreadable(source, kind, error) from error
    except Exception as error:
        if _is_memory(error):
            raise RunError(
                f"{kind} '{source}' cannot be loaded: this machine is out of memory. {first_lines(error)}"
            ) from error
        if isinstance(error, RuntimeError) and "mismatch" in str(error):
            raise UserError(f"{kind} '{source}': the weights do not fit config.json. {first_lines(error)}") from error
        raise _unreadable(source, kind, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how the tokenizers library, written in Rust, gives up
            raise
        raise _unreadable(source, kind, error) from error


def _is_memory(error: Exception) -> bool:
    told = str(error).lower()
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "out of memory" in told or "can't allocate memory" in told


def first_lines(error: BaseException) -> str:
    """What an error says, on one line; its kind where that alone would say nothing."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError | AttributeError | TypeError | IndexError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{text.rstrip('.')}." if len(text) <= SHOWN else text[:SHOWN].rsplit(" ", 1)[0] + " …"


def no_folder(source: str) -> str:
    """That there is no folder of this name, with those that it may have meant."""
    missing = Path(source).expanduser()
    while not missing.parent.is_dir():
        missing = missing.parent
    names = sorted(folder.name for folder in missing.parent.glob("*/"))
    near = ", ".join(str(missing.parent / name) for name in get_close_matches(missing.name, names))
    return f"there is no folder {Path(source).expanduser().absolute()}" + (f"; near it: {near}" if near else "")


def _unreadable(source: str, kind: str, error: BaseException) -> UserError:
    told = first_lines(error)
    if "trust_remote_code" in str(error):
        remedy = (
            "If you trust its authors, set trust_remote_code: true for this model (--trust-remote-code where there is "
            "no recipe)."
        )
    elif Path(source).expanduser().exists():
        remedy = "Check the files in the folder, or save the model again with save_pretrained."
    else:
        told = f"{no_folder(source)}. On the hub: {told}"
        remedy = (
            "Check the name, the revision and the network; for a gated model run `hf auth login`; without a network "
            "give a local folder, or 'smollm2'. Weights must be there as safetensors."
        )
    return UserError(f"{kind} '{source}' cannot be read: {told} {remedy}")
