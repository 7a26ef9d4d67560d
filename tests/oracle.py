"""A stand-in for a language model that has read: it expects what the prompt names, and an end behind a full stop."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

NOUNS = [
    f"{a}{b}{c}" for a in ("ba", "do", "fi", "gu") for b in ("la", "mo", "ri", "tu") for c in ("k", "n", "s", "x", "z")
]
KINDS = ("small", "large", "old", "new", "round", "flat", "bright", "dark")
PLACES = ("river", "forest", "desert", "harbour", "valley", "island", "meadow", "canyon")


def noun_rows(count: int = 80, seed: int = 0) -> list[dict[str, Any]]:
    """Questions about things that are each named in their answer; no two rows are alike."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        noun, other = NOUNS[number % len(NOUNS)], draw.choice(NOUNS)
        kind, place = draw.choice(KINDS), draw.choice(PLACES)
        rows.append({
            "id": f"row-{number:03d}",
            "instruction": f"What is the {noun} number {number} of the {place}?",
            "output": f"The {noun} of the {place} is a {kind} thing. It lives in {other} and eats {number} leaves.",
        })  # fmt: skip
    return rows


def oracle_losses(model: Any, tokenizer: Any, pairs: Any, **options: Any) -> tuple[Any, Any]:
    """In the place of `srd.curation.likelihoods.pair_losses`."""
    totals, lasts = np.zeros(len(pairs.which)), np.zeros(len(pairs.which))
    prompts: dict[int, set[str]] = {}
    for place, (prompt, response) in enumerate(pairs.which.tolist()):
        if prompt not in prompts:
            prompts[prompt] = set(tokenizer.decode(pairs.prompts[prompt]).replace("?", " ").split())
        words = tokenizer.decode(pairs.responses[response], skip_special_tokens=True).split()
        noise = random.Random(str((words, sorted(prompts[prompt])))).random()
        end = (0.2 if words and words[-1].endswith(".") else 5.0) + noise
        totals[place] = sum(1.0 if word in prompts[prompt] else 4.0 for word in words) + noise + end
        lasts[place] = end
    return totals, lasts
