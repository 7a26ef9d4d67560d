"""A command's own files in a folder of the user's: never over, and never in the place of, what it has not written.

A record in the folder says which files are the command's, each with the digest of what it held; null while it is being
written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from srd.base.errors import UserError
from srd.base.files import file_digest, remove, write_json

REMEDY = "Move it, or choose another -o."


class OwnedFiles:
    """The files that a command has written into a folder.

    Args:
        folder: The user's.
        record: Name of the file in it that lists them.
        command: How messages call the command.
    """

    def __init__(self, folder: Path, record: str, command: str) -> None:
        self.folder = folder
        self.record = folder / record
        self.command = command

    def check(self, names: Iterable[str]) -> None:
        """Refuse to write over, or to remove, what this command has not written itself.

        Args:
            names: What is to be written, as paths below the folder.

        Raises:
            UserError: with the first file that is in the way.
        """
        before = self.known()
        for name in sorted({*names, self.record.name, *before}):
            path = self.folder / name
            self._check_parents(path)
            if not path.exists() and not path.is_symlink():
                continue
            if path.is_symlink() or not path.is_file():
                raise UserError(f"{path} is in the way: it is no plain file. {REMEDY}")
            if path == self.record:
                continue
            if name not in before or before[name] not in (None, file_digest(path)):
                what = "has been changed since" if name in before else f"was not written by {self.command}"
                raise UserError(f"{path} {what} and would be lost. {REMEDY}")

    def _check_parents(self, path: Path) -> None:
        for above in path.parents:
            if above == self.folder:
                return
            if above.is_symlink() or (above.exists() and not above.is_dir()):
                raise UserError(f"{above} is in the way: it is no plain folder. {REMEDY}")

    def known(self) -> dict[str, str | None]:
        """The files that former calls have written, with their digests.

        Raises:
            UserError: there is a record that this command has not written.
        """
        if not self.record.is_file():
            return {}
        try:
            files = json.loads(self.record.read_text(encoding="utf-8"))["files"]
            if not all(self._is_below(name) for name in files):
                raise ValueError("a path that leads elsewhere")
            return dict(files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.record} is not what {self.command} writes. {REMEDY}") from error

    def _is_below(self, name: str) -> bool:
        path = PurePosixPath(name)
        return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name != self.record.name

    def begin(self, names: Iterable[str]) -> None:
        """Note files as ours before they are there, beside those of former calls."""
        write_json(self.record, {"files": {**self.known(), **dict.fromkeys(names)}})

    def finish(self, names: Iterable[str], **more: Any) -> None:
        """Note what the files hold, and remove those of former calls that are none of them.

        Args:
            names: All that is ours now.
            more: What else the record says.
        """
        names = list(names)
        for name in self.known().keys() - set(names):
            remove(self.folder / name)
            for above in (self.folder / name).parents:  # folders that this leaves empty were made for it
                if above == self.folder or any(above.iterdir()):
                    break
                above.rmdir()
        write_json(self.record, {"files": {name: file_digest(self.folder / name) for name in names}, **more})
