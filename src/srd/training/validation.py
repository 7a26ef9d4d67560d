"""What a training is validated on, and its loss there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from srd.base import parallel
from srd.data.batching import Collator, EncodedExamples, length_sorted_batches
from srd.metrics.rouge import rouge_l_many
from srd.metrics.scripts import Words
from srd.models.generation import Decoding, generate
from srd.models.head import response_losses


@dataclass
class Validation:
    """What a training is validated on.

    Attributes:
        examples: Encoded, for the loss.
        references: Of each example.
        decoding: Greedy by default.
        batch_size: Prompts at once.
        generate: Off: the loss only (cheap; for fine-tuning a teacher).
        words: How ROUGE-L reads texts (`srd.metrics.scripts`); None: as the references ask for.
    """

    examples: EncodedExamples
    references: list[list[str]]
    decoding: Decoding = field(default_factory=Decoding)
    batch_size: int = 32
    generate: bool = True
    words: Words | None = None


@torch.no_grad()
def validation_loss(model: Any, validation: Validation, collator: Collator) -> float:
    """Mean cross-entropy over all response tokens of the validation examples, in nats."""
    device = next(model.parameters()).device
    examples, training = validation.examples, model.training
    model.eval()
    sums: list[tuple[float, int]] = []
    batches = length_sorted_batches(examples.lengths, validation.batch_size)
    for rows in batches[parallel.process() :: parallel.processes()]:
        batch = {name: value.to(device) for name, value in collator([examples.tokens(i) for i in rows]).items()}
        losses = response_losses(model, batch)
        sums.append((float(losses.double().sum()), len(losses)))
    model.train(training)
    # Put together in the order of the batches: the same to the last bit on any number of processes.
    everyone = parallel.gather(sums)
    ordered = [everyone[number % len(everyone)][number // len(everyone)] for number in range(len(batches))]
    return sum(total for total, _ in ordered) / max(1, sum(count for _, count in ordered))


def answered(model: Any, tokenizer: Any, validation: Validation) -> tuple[list[str], NDArray[np.float64]]:
    """A model's answers to the validation examples, shared out over the processes, and ROUGE-L of each ``[N]``."""
    examples, decoding = validation.examples, validation.decoding
    size = validation.batch_size
    answers = generate(model, tokenizer, examples.prompts, examples.ids, decoding, batch_size=size, share=True)
    return answers, rouge_l_many(answers, validation.references, validation.words)
