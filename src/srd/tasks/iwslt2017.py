"""IWSLT2017: translation of TED talks, scored by corpus BLEU and chrF with sacrebleu."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset

from srd.base.errors import UserError
from srd.data.sources import DATASETS, split_language_pair
from srd.metrics.text import bleu, chrf, sentence_bleu, sentence_chrf
from srd.tasks.base import Decoding, Hub, Predictions, Row, Scores, Task, single_answers
from srd.tasks.confinement import Permission

# sacrebleu's tokenizers for languages written without spaces; all others take its default.
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}


@dataclass(frozen=True)
class Iwslt2017Task(Task):
    """BLEU and chrF of one direction, ``pair`` (source first).

    Where the name does not say the pair (``named``), a row in more than its two languages leaves it open.
    """

    pair: str = "en-de"
    named: bool = False

    def for_pair(self, pair: str) -> Iwslt2017Task:
        """Return the task in another direction, such as "fr-en"; raises UserError for an unknown language."""
        split_language_pair(pair)
        hub = Hub("IWSLT/iwslt2017", f"iwslt2017-{pair}", revision="refs/convert/parquet")
        return replace(self, pair=pair, named=True, hub=hub, title=f"IWSLT2017 {pair}")

    def is_test_row(self, row: Row) -> bool:
        """Leave out published rows with an empty side."""
        texts = row.get("translation")
        return not isinstance(texts, dict) or all(texts.get(code) != "" for code in split_language_pair(self.pair))

    def convert(self, row: Row, place: str) -> Row:
        """Ask for the translation with the instruction that training uses."""
        if "translation" not in row:
            return row
        self._text(row, place)
        converted = DATASETS["iwslt2017"].convert(dict(row), self.pair)
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
)
IWSLT2017 = replace(IWSLT2017.for_pair(IWSLT2017.pair), named=False)
