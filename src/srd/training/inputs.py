"""What a trainer is given (rows, names, models, caches), as the loop takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase, TrainingArguments

from srd.base.errors import UserError, nearest
from srd.base.handed import check_counts, check_loaded
from srd.data.batching import EncodedExamples, lengths_of
from srd.data.encoding import encode, is_encoded
from srd.models.finite import name_of
from srd.models.loading.architecture import position_limit
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.tokenizers.pair import (
    check_read,
    head_width,
    kinds_differ,
    shared_vocabulary,
    token_count,
    tokenizers_differ,
)
from srd.models.tokenizers.tokens import decoder_prefix
from srd.training.cache.teacher_cache import TeacherCache
from srd.training.divergences.base import DIVERGENCES, check_parameters
from srd.training.libraries import check_launch
from srd.training.loss.settings import LossSettings
from srd.training.methods.base import method_of
from srd.training.methods.common import rollouts_of, schedule_of
from srd.training.student_text.writing import ROLLOUTS, Writing, writing_of
from srd.training.teachers.base import TeacherSource
from srd.training.teachers.cache import CachedTeacher
from srd.training.teachers.common import Teacher
from srd.training.teachers.live import live
from srd.training.validation import Validation


def encoded(rows: Any, tokenizer: PreTrainedTokenizerBase, model: Any) -> EncodedExamples:
    """Rows as token ids; those that are so already are left as they are."""
    if isinstance(rows, EncodedExamples):
        return rows
    if not is_encoded(rows):
        rows = encode(rows, tokenizer, encoder_decoder=bool(model.config.is_encoder_decoder))
    return EncodedExamples(rows)


PASSED_ON = ("callbacks", "optimizers", "optimizer_cls_and_kwargs")  # to transformers' Trainer
OWN = ("teacher", "objective", "temperature", "weight", "eval_dataset", "method")
INSTEAD = {
    "curriculum": "all rows are trained on, as they come. srd.distill(teacher, student, rows, curriculum=…) has stages",
    "compute_metrics": "evaluate() gives the loss and ROUGE-L; srd.evaluate scores a model on a task. Leave it out",
    "peft_config": "give the student with its adapter: peft.get_peft_model(student, peft_config)",
    "data_collator": "batches are padded by srd's own. Leave it out",
    "label_smoothing_factor": "the references are learnt as they are. Set it to 0",
    "dataloader_drop_last": "a short last step counts for as much as it has. Set it to False",
    "auto_find_batch_size": "batches keep their size. Lower per_device_train_batch_size where memory is short",
    "train_sampling_strategy": "batches are drawn anew. To keep an order train its parts in turn (own_loop.py)",
}


def check_named(**given: Any) -> None:
    """Refuse a function or a class where the name of something registered belongs."""
    for name, value in given.items():
        if callable(value):
            kind = {"objective": "divergence"}.get(name, name)
            raise UserError(f"{name}: give the name of a {kind}; srd.register_{kind} gives one to yours")


def check_given(model: Any, args: Any, tokenizer: Any, others: Mapping[str, Any]) -> None:
    """Refuse what is no model, no arguments or no tokenizer, and what has no effect; say what to do instead."""
    check_loaded(model=model, args=args, processing_class=tokenizer)
    check_launch()
    for adapter in dict(getattr(model, "peft_config", None) or {}).values():
        # Prefix tuning adds keys and values alone. What an encoder reads beside is no position of the decoder.
        adds = adapter.is_prompt_learning and adapter.peft_type != "PREFIX_TUNING"
        if adds and not model.config.is_encoder_decoder:
            raise UserError(
                f"model: its adapter ({type(adapter).__name__}) puts tokens before the text. Adapters that add tokens "
                "are not trained here; use LoRA: peft.get_peft_model(student, peft.LoraConfig())"
            )
    counted = ("per_device_train_batch_size", "gradient_accumulation_steps")
    check_counts(**{name: getattr(args, name) for name in counted})
    unlike = (name for name in INSTEAD if getattr(args, name, None) not in (None, 0, "random", "group_by_length"))
    for name in [*others, *unlike]:
        if name not in PASSED_ON:
            raise UserError(f"{name} has no effect here: {INSTEAD.get(name) or nearest(name, (*OWN, *PASSED_ON))}.")


def validation_of(rows: Any, tokenizer: Any, model: Any, args: TrainingArguments) -> Validation | None:
    """Rows as something to validate on."""
    if rows is None or isinstance(rows, Validation):
        return rows
    if not is_encoded(rows):
        rows = encode(rows, tokenizer, encoder_decoder=bool(model.config.is_encoder_decoder))
    return Validation(EncodedExamples(rows), list(rows["references"]), batch_size=args.per_device_eval_batch_size)


def settings_of(objective: Any, temperature: float, weight: float, uses_teacher: bool) -> LossSettings:
    """What is minimised, by the name of a divergence or its settings."""
    if isinstance(objective, LossSettings):
        return objective
    check_named(objective=objective)
    parameters = dict(objective) if isinstance(objective, Mapping) else {"name": objective}
    name = DIVERGENCES.name_of(str(parameters.pop("name", "")))
    check_parameters(name, parameters, teaches=True)
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature is {temperature}, but must be above 0 and finite")
    if not 0 <= weight <= 1:
        raise UserError(f"weight is {weight}, but must be between 0 and 1")
    return LossSettings(name, parameters, temperature, weight) if uses_teacher else LossSettings()


def writing_by(given: Any, args: TrainingArguments) -> tuple[Writing, bool]:
    """How the student writes by a method, and whether the teacher is asked."""
    if isinstance(given, Writing):
        return given, True
    check_named(method=given)
    settings = {"name": given} if isinstance(given, str) else given
    try:
        named = method_of(dict(settings) if isinstance(settings, Mapping) else settings, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"method: {'.'.join(map(str, first['loc'][1:])) or 'name'}: {first['msg']}") from error
    if named.text == "teacher":
        raise UserError(
            f"method: '{named.name}' trains on what the teacher has written. Give the teacher's answers as the rows "
            f"and method='sft'; srd.distill(…, method='{named.name}') does both."
        )
    if named.text == "both":
        raise UserError(
            f"method: '{named.name}' trains on what teacher and student have written beforehand. Use "
            f"srd.distill(…, method='{named.name}', objective='{named.own_objective}'), which lets them write."
        )
    folder = Path(str(args.output_dir)) / ROLLOUTS
    return writing_of(named, rollouts_of(named, args.seed), schedule_of(named), folder), named.uses_teacher


def check_writing(writing: Writing, examples: EncodedExamples, student: Any, teacher: Teacher | None) -> None:
    """Refuse a teacher that cannot be asked about what the student is yet to write, and text that has no place."""
    if writing.rollouts is None:
        return
    read_once = writing.ahead is not None and writing.ahead.read is not None
    if teacher is not None and not teacher.reads_new_text and not read_once:
        raise UserError("a teacher cache cannot foresee what the student writes. Give the teacher itself.")
    longest, prompt = writing.decoding.max_new_tokens, int(lengths_of(examples.prompts).max(initial=0))
    for model in filter(None, (student, teacher.model if teacher is not None else None)):
        apart = model.config.is_encoder_decoder  # the prompt is read by the other part
        limit, before = position_limit(model.config), len(decoder_prefix(model)[1:]) if apart else prompt
        if limit is not None and before + longest > limit:
            beside, together = ("", "") if apart else (f", and the longest prompt has {prompt} tokens", " together")
            shorter = "" if apart else ", or shorten the prompts"
            raise UserError(
                f"method: max_new_tokens is {longest}{beside}, but {name_of(model)} takes {limit}{together}. Set "
                f"max_new_tokens to at most {max(0, limit - before)}{shorter}."
            )


def teacher_of(
    given: Any, examples: EncodedExamples, student: Any, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
) -> Teacher | None:
    """A teacher that is ready to be asked; where it is a cache the examples bring its states."""
    if given is None or isinstance(given, Teacher):
        return given
    if isinstance(given, TeacherCache):
        if not given.holds(examples):
            raise UserError(
                f"the teacher cache in {given.folder} lacks some of the rows. Build it from the same rows, with the "
                "same tokenizer, template and lengths: srd.build_cache"
            )
        examples.teacher = given
        head = given.head()
        width = min(head.vocabulary, head_width(student.config))
        _check_read(examples, width, tokenizer)
        return CachedTeacher(head.cut(width))
    if given is student:
        raise UserError("teacher and student are one and the same object. Load the teacher apart.")
    named = isinstance(given, str | Path)
    model = load_model(str(given), tokenizer=tokenizer, role="teacher") if named else given
    reason = kinds_differ(model.config, student.config)
    reason = reason or (tokenizers_differ(load_tokenizer(str(given)), tokenizer) if named else "")
    if reason:
        raise UserError(
            f"teacher and student read different tokens: {reason}. srd.distill(teacher, student, rows) aligns them; "
            "this trainer compares them position by position."
        )
    width = shared_vocabulary(model.config, student.config, tokenizer)
    _check_read(examples, width, tokenizer)
    return live(TeacherSource(lambda: model.to(args.device), width))


def check_served(teacher: Any, settings: LossSettings, writing: Writing) -> None:
    """Refuse a divergence without a teacher, or one that what a cache keeps cannot serve."""
    if settings.objective and settings.weight > 0 and teacher is None:
        raise UserError(f"the objective '{settings.objective}' needs a teacher: give teacher=, or method='sft'")
    if not settings.objective or not isinstance(teacher, TeacherCache):
        return
    if problem := teacher.tier.problem(settings.objective, settings.temperature, writing.schedule):
        raise UserError(f"the teacher cache in {teacher.folder} is of the tier {teacher.tier.name}: {problem}.")


def _check_read(examples: EncodedExamples, width: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse examples with tokens that the teacher has not."""
    if width < token_count(tokenizer):
        for name, prompt, response in zip(examples.ids, examples.prompts, examples.responses, strict=True):
            check_read(name, prompt, response, width, tokenizer)
