"""Settings of the data: where examples come from, and how they become token sequences."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from srd.base.settings import Named, OffIsAWord, Section, each_once

HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")


def is_hub_name(text: str) -> bool:
    """Whether a name is one on the hub, and no file or folder, there or not."""
    path = Path(text)
    if path.exists() or path.parent.exists() or text.startswith((".", "~")) or not HUB_NAME.fullmatch(text):
        return False
    if not path.suffix:
        return True
    from srd.data.files import is_data

    return not is_data(path)


class SourceConfig(Section):
    """Where examples come from. A plain string is short for ``path``."""

    short_for = "path"
    plain = (str, list)

    path: Named | Annotated[list[Named], Field(min_length=1), AfterValidator(each_once)] | None = Field(
        None, description="file, list of files, pattern, folder, hub name `owner/name`, or data-set name"
    )
    dataset: Named | None = Field(None, description="name of a known data set whose original format the file has")
    config: Named | None = Field(None, description="one of the configurations of a folder or a hub data set")
    split: Named | None = Field(None, description="split of a folder or a hub data set")
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow"] = Field(
        "auto", description="format of the files; auto: by their content and ending"
    )
    columns: dict[str, str] = Field(
        {}, description="our name of a column, a turn's field or a role -> that in the file"
    )
    limit: int | None = Field(None, ge=1, description="use the first so many examples")
    language_pair: Named | None = Field(None, description="languages of a data set that translates, such as en-de")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.path and not self.dataset:
            raise ValueError("names no data: give `path` (a file or hub name) or `dataset`")
        return self

    @property
    def paths(self) -> list[str]:
        """Files, or one name."""
        return [self.path] if isinstance(self.path, str) else self.path or []

    def data_set(self, known: Container[str]) -> str | None:
        """The data set that is meant, of those known by name: a path that is one's name is no file."""
        return self.dataset or next((path for path in self.paths if len(self.paths) == 1 and path in known), None)


class CorruptionConfig(Section):
    """Damage a known share of the training responses, to measure whether the ranking finds them."""

    share: float = Field(0.25, ge=0, le=0.9, description="share of the training examples")
    kinds: Annotated[
        list[Literal["swapped", "truncated", "duplicated"]], Field(min_length=1), AfterValidator(each_once)
    ] = Field(["swapped"], description="what is done to them, in equal parts")
    leave_out: Literal["nothing", "damaged", "as_many"] = Field(
        "nothing",
        description="rows that are left out again before anything sees them: damaged: those that were damaged, as one "
        "who knows them would; as_many: as many by chance",
    )


class ChatTemplateConfig(Section):
    """One of several chat templates of a tokenizer."""

    name: Named = Field(description="name of the chat template, such as tool_use")


def changes_rows(action: str) -> bool:
    """Whether what is trained on is other than what was read, where this becomes of wrong rows."""
    return action not in ("off", "report")


class CleaningConfig(Section):
    """Find the training rows that are wrong, before anything is trained. A plain value is short for ``action``."""

    short_for = "action"
    plain = (str, bool)

    action: Annotated[Literal["off", "report", "drop", "soften", "repair", "rewrite"], OffIsAWord] = Field(
        "off",
        description="what happens to wrong rows; report: they are only marked; soften: no cross-entropy on them; "
        "repair: the teacher answers anew; rewrite: and in place of all other responses, too",
    )
    find: Annotated[list[Named], AfterValidator(each_once)] = Field(
        ["empty", "looping", "eos", "match", "wording", "near_copy"],
        description="detectors, of several that mark a row the first says why; pmi is cheaper than match",
    )
    keep: Named | None = Field(None, description="file of ids that are right, whatever is found")
    drop: Named | None = Field(None, description="file of ids that are wrong")
    most: float = Field(0.5, gt=0, le=1, description="where a larger share is marked, the run stops")

    @model_validator(mode="after")
    def _can_find(self) -> Self:
        if self.action != "off" and not self.find and self.drop is None:
            raise ValueError(
                f"action is {self.action}, but find is empty and there is no file `drop`: no row could ever be wrong. "
                "Name detectors, or set action: off"
            )
        return self

    @property
    def changes_rows(self) -> bool:
        """Whether what is trained on is other than what was read."""
        return changes_rows(self.action)

    @property
    def teacher_answers(self) -> bool:
        """Whether answers of the teacher take the place of responses."""
        return self.action in ("repair", "rewrite")


class DataConfig(Section):
    """The examples and how they become token sequences. A plain string is short for ``train``."""

    short_for = "train"
    plain = (str, list)

    train: SourceConfig = Field(description="training examples")
    validation: SourceConfig | None = Field(None, description="validation examples; else split off the training data")
    test: SourceConfig | None = Field(None, description="test examples; else split off the training data")
    validation_size: int | float = Field(0.05, gt=0, description="size of a split-off validation set (share or count)")
    test_size: int | float = Field(0.05, gt=0, description="size of a split-off test set (share or count)")
    train_limit: int | None = Field(None, ge=1, description="keep so many training examples, after the split")
    validation_limit: int | None = Field(None, ge=1, description="keep so many validation examples")
    test_limit: int | None = Field(None, ge=1, description="keep so many test examples")
    template: Named | ChatTemplateConfig = Field(
        "auto",
        description="auto (chat for conversations, prompts as they are, else alpaca), alpaca, chat, plain, a text with "
        "{instruction} and {input}, or {name: …} of a chat template",
    )
    template_arguments: dict[str, Any] = Field(
        {}, description="further arguments of the chat template, such as {enable_thinking: false}"
    )
    train_on: Literal["last", "all"] = Field(
        "last", description="which answers of a conversation are learnt: the last, or all assistant turns at once"
    )
    max_length: int = Field(512, ge=8, description="prompt and response, in tokens; a longer response is cut")
    max_prompt_length: int = Field(256, ge=4, description="prompt in tokens; a longer one loses content, not its frame")
    leaks: Literal["error", "drop", "warn"] = Field(
        "drop", description="what happens to training prompts that are also in validation, test or a named task"
    )
    bad_rows: Literal["error", "drop"] = Field(
        "error", description="what happens to rows that cannot become examples, and to examples that cannot be scored"
    )
    teacher_column: Named = Field("teacher", description="column that says whose a row is, where `teachers` have rows")
    corruption: CorruptionConfig | None = Field(None, description="damage training responses on purpose")
    cleaning: CleaningConfig = Field(CleaningConfig(), description="find wrong rows before any training")

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) leaves no room for a response in "
                f"max_length ({self.max_length})"
            )
        return self

    @property
    def frame(self) -> tuple[str, dict[str, Any]]:
        """Name and options of the template, as `srd.data.templates.base.get_template` takes them."""
        if isinstance(self.template, ChatTemplateConfig):
            return "chat", {**self.template_arguments, "chat_template": self.template.name}
        return self.template, self.template_arguments
