"""The training loss at response positions, in one pass over the vocabulary.

``loss = Σ_i (1-w)·c_i·CE_i + w·s·D_i``, divided by the number of valid tokens of the whole optimizer step, where
``c_i`` is 0 on text the student wrote itself. Where the divergence is taken at some positions only (`TokenChoice`), its
sum is divided by their number, and the head is asked at no other position unless cross-entropy wants it.

The head's matrix product, both softmaxes, the divergence and the gradient are worked out for a chunk of tokens at a
time, and the gradient with respect to the logits overwrites the logits. No second tensor of [tokens, vocabulary]
exists, and none at all of [all tokens, vocabulary].
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from srd.models.head import HeadWeights, cross_entropy, gives_float32, product
from srd.training.aligned_loss import Alignment, ClassMaps, by_class, chunk_terms, through_classes
from srd.training.divergence import value_and_slope
from srd.training.loss_settings import LossSettings as LossSettings
from srd.training.loss_settings import TokenChoice as TokenChoice
from srd.training.outcomes import OutcomeHead

CHUNK_BYTES = 48 << 20  # one chunk of fp32 logits: large enough for the matrix product to be efficient
CHUNKS_ON_A_GPU = 64  # of its memory: fewer and larger kernels, and still little beside a model
FLOAT16_TOP = 13  # largest power of two in a lifted gradient: float16 ends at 2 ** 16
LIKELY_ROWS = 64  # positions whose targets' likelihood is worked out at a time
BLOCK_BYTES = 1 << 20  # rows worked on at a time on a CPU: small enough to stay in one core's own cache


class _Workspace(threading.local):
    """Memory for the logits of a chunk on a CPU, kept from chunk to chunk and from step to step.

    Such blocks come fresh from the system otherwise, and making their pages costs a fifth of the matrix product that
    fills them. A GPU's allocator keeps its memory by itself.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def logits(self, name: str, head: HeadWeights, hidden: Tensor) -> Tensor:
        """`HeadWeights.logits`, valid until the next call with this name."""
        if head.weight.device.type != "cpu" or head.weight.dtype != torch.float32 or not head.weight.numel():
            return head.logits(hidden)
        shape = (len(hidden), head.vocabulary)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < math.prod(shape):
            buffer = self.buffers[name] = torch.empty(math.prod(shape))
        return head.logits(hidden, out=buffer[: math.prod(shape)].view(shape))


_workspace = _Workspace()


@dataclass
class LossParts:
    """Sums over tokens, for the log: neither is divided by the number of tokens.

    Attributes:
        ce: Cross-entropy ``[N]`` in nats (zeros where it has no weight).
        kd: Divergence ``[N]`` without its factor.
        own: log π of each target under the student, in nats, ``[N]``; None where nobody wants to know.
        mass: The teacher's probability of tokens that the student has, ``[N]``, where tokenizers differ and a position
            is compared; else nothing.
    """

    ce: Tensor
    kd: Tensor
    own: Tensor | None = None
    mass: Tensor | None = None


def _soften(student: Tensor, teacher: Tensor | None, settings: LossSettings) -> None:
    """Bring the logits to the temperature, and the teacher's, if it has any, to between the two, in place."""
    if settings.temperature != 1.0:
        student.div_(settings.temperature)
        if teacher is not None:
            teacher.div_(settings.temperature)
    if settings.teacher_share != 1.0 and teacher is not None:
        teacher.mul_(settings.teacher_share).add_(student, alpha=1 - settings.teacher_share)


def _row_losses(
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor,
    reference: Tensor,
    settings: LossSettings,
    scale: Tensor | None,
    coarse: OutcomeHead | None,
    boost: Tensor | float,
    columns: dict[str, Tensor],
) -> LossParts:
    """Losses of some rows; with ``scale``, ``student`` is overwritten by the gradient of their weighted sum.

    Args:
        student: Logits ``[n, V]``, overwritten.
        teacher: Logits ``[n, V]``, overwritten, or what ``coarse`` takes; None without a divergence.
        targets: Token ids ``[n]``.
        reference: 1 where the text is a reference, 0 where the student wrote it, ``[n]``.
        settings: What is minimised.
        scale: Factor on the gradient (scalar); None where no gradient is wanted.
        coarse: Of a teacher that is known by some tokens and a rest.
        boost: Another one on the divergence's.
        columns: Parameters of the divergence that differ from row to row, ``[n, 1]``.
    """
    temperature = settings.temperature
    distils = settings.objective is not None and teacher is not None
    ce = kd = torch.zeros(len(targets), device=student.device, dtype=student.dtype)
    total = None
    # One softmax serves both losses at temperature 1: the divergence's gradient has q in it anyway.
    shared = distils and temperature == 1.0
    pull = (settings.ce_factor * reference)[:, None] * (1.0 if scale is None else scale)  # [n, 1]
    if settings.ce_factor:
        log_q = torch.log_softmax(student, -1)
        ce = -log_q.gather(-1, targets[:, None]).squeeze(-1) * reference
        if scale is not None and not shared:
            total = log_q.exp_().mul_(pull)
    if settings.objective is not None and teacher is not None:
        _soften(student, None if coarse else teacher, settings)
        if not (shared and settings.ce_factor):
            log_q = torch.log_softmax(student, -1)
        if coarse:
            kd, slope = coarse.compare(teacher, log_q, settings.objective, settings.parameters, temperature)
        else:
            log_p = torch.log_softmax(teacher, -1)
            kd, slope = value_and_slope(settings.objective, log_p, log_q, settings.parameters, columns)
        if scale is not None:
            slope.mul_(scale * boost * (settings.kd_factor / temperature))
            weight_of_q = slope.sum(-1, keepdim=True)
            if shared:
                weight_of_q -= pull
            slope.addcmul_(log_q.exp_(), weight_of_q, value=-1)
            total = slope if total is None else total.add_(slope)
    if scale is not None:
        student.copy_(total) if total is not None else student.zero_()
        if settings.ce_factor:
            student.scatter_add_(-1, targets[:, None], -pull)
    return LossParts(ce, kd)


@dataclass(frozen=True)
class _Apart:
    """What rows of a student are compared with where its teacher has another tokenizer.

    Attributes:
        maps: Classes of both vocabularies.
        used: 1 where distributions are compared, ``[n]``.
        pull: What chunks add to the weight of the cross-entropy, for the gradient alone, ``[n]``.
    """

    maps: ClassMaps
    used: Tensor
    pull: Tensor

    def __getitem__(self, rows: slice) -> _Apart:
        return _Apart(self.maps, self.used[rows], self.pull[rows])


def _apart_losses(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    reference: Tensor,
    settings: LossSettings,
    scale: Tensor | None,
    apart: _Apart,
) -> LossParts:
    """`_row_losses` where the teacher's logits are over another vocabulary ``[n, V_teacher]``."""
    maps = apart.maps
    log_q = torch.log_softmax(student, -1)
    ce = -log_q.gather(-1, targets[:, None]).squeeze(-1) * reference * float(settings.ce_factor > 0)
    q, p = log_q.exp_(), torch.softmax(teacher, -1)
    sums = by_class(q, maps.student, maps.count)
    logits, aims = sums[:, :-1].log(), by_class(p, maps.teacher, maps.count)[:, :-1].log()
    share = None if scale is None else scale * settings.weight
    only = replace(settings, weight=1.0)  # cross-entropy is over tokens, not classes
    kd = _row_losses(logits, aims, targets, reference, only, share, None, 1.0, {}).kd * apart.used
    mass = (p @ maps.shared.to(p.dtype)) * apart.used
    if scale is not None:
        pull = (settings.ce_factor * reference + apart.pull)[:, None] * scale
        total = through_classes(logits.mul_(apart.used[:, None]), q.clone(), sums, maps.student)
        student.copy_(total.addcmul_(q, pull))
        student.scatter_add_(-1, targets[:, None], -pull)
    return LossParts(ce, kd, mass=mass)


def _chunk_losses(
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor,
    reference: Tensor,
    settings: LossSettings,
    scale: Tensor | None,
    coarse: OutcomeHead | None,
    boost: Tensor | float,
    columns: dict[str, Tensor],
    watch: bool = False,
    apart: _Apart | None = None,
) -> LossParts:
    """Losses of rows in cache-sized blocks on a CPU, at once on a GPU; with ``watch`` also log π."""
    rows = len(targets)
    if student.device.type == "cpu":
        rows = max(1, BLOCK_BYTES // (student.shape[1] * student.element_size()))
    parts = []
    for block in (slice(start, start + rows) for start in range(0, len(targets), rows)):
        logits, wanted, theirs = student[block], targets[block], None if teacher is None else teacher[block]
        own = None
        if watch:  # before the logits are overwritten
            own = logits.gather(-1, wanted[:, None]).squeeze(-1) - torch.logsumexp(logits, -1)
        given = (wanted, reference[block], settings, scale)
        if apart is None or theirs is None:
            beside = {name: column[block, None] for name, column in columns.items()}
            found = _row_losses(logits, theirs, *given, coarse, boost, beside)
        else:
            found = _apart_losses(logits, theirs, *given, apart[block])
        parts.append(replace(found, own=own))
    return _joined(parts, student)


def _joined(parts: list[LossParts], like: Tensor) -> LossParts:
    """Parts of one batch put together."""
    none = like.new_zeros(0)
    ce, kd = (torch.cat([none, *(getattr(part, name) for part in parts)]) for name in ("ce", "kd"))
    owns, masses = ([value for part in parts if (value := getattr(part, name)) is not None] for name in ("own", "mass"))
    return LossParts(ce, kd, torch.cat(owns) if owns else None, torch.cat(masses) if masses else None)


def chunk_bytes(device: torch.device | None = None) -> int:
    """Bytes of a chunk of logits: on a GPU a share of its whole memory, as what is free changes, and rounding too."""
    if device is None or device.type != "cuda":
        return CHUNK_BYTES
    return max(CHUNK_BYTES, torch.cuda.get_device_properties(device).total_memory // CHUNKS_ON_A_GPU)


def chunk_rows(vocabulary: int, tokens: int, device: torch.device | None = None) -> int:
    """Tokens in one chunk: of equal size, so that no small rest is left over."""
    largest = max(1, chunk_bytes(device) // (4 * vocabulary))
    chunks = -(-tokens // largest)
    return -(-tokens // max(1, chunks))


def _lifted(gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The gradient at a chunk's logits in the type it is multiplied in, and what to multiply the products by.

    Divided by a step's tokens, and spread over a vocabulary, it lies where float16 has few digits or none. So it is
    brought to float16's upper range first, by a power of two, and back in float32. Other types have the range.
    """
    if dtype != torch.float16:
        return gradient.to(dtype), None
    largest = torch.linalg.vector_norm(gradient, torch.inf).clamp(min=2.0**-100)
    lift = torch.exp2(FLOAT16_TOP - largest.log2().ceil())
    return gradient.mul_(lift).to(dtype), 1 / lift


def _product(left: Tensor, right: Tensor, back: Tensor | None) -> Tensor:
    """``left @ right``; of lifted halves it is added up in float32 and brought back there."""
    if back is None:
        return product(left, right)
    if not gives_float32(left):
        left, right = left.float(), right.float()
    return product(left, right).mul_(back)


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor, back: Tensor | None, *, first: bool) -> None:
    """Add ``gradient.T @ hidden`` to ``total [V, d]``; the first product is written, so that nothing is zeroed."""
    factors = (gradient.T, hidden.to(gradient.dtype))
    if back is not None:
        total.copy_(_product(*factors, back)) if first else total.add_(_product(*factors, back))
    elif gradient.dtype != total.dtype:
        total.copy_(product(*factors)) if first else total.add_(product(*factors))
    elif first:
        torch.mm(*factors, out=total)
    else:
        total.addmm_(*factors)


Places = slice | Tensor  # some of the positions: behind one another, or by their numbers


@dataclass(frozen=True)
class _Aims:
    """What the student's logits are compared with, token by token, and how.

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
        masses: What `LossParts.mass` is put together from.
    """

    targets: Tensor
    reference: Tensor
    settings: LossSettings
    teacher_hidden: Tensor | None
    teacher_head: HeadWeights | None
    chosen: Tensor | None = None
    boost: Tensor | float = 1.0
    columns: dict[str, Tensor] = field(default_factory=dict)
    watch: bool = False
    alignment: Alignment | None = None
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
            lambda rows: cross_entropy(hidden[rows], head, alignment.teacher_targets[rows]),
            lambda rows: _nats(logits_at, rows, self.targets),
        )
        # The likelihood of a chunk has no temperature, nor the square of one before it.
        weight = self.settings.weight
        return spread * (weight / self.settings.kd_factor), pull * weight

    def chunks(self, vocabulary: int) -> list[tuple[Places, bool]]:
        """Positions to work on at a time, and whether they distil; those that nothing is asked of are left out."""
        if self.chosen is None:
            return [(rows, True) for rows in _cut(self.targets, vocabulary)]
        places: list[tuple[Places, bool]] = [(self.chosen[rows], True) for rows in _cut(self.chosen, vocabulary)]
        if self.settings.ce_factor:
            is_chosen = torch.zeros(len(self.targets), device=self.targets.device).index_fill_(0, self.chosen, 1)
            rest = is_chosen.argsort(stable=True)[: len(self.targets) - len(self.chosen)]
            places += [(rest[rows], False) for rows in _cut(rest, vocabulary)]
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
        teacher, hidden, apart = None, self.aligned_hidden, None
        if distils and self.settings.objective and hidden is not None and self.teacher_head is not None:
            teacher = _workspace.logits("teacher", self.teacher_head, hidden[places])
        if self.alignment is not None:
            apart = _Apart(self.alignment.maps, self.alignment.used.to(student.dtype)[places], terms[1][places])
        coarse = self.teacher_head if isinstance(self.teacher_head, OutcomeHead) else None
        columns = {name: column[places] for name, column in self.columns.items()}
        given = (self.targets[places], self.reference[places], self.settings, scale)
        found = _chunk_losses(student, teacher, *given, coarse, self.boost, columns, self.watch, apart)
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
        loss = (self.settings.ce_factor * ce.sum() + self.settings.kd_factor * self.boost * kd.sum()) * inverse
        return (loss, ce, kd) if own is None else (loss, ce, kd, own)


def _cut(places: Tensor, vocabulary: int) -> list[slice]:
    """Parts of some positions ``[M]``, each as large as one chunk of logits may be."""
    step = max(1, chunk_rows(vocabulary, len(places), places.device))
    return [slice(start, start + step) for start in range(0, len(places), step)]


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
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: HeadWeights, aims: _Aims, items: Tensor
    ) -> tuple[Tensor, ...]:
        needs = ctx.needs_input_grad
        gradient = any(needs[:3])
        width, dtype = head.vocabulary, torch.float64 if weight.dtype == torch.float64 else torch.float32
        inverse = 1.0 / items.to(dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=dtype) if needs[0] else None
        wide = dtype if weight.dtype == torch.float16 else weight.dtype  # of sums over many tokens
        grad_weight = torch.empty_like(weight, dtype=wide) if needs[1] else None
        chunks = aims.chunks(width)
        if grad_weight is not None:  # the first chunk fills the rows below the width
            grad_weight[width if chunks else 0 :].zero_()
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
        plain = HeadWeights(weight.detach(), None if bias is None else bias.detach(), head.scale, head.softcap, width)
        compute = plain.computing_in(hidden)
        terms = aims.likelihood_terms(lambda rows: compute.logits(hidden[rows]))
        parts: list[tuple[Places, LossParts]] = []
        for places, distils in chunks:
            student = _workspace.logits("student", compute, hidden[places])
            capped = student.clone() if gradient and head.softcap is not None else None
            factor = inverse * head.scale if gradient else None
            parts.append((places, aims.losses(places, distils, student, factor, terms)))
            if not gradient:
                continue
            if capped is not None and head.softcap is not None:  # d tanh
                student.mul_(1 - (capped / head.softcap).square_())
            if grad_bias is not None:
                grad_bias[:width] += student.sum(0)
            student, back = _lifted(student, compute.weight.dtype)
            if grad_hidden is not None:
                grad_hidden[places] = _product(student, compute.weight[:width], back).to(dtype)
            if grad_weight is not None:
                _add_product(grad_weight[:width], student, hidden[places], back, first=len(parts) == 1)
        ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype
        result = aims.total(parts, inverse)
        _finish(ctx, (grad_hidden, grad_weight, grad_bias), result)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = zip(_scaled(ctx, grad_outputs[0]), ctx.dtypes, strict=True)
        return *(grad if grad is None else grad.to(dtype) for grad, dtype in grads), None, None, None


class _LogitsLoss(torch.autograd.Function):
    """The same loss of logits the model made itself: where the head is out of reach (FSDP, DeepSpeed, adapters)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, width: int, aims: _Aims, items: Tensor) -> tuple[Tensor, ...]:
        grad = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        inverse = 1.0 / items.to(dtype)
        parts: list[tuple[Places, LossParts]] = []
        ctx.lifted = []
        terms = aims.likelihood_terms(lambda rows: logits[rows, :width].to(dtype))
        for places, distils in aims.chunks(width):
            student = logits[places, :width].to(dtype, copy=True)
            parts.append((places, aims.losses(places, distils, student, None if grad is None else inverse, terms)))
            if grad is not None:
                grad[places, :width], back = _lifted(student, logits.dtype)
                ctx.lifted += [] if back is None else [(places, back)]
        result = aims.total(parts, inverse)
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
    hidden: Tensor,
    head: HeadWeights,
    targets: Tensor,
    settings: LossSettings,
    items: Tensor,
    *,
    teacher_hidden: Tensor | None = None,
    teacher_head: HeadWeights | None = None,
    reference: Tensor | None = None,
    chosen: Tensor | None = None,
    chosen_items: Tensor | None = None,
    columns: dict[str, Tensor] | None = None,
    watch: bool = False,
    alignment: Alignment | None = None,
) -> tuple[Tensor, LossParts]:
    """Loss of the student's last hidden states at response positions.

    Args:
        hidden: ``[N, d]``, differentiable.
        head: The student's head; its weight and bias get gradients where they require them.
        targets: The token that follows each position, ``[N]``.
        settings: What is minimised.
        items: Valid tokens of the whole optimizer step, over micro-batches and processes (scalar).
        teacher_hidden: ``[N, d_teacher]`` at the same positions; with an alignment at the teacher's own.
        teacher_head: The teacher's head, cut to the same vocabulary; with an alignment all of it.
        reference: 0 on tokens that the student wrote itself (no cross-entropy there), else 1, ``[N]``.
        chosen: The positions that distil, ``[M]``; None: all.
        chosen_items: Their number in the whole optimizer step (scalar), by which the divergence is divided.
        columns: Parameters of the divergence that differ from position to position, ``[N]``.
        watch: Whether log π of the targets is wanted among the parts (NaN where no logits are made).
        alignment: How positions go together where the teacher has another tokenizer.

    Returns:
        The loss (scalar, a sum divided by ``items``) and its parts per token. N = 0 gives a loss of 0 that can still
        be differentiated, so that processes stay in step.
    """
    known = _reference(reference, targets, hidden)
    boost = _boost(items, chosen_items, known.dtype)
    aims = _Aims(targets, known, settings, teacher_hidden, teacher_head, chosen, boost, columns or {}, watch, alignment)
    with _as_given(hidden):
        loss, *parts = _HeadLoss.apply(hidden, head.weight, head.bias, head, aims, items)
    return loss, replace(LossParts(*parts), mass=torch.cat(aims.masses) if aims.masses else None)


def logits_loss(
    logits: Tensor,
    width: int,
    targets: Tensor,
    settings: LossSettings,
    items: Tensor,
    *,
    teacher_hidden: Tensor | None = None,
    teacher_head: HeadWeights | None = None,
    reference: Tensor | None = None,
    chosen: Tensor | None = None,
    chosen_items: Tensor | None = None,
    columns: dict[str, Tensor] | None = None,
    watch: bool = False,
    alignment: Alignment | None = None,
) -> tuple[Tensor, LossParts]:
    """`head_loss` for logits ``[N, V]`` at response positions; ids from ``width`` on are padding rows."""
    known = _reference(reference, targets, logits)
    boost = _boost(items, chosen_items, known.dtype)
    aims = _Aims(targets, known, settings, teacher_hidden, teacher_head, chosen, boost, columns or {}, watch, alignment)
    with _as_given(logits):
        loss, *parts = _LogitsLoss.apply(logits, width, aims, items)
    return loss, replace(LossParts(*parts), mass=torch.cat(aims.masses) if aims.masses else None)


def _as_given(like: Tensor) -> torch.autocast:
    """No autocast: it would multiply gradients in half precision that are float32 for a reason."""
    return torch.autocast(like.device.type, enabled=False)


def _boost(items: Tensor, chosen_items: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    return 1.0 if chosen_items is None else items.to(dtype) / chosen_items.to(dtype)


def _reference(reference: Tensor | None, targets: Tensor, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.ones(len(targets), device=targets.device, dtype=dtype) if reference is None else reference.to(dtype)
