"""The flow of a run, step by step. Each step reads files, writes files, and is skipped while its inputs are the same.

examples -> teacher -> student -> teacher cache -> reflection -> ranking -> training -> evaluation -> report
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from srd import parallel
from srd.artifacts import atomic_write, file_digest, fingerprint, remove
from srd.checks import check_run
from srd.config import Recipe, SourceConfig, TrainingConfig
from srd.console import progress_bar
from srd.curriculum import Curriculum, Stage
from srd.data.batching import Collator, EncodedExamples
from srd.data.corruption import corrupt
from srd.data.encoding import Encoder, encode_plain_text
from srd.data.examples import split_examples
from srd.data.sources import load_source
from srd.data.turns import without_end
from srd.distillation import Training, check_disk, train
from srd.errors import UserError
from srd.evaluation import Benchmark, Contender, compare, evaluate, read_benchmark
from srd.loss import HeadWeights
from srd.metrics import rouge_l
from srd.models.generation import Decoding, generate, generate_tokens, padding_id
from srd.models.loading import (
    count_parameters,
    load_config,
    load_model,
    model_fingerprint,
    position_limit,
    resolve_source,
    save_model,
    stop_token_ids,
)
from srd.models.shrink import drop_layers
from srd.models.vllm_engine import LOADING, VllmEngine
from srd.ranking import rank
from srd.reflection import forget_batches, ranking_warnings, reflect
from srd.report import build_report, examples_to_show
from srd.run import Run, load_options
from srd.tables import column, map_large, positions, repeated, write_table
from srd.tasks import get_task
from srd.teacher_cache import DTYPES, TeacherCache, build_cache, cache_bytes, cache_folder
from srd.trainer import PlainText, Teacher, append_row, make_collator

logger = logging.getLogger(__name__)

TEACHER_TEXT = pa.schema(
    [("id", pa.string()), ("response", pa.string()), ("tokens", pa.list_(pa.int32())), ("ended", pa.bool_())]
)
SPLITS = ("train", "validation", "test")
SHRINK_EXAMPLES = 64  # training examples whose hidden states decide which layers go


# ------------------------------------------------------------------------------------------------------------ examples


def prepare_examples(run: Run) -> str:
    """Read, split, limit and (where asked) corrupt the examples."""
    data, folder = run.recipe.data, run.folder / "examples"
    sources = [_source_identity(source) for source in (data.train, data.validation, data.test)]
    settings = data.model_dump(
        include={"validation_size", "test_size", "train_limit", "validation_limit", "test_limit", "corruption"}
    )
    key = run.once(
        "examples",
        [sources, settings, run.recipe.seed],
        [folder / f"{name}.parquet" for name in SPLITS],
        lambda: _check_count(parallel.on_main(lambda: _make_examples(run))),
    )
    parallel.on_main(lambda: map_large([folder / f"{name}.parquet" for name in SPLITS], run.folder / ".mapped"))
    return key


def _check_count(sizes: dict[str, Any]) -> dict[str, Any]:
    """Refuse more processes than there are training examples."""
    if parallel.processes() > sizes["train"]:
        raise UserError(
            f"{parallel.processes()} processes are more than the {sizes['train']} training examples. "
            "Start fewer processes, or give more examples."
        )
    return sizes


def _source_identity(source: SourceConfig | None) -> Any:
    """What decides the rows of a source: its settings, and the content of its files."""
    if source is None:
        return None
    paths = [source.path] if isinstance(source.path, str) else source.path or []
    digests = [file_digest(Path(path)) for path in paths if Path(path).is_file()]
    return [source.model_dump(), digests, platform.python_version() if "pydocs" in [*paths, source.dataset] else ""]


def read_splits(recipe: Recipe) -> dict[str, datasets.Dataset]:
    """The examples of a recipe by split: read, split, limited and (where asked) corrupted."""
    data, seed = recipe.data, recipe.seed
    splits = _load_splits(recipe)
    limits = {"train": data.train_limit, "validation": data.validation_limit, "test": data.test_limit}
    for name, limit in limits.items():
        if limit is not None and limit < len(splits[name]):
            chosen = np.sort(np.random.default_rng(seed).permutation(len(splits[name]))[:limit])
            splits[name] = splits[name].select(chosen)
    if data.corruption:
        splits["train"] = corrupt(splits["train"], data.corruption.share, data.corruption.kinds, seed)
    return splits


def _make_examples(run: Run) -> dict[str, Any]:
    splits = read_splits(run.recipe)
    ids = {name: column(splits[name], "id") for name in SPLITS}
    if len(twice := repeated(pa.chunked_array([chunk for name in SPLITS for chunk in ids[name].chunks]))):
        first, second, *_ = (name for name in SPLITS for _ in range(pc.sum(pc.equal(ids[name], twice[0])).as_py()))
        raise UserError(f"the id '{twice[0]}' is in {first} and in {second}: ids must be unique.")
    for name in SPLITS:
        write_table(splits[name], run.folder / "examples" / f"{name}.parquet")
    return {name: len(splits[name]) for name in SPLITS}


def _load_splits(recipe: Recipe) -> dict[str, datasets.Dataset]:
    """Train, validation and test: as the source has them, as the recipe names them, or split off by id."""
    data, seed = recipe.data, recipe.seed
    loaded = load_source(data.train, seed=seed)
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    for name, source in (("validation", data.validation), ("test", data.test)):
        if source is not None:
            other = load_source(source, seed=seed)
            splits[name] = other.get(name, next(iter(other.values()))) if isinstance(other, dict) else other
    if "train" not in splits:
        found = " and ".join(f"{name} ({len(rows)})" for name, rows in sorted(splits.items()))
        raise UserError(
            f"data.train has no training rows, only {found} (of Dolly the first 1000 rows are validation). "
            f"Give more rows, or train on these: data.train.split={min(splits)}"
        )
    missing = {
        name: size
        for name, size in (("validation", data.validation_size), ("test", data.test_size))
        if name not in splits
    }
    if missing:
        parts = split_examples(splits["train"], missing.get("validation", 0), missing.get("test", 0), seed)
        splits.update({name: parts[name] for name in ("train", *missing) if name in parts})
        if absent := [name for name in missing if name not in parts]:
            raise UserError(
                f"{len(splits['train'])} training examples are too few to split off {absent[0]} data. "
                f"Name a file as data.{absent[0]}, raise data.{absent[0]}_size, or give more examples."
            )
    return splits


# -------------------------------------------------------------------------------------------------------------- models


def prepare_teacher(run: Run) -> str:
    """Fine-tune the teacher, if the recipe asks for it; else it is taken as it is."""
    teacher = run.recipe.teacher
    identity = model_fingerprint(teacher.model, revision=teacher.revision, adapter=teacher.adapter)
    if teacher.sft is None:
        return run.once("teacher", [identity, teacher.dtype], [], lambda: {"parameters": _parameters(teacher.model)})
    config, examples = teacher.sft, prepare_examples(run)
    work = run.folder / "teacher-sft"

    def make() -> dict[str, Any]:
        with _training(run, "teacher_sft", config, work, teacher.model, load_options(teacher)) as training:
            summary = train(training, run.folder / "teacher")
        return {"parameters": _parameters(run.teacher_source), **summary}

    inputs = [identity, teacher.dtype, config.model_dump(), examples, run.encoding, run.recipe.seed]
    key = run.once("teacher", inputs, [run.folder / "teacher"], make, [work])
    _tidy(work)
    return key


def prepare_student(run: Run) -> str:
    """Make the starting student: its own model or a shortened teacher, warmed up if the recipe asks for it."""
    student = run.recipe.student
    if student.model and not student.drop_layers and not student.warm_start:
        identity = model_fingerprint(student.model, revision=student.revision, adapter=student.adapter)
        taken: list[Any] = [identity, student.dtype]
        return run.once("student", taken, [], lambda: {"parameters": _parameters(str(student.model))})
    examples, teacher = prepare_examples(run), prepare_teacher(run)
    origin: Any = teacher
    if student.model:
        origin = model_fingerprint(student.model, revision=student.revision, adapter=student.adapter)
    warm = student.warm_start
    work = run.folder / "warm-start"

    def make() -> dict[str, Any]:
        dropped = _shorten(run, work / "shortened")
        source = str(work / "shortened") if student.drop_layers else str(student.model)
        summary: dict[str, Any] = {}
        if warm is not None:
            options = {} if student.drop_layers else load_options(student)
            with _training(run, "warm_start", warm, work, source, options) as training:
                summary = train(training, run.folder / "start")
        elif parallel.is_main():
            os.replace(work / "shortened", run.folder / "start")
        parallel.barrier()
        return {"parameters": _parameters(run.start_source), "dropped_layers": dropped, **summary}

    inputs: list[Any] = [origin, student.dtype, student.drop_layers, warm and warm.model_dump()]
    inputs += [examples, run.encoding, run.recipe.seed]
    if warm is not None and (warm.needs_teacher or warm.method.name == "seqkd"):
        inputs.append(teacher)
    key = run.once("student", inputs, [run.folder / "start"], make, [work])
    _tidy(work)
    return key


def _tidy(work: Path) -> None:
    """Delete what a finished step no longer needs."""
    if parallel.is_main():
        remove(work)


def _shorten(run: Run, target: Path) -> str | None:
    """Write the shortened model, unless an interrupted attempt has."""
    student = run.recipe.student
    if not student.drop_layers:
        return None
    note = target.parent / "dropped.txt"
    if parallel.is_main() and not (target.exists() and note.exists()):
        source, options = (str(student.model), load_options(student)) if student.model else (
            run.teacher_source, {**run.teacher_options(), "dtype": "float32"})  # fmt: skip
        model = load_model(source, tokenizer=run.tokenizer, **options)
        examples, collate = run.encoded("train"), make_collator(model, run.tokenizer)
        rows = [examples[i] for i in range(min(SHRINK_EXAMPLES, len(examples)))]
        batches = [collate(rows[start : start + 8]) for start in range(0, len(rows), 8)]
        shorter, dropped = drop_layers(model, student.drop_layers, batches)
        save_model(shorter, run.tokenizer, target)
        with atomic_write(note) as partial:
            partial.write_text("; ".join(f"{stack} {layers}" for stack, layers in dropped.items()))
    parallel.barrier()
    return note.read_text()


def _parameters(source: str) -> int:
    return count_parameters(load_config(source))["total"]


# -------------------------------------------------------------------------------------------------------- teacher text


def teacher_cache(run: Run) -> TeacherCache | None:
    """The teacher's hidden states for all training examples; None where the live teacher is used instead."""
    cache, teacher = run.recipe.cache, prepare_teacher(run)
    if cache.enabled is False:
        return None
    dtype = _cache_dtype(run)
    examples = run.encoded("train")
    needed = cache_bytes(examples.response_tokens, run.hidden_size, DTYPES[dtype])
    if needed > cache.limit_gb * 1e9:
        logger.warning(
            "the teacher cache would take %.1f GB, more than cache.limit_gb = %g: the live teacher is used instead",
            needed / 1e9, cache.limit_gb,
        )  # fmt: skip
        return None
    root = Path(cache.dir).expanduser() if cache.dir else run.folder / "cache"
    folder = cache_folder(root, fingerprint(teacher, run.width), dtype)

    def make() -> dict[str, Any]:
        with run.progress("teacher") as update:
            build_cache(
                folder,
                lambda: _load(run.teacher_source, run, run.teacher_options()),
                examples,
                make_collator_from(run),
                dtype=dtype,
                batch_size=run.recipe.generation.batch_size,
                progress=update,
            )
        return {"examples": len(examples), "bytes": needed}

    inputs = [teacher, prepare_examples(run), run.encoding, run.width, dtype, cache.dir]
    run.once("cache", inputs, [], make, needed=[folder / "meta.json"])
    if parallel.on_main(lambda: bool(TeacherCache(folder).verify()) or not TeacherCache(folder).holds(examples)):
        run._done.pop("cache", None)
        run.manifest.steps.get("cache", {}).pop("finished", None)
        run.once("cache", inputs, [], make, needed=[folder / "meta.json"])
    return TeacherCache(folder)


def make_collator_from(run: Run) -> Collator:
    """The collator, before any model is loaded."""
    config = run.configs[0]
    start = getattr(config, "decoder_start_token_id", None) if config.is_encoder_decoder else None
    return Collator(padding_id(run.tokenizer), start)


def _cache_dtype(run: Run) -> str:
    """The precision the cache stores: the teacher's own unless the recipe says otherwise."""
    if run.recipe.cache.dtype != "auto":
        return run.recipe.cache.dtype
    if run.recipe.teacher.dtype != "auto":
        return run.recipe.teacher.dtype
    stored = str(getattr(load_config(run.teacher_source), "dtype", None) or "float32")
    return stored.removeprefix("torch.")


def _load(source: str, run: Run, options: dict[str, Any]) -> Any:
    device = parallel.state().device if torch.cuda.is_available() else None
    return load_model(source, tokenizer=run.tokenizer, device=device, **options)


def _load_writer(source: str, run: Run, options: dict[str, Any]) -> Any:
    """A model that only writes: by transformers, or by vLLM where the recipe says so."""
    if run.recipe.generation.engine == "transformers":
        return _load(source, run, options)
    named = {name: options[name] for name in LOADING if options.get(name)}
    source, config = str(resolve_source(source)), load_config(source, **named)
    longest = min(_longest_text(run), position_limit(config) or sys.maxsize)
    return VllmEngine(source, longest, dtype=options.get("dtype", "auto"), config=config, **named)


def _longest_text(run: Run) -> int:
    """Tokens of the longest text a writer handles: a prompt and its answer, or a prompt, its reference and one more."""
    recipe = run.recipe
    answers = [recipe.generation.max_new_tokens, recipe.reflection.max_new_tokens or 0]
    methods = [training.method for training in recipe.student_trainings]
    answers += [method.max_new_tokens for method in methods if method.name == "seqkd"]
    answers += [get_task(named.name).decoding.max_new_tokens for named in recipe.evaluation.tasks]
    return max(recipe.data.max_length + 1, recipe.data.max_prompt_length + max(answers))


def teacher_responses(run: Run, longest: int) -> datasets.Dataset:
    """The teacher's own answers to the training prompts, for sequence-level distillation.

    Returns:
        ``tokens`` without what ended them, and whether they ``ended``, in the order of the training examples.
    """
    path = run.folder / "seqkd" / "responses.parquet"
    teacher, examples = prepare_teacher(run), prepare_examples(run)

    def make() -> dict[str, Any]:
        rows, done, encoder = run.encoded_for_teacher("train"), 0, run.teacher_encoder
        model = _load_writer(run.teacher_source, run, run.teacher_options())
        with run.progress("teacher writes") as update:

            def count(more: int) -> None:
                nonlocal done
                done += more
                update(done, len(rows))

            answers = generate_tokens(
                model, encoder.tokenizer, rows.prompts, rows.ids, Decoding(longest),
                batch_size=run.recipe.generation.batch_size, progress=count, share=parallel.processes() > 1,
            )  # fmt: skip
        written = [without_end(ids, stop_token_ids(model, encoder.tokenizer)) for ids in answers]
        written = [_known_tokens(*answer, len(run.tokenizer)) for answer in written]
        texts = run.tokenizer.batch_decode([tokens for tokens, _ in written], skip_special_tokens=True)
        if parallel.is_main():
            columns = {"tokens": [tokens for tokens, _ in written], "ended": [ended for _, ended in written]}
            table = pa.table({"id": rows.ids, "response": texts, **columns}, schema=TEACHER_TEXT)
            write_table(datasets.Dataset(table), path)
        cut = sum(not ended for _, ended in written)
        if cut:
            logger.warning(
                "%d of the teacher's %d answers (%.0f %%) were cut at %d tokens: the student learns no end from them. "
                "A higher max_new_tokens of the method lets more of them end.",
                cut, len(texts), 100 * cut / len(texts), longest,
            )  # fmt: skip
        return {"examples": len(texts), "empty": sum(not text.strip() for text in texts), "cut": cut}

    run.once("teacher text", [teacher, examples, run.encoding, run.teacher_frame, longest], [path], make)
    answers = datasets.Dataset(pq.read_table(path))
    order = positions(column(run.split("train"), "id"), answers)
    return answers.select_columns(["tokens", "ended"]).select(order)


def _known_tokens(tokens: list[int], ended: bool, count: int) -> tuple[list[int], bool]:
    """What a teacher wrote up to a token that the student does not have; what follows is cut."""
    known = list(itertools.takewhile(lambda token: token < count, tokens))
    return known, ended and len(known) == len(tokens)


# --------------------------------------------------------------------------------------------------- reflection, ranks


def run_reflection(run: Run) -> str:
    """Let the starting student answer every training prompt."""
    examples, student = prepare_examples(run), prepare_student(run)
    longest = run.recipe.reflection.max_new_tokens or run.recipe.generation.max_new_tokens
    batches = run.scores_file.parent / "batches"

    def make() -> dict[str, Any]:
        model = _load_writer(run.start_source, run, run.start_options())
        scores = _reflect(run, model, batches, longest)
        for warning in ranking_warnings(scores):
            logger.warning(warning)
        summary = {f"mean_{name}": round(float(np.mean(scores[name])), 4) for name in ("rouge_l", "ce")}
        _keep_scores(scores, run.scores_file, batches)
        return summary

    inputs = [examples, student, run.encoding, longest, run.recipe.generation.model_dump()]
    return run.once("reflection", inputs, [run.scores_file], make, [batches])


def _keep_scores(scores: datasets.Dataset, path: Path, batches: Path) -> None:
    """Write the scores; the batches they came from are not needed any more, by any process."""
    if parallel.is_main():
        write_table(scores, path)
    parallel.barrier()
    if parallel.is_main():
        forget_batches(batches)
    parallel.barrier()


def _reflect(run: Run, model: Any, folder: Path | None, longest: int) -> datasets.Dataset:
    encoded = run.token_ids("train")
    with run.progress("student answers") as update:
        return reflect(
            model,
            run.tokenizer,
            run.split("train"),
            encoded=encoded,
            max_new_tokens=longest,
            batch_size=run.recipe.generation.batch_size,
            folder=folder,
            progress=update,
        )


def run_ranking(run: Run) -> str:
    """Rank the training data and lay out the stages of the main training's curriculum."""
    curriculum = run.curriculum_of(run.recipe.training) or Curriculum()
    reflection = run_reflection(run)

    def make() -> dict[str, Any]:
        laid_out = curriculum.assign(ranked_scores(run, curriculum))
        if parallel.is_main():
            write_table(laid_out, run.ranked_file)
        return {"kept": int(np.sum(laid_out["kept"])), "dropped": int(np.sum(~np.asarray(laid_out["kept"])))}

    settings = [curriculum.model_dump(exclude={"temperature", "weight", "reflect_again"}), run.recipe.data.bad_rows]
    return run.once("ranking", [reflection, *settings], [run.ranked_file], make)


def ranked_scores(run: Run, curriculum: Curriculum, path: Path | None = None) -> datasets.Dataset:
    """Rank by what a curriculum goes by; ``path``: other scores than those of the starting student."""
    table = datasets.Dataset(pq.read_table(path or run.scores_file, columns=["id", "rouge_l", "ce"]))
    if curriculum.score == "length":
        lengths = {e: len(r) for e, r in zip(*_ids_and_responses(run), strict=True)}
        table = table.add_column("length", [lengths[name] for name in table["id"]])
    return rank(
        table, k=curriculum.k, by=curriculum.score, seed=curriculum.seed,
        bad_rows=run.recipe.data.bad_rows,
    )  # fmt: skip


def _ids_and_responses(run: Run) -> tuple[list[str], Sequence[list[int]]]:
    examples = run.encoded("train")
    return examples.ids, examples.responses


# ------------------------------------------------------------------------------------------------------------ training


@contextlib.contextmanager
def _training(
    run: Run, label: str, config: TrainingConfig, folder: Path, start: str, options: dict[str, Any]
) -> Iterator[Training]:
    """Gather what a training needs: text, teacher, stages, validation, a progress bar."""
    run.folder.mkdir(parents=True, exist_ok=True)
    check_disk(run.folder, _parameters(start))
    written = teacher_responses(run, config.method.max_new_tokens) if config.method.name == "seqkd" else None
    examples = run.encoded("train", written)
    load_teacher = None
    if config.needs_teacher:
        run.tell_frames()
        cache = None if config.on_policy else teacher_cache(run)
        examples.teacher = cache
        load_teacher = _teacher_loader(run, cache)
    stages, again = _stages(run, config, examples, folder)
    with run.progress(label) as update:
        yield Training(
            label=label,
            config=config,
            folder=folder,
            start=start,
            load_options=options,
            examples=examples,
            tokenizer=run.tokenizer,
            validation=run.validation(config),
            stages=stages,
            seed=run.seed_of(config),
            load_teacher=load_teacher,
            plain_text=_plain_text(run, config),
            choose_again=again,
            metrics_file=run.folder / "metrics.jsonl",
            progress=update,
        )


def _plain_text(run: Run, config: TrainingConfig) -> PlainText | None:
    """Running text beside the examples, if the recipe has some; the preparing trainings do without."""
    source = run.recipe.data.plain_text
    if source is None or config.plain_text_weight == 0 or config not in run.recipe.arms.values():
        return None
    if run.encoder_decoder:
        raise UserError("data.plain_text is for decoder-only models: an encoder-decoder has no loss on running text")
    loaded = load_source(source, seed=run.recipe.seed)
    rows = loaded["train"] if isinstance(loaded, datasets.DatasetDict) else loaded
    texts = [references[0] for references in rows["references"]]
    blocks = EncodedExamples(encode_plain_text(texts, run.tokenizer, run.recipe.data.max_length))
    return PlainText(blocks, config.plain_text_weight, config.batch_size)


def _teacher_loader(run: Run, cache: TeacherCache | None) -> Callable[[], Teacher]:
    def load() -> Teacher:
        if cache is not None:
            head: HeadWeights = cache.head()
            return Teacher(head.cut(run.width))
        return Teacher.live(_load(run.teacher_source, run, run.teacher_options()), run.width)

    return load


def _stages(
    run: Run, config: TrainingConfig, examples: EncodedExamples, folder: Path
) -> tuple[list[Stage], Callable[[Any, Stage], Stage] | None]:
    """The stages of a training, and how to choose their examples anew where it reflects again."""
    curriculum = run.curriculum_of(config)
    if curriculum is None:
        return [Stage(0, list(examples.ids), config.temperature, config.weight)], None
    stages = curriculum.split(ranked_scores(run, curriculum))

    def choose_again(model: Any, stage: Stage) -> Stage:
        path = folder / "stages" / str(stage.index) / "scores.parquet"
        if not parallel.on_main(path.exists):
            longest = run.recipe.reflection.max_new_tokens or run.recipe.generation.max_new_tokens
            _keep_scores(_reflect(run, model, path.parent / "batches", longest), path, path.parent / "batches")
        ranked = ranked_scores(run, curriculum, path)
        return curriculum.split(ranked)[stage.index]

    return stages, choose_again if curriculum.reflect_again else None


def train_arm(run: Run, arm: str) -> str:
    """Train one of the compared students."""
    config = run.recipe.arms[arm]
    start = prepare_student(run)
    student = run.student_folder(arm)
    inputs: list[Any] = [config.model_dump(exclude={"log_to"}), start, prepare_examples(run), run.encoding]
    inputs += [run.recipe.seed, run.recipe.generation.model_dump(exclude={"engine"})]
    if run.recipe.data.plain_text is not None:
        inputs.append(_source_identity(run.recipe.data.plain_text))
    if config.needs_teacher or config.method.name == "seqkd":
        inputs += [prepare_teacher(run), _cache_dtype(run) if run.recipe.cache.enabled is not False else None]
    if config.curriculum is not None:
        inputs.append(run_reflection(run))
    if config.needs_teacher and not config.on_policy:
        teacher_cache(run)
    if config.method.name == "seqkd":
        teacher_responses(run, config.method.max_new_tokens)

    def make() -> dict[str, Any]:
        with _training(run, arm, config, student.parent, run.start_source, run.start_options()) as training:
            return train(training, student)

    return run.once(f"train/{arm}", inputs, [student], make, [student.parent / "stages"])


def run_training(run: Run) -> dict[str, str]:
    """Train all compared students, the main one last."""
    if run.recipe.training.curriculum is not None:
        run_ranking(run)
    return {arm: train_arm(run, arm) for arm in run.recipe.arms}


# ---------------------------------------------------------------------------------------------------------- evaluation


def benchmarks(run: Run) -> list[Benchmark]:
    """The run's own test split, and the tasks that the recipe names."""
    settings, generation = run.recipe.evaluation, run.recipe.generation
    seeds = tuple(settings.seeds) if settings.temperature > 0 else tuple(settings.seeds[:1])
    test = run.split("test")
    if settings.limit and settings.limit < len(test):
        test = test.select(range(settings.limit))
    decoding = Decoding(generation.max_new_tokens, settings.temperature, settings.top_p)
    own = Benchmark("test", get_task("instruction"), test, decoding, seeds)
    allow = settings.allow_code_execution
    tasks = [
        read_benchmark(task.name, task.path, label=task.label, limit=task.limit, allow_code_execution=allow)
        for task in settings.tasks
    ]
    return [own, *tasks]


def run_evaluation(run: Run) -> str:
    """Let teacher, starting student and every trained student answer the test examples."""
    settings = run.recipe.evaluation
    teacher, start, arms = prepare_teacher(run), prepare_student(run), run_training(run)
    sources: dict[str, tuple[str, str, dict[str, Any]]] = {
        "teacher": (run.teacher_source, teacher, run.teacher_options()),
        "student": (run.start_source, start, run.start_options()),
        **{arm: (str(run.student_folder(arm)), arms[arm], {}) for arm in run.recipe.arms},
    }
    wanted = settings.models or list(sources)
    folder = run.folder / "evaluation"

    def make() -> dict[str, Any]:
        tests = benchmarks(run)
        # Another engine draws other samples.
        engine = [run.recipe.generation.engine] if run.recipe.generation.engine != "transformers" else []
        contenders = [
            Contender(
                name,
                fingerprint(sources[name][1], run.encoding, *engine, *(run.teacher_frame if name == "teacher" else [])),
                _loader(run, name, *sources[name]),
            )
            for name in wanted
        ]
        with progress_bar("answers") as update:

            def told(title: str, done: int, total: int) -> None:
                update(done, total, title)
                run.tick()

            evaluate(
                contenders, tests, folder, batch_size=run.recipe.generation.batch_size, progress=told,
                shared=run.shared.folder / "answers" if run.shared else None,
                scoring={"allow_code_execution": settings.allow_code_execution},
            )  # fmt: skip
        main = run.recipe.training.label
        if main in wanted and parallel.is_main():
            compare(folder, wanted, tests, against=main)
        _answer_training_samples(run, folder)
        return {
            "models": len(wanted),
            "tasks": len(tests),
            "answers": len(wanted) * sum(len(t.seeds) * len(t.examples) for t in tests),
        }

    inputs = [settings.model_dump(), teacher, start, arms, run.encoding, run.recipe.generation.model_dump()]
    inputs += run.teacher_frame if "teacher" in wanted else []
    return run.once("evaluation", inputs, [folder / "metrics.json"], make)


def _loader(
    run: Run, name: str, source: str, identity: str, options: dict[str, Any]
) -> Callable[[], tuple[Any, Encoder]]:
    return lambda: (_load_writer(source, run, options), run.teacher_encoder if name == "teacher" else run.encoder)


def _answer_training_samples(run: Run, folder: Path) -> None:
    """Let the final student answer the training prompts that the report shows."""
    if not run.ranked_file.exists() or not parallel.is_main():
        return
    shown = [name for names in examples_to_show(pq.read_table(run.ranked_file)).values() for name in names]
    train = run.split("train")
    rows = train.select(np.sort(positions(shown, train))).to_list()
    prompts, _, _ = run.encoder.prompts(rows)
    arm = run.recipe.training.label
    model = _load(str(run.student_folder(arm)), run, {})
    texts = generate(
        model, run.tokenizer, prompts, [row["id"] for row in rows], Decoding(run.recipe.generation.max_new_tokens)
    )
    path = folder / "train_samples.jsonl"
    with atomic_write(path) as partial:
        for row, text in zip(rows, texts, strict=True):
            score = rouge_l(text, row["references"])
            append_row(partial, {"id": row["id"], "model": arm, "text": text, "rouge_l": score})


# -------------------------------------------------------------------------------------------------------------- whole


def run_report(run: Run) -> Path | None:
    """Write the report from whatever the run directory holds."""
    return build_report(run.folder) if parallel.is_main() else None


def run_all(run: Run) -> Path | None:
    """The whole flow."""
    check_run(run)
    prepare_examples(run)
    run_evaluation(run)
    return run_report(run)


def run_identity(recipe: Recipe) -> list[Any]:
    """What decides a run's results beside its recipe: the content of the files that the recipe names."""
    data, models = recipe.data, [recipe.teacher, recipe.student]
    tasks = [Path(task.path) for task in recipe.evaluation.tasks if task.path]
    return [
        [_source_identity(source) for source in (data.train, data.validation, data.test)],
        [model_fingerprint(m.model, revision=m.revision, adapter=m.adapter) for m in models if m.model],
        [file_digest(path) for path in tasks if path.is_file()],
    ]


STEPS: dict[str, Callable[[Run], Any]] = {
    "sft": prepare_teacher,
    "reflect": run_reflection,
    "rank": run_ranking,
    "distill": run_training,
    "evaluate": run_evaluation,
    "report": run_report,
}
