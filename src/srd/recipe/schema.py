"""The recipe: every setting of a run, its default, and what it means.

A recipe is a YAML file. ``extends: NAME`` starts from another recipe (a shipped one, or a file beside it) and changes
what it says. On the command line ``key.path=value`` changes it again. All mistakes are reported in one message.
"""

from __future__ import annotations

import itertools
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from srd.base.errors import UserError, nearest
from srd.base.files import atomic_write
from srd.base.settings import LONGEST_NAME, FolderName, Named, Precision, Section, Seed, each_once
from srd.base.yaml_text import dump_yaml, parse_yaml, read_yaml
from srd.curation.curriculum import Curriculum
from srd.data.settings import DataConfig
from srd.training.divergences.base import canonical_name, check_parameters
from srd.training.libraries import check_logger, check_optimizer
from srd.training.methods.base import METHODS, AnyMethod

# --------------------------------------------------------------------------------------------- methods, objectives


class ObjectiveConfig(BaseModel):
    """A divergence by name with its parameters, such as ``{name: srkl, alpha: 0.1}``, or just ``srkl``."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("fkl", description="fkl, rkl, jsd, tvd, sfkl, srkl, or one that you registered")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Self:
        self.name = canonical_name(self.name)
        check_parameters(self.name, self.parameters)
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """What is passed to the divergence beside the logits."""
        return dict(self.__pydantic_extra__ or {})


# -------------------------------------------------------------------------------------------------------- training


class LoraConfig(Section):
    """Low-rank adapters (peft)."""

    r: int = Field(16, ge=1, le=2**16, description="rank")
    alpha: float = Field(64, gt=0, description="scale is alpha / r")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout before the adapter")
    targets: Annotated[list[Named], Field(min_length=1)] | Literal["all-linear"] | None = Field(
        None, description="module names; else the family's usual"
    )
    merge: bool = Field(True, description="merge into the saved student; else save the adapter beside its base")


class TrainingConfig(Section):
    """One training: its method, its objective and its optimizer. SFT and every distillation use this same section."""

    method: AnyMethod = Field(
        default_factory=lambda: METHODS.get("kd")(),
        description="sft, seqkd, kd, gkd, distillm, or one that you registered",
    )
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="divergence between teacher and student")
    weight: float = Field(1.0, ge=0, le=1, description="weight of the divergence; 1 - weight is cross-entropy's")
    temperature: float = Field(1.0, gt=0, description="softmax temperature in the divergence")
    temperature_scaling: Literal["paper", "all", "none"] = Field(
        "paper", description="multiply by T squared: for fkl, jsd, srkl as the paper does; for all; for none"
    )
    curriculum: Curriculum | None = Field(None, description="select and order the data by difficulty; none: all data")
    seed: Seed | None = Field(None, description="fixes order, dropout and student text; none: the recipe's seed")
    epochs: float = Field(8, gt=0, le=1e6, description="passes over its data, in each stage")
    learning_rate: float = Field(1e-4, gt=0, description="highest learning rate")
    min_learning_rate: float = Field(1e-7, ge=0, description="where the cosine ends")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="learning-rate schedule of a stage")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps that warm up")
    batch_size: int = Field(16, ge=1, description="examples in one optimizer step, over all processes")
    micro_batch_size: int | None = Field(None, ge=1, description="examples in one forward pass on one device")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    optimizer: str = Field("adamw_torch_fused", description="a name that transformers.TrainingArguments(optim=…) knows")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 autocast on a GPU that has it, else float32"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    lora: LoraConfig | None = Field(None, description="train low-rank adapters instead of all weights")
    select_by: Literal["rouge_l", "loss", "last"] = Field("rouge_l", description="which checkpoint of a stage is best")
    evaluate_every: float = Field(1.0, gt=0, description="validate and checkpoint after so many epochs")
    log_to: Annotated[list[str], AfterValidator(each_once)] = Field(
        [], description="tensorboard, wandb, trackio: loggers of transformers"
    )

    @field_validator("method", mode="before")
    @classmethod
    def _method_from_string(cls, value: Any) -> Any:
        name = value if isinstance(value, str) else value.get("name") if isinstance(value, dict) else None
        if isinstance(name, str):
            METHODS.name_of(name)
        if isinstance(value, dict) and "name" not in value:
            return {"name": "kd", **value}
        return {"name": value} if isinstance(value, str) else value

    @field_validator("optimizer")
    @classmethod
    def _optimizer_is_there(cls, value: str) -> str:
        return check_optimizer(value)

    @field_validator("log_to")
    @classmethod
    def _loggers_are_there(cls, value: list[str]) -> list[str]:
        return [check_logger(name) for name in value]

    @field_validator("curriculum", mode="before")
    @classmethod
    def _curriculum_switch(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) is no multiple of micro_batch_size ({self.micro_batch_size})"
            )
        return self

    @property
    def label(self) -> str:
        """What this training is called in files and tables."""
        return "srd" if self.curriculum else self.method.name

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's distribution enters the loss."""
        return self.method.uses_teacher

    @property
    def teacher_writes(self) -> bool:
        """Whether it trains on text that the teacher has written."""
        return self.method.text == "teacher"

    @property
    def on_policy(self) -> bool:
        """Whether the student writes some of the text, which no cache can foresee."""
        return self.method.text == "student"


def _fine_tuning(value: Any) -> Any:
    """Defaults of a training that prepares a model: plain fine-tuning, chosen by validation loss."""
    value = {} if value is True else None if value is False else value
    return {"method": "sft", "select_by": "loss", **value} if isinstance(value, dict) else value


def _on_all_data(value: TrainingConfig | None) -> TrainingConfig | None:
    if value is not None and value.curriculum is not None:
        raise ValueError("takes all the data: it comes before the reflection a curriculum needs. Remove curriculum")
    if value is not None and value.lora is not None and not value.lora.merge:
        raise ValueError("lora.merge must be true here: what follows starts from one whole model")
    return value


# ---------------------------------------------------------------------------------------------------------- models


class ModelConfig(Section):
    """A pre-trained model. A plain string is short for ``model``."""

    model: Named = Field(description="hub name, local folder, GGUF file, or smollm2 (the one the demo uses)")
    revision: Named | None = Field(None, description="commit, branch or tag on the hub")
    adapter: Named | None = Field(None, description="LoRA adapter folder that is merged on loading")
    dtype: Precision = Field("auto", description="precision of the weights in memory; auto: as they were saved")
    attn_implementation: Named | None = Field(
        None, description="sdpa, flash_attention_2, eager; none: the library's choice"
    )
    trust_remote_code: bool = Field(False, description="run Python code that the hub repository brings")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class TeacherConfig(ModelConfig):
    """The large model, and how it is fine-tuned first, if at all."""

    sft: TrainingConfig | None = Field(None, description="fine-tune the teacher on the training data first")

    @field_validator("sft", mode="before")
    @classmethod
    def _is_sft(cls, value: Any) -> Any:
        return _fine_tuning(value)

    @field_validator("sft")
    @classmethod
    def _needs_no_teacher(cls, value: TrainingConfig | None) -> TrainingConfig | None:
        if value is not None and (value.needs_teacher or value.teacher_writes or value.on_policy):
            raise ValueError(f"the teacher is fine-tuned, so its method is sft, not {value.method.name}")
        return _on_all_data(value)


OF_A_MODEL = ("revision", "adapter", "trust_remote_code")  # say how a model is found, and nothing without one


class StudentConfig(ModelConfig):
    """The small model: its own, or the teacher with layers dropped."""

    model: Named | None = Field(None, description="hub name, folder or GGUF file; none: the teacher, shortened")  # type: ignore[assignment]
    drop_layers: (
        Annotated[int, Field(ge=0)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(each_once)]
        | None
    ) = Field(None, description="how many layers to drop (the least needed block, arXiv 2403.17887), or which")
    warm_start: TrainingConfig | None = Field(None, description="train on all the data before reflection")

    @field_validator("warm_start", mode="before")
    @classmethod
    def _defaults_to_sft(cls, value: Any) -> Any:
        return _fine_tuning(value)

    @field_validator("warm_start")
    @classmethod
    def _before_reflection(cls, value: TrainingConfig | None) -> TrainingConfig | None:
        return _on_all_data(value)

    @model_validator(mode="after")
    def _is_smaller(self) -> Self:
        if self.model is None and not self.drop_layers:
            raise ValueError("names no student: give `model`, or `drop_layers` to shorten the teacher")
        if self.model is None and (idle := [key for key in OF_A_MODEL if getattr(self, key)]):
            raise ValueError(f"{idle[0]} belongs to `model`, and the student is made from the teacher. Remove it")
        return self


# --------------------------------------------------------------------------------------------------- other sections


class GenerationConfig(Section):
    """How text is generated in reflection, validation and evaluation."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="vllm is an extra: pip install 'srd[vllm]'"
    )
    batch_size: int = Field(32, ge=1, description="prompts generated at once")
    max_new_tokens: int = Field(256, ge=1, description="longest response")


class CacheConfig(Section):
    """The exact teacher cache: the teacher's last hidden state at response positions."""

    enabled: bool | None = Field(
        None, description="false: the teacher runs again in every step; none: on wherever the text is known beforehand"
    )
    dir: Named | None = Field(None, description="folder shared by runs; none: inside the run directory")
    dtype: Precision = Field("auto", description="stored precision; auto: the teacher's own")
    limit_gb: float = Field(100.0, gt=0, description="a larger cache is not built: the live teacher is used instead")


class TaskConfig(Section):
    """A benchmark to evaluate on, by its own decoding and seeds. A plain string is short for ``name``."""

    name: str = Field(description="dolly, self_inst, vicuna, sinst, uinst, gsm8k, mbpp, xsum, iwslt2017, pydocs")
    path: Named | None = Field(None, description="local file in the original format; none: from the hub")
    limit: int | None = Field(None, ge=1, description="evaluate on the first so many examples")
    label: str | None = Field(
        None, pattern=r"^[\w+-]+$", description="what it is called in the results; none: its name"
    )

    @property
    def key(self) -> str:
        """What it is called in the results."""
        return self.label or self.name

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        from srd.tasks.base import get_task

        get_task(value)
        return value


class EvaluationConfig(Section):
    """How the models are compared at the end: on the run's own test split, and on named tasks."""

    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(each_once)] = Field(
        [10, 20, 30, 40, 50], description="one sampled answer per prompt and seed"
    )
    temperature: float = Field(1.0, ge=0, description="sampling temperature on the test split; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling on the test split")
    limit: int | None = Field(None, ge=1, description="evaluate on so many test examples")
    tasks: list[TaskConfig] = Field(
        [], description="benchmarks beside the test split, each with its own decoding and seeds, by data.template"
    )
    models: Annotated[list[str], Field(min_length=1), AfterValidator(each_once)] | None = Field(
        None, description="which models; none: teacher, student and every trained one"
    )
    allow_code_execution: bool | Literal["unconfined"] = Field(
        False, description="run generated programs (mbpp): true in a sandbox, unconfined with your own rights"
    )

    @field_validator("tasks")
    @classmethod
    def _told_apart(cls, value: list[TaskConfig]) -> list[TaskConfig]:
        from srd.evaluation.predictions import clashing

        repeated = clashing(["test", *(task.key for task in value)])
        if repeated:
            raise ValueError(
                f"the results of two tasks would both be called '{repeated}' (the run's own are called 'test'). Give "
                "one of them a `label` of its own, as in {name: gsm8k, path: hard.jsonl, label: gsm8k-hard}"
            )
        return value


class ReflectionConfig(Section):
    """How the student reflects on the training data."""

    max_new_tokens: int | None = Field(None, ge=1, description="longest answer; none: generation.max_new_tokens")


class Recipe(Section):
    """Everything a run does. The smallest recipe names teacher, student and data."""

    name: FolderName = Field("run", description="name of the recipe; names the default run directory")
    description: str = Field("", description="one line for `srd recipes`")
    seed: Seed = Field(0, description="fixes every random choice")
    plugins: Annotated[list[Named], AfterValidator(each_once)] = Field(
        [], description="Python files or modules that register objectives"
    )
    teacher: TeacherConfig = Field(description="the large model")
    student: StudentConfig = Field(description="the small model")
    data: DataConfig = Field(description="the examples")
    generation: GenerationConfig = Field(GenerationConfig(), description="how text is generated")
    reflection: ReflectionConfig = Field(ReflectionConfig(), description="how the student reflects")
    cache: CacheConfig = Field(CacheConfig(), description="the teacher cache")
    training: TrainingConfig = Field(TrainingConfig(curriculum=Curriculum()), description="the main training")
    baselines: dict[str, TrainingConfig] = Field({}, description="trainings to compare with: changes to `training`")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="the comparison at the end")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """SRD is the default training; a baseline says only what it changes."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        training = value.get("training", {})
        if isinstance(training, dict):
            value["training"] = {"curriculum": {}, **training}
            baselines = {} if value.get("baselines") is None else value["baselines"]
            if isinstance(baselines, dict):
                value["baselines"] = {
                    name: merge(value["training"], changes) if isinstance(changes, dict) else changes
                    for name, changes in baselines.items()
                }
        return value

    @model_validator(mode="after")
    def _arms_differ(self) -> Self:
        taken = {self.training.label, "teacher", "student"}
        for name in self.baselines:
            usable = name.replace("-", "").replace("_", "").isalnum() and len(name) <= LONGEST_NAME
            if name in taken or not usable:
                raise ValueError(
                    f"baselines.{name}: choose another name (letters, digits, - and _; not {sorted(taken)})"
                )
        return self

    @model_validator(mode="after")
    def _adapters_do_not_pile_up(self) -> Self:
        apart = [name for name, training in self.arms.items() if training.lora and not training.lora.merge]
        if apart and self.student.adapter and not self.student.warm_start and not self.student.drop_layers:
            raise ValueError(
                f"{apart[0]}: lora.merge is false, but the student has an adapter already (student.adapter), and a "
                "saved adapter names one base model only. Set lora.merge: true, or save the merged student first"
            )
        return self

    @model_validator(mode="after")
    def _cache_foresees(self) -> Self:
        taught = [training for training in self.arms.values() if training.needs_teacher]
        if self.cache.enabled and taught and all(training.on_policy for training in taught):
            raise ValueError(
                f"cache.enabled is true, but {taught[-1].method.name} trains on text that the student is yet to write, "
                "which no cache can hold. Leave cache.enabled out, or use method kd"
            )
        return self

    @property
    def arms(self) -> dict[str, TrainingConfig]:
        """Every training that is compared at the end, by label, the main one last."""
        return {**self.baselines, self.training.label: self.training}

    @property
    def student_trainings(self) -> list[TrainingConfig]:
        """Every training of the student: those that are compared, and its warm start."""
        return [*self.arms.values(), *([self.student.warm_start] if self.student.warm_start else [])]


# ------------------------------------------------------------------------------------------------ reading a recipe


def recipe_folder() -> Path:
    """The folder of the shipped recipes."""
    return Path(str(resources.files("srd") / "recipes"))


def shipped_recipes() -> dict[str, Path]:
    """Name and file of every shipped recipe, families and their methods included."""
    return {path.stem: path for path in sorted(recipe_folder().glob("**/*.yaml")) if not path.stem.startswith("_")}


# Sections that may be written as one plain value, and the key that the value then stands for.
SHORT_FORMS = {
    "teacher": "model", "student": "model", "data": "train", "train": "path", "validation": "path", "test": "path",
    "objective": "name", "method": "name",
}  # fmt: skip


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``changes`` over ``base``, section by section; lists and values are replaced.

    A section with another ``name`` (another method, another objective) replaces the old one whole, because its
    parameters mean something else.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, str | list) and key in SHORT_FORMS:
            old = {SHORT_FORMS[key]: old}
        if isinstance(value, dict) and isinstance(old, dict) and not _another(key, old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _another(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a section names another objective or method than before."""
    return key in ("objective", "method") and new.get("name", old.get("name")) != old.get("name")


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe given by path, by a path beside the recipe that names it, or by a shipped name."""
    hidden = recipe_folder() / f"{name}.yaml"
    shipped = {**({name: hidden} if hidden.is_file() else {}), **shipped_recipes()}
    return find_file(name, "recipe", shipped, beside, " `srd recipes` describes them.")


def find_file(name: str, kind: str, shipped: Mapping[str, Path], beside: Path | None, hint: str = "") -> Path:
    """The file of a recipe or a sweep given by path, by a path beside the file that names it, or by a shipped name."""
    for path in (Path(name), *([beside.parent / name] if beside else [])):
        if path.is_file():
            return path
    if name in shipped:
        return shipped[name]
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise UserError(f"no {kind} file '{name}'. Give an existing YAML file or a shipped name: {', '.join(shipped)}")
    raise UserError(f"unknown {kind} '{name}'; {nearest(name, shipped)}{'.' if hint else ''}{hint}")


def read_recipe(
    path: Path, chain: tuple[Path, ...] = (), kind: str = "recipe", find: Callable[..., Path] = find_recipe
) -> dict[str, Any]:
    """Read a recipe file (or a sweep's) with everything it extends, as plain data."""
    path = path.resolve()
    if path in chain:
        loop = " -> ".join(step.name for step in (*chain[chain.index(path) :], path))
        raise UserError(f"{path}: the {kind} extends itself ({loop}). Remove one `extends:`.")
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {kind} is a mapping of settings, but this is a {type(content).__name__}")
    parents = content.pop("extends", None)
    parents = [] if parents is None else [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) and parent.strip() for parent in parents):
        raise UserError(f"{path}: extends: give the name of a {kind}, or a list of names, not {parents!r:.80}")
    base: dict[str, Any] = {}
    for parent in parents:
        base = merge(base, read_recipe(find(parent, beside=path), (*chain, path), kind, find))
    content.setdefault("name", path.stem)
    return merge(base, content)


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested data: ``{"training.epochs": 2}`` into ``{"training": {"epochs": 2}}``."""
    result: dict[str, Any] = {}
    for key, value in changes.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        result = merge(result, value)
    return result


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Turn ``["training.epochs=2"]`` into nested data; values are YAML."""
    result: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise UserError(f"'{text}' is no override. Write key.path=value, such as training.learning_rate=1e-4")
        parsed = parse_yaml(value, f"'{text}': the value")
        result = merge(result, nested({key.strip(): parsed}))
    return result


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load, complete and check a recipe by file or shipped name.

    Raises:
        UserError: with all mistakes, each with its key and, for unknown keys, the nearest known one.
    """
    path = find_recipe(name)
    content = merge(read_recipe(path), parse_overrides(overrides))
    return validate_recipe(content, str(path))


def validate_recipe(content: dict[str, Any], origin: str) -> Recipe:
    """Check plain data against the schema; ``origin`` is named in the message."""
    load_plugins(content.get("plugins"))
    try:
        return Recipe.model_validate(content, strict=True)
    except ValidationError as error:
        raise UserError(f"{origin} has {describe_mistakes(error)}") from error


def load_plugins(plugins: Any) -> None:
    """Import the user's own modules, which register their objectives."""
    from srd.base.plugins import import_plugin

    for plugin in plugins if isinstance(plugins, list) else []:
        import_plugin(str(plugin))


# What pydantic puts into a place beside the recipe's own keys: the alternatives of a field that takes several kinds.
ALTERNATIVE = re.compile(r"str|int|float|bool|(constrained-|list\[|dict\[|literal\[|function-).*")


def describe_mistakes(error: ValidationError, root: type[BaseModel] | None = None) -> str:
    """All mistakes in a recipe, or in what ``root`` describes, a line for each key."""
    by_key: dict[str, list[str]] = {}
    for item in error.errors():
        key, _, message = describe_mistake(item, root).partition(": ")
        by_key.setdefault(key, []).append(message)
    lines = "".join(f"\n  {key}: {'; or '.join(dict.fromkeys(messages))}" for key, messages in by_key.items())
    return f"{len(by_key)} mistake{'' if len(by_key) == 1 else 's'}:{lines}"


def describe_mistake(item: Any, root: type[BaseModel] | None = None) -> str:
    """One line for one pydantic error: key, value, what is wrong, what is meant."""
    location = list(item["loc"])
    # Under `method` pydantic puts the method's name, which is no key of the recipe; a baseline's name is one.
    keys = [part for before, part in itertools.pairwise([None, *location]) if _is_key(before, part)]
    key = ".".join(str(part) for part in keys) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(str(location[-1]), known_keys(location[:-1], root))}"
    if item["type"] == "missing":
        return f"{key}: missing. {field_description(location, root)}".rstrip()
    message = re.sub(r" or (instance of \w+|object to extract fields from)$", "", item["msg"])
    message = message.removeprefix("Value error, ")
    value = item.get("input")
    shown = f" (is {value!r:.100})" if isinstance(value, str | int | float | bool) or value is None else ""
    return f"{key}: {message[0].lower() + message[1:]}{shown}"


def _is_key(before: Any, part: Any) -> bool:
    """Whether a part of a place stands in the recipe, and not in pydantic's alternatives alone."""
    if before == "method" and part in METHODS.names():
        return False
    return before in ("baselines", "columns", "cells", "grid") or not (
        isinstance(part, str) and ALTERNATIVE.fullmatch(part)
    )


def _section_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's annotation can hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return list(annotation.alternatives())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _section_of(part)]


def _sections_at(location: list[Any], root: type[BaseModel] | None = None) -> list[type[BaseModel]]:
    sections: list[type[BaseModel]] = [root or Recipe]
    for part in location:
        found = [
            inner
            for section in sections
            if part in section.model_fields
            for inner in _section_of(section.model_fields[part].annotation)
        ]
        tagged = [section for section in sections if "name" in section.model_fields]
        sections = found or [each for each in tagged if each.model_fields["name"].default == part] or sections
    return sections


def known_keys(location: list[Any], root: type[BaseModel] | None = None) -> set[str]:
    """The keys that are allowed at a place in the recipe."""
    return {key for section in _sections_at(location, root) for key in section.model_fields}


def field_description(location: list[Any], root: type[BaseModel] | None = None) -> str:
    """What the field at a place is for."""
    for section in _sections_at(location[:-1], root):
        if location and location[-1] in section.model_fields:
            return section.model_fields[location[-1]].description or ""
    return ""


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every default spelled out."""
    with atomic_write(path) as partial:
        partial.write_text(recipe_yaml(recipe), encoding="utf-8")


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, in the order of the schema."""
    return dump_yaml(recipe.model_dump(mode="json"))
