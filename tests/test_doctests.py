"""The examples in docstrings of public names."""

from __future__ import annotations

import doctest
import sys

import srd


def test_the_examples_in_docstrings() -> None:
    modules = {getattr(srd, name).__module__ for name in srd.__all__ if hasattr(getattr(srd, name), "__module__")}
    found = [doctest.testmod(sys.modules[name]) for name in sorted(modules)]
    assert sum(result.failed for result in found) == 0
    assert sum(result.attempted for result in found) >= 4
