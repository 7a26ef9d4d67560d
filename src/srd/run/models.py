"""What the models of a recipe are, before a weight is loaded: tokenizers, configurations, how text becomes tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import date
from functools import cached_property
from typing import Any

from srd.base.errors import UserError
from srd.data.encoding import Encoder
from srd.data.templates.base import class_of, get_template
from srd.data.turns import turns_of
from srd.models.loading.architecture import position_limit
from srd.models.loading.loading import load_config, load_generation_config, load_tokenizer
from srd.models.settings import ModelConfig
from srd.models.tokenizers.pair import (
    check_read,
    head_width,
    kinds_differ,
    shared_vocabulary,
    token_count,
    tokenizers_differ,
)
from srd.models.tokenizers.tokens import prefix_of, tokenizer_identity
from srd.recipe.schema import Recipe
from srd.run.identity import plugins_identity
from srd.run.outline.order import needs_of

SHORTER = 4  # tokens of a teacher's own for one of the student's, at most: text beyond that is cut


class RecipeModels:
    """Teacher and student of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.day: date | None = None  # that chat templates write; a run keeps that of its beginning

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer, which teacher and student share unless they are `apart`."""
        named = self.recipe.models_here[-1]
        return load_tokenizer(str(named.model), **named.found)

    @cached_property
    def encoder_decoder(self) -> bool:
        """Whether the student is of the encoder-decoder kind."""
        return bool(self.configs[-1].is_encoder_decoder)

    @cached_property
    def apart(self) -> str:
        """Why the teacher has to read texts in tokens of its own; empty where it reads the student's.

        Several teachers all read the student's.
        """
        if self.recipe.teachers or not self.asks_teacher:
            return ""
        if self.is_served:
            own = self.recipe.teacher.tokenizer is not None
            return tokenizers_differ(self.original_teacher_tokenizer, self.tokenizer) if own else ""
        return self.parted(0) if len(self.configs) == 2 else ""

    @property
    def is_served(self) -> bool:
        """Whether the teacher, or the first of several, is behind a server, so that its configuration is not known."""
        return self.recipe.teacher.endpoint is not None

    def parted(self, number: int) -> str:
        """What is different in the tokens of the student and of one of `Recipe.models_here`; empty: nothing."""
        named, config = self.recipe.models_here[number], self.configs[number]
        begin = [self.prefixes[number], self.prefixes[-1]]
        return (
            tokenizers_differ(self.tokenizer_of(named), self.tokenizer)
            or kinds_differ(config, self.configs[-1])
            or (f"their decoders begin with the ids {begin[0]} and {begin[1]}" if begin[0] != begin[1] else "")
        )

    @cached_property
    def encoder(self) -> Encoder:
        """Turns examples into tokens."""
        return self._encoder(self.tokenizer)

    def _encoder(self, tokenizer: Any, *, prompts_only: bool = False) -> Encoder:
        data = self.recipe.data
        name, options = data.frame
        readers = range(len(self.configs))
        limits = map(self.positions, readers[-1:] if self.apart else readers)
        return Encoder(
            tokenizer,
            get_template(name, tokenizer, options, self.day),
            max_length=data.max_length,
            max_prompt_length=data.max_prompt_length,
            encoder_decoder=self.encoder_decoder,
            train_on=data.train_on,
            prompts_only=prompts_only,
            positions=min(filter(None, limits), default=None),
        )

    def positions(self, number: int) -> int | None:
        """Tokens that one of `configs` has positions for; of an encoder-decoder those of a response.

        The first of the ids that a decoder begins with takes the place of the response's last, which it never reads.
        """
        limit = position_limit(self.configs[number])
        return None if limit is None else limit - len(self.prefixes[number][1:])

    @cached_property
    def prefixes(self) -> list[list[int]]:
        """The ids that what each of `configs` writes begins with, by its files."""
        named = zip(self.recipe.models_here, self.configs, strict=True)
        return [
            prefix_of(config, load_generation_config(str(model.model), config=config, **model.found))
            for model, config in named
        ]

    def _apart_encoder(self) -> Encoder:
        """What a teacher with tokens of its own reads: the same texts, in its own frame and as long as it takes them.

        Its tokens may be shorter than the student's: the same text is more of them.
        """
        data, own = self.recipe.data, self.teacher_tokenizer
        name, options = data.frame
        name = "plain" if class_of(name).in_turns and not own.chat_template else name
        # A server refuses what is too long for it.
        limit = None if self.is_served else self.positions(0)
        longest = max(data.max_length, min(SHORTER * data.max_length, limit or SHORTER * data.max_length))
        return Encoder(
            own,
            get_template(name, own, options, self.day),
            max_length=longest,
            max_prompt_length=min(SHORTER * data.max_prompt_length, longest - 1),
            encoder_decoder=not self.is_served and bool(self.configs[0].is_encoder_decoder),
            train_on=data.train_on,
            positions=limit,
        )

    @cached_property
    def original_teacher_tokenizer(self) -> Any:
        """The tokenizer that came with the teacher; a served one has the student's, unless another is named."""
        teacher = self.recipe.teacher
        if self.is_served:
            return load_tokenizer(teacher.tokenizer) if teacher.tokenizer else self.tokenizer
        return load_tokenizer(teacher.model, **teacher.found)

    def tokenizer_of(self, teacher: ModelConfig) -> Any:
        """The tokenizer that came with one of the teachers."""
        if teacher is self.recipe.all_teachers[0]:
            return self.original_teacher_tokenizer
        return load_tokenizer(teacher.model, **teacher.found)

    @property
    def teacher_tokenizer(self) -> Any:
        """What the teacher reads and writes with: its own; one tuned by this run takes the student's, unless apart."""
        shared = not self.recipe.student.model or (self.recipe.teacher.sft and not self.apart)
        return self.tokenizer if shared else self.original_teacher_tokenizer

    @cached_property
    def teacher_encoder(self) -> Encoder:
        """What the teacher reads where it writes text: its own chat template, where it has one, in the same lengths.

        One that is `apart` reads all texts so.
        """
        if self.apart:
            return self._apart_encoder()
        return self._encoder(self.teacher_tokenizer, prompts_only=True) if self.teacher_frame else self.encoder

    @cached_property
    def teacher_frame(self) -> list[Any]:
        """What the teacher's tokenizer and chat template put around texts, where that is not what the student's do."""
        own, shared = self.teacher_tokenizer, self.tokenizer
        if self.apart:
            return [tokenizer_identity(own), not self.is_served and bool(self.configs[0].is_encoder_decoder)]
        if own is shared or (not own.chat_template and shared.chat_template):
            return []
        frames = [
            [str(one.chat_template), turns.before, turns.behind, turns.end, turns.chat_end]
            for one, turns in ((own, turns_of(own)), (shared, turns_of(shared)))
        ]
        return frames[0] if frames[0] != frames[1] else []

    def refused(self, rows: Sequence[dict[str, Any]]) -> dict[int, UserError]:
        """Which examples cannot be made tokens of, in the student's frame or the teacher's: by position, and why.

        These encoders are not those that encode, which count what they meet and tell it.
        """
        found = {}
        for encoder in self._trial_encoders:
            found.update(
                {position: error for position, error in encoder.refused(rows).items() if position not in found}
            )
        if self.known_to_all is not None:
            found |= self._unread(rows, self.known_to_all, found)
        return found

    def divided_ids(self, rows: Iterable[dict[str, Any]]) -> list[str]:
        """The conversations that become an example for each answer, in the student's frame or the teacher's."""
        found = [encoder.divided_ids(rows) for encoder in self._trial_encoders]
        return list(dict.fromkeys(name for names in found for name in names))

    def _unread(self, rows: Sequence[dict[str, Any]], width: int, but: Collection[int]) -> dict[int, UserError]:
        """Which other examples have a token that a model has not."""
        found = {}
        for position, row in enumerate(rows):
            if position not in but:
                encoded = self._trial_encoders[0].encode_rows([row])
                try:
                    (prompt,), (response,) = encoded["prompt_ids"], encoded["response_ids"]
                    check_read(row["id"], prompt, response, width, self.tokenizer)
                except UserError as error:
                    found[position] = error
        return found

    @cached_property
    def known_to_all(self) -> int | None:
        """How many ids all models have that read the student's tokens, where its tokenizer has more; else None."""
        teachers = self.teacher_configs if self.asks_teacher and not self.apart else []
        width = min(map(head_width, [*teachers, self.configs[-1]]))
        return width if width < token_count(self.tokenizer) else None

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher reads what the student's tokenizer gives: it teaches, writes, ranks or is evaluated."""
        recipe = self.recipe
        ranks_or_repairs = "teacher" in needs_of(recipe) or recipe.data.cleaning.teacher_answers
        return self.is_taught or ranks_or_repairs or "teacher" in (recipe.evaluation.models or ["teacher"])

    @property
    def is_taught(self) -> bool:
        """Whether a student learns from the teacher: from what it says of each token, or from its texts."""
        return any(training.needs_teacher or training.teacher_writes for training in self.recipe.student_trainings)

    @cached_property
    def _trial_encoders(self) -> list[Encoder]:
        teachers = [self._encoder(self.teacher_tokenizer, prompts_only=True)] if self.teacher_frame else []
        teachers = [self._apart_encoder()] if self.apart else teachers
        return [self._encoder(self.tokenizer), *teachers]

    @property
    def encoding(self) -> list[Any]:
        """What decides how text becomes tokens, for fingerprints: the template's text or code, the tokenizer itself."""
        data = self.recipe.data
        name, options = data.frame
        template: Any = [name, options] if options else name
        if data.train_on != "last":
            template = [template, data.train_on]
        found = [template, data.max_length, data.max_prompt_length, data.bad_rows, self.tokenizer_identity]
        found += plugins_identity(self.recipe, data, "template")
        # A first token that nobody predicts.
        forced = self.prefixes[-1][1:] if self.configs[-1].is_encoder_decoder else []
        return [*found, forced] if forced else found

    @cached_property
    def tokenizer_identity(self) -> str:
        """What decides how the tokenizer reads and writes: its own rules, special tokens and chat template."""
        return tokenizer_identity(self.tokenizer)

    @cached_property
    def configs(self) -> list[Any]:
        """Configurations of the models that are loaded here (`Recipe.models_here`)."""
        return [load_config(str(model.model), **model.found) for model in self.recipe.models_here]

    @property
    def teacher_configs(self) -> list[Any]:
        """Configurations of the teachers; the student's stands for those that are served."""
        here = [each for each in self.recipe.all_teachers if each.endpoint is None]
        return self.configs[: len(here)] or self.configs[-1:]

    @cached_property
    def width(self) -> int:
        """Token ids that get a logit of the student: those that all teachers share, unless they are `apart`."""
        others = self.configs[-1:] if self.apart else self.teacher_configs
        return min(shared_vocabulary(each, self.configs[-1], self.tokenizer) for each in others)

    @cached_property
    def teacher_width(self) -> int:
        """Token ids that get a logit of the teacher."""
        if not self.apart:
            return self.width
        if self.is_served:
            return token_count(self.teacher_tokenizer)
        return shared_vocabulary(self.configs[0], self.configs[0], self.teacher_tokenizer, "teacher")

    @property
    def hidden_size(self) -> int:
        """Width of the teacher's hidden states."""
        return int(self.configs[0].get_text_config().hidden_size)
