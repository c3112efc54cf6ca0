"""The language of reports: every fact has a few sentences, and every sentence one fact.

The grammar, where TYPE is one of `NOUNS` and NUMBER is "no", "one" ... "twelve" or "more than twelve":

    report    = sentence { " " sentence }
    sentence  = subject predicate "." | "There is/are" subject "that" predicate "." | largest "."
    subject   = NUMBER TYPE
    predicate = "is/are seen" | "is/are small" | "touches/touch another object" | ...        (`PREDICATES`)
    largest   = "The largest" TYPE "lies in the" QUADRANT | ...                              (`PLACES`)

It is small enough for all its sentences to be written down, and the parser is the writer turned around: a table of
them. What is not in the table is no sentence; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from sam_gym._utils.naming import question, unknown
from sam_gym.reports.facts import LARGEST, MOST, NUMBERED, QUADRANTS, Fact

NOUNS = {
    "cell": "cells",
    "mitochondrion": "mitochondria",
    "nucleus": "nuclei",
    "blood cell": "blood cells",
    "white blood cell": "white blood cells",
    "red blood cell": "red blood cells",
}
"""Types of objects: singular -> plural."""

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "more than twelve",
)  # fmt: skip
assert len(NUMBERS) == MOST + 2

PREDICATES: dict[str, tuple[tuple[str, str], ...]] = {
    "count": (("is seen", "are seen"), ("is present", "are present")),
    "small": (("is small", "are small"), ("is of small size", "are of small size")),
    "medium": (("is of medium size", "are of medium size"), ("is medium-sized", "are medium-sized")),
    "large": (("is large", "are large"), ("is of large size", "are of large size")),
    "round": (("is round", "are round"), ("has a round shape", "have a round shape")),
    "elongated": (("is elongated", "are elongated"), ("has an elongated shape", "have an elongated shape")),
    "touching": (("touches another object", "touch another object"), ("adjoins another one", "adjoin another one")),
    "edge": (("reaches the edge", "reach the edge"), ("is at the edge", "are at the edge")),
}
"""Kind -> paraphrases, each in the singular and in the plural. The first is what an exact writer says."""

PLACES = ("The largest {one} lies in the {place}.", "In the {place} lies the largest {one}.")
"""The same of `largest`."""

SENTENCE = re.compile(r"[^.\s][^.]*\.?")


class ReportError(ValueError):
    """A text is no report; `position` is where the first sentence begins that is none."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Reading:
    """What a text says.

    Attributes:
        facts: One for each sentence, in order; None for one that is not in the language.
        positions: Where each sentence begins in the text.
    """

    facts: tuple[Fact | None, ...]
    positions: tuple[int, ...]


@cache
def sentences(fact: Fact) -> tuple[str, ...]:
    """All that can be said of a fact; the first is what an exact writer says.

    Raises:
        ValueError: The type, kind or value has no words.

    Example:
        >>> sentences(Fact("nucleus", "touching", 2))[::2]
        ('Two nuclei touch another object.', 'Two nuclei adjoin another one.')
    """
    type, kind, value = fact
    if type not in NOUNS:
        raise ValueError(unknown("type", type, NOUNS))
    if kind == LARGEST and 0 <= value < len(QUADRANTS):
        return tuple(place.format(one=type, place=QUADRANTS[value]) for place in PLACES)
    if kind not in PREDICATES or not 0 <= value < len(NUMBERS):
        raise ValueError(f"there are no words for {fact!r}")
    several = value > 1
    subject = f"{NUMBERS[value]} {NOUNS[type] if several else type}"
    said = []
    for forms in PREDICATES[kind]:
        predicate = forms[several]
        said += [f"{subject} {predicate}.", f"There {'are' if several else 'is'} {subject} that {predicate}."]
    return tuple(one[0].upper() + one[1:] for one in said)


@cache
def _table() -> dict[str, Fact]:
    """Every sentence of the language -> its fact."""
    facts = [
        Fact(type, kind, value)
        for type in NOUNS
        for kind in (*NUMBERED, LARGEST)
        for value in range(len(QUADRANTS) if kind == LARGEST else len(NUMBERS))
    ]
    return {_plain(sentence): fact for fact in facts for sentence in sentences(fact)}


def _plain(sentence: str) -> str:
    return " ".join(sentence.lower().split())


def write(facts: Iterable[Fact], rng: np.random.Generator | None = None) -> str:
    """A report of some facts, a sentence each, in their order.

    Args:
        facts: At least none.
        rng: Draws the paraphrases; None takes the first of each.
    """
    words = (sentences(fact) for fact in facts)
    return " ".join(said[0 if rng is None else int(rng.integers(len(said)))] for said in words)


def parse(text: str, *, strict: bool = False) -> Reading:
    """What a text says, sentence by sentence. Case and white space do not matter.

    Args:
        text: A report, or not.
        strict: Every sentence has to be of the language.

    Raises:
        ReportError: With `strict`, the first sentence that is not.

    Example:
        >>> [str(fact) for fact in parse("Two nuclei are seen. They are pretty.").facts]
        ['nucleus: count 2', 'None']
    """
    found, places = [], []
    for match in SENTENCE.finditer(text):
        fact = _table().get(_plain(match[0]))
        if fact is None and strict:
            raise ReportError(_complaint(match[0], match.start()), match.start())
        found.append(fact)
        places.append(match.start())
    if strict and not found:
        raise ReportError("the text has no sentence: a report has one at least", 0)
    return Reading(tuple(found), tuple(places))


def _complaint(sentence: str, position: int) -> str:
    near = question(_plain(sentence), _table(), n=1)
    return f"no sentence of a report, at character {position}: {sentence!r}.{near}"


def vocabulary(types: Sequence[str] = tuple(NOUNS)) -> list[str]:
    """All words of the language, in alphabetical order; a full stop is one of them.

    Raises:
        ValueError: A type has no words.
    """
    if missing := [type for type in types if type not in NOUNS]:
        raise ValueError(unknown("type", missing[0], NOUNS))
    return sorted({word for sentence, fact in _table().items() if fact.type in types for word in words_of(sentence)})


def words_of(text: str) -> list[str]:
    """A text as words of the language, in lower case; full stops are words of their own."""
    return text.lower().replace(".", " .").split()
