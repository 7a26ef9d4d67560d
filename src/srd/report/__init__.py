"""The report of a run: a self-contained page, and the last screen in the terminal."""

from srd.report.difficulty import examples_to_show
from srd.report.page import build_report
from srd.report.summary import print_summary, summary_lines

__all__ = ["build_report", "examples_to_show", "print_summary", "summary_lines"]
