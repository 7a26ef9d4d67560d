"""The instruction and its input as they are."""

from __future__ import annotations

from srd.data.templates.base import FormatTemplate, register_template

WITH_INPUT = "{instruction}\n\n{input}\n"
WITHOUT_INPUT = "{instruction}\n"

register_template("plain")(lambda tokenizer: FormatTemplate("plain", WITH_INPUT, WITHOUT_INPUT))
