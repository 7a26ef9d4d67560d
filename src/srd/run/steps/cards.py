"""What a student's folder needs before it is published: its model card, and its usual decoding."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from srd.base import parallel
from srd.base.files import atomic_write, content_of, file_digest, read_sealed, write_json, write_sealed
from srd.base.text import many
from srd.base.version import VERSION
from srd.models.loading.facts import CARD
from srd.models.loading.loading import load_config, load_generation_config
from srd.models.tokenizers.tokens import set_generation_tokens
from srd.run.card import Card
from srd.run.context import Run, made_options
from srd.run.outline import order
from srd.run.steps.base import Step, Summary

logger = logging.getLogger(__name__)

GENERATION = "generation_config.json"
FORM = 2  # raise it when what is written here changes, so that finished runs write it anew


class Cards(order.Cards, Step):
    """``README.md`` and ``generation_config.json`` in the folder of every student.

    The folder belongs to its training, but for these files: they depend on the evaluation too, so they are written
    after it, and again when results change. A card that was changed by hand stays as it is.
    """

    shares = False

    def inputs(self, run: Run) -> list[Any]:
        results = [content_of(path) for path in (run.files.results, run.files.comparisons)]
        return [FORM, VERSION, run.recipe.model_dump(mode="json"), results]

    def borrowed(self, run: Run) -> list[Path]:
        return [
            run.files.student(label) / GENERATION for label in run.recipe.variants if not Card(run, label).is_adapter
        ]

    def needed(self, run: Run) -> list[Path]:
        return [*self.borrowed(run), *self._cards(run)]

    def spoilt(self, run: Run, damaged: list[Path]) -> list[Path]:
        """A card that is there was changed by hand."""
        return [path for path in damaged if path.name != CARD]

    def told(self, run: Run, summary: Summary) -> str:
        kept = len(summary["by hand"])
        left = f", {kept} left as changed by hand" if kept else ""
        return f"{many(len(run.recipe.variants) - kept, 'model card')} written{left}"

    def make(self, run: Run) -> Summary:
        kept: list[Path] = []
        if parallel.is_main():
            for path in self.borrowed(run):
                write_json(path, generation_settings(run, path.parent))
            for label, path in zip(run.recipe.variants, self._cards(run), strict=True):
                kept += [] if self._write(run, path, Card(run, label).text()) else [path]
        parallel.barrier()
        return {"by hand": [str(path.relative_to(run.folder)) for path in kept]}

    def _cards(self, run: Run) -> list[Path]:
        return [run.files.student(label) / CARD for label in run.recipe.variants]

    def _is_ours(self, run: Run, card: Path) -> bool:
        """Whether a card is as it was written here. It is noted before it is written: a kill may come between."""
        return card.is_file() and file_digest(card) in read_sealed(run.files.cards).get("written", [])

    def _write(self, run: Run, card: Path, text: str) -> bool:
        """Write a card; False where one that was changed by hand stays."""
        if card.is_file() and not self._is_ours(run, card):
            logger.info("%s was changed by hand and stays as it is. Delete it to have it written again.", card)
            return False
        with atomic_write(card) as partial:
            partial.write_text(text, encoding="utf-8")
            known = read_sealed(run.files.cards).get("written", [])
            write_sealed(run.files.cards, {"written": sorted({*known, file_digest(partial)})})
        return True


def generation_settings(run: Run, folder: Path) -> dict[str, Any]:
    """What ``generation_config.json`` says: where answers begin and end, and the decoding of the evaluation."""
    student, settings = run.recipe.student, run.recipe.evaluation
    own = run.start_source == student.model
    start = load_generation_config(run.start_source, **(student.found if own else made_options(run.recipe)))
    config = load_config(str(folder), **made_options(run.recipe))
    tokens = SimpleNamespace(config=config, generation_config=start)
    set_generation_tokens(tokens, run.tokenizer)  # type: ignore[arg-type]  # these two are all that it looks at
    decoding: dict[str, Any] = {"do_sample": settings.temperature > 0}
    if settings.temperature > 0:
        decoding |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    decoding["max_new_tokens"] = run.recipe.generation.max_new_tokens
    found = {**tokens.generation_config.to_diff_dict(), **decoding}
    return {name: found[name] for name in sorted(found) if not name.startswith("_")}
