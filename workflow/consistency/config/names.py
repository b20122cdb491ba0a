"""Names in messages."""

from __future__ import annotations

import difflib


def nearest(word: str, allowed: list[str]) -> str:
    """'; did you mean …?' for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
