"""Judges of masks: whoever says which of several candidate masks is better, from the truth or without it.

A judge has an `identity` and one method, `rate`. `TruthJudge` is the only one that looks at the truth; learners see its
ratings and nothing else. A judge in the sense of `sam_gym.sb3.judging`, which agents carry with them, is another thing:
it predicts IoU.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sam_gym.data import SegmentationData

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
        truth = candidates.data.mask(candidates.image, candidates.object_id)
        shared = (candidates.masks & truth).sum(axis=(1, 2))
        iou = shared / (candidates.masks | truth).sum(axis=(1, 2))
        if self._exact:
            return iou.astype(np.float64)
        grades = 1 + np.digitize(iou, GRADES)
        rng = candidates.generator(self._seed)
        for i in np.flatnonzero(rng.random(len(grades)) < self._wrong):
            step = [grades[i] - 1, grades[i] + 1] if self._error == NEIGHBOUR else range(1, len(GRADES) + 2)
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
    """A person, whose choices between pairs are in a CSV file: `key,a,b,choice`.

    `a` and `b` are numbers of candidates, `choice` is one of them, or empty where neither is better. A candidate's
    rating is how often it was chosen less how often the other one was.

    Args:
        file: The CSV file.

    Raises:
        ValueError: A row makes no sense, or two rows contradict each other; names the file and the row.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._choices: dict[str, dict[tuple[int, int], int | None]] = defaultdict(dict)
        with open(file, newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened)
            if reader.fieldnames is None or set(reader.fieldnames) < {"key", "a", "b", "choice"}:
                raise ValueError(f"{file} needs the columns key,a,b,choice; it has {reader.fieldnames}")
            for number, row in enumerate(reader, start=2):
                self._take(row, f"{file}, line {number}")
        self.identity = f"choices of {file.name}, {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"

    def _take(self, row: dict[str, str], where: str) -> None:
        try:
            a, b = sorted((int(row["a"]), int(row["b"])))
            choice = int(row["choice"]) if row["choice"].strip() else None
        except ValueError as error:
            raise ValueError(f"{where}: a and b are numbers of candidates, choice is one of them or empty") from error
        if a < 0 or a == b or choice not in (a, b, None):
            raise ValueError(f"{where}: choice {row['choice']!r} is none of the candidates {row['a']} and {row['b']}")
        known = self._choices[row["key"]]
        if known.setdefault((a, b), choice) != choice:
            raise ValueError(f"{where}: {row['key']} was chosen otherwise between {a} and {b} before")

    @property
    def keys(self) -> Sequence[str]:
        """Whose candidates it has choices of."""
        return tuple(self._choices)

    def rate(self, candidates: Candidates) -> NDArray[np.float64]:
        """See `Judge.rate`.

        Raises:
            ValueError: There are no choices for them, or of candidates that are not there.
        """
        if candidates.key not in self._choices:
            raise ValueError(f"{self._file} has no choice for {candidates.key}; it has {len(self._choices)} keys")
        ratings = np.zeros(len(candidates.masks))
        for (a, b), choice in self._choices[candidates.key].items():
            if b >= len(ratings):
                raise ValueError(f"{self._file}: {candidates.key} has candidates 0 to {len(ratings) - 1}, not {b}")
            if choice is not None:
                ratings[choice] += 1
                ratings[b if choice == a else a] -= 1
        return ratings
