"""Marks of tests that need what not every machine has."""

from __future__ import annotations

import pytest

from srd.sandbox.outside import problem

#: A machine with Python, make and PyPI alone has no bubblewrap; programs are not run there, and neither are these.
needs_bubblewrap = pytest.mark.skipif(problem() is not None, reason=str(problem()))
