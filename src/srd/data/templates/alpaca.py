"""The prompt of Stanford Alpaca."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srd.data.templates.base import FormatTemplate, end_of, register_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


@register_template("alpaca")
def _alpaca(tokenizer: PreTrainedTokenizerBase) -> FormatTemplate:
    return FormatTemplate("alpaca", WITH_INPUT, WITHOUT_INPUT, end=end_of(tokenizer))
