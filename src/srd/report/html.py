"""HTML from Jinja2 templates: the one place where values become markup, each escaped by the rule of `srd.base.text`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from srd.base.text import LONGEST, escape_html, shorten


def escape(value: Any, longest: int = LONGEST) -> Markup:
    """Turn a value into markup: what is markup already stays, nothing (None) is empty, all else is escaped."""
    if isinstance(value, Markup):
        return value
    return Markup(escape_html("" if value is None else str(value), longest=longest))


#: What is code in escaped text: what stands between backticks, settings with their values, commands, options.
FENCE = re.compile(r"```[^\n]*\n.*?```", re.DOTALL)
CODE = re.compile(
    r"(`+)(?!\s|`)([^`\n]+)\1"
    r"|\b(?:teacher|student|data|generation|reflection|training|cache|evaluation|baselines)\.[a-z]\w*(?:\.\w+)*"
    r"(?:=(?:\[[^\]\n]*\]|\{[^}\n]*\}|[\w./+\-]*\w))?"
    r"|\bsrd (?:run|plan|doctor|clean|curate|rank|reflect|distill|evaluate|report|sweep|chat|export|push|init)\b"
    r"|(?<![\w-])--[a-z][a-z-]*[a-z]"
)


def coded(value: Any, ticks: bool = True) -> Markup:
    """Escape a text and mark what is code in it; ``ticks``: keep the backticks, where a text is shown as it is."""
    text, parts, place = str(escape(value)), [], 0
    for fence in [*FENCE.finditer(text), None]:
        prose = text[place : fence.start() if fence else None]
        parts.append(CODE.sub(lambda match: f"<code>{match[0] if ticks or not match[2] else match[2]}</code>", prose))
        if fence:
            parts.append(f'<code class="block">{fence[0]}</code>')
            place = fence.end()
    return Markup("".join(parts))


def unbroken(text: str) -> str:
    """Keep numbers and their units on one line: ``3.9 s``."""
    return re.sub(r"(?<=\d) (?=(?:s|min|h|days?|[kMGT]?B)\b)", "\N{NO-BREAK SPACE}", text)


def heading(text: str) -> Markup:
    """Escape a heading, and keep a short word with a hyphen on one line: ``ROUGE-L``."""
    return Markup(re.sub(r"(?<!\S)\S{1,8}-\S{1,4}(?!\S)", r'<span class="word">\g<0></span>', str(escape(text))))


@cache
def environment(package: str) -> jinja2.Environment:
    """The templates of a package, on top of those of the report."""
    loaders = [jinja2.PackageLoader(name) for name in dict.fromkeys((package, "srd.report"))]
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        finalize=escape,  # sees every value before autoescape does, which then finds nothing left to do
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"escape_up_to": escape, "shorten": shorten, "coded": coded}
    made.filters |= {"unbroken": unbroken, "heading": heading}
    return made


def render(template: str, package: str = "srd.report", **values: Any) -> str:
    """Fill in a template of a package."""
    return environment(package).get_template(template).render(values)


def macro(template: str, name: str, **values: Any) -> Markup:
    """Fill in one macro of one of the report's templates."""
    module = environment("srd.report").get_template(template).module
    return Markup(getattr(module, name)(**values))
