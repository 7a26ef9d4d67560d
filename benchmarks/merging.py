"""What joining chunks as ALM's authors do would change for a teacher with another tokenizer, on a few hundred rows.

``python -m benchmarks.merging [--tokenizer FOLDER]``: SmolLM2-135M reads answers about the standard library. They are
cut against the tokens of the student's tokenizer, by default a small one that is made of these texts. A chunk is joined
with the next until the teacher holds it for likelier than 0.1 that a word begins behind it (arXiv 2503.20083). Printed
are the shares of the student's tokens that `training.alignment: auto` compares by positions and by chunks, of those
chunks the ones that joining would lengthen, and the tokens that would be compared then and are not compared now.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

import srd
from benchmarks.small import tokenizer_of
from srd.models.head import head_weights
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.loading.sources import SMOLLM2
from srd.models.tokenizers.alignment import END, NONE, Classes, chunks_of, pair_tokens, prefix_classes
from srd.models.tokenizers.token_bytes import continuations
from srd.tasks.pydocs import load_pydocs
from srd.training.alignment import RULES

THRESHOLD = 0.1  # of ALM's code


@dataclass
class Counts:
    """Sums over answers.

    Attributes:
        tokens: Of the student.
        positions: Those whose distributions are compared.
        others: Others, whose chunk's likelihood is.
        chunks: Whose likelihood is compared.
        early: Of these, ones behind which the teacher sees no word begin.
        longer: Tokens that these would have on top, joined with those that follow.
        gained: Tokens on top that nothing compares now.
    """

    tokens: int = 0
    positions: int = 0
    others: int = 0
    chunks: int = 0
    early: int = 0
    longer: int = 0
    gained: int = 0

    def add(self, classes: Classes, teacher: list[int], student: list[int], ends_here: np.ndarray[Any, Any]) -> None:
        """Count an answer; ``ends_here [m + 1]``: the probability that a word begins before each teacher's token."""
        paired = pair_tokens(classes, teacher, student, RULES["auto"].wants)
        used, compared = paired.position != NONE, paired.student_chunk != NONE
        own = [[END if i in side.tokens.ends else piece for i, piece in zip(ids, side.tokens.surface(ids), strict=True)]
               for side, ids in ((classes.teacher, teacher), (classes.student, student))]  # fmt: skip
        chunks = chunks_of(*own)
        self.tokens += len(student)
        self.positions += int(used.sum())
        self.others += int((compared & ~used).sum())
        for place, chunk in enumerate(chunks):
            if chunk.student[0] == chunk.student[1] or paired.student_chunk[chunk.student[0]] == NONE:
                continue
            last = place
            while ends_here[chunks[last].teacher[1]] <= THRESHOLD and last + 1 < len(chunks):
                last += 1
            more = slice(chunk.student[1], chunks[last].student[1])
            self.chunks += 1
            self.early += last > place
            self.longer += more.stop - more.start
            self.gained += int((~used[more] & ~compared[more]).sum())

    @property
    def words(self) -> str:
        """All of it."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        shares = {name: f"{told[name] / self.tokens:.2%}" for name in ("positions", "others", "longer", "gained")}
        return f"{told}\nof the student's tokens: {shares}; of the chunks lengthened: {self.early / self.chunks:.1%}"


def begins_a_word(classes: Classes, width: int) -> torch.Tensor:
    """1 for the teacher's tokens that begin with a space or are no text, ``[V]``."""
    pieces = classes.teacher.tokens.pieces
    return torch.tensor([float(i >= len(pieces) or pieces[i] is None or pieces[i][:1] == b" ") for i in range(width)])


@torch.no_grad()
def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tokenizer", help="the student's; else one of 1,500 tokens, made of a quarter of the texts")
    wanted = parser.parse_args()
    everything = load_pydocs()
    texts = [f"{row['instruction']}\n{row['output']}" for row in everything]
    student = load_tokenizer(wanted.tokenizer) if wanted.tokenizer else tokenizer_of(texts[::4], 1500, digits=True)
    teacher = load_tokenizer(SMOLLM2)
    model: Any = load_model(SMOLLM2, tokenizer=teacher)
    rows, counts = random.Random(0).sample(everything, wanted.rows), Counts()
    encoded = srd.encode(rows, teacher)
    classes = prefix_classes(teacher, student)
    head, last = head_weights(model), [student.eos_token_id]
    marks = begins_a_word(classes, head.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        cache = srd.build_cache(model, teacher, rows, folder, dtype="float32", batch_size=4)
        for row, prompt, response in zip(rows, encoded["prompt_ids"], encoded["response_ids"], strict=True):
            states = torch.as_tensor(cache.hidden(prompt, response)).float()
            mass = (head.logits(states).softmax(-1) @ marks).numpy()  # before each token; nothing follows the end
            (read,) = continuations(student, [row["output"]])
            counts.add(classes, list(response), [*read, *last], np.append(mass, 1.0))
    print(counts.words)


if __name__ == "__main__":
    main()
