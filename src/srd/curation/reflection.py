"""Reflection: what does the student answer today, and how surprised is it by the reference?

One pass over the data gives both: the prompt is read once, the reference is scored behind it (teacher forcing), the
cache is cut back to the prompt, and the answer is decoded from there.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from srd.base import parallel
from srd.base.errors import UserError
from srd.base.files import atomic_write, fingerprint, read_sealed
from srd.base.handed import check_counts, check_loaded
from srd.base.tables import column, data_set, positions, reopened
from srd.data.batching import TokenLists, length_sorted_batches
from srd.data.encoding import Encoder
from srd.data.examples import as_examples
from srd.data.templates.base import get_template
from srd.metrics.rouge import rouge_l_many
from srd.metrics.scripts import Words, choose_words, words_note
from srd.models.cluster import Shard
from srd.models.generation import Decoding, answer_texts, decode_batch
from srd.models.shards import BATCH, make_shards, own_shards
from srd.models.tokenizers.pair import token_count
from srd.models.tokenizers.tokens import padding_id, stop_token_ids

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("id", pa.string()), ("response", pa.string()), ("rouge_l", pa.float64()), ("ce", pa.float64())])
#: Behind these, what other scores need of the same reading.
READ = SCHEMA.append(pa.field("end_nll", pa.float64()))
JOINED = "joined.arrow"  # the scores of all batches
# Rows are taken in the order of their length, from all over the files, and each brings 64 kB of pages around it. With
# their map they leave the process, so that what it holds does not grow with the files.
MAPPED_ROWS = 2_000


def reflect(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Any,
    *,
    encoded: datasets.Dataset | None = None,
    template: str = "auto",
    max_length: int = 512,
    max_prompt_length: int = 256,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    words: Words | None = None,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> datasets.Dataset:
    """Let a student answer every training prompt and measure its surprise at the reference.

    Args:
        model: The student: a causal or sequence-to-sequence language model.
        tokenizer: Its tokenizer.
        examples: Rows such as ``{"instruction": …, "output": …}`` in a list of dicts, a ``datasets.Dataset`` (also
            after ``select`` or ``filter``), a pandas or polars frame; or a ``datasets.Dataset`` of the example schema.
        encoded: The examples as token ids, as `srd.data.encoding.Encoder.encode` gives them; None: encoded here,
            with the three settings that follow. Where earlier answers of a conversation are learnt, each turn is
            reflected on, and a row's scores are their means, weighted by tokens.
        template: Prompt template, as in recipes.
        max_length: Longest prompt and reference, in tokens.
        max_prompt_length: Longest prompt.
        max_new_tokens: Longest answer (greedy decoding).
        batch_size: Prompts at once.
        words: How ROUGE-L reads texts, as in `srd.rouge_l`; None: as the references of all examples ask for.
        folder: Keeps every finished batch here, so that a killed reflection goes on where it was; None: memory only.
        progress: Called with examples done and examples to do.

    Returns:
        ``id``, ``response`` (text), ``rouge_l`` (0 to 1, best reference), ``ce`` (mean nats per token of the first
        reference, its end of sequence included), in the order of ``examples``.

    Raises:
        UserError: no rows, or rows that are no examples; the message names the row.

    Source: SRD, arXiv 2508.06135, section 3.1.
    """
    check_loaded(model=model, tokenizer=tokenizer)
    check_counts(batch_size=batch_size, max_new_tokens=max_new_tokens)
    if encoded is None:
        examples = as_examples(examples)
        encoded = Encoder(
            tokenizer, get_template(template, tokenizer), max_length=max_length, max_prompt_length=max_prompt_length,
            encoder_decoder=bool(model.config.is_encoder_decoder),
        ).encode(examples)  # fmt: skip
    asked, tokens = examples, encoded
    if "earlier" in encoded.column_names:
        tokens = turns_apart(encoded, examples, tokenizer)
        asked = tokens.select_columns(["id", "references"])
    scores = _reflect_on_all(
        model, tokenizer, asked, tokens, max_new_tokens, batch_size, words or words_of(examples), folder,
        progress or (lambda done, total: None),
    )  # fmt: skip
    return scores if tokens is encoded else turns_together(scores, tokens, examples)


def own_losses(folders: Iterable[Path], ids: pa.ChunkedArray) -> datasets.Dataset:
    """What the reflections in some folders have read of each example's own response, in the order of ``ids``.

    Returns:
        ``id``, ``ce`` (mean nats a token), ``end_nll`` (nats of the last token). Where earlier turns are learnt, they
        are of the last response alone.
    """
    read = [datasets.Dataset.from_file(str(folder / JOINED)) for folder in folders]
    rows = datasets.concatenate_datasets(read).select_columns(["id", "ce", "end_nll"])
    return rows.select(positions(ids, rows))


def turns_apart(encoded: datasets.Dataset, examples: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
    """A row for each turn that is learnt: ``id`` of its own, ``of`` (the example's), its tokens and its reference."""

    def apart(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in ("id", "of", "prompt_ids", "response_ids", "references")}
        for name, prompt, response, earlier, references in zip(*batch.values(), strict=True):
            for start, end in zip(earlier[::2], earlier[1::2], strict=True):
                text = tokenizer.decode(prompt[start:end], skip_special_tokens=True)
                turn = (f"{name}@{start}", name, prompt[:start], prompt[start:end], [text])
                for column_of, value in zip(found.values(), turn, strict=True):
                    column_of.append(value)
            for column_of, value in zip(found.values(), (name, name, prompt, response, references), strict=True):
                column_of.append(value)
        return found

    rows = encoded.select_columns(["id", "prompt_ids", "response_ids", "earlier"])
    rows = datasets.concatenate_datasets([rows, examples.select_columns("references")], axis=1)
    return rows.map(
        apart,
        batched=True,
        remove_columns=rows.column_names,
        load_from_cache_file=False,
        new_fingerprint=fingerprint("turns", encoded._fingerprint),
        features=datasets.Features(
            {
                "id": datasets.Value("string"),
                "of": datasets.Value("string"),
                "prompt_ids": encoded.features["prompt_ids"],
                "response_ids": encoded.features["response_ids"],
                "references": examples.features["references"],
            }
        ),
    )


def turns_together(scores: datasets.Dataset, turns: datasets.Dataset, examples: datasets.Dataset) -> datasets.Dataset:
    """The scores of examples from those of their turns: means weighted by tokens, and the answers one after another."""
    lengths = pc.list_value_length(turns.data.column("response_ids")).to_numpy().astype(np.float64)
    numbered = pc.index_in(turns.data.column("of"), value_set=column(examples, "id").combine_chunks()).to_numpy()
    tokens = np.bincount(numbered, lengths, len(examples))
    means = {
        name: np.bincount(numbered, lengths * np.asarray(scores[name], np.float64), len(examples)) / tokens
        for name in ("rouge_l", "ce")
    }
    answers: list[list[str]] = [[] for _ in range(len(examples))]
    for number, response in zip(numbered.tolist(), scores["response"], strict=True):
        answers[number].append(response)
    texts = ["\n\n".join(own) for own in answers]
    return data_set(pa.table({"id": column(examples, "id"), "response": texts, **means}, schema=SCHEMA))


def words_of(examples: datasets.Dataset) -> Words:
    """How ROUGE-L reads the references of examples; those of ASCII alone, which all can be read, become no text."""
    references = pc.list_flatten(column(examples, "references"))
    others = references.filter(pc.invert(pc.string_is_ascii(references)))
    pieces = (piece for chunk in others.chunks for piece in _pieces(chunk))
    return choose_words((text for piece in pieces for text in piece.to_pylist()), len(references))


def _pieces(chunk: pa.Array) -> Iterator[pa.Array]:
    return (chunk.slice(start, MAPPED_ROWS) for start in range(0, len(chunk), MAPPED_ROWS))


def _reflect_on_all(
    model: Any, tokenizer: Any, examples: Any, encoded: datasets.Dataset, max_new_tokens: int, batch_size: int,
    words: Words, folder: Path | None, progress: Callable[[int, int], None],
) -> datasets.Dataset:  # fmt: skip
    """Batch by batch, each process its own; what ``folder`` holds already is not done again."""
    batches = length_sorted_batches(TokenLists(encoded.data.column("prompt_ids")).lengths.tolist(), batch_size)
    mine = own_shards(len(batches), folder is not None)
    done, total = 0, sum(len(batches[i]) for i in mine)
    window = mine.step * max(1, MAPPED_ROWS // batch_size)

    def told(number: int) -> None:
        nonlocal done
        done += len(batches[number])
        progress(done, total)

    @functools.lru_cache(1)
    def opened(window: int) -> tuple[datasets.Dataset, datasets.Dataset]:
        return reopened(encoded), reopened(examples).select_columns("references")

    def shard_of(number: int) -> tuple[str, Shard]:
        tokens, texts = opened(number // window)
        chosen = tokens[batches[number]]
        decided = [READ.names, chosen["id"], chosen["prompt_ids"], chosen["response_ids"], max_new_tokens]
        made_from = fingerprint(*decided, *words_note(words).values())
        return made_from, (texts[batches[number]]["references"], chosen)

    shared = (tokenizer, max_new_tokens, words)
    parts = make_shards(model, _reflect_batch, shared, mine, shard_of, folder, BATCH, told)
    if folder is None:
        tables = [pa.Table.from_pydict(parts[number], schema=READ) for number in mine]
        return _in_order(examples, data_set(pa.concat_tables(tables)))
    parallel.on_main(lambda: _join(folder, len(batches)))
    return _in_order(examples, datasets.Dataset.from_file(str(folder / JOINED)))


def _reflect_batch(
    model: Any, tokenizer: Any, longest: int, words: Words, references: list[list[str]], chosen: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    stop = stop_token_ids(model, tokenizer)
    tokens, read = decode_batch(
        model,
        chosen["prompt_ids"],
        chosen["id"],
        Decoding(longest),
        stop,
        padding_id(tokenizer),
        width=token_count(tokenizer),
        references=chosen["response_ids"],
    )
    responses = answer_texts(tokenizer, tokens, stop)
    scores = rouge_l_many(responses, references, words)
    means, lasts = map(list, zip(*read, strict=True))
    return dict(zip(READ.names, (chosen["id"], responses, scores.tolist(), means, lasts), strict=True))


def _join(folder: Path, count: int) -> None:
    """Put the batches' files together in one that is read through a memory map."""
    with atomic_write(folder / JOINED) as partial, pa.ipc.new_stream(str(partial), READ) as stream:
        for number in range(count):
            part = read_sealed(folder / BATCH.format(number))
            stream.write_batch(pa.RecordBatch.from_pydict({name: part[name] for name in READ.names}, schema=READ))


def _in_order(examples: datasets.Dataset, scores: datasets.Dataset) -> datasets.Dataset:
    """Join scores by id, in the order of the examples."""
    return scores.select(positions(column(examples, "id"), scores)).select_columns(SCHEMA.names)


def ranking_warnings(scores: datasets.Dataset) -> list[str]:
    """Say where the student answers so little that ranks mean nothing."""
    rouge = np.asarray(scores["rouge_l"], dtype=np.float64)
    if not len(rouge):
        raise UserError("reflection gave no scores: there are no training examples")
    _, counts = np.unique(rouge, return_counts=True)
    warnings = []
    mean, tied = float(rouge.mean()), float(counts.max() / len(rouge))
    if mean < 0.05:
        warnings.append(
            f"the student's answers have a mean ROUGE-L of {100 * mean:.1f}: it hardly answers at all, and its ranks "
            "mean little. Warm it up, or for longer (student.warm_start), or drop fewer layers."
        )
    if tied > 0.5 and len(rouge) > 1:
        warnings.append(
            f"{100 * tied:.0f} % of the examples share one ROUGE-L value, so that this half of the rank says nothing "
            "about them. Warm the student up, or for longer (student.warm_start)."
        )
    if not all(math.isfinite(value) for value in scores["ce"]):
        warnings.append("some cross-entropies are not finite: see data.bad_rows")
    return warnings
