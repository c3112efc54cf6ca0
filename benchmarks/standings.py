"""From records to what the leaderboard shows: a row for each entry, normalised scores, who closes how much of the gap.

It reads records through `board.Board` and writes nothing. Statistics are `sam_gym.statistics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from board import RANDOM, Board, Entry, oracle_of, task_of
from numpy.typing import NDArray

from sam_gym.metrics import NEVER, Interval, bootstrap_runs, prompts_to_reach
from sam_gym.records import THRESHOLDS, Record
from sam_gym.statistics import (
    iqm_over_datasets,
    normalise,
    paired_difference,
    probability_of_improvement,
)

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
        """What the others improve on: the box alone, or no prompt."""
        return self.rows.get("box only", self.rows.get("no prompt"))

    def normalised(self, row: Row) -> Table:
        """(S, M) on the scale on which random prompts have mean 0 and the oracle has mean 1."""
        assert self.oracle is not None, "only complete standings have scores"
        return normalise(row.final, self.rows[RANDOM].final, self.oracle.final)

    def closed(self, row: Row) -> float | None:
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


SHARES_HEAD = ("environment", "objects", "", "first mask", "agent", "95 % interval", "oracle", "closed")
"""Columns of `shares_closed`."""


def shares_closed(standings: list[Standing]) -> list[list[str]]:
    """How far each agent gets in each environment, a row each under `SHARES_HEAD`."""
    rows = []
    for one in standings:
        for row in one.agents:
            closed = one.closed(row)
            if closed is not None and one.start is not None and one.oracle is not None:
                name = f"{row.name}, {len(row.records)} seed{'s' * (len(row.records) > 1)}"
                rows.append([
                    one.env_id, str(row.final.shape[1]), name, f"{one.start.iou.mean:.3f}", f"{row.iou.mean:.3f}",
                    f"{row.iou.low:.3f} to {row.iou.high:.3f}", f"{one.oracle.iou.mean:.3f}", percent(closed),
                ])  # fmt: skip
    return rows


def mean_ious(one: Standing) -> dict[str, dict[str, float]]:
    """What the package says of an environment: kind of entry -> its name -> mean IoU of the last masks."""
    kinds = {"scripted": one.scripted, "agents": one.agents, "oracle": [one.oracle] if one.oracle else []}
    return {kind: {row.name: round(float(row.final.mean()), 4) for row in rows} for kind, rows in kinds.items()}


def fixed(value: float, decimals: int = 3) -> str:
    """A number with so many decimals, and no minus before zero."""
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}"


def percent(share: float) -> str:
    """A share in whole per cent, and no minus before zero."""
    return f"{fixed(100 * share, 0)}%"


def bracketed(interval: Interval) -> str:
    """Mean and interval as text."""
    return f"{fixed(interval.mean)} [{fixed(interval.low)}, {fixed(interval.high)}]"


HEAD = (
    "entry", "seeds", "IoU@0", "IoU", "95 % interval", "score", "closed", "Dice", "Boundary IoU",
    *(f"NoC@{k:.0%}".rstrip("%") for k in THRESHOLDS), "failures", "prompts", "decodes",
)  # fmt: skip
"""Columns of an environment's table, as Markdown and HTML both show them."""


def cells(one: Standing, row: Row) -> list[str]:
    """A row as text, one for each of `HEAD`."""
    iou = row.iou
    noc = []
    for threshold in THRESHOLDS:
        mean, share = row.noc(threshold)
        noc.append("never" if mean is None else f"{mean:.1f} ({share:.0%})")
    closed = one.closed(row)
    return [
        row.name, str(len(row.records)), f"{row.curve[0]:.3f}", f"{iou.mean:.3f}", f"{iou.low:.3f} to {iou.high:.3f}",
        fixed(one.normalised(row).mean(), 2) if one.complete else "", "" if closed is None else percent(closed),
        f"{row.mean('dice'):.3f}", f"{row.mean('boundary_iou'):.3f}", *noc, f"{row.failures:.0%}",
        f"{row.mean('prompts'):.1f}", f"{row.mean('decodes'):.1f}",
    ]  # fmt: skip
