"""litgpt: a folder for every stage, as it shuffles whatever it is given."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from srd.base.remedies import warn
from srd.export.curated import TRAINERS, Trainer, lines
from srd.export.texts import Shown, shown
from srd.run.curate import Curated, stage_file

logger = logging.getLogger(__name__)

USAGE = """
litgpt shuffles its rows, and there is no switch for it: **the order within a stage is lost**. The stages are kept by
one run for each, from the model of the one before:

```
litgpt finetune_full MODEL --data JSON --data.json_path litgpt/stage_0 --data.mask_prompt true \\
    --data.prompt_style.class_path litgpt.prompts.Default --train.epochs PASSES --out_dir out/stage_0
litgpt finetune_full out/stage_0/final --data JSON --data.json_path litgpt/stage_1 …
```

with the passes of the table above. The prompts stand in their frame already, so that the style is the class
`Default`, which adds nothing and has no name of its own.
"""


def contents(made: Curated) -> Iterator[tuple[str, str]]:
    """A training and a validation file for every stage."""
    (first,) = shown(made.run.encoder, made.run.split("train").select([0]).to_list())
    tell_of_beginning(first)
    texts = shown(made.run.encoder, made.run.split("validation").to_list())
    validation = [{"prompt": row.prompt, "completion": row.completion} for row in texts]
    for stage in made.stages:
        rows = list(lines(made.folder / stage_file(stage.index), stage.size))
        yield f"litgpt/stage_{stage.index}/train.json", _json(rows)
        # It wants a validation file: where there are no such rows, some of those that it trains on.
        yield f"litgpt/stage_{stage.index}/val.json", _json(validation or rows[:8])


def tell_of_beginning(row: Shown) -> None:
    """Warn where prompts begin with a BOS: litgpt removes what the tokenizer's own rules add, unless it is told."""
    if row.begin:
        warn(
            logger,
            f"the prompts begin with {row.begin}, which litgpt reads only if the model's tokenizer_config.json says "
            '"add_bos_token": true.',
            "Write that into the file where it is missing.",
        )


def _json(rows: Iterable[Mapping[str, Any]]) -> str:
    return json.dumps([{"instruction": row["prompt"], "output": row["completion"]} for row in rows], ensure_ascii=False)


TRAINERS.register("litgpt")(
    Trainer(
        "litgpt",
        USAGE,
        files=("litgpt/stage_{}/train.json", "litgpt/stage_{}/val.json"),
        contents=contents,
        keeps_order=False,
    )
)
