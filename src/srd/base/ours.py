"""Whose unfinished work is: told by names, as a step that was killed has left no list of what it wrote.

Steps, the Trainer and the libraries of models write files of a few names and patterns. What else lies among them, a
link, and a folder in the place of a file, somebody else has put there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

FOLDERS = re.compile(
    r"\.partial-.+|\d+|\d+\.(parts|work)|[0-9a-f]{32}|checkpoint-\d+|fold_\d+"
    r"|answers|batches|cache|cleaning|examples|folds|logs|measured|model|pairs|predictions|read|reflection|rollouts|seqkd|served"
    r"|shortened|stages|start|student|teacher|teacher-sft|unrepaired|warm-start|writer"
    # what accelerate, DeepSpeed and transformers put into a checkpoint or a model
    r"|global_step\d+|(optimizer|pytorch_model_fsdp)_\d+|additional_chat_templates"
    r"|runs|[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d_.+|\d+\.\d+"  # of TensorBoard
)
FILES = re.compile(
    r"\.partial-.+|\..+\.seal|(batch|block)-\d{7}\.json|answers-\d+\.json|asked-\d+\.jsonl|answers\.(jsonl|scores\.json)|joined\.arrow"
    r"|(plan|shard)-[0-9a-f]{32}\.(json|safetensors)|head\.safetensors"
    r"|(\d+|cleaned|likelihoods|measures|responses|rows|scores|student|teacher|test|train|unmarked|validation)\.parquet"
    r"|(detectors|distillation|dropped|files|meta|metrics|rollouts|schedule|step)\.json"
    r"|(dropped|fold_\d+|teacher_sft|validation|warm_start)\.jsonl"
    # of the Trainer, of accelerate and of DeepSpeed
    r"|trainer_state\.json|training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth|latest"
    r"|zero_to_fp32\.py|\.metadata|__\d+_\d+\.distcp|\w+_states\.pt"
    r"|pytorch_model_fsdp(_\d+)?\.bin|events\.out\.tfevents\..+|emissions\.csv"
    # of models and tokenizers
    r"|(adapter_model|model|pytorch_model|tf_model)(-\d+-of-\d+)?\.(safetensors|bin)|.+\.index\.json"
    r"|(adapter_|generation_|preprocessor_|processor_|tokenizer_)?config\.json|README\.md|(modeling|configuration)_\w+\.py"
    r"|(tokenizer|vocab|added_tokens|special_tokens_map|chat_template|tekken)[\w-]*\.(json|jinja|txt|py)|merges\.txt"
    r"|bpe\.codes|dict\.txt|(normalizer|emoji|byte_maps|\w+_vocab)\.json"
    r"|\w+\.jinja|[\w.]+\.(model|tiktoken|spm)|tokenization_\w+\.py"
)
OF_FILES = re.compile(r".+\.(arrow|bin|html|json|jsonl|parquet|pt|pth|safetensors|yaml)")


def strangers(path: Path, listed: Collection[Path] = ()) -> Iterator[Path]:
    """What lies at a place of unfinished work, or below it, and is not of it.

    Args:
        path: A place that belongs to a step: a file, or a folder.
        listed: Files that are known to be its own, whatever their names.
    """
    torn = path.name.startswith(".partial-")  # a library was writing a model: its code and tokenizer have any name
    other_kind = OF_FILES if path.is_dir() else FOLDERS
    if path.is_symlink() or (path.exists() and not torn and other_kind.fullmatch(path.name)):
        yield path
    elif path.is_dir():
        for each in sorted(path.iterdir()):
            known = FOLDERS.fullmatch(each.name) if each.is_dir() else torn or FILES.fullmatch(each.name)
            if each.is_symlink() or not (known or each in listed):
                yield each
            elif each.is_dir():
                yield from strangers(each, listed)
