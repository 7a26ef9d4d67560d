"""The instruction and its input as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srd.data.templates.base import FormatTemplate, end_of, register_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WITH_INPUT = "{instruction}\n\n{input}\n"
WITHOUT_INPUT = "{instruction}\n"


@register_template("plain")
def _plain(tokenizer: PreTrainedTokenizerBase) -> FormatTemplate:
    return FormatTemplate("plain", WITH_INPUT, WITHOUT_INPUT, end=end_of(tokenizer))
