"""Rows that cannot become examples: found one by one, told all together by reason, and refused or left out."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from srd.base.errors import UserError
from srd.base.files import atomic_write
from srd.base.remedies import warn
from srd.base.text import many

logger = logging.getLogger(__name__)

Example = Mapping[str, Any]
#: Says which examples cannot be used, and why, by their positions.
Check = Callable[[Sequence[dict[str, Any]]], Mapping[int, UserError]]
#: Says which teacher a row has, from the row as it is and its place.
Owner = Callable[[Mapping[str, Any], str], str]

CHECKED_ROWS = 1_000  # examples that are looked at together
SHOWN_PLACES = 3
SHOWN_REASONS = 30
NAMES = ("id", "role", "from", "type")  # fields that tell nothing of what a row says
LEFT_OUT = "srd: left out"  # of a file that was made from rows in memory: what is listed of one that is not in it
FIRST_WORDS = 100  # characters of a row that a list of dropped ones shows
#: What differs between messages about the same fault: what was found, lists and objects, long quotations, numbers.
DIFFERS = re.compile(r"found .*?(?=\. [A-Z]|\.?$)|\(.*?\)|\[.*?\]|\{.*?\}|'[^']{30,}'|\d+", re.DOTALL)


def mark_of(column: str, row: Mapping[str, Any], place: str) -> str:
    """What a row has in the column that says who teaches it.

    Raises:
        UserError: it has nothing there.
    """
    if row.get(column) is None:
        found = ", ".join(sorted(map(str, row))) or "nothing"
        raise UserError(
            f"{place}: there is no {column!r}, which says whose the row is. Found: {found}. Set "
            "data.teacher_column, or leave `rows` out of the teachers."
        )
    return str(row[column])


class RowError(UserError):
    """A row that cannot even be read, though those behind it can.

    Attributes:
        text: how it begins.
    """

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text


@dataclass
class _Reason:
    """One fault: the first message about it, how many rows have it, and the first of them."""

    message: str
    count: int = 0
    places: list[str] = field(default_factory=list)


class BadRows:
    """Collects the rows that cannot become examples.

    Args:
        action: ``error`` refuses them when all have been looked at; ``drop`` goes on without them.
        of_recipe: whether they are a recipe's, whose ``data.bad_rows`` is the action.

    Attributes:
        good: how many rows became examples.
        count: how many cannot.
    """

    def __init__(self, action: Literal["error", "drop"] = "error", *, of_recipe: bool = False) -> None:
        self.action, self.of_recipe = action, of_recipe
        self.good = self.count = 0
        self._reasons: dict[str, _Reason] = {}
        self._digest = hashlib.blake2b(digest_size=16)
        self._records = tempfile.SpooledTemporaryFile(1 << 20, "w+b", prefix="srd-dropped-")  # noqa: SIM115

    def add(self, place: str, row: Any, error: UserError, name: str | None = None) -> None:
        """Note a row.

        Args:
            place: file and line.
            row: what it holds; None where it cannot be read.
            error: why it cannot become an example.
            name: its id, where it has one.
        """
        message, fault = _without_place(str(error), place, name), error.fault
        if name is None and isinstance(row, Mapping) and isinstance(row.get("id"), str | int):
            name = str(row["id"])
        text = error.text if isinstance(error, RowError) else " ".join(_texts(row))
        words = " ".join(text[: 4 * FIRST_WORDS].split())[:FIRST_WORDS]
        record = {"place": place, "id": name, "reason": message, "row": words}
        if isinstance(row, Mapping) and isinstance(row.get(LEFT_OUT), Mapping):
            record, fault = {**record, **row[LEFT_OUT]}, ""
            place, message = str(record["place"]), str(record["reason"])
        reason = self._reasons.setdefault(fault or DIFFERS.sub("…", message), _Reason(message))
        reason.count += 1
        reason.places += [place] if len(reason.places) < SHOWN_PLACES else []
        self.count += 1
        self._records.write(_line(record))
        self._digest.update(_line({**record, "place": Path(place).name}))  # wherever the files lie

    def lose(self, place: str, row: Any, error: UserError, name: str | None) -> None:
        """Note a row that was taken for good."""
        self.good -= 1
        self.add(place, row, error, name)

    @property
    def digest(self) -> str:
        """What stands for the rows that are left out; empty where there are none."""
        return self._digest.hexdigest() if self.count else ""

    def nothing_left(self, origin: str) -> UserError:
        """What is wrong with a source none of whose rows can become an example."""
        names = (
            "\nThe first line of such a file names its columns, such as instruction,output: add one if it is missing."
        )
        table = {".csv", ".tsv", ".tab"} & {suffix.lower() for suffix in Path(origin).suffixes}
        return UserError(f"{origin}: none of its rows can become an example.\n{self.told()}{names if table else ''}")

    def settle(self) -> None:
        """All rows have been looked at: refuse the bad ones, or say what goes on without them.

        Raises:
            UserError: there are bad rows and they are not to be dropped.
        """
        if not self.count:
            return
        found = f"{self.count:,} of {self.good + self.count:,} rows cannot become examples"
        if self.action == "error":
            remedy = "; or data.bad_rows=drop goes on without them, and lists them in examples/dropped.jsonl"
            raise UserError(f"{found}.\n{self.told()}\nCorrect or remove them{remedy if self.of_recipe else ''}.")
        where = " (examples/dropped.jsonl)" if self.of_recipe else ""
        what = f"{found} and are left out{where}.\n{self.told()}\n"
        warn(logger, what, "Correct these rows, or go on without them.")

    def write(self, path: Path) -> None:
        """Write what was left out, as JSON lines: place, id, reason, and the first words of the row."""
        self._records.seek(0)
        with atomic_write(path) as partial, open(partial, "wb") as file:
            shutil.copyfileobj(self._records, file)

    def lines(self) -> Iterator[bytes]:
        """What was left out, for a file of rows: whoever reads that leaves it out again, for the same reasons."""
        self._records.seek(0)
        yield from (_line({LEFT_OUT: json.loads(line)}) for line in self._records)

    def told(self) -> str:
        """A line for every reason, the most frequent first."""
        reasons = sorted(self._reasons.values(), key=lambda reason: -reason.count)
        lines = [
            f"  {reason.count:,} × {', '.join(reason.places)}{', …' * (reason.count > len(reason.places))}: "
            f"{reason.message}"
            for reason in reasons[:SHOWN_REASONS]
        ]
        if rest := reasons[SHOWN_REASONS:]:
            lines.append(f"  {sum(reason.count for reason in rest):,} × {many(len(rest), 'other reason')}")
        return "\n".join(lines)


def without_refused(
    rows: Sequence[dict[str, Any]], places: Sequence[str], check: Check | None, bad: BadRows
) -> list[int]:
    """The positions of the examples that can be used; the others are noted."""
    refused: dict[int, UserError] = {}
    if check is not None:
        for start in range(0, len(rows), CHECKED_ROWS):
            found = check(rows[start : start + CHECKED_ROWS])
            refused.update({start + position: error for position, error in found.items()})
    for position, error in sorted(refused.items()):
        row = rows[position]
        bad.add(places[position], content_of(row), error, row["id"])
    bad.good += len(rows) - len(refused)
    return [position for position in range(len(rows)) if position not in refused]


def content_of(example: Example) -> list[Any]:
    """What an example says, for its record."""
    return [example["instruction"], example["input"], example["references"]]


def _without_place(message: str, place: str, name: str | None) -> str:
    for start in (f"{place}: ", f"example '{name}': ", f"example {name}: "):
        message = message.removeprefix(start)
    return message


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _texts(value: Any) -> Iterator[str]:
    """The texts in a row, those of its fields one after the other, but for names and kinds."""
    if isinstance(value, str):
        yield value[:FIRST_WORDS]
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in NAMES:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
