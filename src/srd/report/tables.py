r"""Tables as data, and pure functions that write them as Markdown, CSV, LaTeX and HTML.

A cell is text, a number, a ``Measure`` (mean ± standard deviation) or None for "not known". The best cells of
a column are bold in every format that knows bold: those whose *shown* value is the best, so that the reader
never sees one of two equal numbers stand out. That rule is our own; pandas and a template do the writing.

    table = Table(
        columns=[Column("model"), Column("ROUGE-L", best="max")],
        rows=[["KD", Measure(23.3, 0.4)], ["SRD", Measure(24.1, 0.3)]],
    )
    to_markdown(table)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd  # type: ignore[import-untyped]
from markupsafe import Markup

from srd.base.text import visible
from srd.report.html import macro

MISSING = "\N{EN DASH}"
#: Characters of a table that fit a narrow window and a telephone, widest first; between two columns is a gap.
ROOM = {"narrow": 88, "phone": 38}
GAP = 3


@dataclass(frozen=True)
class Measure:
    """A mean and its standard deviation over seeds, ``None`` where there was a single run."""

    mean: float
    std: float | None = None


Cell = str | int | float | Measure | None


@dataclass(frozen=True)
class Column:
    """A column: its title, how numbers are shown, and which end of the scale is best.

    Args:
        title: The heading.
        digits: Decimals of numbers and measures.
        best: ``max`` or ``min`` sets the best shown value in bold; None leaves all plain.
        show: Writes a number in place of ``digits``, for example a duration.
    """

    title: str
    digits: int = 1
    best: Literal["max", "min"] | None = None
    show: Callable[[float], str] | None = None

    @property
    def shows_numbers(self) -> bool:
        """Whether it says how numbers are shown, which a column of texts has no need to."""
        return self.show is not None or self.best is not None or self.digits != 1

    def number(self, value: float) -> str:
        """Return a number as the column shows it, an en dash for what is not finite."""
        if not math.isfinite(value):
            return MISSING
        return self.show(value) if self.show else f"{value:.{self.digits}f}"

    def cell(self, cell: Cell) -> str:
        """Return a cell as text: ``24.1 ± 0.3`` for a measure, an en dash for None."""
        if cell is None or isinstance(cell, str):
            return MISSING if cell is None else cell
        if not isinstance(cell, Measure):
            return self.number(cell)
        mean = self.number(cell.mean)
        return mean if cell.std is None or mean == MISSING else f"{mean} ± {self.number(cell.std)}"


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells; every row has as many cells as there are columns.

    Args:
        columns: The columns, left to right.
        rows: The rows, top to bottom.
        caption: A sentence about the table; Markdown and CSV leave it out.
        outside: Indices of rows that do not compete for the best value, such as the teacher's.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    outside: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        """Refuse a row of another length than the header."""
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {index} has {len(row)} cells, the table has {len(self.columns)} columns: {row!r}"
                )

    def pick(self, keep: Callable[[Column], bool]) -> Table:
        """Return the table with only the columns that ``keep`` says yes to."""
        return self._of_columns([i for i, column in enumerate(self.columns) if keep(column)])

    def without_empty_columns(self) -> Table:
        """Return the table without the columns in which every cell is None."""
        return self._of_columns([i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)])

    def _of_columns(self, kept: Sequence[int]) -> Table:
        rows = [[row[i] for i in kept] for row in self.rows]
        return replace(self, columns=[self.columns[i] for i in kept], rows=rows)

    def numeric(self) -> list[bool]:
        """Say of each column whether it holds numbers (and nothing but numbers and unknowns).

        A column of unknowns alone holds numbers where it says how they are shown.
        """
        columns = [[row[i] for row in self.rows if row[i] is not None] for i in range(len(self.columns))]
        return [
            not any(isinstance(cell, str) for cell in cells) and (bool(cells) or column.shows_numbers)
            for column, cells in zip(self.columns, columns, strict=True)
        ]

    def texts(self) -> Iterator[list[tuple[str, bool]]]:
        """Go through the rows: the text of each cell, and whether it is one of the best."""
        best = best_cells(self)
        for number, row in enumerate(self.rows):
            yield [
                (column.cell(cell), (number, i) in best)
                for i, (cell, column) in enumerate(zip(row, self.columns, strict=True))
            ]


def best_cells(table: Table) -> set[tuple[int, int]]:
    """Find the (row, column) places of the best shown values; a column of equal values has none."""
    places: set[tuple[int, int]] = set()
    for i, column in enumerate(table.columns):
        values: dict[int, float] = {}
        for number, row in enumerate(table.rows if column.best else ()):
            cell = row[i]
            value = cell.mean if isinstance(cell, Measure) else cell
            if number not in table.outside and isinstance(value, int | float) and math.isfinite(value):
                values[number] = value
        texts = {number: column.number(value) for number, value in values.items()}
        if len(set(texts.values())) > 1:
            best = column.number((max if column.best == "max" else min)(values.values()))
            places |= {(number, i) for number, text in texts.items() if text == best}
    return places


def to_markdown(table: Table) -> str:
    """Write a GitHub Markdown table, numbers to the right, the best in bold."""
    lines = [
        "| " + " | ".join(escape_markdown(column.title) for column in table.columns) + " |",
        "|" + "|".join("---:" if right else "---" for right in table.numeric()) + "|",
    ]
    for row in table.texts():
        cells = [f"**{escape_markdown(text)}**" if bold else escape_markdown(text) for text, bold in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Write CSV for machines: unrounded, a measure in two columns (``… mean``, ``… std``), unknown empty."""
    titles: list[str] = []
    columns: list[list[Any]] = []
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        if any(isinstance(cell, Measure) for cell in cells):
            pairs = [(cell.mean, cell.std) if isinstance(cell, Measure) else (cell, None) for cell in cells]
            titles += [f"{column.title} mean", f"{column.title} std"]
            columns += [[mean for mean, _ in pairs], [std for _, std in pairs]]
        else:
            titles.append(column.title)
            columns.append(cells)
    # As objects, or pandas would turn whole numbers beside unknown ones into fractions.
    filled = {number: ["" if cell is None else cell for cell in cells] for number, cells in enumerate(columns)}
    return str(pd.DataFrame(filled, dtype=object).to_csv(header=titles, index=False, na_rep="nan"))


def to_latex(table: Table) -> str:
    """Write a ``booktabs`` tabular, with a caption in a ``table`` environment where the table has one."""
    titles = [escape_latex(column.title) for column in table.columns]
    rows = [[rf"\textbf{{{escape_latex(text)}}}" if bold else escape_latex(text) for text, bold in row]
            for row in table.texts()]  # fmt: skip
    style = pd.DataFrame(rows, columns=range(len(titles))).style.hide(axis="index")
    return str(
        style.format_index(lambda i: titles[i], axis=1).to_latex(
            hrules=True,
            column_format="".join("r" if right else "l" for right in table.numeric()),
            caption=escape_latex(table.caption) or None,
            position_float="centering" if table.caption else None,
        )
    )


def to_html(table: Table) -> Markup:
    """Write an HTML table in a scrolling box; the first cell of a row is its heading; spreads are paler."""
    texts = list(table.texts())
    columns = [
        (column.title, "number" if right else "text")
        for column, right in zip(table.columns, table.numeric(), strict=True)
    ]
    rows = [
        [
            (*(text.split(" ± ", 1) if isinstance(cell, Measure) and " ± " in text else (text, "")), bold)
            for cell, (text, bold) in zip(row, own, strict=True)
        ]
        for row, own in zip(table.rows, texts, strict=True)
    ]
    widths = [max([len(column.title), *(len(own[i][0]) for own in texts)]) for i, column in enumerate(table.columns)]
    characters = sum(widths) + GAP * len(widths) if texts else 0
    scrolls = next((name for name, room in ROOM.items() if characters > room), "")
    return macro("macros.j2", "table", columns=columns, rows=rows, caption=table.caption, scrolls=scrolls)


def escape_markdown(text: str) -> str:
    """Keep a cell on its line and in its column, and its characters literal."""
    text = visible(text)
    for character in "\\`*_[]<":
        text = text.replace(character, "\\" + character)
    return " ".join(text.replace("|", "\\|").split())


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": r"$-$",
    MISSING: "--",
} | {character: "\\" + character for character in "&%$#_{}"}


def escape_latex(text: str) -> str:
    """Replace each character that LaTeX would read as a command."""
    return "".join(LATEX.get(character, character) for character in visible(text))
