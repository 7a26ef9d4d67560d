"""The likeliest tokens, and the mass of all the others together: for widths and data at which states are too large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from srd.base.errors import UserError
from srd.training.tiers.base import Listed, Tier, register_tier

if TYPE_CHECKING:
    from torch import Tensor

    from srd.models.head import HeadWeights
    from srd.training.loss.outcomes import OutcomeHead

SHORT_IDS = 2**16 - 1  # ids below this, and none of them, fit into two bytes
CHUNK_BYTES = 64 << 20  # of logits at a time


@register_tier("topk")
class TopK(Tier):
    """``top_k`` tokens with their log-probabilities, and the rest's mass at each temperature that training has.

    The mass of the rest stands for the logarithm of the softmax's sum: either follows from the other. It is kept as it
    is, and not as 1 less the others, which would be rounding where it is small.
    """

    with_head = whole = of_text = False
    nearer = "Set a larger cache.top_k, or cache.tier=int8 or exact"

    @property
    def identity(self) -> Any:
        return [self.name, self.options.top_k, list(self.options.temperatures)]

    @property
    def listed(self) -> int:
        return self.options.top_k

    def token_bytes(self, hidden_size: int, vocabulary: int) -> int:
        k = min(self.options.top_k, vocabulary)
        return k * ((2 if vocabulary < SHORT_IDS else 4) + 2) + 2 * len(self.options.temperatures) + 4

    def coarse_problem(self, objective: str, temperature: float) -> str:
        if temperature not in self.options.temperatures:
            return (
                f"it was built for the temperatures {list(self.options.temperatures)}, not for {temperature:g}. Build "
                "it for that, too, or set cache.tier to int8 or exact"
            )
        return ""

    def pack(self, states: Tensor, targets: Tensor, head: HeadWeights, learnt: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        rows = max(1, CHUNK_BYTES // (4 * head.vocabulary))
        with torch.no_grad():
            parts = [
                self._pack(head.logits(states[start : start + rows]), targets[start : start + rows])
                for start in range(0, len(states), rows)
            ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _pack(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        import torch

        log_p = torch.log_softmax(logits, -1)
        tokens, ids = log_p.topk(min(self.options.top_k, log_p.shape[1]), -1)
        rest = []
        for temperature in self.options.temperatures:
            at = logits / temperature
            whole = at.logsumexp(-1)
            rest.append(at.scatter_(-1, ids, -torch.inf).logsumexp(-1) - whole)
        target = log_p.gather(-1, targets[:, None].to(log_p.device))[:, 0]
        return kept(ids, tokens, torch.stack(rest, -1), target, logits.shape[1])

    def pack_listed(self, listed: Sequence[Listed], targets: Sequence[int], width: int) -> dict[str, Tensor]:
        import torch

        from srd.training.loss.outcomes import NEARLY_ALL, log1mexp

        if self.options.temperatures != (1.0,):
            raise UserError(
                "cache.tier: topk from listed log-probabilities knows temperature 1 alone: the mass of the rest at "
                "another does not follow from them. Set all temperatures to 1."
            )
        k = min(self.options.top_k, width)
        ids = torch.full((len(listed), k), -1)
        tokens = torch.full((len(listed), k), -torch.inf, dtype=torch.float64)
        actual = torch.full((len(listed),), torch.nan)
        for place, (row, target) in enumerate(zip(listed, targets, strict=True)):
            known = {token: value for token, value in row if 0 <= token < width and value > -torch.inf}
            if not known:
                raise UserError(f"position {place} of an answer has no log-probability of any token below {width}")
            best = sorted(known.items(), key=lambda item: (-item[1], item[0]))[:k]
            ids[place, : len(best)] = torch.tensor([token for token, _ in best])
            tokens[place, : len(best)] = torch.tensor([value for _, value in best], dtype=torch.float64)
            actual[place] = known.get(target, torch.nan)
        rest = log1mexp(tokens.logsumexp(-1, keepdim=True).clamp(max=NEARLY_ALL))
        return kept(ids, tokens, rest, actual, width)

    def listed_mass(self, kept: dict[str, Tensor]) -> Tensor:
        return -kept["rest"][:, self.options.temperatures.index(1.0)].float().expm1()

    def unpack(self, kept: dict[str, Tensor], targets: Sequence[int], learnt: dict[str, Tensor]) -> Tensor:
        from srd.training.loss.outcomes import outcome_rows

        ids = kept["ids"].int()
        if kept["ids"].element_size() == 2:
            ids &= 0xFFFF
            ids[ids == SHORT_IDS] = -1
        return outcome_rows(ids, kept["log_p"], kept["rest"], kept["target"])

    def head(self, head: HeadWeights | None, width: int | None) -> OutcomeHead:
        import torch

        from srd.training.loss.outcomes import OutcomeHead

        assert width is not None
        k = min(self.options.top_k, width)
        nothing = torch.empty(width, 0)
        return OutcomeHead(nothing, width=width, listed=k, temperatures=self.options.temperatures, name=self.name)


def kept(ids: Tensor, tokens: Tensor, rest: Tensor, target: Tensor, width: int) -> dict[str, Tensor]:
    """The tensors of a shard; ids in two bytes where that is enough, one that is none being the highest."""
    stored = ids.short() if width < SHORT_IDS else ids.int()
    return {"ids": stored, "log_p": tokens.half(), "rest": rest.half(), "target": target.float()}
