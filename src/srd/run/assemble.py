"""What steps need of a run: models that are loaded, and all that one training takes."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from srd.base import parallel
from srd.base.errors import UserError
from srd.base.files import fingerprint, is_sealed, link, remove, seal
from srd.base.remedies import warn
from srd.base.tables import column, positions, write_table
from srd.curation.curriculum import Curriculum, Stage
from srd.curation.likelihoods import Pairs, pair_losses
from srd.curation.ranking import rank
from srd.curation.reflection import forget_batches, reflect
from srd.curation.scores.base import columns_of, scores_of
from srd.data.batching import Collator, EncodedExamples
from srd.data.portable_chat import chat_template_of, usual_template
from srd.models.architecture import count_parameters
from srd.models.cluster import RemoteModel
from srd.models.engines.base import ENGINES
from srd.models.loading import load_config, load_generation_config, load_model, save_model
from srd.models.served.journal import Journal
from srd.models.served.lists import ServedLists, key_of
from srd.models.tokens import padding_id, prefix_of
from srd.recipe.schema import Recipe
from srd.run.context import Run
from srd.run.costs import cache_tier
from srd.run.identity import model_identity
from srd.run.served import endpoint_of
from srd.tasks.base import get_task
from srd.training.alignment import Reader, warn_of_coverage
from srd.training.settings import TrainingConfig
from srd.training.several import SeveralCaches
from srd.training.stages import Training, check_disk
from srd.training.teacher_cache import HEAD, TeacherCache, build_cache, cache_folder, example_key
from srd.training.teachers.base import TEACHERS, TeacherSource
from srd.training.teachers.cache import head_alone
from srd.training.teachers.common import Teacher
from srd.training.tiers.base import Tier

logger = logging.getLogger(__name__)


def parameters(source: str) -> int:
    """How many parameters a model has."""
    return count_parameters(load_config(source))["total"]


def load(source: str, run: Run, options: dict[str, Any]) -> Any:
    """A model that trains or is read."""
    device = parallel.state().device if torch.cuda.is_available() else None
    tokenizer, role = _part(source, run)
    return load_model(source, tokenizer=tokenizer, device=device, role=role, **options)


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
    engine = ENGINES.get("endpoint" if served else run.recipe.generation.engine)
    if served:
        options = {
            "endpoint": endpoint_of(run.recipe.teacher, 0),
            "tokenizer": run.tokenizer,
            "journal": journal_of(run),
        }
    elif run.recipe.cluster.engine == "ray":
        name, longest = run.recipe.generation.engine, _longest_text(run)
        there = functools.partial(_load_there, source, *_part(source, run), options, name, longest)
        return RemoteModel(run.recipe.cluster, there)
    return engine.load(source, _longest_text(run), options, lambda: load(source, run, options))


def _load_there(
    source: str, tokenizer: Any, role: str, options: dict[str, Any], engine: str = "transformers", longest: int = 0
) -> Any:
    """What an actor loads."""
    device = "cuda" if torch.cuda.is_available() else None
    here = functools.partial(load_model, source, tokenizer=tokenizer, device=device, role=role, **options)
    return ENGINES.get(engine).load(source, longest, options, here)


def journal_of(run: Run) -> Path:
    """Where this process keeps what a served teacher has written; of another teacher nothing is taken."""
    name = f"{run.keys.get('teacher', model_identity(run.recipe.teacher))[:16]}-{parallel.process()}.jsonl"
    return run.files.served / name


def lists_of(run: Run, folder: Path, top: int, number: int = 0) -> ServedLists:
    """A served teacher that is asked about training examples; ``folder`` keeps what it says while it is asked.

    Raises:
        UserError: it cannot serve.
    """
    endpoint, examples = endpoint_of(run.recipe.all_teachers[number], top), run.encoded("train")
    endpoint.check(run.tokenizer, run.recipe.data.max_length)
    names = {key_of(examples.tokens(i)): name for i, name in enumerate(examples.ids)}
    return ServedLists(endpoint, Journal(folder / f"asked-{parallel.process()}.jsonl"), names)


def _longest_text(run: Run) -> int:
    """Tokens of the longest text a writer handles: a prompt and its answer, or a prompt, its reference and one more."""
    recipe = run.recipe
    answers = [recipe.generation.max_new_tokens, recipe.reflection.max_new_tokens or 0]
    trainings = [each for each in recipe.student_trainings if each.teacher_writes or each.writes_ahead or each.on_pairs]
    answers += [each.method.longest_text() or 0 for each in trainings]
    answers += [get_task(named.name).decoding.max_new_tokens for named in recipe.evaluation.tasks]
    return max(recipe.data.max_length + 1, recipe.data.max_prompt_length + max(answers))


# ------------------------------------------------------------------------------------------------------ teacher cache


def exact_tier(run: Run) -> Tier:
    """What is kept of text that the student writes ahead: the teacher's states."""
    return tier_of_run(run, "exact")


def tier_of_run(run: Run, name: str | None = None, *, number: int = 0) -> Tier:
    """What the cache of a teacher keeps of a token.

    Args:
        run: The run.
        name: Another tier than the recipe's.
        number: Which of several teachers, here and in what follows.
    """
    teacher = run.recipe.all_teachers[number]
    running: str = "float32" if teacher.endpoint is not None else teacher.dtype
    if running == "auto":
        config = load_config(run.teacher_options_of(number)[0])
        running = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return cache_tier(run.recipe, running, name)


def taught_rows(run: Run, number: int = 0) -> EncodedExamples:
    """The training examples that a teacher is read for: all, or those that are its own."""
    examples = run.read_by_teacher("train")
    if not run.recipe.teach_by_row:
        return examples
    owners = zip(examples.ids, run.owners, strict=True)
    return examples.subset([name for name, owner in owners if owner == number])


def needed_cache_bytes(run: Run, number: int = 0) -> int:
    """What the cache of a teacher takes."""
    teacher, tier = run.recipe.all_teachers[number], tier_of_run(run, number=number)
    width = 0 if teacher.endpoint is not None else run.teacher_configs[number].get_text_config().hidden_size
    return taught_rows(run, number).response_tokens * tier.token_bytes(int(width), run.teacher_width)


def all_cache_bytes(run: Run) -> int:
    """What the caches of all teachers take."""
    return sum(needed_cache_bytes(run, number) for number in range(len(run.recipe.all_teachers)))


def cache_fits(run: Run) -> bool:
    """Whether the recipe allows a cache of that size."""
    return all_cache_bytes(run) <= run.recipe.cache.limit_gb * 1e9


def may_cache(recipe: Recipe) -> bool:
    """Whether the recipe allows a cache at all; other teachers than the model itself are asked in every step."""
    return recipe.cache.enabled is not False and not recipe.teacher.source


def place_of_cache(run: Run, number: int = 0) -> Path:
    """The folder of a teacher's cache."""
    root = Path(run.recipe.cache.dir).expanduser() if run.recipe.cache.dir else run.files.cache
    # As the key of the step `teacher` is with one: a cache is the same, alone and among others.
    several, own = run.recipe.teachers, model_identity(run.recipe.all_teachers[number])
    key = fingerprint("teacher", [], own) if several else run.keys["teacher"]
    return cache_folder(root, fingerprint(key, run.teacher_width), tier_of_run(run, number=number).identity)


def caches_of(run: Run) -> TeacherCache | SeveralCaches:
    """The teacher's cache; of several teachers all of them, as one."""
    recipe = run.recipe
    caches = [TeacherCache(place_of_cache(run, number)) for number in range(len(recipe.all_teachers))]
    if not recipe.teachers:
        return caches[0]
    if not recipe.teach_by_row:
        return SeveralCaches(caches, [each.weight or 1.0 for each in recipe.teachers])
    examples = run.encoded("train")
    owners: dict[str, int] = {}
    for index, owner in enumerate(run.owners):
        key = example_key(*examples.tokens(index).values())
        if owners.setdefault(key, owner) != owner:
            names = [recipe.teachers[each].title for each in (owners[key], owner)]
            raise UserError(
                f"example '{examples.ids[index]}' is there twice, once with the teacher '{names[0]}' and once with "
                f"'{names[1]}'. Remove one of the two rows."
            )
    return SeveralCaches(caches, owners=owners)


def collator(run: Run) -> Collator:
    """The teacher's collator, before any model is loaded."""
    config, teacher = run.configs[0], run.recipe.teacher
    padding = padding_id(run.teacher_tokenizer if run.apart else run.tokenizer)
    if not config.is_encoder_decoder:
        return Collator(padding)
    generation = load_generation_config(
        teacher.model, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
    )
    return Collator(padding, prefix_of(config, generation))


# --------------------------------------------------------------------------------------------------- reflection, ranks


def longest_answer(run: Run) -> int:
    """Tokens of an answer in reflection."""
    return run.recipe.reflection.max_new_tokens or run.recipe.generation.max_new_tokens


def reflect_on(run: Run, model: Any, folder: Path, places: NDArray[np.int64] | None = None) -> datasets.Dataset:
    """Let a student answer the training prompts, or those at some places; ``folder`` keeps what is done of it."""
    rows, encoded = run.split("train"), run.token_ids("train")
    if places is not None:
        rows, encoded = rows.select(places), encoded.select(places).flatten_indices()
    with run.progress("student answers") as update:
        return reflect(
            model,
            run.tokenizer,
            rows,
            encoded=encoded,
            max_new_tokens=longest_answer(run),
            batch_size=run.recipe.generation.batch_size,
            words=run.words,
            folder=folder,
            progress=update,
        )


def keep_scores(scores: datasets.Dataset, path: Path, batches: Path) -> None:
    """Write the scores; the batches they came from are not needed any more, by any process."""
    if parallel.is_main():
        write_table(scores, path)
    parallel.barrier()
    if parallel.is_main():
        forget_batches(batches)
    parallel.barrier()


def ranked_scores(run: Run, curriculum: Curriculum, path: Path | None = None) -> datasets.Dataset:
    """Rank by what a curriculum goes by; ``path``: other scores than those of the starting student."""
    table = datasets.Dataset(pq.read_table(path or run.files.scores, columns=["id", "rouge_l", "ce"]))
    columns = columns_of(scores_of(curriculum.score))
    if "length" in columns:
        examples = run.encoded("train")
        lengths = {name: len(response) for name, response in zip(examples.ids, examples.responses, strict=True)}
        table = table.add_column("length", [lengths[name] for name in table["id"]])
    if more := [name for name in columns if name not in table.column_names]:
        measured = datasets.Dataset(pq.read_table(run.files.measures, columns=["id", *more]))
        measured = measured.select(positions(column(table, "id"), measured)).select_columns(more)
        table = datasets.concatenate_datasets([table, measured], axis=1)
    return rank(
        table, k=curriculum.k, by=curriculum.score, fusion=curriculum.fusion, seed=curriculum.seed,
        bad_rows=run.recipe.data.bad_rows,
    )  # fmt: skip


def with_marks(run: Run, laid_out: datasets.Dataset) -> datasets.Dataset:
    """The ranking with what the cleaning has found: of every row, also of those that were dropped and have no rank."""
    marks = pq.read_table(run.files.marked).drop_columns(["response_before", "response_after"])
    ranked = laid_out.with_format("arrow")[:]
    gone = marks.filter(pc.invert(pc.is_in(marks["id"], value_set=ranked["id"].combine_chunks()))).select(["id"])
    rest = {
        "rank": pa.array(np.arange(len(ranked) + 1, len(ranked) + len(gone) + 1)),
        "kept": pa.array(np.zeros(len(gone), bool)),
        "stage": pa.array(np.full(len(gone), -1, np.int32)),
        **{name: pa.array(np.full(len(gone), np.nan)) for name in ("rouge_l", "ce", "rank_rouge", "rank_ce", "rrf")},
    }
    table = pa.concat_tables([ranked, pa.table({"id": gone["id"], **rest}).select(ranked.column_names)])
    place = pc.index_in(table["id"], value_set=marks["id"].combine_chunks())
    found = marks.take(place)
    for name in (name for name in found.column_names if name not in table.column_names):
        table = table.append_column(name, found[name])
    return datasets.Dataset(table.combine_chunks())


def teacher_losses(run: Run, folder: Path) -> NDArray[np.float64]:
    """The teacher's mean nats a token of each training response, ``[N]``: from its cache where there is one.

    Where its tokens are not the student's, they are nats for each of the student's: so scores can compare the two.

    Args:
        run: The run.
        folder: Keeps what is done, where the teacher has to read.
    """
    examples = run.read_by_teacher("train")
    tokens = np.maximum([len(response) for response in run.encoded("train").responses], 1)
    if "cache" not in run.keys and run.recipe.teacher.endpoint is not None:
        ask = lists_of(run, folder, 0)
        with run.progress("teacher reads") as update:
            return ask.mean_losses([examples.tokens(i) for i in range(len(examples))], update)
    if "cache" not in run.keys:
        model = load_reader(run.teacher_source, run, run.teacher_options())
        rows = np.arange(len(examples))
        pairs = Pairs(examples.prompts, examples.responses, np.stack([rows, rows], 1))
        with run.progress("teacher reads") as update:
            totals, _ = pair_losses(
                model,
                run.teacher_tokenizer if run.apart else run.tokenizer,
                pairs,
                batch_size=run.recipe.generation.batch_size,
                folder=folder,
                progress=update,
            )
        return totals / tokens
    cache = caches_of(run)
    head = cache.head().cut(run.teacher_width)
    losses = (cache.losses(head, *examples.tokens(i).values()) for i in range(len(examples)))
    means = [float(nats.double().sum()) / count if run.apart else float(nats.double().mean())
             for nats, count in zip(losses, tokens, strict=True)]  # fmt: skip
    return np.array(means)


# ------------------------------------------------------------------------------------------------------- one training


@contextlib.contextmanager
def training_of(
    run: Run, label: str, config: TrainingConfig, folder: Path, start: str, options: dict[str, Any]
) -> Iterator[Training]:
    """Gather what a training needs: text, teacher, stages, validation, a log, a progress bar."""
    check_disk(run.folder, parameters(start))
    of_teacher = bool(run.apart) and config is run.recipe.teacher.sft
    written = _responses(run, config, run.files.teacher_text) if config.teacher_writes else None
    if config.on_pairs:
        examples = pair_examples(run, config)
    else:
        examples = run.read_by_teacher("train") if of_teacher else run.encoded("train", written)
    load_teacher = read_once = None
    if config.needs_teacher:
        if config.writes_ahead and may_cache(run.recipe) and cache_fits(run):
            read_once = functools.partial(_read_once, run)
        load_teacher = _teacher_of(run, config, examples, written=written is not None, ahead=read_once is not None)
    stages, again = _stages(run, config, examples, folder)
    if config.method.text not in ("teacher", "both") and (soft := run.soft_rows()):
        examples.soft = frozenset(soft)
        if not config.needs_teacher:  # there is nothing but cross-entropy
            stages = [replace(stage, ids=[name for name in stage.ids if name not in soft]) for stage in stages]
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
            engine=functools.partial(_engine, run, config),
            choose_again=again,
            metrics_file=run.files.metrics,
            log_file=run.files.log(label),
            progress=update,
            kept_tokenizer=with_trained_prompt(run),
        )


def _read_once(run: Run, examples: EncodedExamples, folder: Path) -> TeacherCache:
    """Let the teacher read text that the student has written, as it reads the references for the run's cache."""
    place = cache_folder(folder, fingerprint(run.keys["teacher"], run.width), exact_tier(run).identity)
    parallel.on_main(lambda: _share_head(place, [*folder.parent.glob(f"*.work/{place.name}"), place_of_cache(run)]))
    with run.progress("teacher reads") as update:
        return build_cache(
            place,
            lambda: load(run.teacher_source, run, run.teacher_options()),
            examples,
            collator(run),
            tier=exact_tier(run),
            width=run.width,
            batch_size=run.recipe.generation.batch_size,
            progress=update,
        )


def _share_head(place: Path, others: list[Path]) -> None:
    """Take the teacher's head from another cache of the same kind: it is as large as a fifth of a small teacher."""
    for other in others:
        if other.name == place.name and (other / HEAD[-1]).is_file() and not (place / HEAD[-1]).is_file():
            for name in HEAD:
                link(other / name, place / name)


@contextlib.contextmanager
def _engine(run: Run, config: TrainingConfig, student: Any, folder: Path) -> Iterator[Any]:
    """What a student in training writes with: the engine that the recipe names, or itself where that takes files.

    An adapter is not put into the weights for it: taking it out again would change them by rounding.
    """
    engine = ENGINES.get(run.recipe.generation.engine)
    if engine.reads_files and config.lora is not None:
        yield student
        return
    if engine.reads_files and parallel.is_main():
        save_model(student, run.tokenizer, folder)
    parallel.barrier()
    yield engine.load(str(folder), _longest_text(run), {"dtype": run.recipe.student.dtype}, lambda: student)
    parallel.barrier()
    if parallel.is_main():
        remove(folder)


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


PAIR = ("teacher", "student")  # who writes the two texts of a prompt
OWN = " (student)"  # behind the id of an example: its text is the student's


def pair_examples(run: Run, config: TrainingConfig) -> EncodedExamples:
    """Every training prompt twice: with the teacher's text, and with the student's, which has no cross-entropy."""
    both = []
    for who in PAIR:
        with run.progress("tokens") as update:
            both.append(
                run.encoder.encode(run.split("train"), _responses(run, config, run.files.pair_text(who)), update)
            )
    texts, own = both
    names = [f"{name}{OWN}" for name in own["id"]]
    own = own.remove_columns("id").add_column("id", names).select_columns(texts.column_names).cast(texts.features)
    examples = EncodedExamples(datasets.concatenate_datasets([texts, own]))
    examples.soft = frozenset(names)
    return examples


def pair_cache(run: Run, examples: EncodedExamples) -> TeacherCache | None:
    """What the teacher says of both texts of each prompt; None where the recipe wants no cache, or one so large."""
    cache = run.recipe.cache
    needed = examples.response_tokens * tier_of_run(run).token_bytes(run.hidden_size, run.width)
    if cache.enabled is False or run.recipe.teacher.source or needed > cache.limit_gb * 1e9:
        return None
    with run.progress("teacher") as update:
        return build_cache(
            place_of_cache(run),
            lambda: load(run.teacher_source, run, run.teacher_options()),
            examples,
            collator(run),
            tier=tier_of_run(run),
            width=run.width,
            max_kl=cache.max_kl,
            batch_size=run.recipe.generation.batch_size,
            progress=update,
        )


def _in_pairs(stage: Stage) -> Stage:
    """A stage with both texts of its prompts."""
    ids = [text for name in stage.ids for text in (name, name + OWN)]
    return replace(stage, ids=ids, subset=None if stage.subset is None else 2 * stage.subset)


def _teacher_of(
    run: Run, config: TrainingConfig, examples: EncodedExamples, *, written: bool, ahead: bool
) -> Callable[[], Teacher]:
    """What gives the teacher of a training; where it is not apart, the examples bring what a cache has of them.

    Args:
        run: The run.
        config: Of the training.
        examples: That it trains on.
        written: Whether a model has written their answers.
        ahead: Whether text is written ahead, and read by the teacher once.
    """
    cached = config.caches_references and "cache" in run.keys and not config.on_pairs
    cache = caches_of(run) if cached else None
    if config.on_pairs and may_cache(run.recipe):
        cache = pair_cache(run, examples)
    source = TeacherSource(lambda: load(run.teacher_source, run, run.teacher_options()), run.teacher_width, cache)
    kind = run.recipe.teacher.source or ("cache" if cache is not None else "live")
    make = head_alone if ahead and cache is None else TEACHERS.get(kind)
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
    method, folder = config.alignment, run.files.alignment
    reader = Reader(run.teacher_tokenizer, run.tokenizer, theirs, collator(run), method, written, folder)
    if parallel.is_main():
        told = reader.coverage_of(run.encoded("train"))
        logger.info("%s", told.words)
        warn_of_coverage(told)
    return reader


def _responses(run: Run, config: TrainingConfig, path: Path) -> datasets.Dataset:
    """What a model answered to the training prompts, in the order of the training examples.

    Args:
        run: The run.
        config: Of the training, which cuts them; they are as long as the one that wants most of them wants.
        path: The file with the answers.

    Returns:
        ``tokens`` without what ended them, and whether they ``ended``.
    """
    answers = datasets.Dataset(pq.read_table(path))
    order = positions(column(run.split("train"), "id"), answers)
    answers = answers.select_columns(["tokens", "ended"]).select(order)
    lengths = pc.list_value_length(answers.data.column("tokens")).to_numpy()
    longest = config.method.longest_text()
    if longest is None or lengths.max(initial=0) < longest:  # the end is a token, too
        return answers

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": row["tokens"][:longest], "ended": row["ended"] and len(row["tokens"]) < longest}

    return datasets.Dataset.from_list([cut(row) for row in answers], features=answers.features)


def _stages(
    run: Run, config: TrainingConfig, examples: EncodedExamples, folder: Path
) -> tuple[list[Stage], Callable[[Any, Stage], Stage] | None]:
    """The stages of a training, and how to choose their examples anew where it reflects again."""
    curriculum = run.curriculum_of(config)
    if curriculum is None:
        return [Stage(0, list(examples.ids), config.temperature, config.weight)], None
    in_pairs = _in_pairs if config.on_pairs else lambda stage: stage
    stages = [in_pairs(stage) for stage in curriculum.split(ranked_scores(run, curriculum))]

    def choose_again(model: Any, stage: Stage) -> Stage:
        path = folder / "stages" / str(stage.index) / "scores.parquet"
        if not parallel.on_main(lambda: is_sealed(path)):
            keep_scores(reflect_on(run, model, path.parent / "batches"), path, path.parent / "batches")
            parallel.on_main(lambda: seal(path))
        ranked = ranked_scores(run, curriculum, path)
        return in_pairs(curriculum.split(ranked)[stage.index])

    return stages, choose_again if curriculum.reflect_again else None


def mean_scores(scores: datasets.Dataset) -> dict[str, float]:
    """Means of a reflection, for its summary."""
    return {f"mean_{name}": round(float(np.mean(scores[name])), 4) for name in ("rouge_l", "ce")}
