"""What divergences are made of: their types, and parts of those from a mixture of two distributions.

The mixture is m = share · a + (1-share) · b, in terms of gap = log a - log b: no mixture that could underflow, and no
difference of nearly equal logarithms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a recipe is checked without torch
    from torch import Tensor as Tensor

    ValueAndSlope = tuple[Tensor, Tensor]
else:
    Tensor = ValueAndSlope = Any

LARGEST_GAP = 80.0  # between log-probabilities: e to the power of it is near float32's end


def excess_of(gap: Tensor, share: float) -> Tensor:
    """The quotient m / b less 1, exact also where a and b are nearly equal."""
    return gap.expm1().mul_(share)


def log_ratio(excess: Tensor) -> Tensor:
    """The difference log m - log b; where m / b overflows, b is too small for it to matter."""
    return excess.clamp(max=math.exp(LARGEST_GAP)).log1p_()


def log_odds(share: float) -> float:
    """What is added to the gap so that its sigmoid is share · a / m."""
    return math.log(share / (1 - share))


def kl(b: Tensor, above: Tensor, excess: Tensor) -> Tensor:
    """KL(b ‖ m) = -Σ b · above, where ``above`` is log m - log b and ``excess`` m / b - 1.

    Σ b · excess is 0 but for the rounding of the two normalisers. Where the divergence is as small as that, taking it
    in makes each term of the sum of second order in the distance, and its rounding of third. It is left out where an
    excess overflows.
    """
    import torch

    value = torch.linalg.vecdot(b, above).neg_()
    rounding = torch.linalg.vecdot(b, excess)
    return value.add_(rounding.masked_fill_(~(rounding.abs() < 1e-4), 0))


def nowhere(log_q: Tensor) -> ValueAndSlope:
    """The divergence of a distribution from itself."""
    return log_q.new_zeros(len(log_q)), log_q.new_zeros(log_q.shape)


def softplus(values: Tensor) -> Tensor:
    """The logarithm of 1 + e to the values."""
    from torch.nn.functional import softplus

    return softplus(values)
