"""What can be foreseen of a run from its examples and models, before anything is computed: a warning each."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import datasets
import numpy as np
import pyarrow.compute as pc
import torch

from srd.base.remedies import warn
from srd.base.tables import column
from srd.base.text import shown_bytes
from srd.curation.copies import copies_of
from srd.curation.detectors.base import DETECTORS
from srd.data.settings import DataConfig
from srd.data.templates.base import class_of
from srd.metrics.scripts import BY_SCRIPT, COMPARE_WITHIN
from srd.recipe.schema import Recipe
from srd.run.models import RecipeModels
from srd.run.outline.costs import Phase
from srd.tasks.base import get_task

logger = logging.getLogger(__name__)

SHOWN_IDS = 3
HELD_OUT = "validation or test"
CLEAN = "data.cleaning.action=drop data.cleaning.find=[near_copy]"


def warn_of_copies(
    data: DataConfig, splits: Mapping[str, datasets.Dataset], benchmarks: Mapping[str, datasets.Dataset]
) -> None:
    """Say how many training examples nearly repeat one that models are compared on; equal prompts are told elsewhere.

    Args:
        data: Says whether cleaning is to leave them out, which then needs no warning.
        splits: ``train``, ``validation`` and ``test``, without equal prompts.
        benchmarks: Examples of the named tasks.
    """
    train, cleaning = splits["train"], data.cleaning
    finds_copies = cleaning.changes_rows and any(DETECTORS.get(each).of_copies for each in cleaning.find)
    cleaned = finds_copies and data.leaks == "drop"
    clean = CLEAN + ("" if data.leaks == "drop" else " data.leaks=drop")
    held_out = {} if cleaned else {HELD_OUT: (splits["validation"], splits["test"])}
    for name, rows in {**held_out, **{name: (rows,) for name, rows in benchmarks.items()}}.items():
        found = np.flatnonzero(copies_of(train, *rows))
        if len(found):
            ids = ", ".join(map(str, train.select(found[:SHOWN_IDS])["id"]))
            more = ", …" * (len(found) > SHOWN_IDS)
            warn(
                logger,
                f"{len(found)} of the {len(train)} training examples nearly repeat one in {name} (ids {ids}{more}): "
                "what a model scores there is partly remembered.",
                f"{clean} leaves them out, and copies among the training rows."
                if name == HELD_OUT
                else "Remove them from the training file, or leave the task out.",
            )


def warn_of_questions(models: RecipeModels, test: datasets.Dataset, benchmarks: Mapping[str, datasets.Dataset]) -> None:
    """Say where questions that models are compared on lose text, or answers are counted in words of another kind."""
    for name, rows in {"test": test, **benchmarks}.items():
        models.encoder.look_at_prompts(rows, name)
    for named in models.recipe.evaluation.tasks:
        if named.key in benchmarks and get_task(named.name).reading(benchmarks[named.key]):
            warn(logger, f"{named.key}: {BY_SCRIPT}", COMPARE_WITHIN)


def warn_of_frames(models: RecipeModels, train: datasets.Dataset) -> None:
    """Say where teacher and student would each see a conversation in a frame of their own."""
    own, shared = models.teacher_tokenizer, models.tokenizer
    kind = class_of(models.recipe.data.frame[0])
    if (
        models.apart
        or not models.is_taught
        or not kind.takes_options
        or str(own.chat_template) == str(shared.chat_template)
    ):
        return
    if not kind.in_turns and not pc.any(pc.not_equal(column(train, "messages"), "")).as_py():
        return
    written = "its own" if own.chat_template else "the student's too, having none"
    warn(
        logger,
        f"the chat template of the teacher ({models.recipe.teacher.model}) is not the student's "
        f"({models.recipe.student.model}): what the teacher says of each token is asked within the student's frame, as "
        f"one sequence serves both. Where it writes text it has {written}.",
        "For one frame everywhere give both models the same chat_template.",
    )


def warn_of_memory(recipe: Recipe, most: Phase) -> None:
    """Say where one device has less memory than a run needs at its peak.

    Args:
        recipe: What can be made smaller.
        most: The step that needs most.
    """
    there, needed, training = memory_here(), most.memory, recipe.training
    if needed > there:
        smaller = ["generation.batch_size=1"] if not most.stages and recipe.generation.batch_size > 1 else []
        smaller += [
            setting
            for setting, is_set in (
                ("training.micro_batch_size=1", training.micro_batch_size == 1),
                ("training.gradient_checkpointing=true", training.gradient_checkpointing),
                ("training.lora={r: 16}", training.lora is not None),
            )
            if most.stages and not is_set
        ]
        # Of the teacher's cache the plan counts all weights; what does not fit is then read from disk.
        teacher = (
            "A teacher that does not fit is read from disk, layer by layer (teacher.offload=auto, the default), which "
            "takes longer; teacher.load_in_8bit=true or teacher.load_in_4bit=true makes it smaller. Else: "
            if most.name == "cache" or most.name.startswith("cache/")
            else ""
        )
        warn(
            logger,
            f"about {shown_bytes(needed)} of memory are needed at the peak, in {most.name}, and this machine has "
            f"{shown_bytes(there)}.",
            f"{teacher}Take a larger machine, smaller models, or set {' '.join(smaller)}; "
            "srd plan says what each changes."
            if smaller
            else f"{teacher}Take a larger machine, or smaller models.",
        )


def memory_here() -> float:
    """Bytes that a model can use on this machine: the first GPU's, or the main memory."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
