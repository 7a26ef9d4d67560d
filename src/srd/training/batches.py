"""Batches of a training: whose rows they hold, and the tensors of those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainingArguments

from srd.data.batching import Collator, EncodedExamples, LengthBatches, learnt_count
from srd.models.reading import bears_packing
from srd.models.tokenizers.tokens import decoder_prefix, padding_id
from srd.training.alignment import Reader

MASKS = ("attention_mask", "decoder_attention_mask")  # of a batch: 1 where a token is read


def nothing(rows: list[int]) -> dict[str, Any]:
    """In place of a batch whose rows are chosen when its step comes."""
    return {"rows": []}


def tokens_in(batch: Mapping[str, Any]) -> int:
    """Tokens that a batch holds beside its padding; one that is packed has none."""
    masks = [batch[name] for name in MASKS if name in batch]
    return sum(int(mask.sum()) for mask in masks) if masks else batch["input_ids"].numel()


class WithRows:
    """Collates, and keeps ids beside the tensors for messages, and the rows where the student may write them anew."""

    def __init__(self, collator: Collator, reader: Reader | None = None, *, rows: bool) -> None:
        self.collator, self.reader, self.rows = collator, reader, rows

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {**self.collator(rows), **about(rows)}
        batch |= self.reader.batch(rows) if self.reader is not None else {}
        return {**batch, "rows": rows} if self.rows else batch


def about(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Whose positions a batch holds, how many of each, and whether their text is in doubt."""
    doubtful = [row.get("doubtful", False) for row in rows]
    return {"ids": [row["id"] for row in rows], "counts": [learnt_count(row) for row in rows], "doubtful": doubtful}


def length_batches(examples: EncodedExamples, args: TrainingArguments) -> LengthBatches:
    """This process's part of batches of similar length."""
    return LengthBatches(
        examples.lengths,
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        micro_batch_size=args.per_device_train_batch_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        process=args.process_index,
        processes=args.world_size,
    )


def make_collator(model: Any, tokenizer: PreTrainedTokenizerBase, teacher: Any = None) -> Collator:
    """The collator that fits a model: decoder-only or encoder-decoder.

    Where the attention kernels of the model and of a live teacher keep packed examples apart (FlashAttention), and no
    state of theirs goes from one to the next, batches have no padding at all.
    """
    if model.config.is_encoder_decoder:
        return Collator(padding_id(tokenizer), decoder_prefix(model))
    models = [each for each in (model, teacher) if each is not None]
    kernels = [str(getattr(each.config, "_attn_implementation", "")) for each in models]
    flash = all(kernel.startswith("flash_attention") for kernel in kernels)
    return Collator(padding_id(tokenizer), packed=flash and all(map(bears_packing, models)))


class AheadLoader(DataLoader[Any]):
    """Makes the next batch while a GPU works on the one before: reading the teacher's states may take as long."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return made_ahead(super().__iter__())


def made_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, each made in a thread while the one before is in use; none before the first is asked for."""
    end = object()
    # A thread begins on the first GPU, which may be another process's.
    begin = (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_available() else (None, ())
    with ThreadPoolExecutor(1, "batches", *begin) as thread:
        coming = thread.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = thread.submit(next, batches, end)
            yield batch
