"""HTML from Jinja2 templates: the one place where values become markup, each escaped by the rule of `srd.base.text`."""

from __future__ import annotations

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
    made.filters |= {"escape_up_to": escape, "shorten": shorten}
    return made


def render(template: str, package: str = "srd.report", **values: Any) -> str:
    """Fill in a template of a package."""
    return environment(package).get_template(template).render(values)


def macro(template: str, name: str, **values: Any) -> Markup:
    """Fill in one macro of one of the report's templates."""
    module = environment("srd.report").get_template(template).module
    return Markup(getattr(module, name)(**values))
