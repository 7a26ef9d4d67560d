"""What a teacher has written, in the student's tokens: its own token ids, as long as the student has them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from srd.base.errors import UserError
from srd.data.turns import without_end
from srd.models.generation import Decoding, generate_tokens
from srd.models.tokenizers.token_bytes import continuations
from srd.models.tokenizers.tokens import stop_token_ids
from srd.run.context import Run

#: A file of what was written: ids of rows, texts, token ids without what ended them, and whether something did.
TEACHER_TEXT = pa.schema(
    [("id", pa.string()), ("response", pa.string()), ("tokens", pa.list_(pa.int32())), ("ended", pa.bool_())]
)
Written = tuple[list[int], bool]  # token ids without what ended them, and whether something did


def written_by(
    run: Run, model: Any, tokenizer: Any, prompts: Sequence[list[int]], names: list[str], decoding: Decoding,
    title: str, folder: Path,
) -> tuple[list[Written], list[str]]:  # fmt: skip
    """Let a model answer prompts: its answers as the student would have written them, and their texts.

    Only from a teacher that reads other tokens the text is taken. ``folder`` keeps every finished batch.
    """
    with run.progress(title) as update:
        answers = generate_tokens(
            model, tokenizer, prompts, names, decoding, batch_size=run.recipe.generation.batch_size, progress=update,
            folder=folder,
        )  # fmt: skip
    written = [without_end(ids, stop_token_ids(model, tokenizer)) for ids in answers]
    if run.apart and tokenizer is not run.tokenizer:
        texts = tokenizer.batch_decode([tokens for tokens, _ in written], skip_special_tokens=True)
        ended = [over for _, over in written]
        return list(zip(_tokens_of(run.tokenizer, texts), ended, strict=True)), texts
    written = [_known_tokens(*answer, len(run.tokenizer)) for answer in written]
    return written, run.tokenizer.batch_decode([tokens for tokens, _ in written], skip_special_tokens=True)


def _tokens_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """What a teacher with tokens of its own wrote, in the student's, as they stand behind a prompt."""
    try:
        return continuations(tokenizer, texts)
    except UserError:  # it changes texts, so that no more can be said of their beginning
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _known_tokens(tokens: list[int], ended: bool, count: int) -> Written:
    """What a teacher wrote up to a token that the student does not have; what follows is cut."""
    known = list(itertools.takewhile(lambda token: token < count, tokens))
    return known, ended and len(known) == len(tokens)
