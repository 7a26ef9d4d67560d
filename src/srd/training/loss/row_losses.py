"""What rows of logits lose, and the gradient that overwrites them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from srd.base.errors import RunError
from srd.training.loss.aligned_loss import ClassMaps, by_class, class_logits, through_classes
from srd.training.loss.divergence import SlopeFunction, check_compiled, evaluate, slope_function
from srd.training.loss.outcomes import OutcomeHead
from srd.training.loss.settings import LossSettings

BLOCK_BYTES = 1 << 20  # rows worked on at a time on a CPU: small enough to stay in one core's own cache
MOST_GRAPHS = 64  # that are compiled of the loss


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
    divergence: SlopeFunction | None,
) -> LossParts:
    """Losses of some rows; with ``scale``, ``student`` is overwritten by the gradient of their weighted sum.

    Args:
        student: Logits ``[n, V]``, overwritten.
        teacher: Logits ``[n, V]``, overwritten, or what ``coarse`` takes; None without a divergence.
        targets: Token ids ``[n]``.
        reference: 1 where the text is a reference, 0 where the student wrote it, ``[n]``.
        settings: What is minimised.
        scale: Factor on the gradient, a scalar or of each row ``[n, 1]``; None where no gradient is wanted.
        coarse: Of a teacher that is known by some tokens and a rest.
        boost: Another one on the divergence's.
        columns: Parameters of the divergence that differ from row to row, ``[n, 1]``.
        divergence: What the objective is; None without one, and where ``coarse`` compares.
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
            kd, slope = coarse.compare(teacher, log_q, settings.objective, settings.parameters | columns, temperature)
        else:
            assert divergence is not None
            log_p = torch.log_softmax(teacher, -1)
            kd, slope = evaluate(divergence, log_p, log_q, {**settings.parameters, **columns})
        if scale is not None:
            slope.mul_(scale * boost * (settings.kd_factor / temperature))
            weight_of_q = slope.sum(-1, keepdim=True)
            if shared:
                weight_of_q -= pull
            torch.addcmul(slope, log_q.exp_(), weight_of_q, value=-1, out=student)
            total = student if total is None else student.add_(total)
    if scale is not None:
        student.copy_(total) if total is not None else student.zero_()  # nothing is copied from itself
        if settings.ce_factor:
            student.scatter_add_(-1, targets[:, None], -pull)
    return LossParts(ce, kd)


@cache
def compiled_losses() -> Callable[..., LossParts]:
    """`_row_losses` as a few kernels, in the place of one for every operation."""
    # One graph for each stage's temperature and weight, with gradient and without.
    torch._dynamo.config.recompile_limit = max(MOST_GRAPHS, torch._dynamo.config.recompile_limit)
    compiled = torch.compile(_row_losses)

    def call(*given: Any) -> LossParts:
        student, teacher, targets, reference, _settings, scale, *_, columns, divergence = given
        for rows in (student, teacher, targets, reference, scale, *columns.values()):
            if rows is not None and rows.dim():  # one graph for any number of rows, whichever comes first
                torch._dynamo.maybe_mark_dynamic(rows, 0)
        try:
            found: LossParts = compiled(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"torch.compile fails on this machine ({reason}). Set training.compile=off") from error
        if divergence is not None:
            check_compiled(divergence, found.kd)
        return found

    return call


@dataclass(frozen=True)
class Apart:
    """What rows of a student are compared with where its teacher has another tokenizer.

    Attributes:
        maps: Classes of both vocabularies.
        used: 1 where distributions are compared, ``[n]``.
        pull: What chunks add to the weight of the cross-entropy, for the gradient alone, ``[n]``.
    """

    maps: ClassMaps
    used: Tensor
    pull: Tensor

    def __getitem__(self, rows: slice) -> Apart:
        return Apart(self.maps, self.used[rows], self.pull[rows])


def _apart_losses(
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor,
    reference: Tensor,
    settings: LossSettings,
    scale: Tensor | None,
    apart: Apart,
) -> LossParts:
    """`_row_losses` where the teacher's logits are over another vocabulary ``[n, V_teacher]``; None: chunks alone."""
    log_q = torch.log_softmax(student, -1)
    ce = -log_q.gather(-1, targets[:, None]).squeeze(-1) * reference * float(settings.ce_factor > 0)
    q = log_q.exp_()
    kd, mass, total = torch.zeros_like(ce), None, None
    if teacher is not None:
        kd, mass, total = _class_losses(q, teacher, targets, reference, settings, scale, apart)
    if scale is not None:
        pull = (settings.ce_factor * reference + apart.pull)[:, None] * scale
        torch.mul(q, pull, out=student) if total is None else student.copy_(total.addcmul_(q, pull))
        student.scatter_add_(-1, targets[:, None], -pull)
    return LossParts(ce, kd, mass=mass)


def _class_losses(
    q: Tensor,
    teacher: Tensor,
    targets: Tensor,
    reference: Tensor,
    settings: LossSettings,
    scale: Tensor | None,
    apart: Apart,
) -> tuple[Tensor, Tensor, Tensor]:
    """The divergence of classes ``[n]``, the teacher's mass on common tokens ``[n]``, and the gradient ``[n, V]``."""
    maps, p = apart.maps, torch.softmax(teacher, -1)
    sums = by_class(q, maps.student, maps.count)
    logits, theirs = sums[:, :-1].log(), class_logits(p, maps.teacher, maps.count)
    share = None if scale is None else scale * settings.weight
    only = replace(settings, weight=1.0)  # cross-entropy is over tokens, not classes
    divergence = slope_function(str(settings.objective))
    kd = _row_losses(logits, theirs, targets, reference, only, share, None, 1.0, {}, divergence).kd * apart.used
    mass = (p @ maps.shared.to(p.dtype)) * apart.used
    if scale is None:
        return kd, mass, q
    return kd, mass, through_classes(logits.mul_(apart.used[:, None]), q.clone(), sums, maps.student)


def chunk_losses(
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
    apart: Apart | None = None,
) -> LossParts:
    """Losses of rows in cache-sized blocks on a CPU, at once on a GPU; with ``watch`` also log π."""
    rows = len(targets)
    if student.device.type == "cpu":
        rows = max(1, BLOCK_BYTES // (student.shape[1] * student.element_size()))
    divergence = slope_function(settings.objective) if settings.objective and not coarse else None
    row_losses = compiled_losses() if settings.compiled and not coarse else _row_losses
    parts = []
    for block in (slice(start, start + rows) for start in range(0, len(targets), rows)):
        logits, wanted, theirs = student[block], targets[block], None if teacher is None else teacher[block]
        own = None
        if watch:  # before the logits are overwritten
            own = logits.gather(-1, wanted[:, None]).squeeze(-1) - torch.logsumexp(logits, -1)
        given = (wanted, reference[block], settings, scale[block] if scale is not None and scale.dim() else scale)
        if apart is None:
            beside = {name: column[block, None] for name, column in columns.items()}
            found = row_losses(logits, theirs, *given, coarse, boost, beside, divergence)
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
