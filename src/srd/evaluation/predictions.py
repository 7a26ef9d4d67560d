"""The answers of an evaluation on disk: what they are called, whether they are whole, and which files belong together.

A folder of an evaluation holds ``predictions/<model>.<task>.<seed>.jsonl``, beside each its ``.scores.json``, the index
of both, and the summaries that are made from them. The index lists what was written here: nothing else is read, and
nothing else is ever removed, but for ``predictions/batches``: answers of files that are not whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from srd.base.errors import UserError
from srd.base.files import (
    discard,
    file_digest,
    fingerprint,
    link,
    read_json,
    write_json,
    write_json_lines,
)
from srd.base.ours import strangers

PREDICTIONS, INDEX, UNFINISHED = "predictions", "index.json", "batches"
METRICS, DETAILS, COMPARISONS, SAMPLES = "metrics.json", "details.json", "comparisons.json", "train_samples.jsonl"
FORMER = "former"  # results that another one has taken the place of, numbered
LAST = "last"  # among these, while it is not known yet what of it is lost
SUMMARIES = (METRICS, DETAILS, COMPARISONS, SAMPLES)

logger = logging.getLogger(__name__)

State = Literal["kept", "other", "damaged", "missing"]


def predictions_path(folder: Path, model: str, task: str, seed: int | str) -> Path:
    """File of one model's answers to one task with one seed."""
    return folder / PREDICTIONS / f"{_stem(model, task)}{seed}.jsonl"


def _stem(model: str, task: str) -> str:
    """How the names of one model's answers to one task begin."""
    return f"{model}.{task.replace(':', '-')}."


def scores_path(path: Path) -> Path:
    """File of the scores of such answers."""
    return path.with_suffix(".scores.json")


def unfinished(path: Path, question: str) -> Path:
    """Folder of the batches that are done of a file of answers to a question, until it is whole."""
    return path.parent / UNFINISHED / question


def clashing(tasks: Sequence[str]) -> str | None:
    """The first task whose files would be those of one before it; None where each has its own."""
    stems: set[str] = set()
    for task in tasks:
        stem = task.replace(":", "-").casefold()
        if stem in stems:
            return task
        stems.add(stem)
    return None


# --------------------------------------------------------------------------------------------------- one pair of files


def write_answers(path: Path, rows: Iterable[dict[str, Any]], scores: dict[str, Any], identity: str) -> None:
    """Keep answers with their scores; the scores' file is written last and says that both are whole."""
    begin_writing(path)
    write_json_lines(path, rows)
    content = {"fingerprint": identity, **scores, "predictions": file_digest(path)}
    write_json(scores_path(path), {**content, "digest": fingerprint(content)})


def state_of(path: Path, identity: str) -> State:
    """Whether answers can be kept.

    Returns:
        kept: whole, and made from what ``identity`` stands for; other: made from something else; damaged: changed or
        cut since they were written; missing: neither answers nor scores are there.
    """
    if not path.exists() and not scores_path(path).exists():
        return "missing"
    scores = read_scores(path)
    if scores is None:
        return "damaged"
    return "kept" if scores.get("fingerprint") == identity and "predictions" in scores else "other"


def read_scores(path: Path) -> dict[str, Any] | None:
    """The scores of a file of answers; None unless both are there, and as they were written.

    Files of versions that kept no digests are taken as they are.
    """
    try:
        content = json.loads(scores_path(path).read_text(encoding="utf-8"))
        digest = content.pop("digest", None)
        if digest is not None or "predictions" in content:
            return content if digest == fingerprint(content) and content["predictions"] == file_digest(path) else None
        return content if path.is_file() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def read_answers(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a file of answers; None where there is none, or it is not as it was when it was scored."""
    try:
        if scores_path(path).exists() and read_scores(path) is None:
            return None
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
    except (OSError, ValueError, RecursionError):
        return None
    return rows if all(isinstance(row, dict) and "id" in row for row in rows) else None


# ---------------------------------------------------------------------------------------------------------- the folder


def listed(folder: Path) -> list[str]:
    """Names of the files of answers that were written here, by the folder's index."""
    try:
        content = read_json(folder / PREDICTIONS / INDEX, {})
        names = [name for name in content.get("files", []) if isinstance(name, str)]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return []
    return [name for name in names if Path(name).name == name and name.endswith(".jsonl")]  # never out of the folder


def evaluation_files(folder: Path) -> list[Path]:
    """All files that an evaluation consists of: summaries, index, answers and scores."""
    answers = [folder / PREDICTIONS / name for name in listed(folder)]
    return [file for file in _files(folder, answers) if file.is_file()]


def _files(folder: Path, answers: Iterable[Path]) -> list[Path]:
    """The files of an evaluation with these files of answers, whether they are there or not."""
    files = [folder / name for name in SUMMARIES] + [folder / PREDICTIONS / INDEX]
    return files + [file for path in answers for file in (path, scores_path(path))]


def begin_writing(path: Path) -> None:
    """Before answers change: list their file as ours, and forget the summaries, which tell of the former ones."""
    folder, names = path.parent.parent, listed(path.parent.parent)
    for name in SUMMARIES:
        discard(folder / name)
    if path.name not in names:
        _write_index(folder, [*names, path.name])


def finish(folder: Path, paths: Sequence[Path], metrics: dict[str, Any], details: dict[str, Any]) -> None:
    """Write what an evaluation comes to, and remove what earlier ones have left: answers and summaries."""
    for name in SUMMARIES:
        discard(folder / name)
    wanted = [path.name for path in paths]
    for name in listed(folder):
        if name not in wanted:
            discard(folder / PREDICTIONS / name)
            discard(scores_path(folder / PREDICTIONS / name))
    discard(folder / PREDICTIONS / UNFINISHED)  # of questions that nobody has come back to
    _write_index(folder, wanted)
    write_json(folder / DETAILS, details)
    write_json(folder / METRICS, metrics)


def put_aside(folder: Path) -> None:
    """Keep a whole result beside what takes its place, until `settle`; what a kill has left is settled before."""
    settle(folder)
    if _scores_in(folder):
        for file in evaluation_files(folder):
            link(file, folder / FORMER / LAST / file.relative_to(folder))


def settle(folder: Path) -> None:
    """Number a result that was put aside and says what the present one does not, and tell of it; else it goes.

    Answers count as well as scores: others may come to the same numbers. While there is no whole result, it waits.
    """
    former, now = folder / FORMER / LAST, _scores_in(folder)
    if not now:
        return
    others = [name for name in listed(former) if _digest(former, name) not in (None, _digest(folder, name))]
    lost = [
        f"{model} on {task}"
        for (model, task), scores in _scores_in(former).items()
        if now.get((model, task)) != scores or any(name.startswith(_stem(model, task)) for name in others)
    ]
    if lost:
        numbers = [int(path.name) for path in former.parent.glob("*") if path.name.isdecimal()]
        place = former.replace(former.parent / str(max(numbers, default=0) + 1))
        logger.info("the former result (%s) is kept in %s", ", ".join(lost), place)
    else:
        discard(former, evaluation_files(former))
        with contextlib.suppress(OSError):  # there are others, or none
            former.parent.rmdir()


def _digest(folder: Path, name: str) -> str | None:
    """The digest of a file of answers; None where it is not there, or not whole."""
    return (read_scores(folder / PREDICTIONS / name) or {}).get("predictions")


def _scores_in(folder: Path) -> dict[tuple[str, str], Any]:
    """The scores of a result by model and task; none where there is no result that can be read."""
    try:
        results = read_json(folder / METRICS, {})
        return {(model, task): scores for model, tasks in results.items() for task, scores in tasks.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _write_index(folder: Path, names: Sequence[str]) -> None:
    write_json(folder / PREDICTIONS / INDEX, {"files": list(names)})


def check_folder(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse a folder that holds, under the names that would be written, what no evaluation has written.

    Raises:
        UserError: there is one; nothing has been touched.
    """
    ours = set(listed(folder))
    known = (folder / PREDICTIONS / INDEX).is_file()
    answers = [file for path in paths if path.name not in ours for file in (path, scores_path(path))]
    summaries = [] if known else [folder / name for name in SUMMARIES]
    place = folder / PREDICTIONS
    odd = [place] if place.exists() and not place.is_dir() else []
    for file in [*odd, *summaries, *answers]:
        if file.exists() or file.is_symlink():
            raise UserError(
                f"{file} would be overwritten, but was not written by an evaluation. Move it away, or choose another "
                "-o folder."
            )
    refuse_folders(folder, paths)


def refuse_folders(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse a folder that stands where a file is to go, and what is not ours where finished batches lie.

    Raises:
        UserError: there is one; nothing has been touched.
    """
    for file in _files(folder, paths):
        if file.is_dir():
            raise UserError(f"{file} is a folder, but a file is to be written there. Move it away.")
    for stranger in strangers(folder / PREDICTIONS / UNFINISHED):
        raise UserError(f"{stranger} lies where answers are kept until they are whole. Move it away.")
