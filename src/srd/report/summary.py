"""The last screen of a run in the terminal: what was gained, what it cost, where student and report are."""

from __future__ import annotations

from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.panel import Panel
from rich.table import Table as RichTable

from srd.base.text import visible
from srd.report.cleaning import found_sentences
from srd.report.closing import next_steps
from srd.report.comparison import comparison_table, headline, models_of
from srd.report.reading import RunFiles, read_run
from srd.report.tables import Table

#: Columns that eighty characters have no room for; the report has them all.
LEFT_OUT = ("Reflection", "Examples", "Parameters")


def escape(text: str) -> str:
    """Escape text for a console, so that it is shown as it is."""
    return escape_markup(visible(text))


def places(run: RunFiles) -> list[str]:
    """Name the student, the report and the number of warnings, those that there are."""
    student, report = run.files.student(run.main_variant), run.files.report
    lines = [f"Student: {student}"] if student.is_dir() else []
    lines += [f"Report: {report}"] if report.is_file() else []
    if warnings := len(run.manifest.get("warnings") or []):
        lines.append(f"{warnings} warning{'s' if warnings > 1 else ''}: see the end of the report")
    return lines


def print_summary(run_dir: Path, console: Console) -> None:
    """Print the models side by side, what a run came to in plain sentences, and where the results are.

    Raises:
        UserError: ``run_dir`` is no run directory, or one of its files is damaged.
    """
    run = read_run(Path(run_dir))
    models = models_of(run)
    if models:
        console.print()
        console.print(grid(brief(comparison_table(models))))
    console.print()
    for sentence in [*headline(run, models), *found_sentences(run)]:
        console.print(escape(sentence), highlight=False)
    console.print()
    for line in places(run):
        # A path that is folded over two lines cannot be clicked or copied.
        console.print(escape(line), highlight=False, soft_wrap=True)
    print_next_steps(next_steps(run), console)


def print_next_steps(steps: list[tuple[str, str]], console: Console) -> None:
    """Print what to do with the student: in a box on a terminal that has room for it, else a line each."""
    lines = [f"{title + ':':<13}{escape(command)}" for title, command in steps]
    if not lines:
        return
    console.print()
    if console.is_terminal and max(map(cell_len, lines)) + len("│  │") <= console.width:
        box = Panel("\n".join(lines), title="What next?", title_align="left", expand=False, border_style="dim")
        console.print(box, highlight=False)
        return
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def brief(table: Table) -> Table:
    """Leave out what does not fit a terminal: some costs, and of several tasks all scores but the mean."""
    if any(column.title == "Mean" for column in table.columns):
        return table.pick(lambda column: column.title in ("Model", "Mean", "Of the teacher", "Training", "Passes"))
    return table.pick(lambda column: column.title not in LEFT_OUT)


def grid(table: Table) -> RichTable:
    """Lay a table out for the terminal, the best in bold."""
    result = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column, right in zip(table.columns, table.numeric(), strict=True):
        result.add_column(escape(column.title), justify="right" if right else "left")
    for row in table.texts():
        result.add_row(*(f"[bold]{escape(text)}[/bold]" if bold else escape(text) for text, bold in row))
    return result
