"""Text from data, models and machines, made fit to be shown: nothing in it moves a cursor or turns a line around."""

from __future__ import annotations

import html
import re

#: Longest text of one place in a page: a whole file in one field would make a page that no browser opens.
LONGEST = 20_000

# What a terminal or a browser obeys instead of showing it: controls (but for tab and line feed), line and paragraph
# separators, marks and embeddings of direction, other formatting controls and tags, and the halves of surrogate pairs,
# which no output can encode. Joiners of letters and emoji are not among them.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Write control characters, direction marks and half characters as escapes such as ``\x1b`` or ``\u202e``."""
    return OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def escape_html(text: str, quote: bool = True, longest: int = LONGEST) -> str:
    """Write text for a page as it is: what would be obeyed made visible, a very long one cut, with a note."""
    if len(text) > longest:
        text = f"{text[:longest].rstrip()}… (cut: {len(text) - longest:,} more characters)"
    return html.escape(visible(text.replace("\r\n", "\n")), quote)
