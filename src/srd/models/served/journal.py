"""What was answered, kept line by line as it comes, so that nobody is asked twice for it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from srd.base.files import disk_errors


class Journal:
    """Answers by key in JSON-lines files that only grow; a line that a kill has torn is left out.

    Values are read from the file where they are asked for: of a million answers only their places are in memory.

    Args:
        path: This process's file; those beside it with the same beginning of the name, which other processes write,
            are read as well.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = sorted({path, *path.parent.glob(f"{path.stem.rpartition('-')[0]}-*{path.suffix}")})
        self._places: dict[str, tuple[Path, int]] = {}
        for file in self.files:
            self._read(file)

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        with open(path, "rb") as file:
            place = 0
            for line in file:
                with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
                    self._places[json.loads(line)["key"]] = (path, place)
                place += len(line)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Any:
        path, place = self._places[key]
        with open(path, "rb") as file:
            file.seek(place)
            return json.loads(file.readline())["value"]

    def add(self, key: str, value: Any) -> None:
        """Keep an answer."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                place = file.tell()
                if place and not _ends_in_newline(self.path):  # torn by a kill
                    file.write(b"\n")
                    place += 1
                file.write(json.dumps({"key": key, "value": value}).encode() + b"\n")
        self._places[key] = (self.path, place)

    def remove(self) -> None:
        """Forget everything: it is kept elsewhere by now."""
        for file in self.files:
            file.unlink(missing_ok=True)


def _ends_in_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
