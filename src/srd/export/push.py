"""Upload a student, or curated data, to the Hugging Face hub: shown first, and private by default."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srd.base.errors import RunError, UserError
from srd.base.files import walk
from srd.base.locks import told_if_held
from srd.export.curated import curate_for
from srd.models.loading.facts import CARD
from srd.models.loading.guard import first_lines
from srd.recipe.reading import load_recipe
from srd.run.card import HUB_ADDRESS
from srd.run.chat import run_folder
from srd.run.context import Run
from srd.run.manifest import student_of

ROWS = "stage_0.jsonl"  # what a folder of curated data has
COMMIT = "Upload by srd push"


@dataclass(frozen=True)
class Upload:
    """What goes to the hub.

    Attributes:
        repository: ``OWNER/NAME``.
        kind: ``model`` or ``dataset``.
        files: Name there -> the file here, or its content where that is written for the hub.
        notes: What the person should know before.
    """

    repository: str
    kind: str
    files: dict[str, Path | bytes]
    notes: list[str]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }

    @property
    def address(self) -> str:
        """Where it will be found, a page in a browser."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"


@contextmanager
def prepared(name: str, repository: str, *, data: bool) -> Iterator[Upload]:
    """What `srd push` would upload.

    Args:
        name: A run directory, or the name of one below ``runs``; with ``data`` also a folder of ``srd curate``.
        repository: ``OWNER/NAME``.
        data: The curated training data in place of the student.

    Raises:
        UserError: no such name or run, or nothing to upload yet.
    """
    check_repository(repository)
    folder = run_folder(name)
    if data and folder is None and (Path(name) / ROWS).is_file():
        yield _of_folder(Path(name), repository, "dataset")
        return
    if folder is None:
        other = ", or a folder of srd curate" if data else ""
        raise UserError(f"'{name}' is no run directory{other}: it has no recipe.yaml. Name one, such as runs/demo.")
    recipe = load_recipe(str(folder / "recipe.yaml"))
    if not data:
        with told_if_held(folder):
            upload = _student(folder, student_of(folder, recipe.training.label), repository)
        yield upload
        return
    with tempfile.TemporaryDirectory(prefix="srd-push-") as place:
        with told_if_held(folder):
            run = Run(recipe, folder)
        with closing(run):
            curate_for(run, Path(place) / "curated", "jsonl")
        yield _of_folder(Path(place) / "curated", repository, "dataset")


def check_repository(repository: str) -> None:
    """Refuse what is no name of a repository of somebody.

    Raises:
        UserError: with the form that a name has.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
        wrong = "" if repository.count("/") == 1 else "it names no owner"
    except HFValidationError as error:
        wrong = first_lines(error)
    if wrong:
        raise UserError(
            f"'{repository}' is no name on the hub ({wrong.rstrip('.')}). Give OWNER/NAME: your user name or "
            "organisation, and a name of letters, digits, - and _."
        )


def _student(folder: Path, student: Path, repository: str) -> Upload:
    if not (student / CARD).is_file():
        again = shlex.join(["srd", "run", str(folder / "recipe.yaml"), "--run-dir", str(folder)])
        raise UserError(f"{student} has no model card yet: it is written after the evaluation. Finish the run: {again}")
    found = _of_folder(student, repository, "model")
    text = (student / CARD).read_text(encoding="utf-8")
    notes = []
    if "\nlicense:" not in text.split("\n---", 1)[0]:
        notes.append(
            f"The card names no licence, as the student's starting point states none: add `license: …` to the head of "
            f"{student / CARD} before you make this public."
        )
    title = text.partition("\n# ")[2].partition("\n")[0]
    text = text.replace(HUB_ADDRESS.format(name=title), repository) if title else text
    return Upload(repository, "model", {**found.files, CARD: text.encode("utf-8")}, notes)


def _of_folder(folder: Path, repository: str, kind: str) -> Upload:
    """All files of a folder but hidden ones and our own notes."""
    files: dict[str, Path | bytes] = {str(path.relative_to(folder)): path for path in walk(folder) if path.is_file()}
    return Upload(repository, kind, files, [])


def push(upload: Upload, *, public: bool = False) -> str:
    """Make the repository if there is none, and put the files there in one commit.

    Returns:
        Where it is, a page in a browser.

    Raises:
        UserError: ``HF_HUB_OFFLINE`` is set, there is no token, or it may not write there; the repository is public
            and ``public`` is not said.
        RunError: the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so that nothing is uploaded. Unset it, or look with --dry-run.")
    if get_token() is None:
        raise UserError(
            "there is no token for the hub. Make one that may write at https://huggingface.co/settings/tokens, then "
            "run `hf auth login`, or set HF_TOKEN. --dry-run needs none."
        )
    with _explained(upload):
        api = HfApi()
        named: dict[str, Any] = {"repo_id": upload.repository, "repo_type": upload.kind}
        api.create_repo(**named, private=not public, exist_ok=True)
        if not public and not api.repo_info(**named).private:
            raise UserError(
                f"{upload.repository} is there already and is public. Give --public if everybody may see this, or "
                "another name."
            )
        operations = [
            CommitOperationAdd(name, str(file) if isinstance(file, Path) else file)
            for name, file in upload.files.items()
        ]
        api.create_commit(**named, operations=operations, commit_message=COMMIT)
    return upload.address


@contextmanager
def _explained(upload: Upload) -> Iterator[None]:
    """Say what the hub's refusal, or its silence, means."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise UserError(
                f"the hub does not let this token write to {upload.repository} ({first_lines(error)}) Use a token "
                "that may write, of an account that owns the name: `hf auth login`."
            ) from error
        if 400 <= status < 500:
            raise UserError(f"the hub refuses {upload.repository}: {first_lines(error)}") from error
        raise RunError(f"the hub has failed ({first_lines(error)}) Try the same command again.") from error
    except (getattr(errors, "HTTPError", OSError), ConnectionError) as error:  # of httpx, whatever it is called
        raise RunError(
            f"{upload.address} cannot be reached: {first_lines(error)} Nothing was made public, and no file is lost. "
            "Check the network, and try the same command again."
        ) from error
