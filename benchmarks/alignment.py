"""What a teacher with another tokenizer teaches, by how it is aligned: ``python -m benchmarks.alignment``.

Small models from nothing, so that it runs on a CPU: a teacher is trained on Python's own documentation (`pydocs`), and
students of half its depth learn the same rows with cross-entropy only, from common tokens at identical places (what
other trainers do), from prefix classes, from these and chunks, and, as ceiling, with the teacher's own tokenizer. What
is compared is the loss of the references in validation, in nats a byte. The ceiling's tokenizer is another one: its
number differs for that reason, too."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from srd.recipe.reading import validate_recipe
from srd.run.context import Run
from srd.run.flow import advance, training_steps
from srd.tasks.base import get_task

VARIANTS: dict[str, dict[str, Any]] = {
    "cross-entropy only": {"method": "sft"},
    "identical": {"alignment": "identical"},
    "prefix": {"alignment": "prefix"},
}
BOTH = "prefix and chunks"  # the default
CEILING = "same tokenizer"


def tokenizer_of(texts: list[str], size: int, *, digits: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE of so many tokens; ``digits``: each a token of its own."""
    made = Tokenizer(models.BPE())
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, layers: int, seed: int) -> None:
    """A random model of so many layers, with a tokenizer."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def losses(recipe: dict[str, Any], folder: Path) -> dict[str, float]:
    """Train what a recipe compares; the best validation loss of each, in nats a byte."""
    run = Run(validate_recipe(recipe, "alignment"), folder)
    try:
        advance(run, *training_steps(run.recipe))
        tokens = run.encoded("validation").response_tokens
        size = sum(len(texts[0].encode()) for texts in run.split("validation")["references"])
        found = {}
        for label in run.recipe.arms:
            rows = [json.loads(line) for line in run.files.log(label).read_text(encoding="utf-8").splitlines()]
            found[label] = min(row["eval_loss"] for row in rows if "eval_loss" in row) * tokens / size
        return found
    finally:
        run.close()


def compare(folder: Path, rows: int, epochs: int, seed: int) -> dict[str, float]:
    """The loss of every variant, with one seed."""
    examples = get_task("pydocs").examples(None, rows)
    texts = [f"{row['instruction']}\n{row['references'][0]}" for row in examples]
    tokenizers = tokenizer_of(texts, 3000, digits=False), tokenizer_of(texts[: len(texts) // 4], 1500, digits=True)
    save_model(folder / "teacher", tokenizers[0], 4, seed)
    for name, tokenizer in (("ceiling", tokenizers[0]), ("student", tokenizers[1])):
        save_model(folder / name, tokenizer, 2, seed + 1)
    common = {
        "batch_size": 16,
        "learning_rate": 2e-3,
        "select_by": "loss",
        "weight": 0.5,
        "epochs": epochs,
        "curriculum": None,
    }
    names = {name.replace(" ", "-").replace("cross-entropy", "ce"): name for name in VARIANTS}
    arms = {label: {**common, **VARIANTS[name], "seed": seed} for label, name in names.items()}
    recipe: dict[str, Any] = {
        "name": "alignment", "seed": seed, "data": {"train": "pydocs", "template": "plain", "train_limit": rows,
        "validation_limit": 100, "max_length": 256, "max_prompt_length": 64},
        "teacher": {"model": str(folder / "teacher"), "sft": {**common, "epochs": 2 * epochs, "method": "sft"}},
        "student": str(folder / "student"), "baselines": arms,
        "training": {**common, "method": "kd"}, "evaluation": {"models": ["student"]},
    }  # fmt: skip
    found = losses(recipe, folder / "apart")  # its main training is the default
    ceiling = {**recipe, "student": str(folder / "ceiling"), "baselines": {}}
    return {
        **{name: found[label] for label, name in names.items()},
        BOTH: found["kd"],
        CEILING: losses(ceiling, folder / "alike")["kd"],
    }


def main() -> None:
    """Print a table of means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    wanted = parser.parse_args()
    found: list[dict[str, float]] = []
    for seed in range(wanted.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(compare(Path(folder), wanted.rows, wanted.epochs, seed))
    print(f"| alignment | nats a byte, mean of {wanted.seeds} seeds | spread |\n|---|---:|---:|")
    for name in (*VARIANTS, BOTH, CEILING):
        values = [each[name] for each in found]
        print(f"| {name} | {np.mean(values):.4f} | {np.std(values):.4f} |")


if __name__ == "__main__":
    main()
