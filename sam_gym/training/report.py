"""What a run, or an evaluation of its model, leaves to look at: table, learning curve, film strip, record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_gym._utils.fetching import write_json
from sam_gym._utils.stopwatch import Stopwatch
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.evaluation import report
from sam_gym.evaluation.records import Record
from sam_gym.prompters import Prompter

KEPT = ", best kept"
"""Ends the names of entries whose episodes return the mask that their judge thinks best."""


def write_report(
    folder: Path,
    title: str,
    records: list[Record],
    agent: Prompter,
    pictures: EngineVectorEnv,
    state: dict[str, Any],
) -> None:
    """Table on the screen and as Markdown, learning_curve.png, episodes.png and record.json."""
    where = records[0].provenance
    how = {"split": where["split"], "attention": where.get("attention", "full"), "precision": where["precision"]}
    shown = f"{how['split']} split, {len(records[0].iou)} objects"
    print()
    report.print_table(records, f"{shown}, attention {how['attention']}, {how['precision']} ({title})")
    quick = f"{title}\n\n" if state.get("quick") else ""
    (folder / "table.md").write_text(quick + report.markdown_table(records), encoding="utf-8")
    report.plot_learning(folder / "learning_curve.png", state["points"], records, title)
    own = [record for record in records if not record.name.endswith(KEPT)][-1]
    report.save_film_strip(folder / "episodes.png", agent, own, pictures)
    entries = [record.summary() for record in records]
    timing = {stage: Stopwatch(known).summary() for stage, known in state.get("timing", {}).items()}
    whole = {**report.provenance(), **state, "timing": timing, "table": how, "evaluation": entries}
    write_json(folder / "record.json", whole)
