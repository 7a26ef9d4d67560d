"""The prompt of Stanford Alpaca."""

from __future__ import annotations

from srd.data.templates.base import FormatTemplate, register_template

# The wording of Stanford Alpaca (Apache-2.0), which MiniLLM's data files and all published results use.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)

register_template("alpaca")(lambda tokenizer: FormatTemplate("alpaca", WITH_INPUT, WITHOUT_INPUT))
