"""Alpaca: 52,002 instructions that text-davinci-003 answered; training data, no benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from srd.tasks.base import Hub, Row, Task, register_task


@dataclass(frozen=True)
class AlpacaTask(Task):
    """The published rows, without the 28 that have no output."""

    def convert(self, row: Row, place: str) -> Row | None:
        """Leave out a row without an output."""
        return row if row.get("output") else None


ALPACA = AlpacaTask(
    name="alpaca",
    title="Alpaca",
    licence="CC BY-NC 4.0",
    source="Taori et al. 2023, Stanford Alpaca",
    training=Hub("tatsu-lab/alpaca"),
    splits=("train",),
    size=({"train": 51_974}, 70, 65),
)
register_task("alpaca")(ALPACA)
