"""Settings of the evaluation: seeds, decoding, benchmarks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from srd.base.settings import Named, SamplingTemperature, Section, Seed, each_once


class TaskConfig(Section):
    """A benchmark to evaluate on, by its own decoding and seeds. A plain string is short for ``name``."""

    short_for = "name"

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
    temperature: SamplingTemperature = Field(1.0, description="sampling temperature on the test split; 0 is greedy")
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
