"""Text of strangers on a terminal: shown, not obeyed. Standard library only."""

from __future__ import annotations

import re

# Control characters but tab and line feed, marks that turn the direction of writing, and halves of
# surrogate pairs, which cannot be printed at all.
_OBEYED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""The text with all that a terminal would obey written out, as \x1b."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)
