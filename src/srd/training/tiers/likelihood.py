"""How likely the teacher found the tokens of the text: a number each, which servers give as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from srd.base.errors import UserError
from srd.training.divergences.base import DIVERGENCES
from srd.training.tiers.base import Listed, Tier, register_tier

if TYPE_CHECKING:
    from torch import Tensor

    from srd.models.head import HeadWeights
    from srd.training.loss.outcomes import OutcomeHead


@register_tier("likelihood")
class Likelihood(Tier):
    """``log p`` of the actual tokens: two outcomes, this token or another.

    Its forward KL at temperature 1 is the binary cross-entropy of ALM (arXiv 2503.20083), token by token. Of other
    divergences of the two nobody has shown that they teach, and another temperature needs what is not kept.
    """

    with_head = whole = False
    nearer = "Set cache.tier=topk, int8 or exact"

    def token_bytes(self, hidden_size: int, vocabulary: int) -> int:
        return 4

    def coarse_problem(self, objective: str, temperature: float) -> str:
        if not DIVERGENCES.get(objective).of_own_token:
            return (
                f"it keeps a number a token, from which fkl alone can be trained, not '{objective}'. Set cache.tier to "
                "topk, int8 or exact, or take the method kd with the objective fkl"
            )
        if temperature != 1:
            return (
                f"it knows temperature 1 alone, not {temperature:g}. Set cache.tier to topk, int8 or exact, or the "
                "temperature (training.curriculum.temperature, where there is a curriculum) to 1"
            )
        return ""

    def pack(self, states: Tensor, targets: Tensor, head: HeadWeights, learnt: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        from srd.models.head import cross_entropy

        with torch.no_grad():
            return {"target": -cross_entropy(states, head, targets.to(states.device)).float()}

    def pack_listed(self, listed: Sequence[Listed], targets: Sequence[int], width: int) -> dict[str, Tensor]:
        import torch

        values = []
        for place, (row, target) in enumerate(zip(listed, targets, strict=True)):
            found = dict(row).get(target)
            if found is None:
                raise UserError(f"position {place} of an answer has no log-probability of its own token {target}")
            values.append(found)
        return {"target": torch.tensor(values, dtype=torch.float32)}

    def unpack(self, kept: dict[str, Tensor], targets: Sequence[int], learnt: dict[str, Tensor]) -> Tensor:
        import torch

        from srd.training.loss.outcomes import NEARLY_ALL, log1mexp, outcome_rows

        own = kept["target"].double().clamp(max=NEARLY_ALL)[:, None]
        ids = torch.tensor(list(targets), dtype=torch.int32)[:, None]
        return outcome_rows(ids, own, log1mexp(own), kept["target"])

    def head(self, head: HeadWeights | None, width: int | None) -> OutcomeHead:
        import torch

        from srd.training.loss.outcomes import OutcomeHead

        assert width is not None
        return OutcomeHead(torch.empty(width, 0), width=width, name=self.name)
