"""Judges of masks: whoever says which of several candidate masks is better, from the truth or without it.

A judge has an `identity` and one method, `rate`. `TruthJudge` is the only one that looks at the truth; learners see its
ratings and nothing else. A judge in the sense of `sam_gym.sb3.judging`, which agents carry with them, is another thing:
it predicts IoU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sam_gym.data import SegmentationData
from sam_gym.sam.choices import read_choices

GRADES = (0.4, 0.55, 0.7)
"""IoU from which a mask has grade 2, 3, 4; below the first it has grade 1 (Konwer et al., CVPR 2025, second hand)."""

NEIGHBOUR, ANY = ERRORS = ("neighbour", "any")
"""What a wrong rating is: the grade beside the right one, as published; or any other grade."""


@dataclass(frozen=True)
class Candidates:
    """Masks of one object that are to be rated.

    Attributes:
        key: What tells them from all others.
        data: Where the object is from.
        image: Index of its image.
        object_id: Its label there.
        masks: (K, H, W) bool, in the image's size.
        predicted_iou: (K,) SAM's own estimates.
    """

    key: str
    data: SegmentationData
    image: int
    object_id: int
    masks: NDArray[np.bool_]
    predicted_iou: NDArray[np.floating]

    def generator(self, seed: int) -> np.random.Generator:
        """Equal for equal seeds and keys."""
        digest = hashlib.sha256(f"{seed}/{self.key}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


class Judge(Protocol):
    """Rates candidate masks.

    Attributes:
        identity: What its ratings depend on, in words; goes into what is stored.
    """

    identity: str

    def rate(self, candidates: Candidates) -> NDArray[np.float64]:
        """(K,) numbers, the greater the better; equal ones say that neither is better."""
        ...


class TruthJudge:
    """A simulated annotator, who knows the truth and is sometimes wrong.

    Args:
        wrong: Share of the ratings that are wrong, each mask's by itself.
        error: "neighbour" or "any", see `ERRORS`.
        exact: Rate by IoU itself in place of grades, from which follows a ranking; never wrong then.
        seed: Of the errors.

    Raises:
        ValueError: An unknown error, a share outside 0..1, or errors of exact ratings.
    """

    def __init__(self, wrong: float = 0.0, error: str = NEIGHBOUR, *, exact: bool = False, seed: int = 0) -> None:
        if error not in ERRORS or not 0 <= wrong <= 1 or (exact and wrong):
            raise ValueError(
                f"a judge is wrong in a share of 0 to 1, by {' or '.join(ERRORS)}, and never if exact; got {wrong=}, "
                f"{error=}, {exact=}"
            )
        self._wrong, self._error, self._exact, self._seed = wrong, error, exact, seed
        how = "IoU" if exact else f"grades, {wrong:g} wrong by {error}, seed {seed}"
        self.identity = f"truth: {how}"

    def rate(self, candidates: Candidates) -> NDArray[np.float64]:
        """See `Judge.rate`."""
        iou = iou_of(candidates)
        if self._exact:
            return iou
        return graded(iou, self._wrong, self._error, candidates.generator(self._seed))


def iou_of(candidates: Candidates) -> NDArray[np.float64]:
    """(K,) IoU of candidates with the object itself: for who may know the truth."""
    truth = candidates.data.mask(candidates.image, candidates.object_id)
    shared = (candidates.masks & truth).sum(axis=(1, 2))
    return (shared / (candidates.masks | truth).sum(axis=(1, 2))).astype(np.float64)


def graded(iou: NDArray[np.floating], wrong: float, error: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """(K,) grades 1 to 4 of masks of some IoU, of which a share is wrong by an error of `ERRORS`.

    Example:
        >>> graded(np.array([0.3, 0.5, 0.6, 0.9]), 0.0, NEIGHBOUR, np.random.default_rng(0))
        array([1., 2., 3., 4.])
    """
    grades = 1 + np.digitize(iou, GRADES)
    for i in np.flatnonzero(rng.random(len(grades)) < wrong):
        step = [grades[i] - 1, grades[i] + 1] if error == NEIGHBOUR else range(1, len(GRADES) + 2)
        others = [grade for grade in step if grade != grades[i] and 1 <= grade <= len(GRADES) + 1]
        grades[i] = rng.choice(others)
    return grades.astype(np.float64)


class OwnEstimate:
    """SAM itself, by the IoU that it predicts."""

    identity = "SAM's own estimate"

    def rate(self, candidates: Candidates) -> NDArray[np.float64]:
        """See `Judge.rate`."""
        return candidates.predicted_iou.astype(np.float64)


class TextJudge:
    """Agreement of the masked regions with a text.

    Args:
        scorer: A `sam_gym.semantics.RegionScorer`, or whatever has its `score`.
        text: What the object is.
        others: What it might be instead (`sam_gym.semantics.rivals`).
    """

    def __init__(self, scorer: Any, text: str, others: Sequence[str]) -> None:
        self._scorer, self._text, self._others = scorer, text, tuple(others)
        self.identity = f"agreement with {text!r}"

    def rate(self, candidates: Candidates) -> NDArray[np.float64]:
        """See `Judge.rate`; an empty mask is worse than any other."""
        n, image = len(candidates.masks), candidates.data.image(candidates.image)
        return self._scorer.score([image] * n, [*candidates.masks], [self._text] * n, [self._others] * n)


class ChoiceJudge:
    """A person, or an agent, whose choices are in a file (`sam_gym.sam.choices`).

    What was chosen is rated 1, everything beside it 0; all are 0 where nothing was better.

    Args:
        file: The CSV file.

    Attributes:
        comparisons: What there are choices of; a learner goes through them, since there are no others.

    Raises:
        ValueError: A row makes no sense, or two rows contradict each other; names the file and the line.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.comparisons = read_choices(file)
        self._choices = {one.key: one.choice for one in self.comparisons}
        self.identity = f"choices of {file.name}, {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"

    def rate(self, candidates: Candidates) -> NDArray[np.float64]:
        """See `Judge.rate`.

        Raises:
            ValueError: There is no choice between them.
        """
        if candidates.key not in self._choices:
            raise ValueError(
                f"{self._file} has no choice for {candidates.key}; it has {len(self._choices)} comparisons"
            )
        ratings = np.zeros(len(candidates.masks))
        if (choice := self._choices[candidates.key]) is not None:
            ratings[choice] = 1
        return ratings
