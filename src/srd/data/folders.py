"""Which files of a folder belong to which split: as its README says, else as their names say."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from srd.base.errors import UserError, nearest
from srd.base.files import walk
from srd.data.files import bare_name, is_data

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a data set, and in several splits


@dataclass(frozen=True)
class Found:
    """Files by split; of the split "" where nothing says it. Some of a folder's data may be left out."""

    splits: dict[str, list[Path]]
    left_out: list[Path] = field(default_factory=list)


def by_role(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Splits by what they are for: `dev` is the validation split, where none is called so."""
    said = {name: SPLIT_WORDS.get(name.lower(), name) for name in splits}
    alone = {role for role, times in Counter(said.values()).items() if times == 1}
    return {role if role in alone else name: splits[name] for name, role in said.items()}


def is_saved(folder: Path) -> bool:
    """Whether a folder is what `save_to_disk` of the `datasets` library has written."""
    return any((folder / name).is_file() for name in SAVED)


def files_of(folder: Path, config: str | None = None) -> Found:
    """The data files of a folder by split.

    Args:
        folder: with files of rows somewhere in it; a snapshot of a data set on the hub.
        config: one of several configurations, which the README names or that are folders.

    Raises:
        UserError: there are none, no such configuration, or several and none is chosen.
    """
    declared = _configs(folder)
    if declared:
        return _declared(folder, declared[_chosen(folder, config, declared)])
    if config is not None:
        below = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if config not in below:
            known = f"; {nearest(config, below)}" if below else ""
            raise UserError(f"{folder}: its README names no configurations, and there is no folder {config!r}{known}.")
        folder = folder / config
    found = _named(folder)
    if not found.splits:
        raise UserError(
            f"{folder}: there is no file of rows in this folder. Known by their endings are .jsonl, .json, .csv, .tsv, "
            ".parquet and .arrow, compressed or not; give other files by their names."
        )
    return found


def _named(folder: Path) -> Found:
    files = [path for path in walk(folder) if is_data(path)]
    if dead := next((path for path in files if not path.exists()), None):
        raise UserError(
            f"{dead}: this link leads to {dead.readlink()}, where nothing is. Download the file, or remove it."
        )
    return by_name([path for path in files if path.is_file()], folder)


def by_name(files: Iterable[Path], folder: Path) -> Found:
    """Files by the split that their names say, or the names of the folders they are in, below ``folder``."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_in(path, folder), []).append(path)
    unnamed = splits.pop("", [])
    return Found(splits, unnamed) if splits else Found({"": unnamed} if unnamed else {})


def _split_in(path: Path, folder: Path) -> str:
    folders = path.relative_to(folder).parts[:-1]
    for name in (bare_name(path).partition(".")[0], *reversed(folders)):
        words = re.split(r"[^a-z]+", name.lower())
        said = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if len(said) == 1:
            return said.pop()
    return ""


# --------------------------------------------------------------------------------------------------- configurations


def _configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The configurations that a data set's README names in its front matter."""
    readme = folder / "README.md"
    matter = FRONT_MATTER.match(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else None
    try:
        content = yaml.safe_load(matter[1]) if matter else None
    except yaml.YAMLError as error:
        raise UserError(f"{readme}: what stands between the lines of --- is no YAML: {error}.") from error
    listed = content.get("configs") if isinstance(content, dict) else None
    return {
        str(config.get("config_name", "default")): config
        for config in listed or []
        if isinstance(config, dict) and (config.get("data_files") or config.get("data_dir"))
    }


def _chosen(folder: Path, config: str | None, declared: Mapping[str, Mapping[str, Any]]) -> str:
    """The configuration that is asked for, the default one, or the only one."""
    if config is not None:
        if config not in declared:
            raise UserError(f"{folder}: its README has no configuration {config!r}; {nearest(config, declared)}.")
        return config
    default = [name for name, content in declared.items() if content.get("default") or name == "default"]
    if len(declared) > 1 and len(default) != 1:
        raise UserError(
            f"{folder}: its README has several configurations ({', '.join(declared)}). Choose one, as in "
            f"`data.train: {{path: {folder}, config: {next(iter(declared))}}}`."
        )
    return default[0] if default else next(iter(declared))


def _declared(folder: Path, config: Mapping[str, Any]) -> Found:
    """The files of a configuration by split."""
    root = folder / str(config.get("data_dir", ""))
    if not config.get("data_files"):
        return _named(root)
    splits: dict[str, list[Path]] = {}
    for split, pattern in _patterns(config["data_files"]):
        paths = matching(root, pattern)
        if not paths:
            raise UserError(
                f"{folder / 'README.md'} names the files {pattern!r}, but there are none. Download them too."
            )
        splits.setdefault(split, []).extend(paths)
    return by_name(splits[""], folder) if list(splits) == [""] else Found(splits)


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Split and pattern, of every form that a README may have: a pattern, a list of them, or by split."""
    if isinstance(data_files, Mapping):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = (entry.get("split", ""), entry.get("path")) if isinstance(entry, Mapping) else ("", entry)
        yield from ((str(split), str(path)) for path in (paths if isinstance(paths, list) else [paths]))


def matching(root: Path, pattern: str) -> list[Path]:
    """The files that a pattern matches, in the order of their names; `**` is for folders in folders."""
    found = glob.glob(str(root / pattern), recursive=True)
    return [path for path in map(Path, sorted(found)) if path.is_file()]
