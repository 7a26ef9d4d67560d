"""The divergence of a teacher and a student with different tokenizers: by classes of tokens, and by whole chunks.

Both models' probabilities are added up by class (`srd.models.tokenizers.alignment`). The logarithms of the sums are
logits over the classes, so that every divergence, temperature and scale of the usual loss goes for them. With ``g`` the
gradient at a class's logit, that at the logit of a token v is ``g[class(v)] · q(v) / Q[class(v)]``. A temperature
softens the sums: what is equal at temperature 1 stays equal.

What the classes leave out is compared as a chunk (ALM, arXiv 2503.20083): the log-likelihoods L of the same bytes,
once in the teacher's tokens and once in the student's, by the binary divergence of ``exp(L / τ)``. Times τ it is in
nats and, τ being large, grows as the chunk does, so that a chunk weighs as much as its tokens: for surprisals x and y
of teacher and student it comes near ``x log(x / y) + y - x``. Its gradient at the student's logits is that of a
cross-entropy whose weight is the same for all tokens of the chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from srd.models.tokenizers.alignment import NONE, Classes, Side

TAU = 100.0  # of ALM
EPSILON = 1e-6  # keeps a likelihood of 1 from being certain, as in ALM's code


@dataclass(frozen=True)
class ClassMaps:
    """Which class each logit belongs to; those of none belong to number ``count``, which is left out.

    Attributes:
        count: Classes.
        teacher: ``[V_teacher]``.
        student: ``[V_student]``.
        shared: 1 where the student has the teacher's token, too, ``[V_teacher]``.
    """

    count: int
    teacher: Tensor
    student: Tensor
    shared: Tensor


def class_maps(classes: Classes, teacher_width: int, student_width: int) -> ClassMaps:
    """The classes as tensors, for heads of these widths; rows without a token belong to no class."""

    def numbers(side: Side, width: int) -> Tensor:
        known = torch.full((width,), classes.count)
        own = torch.from_numpy(side.classes)[:width]
        known[: len(own)] = torch.where(own == NONE, classes.count, own)
        return known

    shared = torch.zeros(teacher_width)
    own = torch.from_numpy(classes.teacher.shared)[:teacher_width]
    shared[: len(own)] = own.float()
    maps = numbers(classes.teacher, teacher_width), numbers(classes.student, student_width)
    return ClassMaps(classes.count, maps[0], maps[1], shared)


@dataclass(frozen=True)
class Alignment:
    """How the positions of a batch are supervised by a teacher with another tokenizer.

    Attributes:
        maps: Of the two vocabularies.
        position: For each of the student's positions the teacher's that it is compared with, or `NONE`, ``[N]``.
        student_chunk: The number of the chunk whose likelihood is compared, or `NONE`, ``[N]``.
        teacher_chunk: The same for the teacher's positions ``[M]``.
        teacher_targets: The teacher's tokens ``[M]``.
    """

    maps: ClassMaps
    position: Tensor
    student_chunk: Tensor
    teacher_chunk: Tensor
    teacher_targets: Tensor

    @property
    def used(self) -> Tensor:
        """1 where a position's distributions are compared, ``[N]``."""
        return (self.position != NONE).float()

    @property
    def chunks(self) -> int:
        """How many chunks are compared."""
        return int(self.student_chunk.max()) + 1 if len(self.student_chunk) else 0


def by_class(probabilities: Tensor, classes: Tensor, count: int) -> Tensor:
    """Add up probabilities ``[n, V]`` by class: ``[n, count + 1]``, the last for those of none."""
    sums = probabilities.new_zeros(len(probabilities), count + 1)
    return sums.index_add_(1, classes, probabilities).clamp_min_(torch.finfo(sums.dtype).tiny)


def class_logits(probabilities: Tensor, classes: Tensor, count: int) -> Tensor:
    """Logits over the classes, of probabilities ``[n, V]``: ``[n, count]``."""
    return by_class(probabilities, classes, count)[:, :-1].log()


def through_classes(gradient: Tensor, probabilities: Tensor, sums: Tensor, classes: Tensor) -> Tensor:
    """The gradient at logits ``[n, V]`` from the one at the class logits ``[n, count]``.

    Args:
        gradient: Overwritten.
        probabilities: Of the tokens, ``[n, V]``, overwritten by what is returned.
        sums: From `by_class`.
        classes: Of each token ``[V]``.
    """
    each = torch.zeros_like(sums)
    each[:, :-1] = gradient.div_(sums[:, :-1])
    return probabilities.mul_(each.index_select(1, classes))


def chunk_likelihoods(nats: Tensor, chunk: Tensor, count: int) -> Tensor:
    """Log-likelihoods of chunks, at most 0, ``[count]``.

    Args:
        nats: Of tokens ``[K]``.
        chunk: Their chunks.
        count: Of chunks.
    """
    return nats.new_zeros(count).index_add_(0, chunk, -nats).clamp_(max=0)


def chunk_divergence(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """ALM's binary divergence times τ, and its slope at the student's log-likelihood.

    Args:
        teacher: Log-likelihoods of chunks ``[K]``.
        student: The same by the student.

    Returns:
        At least 0, and 0 where both are equal; ``[K]`` each.
    """
    a, b = (likelihood.double() / TAU - EPSILON for likelihood in (teacher, student))
    rest_a, rest_b = -torch.expm1(a), -torch.expm1(b)  # 1 - exp
    value = a.exp() * (a - b) + rest_a * (rest_a.log() - rest_b.log())
    slope = -a.exp() + rest_a * b.exp() / rest_b
    return (TAU * value).clamp_(min=0).to(student.dtype), slope.to(student.dtype)


def chunk_terms(
    alignment: Alignment, teacher_nats: Callable[[Tensor], Tensor], student_nats: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What chunks add to each of the student's positions.

    Args:
        alignment: Of the batch.
        teacher_nats: Of the teacher's tokens at some positions.
        student_nats: Of the student's tokens at some positions.

    Returns:
        Each chunk's divergence, spread evenly over its tokens, and the weight of each token's cross-entropy whose
        gradient is that of the divergences, ``[N]`` each.
    """
    own, other = ((chunk != NONE).nonzero().squeeze(-1) for chunk in (alignment.student_chunk, alignment.teacher_chunk))
    nats, count = student_nats(own), alignment.chunks
    members = alignment.student_chunk[own]
    student = chunk_likelihoods(nats, members, count)
    teacher = chunk_likelihoods(teacher_nats(other).to(nats.dtype), alignment.teacher_chunk[other], count)
    value, slope = chunk_divergence(teacher, student)
    lengths = torch.bincount(members, minlength=count).clamp(min=1)
    spread, pull = (nats.new_zeros(len(alignment.student_chunk)) for _ in range(2))
    spread[own] = (value / lengths)[members]
    pull[own] = -slope[members]
    return spread, pull
