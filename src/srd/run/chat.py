"""Talking with a student: one answer at a time, as it is written, or beside those of its teacher and its start."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from srd.base import parallel
from srd.base.errors import UserError
from srd.base.locks import told_if_held
from srd.data.encoding import Encoder
from srd.data.templates.base import class_of
from srd.evaluation.models import longest_prompt, prompt_encoder
from srd.models.generation import Decoding, stream_tokens
from srd.models.loading.loading import load_generation_config, load_model, load_tokenizer
from srd.models.settings import ModelConfig
from srd.models.tokenizers.pair import token_count
from srd.models.tokenizers.tokens import padding_id, stop_token_ids
from srd.recipe.reading import load_recipe
from srd.recipe.schema import Recipe
from srd.run.context import load_options, made_options
from srd.run.folder import RunFolder
from srd.run.identity import check_begun_here
from srd.run.manifest import check_as_written, noted_in, standing, student_of

Message = dict[str, str]
RUNS = Path("runs")
LONGEST_ANSWER = 512  # tokens, where a model's files do not say
UNFINISHED = "\ufffd"  # of a character whose last bytes are still to come


def run_folder(name: str) -> Path | None:
    """The run directory that a name stands for: itself, or one below ``runs``; None where it is none."""
    return next((path for path in (Path(name), RUNS / name) if (path / "recipe.yaml").is_file()), None)


@dataclass
class ChatModel:
    """A model that answers.

    Attributes:
        name: What it is called where several answer.
        source: Folder or name on the hub.
        tokenizer: Its chat template asks.
        options: How it is loaded.
        evaluated: How it will be evaluated, where that was not yet and its files say otherwise.
    """

    name: str
    source: str
    tokenizer: Any
    options: dict[str, Any]
    evaluated: Decoding | None = None

    @cached_property
    def model(self) -> Any:
        """The model, loaded when it is first asked."""
        with told_if_held(Path(self.source).parent):
            return load_model(
                self.source, tokenizer=self.tokenizer, device=parallel.own_gpu(), role=self.name, **self.options
            )

    def decoding(self) -> Decoding:
        """How it writes, by its files: a student as it was evaluated."""
        if self.evaluated is not None:
            return self.evaluated
        given = load_generation_config(self.source, **_of_hub(self.options))
        sampled = bool(getattr(given, "do_sample", False))
        temperature = float(getattr(given, "temperature", None) or 1.0) if sampled else 0.0
        top_p = float(getattr(given, "top_p", None) or 1.0) if sampled else 1.0
        return Decoding(int(getattr(given, "max_new_tokens", None) or LONGEST_ANSWER), temperature, top_p)

    def answer(self, turns: Sequence[Message], decoding: Decoding, name: str) -> Iterator[str]:
        """Answer a conversation, in pieces of text as they come.

        Raises:
            UserError: the prompt does not fit.
        """
        encoder = self._encoder(decoding)
        (prompt,), _, (cut,) = encoder.prompts([_row(turns)])
        if cut:
            raise UserError(
                f"what was said is longer than the {encoder.max_prompt_length} tokens that model '{self.source}' takes "
                f"beside an answer of {decoding.max_new_tokens}. Shorten it, give a smaller --max-new-tokens, or begin "
                "again with /new."
            )
        tokens: list[int] = []
        said = ""
        stop = stop_token_ids(self.model, self.tokenizer)
        for token in stream_tokens(
            self.model, prompt, name, decoding, stop, padding_id(self.tokenizer), width=token_count(self.tokenizer)
        ):
            tokens += [] if token in stop else [token]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if not text.endswith(UNFINISHED) or token in stop:
                yield text[len(said) :]
                said = text
        rest = self.tokenizer.decode(tokens, skip_special_tokens=True)[len(said) :]
        if rest:
            yield rest

    def _encoder(self, decoding: Decoding) -> Encoder:
        room = longest_prompt(self.model.config, self.tokenizer, decoding.max_new_tokens)
        if room is not None and room < 1:
            raise UserError(
                f"--max-new-tokens is {decoding.max_new_tokens}, which leaves no room for a prompt in model "
                f"'{self.source}'. Give a smaller one."
            )
        template = "chat" if self.tokenizer.chat_template else "alpaca"
        return prompt_encoder(self.model.config, self.tokenizer, room, template)


def _row(turns: Sequence[Message]) -> dict[str, Any]:
    return {
        "id": "chat", "instruction": "", "input": "", "prompt": "", "messages": json.dumps(list(turns)),
        "references": [""], "extra": "",
    }  # fmt: skip


def _of_hub(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("revision", "trust_remote_code") if options.get(name)}


def chat_models(
    name: str, *, compare: bool = False, trust_remote_code: bool = False
) -> tuple[list[ChatModel], list[str]]:
    """The models to talk with: a run's student, or any model.

    Args:
        name: A run directory, the name of one below ``runs``, a student's folder, or any model.
        compare: Also the run's teacher and the student as it started, in front of it.
        trust_remote_code: Run Python code that a model brings which is no run; a run's recipe says so itself.

    Returns:
        The models, and notes to the person.

    Raises:
        UserError: the run has no student yet, or none of its present settings; there is nothing to compare with.
    """
    folder = run_folder(name)
    if folder is None and compare:
        folder = next((above for above in list(Path(name).resolve().parents)[:3] if run_folder(str(above))), None)
        if folder is None:
            raise UserError(
                f"--compare needs a run directory, with its teacher and the student it began with, but '{name}' is "
                "none. Give one, such as runs/demo, or leave --compare out."
            )
    if folder is not None and trust_remote_code:
        raise UserError(
            f"--trust-remote-code is for a model alone; the run in {folder} goes by its recipe. Leave it out."
        )
    with told_if_held(folder or Path(name).parent):
        return _of_run(folder, compare) if folder else _alone(name, {"trust_remote_code": trust_remote_code})


def _alone(name: str, options: dict[str, Any]) -> tuple[list[ChatModel], list[str]]:
    _check_place(name)
    tokenizer = load_tokenizer(name, **options)
    notes = [] if tokenizer.chat_template else [f"{name} has no chat template: it is asked with Alpaca's wording."]
    return [ChatModel(name, name, tokenizer, options)], notes


def _of_run(folder: Path, compare: bool) -> tuple[list[ChatModel], list[str]]:
    recipe = load_recipe(str(folder / "recipe.yaml"))
    place = student_of(folder, recipe.training.label)
    if compare:
        check_as_written(folder)
    options, settings = made_options(recipe), recipe.evaluation
    # The step that writes it beside the weights, where a person may change it.
    carded = standing(noted_in(folder)).get("cards", {}).get("finished")
    evaluated = None if carded else Decoding(recipe.generation.max_new_tokens, settings.temperature, settings.top_p)
    student = ChatModel("student", str(place), load_tokenizer(str(place), **options), options, evaluated)
    if not compare:
        return [student], []
    check_begun_here(recipe, noted_in(folder).get("begun in"))
    teacher, notes = _teacher(recipe, folder, student.tokenizer)
    return [*teacher, _start(recipe, folder, student.tokenizer), student], notes


def _check_place(name: str) -> None:
    """Refuse a run that is not there, which would be looked for on the hub: ``runs/mine`` could be a name there."""
    if Path(name).parts[:1] != RUNS.parts or Path(name).exists():
        return
    there = sorted(path.parent.name for path in RUNS.glob("*/recipe.yaml"))
    raise UserError(f"there is no run '{name}' here. {RUNS} holds: {', '.join(there) or 'no run'}.")


def _start(recipe: Recipe, folder: Path, tokenizer: Any) -> ChatModel:
    """The student before the training, asked as it was trained."""
    own = recipe.student
    if own.drop_layers or own.warm_start:
        start = RunFolder(folder, recipe.training.label).start
        return ChatModel("start", str(start), tokenizer, load_options(own, loose=False) | made_options(recipe))
    return ChatModel("start", str(own.model), tokenizer, load_options(own))


def _teacher(recipe: Recipe, folder: Path, shared: Any) -> tuple[list[ChatModel], list[str]]:
    """The teacher, asked by its own chat template where the training was a conversation, else as the student is."""
    named: ModelConfig = recipe.teacher
    tuned = RunFolder(folder, recipe.training.label).teacher
    if recipe.teacher.sft:
        options = load_options(named, loose=False)
        return [ChatModel("teacher", str(tuned), load_tokenizer(str(tuned), **_of_hub(options)), options)], []
    if recipe.teacher.endpoint is not None:
        return [], ["The teacher is behind a server and is not asked here."]
    options = load_options(named)
    own = load_tokenizer(named.model, **_of_hub(options))
    if not class_of(recipe.data.frame[0]).takes_options or not own.chat_template:
        own = copy.deepcopy(own)
        own.chat_template = shared.chat_template
    return [ChatModel("teacher", named.model, own, options)], []


def chosen(
    decoding: Decoding, max_new_tokens: int | None, temperature: float | None, top_p: float | None, seed: int
) -> Decoding:
    """How answers are written: as the model's files say, unless the person says otherwise."""
    given: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    return replace(decoding, seed=seed, **{name: value for name, value in given.items() if value is not None})
