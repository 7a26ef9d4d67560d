"""LLaMA-Factory reads its configuration and makes the recipe's tokens of a curated folder, in the order of the file.

python -m benchmarks.neighbours.check_llamafactory WORK    # WORK/trl, WORK/llamafactory: of `srd curate`
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import yaml
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

from benchmarks.neighbours.rows import compare, stages_of


def main() -> None:
    work, found = Path(sys.argv[1]), {}
    os.chdir(work / "llamafactory")
    for stage in stages_of(work):
        settings = yaml.safe_load(Path(f"llamafactory_{stage}.yaml").read_text(encoding="utf-8"))
        # The second stage begins with the model that the first has trained: its tokenizer is the student's.
        model, data, training, *_ = get_train_args(
            {**settings, "use_cpu": True, "model_name_or_path": str(work / "student")}
        )
        read = load_tokenizer(model)
        template = get_template_and_fix_tokenizer(read["tokenizer"], data)
        rows = get_dataset(template, model, data, training, stage="sft", **read)["train_dataset"]
        found[stage] = compare(work, stage, ((row["input_ids"], row["labels"]) for row in rows))
    print(json.dumps({"version": metadata.version("llamafactory"), "same tokens and labels": found}))


if __name__ == "__main__":
    main()
