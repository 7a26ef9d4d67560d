"""Small models from nothing, for evidence on a CPU in minutes and on a GPU in seconds; nothing is downloaded.

`benchmarks.alignment` and `benchmarks.teachers` train these on the standard library's own documentation (`pydocs`),
once for each seed, and compare what they say of answers that nobody trained on. ``python -m benchmarks.small FILE ...``
puts the tables of their JSON files into docs/teachers.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from benchmarks.tables import write_document
from srd.base.files import write_json
from srd.data.batching import EncodedExamples
from srd.data.encoding import encode
from srd.models.head import response_losses
from srd.models.loading.loading import load_model, load_tokenizer
from srd.training.batches import make_collator

TEXTS = {"template": "plain", "max_length": 256, "max_prompt_length": 64}
ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "teachers.md"
BATCH = 32

Rows = list[dict[str, str]]
Found = dict[str, dict[str, float]]  # of each system, by what was measured


def tokenizer_of(texts: Sequence[str], size: int, *, digits: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of so many tokens; ``digits``: each a token of its own."""
    made = Tokenizer(models.BPE())
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, layers: int, width: int, seed: int) -> str:
    """A random Llama with a tokenizer; the folder's name."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, rows: Rows) -> str:
    """Rows as JSON lines; the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@torch.no_grad()
def nats_a_byte(model: Path | str, rows: Rows) -> float:
    """Cross-entropy of the rows' answers by a model, their ends included: comparable over tokenizers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(str(model))
    loaded = load_model(str(model), tokenizer=tokenizer, device=device).float().eval()
    examples, collator = EncodedExamples(encode(rows, tokenizer, **TEXTS)), make_collator(loaded, tokenizer)
    total = 0.0
    for start in range(0, len(examples), BATCH):
        batch = collator([examples.tokens(i) for i in range(start, min(start + BATCH, len(examples)))])
        batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
        total += float(response_losses(loaded, batch).double().sum())
    return total / sum(len(row["output"].encode()) for row in rows)


def options_of(about: str, **more: int) -> argparse.Namespace:
    """The options that both commands have; ``more``: others, with what they are by default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600, help="that a student trains on")
    parser.add_argument("--answers", type=int, default=300, help="that are measured; none was trained on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=128, help="of the student; the teacher is twice as wide")
    parser.add_argument("--at-once", type=int, default=1, help="seeds that are worked on at once, a process each")
    parser.add_argument("--json", type=Path, default=None, help="where the numbers go; else below runs/")
    for name, value in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()


def _one(measure: Callable[[Path, int, argparse.Namespace], Found], wanted: argparse.Namespace, seed: int) -> Found:
    with tempfile.TemporaryDirectory(prefix="srd-evidence-") as folder:
        return measure(Path(folder), seed, wanted)


def over_seeds(measure: Callable[[Path, int, argparse.Namespace], Found], wanted: argparse.Namespace) -> list[Found]:
    """What ``measure`` finds with each seed, in a folder of its own."""
    work = partial(_one, measure, wanted)
    if wanted.at_once == 1:
        return [work(seed) for seed in range(wanted.seeds)]
    with ProcessPoolExecutor(wanted.at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, range(wanted.seeds)))


def tell(name: str, found: list[Found], wanted: argparse.Namespace) -> None:
    """Write the numbers of all seeds to a file, and print the table of their means and spreads."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    options = {key: value for key, value in vars(wanted).items() if key not in ("json", "at_once")}
    results = {"name": name, "device": device, "torch": torch.__version__, "options": options, "seeds": found}
    path = wanted.json or ROOT / "runs" / f"bench-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)
    print(f"\n{table_of(results)}\n{path}")


def table_of(results: dict[str, Any]) -> str:
    """Means and standard deviations over seeds in Markdown, and what was run."""
    found: list[Found] = results["seeds"]
    columns = list(next(iter(found[0].values())))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for system in found[0]:
        cells = (mean_and_spread([each[system].get(column, np.nan) for each in found]) for column in columns)
        lines.append(f"| {system} | {' | '.join(cells)} |")
    options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in results["options"].items())
    return "\n".join([*lines, "", f"`python -m benchmarks.{results['name']} {options}`, {results['device']}.", ""])


def mean_and_spread(values: Sequence[float]) -> str:
    """``1.234 ± 0.005``: of one seed the mean alone; a dash where nothing was measured."""
    if not np.isfinite(values).all():
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def main() -> None:
    """Put the tables into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="that the two commands have written")
    every = [json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args().files]
    write_document(DOCUMENT, {results["name"]: table_of(results) for results in every})


if __name__ == "__main__":
    main()
