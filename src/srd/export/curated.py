"""A curated folder for a trainer: its stages, all passes in one file, a card, and the trainer's own configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srd.base.errors import UserError
from srd.base.files import write_json_lines, write_text
from srd.base.registry import Registry
from srd.base.remedies import warn
from srd.base.text import visible
from srd.base.yaml_text import dump_yaml
from srd.data.examples import row_of
from srd.export.texts import Shown, shown
from srd.models.loading.sources import is_gguf, resolve_source
from srd.run.context import Run
from srd.run.curate import Curated, Layout, curate, stage_file

logger = logging.getLogger(__name__)

TRAIN = "train.jsonl"
CARD = "README.md"


@dataclass(frozen=True)
class Trainer:
    """A trainer that curated rows are laid out for.

    Attributes:
        title: As it is called.
        columns: What it wants of each row beyond what all of them get.
        files: Its own configuration and scripts, by name, for so many stages (a template: name with ``{}`` is one a
            stage).
        contents: The text of each of these files.
        usage: How it is started in the folder, in Markdown; the card has it.
        keeps_order: Whether it can go through the rows in their order.
        decoder_only: Whether it trains models of that kind alone.
        learns_earlier: Whether its rows say which earlier answers of a conversation are learnt.
        configures: Whether its files say how it trains: of a trainer without, nobody is told of LoRA.
        takes_lora: Whether they say so of LoRA.
        described: What its columns are.
    """

    title: str
    usage: str
    columns: Callable[[Shown], dict[str, Any]] = lambda row: {}
    files: tuple[str, ...] = ()
    contents: Callable[[Curated], Iterator[tuple[str, str]]] = lambda made: iter(())
    keeps_order: bool = True
    decoder_only: bool = True
    learns_earlier: bool = False
    configures: bool = True
    takes_lora: bool = False
    described: dict[str, str] = field(default_factory=dict)


def stage_configurations(
    made: Curated, file: str, output: str, settings: Callable[[int, str, str, str], dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """A trainer's configuration for every stage, each of which begins with the model of the one before.

    Args:
        made: The stages.
        file: Name of a stage's configuration, with ``{}`` for its number.
        output: Where the trainer writes the stage's model, likewise.
        settings: ``(stage, start, model, output)`` -> what the configuration holds: ``start`` is the model that the
            first stage begins with, and ``model`` that of this one, which may be an adapter of it.
    """
    model = start = start_model(made.run)
    for stage in made.stages:
        written = output.format(stage.index)
        yield file.format(stage.index), dump_yaml(settings(stage.index, start, model, written))
        model = written


TRAINERS: Registry[Trainer] = Registry("trainer", "srd.export.trainers", "--for: there is no trainer '{}'")


def curate_for(run: Run, target: Path, name: str) -> list[Path]:
    """Curate a run for a trainer.

    Raises:
        UserError: an unknown trainer, one that does not train such models, or a file that is in the way.
    """
    trainer = TRAINERS.get(name)
    made = curate(run, target, TrainerLayout(trainer))
    if not trainer.keeps_order:
        warn(
            logger,
            f"{trainer.title} shuffles what it trains on: of the curriculum only the stages are kept.",
            "Train one stage after the other, as README.md says.",
        )
    return made


class TrainerLayout(Layout):
    """How curated rows are laid out for a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._names: dict[str, None] | None = None

    def check(self, run: Run) -> None:
        if run.encoder_decoder and self.trainer.decoder_only:
            raise UserError(
                f"{self.trainer.title} is given prompt and answer as one text, but '{run.start_source}' is an "
                "encoder-decoder. Use --for jsonl, whose rows have them apart."
            )
        title, curriculum = self.trainer.title, run.recipe.training.curriculum
        if run.recipe.data.train_on == "all" and not self.trainer.learns_earlier:
            warn(
                logger,
                f"data.train_on is all, and {title} is told of the last answer of each conversation alone.",
                "Curate for a trainer whose rows say what is learnt (--for axolotl or trl), or use srd run.",
            )
        if self.trainer.configures and not self.trainer.takes_lora:
            tell_of_lora(run, title)
        if curriculum is not None and curriculum.reflect_again:
            warn(
                logger,
                "training.curriculum.reflect_again ranks anew while the student learns, which no file can foresee.",
                "The stages are those of the starting student; to train as the recipe says, use srd run.",
            )
        if curriculum is not None and curriculum.row_weights != "equal":
            warn(
                logger,
                f"training.curriculum.row_weights is {curriculum.row_weights}, and {title} counts all rows the same.",
                "The column row_weight says what each counts; to train as the recipe says, use srd run.",
            )

    def names(self, stages: int) -> list[str]:
        own = [name.format(stage) for name in self.trainer.files for stage in _numbers(name, stages)]
        return [TRAIN, CARD, *own]

    def columns(self, run: Run, examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._names is None:  # of rows of several shapes, so that every row has every column, as tables want it
            self._names = {name: None for example in run.split("train") for name in row_of(example)}
        return [
            {name: None for name in self._names if name not in row_of(example)}
            | _columns(run, example, row, self.trainer)
            for example, row in zip(examples, shown(run.encoder, examples), strict=True)
        ]

    def write(self, made: Curated) -> None:
        write_json_lines(made.folder / TRAIN, _unrolled(made, self))
        for name, text in ((CARD, visible(card(made, self.trainer))), *self.trainer.contents(made)):
            write_text(made.folder / name, text)


def _numbers(name: str, stages: int) -> range:
    return range(stages if "{}" in name else 1)


def _columns(run: Run, example: dict[str, Any], row: Shown, trainer: Trainer) -> dict[str, Any]:
    """The columns of a row beyond the example, so that srd still reads the same tokens from it."""
    ready_made = run.encoder.template.for_row(example).ready_made
    columns: dict[str, Any] = {"prompt": row.prompt, "completion": row.completion, "end": row.end}
    if ready_made:  # the completion is the example's own, and may bring its end
        columns["completion"] = example["references"][0]
        columns["end"] = "" if columns["completion"] != row.completion else row.end
    elif example["prompt"]:  # it is framed as an instruction: as a prompt it would be framed once more
        columns |= {"instruction": example["instruction"], "output": example["references"][0]}
    return {**columns, **trainer.columns(row)}


def _unrolled(made: Curated, layout: Layout) -> Iterator[dict[str, Any]]:
    """Every row of every pass of every stage, in the order in which they are trained on."""
    for stage in made.stages:
        first = made.first_pass(stage)
        for number, ids in enumerate(made.passes(stage)):
            if ids == first[: len(ids)]:  # the stage's file has these rows, in this order
                rows = lines(made.folder / stage_file(stage.index), len(ids))
            else:
                rows = made.rows(stage, ids, layout)
            yield from ({**row, "pass": number} for row in rows)


def lines(path: Path, count: int) -> Iterator[dict[str, Any]]:
    """The first rows of a file of JSON lines."""
    with open(path, encoding="utf-8") as file:
        for _, line in zip(range(count), file, strict=False):
            yield json.loads(line)


# ---------------------------------------------------------------------------------------------------- what trainers say


def tell_of_lora(run: Run, title: str) -> None:
    """Say of a recipe with LoRA that a trainer is not told of it."""
    if run.recipe.training.lora:
        warn(
            logger,
            f"training.lora is a setting of the recipe, and {title} is told to train all weights.",
            "Set it there, too, if it has LoRA; training.learning_rate is meant for it.",
        )


def start_model(run: Run) -> str:
    """The model that training starts from, as any folder can name it, and as transformers loads it."""
    student = run.recipe.student
    if run.start_source == student.model:
        _tell_what_is_left_out("student", student)
    return _from_anywhere(run.start_source)


def teacher_model(run: Run) -> str:
    """The teacher, likewise.

    Raises:
        UserError: it is behind a server.
    """
    if run.recipe.teacher.endpoint is not None:
        raise UserError(
            f"this trainer loads the teacher itself, and '{run.recipe.teacher.model}' is behind a server "
            f"({run.recipe.teacher.endpoint}). Give a teacher without endpoint, or curate for one that learns from the "
            "rows alone (--for axolotl, llamafactory, litgpt or jsonl)."
        )
    if len(run.recipe.teachers) > 1:
        warn(
            logger,
            f"the recipe has {len(run.recipe.teachers)} teachers, and this trainer is given the first of them.",
            "To learn from all of them, use srd run.",
        )
    if run.teacher_source == run.recipe.teacher.model:
        _tell_what_is_left_out("teacher", run.recipe.teacher)
    return _from_anywhere(run.teacher_source)


def _tell_what_is_left_out(role: str, model: Any) -> None:
    """Say which settings a trainer that is given a name alone would load a model without."""
    if left := [name for name in ("adapter", "revision", "trust_remote_code", "source") if getattr(model, name, None)]:
        warn(
            logger,
            f"{role}.{left[0]} is a setting of the recipe, and the trainer is given the {role}'s name alone.",
            "Set it in the trainer's script or configuration, too, or save the model as it is meant, and name that.",
        )


def _from_anywhere(source: str) -> str:
    """A model's name as any folder can give it; of a GGUF file, the folder into which it was converted."""
    path = Path(resolve_source(source) if is_gguf(source) else source).expanduser()
    return str(path.resolve()) if path.exists() else source


# ------------------------------------------------------------------------------------------------------------ the card

COLUMNS = {
    "id": "of the example",
    "prompt": "the exact text that the model reads, in its frame",
    "completion": "the text that it learns to write behind it",
    "end": "the text of the token that closes it; empty where the answer was cut",
    "messages": "of a conversation: its turns, the answer last",
    "instruction, input, output": "of an instruction: its parts, before they are put into the frame",
    "rank, rouge_l, ce": "how hard the example is for the student, and the scores that say so",
    "stage, temperature, weight": "the stage, and the settings of distillation in it",
    "row_weight": "where rows are weighed: what the example counts in the loss, 1 on average",
    "pass": f"in {TRAIN}: which pass over the stage, from 0",
}


def card(made: Curated, trainer: Trainer) -> str:
    """The card of the data set, which also tells ``datasets.load_dataset`` which files belong together."""
    run, source = made.run, made.run.recipe.data.train
    files = {"train": TRAIN, **{f"stage_{stage.index}": stage_file(stage.index) for stage in made.stages}}
    configs = [
        {"config_name": name, "data_files": file, **({"default": True} if name == "train" else {})}
        for name, file in files.items()
    ]
    head = {
        "task_categories": ["text-generation"],
        "tags": ["srd", "curriculum-learning", "knowledge-distillation", "arxiv:2508.06135"],
        "configs": configs,
    }
    stages = "\n".join(
        f"| {row['stage']} | `{row['file']}` | {row['rows']} | {row['passes']:g} | {row['temperature']:g} "
        f"| {row['weight']:g} |"
        for row in made.summary
    )
    columns = "\n".join(f"- `{name}`: {what}" for name, what in (COLUMNS | trainer.described).items())
    return f"""---
{dump_yaml(head)}---

# {run.recipe.name}: curated training data

The training rows of a recipe, ranked by how hard they are for the student and put into stages, easy to hard, by
Selective Reflection Distillation (SRD, arXiv 2508.06135), for {trainer.title}.

- rows: `{source.dataset or source.path}`, whose licence holds for them
- student: `{run.start_source}`
- teacher: `{run.teacher_source}`

| stage | file | rows | passes | temperature | weight of the teacher |
|---|---|---|---|---|---|
{stages}

`{TRAIN}` has all of it in the order of training: every stage, every pass over it. `stages.json` has the table.

```python
from datasets import load_dataset

rows = load_dataset("FOLDER", split="train")  # all stages and passes, in order
first = load_dataset("FOLDER", "stage_0", split="train")
```

## Columns

{columns}

## Training with {trainer.title}

{trainer.usage.strip()}
"""
