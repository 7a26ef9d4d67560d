"""What fits into which memory: `srd plan` for pairs of one family, each trained in several ways, as a table.

python -m benchmarks.sizes
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import write_document
from srd.recipe.reading import validate_recipe
from srd.report.tables import Cell, Column, Table, to_markdown
from srd.run.outline.costs import DataFacts
from srd.run.plan.plan import make_plan

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "sizes.md"
MEMORIES = (8, 24, 80)  # GB
#: Width, inner width, layers, heads, heads of keys and values, vocabulary, tied: from the models' configurations.
QWEN = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11_008, 36, 16, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "14B": (5120, 13_824, 48, 40, 8, 152_064, False),
    "32B": (5120, 27_648, 64, 40, 8, 152_064, False),
}
PAIRS = (("1.5B", "0.5B"), ("3B", "0.5B"), ("7B", "0.5B"), ("7B", "1.5B"), ("7B", "3B"), ("14B", "1.5B"), ("14B", "3B"),
         ("14B", "7B"), ("32B", "3B"), ("32B", "7B"))  # fmt: skip
SAVING = {"training": {"micro_batch_size": 1, "gradient_checkpointing": True}, "generation": {"batch_size": 8}}
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "saving": SAVING,
    "saving, LoRA": {**SAVING, "training": {**SAVING["training"], "lora": {"r": 16}}},
}
DATA = DataFacts(10_000, 500, 500, 120.0, 200.0, 2_000_000, exact=True)


def write_config(folder: Path, size: str) -> Path:
    """A folder with a model's configuration and nothing else."""
    hidden, inner, layers, heads, kv_heads, vocabulary, tied = QWEN[size]
    config = {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary, "tie_word_embeddings": tied, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / size).mkdir(parents=True)
    (folder / size / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / size


def needs(pairs: tuple[tuple[str, str], ...] = PAIRS) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Teacher, student, and the peak of memory in bytes for each way."""
    with tempfile.TemporaryDirectory() as name:
        folders = {size: str(write_config(Path(name), size)) for size in QWEN}
        for teacher, student in pairs:
            found = {}
            for way, settings in WAYS.items():
                models = {"teacher": folders[teacher], "student": folders[student]}
                recipe = validate_recipe({**models, "data": "train.jsonl", "name": "sizes", **settings}, "sizes")
                found[way] = make_plan(recipe, data=DATA).memory
            yield teacher, student, found


def fits(bytes_needed: float) -> str:
    """Gigabytes, and the smallest of the memories that they fit into with a tenth to spare."""
    size = bytes_needed / 1e9
    place = next((f"{memory} GB" for memory in MEMORIES if size <= 0.9 * memory), "several GPUs")
    return f"{size:.1f} GB: {place}"


def table() -> str:
    """A line for each pair."""
    columns = [Column("Teacher"), Column("Student"), *(Column(way) for way in WAYS)]
    rows: list[list[Cell]] = [[teacher, student, *map(fits, found.values())] for teacher, student, found in needs()]
    return to_markdown(Table(columns, rows)).strip()


def main() -> None:
    write_document(PAGE, {"sizes": f"{table()}\n"})
    print(PAGE)


if __name__ == "__main__":
    main()
