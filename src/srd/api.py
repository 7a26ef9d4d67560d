"""Names, models or rows in, a student out: `distill` and `run`, through the same steps as the command line.

A run reads files, so that it can be continued. So a model or rows that are in memory are written beside the run
directory first, under a name made from their content: the same call finds them again, and goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import torch
from pydantic import BaseModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srd.base import parallel
from srd.base.console import set_up_logging
from srd.base.errors import RunError, UserError
from srd.base.failures import path_problem
from srd.base.files import (
    atomic_folder,
    atomic_write,
    content_of,
    file_digest,
    fingerprint,
    read_json,
    read_sealed,
    remove,
    write_sealed,
)
from srd.base.handed import check_counts, check_kind, check_loaded
from srd.base.surroundings import as_it_was
from srd.base.tables import data_set, write_table
from srd.base.text import flattened
from srd.data.bad_rows import BadRows, mark_of
from srd.data.batching import EncodedExamples
from srd.data.encoding import encode, is_encoded
from srd.data.examples import as_examples, row_of
from srd.data.rows import as_table
from srd.evaluation.answers import EvaluatedModel
from srd.evaluation.answers import evaluate as answer_and_score
from srd.evaluation.models import prompt_encoder, prompt_room, read_benchmarks
from srd.models.adapted import is_adapted
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.tokenizers.pair import token_count
from srd.models.tokenizers.tokens import tokenizer_identity, without_last_call
from srd.recipe.merging import merge
from srd.recipe.reading import changed_recipe, load_recipe, refuse_idle, validate_recipe
from srd.recipe.schema import Recipe
from srd.report.page import build_report
from srd.run.context import Run, made_options, versions
from srd.run.flow import advance, training_steps
from srd.run.folder import SPLITS, RunFolder
from srd.run.manifest import noted_in, standing, student_of
from srd.sandbox.outside import Permission
from srd.training.batches import make_collator
from srd.training.cache.building import build_cache as keep_states
from srd.training.cache.teacher_cache import TeacherCache, cache_folder
from srd.training.inputs import check_named
from srd.training.tiers.base import BYTES, make_tier, stored_dtype

RUNS = Path("runs")
CLEANING = "data.cleaning.action"
NOTES = ("architectures", "dtype", "torch_dtype", "transformers_version")  # what saving puts into a configuration
SECTIONS = ("cache", "data", "evaluation", "generation")  # of a recipe, whose keys functions have as arguments
EVALUATION = ("task", "limit", "seeds", "template", "batch_size", "max_new_tokens", "max_prompt_length", "samples",
              "temperature", "allow_code_execution")  # fmt: skip
ANSWERS = "srd-evaluation-"  # what the folder begins with that a model's answers are kept in meanwhile
ROWS = "rows.jsonl"  # what a caller of `evaluate` has handed over
NOTE = ".json"  # what the note beside a model that was written ends with
A_FOLDER = (str | Path | None, "give the name of a folder")
SOURCE_KEYS = ("path", "dataset")  # a mapping with one of these describes a source, as in a recipe


class Result:
    """What a run has made. Models are loaded when they are asked for.

    Attributes:
        run_dir: The run directory.
        folder: The student and its tokenizer, for ``from_pretrained``.
    """

    def __init__(self, run_dir: Path, label: str, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._files = RunFolder(run_dir, label)
        self._options = options  # of loading what the run has made
        self.run_dir = run_dir
        self.folder = self._files.student(label)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer."""
        return load_tokenizer(str(self.folder), **self._options)

    @cached_property
    def student(self) -> PreTrainedModel:
        """The student, on the CPU and in eval mode."""
        folder = student_of(self.run_dir, self._files.main)
        return load_model(str(folder), tokenizer=self.tokenizer, role="student", **self._options)

    @property
    def metrics(self) -> dict[str, Any]:
        """``{model: {task: {metric: {"mean", "std", "seeds"}}}}`` in percent; empty where nothing was evaluated."""
        return dict(read_json(self._files.results, {})) if "evaluation" in standing(noted_in(self.run_dir)) else {}

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self._files.report

    def __repr__(self) -> str:
        return f"Result(run_dir={str(self.run_dir)!r})"


@contextlib.contextmanager
def _told_in_python(*arguments: str) -> Iterator[None]:
    """Name arguments in place of options and of a recipe's keys, and a caller's rows in place of the file for them.

    A path that the system does not take is the caller's mistake, too.
    """
    try:
        yield
    except (UserError, RunError) as error:
        rows = rf"{re.escape(tempfile.gettempdir())}/{ANSWERS}\w+/{ROWS}"
        text = re.sub(rows, "the rows", re.sub(rf"{rows}(?::|: row )(\d+)", r"row \1", str(error)))
        for name in arguments:
            text = _renamed(text, name)
        error.args = (text,)
        raise
    except (OSError, RuntimeError) as error:
        if problem := path_problem(error):
            raise UserError(problem) from error
        raise


def _renamed(text: str, name: str) -> str:
    """A message with an argument's name in place of the option and the key; a command that is to be given stays one."""
    option = f"--{name.replace('_', '-')}"
    pattern = rf"(\bsrd \w+ [^.;]*{option}\b)|(?:{option}|\b(?:{'|'.join(SECTIONS)})\.{name})\b"
    return re.sub(pattern, lambda found: found[1] or name, text)


@_told_in_python("run_dir")
@as_it_was()
def run(recipe: str | Path | Mapping[str, Any] | Recipe, *overrides: str, run_dir: str | Path | None = None) -> Result:
    """Run a whole recipe, examples to report. The same call again resumes it, or returns at once.

    Args:
        recipe: The name of a shipped recipe, a YAML file, or the recipe itself as a mapping.
        overrides: Changes such as ``"training.epochs=2"``.
        run_dir: Where to work; None: ``runs/<name of the recipe>``.

    Raises:
        UserError: the recipe or what it names is wrong, or the directory belongs to another recipe.
        RunError: the machine fails; the same call goes on from there.

    >>> import srd
    >>> srd.run("demo", "training.epoch=2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    srd.base.errors.UserError: ...training.epoch: unknown key; did you mean 'epochs'?...
    """
    with contextlib.closing(open_run(recipe, overrides, run_dir)) as claimed:
        advance(claimed)
        return _result(claimed)


@_told_in_python("run_dir")
@as_it_was()
def distill(
    teacher: Any,
    student: Any,
    rows: Any,
    *,
    objective: str | Mapping[str, Any] = "srkl",
    method: str | Mapping[str, Any] = "kd",
    curriculum: Any = None,
    run_dir: str | Path | None = None,
    evaluate: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **settings: Any,
) -> Result:
    """Distil a teacher into a student on rows. The same call again resumes, or returns at once.

    Args:
        teacher: A name on the hub, a folder, a GGUF file, a loaded model, a pair ``(model, tokenizer)``, or a recipe's
            ``teacher`` section as a mapping. None where there are several: ``teachers=[{"model": …}, …]``.
        student: Likewise.
        rows: A file, a name on the hub, a ``datasets.Dataset``, a list of dicts, a pandas, polars or pyarrow table; or
            a mapping with ``train``, and perhaps ``validation`` and ``test``, of any of these.
        objective: The divergence: ``fkl``, ``rkl``, ``jsd``, ``tvd``, ``sfkl``, ``srkl``, ``ab``, ``akl``, or one that
            you registered; of a method that has its own, that one.
        method: ``kd``, ``taid``, ``entropy_aware``, ``gkd``, ``distillm``, ``distillm2``, ``seqkd``, ``sft``, or one
            that you registered.
        curriculum: ``srd.Curriculum(...)``, or its settings as a mapping; None: all rows, in one stage.
        run_dir: Where to work; None: a folder below ``runs`` for these very arguments. A model or rows from memory are
            kept beside it, in a folder that ends in ``-inputs``.
        evaluate: Let teacher and students answer the test split, and compare them.
        tokenizer: Of loaded models that do not come as a pair; None: where each was loaded from.
        settings: Sections of the recipe (``data={"max_length": 1024}``, ``generation=…``, ``seed=1``) or settings of
            its section ``training`` (``epochs=3``, ``learning_rate=1e-4``, ``lora={"r": 8}``).

    Raises:
        UserError: something that cannot be; the message says what, where and what to do.
        RunError: the machine fails; the same call goes on from there.
    """
    check_kind("run_dir", run_dir, *A_FOLDER)
    beside = RUNS / "distill" if run_dir is None else Path(run_dir).expanduser()
    beside = beside if beside.name.strip(".") else beside.resolve()  # `.` has no name
    inputs = _Inputs(beside.with_name(f"{beside.name}-inputs"))
    check_named(objective=objective, method=method)
    recipe = {name: _plain(settings.pop(name)) for name in list(settings) if name in Recipe.model_fields}
    training = {"objective": objective, "method": method, "curriculum": curriculum, **settings}
    several = teacher is None and bool(recipe.get("teachers"))
    named = {
        "teacher": None if several else _model_source(teacher, "teacher", tokenizer, inputs),
        "student": _model_source(student, "student", tokenizer, inputs),
        "data": _data_source(rows, inputs, recipe),
        "training": training,
    }
    _check_given_once(recipe, named)
    complete = validate_recipe(_plain(merge({"name": "distill", **named}, recipe)), "distill")
    refuse_idle(complete, {"training": settings})
    refuse_idle(complete, recipe, whole=True)
    folder = RUNS / f"distill-{fingerprint(complete.model_dump(mode='json'))[:12]}" if run_dir is None else run_dir
    inputs.write(lambda: open_run(complete, (), folder).close())
    return _distilled(open_run(complete, (), folder), inputs, evaluate)


def _distilled(claimed: Run, inputs: _Inputs, evaluate: bool) -> Result:
    """Go through the steps; a run that is refused before the first of them leaves no inputs behind."""
    try:
        with contextlib.closing(claimed):
            advance(claimed, *(() if evaluate else training_steps(claimed.recipe)))
            return _result(claimed)
    except UserError:
        if not claimed.keys:
            inputs.withdraw()
        raise


def _check_given_once(recipe: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Refuse what `distill` is told twice: by an argument, and in a section of the recipe, which would win."""
    defaults = {name: each.default for name, each in inspect.signature(distill).parameters.items()}
    for section in ("data", "training"):
        own = recipe.get(section, {})
        own = {"train": own} if section == "data" and isinstance(own, str | list) else own
        for key in own if isinstance(own, Mapping) else ():
            if key in named[section] and not (key in defaults and named[section][key] == defaults[key]):
                argument = "rows" if section == "data" else f"{key}="
                raise UserError(
                    f"'{key}' is given twice: by {argument}, and by {section}={{'{key}': …}}. Leave one of them out."
                )


def open_run(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str], run_dir: str | Path | None,
    *, effects: bool = True,
) -> Run:  # fmt: skip
    """Load a recipe and claim its run directory, until the run is closed or the process ends.

    ``effects``: whether what has no effect is refused.
    """
    _check_given(recipe, overrides, run_dir)
    loaded = parallel.together(lambda: _loaded(recipe, overrides, effects))
    folder = RUNS / loaded.name if run_dir is None else Path(run_dir).expanduser()
    parallel.check_same({"recipe": loaded.model_dump(), "version": versions(), "run-dir": str(folder.absolute())})
    claimed = Run(loaded, folder)
    set_up_logging(claimed.warnings)
    return claimed


def _check_given(recipe: Any, overrides: Any, run_dir: Any) -> None:
    """Refuse what cannot be a recipe, its changes or a folder."""
    check_kind("the recipe", recipe, str | Path | Mapping | Recipe, "give a name, a file or a mapping")
    for change in overrides:
        check_kind("a change of the recipe", change, str, 'give texts, one after the other, as in "training.epochs=2"')
    check_kind("run_dir", run_dir, *A_FOLDER)


def check_made_by(recipe: str, overrides: Sequence[str], run_dir: Path | None) -> None:
    """Refuse to tell of a run that is not there, or of one that another recipe has made.

    Raises:
        UserError: with the first setting that differs.
    """
    given = _loaded(recipe, overrides, effects=False)  # `srd clean` marks rows where nothing else does
    folder = RUNS / given.name if run_dir is None else run_dir.expanduser()
    written = RunFolder(folder, "").recipe
    if not written.is_file():
        raise UserError(f"there is no run in {folder} (it has no recipe.yaml). Make it by srd run, or give --run-dir.")
    there, here = (flattened(each.model_dump(mode="json")) for each in (load_recipe(str(written)), given))
    if (there[CLEANING], here[CLEANING]) == ("report", "off"):  # `srd clean` has marked rows and changed none
        there[CLEANING] = here[CLEANING]
    names = [name for name in {**there, **here} if not name.startswith("cluster.")]  # what comes of it is the same
    changed = [name for name in names if there.get(name) != here.get(name)]
    if changed:
        name = changed[0]
        raise UserError(
            f"{name} is {here.get(name)!r} in the recipe, but the run in {folder} was made with {there.get(name)!r}. "
            f"srd report {written} --run-dir {folder} tells of what is there; srd run makes what has changed."
        )


def _loaded(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str], effects: bool = True
) -> Recipe:  # fmt: skip
    if isinstance(recipe, str | Path):
        return load_recipe(str(recipe), overrides, effects=effects)
    if isinstance(recipe, Recipe) and not overrides:
        return recipe
    content = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else _plain(recipe)
    return changed_recipe(content, overrides, "the recipe", effects=effects)


def _result(claimed: Run) -> Result:
    parallel.on_main(lambda: build_report(claimed.folder))
    return Result(claimed.folder, claimed.recipe.training.label, made_options(claimed.recipe))


def _plain(value: Any) -> Any:
    """A value as YAML would have it: paths as text, settings objects as mappings, tuples as lists."""
    if isinstance(value, BaseModel):  # a recipe fills in the rest; a name says of which kind it is
        return {name: _plain(said) for name, said in value if name in {*value.model_fields_set, "name"}}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


# ------------------------------------------------------------------------------------------- models and rows in memory


class _Inputs:
    """What a call has in memory, as files beside its run directory: named at once, by their content, written later.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[Path, Callable[[Path], None]] = {}
        self._new: list[Path] = []  # of it, its folders and its files, what was not there before

    def add(self, name: str, write: Callable[[Path], None]) -> str:
        """The path that a file or folder will have; ``write`` makes it, in the main process."""
        self._writers[self.folder / name] = write
        return str(self.folder / name)

    def write(self, check: Callable[[], None]) -> None:
        """Write what there is, if ``check`` does not refuse the run."""
        if self._writers:
            check()
        paths = [*self._writers, self.folder, *self.folder.parents]
        self._new = parallel.on_main(lambda: [path for path in paths if not path.exists()])
        for path, write in self._writers.items():
            parallel.on_main(partial(write, path))

    def withdraw(self) -> None:
        """Remove what was not there before, as nothing will be made of it."""
        for path in self._new if parallel.is_main() else ():
            if path in self._writers:
                remove(path)
                remove(path.with_suffix(NOTE))
            else:
                with contextlib.suppress(OSError):  # others are in it
                    path.rmdir()


def _model_source(given: Any, role: str, tokenizer: PreTrainedTokenizerBase | None, inputs: _Inputs) -> Any:
    """What a recipe says of a model; one that is in memory becomes one of the ``inputs``."""
    if isinstance(given, str | Path | Mapping):
        return _plain(given)
    if isinstance(given, tuple) and len(given) == 2:
        given, tokenizer = given
    if is_adapted(given):
        raise UserError(f"{role}: an adapted model cannot be taken as it is. Merge it: model.merge_and_unload()")
    if not isinstance(given, PreTrainedModel):
        raise UserError(
            f"{role}: cannot take a {type(given).__name__}. Give a name, a folder, a transformers model, or a pair "
            "(model, tokenizer)."
        )
    own = tokenizer if tokenizer is not None else _tokenizer_of(given, role)
    name = parallel.on_main(lambda: f"model-{model_content(given, own)[:16]}")
    return inputs.add(name, lambda place: _keep_model(given, own, place))


def _tokenizer_of(model: PreTrainedModel, role: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies where a model was loaded from."""
    place = str(model.name_or_path or "")
    if not place:
        raise UserError(f"{role}: a model that was not loaded brings no tokenizer. Give tokenizer=, or a pair.")
    try:
        return load_tokenizer(place)
    except UserError as error:
        raise UserError(f"{role}: its tokenizer is not to be found ({error}) Give tokenizer=, or a pair.") from error


def model_content(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a loaded model: weights, configurations, tokenizer."""
    digest = hashlib.blake2b(digest_size=16)
    for name, values in sorted(model.state_dict().items()):
        flat = values.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    generation = model.generation_config.to_diff_dict() if model.generation_config else {}
    told = [
        {k: v for k, v in each.items() if k[0] != "_" and k not in NOTES}
        for each in (model.config.to_dict(), generation)
    ]
    return fingerprint(digest.hexdigest(), told, tokenizer_identity(tokenizer))


def _keep_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: Path) -> None:
    """Write a loaded model into a folder, once for the same content and again where it was damaged."""
    note = place.with_suffix(NOTE)
    if not place.is_dir() or read_sealed(note).get("files") != content_of(place):
        with atomic_folder(place) as partial:
            model.save_pretrained(str(partial))
            with without_last_call(tokenizer):
                tokenizer.save_pretrained(str(partial))
        write_sealed(note, {"files": content_of(place)})


def _data_source(rows: Any, inputs: _Inputs, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's ``data`` section; rows that are in memory become some of the ``inputs``, as the ``recipe`` says."""
    data, teachers = recipe.get("data"), recipe.get("teachers")
    settings = data if isinstance(data, Mapping) else {}
    drops, column = settings.get("bad_rows") == "drop", None
    if isinstance(teachers, list) and any(isinstance(each, Mapping) and each.get("rows") for each in teachers):
        column = settings.get("teacher_column", "teacher")
    if isinstance(rows, Mapping) and not set(SOURCE_KEYS) & rows.keys():
        if "train" not in rows or not rows.keys() <= set(SPLITS):
            raise UserError(f"rows: a mapping has 'train', perhaps 'validation' and 'test', but not {sorted(rows)}")
    else:
        rows = {"train": rows}
    return {split: _source(own, inputs, split, drops, column) for split, own in rows.items()}


def _source(rows: Any, inputs: _Inputs, split: str, drops: bool, column: str | None) -> Any:
    """What a recipe says of the rows of a split; of those to train on ``column`` says who teaches each, if given."""
    names = isinstance(rows, list) and rows and all(isinstance(name, str | Path) for name in rows)
    if names or isinstance(rows, str | Path | Mapping):
        return _plain(rows)
    bad = BadRows("drop" if drops else "error", of_recipe=True)
    column = column if split == "train" else None
    examples: list[datasets.Dataset] = []  # in the main process alone, which writes them

    def name() -> str:
        examples.append(as_examples(rows, bad, split, partial(mark_of, column) if column else None))
        if not drops:
            bad.settle()
        digest = hashlib.blake2b(digest_size=16)  # as `file_digest`
        for line in _lines(examples[0], bad, column):
            digest.update(line)
        return f"{split}-{digest.hexdigest()[:16]}.jsonl"

    return inputs.add(parallel.on_main(name), lambda path: _keep_rows(examples[0], bad, column, path))


def _lines(examples: datasets.Dataset, bad: BadRows, column: str | None) -> Iterator[bytes]:
    for example in examples:
        row = row_of(example)
        if column:
            row.setdefault(column, row.pop("teacher", example.get(column)))
        yield (json.dumps(row, ensure_ascii=False) + "\n").encode()
    yield from bad.lines()  # the run tells of them and lists them


def _keep_rows(examples: datasets.Dataset, bad: BadRows, column: str | None, path: Path) -> None:
    """Write rows as JSON lines, once for the same content and again where the file is not what its name says."""
    if not path.is_file() or not path.stem.endswith(file_digest(path)[:16]):
        with atomic_write(path) as partial, open(partial, "wb") as file:
            file.writelines(_lines(examples, bad, column))


# ------------------------------------------------------------------------------------------------ parts, usable alone


@_told_in_python("tier", "dtype", "top_k", "max_kl", "batch_size")
def build_cache(
    teacher: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    folder: str | Path,
    *,
    batch_size: int = 16,
    dtype: str = "auto",
    tier: str = "exact",
    top_k: int = 128,
    temperatures: Sequence[float] = (1.0,),
    max_kl: float = 0.01,
    **encoding: Any,
) -> TeacherCache:
    """Run a teacher over rows once, and keep what training needs of it: as a rule its last hidden states.

    Args:
        teacher: A loaded model, a name or a folder.
        tokenizer: Of teacher and student.
        rows: As for `DistillTrainer`; or what `srd.encode` gives.
        folder: Holds the caches of any number of teachers, each in a folder of its own.
        batch_size: Examples in one forward pass.
        dtype: Stored precision of ``exact``: ``auto`` (float16, and bfloat16 for a teacher that runs in it),
            ``float32``, ``bfloat16`` or ``float16``.
        tier: What is kept of a token: ``exact``, ``int8``, ``topk`` or ``likelihood`` (`srd.training.tiers`).
        top_k: Tokens that ``topk`` keeps.
        temperatures: At which ``topk`` will be asked, beside 1.
        max_kl: Largest mean KL, in nats, between the teacher and what is kept.
        encoding: As for `srd.encode`: ``template``, ``max_length``, ``max_prompt_length``.

    Returns:
        The cache, for ``DistillTrainer(teacher=...)`` with the same rows. What a former call has made is not made
        again.

    Raises:
        UserError: rows that are no examples, a teacher whose logits do not follow from its hidden states, or a tier
            that is too far from it.
        RunError: the disk is too small, or the teacher gives states that are not finite.
    """
    check_kind("folder", folder, str | Path, A_FOLDER[1])
    check_counts(batch_size=batch_size, top_k=top_k)
    if dtype not in ("auto", *BYTES):
        raise UserError(f"dtype is {dtype!r}, but must be one of auto, {', '.join(BYTES)}")
    named = isinstance(teacher, str | Path)
    loaded: Any = load_model(str(teacher), tokenizer=tokenizer, role="teacher") if named else teacher
    check_loaded(teacher=loaded, tokenizer=tokenizer)
    kind = bool(loaded.config.is_encoder_decoder)
    if not is_encoded(rows):
        rows = encode(rows, tokenizer, encoder_decoder=kind, **encoding)
    running = str(next(loaded.parameters()).dtype).removeprefix("torch.")
    stored = stored_dtype(running) if dtype == "auto" else dtype
    kept = make_tier(tier, dtype=stored, top_k=top_k, temperatures=temperatures)
    place = cache_folder(Path(folder).expanduser(), model_content(loaded, tokenizer), kept.identity)
    loaded.eval()
    examples, collator = EncodedExamples(rows), make_collator(loaded, tokenizer)
    collator.check(examples)
    width = token_count(tokenizer) if not kept.with_head else None  # padding rows count only where the head says which
    return keep_states(
        place, lambda: loaded, examples, collator, tier=kept, width=width, max_kl=max_kl, batch_size=batch_size
    )


@_told_in_python(*EVALUATION)
def evaluate(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    task: str,
    path: Any = None,
    *,
    seeds: int | Sequence[int] | None = None,
    limit: int | None = None,
    template: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    samples: int = 1,
    max_prompt_length: int | None = None,
    batch_size: int = 32,
    allow_code_execution: Permission = False,
) -> dict[str, Any]:
    """Let a model answer a benchmark, and score the answers.

    Args:
        model: A loaded model, which is left as it is; a name or a folder.
        tokenizer: Its tokenizer, or where that lies; None: where a model lies that is given by its name.
        task: Such as ``gsm8k``, ``dolly``, ``xsum``, ``instruction``, or one that you registered.
        path: A file in the task's original format, or its rows, as of `distill`; None: from the hub.
        seeds: One answer to every prompt for each; None: the task's own. Greedy decoding uses the first only.
        limit: The first so many examples.
        template: Prompt template; None: the task's own.
        max_new_tokens: Longest answer; None: the task's own.
        temperature: Of sampling, 0 is greedy; None: the task's own.
        samples: Answers to each prompt, for tasks that score several at once (``mbpp``).
        max_prompt_length: Longest prompt in tokens; None: what the model takes beside the answer.
        batch_size: Prompts at once.
        allow_code_execution: Permission to run the programs that the model writes (``mbpp``).

    Returns:
        ``{metric: {"mean", "std", "seeds": {seed: value}}}`` in percent, where the metric is one.

    Raises:
        UserError: an unknown task, a file that cannot be read, programs that would run without permission.
    """
    own: Any = model if tokenizer is None and isinstance(model, str | Path) else tokenizer
    check_loaded(**{k: v for k, v in {"model": model, "tokenizer": own}.items() if not isinstance(v, str | Path)})
    check_counts(batch_size=batch_size, max_prompt_length=max_prompt_length)
    with _folder_of_answers() as folder, contextlib.ExitStack() as afterwards:
        source = path if path is None or isinstance(path, str | Path) else _written(path, folder / ROWS)
        (benchmark,) = read_benchmarks(
            [task if source is None else f"{task}={source}"],
            seeds=None if seeds is None else ",".join(map(str, [seeds] if isinstance(seeds, int) else seeds)),
            limit=limit, template=template, max_new_tokens=max_new_tokens, temperature=temperature, samples=samples,
            allow_code_execution=allow_code_execution,
        )  # fmt: skip
        own = load_tokenizer(str(own)) if isinstance(own, str | Path) else own
        loaded: Any = load_model(str(model), tokenizer=own, role="model") if isinstance(model, str | Path) else model
        afterwards.callback(loaded.train, loaded.training)
        room = prompt_room(loaded, own, benchmark.decoding.max_new_tokens, max_prompt_length)
        encoder = prompt_encoder(loaded.config, own, room)
        results = answer_and_score(
            [EvaluatedModel("model", "", lambda: (loaded.eval(), encoder))], [benchmark], folder / "answers",
            batch_size=batch_size, scoring={"allow_code_execution": allow_code_execution},
        )  # fmt: skip
    return dict(results["model"][benchmark.key])


@contextlib.contextmanager
def _folder_of_answers() -> Iterator[Path]:
    """A folder for as long as a model answers."""
    folder = Path(parallel.on_main(lambda: tempfile.mkdtemp(prefix=ANSWERS)))
    try:
        yield folder
    finally:
        parallel.barrier()
        if parallel.is_main():
            shutil.rmtree(folder, ignore_errors=True)


def _written(rows: Any, path: Path) -> Path:
    """A JSON-lines file with rows as they are, for a task that reads them in its own format."""
    table = as_table(rows, [], "rows")
    parallel.on_main(lambda: write_table(data_set(table), path))
    return path
