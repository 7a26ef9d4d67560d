"""Settings of one training: its method, its objective and its optimizer; and of the teacher cache."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from srd.base.settings import DivergenceTemperature, Named, OffIsAWord, Precision, Section, Seed, each_once
from srd.curation.settings import CurriculumConfig
from srd.models.settings import LoraConfig
from srd.training.divergences.base import DIVERGENCES, check_parameters
from srd.training.libraries import check_loggers, check_optimizer
from srd.training.methods.base import METHODS, AnyMethod
from srd.training.tiers.base import TIERS, make_tier


class ObjectiveConfig(BaseModel):
    """A divergence by name with its parameters, such as ``{name: srkl, alpha: 0.1}``, or just ``srkl``."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        "fkl",
        description="fkl, rkl, jsd, tvd, sfkl, srkl, ab, akl, entropy_aware, distillm2, or one that you registered",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Self:
        self.name = DIVERGENCES.name_of(self.name)
        check_parameters(self.name, self.parameters, teaches=True)
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """What is passed to the divergence beside the logits."""
        return dict(self.__pydantic_extra__ or {})


class TokensConfig(Section):
    """At which response positions the divergence is taken; cross-entropy has all of them."""

    share: float = Field(gt=0, le=1, description="share of the positions of each example, rounded up; 1: all")
    by: Literal["student_entropy", "teacher_gap", "random"] = Field(
        "student_entropy", description="where the student is least certain, where teacher and student differ most"
    )


class TrainingConfig(Section):
    """One training: its method, its objective and its optimizer. SFT and every distillation use this same section."""

    method: AnyMethod = Field(
        default_factory=lambda: METHODS.get("kd")(),
        description="sft, seqkd, kd, gkd, distillm, distillm2, taid, entropy_aware, or one that you registered",
    )
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="divergence between teacher and student")
    weight: float = Field(1.0, ge=0, le=1, description="weight of the divergence; 1 - weight is cross-entropy's")
    temperature: DivergenceTemperature = Field(1.0, description="softmax temperature in the divergence")
    alignment: Literal["auto", "prefix", "chunks", "identical"] = Field(
        "auto",
        description="for a teacher with another tokenizer: auto: distributions over common beginnings of tokens, and "
        "likelihoods of what they leave out; prefix, chunks: one of the two; identical: common tokens alone",
    )
    temperature_scaling: Literal["paper", "all", "none"] = Field(
        "paper", description="multiply by T squared: for all but rkl, tvd, sfkl as the paper does; for all; for none"
    )
    tokens: TokensConfig | None = Field(None, description="take the divergence at some positions only; none: at all")
    curriculum: CurriculumConfig | None = Field(
        None,
        description="select and order the data by difficulty; null: all data. `training` has it unless it says null",
    )
    seed: Seed | None = Field(None, description="fixes order, dropout and student text; none: the recipe's seed")
    epochs: float = Field(8, gt=0, le=1e6, description="passes over its data, in each stage")
    learning_rate: float = Field(1e-4, gt=0, description="highest learning rate")
    min_learning_rate: float = Field(1e-7, ge=0, description="where the cosine ends")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="learning-rate schedule of a stage, or of all (curriculum.optimizer)"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps that warm up")
    batch_size: int = Field(16, ge=1, description="examples in one optimizer step, over all processes")
    micro_batch_size: int | None = Field(None, ge=1, description="examples in one forward pass on one device")
    weight_decay: float = Field(1e-2, ge=0, le=100, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    optimizer: Annotated[str, AfterValidator(check_optimizer)] = Field(
        "adamw_torch_fused", description="a name that transformers.TrainingArguments(optim=…) knows"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 autocast on a GPU that has it, else float32"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    compile: Annotated[Literal["off", "loss"], OffIsAWord] = Field(
        "off",
        description="loss: make few kernels of what is done to logits (torch.compile), for a GPU: less time there",
    )
    lora: LoraConfig | None = Field(None, description="train low-rank adapters instead of all weights")
    select_by: Literal["rouge_l", "loss", "last"] = Field("rouge_l", description="which checkpoint of a stage is best")
    evaluate_every: float = Field(1.0, gt=0, description="validate and checkpoint after so many epochs")
    log_to: Annotated[list[str], AfterValidator(each_once), AfterValidator(check_loggers)] = Field(
        [], description="tensorboard, wandb, trackio, mlflow, …: loggers of transformers, each a package of its own"
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

    @model_validator(mode="after")
    def _own_objective(self) -> Self:
        own = self.method.own_objective
        if own is None or self.objective.name == own:
            return self
        if "objective" in self.model_fields_set:
            raise ValueError(
                f"objective is {self.objective.name}, but the method {self.method.name} has a divergence of its own. "
                f"Use objective={own} with it"
            )
        self.objective = ObjectiveConfig(name=own)
        return self

    @model_validator(mode="after")
    def _can_be_compiled(self) -> Self:
        if self.compile == "loss" and self.method.schedule() is not None:
            raise ValueError(
                f"compile is loss, but the loss of {self.method.name} changes in every step and would be compiled "
                "anew. Use compile=off"
            )
        return self

    @model_validator(mode="after")
    def _has_a_divergence(self) -> Self:
        if self.tokens is not None and not self.needs_teacher:
            raise ValueError(
                f"tokens says where the divergence is taken, and the method {self.method.name} has none. "
                "Set tokens to null"
            )
        return self

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if self.schedule == "cosine" and self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate:g}), where the cosine ends, is above learning_rate "
                f"({self.learning_rate:g}), where it begins. Lower it, to 0 for example"
            )
        usual = type(self).model_fields["min_learning_rate"].default  # which a recipe that is written out says
        if self.schedule != "cosine" and self.min_learning_rate != usual:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate:g}) is where a cosine ends, but schedule is "
                f"{self.schedule}. Leave it out, or use schedule=cosine"
            )
        return self

    def decides(self) -> dict[str, Any]:
        """The settings that its result follows from; one that came later is left out where it changes nothing.

        ``alignment`` decides where tokenizers differ: see `srd.run.steps.student.alignment`.
        """
        idle = [*(() if self.tokens else ("tokens",)), *(() if self.compile != "off" else ("compile",))]
        found = self.model_dump(exclude={"log_to", "alignment", "cleaning", *idle})
        if self.curriculum is not None:
            found["curriculum"] = self.curriculum.decides()
        if not self.writes_ahead:
            found["method"].pop("refresh", None)
        return found

    @property
    def keeps_optimizer(self) -> bool:
        """Whether its stages have one optimizer and one learning-rate schedule."""
        return self.curriculum is not None and self.curriculum.stages > 1 and self.curriculum.optimizer == "keep"

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
    def on_pairs(self) -> bool:
        """Whether it trains on two texts of each prompt, which teacher and student have written."""
        return self.method.text == "both"

    @property
    def on_policy(self) -> bool:
        """Whether the student writes some of the text, which no cache can foresee."""
        return self.method.text == "student"

    @property
    def writes_ahead(self) -> bool:
        """Whether it writes that text ahead of its training, so that the teacher can read it once."""
        return self.on_policy and self.method.refreshed() != "step"

    @property
    def caches_references(self) -> bool:
        """Whether a cache of the teacher's states for the references serves it."""
        return self.needs_teacher and (not self.on_policy or (self.writes_ahead and not self.method.all_by_student()))


class CacheConfig(Section):
    """The teacher cache: what the teacher says at response positions."""

    enabled: bool | None = Field(
        None, description="false: the teacher runs again in every step; none: on wherever the text is known beforehand"
    )
    dir: Named | None = Field(None, description="folder shared by runs; none: inside the run directory")
    tier: Annotated[str, AfterValidator(TIERS.name_of)] = Field(
        "exact", description="what is kept of a token: exact, int8, topk, likelihood"
    )
    dtype: Precision = Field(
        "auto", description="precision of exact; auto: float16, and bfloat16 for a teacher that runs in it"
    )
    top_k: int = Field(128, ge=1, le=2**16, description="tokens that topk keeps")
    max_kl: float = Field(0.01, gt=0, description="largest mean KL, in nats, between the teacher and what is kept")
    limit_gb: float = Field(100.0, gt=0, description="a larger cache is not built: the live teacher is used instead")

    @property
    def listed(self) -> int:
        """How many of the likeliest tokens a server is asked for at each position."""
        return make_tier(self.tier, top_k=self.top_k).listed


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Optimizer steps in one pass; the last may be smaller."""
    return math.ceil(examples / batch_size)


def steps_between_validations(examples: int, training: TrainingConfig) -> int:
    """Optimizer steps from one validation, and checkpoint, of a training on so many examples to the next."""
    return max(1, round(steps_per_epoch(examples, training.batch_size) * training.evaluate_every))
