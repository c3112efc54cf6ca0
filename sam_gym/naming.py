"""Words for error messages: what a misspelt name may have meant, what an exception says in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The question after the nearest of the known names, or "" if none is near.

    Example:
        >>> did_you_mean("refrence", ["full", "reference"]), did_you_mean("mask", ["full", "reference"])
        ("did you mean 'reference'?", '')
    """
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, at most 300 characters."""
    return (str(error).strip().splitlines() or ["no details"])[0][:300]
