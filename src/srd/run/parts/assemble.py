"""All that one training takes, put together."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from srd.base import parallel
from srd.base.console import console
from srd.base.errors import UserError
from srd.base.files import discard, is_sealed, seal
from srd.base.handed import check_kind
from srd.base.remedies import warn
from srd.base.tables import write_table
from srd.curation.curriculum import Stage
from srd.data.batching import EncodedExamples
from srd.data.portable_chat import chat_template_of, usual_template
from srd.run.context import Run
from srd.run.outline.costs import alignment_of, disk_to_train
from srd.run.outline.order import may_cache
from srd.run.outline.sizes import size_of
from srd.run.parts.loading import config_of, engine_for, load
from srd.run.parts.pairs import in_pairs_of, pair_examples, responses
from srd.run.parts.scores import ranked_scores, reflect_on
from srd.run.parts.teacher_caches import cache_fits, caches_of, collator, pair_cache, read_once_of
from srd.training.alignment import Reader, warn_of_coverage
from srd.training.checkpoints import check_disk
from srd.training.settings import TrainingConfig
from srd.training.teachers.base import TEACHERS, TeacherSource
from srd.training.teachers.cache import head_alone
from srd.training.teachers.common import Teacher
from srd.training.training import Training

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def training_of(
    run: Run, label: str, config: TrainingConfig, folder: Path, start: str, options: dict[str, Any],
    split: Sequence[Stage] = (),
) -> Iterator[Training]:  # fmt: skip
    """Gather what a training needs: text, teacher, stages, validation, a log, a progress bar.

    ``split`` is of its curriculum, where it has one: `split_of`.
    """
    check_disk(run.folder, disk_to_train(size_of(config_of(start, options), config), config))
    of_teacher = bool(run.apart) and config is run.recipe.teacher.sft
    written = responses(run, config, run.files.teacher_text) if config.teacher_writes else None
    if config.on_pairs:
        examples = pair_examples(run, config)
    else:
        examples = run.read_by_teacher("train") if of_teacher else run.encoded("train", written)
    load_teacher = read_once = None
    if config.needs_teacher:
        if config.writes_ahead and may_cache(run.recipe) and cache_fits(run):
            read_once = functools.partial(read_once_of, run)
        load_teacher = _teacher_of(run, config, examples, written=written is not None, ahead=read_once is not None)
    if config.method.text not in ("teacher", "both"):
        examples.soft = examples.doubtful = frozenset(run.soft_rows())
    stages, again = _stages(run, config, examples, folder, split)
    run.files.log(label).parent.mkdir(exist_ok=True)
    with run.progress(label) as update:
        yield Training(
            label=label,
            config=config,
            folder=folder,
            start=start,
            load_options=options,
            examples=examples,
            tokenizer=run.teacher_tokenizer if of_teacher else run.tokenizer,
            validation=run.validation(config, of_teacher=of_teacher),
            stages=stages,
            seed=run.seed_of(config),
            load_teacher=load_teacher,
            read_once=read_once,
            engine=functools.partial(engine_for, run, config),
            reflect_again=again,
            metrics_file=run.files.metrics,
            log_file=run.files.log(label),
            progress=update,
            kept_tokenizer=with_trained_prompt(run),
        )


def with_trained_prompt(run: Run) -> Any:
    """The tokenizer with the prompt format of the training as its chat template."""
    kept = copy.deepcopy(run.tokenizer)
    template = usual_template(run.encoder.template, run.split("train"))
    kept.chat_template = chat_template_of(template, run.tokenizer, encoder_decoder=run.encoder_decoder)
    if kept.chat_template is None:
        name = type(template).__name__
        warn(
            logger,
            f"The student is saved without a chat template: {name} does not say what it puts around a question.",
            "Give it a method frame() that returns srd.data.templates.base.Frame.",
        )
    return kept


def _teacher_of(
    run: Run, config: TrainingConfig, examples: EncodedExamples, *, written: bool, ahead: bool
) -> Callable[[], Teacher]:
    """What gives the teacher of a training; where it is not apart, the examples bring what a cache has of them."""
    cached = config.caches_references and "cache" in run.keys and not config.on_pairs
    cache = caches_of(run) if cached else None
    if config.on_pairs and may_cache(run.recipe):
        cache = pair_cache(run, examples)
    source = TeacherSource(lambda: load(run.teacher_source, run, run.teacher_options()), run.teacher_width, cache)
    kind = run.recipe.teacher.source or ("cache" if cache is not None else "live")
    registered = head_alone if ahead and cache is None else TEACHERS.get(kind)

    def make(source: TeacherSource) -> Teacher:
        teacher = registered(source)
        check_kind(f"what teacher.source={kind} gives", teacher, Teacher, "give an instance of srd.LogitTeacher")
        if not hasattr(teacher, "reader"):
            raise UserError(f"{type(teacher).__name__}.__init__ must call super().__init__(source)")
        return teacher

    if not run.apart:
        examples.teacher = cache
        return functools.partial(make, source)
    reader = reader_of(run, config, written=written)
    reader.examples.teacher = cache

    def load_teacher() -> Teacher:
        teacher: Teacher = make(source)
        teacher.reader = reader
        return teacher

    return load_teacher


def reader_of(run: Run, config: TrainingConfig, *, written: bool = False) -> Reader:
    """What a teacher with tokens of its own reads in a training, which says how much of it that can supervise."""
    theirs = run.read_by_teacher("train")
    method, folder = alignment_of(run.recipe, config), run.files.alignment
    reader = Reader(run.teacher_tokenizer, run.tokenizer, theirs, collator(run), method, written, folder)
    if parallel.is_main():
        told = reader.coverage_of(run.encoded("train"))
        logger.info("%s", told.words)
        warn_of_coverage(told)
    return reader


def split_of(run: Run, config: TrainingConfig) -> list[Stage]:
    """The training rows in the stages of a training's curriculum; none where it has no curriculum."""
    curriculum = run.curriculum_of(config)
    return curriculum.split(ranked_scores(run, curriculum)) if curriculum else []


def _stages(
    run: Run, config: TrainingConfig, examples: EncodedExamples, folder: Path, split: Sequence[Stage]
) -> tuple[list[Stage], Callable[[Any, Stage], Stage] | None]:
    """The stages of a training, and how to choose their examples anew where it reflects again."""

    def learnt(stage: Stage) -> Stage:
        # Without a teacher there is nothing but cross-entropy, which soft rows do not have.
        return stage if config.needs_teacher else stage.without(examples.soft)

    curriculum = run.curriculum_of(config)
    if curriculum is None:
        return [learnt(Stage(0, list(examples.ids), config.temperature, config.weight))], None
    in_pairs = in_pairs_of if config.on_pairs else lambda stage: stage
    stages = [learnt(in_pairs(stage)) for stage in split]

    def reflect_again(model: Any, stage: Stage) -> Stage:
        path = folder / "stages" / str(stage.index) / "scores.parquet"
        batches = path.parent / "batches"
        if not parallel.on_main(lambda: is_sealed(path)):
            if stage.index == 1:
                console.print("  by now the student has learnt rows of the stages before: what it knows by heart says "
                              "little of how hard it is (curriculum.reflect_again)", highlight=False)  # fmt: skip
            scores = reflect_on(run, model, batches)
            parallel.on_main(lambda: write_table(scores, path))
            parallel.on_main(lambda: seal(path))
        parallel.on_main(lambda: discard(batches))
        ranked = ranked_scores(run, curriculum, path)
        return learnt(in_pairs(curriculum.split(ranked)[stage.index]))

    return stages, reflect_again if curriculum.reflect_again else None
