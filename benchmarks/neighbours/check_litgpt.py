"""litgpt makes the recipe's tokens of a curated folder.

python -m benchmarks.neighbours.check_litgpt WORK    # WORK/trl, WORK/litgpt: of `srd curate`; WORK/student
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

from litgpt.data import JSON
from litgpt.prompts import Default
from litgpt.tokenizer import Tokenizer

from benchmarks.neighbours.rows import LENGTH, compare, stages_of


def main() -> None:
    work, found = Path(sys.argv[1]), {}
    for stage in stages_of(work):
        folder = work / "litgpt" / "litgpt" / stage
        data = JSON(json_path=folder, mask_prompt=True, prompt_style=Default(), num_workers=0)
        data.connect(tokenizer=Tokenizer(work / "student"), batch_size=1, max_seq_length=LENGTH)
        data.setup()
        rows = data.train_dataset
        found[stage] = compare(work, stage, ((row["input_ids"].tolist(), row["labels"].tolist()) for row in rows))
    sampler = type(data.train_dataloader().sampler).__name__
    print(json.dumps({"version": metadata.version("litgpt"), "same tokens and labels": found, "sampler": sampler}))


if __name__ == "__main__":
    main()
