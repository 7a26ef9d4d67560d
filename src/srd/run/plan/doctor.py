"""What the models of a recipe will see, and what will go wrong, before anything is computed and no weight is loaded."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc

from srd.base.remedies import Warned, collecting, warn
from srd.base.tables import column
from srd.base.text import shown_bytes
from srd.curation.reflection import words_of
from srd.data.encoding import Encoder
from srd.data.templates.base import class_of
from srd.metrics.scripts import BY_SCRIPT, COMPARE_WITHIN, EXTENDED
from srd.recipe.schema import Recipe
from srd.run.checks.disk_space import existing
from srd.run.checks.models import check_recipe, missing_packages
from srd.run.checks.warnings import warn_of_copies, warn_of_frames, warn_of_memory, warn_of_questions
from srd.run.models import RecipeModels
from srd.run.outline.costs import DataFacts
from srd.run.parts.served import told_of_server
from srd.run.plan.counting import sampled
from srd.run.plan.plan import Plan, check_models_at_hand, make_plan
from srd.run.steps.examples import read_all

logger = logging.getLogger(__name__)

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Seen:
    """An example as the models see it.

    Attributes:
        id: Of the example.
        template: That puts it into its frame.
        prompt_ids: What is read.
        response_ids: What is learnt.
        prompt: The text of the prompt's tokens.
        response: The text of the response's.
        ended: Whether the response ends with a token that ends a turn.
        earlier: Where earlier answers that are learnt stand in the prompt: first token and behind the last, in a row.
    """

    id: str
    template: str
    prompt_ids: list[int]
    response_ids: list[int]
    prompt: str
    response: str
    ended: bool
    earlier: list[int]


@dataclass(frozen=True)
class Side:
    """A model and how it reads.

    Attributes:
        model: As the recipe names it; the teacher where the student is made from it.
        architecture: Its family.
        tokenizer: Kind and size.
        template: Whose frame conversations get.
        special: The tokenizer's special tokens by their roles.
        stops: The tokens that end what it writes.
    """

    model: str
    architecture: str
    tokenizer: str
    template: str
    special: dict[str, str | None]
    stops: list[str]


@dataclass(frozen=True)
class Counts:
    """What is cut and what is ended of so many training examples."""

    examples: int
    prompts_cut: int
    responses_cut: int
    ended: int


@dataclass(frozen=True)
class Diagnosis:
    """What a doctor finds.

    Attributes:
        recipe: Its name.
        teacher: How it reads.
        student: How it reads.
        examples: The first of the training split.
        tokens: Of every id in them, its text.
        counts: Of the training split, or a sample of it.
        plan: What the run takes.
        missing: Packages that the models need, with the command that installs them.
        warnings: Each with its remedy.
        notes: What was read.
    """

    recipe: str
    teacher: Side
    student: Side
    examples: tuple[Seen, ...]
    tokens: dict[int, str]
    counts: Counts
    plan: Plan
    missing: tuple[Warned, ...]
    warnings: tuple[Warned, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**asdict(self), "plan": self.plan.as_json()}


def examine(recipe: Recipe, rows: int, flops_per_second: float) -> Diagnosis:
    """Look at a recipe as its models will.

    Raises:
        UserError: what `srd run` would refuse, too; but packages that are missing are told with all the rest.
    """
    with collecting() as collected:
        check_models_at_hand(recipe)
        models, missing = RecipeModels(recipe), _missing(recipe)
        check_recipe(models, packages=False)
        served = told_of_server(models)
        splits, benchmarks = read_all(recipe, models)
        train = splits["train"]
        warn_of_copies(recipe.data, splits, benchmarks)
        warn_of_questions(models, splits["test"], benchmarks)
        warn_of_frames(models, train)
        counted, told = sampled(train, recipe.seed)
        for note in told:
            logger.info("%s", note)
        encoded = models.encoder.encode(counted)
        models.encoder.encode(splits["validation"], split="validation")
        examples = tuple(_seen(models.encoder, train.select(range(min(rows, len(train))))))
        if any(words_of(split) == EXTENDED for split in splits.values()):
            warn(logger, BY_SCRIPT, COMPARE_WITHIN)
        plan = make_plan(recipe, flops_per_second=flops_per_second, data=_facts(splits, encoded))
        _warn_of_room(plan)
        warn_of_memory(recipe, max(plan.phases, key=lambda phase: phase.memory))
    stops = models.encoder.turns.stops
    return Diagnosis(
        recipe.name, *_sides(models), examples, _texts(models.tokenizer, examples), _counts(encoded, stops), plan,
        tuple(missing), tuple(collected.warnings),
        (*collected.notes, *_told_of_words(models, train), *served, *plan.notes),
    )  # fmt: skip


def _missing(recipe: Recipe) -> list[Warned]:
    """Packages that the models need and do not find, each told once."""
    found = [Warned(f"{each.need}.", each.remedy) for each in dict.fromkeys(missing_packages(recipe))]
    for each in found:
        warn(logger, each.what, each.remedy)
    return found


def _told_of_words(models: RecipeModels, train: datasets.Dataset) -> list[str]:
    """Where instructions are asked in the paper's words of a student that knows a frame of its own."""
    kind = class_of(models.recipe.data.frame[0])
    if not models.tokenizer.chat_template or not kind.takes_options or kind.in_turns:
        return []
    blank = [pc.equal(column(train, name), "") for name in ("messages", "prompt")]
    if not pc.any(pc.and_(pc.not_equal(column(train, "instruction"), ""), pc.and_(*blank))).as_py():
        return []
    return [
        "instructions are asked in Alpaca's words (data.template=auto), as in the paper. The student has a chat "
        "template: if it was trained to chat, data.template=chat asks it in its own turns."
    ]


def _seen(encoder: Encoder, examples: datasets.Dataset) -> list[Seen]:
    """Examples as they are trained on."""
    rows: list[Any] = list(examples)
    encoded = encoder.encode_rows(rows)
    found = []
    for index, row in enumerate(rows):
        prompt, response = list(encoded["prompt_ids"][index]), list(encoded["response_ids"][index])
        found.append(
            Seen(
                row["id"], encoder.template.for_row(row).name, prompt, response, _text(encoder.tokenizer, prompt),
                _text(encoder.tokenizer, response), response[-1:] != [] and response[-1] in encoder.turns.stops,
                list(encoded["earlier"][index]) if "earlier" in encoded else [],
            )
        )  # fmt: skip
    return found


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _texts(tokenizer: Any, examples: Sequence[Seen]) -> dict[int, str]:
    ids = {token for each in examples for token in (*each.prompt_ids, *each.response_ids)}
    return {token: _text(tokenizer, [token]) for token in sorted(ids)}


def _counts(encoded: datasets.Dataset, stops: set[int]) -> Counts:
    ended = sum(bool(ids) and ids[-1] in stops for ids in encoded["response_ids"])
    return Counts(len(encoded), sum(encoded["prompt_cut"]), sum(encoded["response_cut"]), ended)


def _facts(splits: dict[str, datasets.Dataset], encoded: datasets.Dataset) -> DataFacts:
    count, share = len(splits["train"]), len(splits["train"]) / len(encoded)
    prompt, response = (sum(map(len, encoded[name])) / len(encoded) for name in ("prompt_ids", "response_ids"))
    return DataFacts(
        count, len(splits["validation"]), len(splits["test"]), prompt, response, round(response * count), share == 1
    )


def _sides(models: RecipeModels) -> tuple[Side, Side]:
    """The teacher and the student."""
    student = models.recipe.student
    teacher = models.recipe.teacher
    name = str(student.model or f"{teacher.model}, shortened")
    family = "behind a server" if teacher.endpoint is not None else str(models.configs[0].model_type)
    return (
        _side(str(teacher.model), family, models.teacher_tokenizer, models.teacher_encoder),
        _side(name, str(models.configs[-1].model_type), models.tokenizer, models.encoder),
    )


def _side(model: str, family: str, tokenizer: Any, encoder: Encoder) -> Side:
    special = {role: getattr(tokenizer, role, None) for role in SPECIAL}
    return Side(
        model, family, f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens",
        f"{encoder.template.name}{'' if tokenizer.chat_template else ' (the tokenizer has no chat template)'}",
        {role: None if token is None else str(token) for role, token in special.items()},
        [str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(encoder.turns.stops)],
    )  # fmt: skip


def _warn_of_room(plan: Plan) -> None:
    """Say where the disk, under the folder that this command was started in, is too full."""
    needed = plan.disk + plan.checkpoint_bytes
    free = shutil.disk_usage(existing(Path("runs"))).free
    if needed > free:
        what = f"about {shown_bytes(needed)} will be written, and {shown_bytes(free)} are free here."
        warn(logger, what, "Free some space, or choose a --run-dir on another disk.")
