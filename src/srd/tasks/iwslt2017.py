"""IWSLT2017: translation of TED talks, scored by corpus BLEU and chrF with sacrebleu."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from srd.base.errors import UserError, nearest
from srd.metrics.text import bleu, chrf, sentence_bleu, sentence_chrf
from srd.sandbox.outside import Permission
from srd.tasks.base import (
    CONVERTED,
    PUBLISHED,
    Decoding,
    Hub,
    Predictions,
    Row,
    Scores,
    Task,
    register_task,
    single_answers,
)

if TYPE_CHECKING:
    from datasets import Dataset

# sacrebleu's tokenizers for languages written without spaces; all others take its default.
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "ro": "Romanian",
    "zh": "Chinese",
}


def split_language_pair(pair: str) -> tuple[str, str]:
    """Split "en-de" into its two languages; UserError for anything else or an unknown language."""
    languages = tuple(pair.split("-"))
    if len(languages) != 2 or languages[0] == languages[1]:
        raise UserError(f"language_pair: {pair!r} is no pair of languages, source first, such as 'en-de'.")
    for language in languages:
        if language not in LANGUAGES:
            raise UserError(f"language_pair {pair!r}: unknown language {language!r}; {nearest(language, LANGUAGES)}.")
    return languages[0], languages[1]


@dataclass(frozen=True)
class Iwslt2017Task(Task):
    """BLEU and chrF of one direction, ``pair`` (source first).

    Where the name does not say the pair (``named``), a row in more than its two languages leaves it open.
    """

    pair: str = "en-de"
    named: bool = False

    def in_direction(self, language_pair: str | None) -> Iwslt2017Task:
        """Return the task in another direction, such as "fr-en"; raises UserError for an unknown language."""
        if language_pair is None:
            raise UserError("dataset 'iwslt2017' needs a language_pair, source first, such as 'en-de'.")
        split_language_pair(language_pair)
        hub = Hub("IWSLT/iwslt2017", f"iwslt2017-{language_pair}", revision=CONVERTED)
        return replace(self, pair=language_pair, named=True, hub=hub, title=f"IWSLT2017 {language_pair}")

    def convert(self, row: Row, place: str) -> Row | None:
        """Ask for a translation; a few published rows have an empty side."""
        source, target = split_language_pair(self.pair)
        texts = self.field(row, "translation", place)
        if missing := [language for language in (source, target) if language not in texts]:
            raise UserError(
                f"{place}: field 'translation' has no {missing[0]!r}, only {', '.join(sorted(texts))}; "
                f"{self.not_the_format}"
            )
        if not all((texts[language] or "").strip() for language in (source, target)):
            return None
        instruction = f"Translate from {LANGUAGES[source]} to {LANGUAGES[target]}."
        return {"instruction": instruction, "input": texts[source], "output": texts[target]}

    def is_test_row(self, row: Row) -> bool:
        """Leave out published rows with an empty side."""
        texts = row.get("translation")
        return not isinstance(texts, dict) or all(texts.get(code) != "" for code in split_language_pair(self.pair))

    def asked(self, row: Row, place: str) -> Row:
        """Ask for the translation with the instruction that training uses."""
        if "translation" not in row:
            return row
        self._text(row, place)
        converted = self.convert(row, place)
        if converted is None:
            raise UserError(f"{place}: field 'translation' has a blank text: remove the row")
        return converted

    def scoring_columns(self, row: Row, place: str) -> dict[str, Any]:
        """Take the text in the target language from `translation`, or the references of a plain row."""
        if "translation" in row:
            return {"references": [self._text(row, place)]}
        return super().scoring_columns(row, place)

    def _text(self, row: Row, place: str) -> str:
        texts, target = row["translation"], split_language_pair(self.pair)[1]
        if not isinstance(texts, dict) or not all(
            isinstance(texts.get(code), str) for code in split_language_pair(self.pair)
        ):
            raise UserError(
                f"{place}: field 'translation' needs a text for each language of {self.pair!r}, found "
                f"{texts!r:.80}. "
                "For another pair say so in the name: iwslt2017:fr-en"
            )
        if len(texts) > 2 and not self.named:
            raise UserError(
                f"{place}: field 'translation' is in {len(texts)} languages ({', '.join(sorted(texts))}), and the "
                f"task's name does not say which pair is meant: write iwslt2017:{self.pair}, or the pair that you mean"
            )
        return str(texts[target])

    def score(self, predictions: Predictions, examples: Dataset, *, allow_code_execution: Permission = False) -> Scores:
        """Score the translations as one corpus, ``bleu`` and ``chrf``, with sacrebleu's signatures."""
        answers = single_answers(predictions, examples, self.name)
        references = examples["references"][:]
        tokenize = TOKENIZERS.get(split_language_pair(self.pair)[1], "13a")
        try:
            corpus_bleu = bleu(answers, references, tokenize=tokenize)
        except (RuntimeError, ImportError) as error:
            extra = tokenize.partition("-")[0]
            raise UserError(
                f"task 'iwslt2017': BLEU for {self.pair!r} needs a tokenizer: pip install 'sacrebleu[{extra}]'"
            ) from error
        corpus_chrf = chrf(answers, references)
        return Scores(
            {"bleu": corpus_bleu.score, "chrf": corpus_chrf.score},
            {
                "sentence_bleu": np.asarray(sentence_bleu(answers, references, tokenize=tokenize)),
                "sentence_chrf": np.asarray(sentence_chrf(answers, references)),
            },
            self.primary,
            {"signatures": {"bleu": corpus_bleu.signature, "chrf": corpus_chrf.signature}},
        )


IWSLT2017 = Iwslt2017Task(
    name="iwslt2017",
    title="IWSLT2017",
    licence="CC BY-NC-ND 4.0",
    source="Cettolo et al. 2017, TED talks",
    primary="bleu",
    decoding=Decoding(max_new_tokens=256),
    reference_fields=("references", "output"),
    splits=PUBLISHED,
    size=({"train": 206_112, "validation": 888, "test": 8079}, 40, 30),
)
IWSLT2017 = replace(IWSLT2017.in_direction(IWSLT2017.pair), named=False)
register_task("iwslt2017")(IWSLT2017)
