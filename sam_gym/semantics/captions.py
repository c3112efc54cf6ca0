"""What regions are called: the classes of clip-micro, the captions it learns for them, and the rivals of a text.

Words only; where a region of a class is found is the business of `regions`. A score says how much better a region fits
its text than the texts of what it could be mistaken for, so a known text has the classes beside it in the same kind
of image as rivals; a text from elsewhere has generic ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_TISSUE = ("mitochondrion", "membrane", "cell interior")
_SMEAR_CELLS = ("white blood cell", "red blood cell", "background of a blood smear")
_SMEAR_PARTS = ("nucleus of a white blood cell", "cytoplasm of a white blood cell", "background of a blood smear")
_NUCLEI = ("nucleus", "background")
EDGE = "edge of a nucleus"

SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mitochondrion": ("mitochondria",),
        "membrane": ("cell membrane", "membranes between cells"),
        "cell interior": ("inside of a cell", "cytoplasm of a neuron"),
        "white blood cell": ("leukocyte", "white cell"),
        "red blood cell": ("erythrocyte", "red cell"),
        "nucleus of a white blood cell": ("nucleus of a leukocyte", "white blood cell nucleus"),
        "cytoplasm of a white blood cell": ("cytoplasm of a leukocyte", "white blood cell cytoplasm"),
        "background of a blood smear": ("blood plasma", "empty part of a blood smear"),
        "nucleus": ("cell nucleus", "nucleus of a cell", "nuclei"),
        EDGE: ("border of a nucleus", "rim of a nucleus"),
        "background": ("empty background", "nothing"),
    }
)
"""Class text -> other words for the same. The keys are the classes of clip-micro, in order."""

CLASSES: tuple[str, ...] = tuple(SYNONYMS)

TEMPLATES = ("{}", "a photo of {}", "an image of {}", "a micrograph of {}", "{} under the microscope", "a crop of {}")
"""What a caption says around a class text or a synonym."""

GENERIC_RIVALS = ("background", "something else")
"""Distractors of a text that is none of the classes."""


def _rivals() -> dict[str, tuple[str, ...]]:
    """For each class the others of the first group that it is in: a white cell's rivals are cells."""
    table: dict[str, tuple[str, ...]] = {EDGE: _NUCLEI}
    for group in (_TISSUE, _SMEAR_CELLS, _SMEAR_PARTS, _NUCLEI):
        for text in group:
            table.setdefault(text, tuple(other for other in group if other != text))
    return table


_RIVALS = _rivals()
_CLASS_OF = {words: text for text, others in SYNONYMS.items() for words in (text, *others)}


def captions(text: str) -> tuple[str, ...]:
    """All captions that clip-micro learns for a class, its bare text first.

    Raises:
        KeyError: `text` is not one of `CLASSES`.
    """
    return tuple(template.format(words) for words in (text, *SYNONYMS[text]) for template in TEMPLATES)


def rivals(text: str) -> tuple[str, ...]:
    """What a region of this text could be mistaken for: the distractors of its score.

    Args:
        text: A target text; a class of clip-micro or a synonym of one has rivals of its own, in any case and spacing.

    Returns:
        Two texts or one for known texts, generic ones for all others; never the text itself.
    """
    plain = " ".join(text.lower().split())
    if plain in _CLASS_OF:
        return _RIVALS[_CLASS_OF[plain]]
    return tuple(other for other in GENERIC_RIVALS if other != plain)
