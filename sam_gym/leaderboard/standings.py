"""From records to what the leaderboard shows: a row for each entry, normalised scores, who closes how much of the gap.

It reads records through `board.Board` and writes nothing. Statistics are `sam_gym.evaluation.comparison`; a row's
numbers, as all tables show them, are a `summaries.Summary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sam_gym.evaluation.bootstrap import Interval, bootstrap_runs
from sam_gym.evaluation.comparison import (
    iqm_over_datasets,
    normalise,
    paired_difference,
    probability_of_improvement,
)
from sam_gym.evaluation.metrics import NEVER, prompts_to_reach
from sam_gym.evaluation.records import THRESHOLDS, Record
from sam_gym.leaderboard.board import RANDOM, UNPROMPTED, Board, Entry, oracle_of, task_of
from sam_gym.leaderboard.summaries import Environment, Summary

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One entry in one environment, all seeds together; the objects are the same, in the same order, for every seed.

    Attributes:
        entries: One for each seed.
        records: Their records.
    """

    entries: list[Entry]
    records: list[Record]

    @property
    def name(self) -> str:
        """What the entry is called."""
        return self.entries[0].name

    @property
    def by(self) -> str:
        """Who made it."""
        return self.entries[0].by

    @property
    def agent(self) -> bool:
        """Whether it is a trained agent or somebody's own, rather than one of the scripted prompters."""
        return not self.entries[0].scripted

    @cached_property
    def final(self) -> Table:
        """(S, M) last IoU."""
        return np.stack([record.iou[:, -1] for record in self.records])

    @property
    def curve(self) -> Table:
        """(T + 1,) mean IoU after 0..T prompts."""
        return np.mean([record.curve for record in self.records], axis=0)

    def mean(self, column: str) -> float:
        """Mean of a column of the records, over seeds and objects."""
        return float(np.mean([getattr(record, column) for record in self.records]))

    @cached_property
    def iou(self) -> Interval:
        """Mean last IoU; seeds and objects are resampled."""
        return bootstrap_runs(self.final)

    def noc(self, threshold: float) -> tuple[float | None, float]:
        """Mean prompts of those that reached an IoU, None if none did, and the share that did."""
        needed = np.concatenate([prompts_to_reach(record.iou, threshold) for record in self.records])
        reached = needed[needed != NEVER]
        return float(reached.mean()) if len(reached) else None, len(reached) / len(needed)

    @property
    def failures(self) -> float:
        """Share of objects whose last mask is empty or worse than the first."""
        failed = [(r.iou[:, -1] < r.iou[:, 0]) | (r.area == 0) for r in self.records]
        return float(np.mean(failed))


@dataclass(frozen=True)
class Standing:
    """All rows of an environment.

    Attributes:
        env_id: The environment.
        rows: Name of the entry -> its row, the oracle last. Entries without records are missing.
    """

    env_id: str
    rows: dict[str, Row]

    @cached_property
    def complete(self) -> bool:
        """Whether random prompts and the oracle, which every score is relative to, are there and not equally good."""
        if RANDOM not in self.rows or self.oracle is None:
            return False
        return bool(self.rows[RANDOM].final.mean() < self.oracle.final.mean())

    @property
    def start(self) -> Row | None:
        """What the others improve on: the box alone, a given mask, or no prompt."""
        return next((self.rows[name] for name in UNPROMPTED if name in self.rows), None)

    def normalised(self, row: Row) -> Table:
        """(S, M) on the scale on which random prompts have mean 0 and the oracle has mean 1."""
        assert self.oracle is not None, "only complete standings have scores"
        return normalise(row.final, self.rows[RANDOM].final, self.oracle.final)

    def gap_closed(self, row: Row) -> float | None:
        """Share of the way from the first mask's IoU to the oracle's that an entry goes."""
        if self.start is None or self.oracle is None or not self.complete:
            return None
        low, high = self.start.final.mean(), self.oracle.final.mean()
        return float((row.final.mean() - low) / (high - low))

    @property
    def oracle(self) -> Row | None:
        """What looks at the truth."""
        return self.rows.get(oracle_of(self.env_id))

    @property
    def agents(self) -> list[Row]:
        """Trained agents and what others have added."""
        return [row for row in self.rows.values() if row.agent]

    @property
    def scripted(self) -> list[Row]:
        """Entries that need no training and look at no truth."""
        return [row for row in self.rows.values() if not row.agent and row is not self.oracle]

    def rival(self) -> Row | None:
        """The best of the scripted entries."""
        return max(self.scripted, key=lambda row: row.final.mean(), default=None)

    def against_rival(self, row: Row) -> tuple[Interval, Interval] | None:
        """Paired difference to `rival`, and how likely the entry is better than it on an object."""
        other = self.rival()
        if other is None or other is row:
            return None
        return paired_difference(row.final, other.final), probability_of_improvement(row.final, other.final)


def standing(board: Board, env_id: str) -> Standing:
    """What is stored of an environment."""
    rows: dict[str, Row] = {}
    for entry in board.entries():
        if entry.env_id == env_id and (stored := board.read(entry)) is not None:
            row = rows.setdefault(entry.name, Row([], []))
            row.entries.append(entry)
            row.records.append(Record.from_json(stored["record"]))
    return Standing(env_id, rows)


def over_datasets(standings: list[Standing]) -> dict[str, tuple[int, Interval]]:
    """Entries of one task -> how many data sets they are on, and the IQM of their normalised scores over those.

    The best comes first; entries on more data sets stand before those on fewer.
    """
    complete = [one for one in standings if one.complete]
    names = dict.fromkeys(name for one in complete for name in one.rows)
    found = {}
    for name in names:
        scores = [one.normalised(one.rows[name]) for one in complete if name in one.rows]
        found[name] = len(scores), iqm_over_datasets(scores)
    return dict(sorted(found.items(), key=lambda item: (item[1][0], item[1][1].mean), reverse=True))


def by_task(standings: list[Standing]) -> dict[str, list[Standing]]:
    """Standings of each task, those without any record left out."""
    found: dict[str, list[Standing]] = {}
    for one in standings:
        if one.rows:
            found.setdefault(task_of(one.env_id), []).append(one)
    return found


def environment_of(one: Standing) -> Environment:
    """An environment's rows as tables show them; there is at least one."""
    rows = [summary_of(one, row) for row in one.rows.values()]
    return Environment(one.env_id, next(iter(one.rows.values())).final.shape[1], rows)


def summary_of(one: Standing, row: Row) -> Summary:
    """The numbers of a row."""
    return Summary(
        name=row.name,
        by=row.by,
        kind="agents" if row.agent else "oracle" if row is one.oracle else "scripted",
        seeds=len(row.records),
        first=float(row.curve[0]),
        iou=row.iou,
        score=float(one.normalised(row).mean()) if one.complete else None,
        gap_closed=one.gap_closed(row),
        dice=row.mean("dice"),
        boundary_iou=row.mean("boundary_iou"),
        noc=[row.noc(threshold) for threshold in THRESHOLDS],
        failures=row.failures,
        prompts=row.mean("prompts"),
        decodes=row.mean("decodes"),
    )
