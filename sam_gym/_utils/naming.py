"""Words for error messages: what a misspelt name may have meant, what an exception says in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """The question after the nearest of the known names, whatever their case, or after `n`; "" if none is near.

    Example:
        >>> did_you_mean("refrence", ["full", "reference"]), did_you_mean("mask", ["full", "reference"])
        ("did you mean 'reference'?", '')
    """
    lowered = {one.lower(): one for one in known}
    near = difflib.get_close_matches(str(name).lower(), lowered, n=n, cutoff=cutoff)
    return f"did you mean {' or '.join(repr(lowered[one]) for one in near)}?" if near else ""


def question(name: object, known: Iterable[str], n: int = 2, cutoff: float = 0.5) -> str:
    """`did_you_mean` as a sentence of its own, with a space before it; "" if no known name is near.

    Example:
        >>> question("refrence", ["full", "reference"]), question("mask", ["full", "reference"])
        (" Did you mean 'reference'?", '')
    """
    asked = did_you_mean(name, known, n, cutoff)
    return f" D{asked[1:]}" if asked else ""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The sentence about a name that is not known: what may have been meant, else which there are.

    Example:
        >>> unknown("mode", "refrence", ["full", "reference"])
        "unknown mode 'refrence'; did you mean 'reference'?"
        >>> unknown("mode", "mask", ["full", "reference"])
        "unknown mode 'mask'; there are full, reference"
    """
    names = list(known)
    hint = did_you_mean(name, names) or f"there are {', '.join(names)}"
    return f"unknown {what} {name!r}; {hint}"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, at most 300 characters."""
    return (str(error).strip().splitlines() or ["no details"])[0][:300]
