"""Several teachers as one: the log-mean of what they say, or of each row what its own teacher says.

The log-mean of distributions ``p_i`` with weights ``w_i`` that add up to one is ``softmax(Σ w_i log p_i)``, which is
``softmax(Σ w_i z_i)`` of their logits, since what makes the softmaxes add up to one is the same for all tokens. It
holds at every temperature. The logits are ``z_i = W_i h_i + b_i``, so the mean is one head ``[w_1 W_1 | w_2 W_2 | …]``
on the states of all teachers side by side: the loss meets one teacher, as ever. Where each row has its own teacher, the
states of the others are zeros, and a column of ones stands where a head has a bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from srd.base.errors import UserError
from srd.data.batching import EncodedExamples
from srd.models.head import HeadWeights, cross_entropy
from srd.training.cache.teacher_cache import TeacherCache, example_key, example_keys, learnt_tokens


class SeveralCaches:
    """The caches of several teachers, read as one; stands where a `TeacherCache` does.

    Args:
        caches: Of each teacher, of one tier.
        weights: Of each teacher in the mean; they are divided by their sum.
        owners: In the place of weights: of each example, by its key, the number of its teacher.

    Raises:
        UserError: the teachers' heads cannot be one.
    """

    def __init__(
        self, caches: Sequence[TeacherCache], weights: Sequence[float] = (), owners: Mapping[str, int] | None = None
    ) -> None:
        self.caches, self.owners = list(caches), owners
        self.weights = [1.0] * len(caches) if owners is not None else [weight / sum(weights) for weight in weights]
        self._heads = [cache.head() for cache in caches]
        self._with_states = caches[0].tier.with_head
        if self._with_states:
            self._check_heads()
        elif owners is None:
            raise UserError(
                f"the mean of several teachers needs the whole distribution of each, and cache.tier is "
                f"{caches[0].tier.name}. Set cache.tier=exact or int8, or give each teacher its rows."
            )

    def _check_heads(self) -> None:
        caps = {head.softcap for head in self._heads}
        if len(caps) > 1 or (self.owners is None and caps != {None}):
            raise UserError(
                "one of the teachers soft-caps its logits (Gemma 2 does), so that several cannot be one head. Leave it "
                "out, or train with one teacher at a time."
            )

    def holds(self, examples: EncodedExamples) -> bool:
        """Whether every one of these examples is in the caches that it is read from."""
        keys = example_keys(examples)
        if self.owners is None:
            return all(key in cache for key in keys for cache in self.caches)
        return all(key in self.owners and key in self.caches[self.owners[key]] for key in keys)

    def hidden(self, prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> Tensor:
        """The states of all teachers side by side, ``[N, Σ (d_i + 1)]``; see `TeacherCache.hidden`.

        Raises:
            KeyError: the example is not in the caches.
        """
        row = (prompt_ids, response_ids, earlier)
        if self.owners is None:
            states = [cache.hidden(*row) for cache in self.caches]
            parts = [_with_one(own) for own in states]
        else:
            owner = self.owners[example_key(*row)]
            own = self.caches[owner].hidden(*row)
            if not self._with_states:
                return own
            widths = [head.weight.shape[1] + 1 for head in self._heads]
            parts = [own.new_zeros(len(own), width) for width in widths]
            parts[owner] = _with_one(own)
        wide = parts[0].dtype
        for part in parts:
            wide = torch.promote_types(wide, part.dtype)
        return torch.cat([part.to(wide) for part in parts], 1)

    def head(self) -> HeadWeights:
        """One head for what `hidden` gives, over the ids that all teachers have."""
        if not self._with_states:
            return self._heads[0]
        width, wide = min(head.vocabulary for head in self._heads), self._heads[0].weight.dtype
        for head in self._heads:
            wide = torch.promote_types(wide, head.weight.dtype)
        parts = []
        for head, weight in zip(self._heads, self.weights, strict=True):
            bias = torch.zeros(width, dtype=wide) if head.bias is None else head.bias[:width].to(wide)
            parts.append(torch.cat([head.weight[:width].to(wide), bias[:, None]], 1) * (weight * head.scale))
        return HeadWeights(torch.cat(parts, 1), softcap=self._heads[0].softcap)

    def losses(
        self, head: HeadWeights, prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()
    ) -> Tensor:
        """The nats of each token that is learnt, ``[N]``; see `TeacherCache.losses`."""
        row = (prompt_ids, response_ids, earlier)
        if not self._with_states and self.owners is not None:
            return self.caches[self.owners[example_key(*row)]].losses(head, *row)
        return cross_entropy(self.hidden(*row), head, torch.tensor(learnt_tokens(*row)))


def _with_one(states: Tensor) -> Tensor:
    """States ``[N, d]`` with a column of ones, which a head's bias stands for."""
    return torch.cat([states, states.new_ones(len(states), 1)], 1)
