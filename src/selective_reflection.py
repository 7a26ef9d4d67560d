"""The command ``srd``, started after a look at whose package `srd` is.

The distribution is called selective-reflection; what it brings is imported as `srd`. The distribution that is called
srd on PyPI is another project with the same import name. Where both are installed, one hides the other or has
overwritten its files, and what Python then says does not tell. So this module, whose name is taken by nobody, looks
first. It imports nothing of `srd` before.
"""

from __future__ import annotations

import sys
from importlib import metadata, util
from pathlib import Path

OWN = "Selective Reflection Distillation"  # how the first line of srd/__init__.py begins


def main() -> None:
    """Start the command line, unless `srd` is somebody else's."""
    other = other_distribution()
    if not is_ours():
        print(f"error: {refusal(other)}", file=sys.stderr)
        sys.exit(2)
    if other is not None:
        print(f"warning: {caution(other)}", file=sys.stderr)
    from srd.cli import main as start

    start()


def is_ours() -> bool:
    """Whether the package that Python would import as `srd` is this project's."""
    spec = util.find_spec("srd")
    if spec is None or spec.origin is None:
        return False
    start = Path(spec.origin)
    return (start.parent / "cli.py").is_file() and OWN in start.read_text(encoding="utf-8").partition("\n")[0]


def other_distribution() -> str | None:
    """Name and version of an installed distribution that brings a package `srd` and is not this project."""
    try:
        found = metadata.distribution("srd")
    except metadata.PackageNotFoundError:
        return None
    scripts = {point.value for point in found.entry_points if point.group == "console_scripts"}
    ours = {"srd.cli:main", "selective_reflection:main"}  # an earlier version of this project had that name
    return None if scripts & ours else f"srd {found.version}"


def refusal(other: str | None) -> str:
    """What is wrong where `srd` is not ours, and what to do."""
    whose = f"the distribution '{other}', another project," if other else "something else of that name"
    return (
        f"Python's package 'srd' is not this project's here: {whose} hides it or has overwritten its files. Run pip "
        "uninstall --yes srd selective-reflection, then install selective-reflection again. If you need both, give "
        "each an environment of its own (python -m venv)."
    )


def caution(other: str) -> str:
    """What may go wrong where another distribution has the same import name and ours is found."""
    return (
        f"the distribution '{other}' is installed too. It is another project with the same import name, of which one "
        "hides the other; and to uninstall it may remove files of this one. Give each an environment of its own."
    )
