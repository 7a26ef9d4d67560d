"""One difficulty from several ranks. In each rank 1 is the easiest, and so is the lowest difficulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srd.base.handed import check_call
from srd.base.registry import Registry

Ranks = NDArray[np.float64]  # [N], from 1
Fusion = Callable[[Sequence[Ranks], float], Ranks]


def _check(name: str, fusion: Any) -> None:
    check_call(f"the fusion '{name}'", fusion, "ranks", "k")


FUSIONS: Registry[Fusion] = Registry("fusion", "srd.curation.fusion", check=_check)


@FUSIONS.register("rrf")
def reciprocal_rank_fusion(ranks: Sequence[Ranks], k: float) -> Ranks:
    """Σ 1 / (k + rank), negated (Cormack et al. 2009, as in SRD, arXiv 2508.06135)."""
    return -rrf(ranks, k)


@FUSIONS.register("mean_rank")
def mean_rank(ranks: Sequence[Ranks], k: float) -> Ranks:
    """The mean rank (Borda's count)."""
    return np.mean(ranks, axis=0)


@FUSIONS.register("max_rank")
def max_rank(ranks: Sequence[Ranks], k: float) -> Ranks:
    """The worst rank: an example is as hard as the score that finds it hardest."""
    return np.max(ranks, axis=0)


def rrf(ranks: Sequence[Ranks], k: float) -> Ranks:
    """Σ 1 / (k + rank): the easiest has the highest. The smallest first: the same ranks by other scores are a tie."""
    first, *others = np.sort([1 / (k + rank) for rank in ranks], axis=0)
    return sum(others, start=first)
