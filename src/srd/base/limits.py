"""Ranges that several rooms share."""

from __future__ import annotations

TEMPERATURES = (1e-3, 1e3)  # of a softmax in float32: below, logits grow out of their range; above, they are all alike
HOTTEST_SAMPLING = 100.0
CHUNK_BYTES = 48 << 20  # one chunk of float32 logits: large enough for the matrix product to be efficient
LARGEST_K = 1e9  # of the rank fusion: beyond, all ranks weigh the same


def temperature_problem(value: float) -> str | None:
    """Why a divergence cannot have this temperature; None where it can."""
    low, high = TEMPERATURES
    fits = isinstance(value, int | float) and low <= value <= high
    return None if fits else f"must be a number between {low:g} and {high:g}"


def sampling_problem(value: float) -> str | None:
    """Why text cannot be sampled at this temperature; None where it can, or where it is 0 (greedy)."""
    if isinstance(value, int | float) and (value == 0 or TEMPERATURES[0] <= value <= HOTTEST_SAMPLING):
        return None
    return f"must be 0 (greedy), or between {TEMPERATURES[0]:g} and {HOTTEST_SAMPLING:g}"
