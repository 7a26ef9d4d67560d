"""The training loss at response positions, in one pass over the vocabulary.

``loss = Σ_i v_i·((1-w)·c_i·CE_i + w·s·D_i)``, divided by the number of valid tokens of the whole optimizer step, where
``c_i`` is 0 on text the student wrote itself, and ``v_i`` is what the example counts (1, but for `Stage.row_weights`).
Where the divergence is taken at some positions only (`TokenChoice`), its sum is divided by their number, and the head
is asked at no other position unless cross-entropy wants it.

The head's matrix product, both softmaxes, the divergence and the gradient are worked out for a chunk of tokens at a
time, and the gradient with respect to the logits overwrites the logits. No second tensor of [tokens, vocabulary]
exists, and none at all of [all tokens, vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from srd.models.head import HeadWeights, cross_entropy
from srd.training.loss.aligned_loss import Alignment, chunk_terms
from srd.training.loss.chunks import cut, workspace
from srd.training.loss.half import add_product, lifted, lifted_product
from srd.training.loss.outcomes import OutcomeHead
from srd.training.loss.row_losses import Apart, LossParts, chunk_losses
from srd.training.loss.settings import LossSettings

LIKELY_ROWS = 64  # positions whose targets' likelihood is worked out at a time


Places = slice | Tensor  # some of the positions: behind one another, or by their numbers


@dataclass(frozen=True)
class _Positions:
    """Response positions of a batch: what the student's logits are compared with there, and how.

    Attributes:
        targets: Token ids ``[N]``.
        reference: 1 where the text is a reference, 0 where the student wrote it, ``[N]``.
        settings: What is minimised.
        teacher_hidden: ``[N, d_teacher]`` or what else its head takes, or None without a teacher; with an alignment
            ``[M, d_teacher]``.
        teacher_head: The teacher's head, or what stands for it.
        chosen: The positions that distil, ``[M]``; None: all.
        boost: What the divergence counts more for that, a factor: items of the step to those that distil.
        columns: Parameters of the divergence that differ from position to position, ``[N]``.
        watch: Whether log π of the targets is wanted, too.
        alignment: How positions go together where the teacher has another tokenizer.
        weights: What each position counts, ``[N]``; None: all the same.
        masses: What `LossParts.mass` is put together from.
    """

    targets: Tensor
    reference: Tensor
    settings: LossSettings
    teacher_hidden: Tensor | None = None
    teacher_head: HeadWeights | None = None
    chosen: Tensor | None = None
    boost: Tensor | float = 1.0
    columns: dict[str, Tensor] = field(default_factory=dict)
    watch: bool = False
    alignment: Alignment | None = None
    weights: Tensor | None = None
    masses: list[Tensor] = field(default_factory=list)

    @property
    def is_apart(self) -> bool:
        """Whether there is a teacher, and one with another tokenizer."""
        return bool(self.alignment is not None and self.settings.objective and self.teacher_hidden is not None)

    @cached_property
    def aligned_hidden(self) -> Tensor | None:
        """What enters the teacher's head where the student's positions are compared, ``[N, d_teacher]``."""
        if self.alignment is None or self.teacher_hidden is None:
            return self.teacher_hidden
        if not len(self.teacher_hidden):  # the teacher's text has no token of the answer
            return self.teacher_hidden.new_zeros(len(self.targets), self.teacher_hidden.shape[1])
        return self.teacher_hidden[self.alignment.position.clamp(min=0)]

    def likelihood_terms(self, logits_at: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """What chunks add to the divergence, and to the weight of the gradient of the cross-entropy; ``[N]`` each.

        Args:
            logits_at: The student's logits at some positions.
        """
        alignment, hidden, head = self.alignment, self.teacher_hidden, self.teacher_head
        if not self.is_apart or not self.settings.kd_factor or alignment is None or hidden is None or head is None:
            return torch.zeros_like(self.reference), torch.zeros_like(self.reference)
        spread, pull = chunk_terms(
            alignment,
            lambda rows: _told_nats(hidden[rows], head, alignment.teacher_targets[rows]),
            lambda rows: _nats(logits_at, rows, self.targets),
        )
        # The likelihood of a chunk has no temperature, nor the square of one before it.
        weight = self.settings.weight
        return spread * (weight / self.settings.kd_factor), pull * weight

    def chunks(self, vocabulary: int) -> list[tuple[Places, bool]]:
        """Positions to work on at a time, and whether they distil; those that nothing is asked of are left out."""
        if self.chosen is None:
            return [(rows, True) for rows in cut(self.targets, vocabulary)]
        places: list[tuple[Places, bool]] = [(self.chosen[rows], True) for rows in cut(self.chosen, vocabulary)]
        if self.settings.ce_factor:
            is_chosen = torch.zeros(len(self.targets), device=self.targets.device).index_fill_(0, self.chosen, 1)
            rest = is_chosen.argsort(stable=True)[: len(self.targets) - len(self.chosen)]
            places += [(rest[rows], False) for rows in cut(rest, vocabulary)]
        return places

    def losses(
        self, places: Places, distils: bool, student: Tensor, scale: Tensor | None, terms: tuple[Tensor, Tensor]
    ) -> LossParts:
        """Losses of a chunk; with ``scale``, its logits ``student`` are overwritten by their gradient.

        Args:
            places: Its positions.
            distils: Whether they do.
            student: Their logits.
            scale: Factor on the gradient; None where none is wanted.
            terms: From `likelihood_terms`.
        """
        teacher, apart = None, None
        coarse = self.teacher_head if isinstance(self.teacher_head, OutcomeHead) else None
        compares = distils and self.settings.objective and not (self.is_apart and coarse)  # else there are chunks alone
        if compares and self.aligned_hidden is not None and self.teacher_head is not None:
            teacher = workspace.logits("teacher", self.teacher_head, self.aligned_hidden[places])
        if self.alignment is not None:
            apart = Apart(self.alignment.maps, self.alignment.used.to(student.dtype)[places], terms[1][places])
        columns = {name: column[places] for name, column in self.columns.items()}
        if self.weights is not None and scale is not None:
            scale = scale * self.weights[places][:, None]
        given = (self.targets[places], self.reference[places], self.settings, scale)
        found = chunk_losses(student, teacher, *given, coarse, self.boost, columns, self.watch, apart)
        if self.is_apart:
            found.kd += terms[0][places]
            self.masses.extend([] if found.mass is None else [found.mass])
        return found

    def total(self, parts: list[tuple[Places, LossParts]], inverse: Tensor) -> tuple[Tensor, ...]:
        """The loss; the cross-entropy and divergence of each token, and log π where it is wanted and was worked out."""
        ce, kd = torch.zeros(2, len(self.targets), device=self.targets.device, dtype=inverse.dtype)
        own = torch.full_like(ce, torch.nan) if self.watch else None
        for places, part in parts:
            ce[places], kd[places] = part.ce, part.kd
            if own is not None and part.own is not None:
                own[places] = part.own
        sum_ce, sum_kd = (ce.sum(), kd.sum()) if self.weights is None else (self.weights @ ce, self.weights @ kd)
        loss = (self.settings.ce_factor * sum_ce + self.settings.kd_factor * self.boost * sum_kd) * inverse
        return (loss, ce, kd) if own is None else (loss, ce, kd, own)


def _told_nats(hidden: Tensor, head: HeadWeights, targets: Tensor) -> Tensor:
    """Negative log-likelihood of a teacher's tokens, from its states or as it was told."""
    return head.own_nats(hidden) if isinstance(head, OutcomeHead) else cross_entropy(hidden, head, targets)


def _nats(logits_at: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the targets at some positions, a few of them at a time."""
    parts = []
    for some in rows.split(LIKELY_ROWS):  # one empty part where there are none
        logits = logits_at(some)
        parts.append(torch.logsumexp(logits, -1) - logits.gather(-1, targets[some, None]).squeeze(-1))
    return torch.cat(parts)


def _finish(ctx: Any, gradients: tuple[Tensor | None, ...], result: tuple[Tensor, ...]) -> None:
    """Keep the gradients for `_scaled`; only the loss can be differentiated."""
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(*result[1:])


def _scaled(ctx: Any, factor: Tensor) -> list[Tensor | None]:
    """The kept gradients; they are already divided by the number of items, so usually nothing is left to multiply.

    Only a CPU is asked whether that is so: a GPU would have to be waited for.
    """
    done = factor.device.type == "cpu" and factor == 1
    return [grad if grad is None or done else grad.mul_(factor) for grad in ctx.saved_tensors]


class _HeadLoss(torch.autograd.Function):
    """Loss of hidden states through the student's head, whose gradient is made along with the value."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: HeadWeights,
        positions: _Positions,
        items: Tensor,
    ) -> tuple[Tensor, ...]:
        needs = ctx.needs_input_grad
        gradient = any(needs[:3])
        width, dtype = head.vocabulary, torch.float64 if weight.dtype == torch.float64 else torch.float32
        inverse = 1.0 / items.to(dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=dtype) if needs[0] else None
        wide = dtype if weight.dtype == torch.float16 else weight.dtype  # of sums over many tokens
        grad_weight = torch.empty_like(weight, dtype=wide) if needs[1] else None
        chunks = positions.chunks(width)
        if grad_weight is not None:  # the first chunk fills the rows below the width
            grad_weight[width if chunks else 0 :].zero_()
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
        plain = HeadWeights(weight.detach(), None if bias is None else bias.detach(), head.scale, head.softcap, width)
        compute = plain.computing_in(hidden)
        terms = positions.likelihood_terms(lambda rows: compute.logits(hidden[rows]))
        parts: list[tuple[Places, LossParts]] = []
        for places, distils in chunks:
            student = workspace.logits("student", compute, hidden[places])
            capped = student.clone() if gradient and head.softcap is not None else None
            factor = inverse * head.scale if gradient else None
            parts.append((places, positions.losses(places, distils, student, factor, terms)))
            if not gradient:
                continue
            if capped is not None and head.softcap is not None:  # d tanh
                student.mul_(1 - (capped / head.softcap).square_())
            if grad_bias is not None:
                grad_bias[:width] += student.sum(0)
            student, back = lifted(student, compute.weight.dtype)
            if grad_hidden is not None:
                grad_hidden[places] = lifted_product(student, compute.weight[:width], back).to(dtype)
            if grad_weight is not None:
                add_product(grad_weight[:width], student, hidden[places], back, first=len(parts) == 1)
        ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype
        result = positions.total(parts, inverse)
        _finish(ctx, (grad_hidden, grad_weight, grad_bias), result)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = zip(_scaled(ctx, grad_outputs[0]), ctx.dtypes, strict=True)
        return *(grad if grad is None else grad.to(dtype) for grad, dtype in grads), None, None, None


class _LogitsLoss(torch.autograd.Function):
    """The same loss of logits the model made itself: where the head is out of reach (FSDP, DeepSpeed, adapters)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, width: int, positions: _Positions, items: Tensor) -> tuple[Tensor, ...]:
        grad = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        inverse = 1.0 / items.to(dtype)
        parts: list[tuple[Places, LossParts]] = []
        ctx.lifted = []
        terms = positions.likelihood_terms(lambda rows: logits[rows, :width].to(dtype))
        for places, distils in positions.chunks(width):
            student = logits[places, :width].to(dtype, copy=True)
            parts.append((places, positions.losses(places, distils, student, None if grad is None else inverse, terms)))
            if grad is not None:
                grad[places, :width], back = lifted(student, logits.dtype)
                ctx.lifted += [] if back is None else [(places, back)]
        result = positions.total(parts, inverse)
        _finish(ctx, (grad,), result)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.lifted:
            return _scaled(ctx, grad_outputs[0])[0], None, None, None
        (grad,) = ctx.saved_tensors
        for places, back in ctx.lifted:  # a loss scale comes before the way back to float16
            grad[places] = grad[places].float().mul_(back * grad_outputs[0])
        return grad, None, None, None


def head_loss(
    hidden: Tensor, head: HeadWeights, targets: Tensor, settings: LossSettings, items: Tensor, **told: Any
) -> tuple[Tensor, LossParts]:
    """Loss of the student's last hidden states at response positions.

    Args:
        hidden: ``[N, d]``, differentiable.
        head: The student's head; its weight and bias get gradients where they require them.
        targets: The token that follows each position, ``[N]``.
        settings: What is minimised.
        items: Valid tokens of the whole optimizer step, over micro-batches and processes (scalar).
        told: What else is known of the positions, by name:

            teacher_hidden: ``[N, d_teacher]`` at the same positions; with an alignment at the teacher's own.
            teacher_head: The teacher's head, cut to the same vocabulary; with an alignment all of it.
            reference: 0 on tokens that the student wrote itself (no cross-entropy there), else 1, ``[N]``.
            chosen: The positions that distil, ``[M]``; None: all.
            chosen_items: Their number in the whole optimizer step (scalar), by which the divergence is divided.
            columns: Parameters of the divergence that differ from position to position, ``[N]``.
            watch: Whether log π of the targets is wanted among the parts (NaN where no logits are made).
            alignment: How positions go together where the teacher has another tokenizer.
            weights: What each position counts, ``[N]``; None: all the same.

    Returns:
        The loss (scalar, a sum divided by ``items``) and its parts per token. N = 0 gives a loss of 0 that can still
        be differentiated, so that processes stay in step.
    """
    positions = _positions(hidden, targets, settings, items, **told)
    with _as_given(hidden):
        loss, *parts = _HeadLoss.apply(hidden, head.weight, head.bias, head, positions, items)
    return loss, replace(LossParts(*parts), mass=torch.cat(positions.masses) if positions.masses else None)


def logits_loss(
    logits: Tensor, width: int, targets: Tensor, settings: LossSettings, items: Tensor, **told: Any
) -> tuple[Tensor, LossParts]:
    """`head_loss` for logits ``[N, V]`` at response positions; ids from ``width`` on are padding rows."""
    positions = _positions(logits, targets, settings, items, **told)
    with _as_given(logits):
        loss, *parts = _LogitsLoss.apply(logits, width, positions, items)
    return loss, replace(LossParts(*parts), mass=torch.cat(positions.masses) if positions.masses else None)


def _as_given(like: Tensor) -> torch.autocast:
    """No autocast: it would multiply gradients in half precision that are float32 for a reason."""
    return torch.autocast(like.device.type, enabled=False)


def _positions(
    like: Tensor,
    targets: Tensor,
    settings: LossSettings,
    items: Tensor,
    *,
    reference: Tensor | None = None,
    chosen_items: Tensor | None = None,
    weights: Tensor | None = None,
    **told: Any,
) -> _Positions:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    known = torch.ones(len(targets), device=targets.device) if reference is None else reference
    boost = 1.0 if chosen_items is None else items.to(dtype) / chosen_items.to(dtype)
    weights = None if weights is None else weights.to(dtype)
    return _Positions(targets, known.to(dtype), settings, boost=boost, weights=weights, **told)
