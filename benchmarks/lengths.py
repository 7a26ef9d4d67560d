"""How long the measured texts are."""

from __future__ import annotations

import numpy as np

MAX_LENGTH = 512  # prompt and response, as in the paper
MAX_PROMPT = 256
PROMPT_TOKENS, RESPONSE_TOKENS = 72, 80  # means of the dolly profile
SPREAD = (0.6, 0.9)  # standard deviations of the logarithms of the two lengths
SEED = 7


def log_normal_lengths(mean: int, spread: float, longest: int, count: int, stream: int) -> list[int]:
    """Lengths with this mean (to half a token) that none exceeds."""
    standard = np.random.default_rng([SEED, stream]).standard_normal(count)
    level = float(np.log(mean))
    for _ in range(50):  # cutting at the longest lowers the mean, so the level is raised until it fits
        lengths = np.clip(np.exp(level + spread * standard), 4, longest).round()
        level += float(np.log(mean / lengths.mean()))
    return [int(length) for length in lengths]


def dolly_lengths(count: int) -> tuple[list[int], list[int]]:
    """Tokens of prompts and responses, as in an instruction data set."""
    return (
        log_normal_lengths(PROMPT_TOKENS, SPREAD[0], MAX_PROMPT, count, 0),
        log_normal_lengths(RESPONSE_TOKENS, SPREAD[1], MAX_LENGTH - MAX_PROMPT, count, 1),
    )
