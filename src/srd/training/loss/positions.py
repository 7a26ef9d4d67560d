"""What is asked of all positions before the loss: without gradients, in blocks, never [tokens, vocabulary] at once.

A *maker of logits* gives those of some positions: a head times hidden states, or rows of logits that are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srd.models.head import HeadWeights
from srd.models.tokenizers.alignment import NONE
from srd.training.divergences.entropy_aware import entropy
from srd.training.loss.aligned_loss import Alignment, class_logits
from srd.training.loss.chunks import cut
from srd.training.loss.divergence import evaluate, slope_function
from srd.training.loss.outcomes import OutcomeHead
from srd.training.loss.schedules import Schedule
from srd.training.loss.settings import LossSettings, TokenChoice

MakeLogits = Callable[[slice], Tensor]  # positions -> [n, V]


@torch.no_grad()
def in_blocks(like: Tensor, vocabulary: int, measure: Callable[[slice], Tensor]) -> Tensor:
    """What ``measure`` says of blocks of as many positions as ``like`` has, put together: ``[N]``."""
    with torch.autocast(like.device.type, enabled=False):
        parts = [measure(rows) for rows in cut(like, vocabulary)]
    return torch.cat(parts) if parts else torch.zeros(0, device=like.device)


def entropies(
    hidden: Tensor, head: HeadWeights, temperature: float = 1.0, alignment: Alignment | None = None
) -> Tensor:
    """Entropy in nats of the distribution at each position, ``[N]``, of what enters the head, ``[N, d]``.

    With the alignment of a teacher that has another tokenizer it is that of what the loss compares: of the
    distributions over classes, at the positions that are compared.
    """
    if alignment is None:
        return entropies_of(lambda rows: head.logits(hidden[rows]), hidden, head.vocabulary, temperature)
    compared, maps = hidden[alignment.position[alignment.position != NONE]], alignment.maps

    def by_class(rows: slice) -> Tensor:
        return class_logits(torch.softmax(head.logits(compared[rows]), -1), maps.teacher, maps.count)

    return entropies_of(by_class, compared, head.vocabulary, temperature)


def entropies_of(logits: MakeLogits, like: Tensor, vocabulary: int, temperature: float = 1.0) -> Tensor:
    """`entropies` of a maker of logits, for as many positions as ``like`` has, over so many ids."""

    def measure(rows: slice) -> Tensor:
        return entropy(torch.log_softmax(logits(rows) / temperature, -1))

    return in_blocks(like, vocabulary, measure)


def log_likelihoods(logits: MakeLogits, targets: Tensor, vocabulary: int) -> Tensor:
    """Log-probability of the token that follows each position, ``[N]``."""

    def measure(rows: slice) -> Tensor:
        return torch.log_softmax(logits(rows), -1).gather(-1, targets[rows, None])[:, 0]

    return in_blocks(targets, vocabulary, measure)


def gaps_of(
    student: MakeLogits, teacher_hidden: Tensor, teacher_head: HeadWeights, vocabulary: int, temperature: float
) -> Tensor:
    """Jensen-Shannon divergence of teacher and student at each position, ``[N]``, at most log 2."""

    def measure(rows: slice) -> Tensor:
        log_q = torch.log_softmax(student(rows) / temperature, -1)
        if isinstance(teacher_head, OutcomeHead):
            return teacher_head.compare(teacher_hidden[rows], log_q, "jsd", {"lam": 0.5}, temperature)[0]
        log_p = torch.log_softmax(teacher_head.logits(teacher_hidden[rows]) / temperature, -1)
        return evaluate(slope_function("jsd"), log_p, log_q, {"lam": 0.5})[0]

    return in_blocks(teacher_hidden, vocabulary, measure)


def choose_positions(scores: Tensor, counts: Sequence[int], choice: TokenChoice) -> Tensor:
    """The positions with the highest scores of each example, in their order; among equal ones the earlier.

    Args:
        scores: Of all positions of a batch, ``[N]``, example by example.
        counts: Positions of each example; their sum is N.
        choice: How many of them.

    Returns:
        Their numbers, ``[M]``. Nothing is asked of the device that has the scores, so that it need not be waited for.
    """
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))
    ranked = scores.argsort(descending=True, stable=True)
    ranked = ranked[owners.to(scores.device)[ranked].argsort(stable=True)]  # example by example, best first
    starts = np.cumsum([0, *counts])[:-1]
    first = [np.arange(start, start + choice.count(count)) for start, count in zip(starts, counts, strict=True)]
    places = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *first]))
    return ranked[places.to(scores.device)].sort().values


def random_scores(names: Sequence[str], counts: Sequence[int], seed: int, step: int) -> Tensor:
    """Scores that follow from seed, optimizer step and example alone, ``[N]``."""
    drawn = [np.zeros(0)]
    for name, count in zip(names, counts, strict=True):
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        drawn.append(np.random.default_rng([seed, step, int.from_bytes(digest, "big")]).random(count))
    return torch.from_numpy(np.concatenate(drawn))


def told_by_position(
    inputs: dict[str, Any],
    settings: LossSettings,
    schedule: Schedule | None,
    draw: tuple[int, int],
    teacher_hidden: Tensor,
    teacher_head: HeadWeights,
    vocabulary: int,
    student: MakeLogits,
) -> dict[str, Any]:
    """What the loss is told of each position beside the targets, by what the models say at all of them.

    Args:
        inputs: A micro-batch.
        settings: What is minimised.
        schedule: Of the loss, if there is one.
        draw: Seed and optimizer step.
        teacher_hidden: What enters the teacher's head, ``[N, d]``.
        teacher_head: The teacher's head.
        vocabulary: Ids that the student's logits are over.
        student: Makes them.
    """
    told: dict[str, Any] = {}
    if settings.tokens is not None:
        targets, counts = inputs["targets"], inputs["counts"]
        by: dict[str, Callable[[], Tensor]] = {
            "random": lambda: random_scores(inputs["ids"], counts, *draw).to(targets.device),
            "student_entropy": lambda: entropies_of(student, targets, vocabulary),
            "teacher_gap": lambda: gaps_of(student, teacher_hidden, teacher_head, vocabulary, settings.temperature),
        }
        scores = by[settings.tokens.by]()
        told["chosen"] = choose_positions(scores, counts, settings.tokens)
        told["chosen_items"] = inputs["chosen_items"].to(targets.device)
    if schedule is not None and schedule.wants_likelihoods:
        told["columns"] = _columns(schedule, inputs, teacher_hidden, teacher_head, vocabulary, student)
    return told


def _columns(
    schedule: Schedule,
    inputs: dict[str, Any],
    teacher_hidden: Tensor,
    teacher_head: HeadWeights,
    vocabulary: int,
    student: MakeLogits,
) -> dict[str, Tensor]:
    """What the schedule gives the divergence for each text, repeated for its positions."""
    targets, counts = inputs["targets"], inputs["counts"]
    ends, written = np.cumsum(counts)[:-1], [count > 0 for count in counts]

    def by_text(likelihoods: Tensor) -> NDArray[np.float64]:
        parts = np.split(likelihoods.double().cpu().numpy(), ends)
        return np.array([part.mean() if len(part) else 0.0 for part in parts])

    def means(logits: MakeLogits) -> NDArray[np.float64]:
        return by_text(log_likelihoods(logits, targets, vocabulary))

    reference = inputs.get("reference")
    known = np.ones(len(targets)) if reference is None else reference.cpu().numpy()
    own = np.array([bool(len(part)) and not part[0] for part in np.split(known, ends)], dtype=bool)
    if isinstance(teacher_head, OutcomeHead):
        by_teacher = by_text(-teacher_head.own_nats(teacher_hidden))
    else:
        by_teacher = means(lambda rows: teacher_head.logits(teacher_hidden[rows]))
    found = schedule.of_rows(own[written], by_teacher[written], means(student)[written])
    dtype = torch.float64 if teacher_hidden.dtype == torch.float64 else torch.float32
    lengths = np.array(counts, dtype=np.int64)[written]  # of a micro-batch without rows, too
    return {
        name: torch.tensor(np.repeat(values, lengths), dtype=dtype, device=targets.device)
        for name, values in found.items()
    }
