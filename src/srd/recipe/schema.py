"""The recipe: every setting of a run, its default, and what it means.

A recipe is a YAML file. ``extends: NAME`` starts from another recipe (a shipped one, or a file beside it) and changes
what it says. On the command line ``key.path=value`` changes it again. All mistakes are reported in one message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from srd.base.errors import UserError
from srd.base.settings import LONGEST_NAME, FolderName, Named, OffIsAWord, Section, Seed, each_once
from srd.curation.detectors.base import DETECTORS
from srd.curation.scores.base import PASSES, measured_needs, scores_of
from srd.curation.settings import PLUS_CURRICULUM, CurriculumConfig, ReflectionConfig
from srd.data.settings import CleaningConfig, DataConfig
from srd.evaluation.settings import EvaluationConfig
from srd.models.engines.base import GenerationConfig
from srd.models.settings import ClusterConfig, ModelConfig, ServedConfig
from srd.recipe.merging import merge
from srd.training.settings import CacheConfig, TrainingConfig
from srd.training.teachers.base import TEACHERS
from srd.training.tiers.base import TIERS

#: Defaults of a training that prepares a model: plain fine-tuning, chosen by validation loss.
FINE_TUNING = {"method": "sft", "select_by": "loss"}


def _fine_tuning(value: Any) -> Any:
    value = {} if value is True else None if value is False else value
    return {**FINE_TUNING, **value} if isinstance(value, dict) else value


def _on_all_data(value: TrainingConfig | None) -> TrainingConfig | None:
    if value is not None and value.curriculum is not None:
        raise ValueError("takes all the data: it comes before the reflection a curriculum needs. Remove curriculum")
    if value is not None and value.lora is not None and not value.lora.merge:
        raise ValueError("lora.merge must be true here: what follows starts from one whole model")
    return value


class TeacherConfig(ServedConfig, ModelConfig):
    """The large model, here or behind a server, and how it is fine-tuned first, if at all."""

    source: Named | None = Field(
        None, description="who gives the targets: live or one of a plugin; none: the cache where it can, else live"
    )
    sft: TrainingConfig | None = Field(None, description="fine-tune the teacher on the training data first")
    offload: Annotated[Literal["auto", "always", "off"], OffIsAWord] = Field(
        "auto", description="read its layers from disk for the cache: auto, where it does not fit into memory"
    )
    load_in_8bit: bool = Field(False, description="quantise its weights to 8 bits while it is loaded (bitsandbytes)")
    load_in_4bit: bool = Field(False, description="quantise its weights to 4 bits while it is loaded (bitsandbytes)")

    @property
    def bits(self) -> int | None:
        """Of its weights, where they are quantised while it is loaded."""
        return 8 if self.load_in_8bit else 4 if self.load_in_4bit else None

    @model_validator(mode="after")
    def _can_be_quantised(self) -> Self:
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit are both true. Choose one")
        if self.bits and (self.sft is not None or self.adapter):
            what = "sft would train" if self.sft is not None else "adapter would be merged into"
            raise ValueError(f"{what} weights that load_in_{self.bits}bit quantises. Remove one, or do it beforehand")
        if self.bits and self.offload == "always":
            raise ValueError(
                f"offload is always, but quantised weights (load_in_{self.bits}bit) stay in memory. Remove one"
            )
        return self

    @field_validator("source")
    @classmethod
    def _is_no_cache(cls, value: str | None) -> str | None:
        if value == "cache":
            raise ValueError("cache is used wherever it can be, or always with cache.enabled: true. Remove source")
        return value if value is None else TEACHERS.name_of(value)

    _defaults_to_sft = field_validator("sft", mode="before")(_fine_tuning)

    @field_validator("sft")
    @classmethod
    def _needs_no_teacher(cls, value: TrainingConfig | None) -> TrainingConfig | None:
        if value is not None and (value.needs_teacher or value.teacher_writes or value.on_policy):
            raise ValueError(f"the teacher is fine-tuned, so its method is sft, not {value.method.name}")
        return _on_all_data(value)

    @model_validator(mode="after")
    def _is_here_or_served(self) -> Self:
        """A served model is not loaded, so that nothing of how it would be applies; and the other way round."""
        of_a_server = ServedConfig.model_fields.keys()
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.endpoint is None and (idle := [name for name in changed if name in of_a_server]):
            raise ValueError(f"{idle[0]} is for a teacher behind a server. Give its endpoint, or remove {idle[0]}")
        if self.endpoint is not None and (idle := [each for each in changed if each not in {*of_a_server, *SERVED}]):
            raise ValueError(
                f"{idle[0]} says how a model is loaded and used here, but this one is served at {self.endpoint}. "
                f"Remove {idle[0]}, or endpoint"
            )
        return self


#: What one of several teachers cannot have, and what may be done instead of removing it.
OF_ONE = {"sft": ", or tune this one beforehand: srd sft", "source": "", "tokenizer": ""}


class OneOfSeveral(TeacherConfig):
    """One of several teachers: it has a weight in the mean of all, or its rows."""

    name: FolderName | None = Field(None, description="what it is called; none: the last part of model")
    weight: float | None = Field(
        None, gt=0, le=1e6, description="in the log-mean of all teachers, relative to the others; none: 1"
    )
    rows: str | list[str] | None = Field(
        None, description="it teaches the rows that have this, or one of these, in data.teacher_column"
    )

    @model_validator(mode="after")
    def _is_ready(self) -> Self:
        if idle := [name for name in OF_ONE if getattr(self, name) is not None]:
            raise ValueError(f"{idle[0]} is for a single teacher. Remove it{OF_ONE[idle[0]]}")
        if self.weight is not None and self.rows is not None:
            raise ValueError("has weight and rows: it has its rows alone, or a weight in the mean. Remove one")
        return self

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or self.model.rstrip("/").rpartition("/")[2]

    @property
    def marks(self) -> list[str]:
        """What its rows have in `data.teacher_column`."""
        return [self.rows] if isinstance(self.rows, str) else self.rows or []


class BaselineConfig(TrainingConfig):
    """A training to compare with."""

    cleaning: bool = Field(
        True,
        description="false: on the rows as they came, with a teacher and a starting student made from those, as "
        "without data.cleaning",
    )


SERVED = ("model", "revision", "name", "weight", "rows")  # what a served teacher has beside the settings of its server
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

    _defaults_to_sft = field_validator("warm_start", mode="before")(_fine_tuning)

    @field_validator("warm_start")
    @classmethod
    def _before_reflection(cls, value: TrainingConfig | None) -> TrainingConfig | None:
        if value is not None and value.on_pairs:
            raise ValueError(
                f"{value.method.name} trains on what the student writes once it is warmed up. Use kd here, or sft"
            )
        return _on_all_data(value)

    @model_validator(mode="after")
    def _is_smaller(self) -> Self:
        if self.model is None and not self.drop_layers:
            raise ValueError("names no student: give `model`, or `drop_layers` to shorten the teacher")
        if self.model is None and (idle := [key for key in OF_A_MODEL if getattr(self, key)]):
            raise ValueError(f"{idle[0]} belongs to `model`, and the student is made from the teacher. Remove it")
        return self


#: What the preset `plus` changes, by section: what docs/evidence.md shows to be best. With one stage of all rows
#: nothing is left of a curriculum, so that weight and temperature are those of plain distillation, too.
PLUS: dict[str, dict[str, Any]] = {
    "data": {"cleaning": {"action": "repair"}},
    "reflection": {"out_of_sample": "auto"},
    "training": {"curriculum": PLUS_CURRICULUM},
}
AS_PLAIN = ("temperature", "weight")

#: What a recipe with a served teacher has, where it says nothing else: a server tells the likeliest tokens (vLLM 20 of
#: them, where it is not started for more) at temperature 1 alone.
SERVED_DEFAULTS: dict[str, dict[str, Any]] = {
    "cache": {"tier": "topk", "top_k": 20},
    "training": {"curriculum": {"temperature": 1.0}},
}
#: And where it has a tokenizer of its own: of the same bytes in other tokens it is the likelihoods that are compared.
OWN_TOKENS: dict[str, dict[str, Any]] = {**SERVED_DEFAULTS, "cache": {"tier": "likelihood"}}


def _with_first(value: dict[str, Any]) -> dict[str, Any]:
    """A recipe of several teachers with the first of them where one is asked for."""
    teachers = value.get("teachers")
    first = teachers[0] if isinstance(teachers, list) and teachers else None
    if value.get("teacher") is not None or not isinstance(first, str | dict):
        return value
    own = ("name", "weight", "rows")
    plain = first if isinstance(first, str) else {key: each for key, each in first.items() if key not in own}
    return {**value, "teacher": plain}


def _with_server(value: dict[str, Any]) -> dict[str, Any]:
    """A recipe with what a served teacher changes; what the recipe itself says wins."""
    teacher, training = value.get("teacher"), value.get("training", {})
    if not isinstance(teacher, dict) or teacher.get("endpoint") is None or not isinstance(training, dict):
        return value
    given = {**value, "training": {**training, **({"curriculum": {}} if training.get("curriculum") is True else {})}}
    return merge(OWN_TOKENS if teacher.get("tokenizer") else SERVED_DEFAULTS, given)


def _with_preset(value: dict[str, Any]) -> dict[str, Any]:
    """A recipe with what its preset changes; what the recipe itself says wins."""
    training: Any = value.get("training")
    curriculum = training.get("curriculum") if isinstance(training, dict) else None
    if not isinstance(curriculum, dict) or curriculum.get("preset") != "plus":
        return value
    given = dict(value)
    if isinstance(given.get("data"), str | list):
        given["data"] = {"train": given["data"]}
    if isinstance(given.get("baselines"), dict):
        given["baselines"] = {name: _as_it_says(each, curriculum) for name, each in given["baselines"].items()}
    return merge(PLUS, merge({"training": {"curriculum": _as_plain(training, AS_PLAIN)}}, given))


def _as_it_says(changes: Any, curriculum: dict[str, Any]) -> Any:
    """A baseline's changes with its own weight and temperature for its curriculum, where none is given for all."""
    if not isinstance(changes, dict):
        return changes
    names = [name for name in AS_PLAIN if name in changes and name not in curriculum]
    return merge({"curriculum": _as_plain(changes, names)}, changes) if names else changes


def _as_plain(training: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Weight and temperature of a training for its curriculum; what is wrong in them is told of the training alone."""
    found = {}
    for name in names:
        field = TrainingConfig.model_fields[name]
        found[name] = field.default
        with contextlib.suppress(ValidationError):
            value = training.get(name, field.default)
            found[name] = TypeAdapter(field.rebuild_annotation()).validate_python(value, strict=True)
    return found


class Recipe(Section):
    """Everything a run does. The smallest recipe names teacher, student and data."""

    name: FolderName = Field("run", description="name of the recipe; names the default run directory")
    description: str = Field("", description="one line for `srd recipes`")
    seed: Seed = Field(0, description="fixes every random choice")
    plugins: Annotated[list[Named], AfterValidator(each_once)] = Field(
        [], description="Python files or modules that register objectives, scores, methods, tasks …"
    )
    teacher: TeacherConfig = Field(description="the large model")
    teachers: list[OneOfSeveral] = Field(
        [], description="several in the place of teacher: the log-mean of all, or each for its rows"
    )
    student: StudentConfig = Field(description="the small model")
    data: DataConfig = Field(description="the examples")
    generation: GenerationConfig = Field(GenerationConfig(), description="how text is generated")
    cluster: ClusterConfig = Field(ClusterConfig(), description="where work that falls into shards is done")
    reflection: ReflectionConfig = Field(ReflectionConfig(), description="how the student reflects")
    cache: CacheConfig = Field(CacheConfig(), description="the teacher cache")
    training: TrainingConfig = Field(TrainingConfig(curriculum=CurriculumConfig()), description="the main training")
    baselines: dict[str, BaselineConfig] = Field({}, description="trainings to compare with: changes to `training`")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="the comparison at the end")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """SRD is the default training; a baseline says only what it changes."""
        if not isinstance(value, dict):
            return value
        value = _with_preset(_with_server(_with_first(dict(value))))
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
    def _variants_differ(self) -> Self:
        taken = {self.training.label, "teacher", "student"}
        for name in self.baselines:
            usable = name.replace("-", "").replace("_", "").isalnum() and len(name) <= LONGEST_NAME
            if name in taken or not usable:
                raise ValueError(
                    f"baselines.{name}: choose another name (letters, digits, - and _; not {sorted(taken)})"
                )
        return self

    @model_validator(mode="after")
    def _have_one_preset(self) -> Self:
        """A preset also says what becomes of wrong rows, and who reflects: of all trainings, before any of them."""
        ours = self.training.curriculum.preset if self.training.curriculum else "paper"
        for name, training in self.baselines.items():
            theirs = training.curriculum.preset if training.curriculum else ours
            if theirs != ours:
                whole = CurriculumConfig(**(PLUS_CURRICULUM if theirs == "plus" else {}))
                fields = ", ".join(f"{key}: {getattr(whole, key)}" for key in PLUS_CURRICULUM)
                raise ValueError(
                    f"baselines.{name}.curriculum.preset is {theirs}, but that of `training` is {ours}, and a preset "
                    f"is of a whole run. Leave it out, and set there what the baseline is to have ({fields}), or make "
                    f"another run, with training.curriculum.preset={theirs}"
                )
        return self

    @model_validator(mode="after")
    def _adapters_do_not_pile_up(self) -> Self:
        apart = [name for name, training in self.variants.items() if training.lora and not training.lora.merge]
        if apart and self.student.adapter and not self.student.warm_start and not self.student.drop_layers:
            raise ValueError(
                f"{apart[0]}: lora.merge is false, but the student has an adapter already (student.adapter), and a "
                "saved adapter names one base model only. Set lora.merge: true, or save the merged student first"
            )
        return self

    @model_validator(mode="after")
    def _teachers_go_together(self) -> Self:
        if not self.teachers:
            return self
        if len(self.teachers) == 1:
            raise ValueError("teachers: there is one alone. Give it as `teacher`")
        if self.teachers[0].model_dump(include=set(TeacherConfig.model_fields)) != self.teacher.model_dump():
            raise ValueError("give several `teachers`, or one `teacher`, not both: teacher=null takes it out")
        titles = [each.title for each in self.teachers]
        if twice := [title for title in titles if titles.count(title) > 1]:
            raise ValueError(f"teachers: two are called {twice[0]!r}. Give each a name of its own")
        marks = [mark for each in self.teachers for mark in each.marks]
        if twice := [mark for mark in marks if marks.count(mark) > 1]:
            raise ValueError(f"teachers: the rows {twice[0]!r} have two teachers. Give them one")
        if self.teach_by_row and (without := [each.title for each in self.teachers if not each.marks]):
            raise ValueError(f"teachers: {without[0]!r} has no rows, and others have. Give it rows, or none of them")
        self._each_is_asked_once()
        return self

    def _each_is_asked_once(self) -> None:
        """Several teachers are read into caches, before any training."""
        for name, training in {**self.variants, "student.warm_start": self.student.warm_start}.items():
            writes = training is not None and (training.teacher_writes or training.on_pairs)
            if training is not None and (writes or (training.needs_teacher and training.on_policy)):
                raise ValueError(
                    f"{name}: {training.method.name} takes text that a teacher writes, or asks it about text of the "
                    "student's, which is for one teacher. Use method kd, or `teacher`"
                )
        if self.data.cleaning.teacher_answers:
            raise ValueError(
                f"data.cleaning is {self.data.cleaning.action}, which takes answers of the teacher's, and there are "
                "several teachers. Use data.cleaning=drop or soften, or `teacher`"
            )
        if self.cache.enabled is False:
            raise ValueError("cache.enabled is false, but several teachers are read into caches. Remove it")
        if self.student.model is None:
            raise ValueError("student.model is missing: which of several teachers would be shortened?")
        served = [each.title for each in self.teachers if each.endpoint is not None]
        if served and (not self.teach_by_row or len(served) < len(self.teachers)):
            raise ValueError(
                f"teachers: {served[0]!r} is behind a server, which tells its likeliest tokens alone: no mean can be "
                "made of these, nor do they go with whole distributions. Give each teacher rows, and all an endpoint"
            )
        if not self.teach_by_row and not TIERS.get(self.cache.tier).whole:
            raise ValueError(
                f"cache.tier is {self.cache.tier}, but the mean of several teachers needs whole distributions. Use "
                "exact or int8, or give each teacher its rows"
            )

    @model_validator(mode="after")
    def _server_can_teach(self) -> Self:
        if self.teacher.endpoint is None:
            return self
        if self.student.model is None:
            raise ValueError("student.model is missing: a teacher behind a server cannot be shortened to a student")
        if self.cache.enabled is False and any(training.needs_teacher for training in self.variants.values()):
            raise ValueError(
                "cache.enabled is false, but what a teacher behind a server says is kept and not asked again. Remove it"
            )
        taught = {**self.variants, "student.warm_start": self.student.warm_start}
        for name, training in taught.items():
            if training is not None and training.needs_teacher and training.on_policy:
                raise ValueError(
                    f"{name}: {training.method.name} asks the teacher about text that the student is yet to write, and "
                    "a teacher behind a server is asked beforehand. Use kd, seqkd or distillm2, or a teacher without "
                    "endpoint"
                )
        return self

    @model_validator(mode="after")
    def _pairs_are_written_once(self) -> Self:
        methods: list[Any] = [training.method for training in self.variants.values() if training.on_pairs]
        if len({(method.temperature, method.top_p) for method in methods}) > 1:
            raise ValueError(
                f"the trainings with {methods[0].name} have different temperature or top_p, and their texts are "
                "written once. Give all of them the same"
            )
        return self

    @model_validator(mode="after")
    def _cache_foresees(self) -> Self:
        taught = [training for training in self.variants.values() if training.needs_teacher]
        if self.cache.enabled and self.teacher.source:
            raise ValueError(
                f"cache.enabled is true, but teacher.source is {self.teacher.source}, which reads no cache. Remove one"
            )
        small = not TIERS.get(self.cache.tier).in_full
        asked = "cache.enabled is true" if self.cache.enabled else f"cache.tier is {self.cache.tier}"
        unforeseen = [training.on_policy and not training.writes_ahead for training in taught]
        if (self.cache.enabled or small) and taught and all(unforeseen):
            raise ValueError(
                f"{asked}, but {taught[-1].method.name} trains on text that the student is yet to write, "
                f"which no cache can hold. Leave {asked.split()[0]} out, or use method kd, or method.refresh: epoch, "
                "which writes ahead"
            )
        mixed = [training.method.name for training in taught if training.writes_ahead and training.caches_references]
        if small and mixed:
            raise ValueError(
                f"{asked}, but {mixed[0]} mixes references with text that the student writes ahead, of which all is "
                "kept exact. Leave cache.tier out"
            )
        if small and self.cache.enabled is False:
            raise ValueError(f"{asked}, but cache.enabled is false, so that nothing is kept. Remove one")
        if small and self.teacher.source:
            raise ValueError(f"{asked}, but teacher.source is {self.teacher.source}, which reads no cache. Remove one")
        return self

    @model_validator(mode="after")
    def _reflects_on_what_there_is(self) -> Self:
        way, student = self.reflection.out_of_sample, self.student
        if way == "cross_fit" and student.warm_start is None:
            raise ValueError(
                "reflection.out_of_sample: cross_fit warms students up, but there is no student.warm_start"
            )
        if way == "before" and student.drop_layers:
            raise ValueError(
                "reflection.out_of_sample: before asks a student that has lost layers and is not healed yet, which "
                "answers nothing. Use cross_fit, or auto"
            )
        return self

    @model_validator(mode="after")
    def _scores_are_of_one_student(self) -> Self:
        """A score joins what a reflection says with what is read beside it: by the same student, of the same text."""
        ranked = {label: training.curriculum.score for label, training in self.variants.items() if training.curriculum}
        for label, score in ranked.items():
            needs = measured_needs(score) - {"likeness"}
            names = ", ".join(sorted({each.name for each in scores_of(score) if each.needs & needs}))
            if needs & PASSES.keys() and self.out_of_sample == "cross_fit":
                raise ValueError(
                    f"{label} ranks by {names}, which one student says, but reflection.out_of_sample is cross_fit: "
                    "several students reflect. Use reflection.out_of_sample=off, or rank by rouge_l and ce"
                )
            if needs and self.data.train_on == "all":
                raise ValueError(
                    f"{label} ranks by {names}, which read the last answer of a row, but data.train_on is all. Use "
                    "data.train_on=last, or rank by rouge_l and ce"
                )
        return self

    @property
    def out_of_sample(self) -> Literal["before", "cross_fit", "off"]:
        """Who reflects in place of the student as it starts."""
        way = self.reflection.out_of_sample
        if self.student.warm_start is None or way == "off":
            return "off"
        return way if way != "auto" else "cross_fit" if self.student.drop_layers else "before"

    @model_validator(mode="after")
    def _detectors_are_there(self) -> Self:
        for name in self.data.cleaning.find:
            try:
                DETECTORS.name_of(name)
            except UserError as error:
                raise ValueError(f"data.cleaning.find: {error}") from error
        return self

    @property
    def all_teachers(self) -> Sequence[TeacherConfig]:
        """The teacher, or the several that there are."""
        return self.teachers or [self.teacher]

    @property
    def teach_by_row(self) -> bool:
        """Whether each row has a teacher of its own."""
        return any(each.marks for each in self.teachers)

    @property
    def models_here(self) -> list[ModelConfig]:
        """The models that are loaded here: teachers first, unless they are served; the student, unless it is made."""
        models: list[ModelConfig] = [*self.all_teachers, self.student]
        return [model for model in models if model.model and getattr(model, "endpoint", None) is None]

    @property
    def variants(self) -> dict[str, TrainingConfig]:
        """Every training that is compared at the end, by label, the main one last."""
        return {**self.baselines, self.training.label: self.training}

    def takes_uncleaned(self, label: str) -> bool:
        """Whether a training is a baseline on the rows as they came, where the others have cleaned ones."""
        return label in self.baselines and not self.baselines[label].cleaning and self.data.cleaning.changes_rows

    @property
    def without_cleaning(self) -> Recipe:
        """The same on the rows as they came."""
        data = self.data.model_copy(update={"cleaning": CleaningConfig()})
        return self.model_copy(update={"data": data})

    @property
    def student_trainings(self) -> list[TrainingConfig]:
        """Every training of the student: those that are compared, and its warm start."""
        return [*self.variants.values(), *([self.student.warm_start] if self.student.warm_start else [])]
