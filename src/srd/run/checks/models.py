"""What is refused before a weight is loaded: models that do not fit each other, or what the recipe asks of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from srd.base.errors import UserError
from srd.data.templates.base import get_template
from srd.models.engines.base import ENGINES
from srd.models.loading.architecture import check_attention, check_depth, check_lora, position_limit
from srd.models.loading.loading import check_weights, packages_missing
from srd.models.loading.packages import Missing, check_packages, quantisation
from srd.models.tokenizers.alignment import prefix_classes
from srd.recipe.schema import Recipe
from srd.run.checks.recipe import (
    check_cache,
    check_cleaning,
    check_evaluation,
    check_libraries,
    check_methods,
    check_optimizer,
)
from srd.run.models import RecipeModels
from srd.tasks.base import data_set_of, get_task
from srd.training.settings import TrainingConfig


def check_recipe(models: RecipeModels, *, packages: bool = True) -> None:
    """Refuse models that do not fit each other, or what is asked of them, before a weight is loaded."""
    recipe = models.recipe
    for source in filter(None, (recipe.data.train, recipe.data.validation, recipe.data.test)):
        data_set_of(source)
    check_evaluation(recipe)
    check_libraries(recipe)
    check_methods(recipe)
    check_optimizer(recipe)
    if packages:
        check_packages(missing_packages(recipe))
    check_cleaning(recipe)
    teacher, student, here, configs = recipe.teacher, recipe.student, recipe.models_here, models.configs
    ENGINES.get(recipe.generation.engine).check(any(config.is_encoder_decoder for config in configs), here)
    files = [{"source": str(named.model), "adapter": named.adapter, **named.found} for named in here]
    for found in (each for place, each in enumerate(files) if each not in files[:place]):  # two models may be one
        check_weights(**found)
    name, options = recipe.data.frame
    get_template(name, models.tokenizer, options)
    if teacher.endpoint is not None and models.encoder_decoder:
        raise UserError(
            f"student.model: '{student.model}' is an encoder-decoder, and a teacher behind a server reads texts in one "
            "piece. Take a decoder-only student, or a teacher without endpoint."
        )
    check_alignment(models)
    assert models.width and models.teacher_width  # refuses heads that are narrower than their tokenizers
    for number in range(len(configs)):
        _check_lengths(models, number)
    _check_parts(models)
    if teacher.sft is not None:
        _check_trainable(teacher.sft, configs[0])
    for training in recipe.student_trainings:
        _check_trainable(training, configs[-1])


def _check_parts(models: RecipeModels) -> None:
    """Refuse kernels of attention, and layers to drop, that the models do not have."""
    student, configs = models.recipe.student, models.configs
    for config, model in [*zip(configs, models.recipe.models_here, strict=True), (configs[-1], student)]:
        if model.attn_implementation is not None:
            check_attention(config, model.attn_implementation)
    if student.drop_layers:
        check_depth(configs[-1], student.drop_layers)


def _check_trainable(training: TrainingConfig, config: Any) -> None:
    """Refuse adapters that cannot be put on a model, and quantised weights that would be trained or added to."""
    method, name = quantisation(config), getattr(config, "_name_or_path", "") or config.model_type
    if method is not None and (training.lora is None or training.lora.merge):
        remedy = "Set lora: {merge: false} for this training" if training.lora is None else "Set lora.merge: false"
        what = "cannot be trained themselves" if training.lora is None else "no adapter can be added to exactly"
        raise UserError(
            f"model '{name}': its weights are quantised ('{method}'), which {what}. {remedy}, or give the model as it "
            "was before."
        )
    if training.lora is not None:
        check_lora(config, training.lora)


def missing_packages(recipe: Recipe) -> list[Missing]:
    """What the models of a recipe need and do not find here, each with the command that installs it."""
    return [missing for named in recipe.models_here for missing in packages_missing(named)]


def check_alignment(models: RecipeModels) -> None:
    """Refuse a teacher whose tokens cannot be brought together with the student's, where a student learns from them."""
    _check_several(models)
    teacher, student = models.recipe.teacher, models.recipe.student
    taught = [training for training in models.recipe.student_trainings if training.needs_teacher]
    if any(training.alignment == "chunks" for training in taught) and not models.apart:
        raise UserError(
            "training.alignment is chunks, but teacher and student read the same tokens, which are compared one by "
            "one. Leave training.alignment out."
        )
    check_cache(models.recipe, models.apart)
    if not models.apart or not taught:
        return
    for found, what, remedy in _unaligned(taught):
        if found:
            raise UserError(f"{what}, and teacher and student read different tokens ({models.apart}): {remedy}.")
    try:
        prefix_classes(models.teacher_tokenizer, models.tokenizer)
    except UserError as error:
        raise UserError(
            f"'{teacher.model}' and '{student.model}' have to be aligned by the bytes of their tokens "
            f"({models.apart}). But {error} Or let it write its answers: training.method=seqkd learns from any teacher."
        ) from None


def _unaligned(taught: list[TrainingConfig]) -> Iterator[tuple[bool, str, str]]:
    """What does not go with different tokens: whether it is so, what it is, and what helps."""
    for training in taught:
        name = training.method.name
        yield bool(training.tokens), "training.tokens chooses among common positions", "leave training.tokens out"
        yield training.on_pairs, f"the method {name} trains on pairs of texts", "set training.method to kd or gkd"
        yield training.writes_ahead, f"the method {name} writes ahead of its training", "set its refresh to step"


def _check_several(models: RecipeModels) -> None:
    """Refuse several teachers of which one has other tokens than the student."""
    if not models.recipe.teachers or not models.asks_teacher:
        return
    for number, named in enumerate(models.recipe.models_here[:-1]):
        if reason := models.parted(number):
            raise UserError(
                f"teachers: '{named.model}' and '{models.recipe.student.model}' have different tokenizers: {reason}. "
                "Several teachers need the student's; one alone, as teacher, is aligned with it."
            )


def _check_lengths(models: RecipeModels, number: int) -> None:
    """Refuse sequences that are longer than a model's positions; a response that is too long for a decoder is cut."""
    named, config = models.recipe.models_here[number], models.configs[number]
    prompt, setting = models.recipe.data.max_prompt_length, "data.max_prompt_length"
    answers = list(_answers(models.recipe, apart=config.is_encoder_decoder))
    longest = models.positions(number)
    if config.is_encoder_decoder:
        found = [(position_limit(config, "encoder"), prompt, setting, f"Set a smaller {setting}")]
    else:
        found = [(longest, length, what, "Set a smaller data.max_length") for length, what in _texts(models.recipe)]
        answers = [(prompt + length, f"{setting} plus {what}", remedy) for length, what, remedy in answers]
    for limit, length, what, remedy in [*found, *((longest, *answer) for answer in answers)]:
        if limit is not None and length > limit:
            raise UserError(f"{what} is {length}, but model '{named.model}' takes {limit} tokens. {remedy}.")


def _texts(recipe: Recipe) -> Iterator[tuple[int, str]]:
    """Prompts with their responses, where both are one sequence: length, and what it is."""
    longest, engine = recipe.data.max_length, recipe.generation.engine
    yield longest, "data.max_length"
    if behind := ENGINES.get(engine).writes_behind:
        yield longest + behind, f"data.max_length plus what {engine} writes behind it"


def _answers(recipe: Recipe, *, apart: bool) -> Iterator[tuple[int, str, str]]:
    """What a run lets models write: length, what it is, and what helps; ``apart``: it is no part of the prompt."""
    answers = {
        "generation.max_new_tokens": recipe.generation.max_new_tokens,
        "reflection.max_new_tokens": recipe.reflection.max_new_tokens,
        "student.warm_start.method.max_new_tokens": _written(recipe.student.warm_start),
        **{f"baselines.{name}.method.max_new_tokens": _written(each) for name, each in recipe.baselines.items()},
        "training.method.max_new_tokens": _written(recipe.training),
    }
    for setting, answer in answers.items():
        if answer:
            yield answer, setting, f"Set a smaller {setting}"
    for task in recipe.evaluation.tasks:
        answer = get_task(task.name).decoding.max_new_tokens
        remedy = "Leave the task out" if apart else "Set a smaller data.max_prompt_length, or leave the task out"
        yield answer, f"the {answer} tokens of an answer to evaluation.tasks: {task.name}", remedy


def _written(training: TrainingConfig | None) -> int | None:
    """Tokens of the text that a training lets a model write."""
    return training.method.longest_text() if training is not None else None
