"""litgpt makes the recipe's tokens of a curated folder.

python -m benchmarks.neighbours.check_litgpt WORK    # WORK/trl, WORK/litgpt: of `srd curate`; WORK/student
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

from litgpt.data import JSON
from litgpt.prompts import Default
from litgpt.tokenizer import Tokenizer

from benchmarks.neighbours.rows import LENGTH, compare, stages_of


def model_of(work: Path) -> Path:
    """The student's folder, with what `srd curate --for litgpt` asks for: that the prompts begin with a BOS."""
    folder = work / "litgpt-student"
    shutil.copytree(work / "student", folder, dirs_exist_ok=True)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), "add_bos_token": True}))
    return folder


def main() -> None:
    work, found = Path(sys.argv[1]), {}
    tokenizer = Tokenizer(model_of(work))
    for stage in stages_of(work):
        folder = work / "litgpt" / "litgpt" / stage
        data = JSON(json_path=folder, mask_prompt=True, prompt_style=Default(), num_workers=0)
        data.connect(tokenizer=tokenizer, batch_size=1, max_seq_length=LENGTH)
        data.setup()
        rows = data.train_dataset
        found[stage] = compare(work, stage, ((row["input_ids"].tolist(), row["labels"].tolist()) for row in rows))
    sampler = type(data.train_dataloader().sampler).__name__
    print(json.dumps({"version": metadata.version("litgpt"), "same tokens and labels": found, "sampler": sampler}))


if __name__ == "__main__":
    main()
