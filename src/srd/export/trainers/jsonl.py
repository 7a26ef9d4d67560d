"""Any trainer that reads JSON lines."""

from __future__ import annotations

from srd.export.curated import TRAINERS, Trainer

USAGE = """
Read `train.jsonl` from top to bottom, without shuffling, once: the passes are in it. Or go through `stage_0.jsonl`,
`stage_1.jsonl`, … one after the other, each as often as the table says, every stage from the model of the one before.
Train on `completion` and `end`, not on `prompt`.
"""

TRAINERS.register("jsonl")(Trainer("any trainer", USAGE, decoder_only=False, configures=False))
