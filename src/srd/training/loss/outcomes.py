"""Divergences of distributions that are known for a few tokens, and for all the others together.

With ``k`` tokens and the rest as outcome ``k + 1`` both distributions still sum to 1, so that every divergence stays
one: at least 0, and 0 only where tokens and rest agree. Nothing is divided by the mass of the few: that would take the
rest from the student. The rest has a slope of its own; within it the student keeps its shape:
``∂D/∂log q_v = slope_rest · q_v / Q_rest``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srd.base.errors import UserError
from srd.models.head import HeadWeights
from srd.training.loss.divergence import ValueAndSlope, evaluate, slope_function

LOWEST = -1e4  # log-probability that stands for none: finite, so that 0 · (none - none) is 0
NEARLY_ALL = -1e-7  # log-probability of listed tokens that leaves something for the rest


def log1mexp(values: Tensor) -> Tensor:
    """``log(1 - exp(values))`` for values below 0, exact at both ends."""
    return torch.where(values > -0.6931, (-values.expm1()).log(), (-values.exp()).log1p())


@dataclass(frozen=True)
class OutcomeHead(HeadWeights):
    """Stands where a head does for a teacher that is known by some tokens and a rest.

    A row is ``[id · k | log p · k | log rest · temperatures | log p of the text's token]``, floats by their bits:
    integers are left alone wherever a batch is brought to another precision. An id below 0 stands for none.

    Attributes:
        listed: k.
        temperatures: At which the mass of the rest is known.
        name: Of the tier, for messages.
    """

    listed: int = 1
    temperatures: tuple[float, ...] = (1.0,)
    name: str = "topk"

    def cut(self, width: int) -> OutcomeHead:
        """The same on the same ids: what is known of them cannot be cut.

        Raises:
            UserError: fewer ids are asked for.
        """
        if width < self.vocabulary:
            raise UserError(
                f"this teacher cache ({self.name}) was made for {self.vocabulary} token ids, and the student has "
                f"{width}. Build it with width={width}."
            )
        return self

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """The rows as they are: they hold no logits."""
        return hidden

    def outcomes(self, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Ids ``[n, k]`` and log-probabilities of them and of the rest at a temperature, ``[n, k + 1]`` in float64.

        The rest's mass is the exact one; the tokens share what it leaves.

        Raises:
            UserError: the mass of the rest is not known at that temperature.
        """
        if temperature not in self.temperatures:
            raise UserError(
                f"this teacher cache ({self.name}) was built for the temperatures {list(self.temperatures)}, not for "
                f"{temperature:g}. Build it with temperatures=[…, {temperature:g}], or take the tier exact or int8."
            )
        k = self.listed
        ids, floats = rows[:, :k].long(), rows[:, k:].view(torch.float32).double()
        place = k + self.temperatures.index(temperature)
        rest = floats[:, place : place + 1].clamp(min=LOWEST, max=-(2.0**-126))
        tokens = (floats[:, :k] / temperature).masked_fill_(ids < 0, -torch.inf)
        tokens = tokens - tokens.logsumexp(-1, keepdim=True) + log1mexp(rest)
        return ids, torch.cat([tokens.clamp(min=LOWEST), rest], -1)

    def own_nats(self, rows: Tensor) -> Tensor:
        """The nats of the text's own tokens, ``[n]``.

        Raises:
            UserError: they are not known, because a server listed other tokens.
        """
        if not len(rows):  # as wide as nothing
            return torch.zeros(0, device=rows.device)
        nats = -rows[:, -1].view(torch.float32)
        if nats.isnan().any():
            raise UserError(
                "this teacher cache lacks the log-probability of some tokens of the text: the server listed others. "
                "Ask for those of the actual tokens, too."
            )
        return nats

    def compare(
        self, teacher: Tensor, log_q: Tensor, objective: str, parameters: dict[str, Any], temperature: float
    ) -> ValueAndSlope:
        """A divergence of the outcomes ``[n]``, and its slope ``∂D/∂log q [n, V]``.

        Args:
            teacher: Rows of this head ``[n, w]``.
            log_q: The student's log-probabilities at the temperature ``[n, V]``.
            objective: Name of the divergence.
            parameters: Of the divergence: numbers, or what differs from row to row ``[n, 1]``.
            temperature: T.
        """
        ids, log_p = self.outcomes(teacher, temperature)
        none = ids < 0
        places = torch.where(none, ids[:, :1], ids)  # the first is always there
        others = log_q.scatter(-1, places, -torch.inf)
        rest = others.logsumexp(-1, keepdim=True)
        tokens = log_q.gather(-1, places).masked_fill_(none, LOWEST)
        coarse = torch.cat([tokens, rest], -1).clamp_(min=LOWEST)
        value, slope = evaluate(slope_function(objective), log_p.to(log_q.dtype), coarse, parameters)
        spread = others.sub_(rest.clamp(min=LOWEST)).exp_().mul_(slope[:, -1:])
        return value, spread.scatter_add_(-1, places, slope[:, :-1].masked_fill(none, 0))

    def spread(self, rows: Tensor, log_shape: Tensor) -> Tensor:
        """The distribution at temperature 1 whose rest has the shape of another one, log-probabilities ``[n, V]``."""
        ids, log_p = self.outcomes(rows, 1.0)
        places = torch.where(ids < 0, ids[:, :1], ids)
        others = log_shape.scatter(-1, places, -torch.inf)
        result = others - others.logsumexp(-1, keepdim=True).clamp(min=LOWEST) + log_p[:, -1:]
        tokens = log_p[:, :-1].to(result.dtype)
        return result.scatter_(-1, places, torch.where(ids < 0, tokens[:, :1], tokens))


def outcome_rows(ids: Tensor, log_p: Tensor, rest: Tensor, own: Tensor) -> Tensor:
    """Rows for `OutcomeHead`, ``[n, 2k + T + 1]``.

    Args:
        ids: ``[n, k]``.
        log_p: Of these ``[n, k]``.
        rest: The mass of the others at each temperature, as a logarithm ``[n, T]``.
        own: ``log p`` of the text's token; NaN: not known, ``[n]``.
    """
    floats: Any = torch.cat([log_p.float(), rest.float(), own.float()[:, None]], -1).contiguous()
    return torch.cat([ids.to(torch.int32), floats.view(torch.int32)], -1)
