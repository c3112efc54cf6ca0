"""How true a report is, counted in facts: precision, recall, F1, with and without a look at the pixels.

The rules are those of RadFact (Bannur et al., 2024), whose judge is a language model; here the language is exact, and
so is the judge. Precision is the share of written sentences that are true, recall the share of true facts that are
written. Grounded, a true sentence counts only if more than half of the pixels that it speaks of are in what the fact
of the truth speaks of; for recall the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sam_gym.reports.facts import KINDS, Fact, Statement
from sam_gym.reports.language import parse

UNREAD = "unread"
"""Kind of sentences that are not in the language."""

ENOUGH = 0.5
"""More than this share of the pixels has to be there."""


@dataclass
class Tally:
    """Counts of one kind of fact; reports are added up.

    Attributes:
        written: Sentences.
        true: Of them, those that are true and not said before.
        wanted: Facts of the truth.
        true_grounded: As `true`, and the pixels are right.
        found_grounded: Facts of the truth that are written, and the pixels are right; ungrounded they are `true`.
    """

    written: int = 0
    true: int = 0
    wanted: int = 0
    true_grounded: int = 0
    found_grounded: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def precision(self) -> float:
        """Share of the sentences that are true; 0 where nothing is written."""
        return self.true / self.written if self.written else 0.0

    @property
    def recall(self) -> float:
        """Share of the true facts that are written; 0 where there are none."""
        return self.true / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where nothing is true."""
        return 2 * self.true / (self.written + self.wanted) if self.true else 0.0

    @property
    def grounded_f1(self) -> float:
        """The same of sentences whose pixels are right."""
        precision = self.true_grounded / self.written if self.written else 0.0
        recall = self.found_grounded / self.wanted if self.wanted else 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass
class Score:
    """What one report, or many, are worth; `sum(scores, Score())` adds them up.

    Attributes:
        kinds: `KINDS` and `UNREAD` -> counts.
    """

    kinds: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in (*KINDS, UNREAD)})

    def __add__(self, other: Score) -> Score:
        return Score({kind: self.kinds[kind] + other.kinds[kind] for kind in self.kinds})

    @property
    def total(self) -> Tally:
        """All kinds together."""
        return sum(self.kinds.values(), Tally())


def judge(
    text: str, truth: Sequence[Statement], evidence: Mapping[Fact, NDArray[np.bool_] | None] | None = None
) -> Score:
    """What a text is worth, read by the parser and by nobody else.

    Args:
        text: Any; sentences that the parser cannot read, and those that say again what was said, count as false.
        truth: What there is to say.
        evidence: Fact -> the pixels (H, W) that the text speaks of, as far as it has any. A fact that is missing here
            is not grounded, unless it says that there is none.
    """
    evidence = evidence or {}
    wanted = {statement.fact: statement.evidence for statement in truth}
    score, said = Score(), set()
    for known in wanted:
        score.kinds[known.kind].wanted += 1
    for fact in parse(text).facts:
        tally = score.kinds[UNREAD if fact is None else fact.kind]
        tally.written += 1
        if fact is None or fact in said or fact not in wanted:
            continue
        said.add(fact)
        tally.true += 1
        mine, theirs = evidence.get(fact), wanted[fact]
        tally.true_grounded += _mostly_in(mine, theirs)
        tally.found_grounded += _mostly_in(theirs, mine)
    return score


def _mostly_in(pixels: NDArray[np.bool_] | None, others: NDArray[np.bool_] | None) -> bool:
    """Whether more than half of some pixels are among others; what speaks of none is right about them."""
    if pixels is None or others is None:
        return pixels is others
    return bool(np.count_nonzero(pixels & others) > ENOUGH * np.count_nonzero(pixels))
