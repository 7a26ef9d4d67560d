"""How far each tier of the teacher cache is from SmolLM2-135M, on answers about the standard library, as a table.

python -m benchmarks.tiers
"""

from __future__ import annotations

import random
import tempfile
from typing import Any

import torch

import srd
from srd.models.head import head_weights
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.loading.sources import SMOLLM2
from srd.tasks.pydocs import load_pydocs
from srd.training.cache.tier_error import measure
from srd.training.tiers.base import make_tier

ROWS = 60
TIERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("exact", {"dtype": "float16"}), ("exact", {"dtype": "bfloat16"}), ("int8", {}), ("topk", {"top_k": 512}),
    ("topk", {"top_k": 128}), ("topk", {"top_k": 50}), ("topk", {"top_k": 20}), ("likelihood", {}),
)  # fmt: skip


def main() -> None:
    """Print the table."""
    tokenizer = load_tokenizer(SMOLLM2)
    model: Any = load_model(SMOLLM2, tokenizer=tokenizer)
    rows = random.Random(0).sample(load_pydocs(), ROWS)
    with tempfile.TemporaryDirectory() as folder:
        cache = srd.build_cache(model, tokenizer, rows, folder, dtype="float32", batch_size=4)
        states, targets = cache.sample()
        tokens = [torch.as_tensor(cache.hidden(*cache_row)) for cache_row in _tokens(rows, tokenizer)]
    head = head_weights(model)
    for name, options in TIERS:
        tier = make_tier(name, **options)
        error = measure(tier, states, targets, head, tier.learn(torch.cat(tokens)))
        title = " ".join([f"`{name}`", *map(str, options.values())])
        size = tier.token_bytes(states.shape[1], head.vocabulary)
        print(
            f"| {title} | {size} | {error['mean_kl']:.1e} | {error['p99_kl']:.1e} | {error['mean_tv']:.1e} | "
            f"{error['flips']:.1%} |"
        )


def _tokens(rows: list[dict[str, str]], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    encoded = srd.encode(rows, tokenizer)
    return list(zip(encoded["prompt_ids"], encoded["response_ids"], strict=True))


if __name__ == "__main__":
    main()
