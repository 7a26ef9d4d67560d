"""The flow of a run, step by step. Each step reads files, writes files, and is skipped while its inputs are the same.

examples -> teacher -> student -> teacher cache -> reflection -> ranking -> training -> evaluation -> report
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch

from srd import parallel
from srd.artifacts import Manifest, atomic_write, file_digest, fingerprint, remove
from srd.config import ModelConfig, Recipe, SourceConfig, TrainingConfig, load_recipe, write_recipe
from srd.console import console, progress_bar
from srd.curriculum import Curriculum, Stage
from srd.data.batching import EncodedExamples
from srd.data.corruption import corrupt
from srd.data.encoding import Encoder
from srd.data.examples import split_examples
from srd.data.sources import load_source
from srd.data.templates import get_template
from srd.distillation import Training, check_disk, train
from srd.errors import UserError
from srd.evaluation import Benchmark, Contender, compare, evaluate
from srd.loss import HeadWeights
from srd.models.generation import Decoding, generate
from srd.models.loading import (
    count_parameters,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve_source,
    save_model,
)
from srd.models.shrink import drop_layers
from srd.models.vocabulary import check_same_kind, check_same_tokenizer, shared_vocabulary
from srd.ranking import rank
from srd.reflection import forget_batches, ranking_warnings, reflect, write_scores
from srd.report import build_report, examples_to_show
from srd.tasks import get_task
from srd.teacher_cache import DTYPES, TeacherCache, build_cache, cache_bytes, cache_folder
from srd.trainer import Teacher, Validation, make_collator

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SHRINK_EXAMPLES = 64  # training examples whose hidden states decide which layers go


class Run:
    """A recipe and the directory it runs in.

    Args:
        recipe: What to do.
        folder: Where; made if it is not there.

    Raises:
        UserError: the directory belongs to another recipe, or another process works in it.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self._claim()
        self.manifest = Manifest(folder)
        self.warnings: list[str] = self.manifest.content["warnings"]
        self.manifest.content["versions"] = _versions()
        self.manifest.content["machine"] = _machine()
        self._done: dict[str, str] = {}
        self._saved = time.monotonic()
        if parallel.is_main():
            write_recipe(recipe, folder / "recipe.yaml")
            self.manifest.save()
        parallel.barrier()

    def _claim(self) -> None:
        """Make the directory ours: of this recipe, and of one command at a time."""
        before = self.folder / "recipe.yaml"
        if self.folder.is_file():
            raise UserError(f"--run-dir {self.folder} is a file. Name a folder.")
        if before.exists() and (name := load_recipe(str(before)).name) != self.recipe.name:
            raise UserError(
                f"{self.folder} is the run directory of the recipe '{name}', not of '{self.recipe.name}'. "
                f"Choose another --run-dir, or delete it."
            )
        if not before.exists() and self.folder.is_dir() and any(self.folder.iterdir()):
            strange = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
            if strange:
                raise UserError(
                    f"{self.folder} holds other files ({', '.join(strange[:3])} …). Choose an empty --run-dir."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        if parallel.is_main():
            self._lock = _lock(self.folder / ".lock")

    # ------------------------------------------------------------------------------------------------------- steps

    def once(
        self,
        step: str,
        inputs: Iterable[Any],
        outputs: Iterable[Path],
        make: Callable[[], dict[str, Any]],
        scratch: Iterable[Path] = (),
    ) -> str:
        """Make a step's files unless they were made from the same inputs.

        Args:
            step: Its name in the manifest.
            inputs: Everything its result depends on.
            outputs: What must exist for the step to be done.
            make: Makes them; returns numbers for the report.
            scratch: Unfinished work that is only worth keeping while the inputs stay the same.

        Returns:
            The fingerprint, an input of the steps that follow.
        """
        key, outputs = fingerprint(step, *inputs), list(outputs)
        if self._done.get(step) == key:
            return key
        if self.manifest.fresh(step, key, outputs):
            console.print(f"[green]✓[/] {step} [dim](kept: nothing it depends on has changed)[/]")
            self._done[step] = key
            return key
        if parallel.is_main():
            same = self.manifest.begin(step, key)
            if not same:
                for path in [*outputs, *scratch]:
                    remove(path)
        parallel.barrier()
        console.print(f"[bold]• {step}[/]")
        self._step, self._started = step, time.monotonic()
        summary = make()
        self._keep_time()
        if parallel.is_main():
            self.manifest.finish(step, summary)
        parallel.barrier()
        seconds = self.manifest.steps.get(step, {}).get("seconds", 0.0)
        told = ", ".join(f"{name} {_shown(value)}" for name, value in summary.items() if value is not None)
        console.print(f"[green]✓[/] {step} [dim]{seconds:.1f} s{' · ' if told else ''}{told}[/]")
        self._done[step] = key
        return key

    def _keep_time(self) -> None:
        now = time.monotonic()
        if parallel.is_main():
            self.manifest.spent(self._step, now - self._started)
        self._started = now

    def tick(self) -> None:
        """Keep the time spent, so that a killed run does not forget it."""
        if time.monotonic() - self._saved > 5:
            self._saved = time.monotonic()
            self._keep_time()
            if parallel.is_main():
                self.manifest.save()

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[..., None]]:
        """A progress bar that also keeps the time."""
        with progress_bar(title) as update:

            def both(done: float, total: float, note: str = "") -> None:
                update(done, total, note)
                self.tick()

            yield both

    # ------------------------------------------------------------------------------------------------------- files

    def split(self, name: str) -> datasets.Dataset:
        """The examples of a split."""
        return datasets.Dataset(pq.read_table(self.folder / "examples" / f"{name}.parquet"))

    @property
    def scores_file(self) -> Path:
        """What the student answered, and its scores."""
        return self.folder / "reflection" / "scores.parquet"

    @property
    def ranked_file(self) -> Path:
        """The ranked training data with its stages."""
        return self.folder / "curriculum" / "ranked.parquet"

    def student_folder(self, arm: str) -> Path:
        """Where the trained student of an arm lies."""
        return (self.folder if arm == self.recipe.training.label else self.folder / "baselines" / arm) / "student"

    # ------------------------------------------------------------------------------------------------------ models

    @property
    def teacher_source(self) -> str:
        """The teacher as training uses it."""
        return str(self.folder / "teacher") if self.recipe.teacher.sft else self.recipe.teacher.model

    @property
    def start_source(self) -> str:
        """The student as the compared trainings start from it."""
        student = self.recipe.student
        if student.drop_layers or student.warm_start:
            return str(self.folder / "start")
        assert student.model is not None
        return student.model

    def teacher_options(self) -> dict[str, Any]:
        """How the teacher is loaded."""
        return _load_options(self.recipe.teacher, loose=not self.recipe.teacher.sft)

    def start_options(self) -> dict[str, Any]:
        """How the starting student is loaded."""
        student = self.recipe.student
        return _load_options(student, loose=not (student.drop_layers or student.warm_start))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that teacher and student share."""
        student, teacher = self.recipe.student, self.recipe.teacher
        named: ModelConfig = student if student.model else teacher
        return load_tokenizer(str(named.model), revision=named.revision, trust_remote_code=named.trust_remote_code)

    @cached_property
    def encoder_decoder(self) -> bool:
        """Whether the models are of the encoder-decoder kind."""
        teacher = self.recipe.teacher
        return bool(load_config(teacher.model, revision=teacher.revision).is_encoder_decoder)

    @cached_property
    def encoder(self) -> Encoder:
        """Turns examples into tokens."""
        data = self.recipe.data
        return Encoder(
            self.tokenizer,
            get_template(data.template, self.tokenizer),
            max_length=data.max_length,
            max_prompt_length=data.max_prompt_length,
            encoder_decoder=self.encoder_decoder,
        )

    @property
    def encoding(self) -> list[Any]:
        """What decides how text becomes tokens, for fingerprints."""
        data = self.recipe.data
        return [data.template, data.max_length, data.max_prompt_length, data.bad_rows]

    def check_models(self) -> None:
        """Refuse teachers and students that do not fit each other before a weight is loaded."""
        teacher, student = self.recipe.teacher, self.recipe.student
        for named in (teacher, student):
            if named.model:
                resolve_source(named.model)
        get_template(self.recipe.data.template, self.tokenizer)
        configs = [load_config(teacher.model, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code)]
        if student.model:
            configs.append(
                load_config(student.model, revision=student.revision, trust_remote_code=student.trust_remote_code)
            )
        trainings = [*self.recipe.arms.values(), *([student.warm_start] if student.warm_start else [])]
        if len(configs) == 2 and any(training.needs_teacher for training in trainings):
            check_same_kind(*configs)
            tokenizer = load_tokenizer(
                teacher.model, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
            )
            check_same_tokenizer(tokenizer, self.tokenizer, (teacher.model, str(student.model)))
        self.width = shared_vocabulary(configs[0], configs[-1], self.tokenizer)
        self.hidden_size = configs[0].get_text_config().hidden_size

    # ----------------------------------------------------------------------------------------------------- encoding

    def encoded(self, split: str, responses: list[str] | None = None) -> EncodedExamples:
        """A split as token ids; longer texts are cut and counted."""
        return EncodedExamples(self.encoder.encode(self.split(split), responses))

    def validation(self, config: TrainingConfig) -> Validation:
        """What checkpoints of a training are chosen by."""
        generation = self.recipe.generation
        return Validation(
            self.encoded("validation"),
            list(self.split("validation")["references"]),
            Decoding(generation.max_new_tokens),
            generation.batch_size,
            generate=config.select_by == "rouge_l",
        )


# ------------------------------------------------------------------------------------------------------------ examples


def prepare_examples(run: Run) -> str:
    """Read, split, limit and (where asked) corrupt the examples."""
    data, folder = run.recipe.data, run.folder / "examples"
    sources = [_source_identity(source) for source in (data.train, data.validation, data.test)]
    settings = data.model_dump(
        include={"validation_size", "test_size", "train_limit", "validation_limit", "test_limit", "corruption"}
    )
    return run.once(
        "examples",
        [sources, settings, run.recipe.seed],
        [folder / f"{name}.parquet" for name in SPLITS],
        lambda: _make_examples(run),
    )


def _source_identity(source: SourceConfig | None) -> Any:
    """What decides the rows of a source: its settings, and the content of its files."""
    if source is None:
        return None
    paths = [source.path] if isinstance(source.path, str) else source.path or []
    digests = [file_digest(Path(path)) for path in paths if Path(path).is_file()]
    return [source.model_dump(), digests, platform.python_version() if "pydocs" in [*paths, source.dataset] else ""]


def _make_examples(run: Run) -> dict[str, Any]:
    data, seed = run.recipe.data, run.recipe.seed
    if not parallel.is_main():
        return {}
    splits = _load_splits(run)
    limits = {"train": data.train_limit, "validation": data.validation_limit, "test": data.test_limit}
    for name, limit in limits.items():
        if limit is not None and limit < len(splits[name]):
            chosen = np.sort(np.random.default_rng(seed).permutation(len(splits[name]))[:limit])
            splits[name] = splits[name].select(chosen)
    if data.corruption:
        splits["train"] = corrupt(splits["train"], data.corruption.share, data.corruption.kinds, seed)
    known: dict[str, str] = {}
    for name in SPLITS:
        for example in splits[name]["id"]:
            if example in known:
                raise UserError(f"the id '{example}' is in {known[example]} and in {name}: ids must be unique.")
            known[example] = name
        with atomic_write(run.folder / "examples" / f"{name}.parquet") as partial:
            pq.write_table(splits[name].with_format("arrow")[:], partial)
    return {name: len(splits[name]) for name in SPLITS}


def _load_splits(run: Run) -> dict[str, datasets.Dataset]:
    """Train, validation and test: as the source has them, as the recipe names them, or split off by id."""
    data, seed = run.recipe.data, run.recipe.seed
    loaded = load_source(data.train, seed=seed)
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    for name, source in (("validation", data.validation), ("test", data.test)):
        if source is not None:
            other = load_source(source, seed=seed)
            splits[name] = other.get(name, next(iter(other.values()))) if isinstance(other, dict) else other
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
        return run.once("teacher", [identity], [], lambda: {"parameters": _parameters(teacher.model)})
    examples = prepare_examples(run)
    work = run.folder / "teacher-sft"

    def make() -> dict[str, Any]:
        with _training(run, "teacher_sft", teacher.sft, work, teacher.model, _load_options(teacher)) as training:
            summary = train(training, run.folder / "teacher")
        remove(work) if parallel.is_main() else None
        return {"parameters": _parameters(run.teacher_source), **summary}

    inputs = [identity, teacher.sft.model_dump(), examples, run.encoding, run.recipe.seed]
    return run.once("teacher", inputs, [run.folder / "teacher"], make, [work])


def prepare_student(run: Run) -> str:
    """Make the starting student: its own model or a shortened teacher, warmed up if the recipe asks for it."""
    student = run.recipe.student
    if student.model and not student.drop_layers and not student.warm_start:
        identity = model_fingerprint(student.model, revision=student.revision, adapter=student.adapter)
        return run.once("student", [identity], [], lambda: {"parameters": _parameters(str(student.model))})
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
            options = {} if student.drop_layers else _load_options(student)
            with _training(run, "warm_start", warm, work, source, options) as training:
                summary = train(training, run.folder / "start")
        elif parallel.is_main():
            os.replace(work / "shortened", run.folder / "start")
        parallel.barrier()
        remove(work) if parallel.is_main() else None
        return {"parameters": _parameters(run.start_source), "dropped_layers": dropped, **summary}

    inputs = [origin, student.drop_layers, warm and warm.model_dump(), examples, run.encoding, run.recipe.seed]
    if warm is not None and (warm.needs_teacher or warm.method.name == "seqkd"):
        inputs.append(teacher)
    return run.once("student", inputs, [run.folder / "start"], make, [work])


def _shorten(run: Run, target: Path) -> str | None:
    """Write the shortened model, unless an interrupted attempt has."""
    student = run.recipe.student
    if not student.drop_layers:
        return None
    note = target.parent / "dropped.txt"
    if parallel.is_main() and not (target.exists() and note.exists()):
        source, options = (str(student.model), _load_options(student)) if student.model else (
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


def _load_options(model: ModelConfig, loose: bool = True) -> dict[str, Any]:
    """How a model of the recipe is loaded; one that lies in the run directory has its adapter merged already."""
    keys = ("dtype", "attn_implementation", *(("revision", "adapter", "trust_remote_code") if loose else ()))
    return {"dtype": model.dtype, **{key: getattr(model, key) for key in keys}}


# -------------------------------------------------------------------------------------------------------- teacher text


def teacher_cache(run: Run) -> TeacherCache | None:
    """The teacher's hidden states for all training examples; None where the live teacher is used instead."""
    cache, teacher = run.recipe.cache, prepare_teacher(run)
    if cache.enabled is False:
        return None
    dtype = _cache_dtype(run)
    examples = run.encoded("train")
    needed = cache_bytes(sum(len(response) for response in examples.responses), run.hidden_size, DTYPES[dtype])
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

    inputs = [teacher, prepare_examples(run), run.encoding, dtype, str(root)]
    run.once("cache", inputs, [folder / "meta.json"], make)
    opened = TeacherCache(folder)
    if opened.verify():
        run._done.pop("cache", None)
        run.manifest.steps["cache"].pop("finished", None)
        run.once("cache", inputs, [folder / "meta.json"], make)
        opened = TeacherCache(folder)
    return opened


def make_collator_from(run: Run) -> Any:
    """The collator, before any model is loaded."""
    from srd.data.batching import Collator
    from srd.models.generation import padding_id

    config = load_config(run.recipe.teacher.model, revision=run.recipe.teacher.revision)
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


def teacher_responses(run: Run, longest: int) -> list[str]:
    """The teacher's own answers to the training prompts, for sequence-level distillation."""
    path = run.folder / "seqkd" / "responses.parquet"
    teacher, examples = prepare_teacher(run), prepare_examples(run)

    def make() -> dict[str, Any]:
        rows, done = run.split("train"), 0
        prompts, _, _ = run.encoder.prompts(list(rows))
        model = _load(run.teacher_source, run, run.teacher_options())
        with run.progress("teacher writes") as update:

            def count(more: int) -> None:
                nonlocal done
                done += more
                update(done, len(prompts))

            texts = generate(
                model, run.tokenizer, prompts, list(rows["id"]), Decoding(longest),
                batch_size=run.recipe.generation.batch_size, progress=count, share=parallel.processes() > 1,
            )  # fmt: skip
        if parallel.is_main():
            with atomic_write(path) as partial:
                pq.write_table(datasets.Dataset.from_dict({"id": rows["id"], "response": texts}).data.table, partial)
        return {"examples": len(texts), "empty": sum(not text.strip() for text in texts)}

    run.once("teacher text", [teacher, examples, run.encoding, longest], [path], make)
    table = pq.read_table(path)
    by_id = dict(zip(table["id"].to_pylist(), table["response"].to_pylist(), strict=True))
    return [by_id[name] for name in run.split("train")["id"]]


# --------------------------------------------------------------------------------------------------- reflection, ranks


def run_reflection(run: Run) -> str:
    """Let the starting student answer every training prompt."""
    examples, student = prepare_examples(run), prepare_student(run)
    longest = run.recipe.reflection.max_new_tokens or run.recipe.generation.max_new_tokens
    batches = run.scores_file.parent / "batches"

    def make() -> dict[str, Any]:
        model = _load(run.start_source, run, run.start_options())
        scores = _reflect(run, model, batches, longest)
        if parallel.is_main():
            write_scores(scores, run.scores_file)
            forget_batches(batches)
        for warning in ranking_warnings(scores):
            logger.warning(warning)
        return {
            "mean_rouge_l": round(float(np.mean(scores["rouge_l"])), 4),
            "mean_ce": round(float(np.mean(scores["ce"])), 4),
        }

    inputs = [examples, student, run.encoding, longest, run.recipe.generation.batch_size]
    return run.once("reflection", inputs, [run.scores_file], make, [batches])


def _reflect(run: Run, model: Any, folder: Path | None, longest: int) -> datasets.Dataset:
    with run.progress("student answers") as update:
        return reflect(
            model,
            run.tokenizer,
            run.split("train"),
            encoder=run.encoder,
            max_new_tokens=longest,
            batch_size=run.recipe.generation.batch_size,
            folder=folder,
            progress=update,
        )


def run_ranking(run: Run) -> str:
    """Rank the training data and lay out the stages of the main training's curriculum."""
    curriculum = run.recipe.training.curriculum or Curriculum()
    reflection = run_reflection(run)

    def make() -> dict[str, Any]:
        laid_out = curriculum.assign(ranked_scores(run, curriculum))
        if parallel.is_main():
            with atomic_write(run.ranked_file) as partial:
                pq.write_table(laid_out.with_format("arrow")[:], partial)
        return {"kept": int(np.sum(laid_out["kept"])), "dropped": int(np.sum(~np.asarray(laid_out["kept"])))}

    settings = [curriculum.model_dump(exclude={"temperature", "weight", "reflect_again"}), run.recipe.data.bad_rows]
    return run.once("ranking", [reflection, *settings], [run.ranked_file], make)


def ranked_scores(run: Run, curriculum: Curriculum, scores: Any = None) -> datasets.Dataset:
    """Rank by what a curriculum goes by."""
    table = scores if scores is not None else datasets.Dataset(pq.read_table(run.scores_file))
    if curriculum.score == "length":
        lengths = {e: len(r) for e, r in zip(*_ids_and_responses(run), strict=True)}
        table = table.add_column("length", [lengths[name] for name in table["id"]])
    return rank(
        table, k=curriculum.k, by=curriculum.score, seed=curriculum.seed + run.recipe.seed,
        bad_rows=run.recipe.data.bad_rows,
    )  # fmt: skip


def _ids_and_responses(run: Run) -> tuple[list[str], list[list[int]]]:
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
    responses = teacher_responses(run, config.method.max_new_tokens) if config.method.name == "seqkd" else None
    examples = run.encoded("train", responses)
    load_teacher = None
    if config.needs_teacher:
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
            seed=run.recipe.seed,
            load_teacher=load_teacher,
            choose_again=again,
            metrics_file=run.folder / "metrics.jsonl",
            progress=update,
        )


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
    curriculum = config.curriculum
    if curriculum is None:
        return [Stage(0, list(examples.ids), config.temperature, config.weight)], None
    stages = curriculum.split(ranked_scores(run, curriculum))

    def choose_again(model: Any, stage: Stage) -> Stage:
        path = folder / "stages" / str(stage.index) / "scores.parquet"
        if not path.exists():
            longest = run.recipe.reflection.max_new_tokens or run.recipe.generation.max_new_tokens
            scores = _reflect(run, model, path.parent / "batches", longest)
            if parallel.is_main():
                write_scores(scores, path)
                forget_batches(path.parent / "batches")
            parallel.barrier()
        ranked = ranked_scores(run, curriculum, datasets.Dataset(pq.read_table(path)))
        return curriculum.split(ranked)[stage.index]

    return stages, choose_again if curriculum.reflect_again else None


def train_arm(run: Run, arm: str) -> str:
    """Train one of the compared students."""
    config = run.recipe.arms[arm]
    start = prepare_student(run)
    student = run.student_folder(arm)
    inputs: list[Any] = [config.model_dump(exclude={"log_to"}), start, prepare_examples(run), run.encoding]
    inputs += [run.recipe.seed, run.recipe.generation.model_dump(exclude={"engine"})]
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
            training.tick = run.tick
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
    found = [Benchmark("test", get_task("instruction"), test, decoding, seeds)]
    for named in settings.tasks:
        task = get_task(named.name)
        own = task.decoding
        found.append(
            Benchmark(
                named.name,
                task,
                task.examples(Path(named.path) if named.path else None, named.limit),
                Decoding(own.max_new_tokens, own.temperature, own.top_p),
                tuple(own.seeds),
            )
        )
    return found


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
    if unknown := [name for name in wanted if name not in sources]:
        raise UserError(f"evaluation.models: there is no {unknown[0]!r} in this run; it has {', '.join(sources)}")
    folder = run.folder / "evaluation"

    def make() -> dict[str, Any]:
        tests = benchmarks(run)
        contenders = [Contender(name, sources[name][1], _loader(run, *sources[name])) for name in wanted]
        with progress_bar("answers") as update:

            def told(title: str, done: int, total: int) -> None:
                update(done, total, title)
                run.tick()

            evaluate(
                contenders, tests, folder, batch_size=run.recipe.generation.batch_size, progress=told,
                scoring={"allow_code_execution": True} if settings.allow_code_execution else {},
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
    return run.once("evaluation", inputs, [folder / "metrics.json"], make)


def _loader(run: Run, source: str, identity: str, options: dict[str, Any]) -> Callable[[], tuple[Any, Encoder]]:
    return lambda: (_load(source, run, options), run.encoder)


def _answer_training_samples(run: Run, folder: Path) -> None:
    """Let the final student answer the training prompts that the report shows."""
    if not run.ranked_file.exists() or not parallel.is_main():
        return
    shown = [name for names in examples_to_show(pq.read_table(run.ranked_file).to_pylist()).values() for name in names]
    rows = [row for row in run.split("train") if row["id"] in set(shown)]
    prompts, _, _ = run.encoder.prompts(rows)
    arm = run.recipe.training.label
    model = _load(str(run.student_folder(arm)), run, {})
    texts = generate(
        model, run.tokenizer, prompts, [row["id"] for row in rows], Decoding(run.recipe.generation.max_new_tokens)
    )
    from srd.metrics import rouge_l
    from srd.trainer import append_row

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
    prepare_examples(run)
    run.check_models()
    run_evaluation(run)
    return run_report(run)


STEPS: dict[str, Callable[[Run], Any]] = {
    "sft": prepare_teacher,
    "reflect": run_reflection,
    "rank": run_ranking,
    "distill": run_training,
    "evaluate": run_evaluation,
    "report": run_report,
}


def curate(run: Run, target: Path) -> list[Path]:
    """Reflect, rank and stage only: ``stage_0.jsonl …``, in the order of the curriculum, for any other trainer.

    Each row has ``id, instruction, input, output, messages, stage, rank, temperature, weight`` as far as they apply.
    """
    curriculum = run.recipe.training.curriculum or Curriculum()
    run_ranking(run)
    stages = curriculum.split(ranked_scores(run, curriculum))
    ranks = {row["id"]: row for row in pq.read_table(run.ranked_file).to_pylist()}
    rows = {row["id"]: row for row in run.split("train")}
    from srd.trainer import append_row

    paths = []
    for stage in stages if parallel.is_main() else []:
        path = target / f"stage_{stage.index}.jsonl"
        with atomic_write(path) as partial:
            partial.touch()
            for name in stage.ids:
                append_row(partial, _curated(rows[name], ranks[name], stage))
        paths.append(path)
    return paths


def _curated(row: dict[str, Any], ranked: dict[str, Any], stage: Stage) -> dict[str, Any]:
    content = {key: row[key] for key in ("instruction", "input", "messages", "prompt") if row[key]}
    return {
        "id": row["id"], **content, "output": row["references"][0], "rank": ranked["rank"],
        "rouge_l": ranked["rouge_l"], "ce": ranked["ce"], "stage": stage.index,
        "temperature": stage.temperature, "weight": stage.weight,
    }  # fmt: skip


def _lock(path: Path) -> Any:
    """Hold the run directory until this process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = open(path, "w")  # noqa: SIM115 - held open on purpose
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(
            f"another srd command works in {path.parent}. Wait for it, or choose another --run-dir."
        ) from error
    return file


def _versions() -> dict[str, str]:
    names = ("srd", "torch", "transformers", "accelerate", "peft", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "gpu": gpu, "processes": parallel.processes(),
    }  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
