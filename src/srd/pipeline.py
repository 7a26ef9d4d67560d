"""The flow of a run, step by step. Each step reads files, writes files, and is skipped while its inputs are the same.

examples -> teacher -> student -> teacher cache -> reflection -> ranking -> training -> evaluation -> report
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch

from srd import parallel
from srd.artifacts import Manifest, SharedSteps, atomic_write, file_digest, fingerprint, remove
from srd.config import ModelConfig, Recipe, SourceConfig, TrainingConfig, load_recipe, write_recipe
from srd.console import console, progress_bar
from srd.curriculum import Curriculum, Stage
from srd.data.batching import EncodedExamples
from srd.data.corruption import corrupt
from srd.data.encoding import Encoder, encode_plain_text
from srd.data.examples import split_examples
from srd.data.sources import load_source
from srd.data.templates import get_template
from srd.distillation import Training, check_disk, micro_batch_size, train
from srd.errors import UserError, nearest
from srd.evaluation import Benchmark, Contender, compare, evaluate
from srd.loss import HeadWeights
from srd.models.generation import Decoding, generate
from srd.models.loading import (
    check_lora_targets,
    count_parameters,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    position_limit,
    resolve_source,
    save_model,
    split_adapter,
)
from srd.models.shrink import drop_layers
from srd.models.vllm_engine import VllmEngine
from srd.models.vocabulary import check_same_kind, check_same_tokenizer, shared_vocabulary
from srd.ranking import rank
from srd.reflection import forget_batches, ranking_warnings, reflect, write_scores
from srd.report import build_report, examples_to_show
from srd.tables import map_large, open_mapped
from srd.tasks import get_task
from srd.teacher_cache import DTYPES, TeacherCache, build_cache, cache_bytes, cache_folder
from srd.trainer import PlainText, Teacher, Validation, make_collator

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SHRINK_EXAMPLES = 64  # training examples whose hidden states decide which layers go


class Run:
    """A recipe and the directory it runs in.

    Args:
        recipe: What to do.
        folder: Where; made if it is not there.
        shared: Folder of steps that several runs have in common, as in a sweep.

    Raises:
        UserError: the directory belongs to another recipe, or another process works in it.
    """

    def __init__(self, recipe: Recipe, folder: Path, shared: Path | None = None) -> None:
        self.recipe = recipe
        self.folder = folder
        self.shared = SharedSteps(shared, folder) if shared else None
        parallel.on_main(self._claim)
        _check_shared(folder)
        self.manifest = Manifest(folder)
        self.warnings: list[str] = self.manifest.content["warnings"]
        self.manifest.content["versions"] = versions()
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
        self._lock = lock(self.folder / ".lock", "--run-dir")
        for config in self.recipe.arms.values():
            micro_batch_size(config)  # refuses a number of processes that does not fit

    # ------------------------------------------------------------------------------------------------------- steps

    def once(
        self,
        step: str,
        inputs: Iterable[Any],
        outputs: Iterable[Path],
        make: Callable[[], dict[str, Any]],
        scratch: Iterable[Path] = (),
        needed: Iterable[Path] = (),
    ) -> str:
        """Make a step's files unless they were made from the same inputs.

        Args:
            step: Its name in the manifest.
            inputs: Everything its result depends on.
            outputs: What must exist for the step to be done.
            make: Makes them; returns numbers for the report.
            scratch: Unfinished work that is only worth keeping while the inputs stay the same.
            needed: What must exist too, but may serve other runs as well: never removed here.

        Returns:
            The fingerprint, an input of the steps that follow.
        """
        key, outputs = fingerprint(step, *inputs), list(outputs)
        if self._done.get(step) == key:
            return key
        if parallel.on_main(lambda: self.manifest.fresh(step, key, [*outputs, *needed])):
            console.print(f"[green]✓[/] {step} [dim](kept: nothing it depends on has changed)[/]")
            self._done[step] = key
            return key
        if self._taken(step, key, outputs):
            return key
        if parallel.is_main():
            if not self.manifest.interrupted(step, key):
                for path in [*outputs, *scratch]:  # before the manifest forgets what they were made from
                    remove(path)
            self.manifest.begin(step, key)
        parallel.barrier()
        console.print(f"[bold]• {step}[/]")
        self._step, self._started = step, time.monotonic()
        summary = make()
        self._keep_time()
        if parallel.is_main():
            self.manifest.finish(step, summary)
            if self.shared is not None and self._is_shared(step):
                self.shared.give(step, key, outputs, self.manifest.steps[step])
        parallel.barrier()
        seconds = self.manifest.steps.get(step, {}).get("seconds", 0.0)
        told = ", ".join(f"{name} {_shown(value)}" for name, value in summary.items() if value is not None)
        console.print(f"[green]✓[/] {step} [dim]{seconds:.1f} s{' · ' if told else ''}{told}[/]")
        self._done[step] = key
        return key

    def _is_shared(self, step: str) -> bool:
        """Whether other runs may have a use for a step: all that comes before the compared trainings."""
        return self.shared is not None and step != "evaluation" and not step.startswith("train/")

    def _taken(self, step: str, key: str, outputs: list[Path]) -> bool:
        """Take a step that another run has made from the same inputs, if there is one."""
        shared = self.shared
        if shared is None or not self._is_shared(step):
            return False
        entry = parallel.on_main(lambda: shared.entry(step, key))
        if entry is None:
            return False
        if parallel.is_main():
            shared.take(step, key, outputs)
            self.manifest.adopt(step, entry)
        parallel.barrier()
        console.print(f"[green]✓[/] {step} [dim](shared: another run has made it)[/]")
        self._done[step] = key
        return True

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
        return open_mapped(self.folder / "examples" / f"{name}.parquet", self.folder / ".mapped")

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

    # ------------------------------------------------------------------------------------------------------- seeds

    def seed_of(self, config: TrainingConfig) -> int:
        """The seed of a training: its own, or the recipe's."""
        return self.recipe.seed if config.seed is None else config.seed

    def curriculum_of(self, config: TrainingConfig) -> Curriculum | None:
        """A training's curriculum; what is random in it follows the seed of the training."""
        if config.curriculum is None:
            return None
        seed = config.curriculum.seed + self.seed_of(config)
        return config.curriculum.model_copy(update={"seed": seed})

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
        """Refuse models that do not fit each other, or what is asked of them, before a weight is loaded."""
        check_evaluation(self.recipe)
        teacher, student = self.recipe.teacher, self.recipe.student
        for named in (teacher, student):
            if named.model:
                resolve_source(split_adapter(named.model)[0])
        get_template(self.recipe.data.template, self.tokenizer)
        configs = [load_config(teacher.model, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code)]
        if student.model:
            configs.append(
                load_config(student.model, revision=student.revision, trust_remote_code=student.trust_remote_code)
            )
        trainings = [*self.recipe.arms.values(), *([student.warm_start] if student.warm_start else [])]
        # The student's tokenizer also reads for the teacher where the teacher writes or is evaluated.
        heard = any(training.needs_teacher or training.method.name == "seqkd" for training in trainings)
        if len(configs) == 2 and (heard or "teacher" in (self.recipe.evaluation.models or ["teacher"])):
            check_same_kind(*configs)
            tokenizer = load_tokenizer(
                teacher.model, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
            )
            check_same_tokenizer(tokenizer, self.tokenizer, (teacher.model, str(student.model)))
        self.width = shared_vocabulary(configs[0], configs[-1], self.tokenizer)
        self.hidden_size = configs[0].get_text_config().hidden_size
        for config, model in zip(configs, (teacher.model, student.model), strict=False):
            self._check_lengths(config, str(model))
        for training, config in [(teacher.sft, configs[0]), *((training, configs[-1]) for training in trainings)]:
            if training is not None and training.lora is not None and isinstance(training.lora.targets, list):
                check_lora_targets(config, training.lora.targets)

    def _check_lengths(self, config: Any, model: str) -> None:
        """Refuse sequences that are longer than a model's positions."""
        data, longest = self.recipe.data, position_limit(config)
        if longest is None:
            return
        answer = max(self.recipe.generation.max_new_tokens, self.recipe.reflection.max_new_tokens or 0)
        for length, setting, remedy in (
            (data.max_length, "data.max_length", "data.max_length"),
            (
                data.max_prompt_length + answer,
                "data.max_prompt_length plus generation.max_new_tokens",
                "generation.max_new_tokens",
            ),
        ):
            if length > longest:
                raise UserError(
                    f"{setting} is {length}, but model '{model}' takes {longest} tokens. Set a smaller {remedy}."
                )

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
    known: dict[str, str] = {}
    for name in SPLITS:
        for example in splits[name]["id"]:
            if example in known:
                raise UserError(f"the id '{example}' is in {known[example]} and in {name}: ids must be unique.")
            known[example] = name
        with atomic_write(run.folder / "examples" / f"{name}.parquet") as partial:
            pq.write_table(splits[name].with_format("arrow")[:], partial)
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
        raise UserError(
            f"data.train has no training rows, only {' and '.join(sorted(splits))}. Give more rows, or say which split "
            "to train on: data.train.split"
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
        with _training(run, "teacher_sft", config, work, teacher.model, _load_options(teacher)) as training:
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
            options = {} if student.drop_layers else _load_options(student)
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


def _load_writer(source: str, run: Run, options: dict[str, Any]) -> Any:
    """A model that only writes: by transformers, or by vLLM where the recipe says so."""
    if run.recipe.generation.engine == "transformers":
        return _load(source, run, options)
    if options.get("adapter"):
        raise UserError("generation.engine=vllm takes no adapter: merge it into the model first, or use transformers.")
    named = {name: options.get(name) for name in ("revision", "trust_remote_code")}
    source, config = str(resolve_source(source)), load_config(source, revision=named["revision"])
    longest = run.recipe.data.max_length + run.recipe.generation.max_new_tokens
    return VllmEngine(source, longest, dtype=options.get("dtype", "auto"), config=config,
                      **{name: value for name, value in named.items() if value})  # fmt: skip


def teacher_responses(run: Run, longest: int) -> list[str]:
    """The teacher's own answers to the training prompts, for sequence-level distillation."""
    path = run.folder / "seqkd" / "responses.parquet"
    teacher, examples = prepare_teacher(run), prepare_examples(run)

    def make() -> dict[str, Any]:
        rows, done = run.split("train"), 0
        prompts, _, _ = run.encoder.prompts(list(rows))
        model = _load_writer(run.teacher_source, run, run.teacher_options())
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
        write_scores(scores, path)
    parallel.barrier()
    if parallel.is_main():
        forget_batches(batches)
    parallel.barrier()


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
    curriculum = run.curriculum_of(run.recipe.training) or Curriculum()
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


def check_evaluation(recipe: Recipe) -> None:
    """Refuse an evaluation that cannot be done, before the training that it would come after."""
    known = ("teacher", "student", *recipe.arms)
    for name in recipe.evaluation.models or []:
        if name not in known:
            raise UserError(f"evaluation.models: there is no model '{name}' in this run; {nearest(name, known)}")
    for named in recipe.evaluation.tasks:
        if get_task(named.name).runs_code and not recipe.evaluation.allow_code_execution:
            raise UserError(
                f"evaluation.tasks: {named.name} runs programs that a model wrote, and you have not allowed that. "
                "Set evaluation.allow_code_execution=true, or leave the task out."
            )
        if named.path and not Path(named.path).expanduser().is_file():
            raise UserError(f"evaluation.tasks: {named.name}: there is no file '{named.path}'. Check the path.")


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
    folder = run.folder / "evaluation"

    def make() -> dict[str, Any]:
        tests = benchmarks(run)
        contenders = [
            Contender(name, fingerprint(sources[name][1], run.encoding), _loader(run, *sources[name]))
            for name in wanted
        ]
        with progress_bar("answers") as update:

            def told(title: str, done: int, total: int) -> None:
                update(done, total, title)
                run.tick()

            evaluate(
                contenders, tests, folder, batch_size=run.recipe.generation.batch_size, progress=told,
                shared=run.shared.folder / "answers" if run.shared else None,
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
    return lambda: (_load_writer(source, run, options), run.encoder)


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
    run.check_models()
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


def curate(run: Run, target: Path) -> list[Path]:
    """Reflect, rank and stage only: ``stage_0.jsonl …``, in the order of the curriculum, for any other trainer.

    Each row has ``id, instruction, input, output, messages, stage, rank, temperature, weight`` as far as they apply.
    """
    curriculum = run.curriculum_of(run.recipe.training) or Curriculum()
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


def _check_shared(folder: Path) -> None:
    """Refuse processes that do not see the main process's files."""

    def look() -> None:
        if not folder.is_dir():
            raise UserError(
                f"process {parallel.process()} does not see {folder.absolute()}, where process 0 writes. "
                "On several machines --run-dir must lie on a file system that all of them share."
            )

    parallel.together(look)


def lock(path: Path, option: str) -> Any:
    """Hold a directory until this process ends, however it ends; ``option`` is what names another one."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = open(path, "w")  # noqa: SIM115 - held open on purpose
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(
            f"another srd command works in {path.parent}. Wait for it, or choose another {option}."
        ) from error
    return file


def versions() -> dict[str, str]:
    """Versions of what a run depends on."""
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
