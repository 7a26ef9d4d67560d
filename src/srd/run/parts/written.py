"""What a teacher has written, in the student's tokens: its own token ids, as long as the student has them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srd.base.errors import UserError
from srd.base.files import fingerprint, read_sealed
from srd.curation.shards import make_shards, own_shards
from srd.data.batching import length_sorted_batches
from srd.data.turns import without_end
from srd.models.cluster import Shard
from srd.models.generation import Decoding, decode_batch
from srd.models.tokenizers.pair import token_count
from srd.models.tokenizers.token_bytes import continuations
from srd.models.tokenizers.tokens import padding_id, stop_token_ids
from srd.run.context import Run

Written = tuple[list[int], bool]  # token ids without what ended them, and whether something did
BATCH = "batch-{:07d}.json"  # what was written of a batch


def written_by(
    run: Run, model: Any, tokenizer: Any, prompts: Sequence[list[int]], names: list[str], decoding: Decoding,
    title: str, folder: Path,
) -> tuple[list[Written], list[str]]:  # fmt: skip
    """Let a model answer prompts: its answers as the student would have written them, and their texts.

    Only from a teacher that reads other tokens the text is taken. ``folder`` keeps every finished batch.
    """
    with run.progress(title) as update:
        batch_size = run.recipe.generation.batch_size
        answers = answers_kept(model, tokenizer, prompts, names, decoding, batch_size, folder, update)
    written = [without_end(ids, stop_token_ids(model, tokenizer)) for ids in answers]
    if run.apart and tokenizer is not run.tokenizer:
        texts = tokenizer.batch_decode([tokens for tokens, _ in written], skip_special_tokens=True)
        ended = [over for _, over in written]
        return list(zip(_tokens_of(run.tokenizer, texts), ended, strict=True)), texts
    written = [_known_tokens(*answer, len(run.tokenizer)) for answer in written]
    return written, run.tokenizer.batch_decode([tokens for tokens, _ in written], skip_special_tokens=True)


def answers_kept(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], names: Sequence[str], decoding: Decoding,
    batch_size: int, folder: Path, progress: Callable[[int, int], None],
) -> list[list[int]]:  # fmt: skip
    """What `srd.models.generation.generate_tokens` gives, each batch in a file of its own as soon as it is done."""
    batches = length_sorted_batches([len(prompt) for prompt in prompts], batch_size)
    mine, done = own_shards(len(batches), folder), itertools.count(1)
    shared = (decoding, stop_token_ids(model, tokenizer), padding_id(tokenizer), token_count(tokenizer))

    def shard_of(number: int) -> tuple[str, Shard]:
        asked = [prompts[i] for i in batches[number]], [names[i] for i in batches[number]]
        return fingerprint(*asked, vars(decoding)), asked

    make_shards(model, _answer, shared, mine, shard_of, folder, BATCH, lambda number: progress(next(done), len(mine)))
    answers: list[list[int]] = [[] for _ in prompts]
    for number, rows in enumerate(batches):
        for i, ids in zip(rows, read_sealed(folder / BATCH.format(number))["answers"], strict=True):
            answers[i] = ids
    return answers


def _answer(
    model: Any, decoding: Decoding, stop: Sequence[int], pad_id: int, width: int, prompts: list[list[int]],
    names: list[str],
) -> dict[str, list[Any]]:  # fmt: skip
    return {"answers": decode_batch(model, prompts, names, decoding, stop, pad_id, width=width)[0]}


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
