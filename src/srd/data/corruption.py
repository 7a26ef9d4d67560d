"""Deliberately damaged training data, to measure whether a method notices.

Responses are swapped, truncated or duplicated; which rows were, stays on record.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from srd.base.errors import UserError
from srd.base.text import many
from srd.metrics.scripts import pieces, places

Example = dict[str, Any]
SHORTEST_KEPT, LONGEST_KEPT = 0.1, 0.5


def corrupt(examples: Dataset, share: float, kinds: Sequence[str], seed: int) -> Dataset:
    """Damage a share of the responses, and record in the column `corruption` how.

    - `swapped`: the response of another damaged row; no row keeps its own.
    - `truncated`: cut after between 10 % and 50 % of its words (of its letters, in a script without spaces).
    - `duplicated`: the row becomes a near copy of an undamaged row: same prompt, response with one small edit.

    Args:
        examples: rows with the columns of `EXAMPLE_FEATURES`.
        share: share of the rows that are damaged, 0 to 1; exactly `round(share * rows)` are.
        kinds: which of the three, each once, in equal parts (earlier kinds take the remainder).
        seed: which rows, and how; depends on the ids, not on the order of the rows.

    Returns:
        As many rows with the same ids in the same order.

    Raises:
        UserError: too few rows that can be damaged in a wanted way.
    """
    total = round(share * len(examples))
    if not total:
        return examples
    generator = random.Random(seed)
    ids = examples["id"]
    order = sorted(range(len(examples)), key=lambda index: ids[index])
    generator.shuffle(order)
    counts = {kind: total // len(kinds) + (place < total % len(kinds)) for place, kind in enumerate(kinds)}
    chosen = _choose_rows(examples, order, counts)
    damaged_rows = {index for indices in chosen.values() for index in indices}
    untouched = [index for index in order if index not in damaged_rows]
    replaced: dict[int, Example] = {}
    for kind, indices in chosen.items():
        for index, example in zip(indices, KINDS[kind](examples, indices, untouched, generator), strict=True):
            replaced[index] = {**example, "id": ids[index], "corruption": kind}
    # Damaged rows are appended and picked from there, so that the others are neither copied nor read.
    damaged = Dataset.from_list(list(replaced.values()), features=examples.features)
    position = {index: len(examples) + place for place, index in enumerate(replaced)}
    picked = [position.get(index, index) for index in range(len(examples))]
    return concatenate_datasets([examples, damaged]).select(picked)


def leave_out(examples: Dataset, which: str, seed: int) -> Dataset:
    """What is left of damaged data for one who knows the damage, and for one who drops as many rows by chance.

    Args:
        examples: What `corrupt` gives.
        which: ``nothing``, ``damaged`` (exactly the rows that were damaged) or ``as_many`` (by chance).
        seed: Of the chance; depends on the ids, not on the order of the rows.
    """
    damaged = [index for index, kind in enumerate(examples["corruption"]) if kind]
    if which == "as_many":
        ids = examples["id"]
        order = sorted(range(len(examples)), key=lambda index: ids[index])
        damaged = random.Random(f"{seed}:leave out").sample(order, len(damaged))
    if which == "nothing" or not damaged:
        return examples
    without = set(damaged)
    return examples.select([index for index in range(len(examples)) if index not in without])


def _choose_rows(examples: Dataset, order: Sequence[int], counts: dict[str, int]) -> dict[str, list[int]]:
    """Pick the rows of each kind; truncation goes first, as it needs responses of two words and more."""
    chosen: dict[str, list[int]] = {}
    taken: set[int] = set()
    for kind in sorted(counts, key=lambda kind: kind != "truncated"):
        chosen[kind] = []
        for index in order:
            if len(chosen[kind]) == counts[kind]:
                break
            long_enough = kind != "truncated" or _can_truncate(examples[index]["references"])
            if index not in taken and long_enough:
                chosen[kind].append(index)
                taken.add(index)
        if len(chosen[kind]) < counts[kind]:
            raise UserError(
                f"corruption kind {kind!r}: {many(counts[kind], 'row')} wanted, but only {len(chosen[kind])} with "
                "a response of two words or more. Lower the share, or leave this kind out."
            )
    return chosen


def _can_truncate(references: Sequence[str]) -> bool:
    return all(len(pieces(reference)) >= 2 for reference in references)


def _swapped(
    examples: Dataset, indices: Sequence[int], untouched: Sequence[int], generator: random.Random
) -> list[Example]:
    """Pass responses on in a circle. Equal responses lie together in it and are jumped over as one block."""
    if not indices:
        return []
    rows = [examples[index] for index in indices]
    texts = [row["references"] for row in rows]
    first_seen = {tuple(text): place for place, text in reversed(list(enumerate(texts)))}
    circle = sorted(range(len(rows)), key=lambda place: first_seen[tuple(texts[place])])
    step = max(sum(text == other for other in texts) for text in texts)
    if 2 * step > len(rows):
        raise UserError(
            f"corruption kind 'swapped': {many(len(rows), 'row')} chosen, {step} of them with the same response, so "
            "that not every row can get another. Raise the share so that more rows are chosen, or leave this kind out."
        )
    swapped: list[Example] = [{} for _ in rows]
    for position, place in enumerate(circle):
        donor = circle[(position + step) % len(circle)]
        swapped[place] = {**rows[place], "references": texts[donor]}
    return swapped


def _truncated(
    examples: Dataset, indices: Sequence[int], untouched: Sequence[int], generator: random.Random
) -> list[Example]:
    rows = [examples[index] for index in indices]
    return [{**row, "references": [_truncate(reference, generator) for reference in row["references"]]} for row in rows]


def _truncate(text: str, generator: random.Random) -> str:
    words = places(text)
    kept = generator.randint(math.ceil(SHORTEST_KEPT * len(words)), math.floor(LONGEST_KEPT * len(words)))
    return text[: words[kept - 1][1]]


def _duplicated(
    examples: Dataset, indices: Sequence[int], untouched: Sequence[int], generator: random.Random
) -> list[Example]:
    if indices and not untouched:
        raise UserError("corruption kind 'duplicated': no row is left to copy from. Lower the share.")
    originals = [examples[untouched[place % len(untouched)]] for place in range(len(indices))]
    return [
        {**original, "references": [_edit(reference, generator) for reference in original["references"]]}
        for original in originals
    ]


def _edit(text: str, generator: random.Random) -> str:
    """Leave out one word of three and more, or else change how the text ends; the result always differs."""
    words = places(text)
    if len(words) >= 3:
        place = generator.randrange(1, len(words))
        return text[: words[place - 1][1]] + text[words[place][1] :]
    stripped = text.rstrip()
    return stripped[:-1] if stripped.endswith(".") and len(stripped) > 1 else f"{stripped}."


KINDS: dict[str, Callable[[Dataset, Sequence[int], Sequence[int], random.Random], list[Example]]] = {
    "swapped": _swapped,
    "truncated": _truncated,
    "duplicated": _duplicated,
}
