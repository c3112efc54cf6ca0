"""What tables of the leaderboard show, as numbers and as text; and the published standings, which the package holds.

Numbers become text here and nowhere else, so that LEADERBOARD.md, the page and the terminal agree. Of records and
environments nothing is needed: standings.json holds all rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sam_gym._utils.fetching import atomic_path
from sam_gym.evaluation.bootstrap import Interval
from sam_gym.evaluation.records import THRESHOLDS
from sam_gym.leaderboard.board import UNPROMPTED

PACKAGED = Path(__file__).resolve().parent / "standings.json"
"""The published standings, written by `sam-gym leaderboard table` in a clone; `sam-gym list` shows scores from them."""

HEAD = (
    "entry", "seeds", "IoU@0", "IoU", "95 % interval", "score", "gap closed", "Dice", "Boundary IoU",
    *(f"NoC@{k:.0%}".rstrip("%") for k in THRESHOLDS), "failures", "prompts", "decodes",
)  # fmt: skip
"""Columns of an environment's table."""

SHARES_HEAD = ("environment", "objects", "", "first mask", "agent", "95 % interval", "oracle", "gap closed")
"""Columns of `shares_closed`."""


@dataclass(frozen=True)
class Summary:
    """A row: one entry in one environment, all seeds together.

    Attributes:
        name: What the entry is called.
        by: Who made it.
        kind: "scripted", "agents" or "oracle".
        seeds: How many.
        first: Mean IoU of the first masks.
        iou: Mean IoU of the last masks.
        score: Mean on the scale of random prompts (0) and the oracle (1); None if those are missing.
        gap_closed: Share of the way from the first masks to the oracle's.
        dice: Mean Dice of the last masks.
        boundary_iou: Mean Boundary IoU of the last masks.
        noc: For each of `THRESHOLDS`: mean prompts of those that reached it, None if none did, and the share that did.
        failures: Share of objects whose last mask is empty or worse than the first.
        prompts: Mean number of prompts.
        decodes: Mean number of masks that SAM decoded for an object.
    """

    name: str
    by: str
    kind: str
    seeds: int
    first: float
    iou: Interval
    score: float | None
    gap_closed: float | None
    dice: float
    boundary_iou: float
    noc: list[tuple[float | None, float]]
    failures: float
    prompts: float
    decodes: float

    def cells(self) -> list[str]:
        """Itself as text, one for each of `HEAD`."""
        noc = ["never" if mean is None else f"{mean:.1f} ({share:.0%})" for mean, share in self.noc]
        score, closed = self.score, self.gap_closed
        return [
            self.name, str(self.seeds), f"{self.first:.3f}", f"{self.iou.mean:.3f}", between(self.iou),
            "" if score is None else fixed(score, 2), "" if closed is None else percent(closed),
            f"{self.dice:.3f}", f"{self.boundary_iou:.3f}", *noc, f"{self.failures:.0%}",
            f"{self.prompts:.1f}", f"{self.decodes:.1f}",
        ]  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """All rows of an environment.

    Attributes:
        env_id: Its id.
        objects: How many are measured.
        rows: The oracle's comes last.
    """

    env_id: str
    objects: int
    rows: list[Summary]

    def row(self, *names: str) -> Summary | None:
        """The first row of one of these names."""
        return next((row for row in self.rows if row.name in names), None)


Overall = Mapping[str, tuple[int, Interval]]
"""Entries of a task -> how many data sets they are on, and the IQM of their scores over those."""


@dataclass(frozen=True)
class Tables:
    """Everything that a board shows.

    Attributes:
        manifest: The board's.
        tasks: Task -> its environments.
        overall: Task -> its entries over all data sets.
    """

    manifest: dict[str, Any]
    tasks: dict[str, list[Environment]]
    overall: dict[str, Overall]

    def write(self, path: Path) -> None:
        """Store them, a row a line, so that differences can be read."""
        environments = []
        for one in (one for task in self.tasks.values() for one in task):
            rows = ",\n".join(f"  {_compact(asdict(row))}" for row in one.rows)
            environments.append(f'{_compact(one.env_id)}: {{"objects": {one.objects}, "rows": [\n{rows}\n ]}}')
        overall = {
            task: {name: {"datasets": n, "score": asdict(score)} for name, (n, score) in entries.items()}
            for task, entries in self.overall.items()
        }
        content = (
            f'{{"manifest": {_compact(self.manifest)},\n"overall": {_compact(overall)},\n"environments": {{\n '
            + ",\n ".join(environments)
            + "\n}}\n"
        )
        with atomic_path(path) as temporary:
            temporary.write_text(content, encoding="utf-8")

    @classmethod
    def read(cls, path: Path = PACKAGED) -> Tables:
        """What `write` stored; by default what the package holds."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        tasks: dict[str, list[Environment]] = {}
        for env_id, one in stored["environments"].items():
            rows = [
                Summary(**{**row, "iou": Interval(**row["iou"]), "noc": [(mean, share) for mean, share in row["noc"]]})
                for row in one["rows"]
            ]
            tasks.setdefault(env_id.partition("-")[0], []).append(Environment(env_id, one["objects"], rows))
        overall: dict[str, Overall] = {
            task: {name: (one["datasets"], Interval(**one["score"])) for name, one in entries.items()}
            for task, entries in stored["overall"].items()
        }
        return cls(stored["manifest"], tasks, overall)


def shares_closed(environments: Iterable[Environment]) -> list[list[str]]:
    """How far each agent gets in each environment, a row each under `SHARES_HEAD`."""
    rows = []
    for one in environments:
        start, oracle = one.row(*UNPROMPTED), next((r for r in one.rows if r.kind == "oracle"), None)
        for row in one.rows:
            if row.kind == "agents" and row.gap_closed is not None and start is not None and oracle is not None:
                name = f"{row.name}, {row.seeds} seed{'s' * (row.seeds > 1)}"
                rows.append([
                    one.env_id, str(one.objects), name, f"{start.iou.mean:.3f}", f"{row.iou.mean:.3f}",
                    between(row.iou), f"{oracle.iou.mean:.3f}", percent(row.gap_closed),
                ])  # fmt: skip
    return rows


def fixed(value: float, decimals: int = 3) -> str:
    """A number with so many decimals, and no minus before zero."""
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}"


def percent(share: float) -> str:
    """A share in whole per cent, and no minus before zero."""
    return f"{fixed(100 * share, 0)}%"


def between(interval: Interval) -> str:
    """Both ends as text."""
    return f"{interval.low:.3f} to {interval.high:.3f}"


def bracketed(interval: Interval) -> str:
    """Mean and interval as text."""
    return f"{fixed(interval.mean)} [{fixed(interval.low)}, {fixed(interval.high)}]"


def _compact(content: Any) -> str:
    """JSON on one line, with six decimals."""
    return json.dumps(_rounded(content), separators=(",", ":"))


def _rounded(content: Any) -> Any:
    if isinstance(content, float):
        return round(content, 6)
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    return [_rounded(value) for value in content] if isinstance(content, list | tuple) else content
