"""pass@k, and bootstraps of differences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from srd.metrics.common import FloatArray

CONFIDENCE = 0.95  # share of the resamples inside an interval
# Elements of one block of bootstrap indices (64-bit): 32 MB.
_BOOTSTRAP_BLOCK = 4_000_000


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> FloatArray:
    """Estimate, without bias, the chance that one of ``k`` samples is right: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code".

    Args:
        n: samples drawn for each problem, [N] or a number.
        c: right ones among them, [N] or a number.
        k: at most the smallest ``n``.

    Returns:
        The estimate for each problem, in the shape of ``n`` and ``c`` together.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    total, right = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64))
    if np.any((right < 0) | (right > total)):
        raise ValueError("c, the number of right samples, must lie between 0 and n")
    if k < 1 or np.any(total < k):
        raise ValueError(f"k is {k}: pass@k needs k >= 1 and at least k samples a problem")
    # C(n-c, k) / C(n, k) as a product of k factors: no factorial, so nothing overflows.
    draws = np.arange(k)
    factors = np.clip(total[..., None] - right[..., None] - draws, 0, None) / (total[..., None] - draws)
    return np.asarray(1.0 - factors.prod(axis=-1), dtype=np.float64)


def paired_bootstrap(
    scores_a: ArrayLike, scores_b: ArrayLike, *, samples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Compare two systems on the same examples by resampling the examples (Koehn 2004).

    Args:
        scores_a: the first system's score of each example, [N].
        scores_b: the second system's, [N], in the same order. Average over seeds first.
        samples: bootstrap resamples.
        seed: of the random generator; equal seeds give equal intervals.

    Returns:
        ``(difference, low, high)``: mean of a minus mean of b, and the 95 % percentile interval around it.

    Raises:
        ValueError: the arrays are empty, not one-dimensional, or of different lengths.
    """
    first, second = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"scores of shape {first.shape} and {second.shape}: give two equally long lists, one score an example"
        )
    return macro_bootstrap([[first - second]], [[None]], samples=samples, seed=seed)


def macro_bootstrap(
    differences: Sequence[Sequence[FloatArray]],
    asked: Sequence[Sequence[Hashable]],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Compare two systems on several tasks, each with several trainings, by resampling what the difference averages.

    The difference is the mean over tasks of the mean over trainings of the mean over examples. Trainings are drawn
    first (all tasks of a training together), then examples within each task; the tasks are the ones that are meant and
    are not drawn. A training moves all its examples together, so it counts as one; the random numbers of an answer are
    the example's own, and come with it.

    Args:
        differences: ``[task][training]`` -> first system's scores minus the second's, [N] by example.
        asked: ``[task][training]`` -> what stands for the examples; trainings that were asked the same ones are
            resampled together.
        samples: bootstrap resamples.
        seed: of the random generator; equal seeds give equal intervals.

    Returns:
        ``(difference, low, high)``: the percentile interval holds the difference.
    """
    trainings = len(differences[0])
    difference = float(np.mean([np.mean([own.mean() for own in task]) for task in differences]))
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    # Blocks keep the index matrix small, so that 10,000 examples x 10,000 samples need 32 MB, not 800 MB.
    rows = max(1, _BOOTSTRAP_BLOCK // max(own.size for task in differences for own in task))
    for start in range(0, samples, rows):
        count = min(start + rows, samples) - start
        weights = np.ones((count, 1))
        if trainings > 1:
            drawn = generator.integers(trainings, size=(count, trainings))
            weights = (drawn[:, :, None] == np.arange(trainings)).mean(axis=1)  # [count, trainings]
        total = np.zeros(count)
        for task, keys in zip(differences, asked, strict=True):
            picks: dict[Hashable, Any] = {}
            for number, (own, key) in enumerate(zip(task, keys, strict=True)):
                if key not in picks:
                    picks[key] = generator.integers(own.size, size=(count, own.size))
                total += weights[:, number] * own[picks[key]].mean(axis=1)
        means[start : start + count] = total / len(differences)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return difference, min(float(low), difference), max(float(high), difference)  # rounding must not leave it outside
