r"""Tables as data, and pure functions that write them as Markdown, CSV, LaTeX and HTML.

A cell is text, a number, a ``Measure`` (mean ± standard deviation) or None for "not known". The best cells of
a column are bold in every format that knows bold: those whose *shown* value is the best, so that the reader
never sees one of two equal numbers stand out.

    table = Table(
        columns=[Column("model"), Column("ROUGE-L", best="max")],
        rows=[["KD", Measure(23.3, 0.4)], ["SRD", Measure(24.1, 0.3)]],
    )
    to_markdown(table)
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from srd.base.text import escape_html as escape
from srd.base.text import visible


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
        return self.of_columns([i for i, column in enumerate(self.columns) if keep(column)])

    def without_empty_columns(self) -> Table:
        """Return the table without the columns in which every cell is None."""
        filled = [i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)]
        return self.of_columns(filled)

    def of_columns(self, kept: Sequence[int]) -> Table:
        """Return the table with the columns at these places, in this order."""
        rows = [[row[i] for i in kept] for row in self.rows]
        return Table([self.columns[i] for i in kept], rows, self.caption, self.outside)


MISSING = "\N{EN DASH}"


def to_markdown(table: Table) -> str:
    """Write a GitHub Markdown table, numbers to the right, the best in bold."""
    numeric = [is_numeric(table, column) for column in range(len(table.columns))]
    header = "| " + " | ".join(escape_markdown(column.title) for column in table.columns) + " |"
    rule = "|" + "|".join("---:" if right else "---" for right in numeric) + "|"
    lines = [header, rule]
    bold = best_cells(table)
    for row_index, row in enumerate(table.rows):
        cells = [escape_markdown(shown(cell, column)) for cell, column in zip(row, table.columns, strict=True)]
        cells = [f"**{text}**" if (row_index, i) in bold else text for i, text in enumerate(cells)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Write CSV for machines: unrounded, a measure in two columns (``… mean``, ``… std``), unknown empty."""
    measured = [any(isinstance(row[i], Measure) for row in table.rows) for i in range(len(table.columns))]
    header: list[str] = []
    for column, is_measure in zip(table.columns, measured, strict=True):
        header += [f"{column.title} mean", f"{column.title} std"] if is_measure else [column.title]
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        values: list[str | int | float | None] = []
        for cell, is_measure in zip(row, measured, strict=True):
            if isinstance(cell, Measure):
                values += [cell.mean, cell.std]
            else:
                values += [cell, None] if is_measure else [cell]
        writer.writerow(["" if value is None else value for value in values])
    return output.getvalue()


def to_latex(table: Table) -> str:
    """Write a ``booktabs`` tabular, with a caption in a ``table`` environment where the table has one."""
    numeric = [is_numeric(table, column) for column in range(len(table.columns))]
    bold = best_cells(table)
    lines = [
        r"\begin{tabular}{" + "".join("r" if right else "l" for right in numeric) + "}",
        r"\toprule",
        " & ".join(escape_latex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for row_index, row in enumerate(table.rows):
        cells = [escape_latex(shown(cell, column)) for cell, column in zip(row, table.columns, strict=True)]
        cells = [rf"\textbf{{{text}}}" if (row_index, i) in bold else text for i, text in enumerate(cells)]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.caption:
        caption = rf"\caption{{{escape_latex(table.caption)}}}"
        lines = [r"\begin{table}", r"\centering", *lines, caption, r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """Write an HTML table in a scrolling box; the first cell of a row is its heading; all is escaped."""
    numeric = [is_numeric(table, column) for column in range(len(table.columns))]
    bold = best_cells(table)
    css_class = ['class="number"' if right else 'class="text"' for right in numeric]
    head = "".join(
        f'<th scope="col" {css_class[i]}>{escape(column.title)}</th>' for i, column in enumerate(table.columns)
    )
    body = []
    for row_index, row in enumerate(table.rows):
        cells = []
        for i, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
            text = html_cell(cell, column)
            text = f"<strong>{text}</strong>" if (row_index, i) in bold else text
            tag = 'th scope="row"' if i == 0 else "td"
            cells.append(f"<{tag} {css_class[i]}>{text}</{tag.split()[0]}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    # The caption stands outside the box, or it would scroll away with a wide table on a narrow screen.
    caption = f'<p class="note">{escape(table.caption)}</p>' if table.caption else ""
    return (
        f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{caption}"
    )


def shown(cell: Cell, column: Column) -> str:
    """Return a cell as text: ``24.1 ± 0.3`` for a measure, an en dash for None and for what is not finite."""
    if cell is None:
        return MISSING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Measure):
        mean = shown_number(cell.mean, column)
        return mean if cell.std is None or mean == MISSING else f"{mean} ± {shown_number(cell.std, column)}"
    return shown_number(cell, column)


def shown_number(number: float, column: Column) -> str:
    """Return a number as the column shows it."""
    if not math.isfinite(number):
        return MISSING
    return column.show(number) if column.show else f"{number:.{column.digits}f}"


def html_cell(cell: Cell, column: Column) -> str:
    """Return the escaped text of a cell, the spread set apart so that it can be printed paler."""
    text = escape(shown(cell, column))
    mean, separator, std = text.partition(" ± ") if isinstance(cell, Measure) else (text, "", "")
    return f'{mean}<span class="spread"> ± {std}</span>' if separator else mean


def best_cells(table: Table) -> set[tuple[int, int]]:
    """Find the (row, column) places of the best shown values; a column of equal values has none."""
    places: set[tuple[int, int]] = set()
    for i, column in enumerate(table.columns):
        if column.best is None:
            continue
        values = {
            row_index: value
            for row_index, row in enumerate(table.rows)
            if row_index not in table.outside and (value := mean_of(row[i])) is not None
        }
        if len({shown_number(value, column) for value in values.values()}) < 2:
            continue
        best = shown_number((max if column.best == "max" else min)(values.values()), column)
        places |= {(row_index, i) for row_index, value in values.items() if shown_number(value, column) == best}
    return places


def mean_of(cell: Cell) -> float | None:
    """Return the number a cell competes with: a measure's mean, a finite number, None for anything else."""
    number = cell.mean if isinstance(cell, Measure) else cell
    return number if isinstance(number, int | float) and math.isfinite(number) else None


def is_numeric(table: Table, column: int) -> bool:
    """Say whether a column holds numbers (and nothing but numbers and unknowns)."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    return bool(cells) and not any(isinstance(cell, str) for cell in cells)


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
