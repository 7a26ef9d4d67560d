"""Examples and tokens of data that is at hand, counted for a plan."""

from __future__ import annotations

import math

import datasets
import numpy as np

from srd.data.batching import Collator, EncodedExamples
from srd.data.encoding import Encoder
from srd.data.templates.base import get_template
from srd.models.loading.loading import load_tokenizer
from srd.recipe.schema import Recipe
from srd.run.models import RecipeModels
from srd.run.outline.costs import DataFacts, alignment_of, shares_of_teachers
from srd.run.steps.examples import read_splits
from srd.training.alignment import Reader, warn_of_coverage

COVERED = 1_000  # of those, how many a teacher with tokens of its own is tried on
SAMPLE = 10_000  # training examples that are tokenised


def count_data(
    recipe: Recipe, notes: list[str], encoder_decoder: bool, models: RecipeModels | None, *, has_tokenizer: bool
) -> DataFacts | tuple[dict[str, int], float, float]:
    """Count examples and tokens; without a tokenizer, examples by split and estimated tokens of prompt and response.

    Raises:
        UserError: the data is wrong.
    """
    encoder = _encoder(recipe, encoder_decoder) if has_tokenizer else None
    trial = encoder.with_template(recipe.data.frame[0]) if encoder else None  # it tells nothing
    splits = read_splits(recipe, models or trial)
    count = len(splits["train"])
    train, told = sampled(splits["train"], recipe.seed)
    notes += told
    if encoder is None:
        notes.append("the tokenizer is not at hand: tokens are estimated as a quarter of the characters")
        rows = list(train)
        prompt = math.fsum(len(r["instruction"]) + len(r["input"]) + len(r["messages"]) for r in rows) / 4 / len(rows)
        response = math.fsum(len(r["references"][0]) for r in rows) / 4 / len(rows) + 1
        return {name: len(split) for name, split in splits.items()}, prompt, response
    encoded = encoder.encode(train)
    examples = EncodedExamples(encoded)
    response = examples.response_tokens / len(train)
    prompt = (sum(examples.lengths) - examples.response_tokens) / len(train)
    theirs = 0.0 if models is None or not models.apart else _read_apart(models, train, examples, notes)
    return DataFacts(
        count,
        len(splits["validation"]),
        len(splits["test"]),
        prompt,
        response,
        round(response * count),
        count <= SAMPLE,
        round(theirs * count),
        shares_of_teachers(recipe, train, examples.learnt),
    )


def sampled(train: datasets.Dataset, seed: int) -> tuple[datasets.Dataset, list[str]]:
    """The training examples whose tokens are counted: all, or some of many with a note that says so."""
    count = len(train)
    if count <= SAMPLE:
        return train, []
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:SAMPLE])
    return train.select(chosen), [f"tokens are counted on {SAMPLE:,} of {count:,} training examples"]


def _read_apart(models: RecipeModels, train: datasets.Dataset, examples: EncodedExamples, notes: list[str]) -> float:
    """Tokens of a response for a teacher with tokens of its own; notes how much of the student's it can supervise."""
    rows = train.select(np.unique(np.linspace(0, len(train) - 1, min(COVERED, len(train))).astype(int)))
    theirs = EncodedExamples(models.teacher_encoder.encode(rows))
    if any(training.needs_teacher for training in models.recipe.student_trainings):
        method = alignment_of(models.recipe, models.recipe.training)
        reader = Reader(models.teacher_tokenizer, models.tokenizer, theirs, Collator(0), method)
        told = reader.coverage_of(examples.subset(theirs.ids))
        notes.append(told.words)
        warn_of_coverage(told)
    return theirs.response_tokens / len(rows)


def _encoder(recipe: Recipe, encoder_decoder: bool) -> Encoder:
    """What makes tokens of the examples."""
    named, data = recipe.models_here[-1], recipe.data
    tokenizer = load_tokenizer(str(named.model), **named.found)
    return Encoder(
        tokenizer, get_template(data.frame[0], tokenizer, data.frame[1]), max_length=data.max_length,
        max_prompt_length=data.max_prompt_length, encoder_decoder=encoder_decoder, train_on=data.train_on,
    )  # fmt: skip
