"""Models of a run, loaded to train, to be read or to write: here, by an engine, a server or a cluster."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from srd.base import parallel
from srd.base.files import remove
from srd.data.batching import EncodedExamples
from srd.models.cluster import RemoteModel
from srd.models.engines.base import ENGINES, load_by
from srd.models.loading.architecture import count_parameters
from srd.models.loading.loading import load_config, load_model, save_model
from srd.models.served.journal import Journal
from srd.models.served.lists import ServedLists, key_of
from srd.run.context import Run, made_options
from srd.run.identity import model_identity
from srd.run.parts.served import endpoint_of, reads_with
from srd.tasks.base import get_task
from srd.training.settings import TrainingConfig

FOUND_BY = ("revision", "trust_remote_code")


def config_of(source: str, options: dict[str, Any]) -> Any:
    """The configuration of a model that is found, or loaded, with these options."""
    return load_config(source, **{name: options[name] for name in FOUND_BY if name in options})


def parameters(source: str, options: dict[str, Any]) -> int:
    """How many parameters a model has that is found, or loaded, with these options."""
    return count_parameters(config_of(source, options))["total"]


def load(source: str, run: Run, options: dict[str, Any]) -> Any:
    """A model that trains or is read."""
    tokenizer, role = _part(source, run)
    return load_model(source, tokenizer=tokenizer, device=parallel.own_gpu(), role=role, **options)


def _part(source: str, run: Run) -> tuple[Any, str]:
    """The tokenizer of a model of the run, and whether it is a teacher or the student."""
    if source in {run.teacher_source, *(each.model for each in run.recipe.teachers)}:
        return run.teacher_tokenizer if run.apart else run.tokenizer, "teacher"
    return run.tokenizer, "student"


def load_reader(source: str, run: Run, options: dict[str, Any]) -> Any:
    """A model that is only read: here, or by the actors of a cluster."""
    if run.recipe.cluster.engine == "local":
        return load(source, run, options)
    there = functools.partial(_load_there, source, *_part(source, run), options)
    return RemoteModel(run.recipe.cluster, there)


def load_writer(source: str, run: Run, options: dict[str, Any]) -> Any:
    """A model that only writes: by the recipe's engine, or by its server; or by the actors of a cluster."""
    served = source == run.teacher_source and run.recipe.teacher.endpoint is not None
    engine = "endpoint" if served else run.recipe.generation.engine
    if served:
        options = {
            "endpoint": endpoint_of(run.recipe.teacher, 0),
            "tokenizer": run.teacher_encoder.tokenizer,
            "journal": journal_of(run),
        }
    elif run.recipe.cluster.engine == "ray":
        there = functools.partial(_load_there, source, *_part(source, run), options, engine, longest_text(run))
        return RemoteModel(run.recipe.cluster, there)
    return load_by(engine, source, longest_text(run), options, lambda: load(source, run, options))


def _load_there(
    source: str, tokenizer: Any, role: str, options: dict[str, Any], engine: str = "transformers", longest: int = 0
) -> Any:
    """What an actor loads."""
    device = "cuda" if torch.cuda.is_available() else None
    here = functools.partial(load_model, source, tokenizer=tokenizer, device=device, role=role, **options)
    return load_by(engine, source, longest, options, here)


def journal_of(run: Run) -> Path:
    """Where this process keeps what a served teacher has written; of another teacher nothing is taken."""
    name = f"{run.keys.get('teacher', model_identity(run.recipe.teacher))[:16]}-{parallel.process()}.jsonl"
    return run.files.served / name


def lists_of(run: Run, folder: Path, top: int, number: int = 0, examples: EncodedExamples | None = None) -> ServedLists:
    """A served teacher that is asked about texts; ``folder`` keeps what it says while it is asked.

    Raises:
        UserError: it cannot serve.
    """
    endpoint, examples = endpoint_of(run.recipe.all_teachers[number], top), examples or run.read_by_teacher("train")
    endpoint.check(reads_with(run), run.recipe.data.max_length)
    names = {key_of(examples.tokens(i)): name for i, name in enumerate(examples.ids)}
    journal = endpoint.goes_on_with(Journal(folder / f"asked-{parallel.process()}.jsonl"))
    return ServedLists(endpoint, journal, names)


def longest_text(run: Run) -> int:
    """Tokens of the longest text a writer handles: a prompt and its answer, or a prompt, its reference and one more."""
    recipe = run.recipe
    answers = [recipe.generation.max_new_tokens, recipe.reflection.max_new_tokens or 0]
    trainings = [each for each in recipe.student_trainings if each.teacher_writes or each.writes_ahead or each.on_pairs]
    answers += [each.method.longest_text() or 0 for each in trainings]
    answers += [get_task(named.name).decoding.max_new_tokens for named in recipe.evaluation.tasks]
    return max(recipe.data.max_length + 1, recipe.data.max_prompt_length + max(answers))


@contextlib.contextmanager
def engine_for(run: Run, config: TrainingConfig, student: Any, folder: Path) -> Iterator[Any]:
    """What a student in training writes with: the engine that the recipe names, or itself where that takes files.

    An adapter is not put into the weights for it: taking it out again would change them by rounding.
    """
    name = run.recipe.generation.engine
    reads_files = ENGINES.get(name).reads_files
    if reads_files and config.lora is not None:
        yield student
        return
    if reads_files and parallel.is_main():
        save_model(student, run.tokenizer, folder)
    parallel.barrier()
    options = {"dtype": run.recipe.student.dtype, **made_options(run.recipe)}
    yield load_by(name, str(folder), longest_text(run), options, lambda: student)
    parallel.barrier()
    if parallel.is_main():
        remove(folder)
